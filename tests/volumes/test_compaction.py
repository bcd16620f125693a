import itertools
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes.test_partition import commit, make_rows, plan_of, receipt_of
from volumes import commits, compaction, objects, partition
from volumes.compaction import compact
from volumes.context import ocdbt, process_context
from volumes.errors import RunError
from volumes.partition import Partition

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A commit a box; the first commit is the plans', and makes the arrays.
BOXES = 40
HEAD = BOXES + 2
KEPT = (3, 5, 17, HEAD - 5)


def rows_of(i: int):
    return make_rows(20, seed=i, width=16)


def grow(part: Partition, boxes: range) -> None:
    for i in boxes:
        rows = rows_of(i)
        commit(part, i, rows, receipt_of(f"{i}_0_0", rows))


def make(path: pathlib.Path, boxes: int = BOXES) -> Partition:
    part = Partition(str(path), boxes=256, width=16)
    commits.plan_boxes(part, [plan_of(f"{i}_0_0", 20) for i in range(part.boxes)])
    grow(part, range(boxes))
    return part


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A database of 40 one-box commits, and no more."""
    path = tmp_path_factory.mktemp("grown") / "0_0_0"
    part = make(path)
    assert partition.newest_version(part) == HEAD
    return path


@pytest.fixture
def part(grown: pathlib.Path, tmp_path: pathlib.Path) -> Partition:
    shutil.copytree(grown, tmp_path / "0_0_0")
    return Partition(str(tmp_path / "0_0_0"), boxes=256, width=16)


def contents(url: str, version: int | None = None) -> dict[bytes, bytes]:
    """All keys and values of a version, by a reader that opens it now."""
    spec = ocdbt(objects.kvstore(url), version=version)
    keys = ts.KvStore.open(spec, context=process_context()).result()
    reads = {key: keys.read(key) for key in keys.list().result()}
    return {key: read.result().value for key, read in reads.items()}


def readable(part: Partition, versions: range) -> dict[int, dict[bytes, bytes]]:
    """The contents of those of the versions that can be read."""
    contents(part.url)  # the newest manifest, before what is pinned
    found = {}
    for version in versions:
        try:
            found[version] = contents(part.url, version)
        except ValueError as e:
            if "NOT_FOUND" not in str(e):
                raise
    return found


def of_versions(part: Partition, versions: Iterable[int]) -> dict[int, dict[bytes, bytes]]:
    """The contents of versions, all of which can be read."""
    contents(part.url)  # the newest manifest, before what is pinned
    return {version: contents(part.url, version) for version in versions}


def data_files(part: Partition) -> list[str]:
    return sorted(os.listdir(pathlib.Path(part.url) / "d"))


def snapshot(part: Partition) -> dict[str, bytes]:
    root = pathlib.Path(part.url)
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def size(part: Partition) -> int:
    return sum(map(len, snapshot(part).values()))


def test_exactly_what_is_kept_stays_readable(part: Partition) -> None:
    before = readable(part, range(1, HEAD + 1))
    rows = {v: partition.read_rows(part, 1, v).digest() for v in (5, *KEPT[1:], HEAD)}
    assert len(before) == HEAD
    files, held = len(data_files(part)), size(part)
    done = compact(part, KEPT, readers=False)
    assert done.versions_kept == (*KEPT, HEAD)
    assert done.versions_dropped == HEAD - 5
    assert done.bytes_before == held
    assert done.bytes_after == size(part) < held
    # One file for what each version adds, and one of version tree nodes.
    assert len(data_files(part)) == 6
    assert done.files_removed == files
    assert readable(part, range(1, HEAD + 1)) == {v: before[v] for v in (*KEPT, HEAD)}
    assert {v: partition.read_rows(part, 1, v).digest() for v in rows} == rows
    assert partition.newest_version(part) == HEAD
    for dropped in (2, 16, 32, HEAD - 1):
        with pytest.raises(RunError, match="NOT_FOUND"):
            partition.read_rows(part, 1, dropped)
        with pytest.raises(RunError, match="NOT_FOUND"):
            partition.read_receipt(part, "1_0_0", dropped)


def test_what_opened_readers_need_goes_with_the_next_compaction(part: Partition) -> None:
    held = size(part)
    old = set(data_files(part))
    first = compact(part, KEPT)
    # Only the file of a version tree node that no kept version was found through may be gone.
    assert len(old - set(data_files(part))) <= 1
    second = compact(part, KEPT)
    assert second.versions_dropped == 0
    assert first.files_removed + second.files_removed == len(old)
    assert not old & set(data_files(part))
    assert size(part) < held
    # Nothing is left to do, and nothing is done.
    state = snapshot(part)
    assert compact(part, KEPT).files_removed == 0
    assert snapshot(part) == state


def test_opened_readers_of_this_process_go_on(part: Partition) -> None:
    contents(part.url)
    pinned = [v for v in (*KEPT, HEAD) if v > 3]
    before = {v: partition.read_rows(part, 2, v).digest() for v in pinned}
    live = partition.read_rows(part, 30).digest()
    assert len(partition.read_rows(part, 2, HEAD - 1)) == 20
    for _ in range(2):
        compact(part, KEPT, readers=False)
        assert {v: partition.read_rows(part, 2, v).digest() for v in pinned} == before
        assert partition.read_rows(part, 30).digest() == live
        with pytest.raises(RunError, match=f"generation_number={HEAD - 1} not present"):
            partition.read_rows(part, 2, HEAD - 1)


@pytest.mark.parametrize("readers", [True, False])
def test_commits_go_on_and_a_second_compaction_works(part: Partition, readers: bool) -> None:
    compact(part, KEPT, readers=readers)
    grow(part, range(BOXES, BOXES + 45))
    head = HEAD + 45
    assert partition.newest_version(part) == head
    before = readable(part, range(1, head + 1))
    assert sorted(before) == [*KEPT, *range(HEAD, head + 1)]
    keep = (KEPT[0], KEPT[-1], HEAD, HEAD + 7, 64, 65)
    done = compact(part, keep, readers=readers)
    assert done.versions_kept == (*keep, head)
    assert done.versions_dropped == len(before) - 7
    assert readable(part, range(1, head + 1)) == {v: before[v] for v in (*keep, head)}
    for i in range(BOXES + 45):
        assert partition.read_rows(part, i).digest() == rows_of(i).digest()


def test_leftovers_of_killed_writers_go(part: Partition) -> None:
    data = pathlib.Path(part.url) / "d"
    names = [f"{n:032x}" for n in range(3)]
    for name in names:
        (data / f"{name}.__lock").write_bytes(b"half a file")
        (data / name).write_bytes(b"a file that no manifest names")
    before = contents(part.url)
    done = compact(part, range(1, HEAD + 1))
    assert done.versions_dropped == 0
    assert done.files_removed == 6
    assert not any(name[:32] in names for name in data_files(part))
    assert contents(part.url) == before


@pytest.mark.parametrize(("keep", "named"), [([3, 99, 77], "77, 99"), ([0], "0"), ([-1, 5], "-1")])
def test_a_version_that_is_not_there_is_refused(
    part: Partition, keep: list[int], named: str
) -> None:
    state = snapshot(part)
    with pytest.raises(RunError, match=rf"no version {named} to keep \(it has 42, from 1 to 42\)"):
        compact(part, keep)
    assert snapshot(part) == state


def test_a_dropped_version_cannot_be_kept_later(part: Partition) -> None:
    compact(part, KEPT)
    # 16 ends a block, and a tombstone stands in for it; 18 is simply not there.
    with pytest.raises(RunError, match="no version 16, 18 to keep"):
        compact(part, [3, 16, 18])


def test_no_database(tmp_path: pathlib.Path) -> None:
    part = Partition(str(tmp_path / "0_0_0"), 8, 4)
    assert compact(part, []).versions_kept == ()
    with pytest.raises(RunError, match=r"no version 1 to keep \(it has none\)"):
        compact(part, [1])
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_several_manifests_is_refused(tmp_path: pathlib.Path) -> None:
    part = Partition(str(tmp_path / "0_0_0"), 8, 4)
    spec = ocdbt(objects.kvstore(part.url)) | {"config": {"manifest_kind": "numbered"}}
    ts.KvStore.open(spec, context=process_context()).result().write("a", "b").result()
    state = snapshot(part)
    with pytest.raises(RunError, match="0_0_0 has numbered manifests"):
        compact(part, [])
    assert snapshot(part) == state


def test_storage_without_sizes(part: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_sizes", lambda _: None)
    before = readable(part, range(1, HEAD + 1))
    done = compact(part, KEPT, readers=False)
    assert done.bytes_before is done.bytes_after is None
    assert len(data_files(part)) == 6
    assert readable(part, range(1, HEAD + 1)) == {v: before[v] for v in (*KEPT, HEAD)}


def test_copies_are_made_in_bounded_transactions(
    part: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = readable(part, range(1, HEAD + 1))
    whole = sum(map(len, before[HEAD].values()))
    monkeypatch.setattr(compaction, "_BATCH_BYTES", whole // 5)
    held = []
    batches = compaction._batches

    def watched(changed: dict[bytes, Any]) -> Any:
        for batch in batches(changed):
            held.append(sum(compaction._length(v) for v in batch.values()))
            yield batch

    monkeypatch.setattr(compaction, "_batches", watched)
    compact(part, KEPT, readers=False)
    # One a version would be 5.
    assert len(held) > 5
    assert max(held) <= whole // 5
    assert readable(part, range(1, HEAD + 1)) == {v: before[v] for v in (*KEPT, HEAD)}


def test_a_dense_database_is_not_copied(tmp_path: pathlib.Path) -> None:
    part = Partition(str(tmp_path / "0_0_0"), boxes=8, width=256)
    commits.plan_boxes(part, [plan_of(f"{i}_0_0", 1200) for i in range(8)])
    for i in range(8):
        rows = make_rows(1200, seed=i, width=256)
        commit(part, i, rows, receipt_of(f"{i}_0_0", rows))
    files = data_files(part)
    assert len(files) == 9
    done = compact(part, [], readers=False)
    assert done.versions_dropped == 9
    # Every file has values that the head needs.
    assert data_files(part) == files


def test_a_commit_between_is_told_and_nothing_is_lost(
    part: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compaction._new_manifest

    def with_a_writer(*args: Any) -> Any:
        grow(part, range(BOXES, BOXES + 1))
        return real(*args)

    before = readable(part, range(1, HEAD + 1))
    monkeypatch.setattr(compaction, "_new_manifest", with_a_writer)
    with pytest.raises(RunError, match="a writer committed to .*0_0_0 while it was compacted"):
        compact(part, KEPT, readers=False)
    monkeypatch.undo()
    after = readable(part, range(1, HEAD + 2))
    assert {v: c for v, c in after.items() if v <= HEAD} == before
    assert partition.read_rows(part, BOXES).digest() == rows_of(BOXES).digest()
    assert compact(part, KEPT, readers=False).versions_kept == (*KEPT, HEAD + 1)
    assert partition.read_rows(part, BOXES).digest() == rows_of(BOXES).digest()


class _Killed(Exception):
    pass


def killing(real: Callable[..., Any], after: bool, call: int) -> Callable[..., Any]:
    calls = 0

    def step(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise _Killed
        found = real(*args)
        if calls == call:
            raise _Killed
        return found

    return step


STEPS = [("_copied", 1), ("_bring", 1), ("_bring", 3), ("_check_copy", 1), ("_new_manifest", 1)]
STEPS += [("_replace_manifest", 1), ("_remove", 1), ("_total", 1)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("step", "call"), STEPS)
def test_killed_at_any_step_nothing_is_lost(
    part: Partition,
    grown: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    call: int,
    after: bool,
) -> None:
    kept = of_versions(part, (*KEPT, HEAD))
    monkeypatch.setattr(compaction, step, killing(getattr(compaction, step), after, call))
    with pytest.raises(_Killed):
        compact(part, KEPT, readers=False)
    monkeypatch.undo()
    assert of_versions(part, kept) == kept
    compact(part, KEPT, readers=False)
    # The same state as without the kill.
    shutil.copytree(grown, tmp_path / "undisturbed")
    undisturbed = Partition(str(tmp_path / "undisturbed"), boxes=256, width=16)
    compact(undisturbed, KEPT, readers=False)
    assert readable(part, range(1, HEAD + 1)) == kept
    assert len(data_files(part)) == len(data_files(undisturbed))
    assert abs(size(part) - size(undisturbed)) < 1000


def test_half_of_the_files_deleted(part: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = of_versions(part, (*KEPT, HEAD))
    real = compaction._remove

    def half(database: Any, names: list[str]) -> int:
        real(database, names[::2])
        raise _Killed

    monkeypatch.setattr(compaction, "_remove", half)
    with pytest.raises(_Killed):
        compact(part, KEPT, readers=False)
    monkeypatch.undo()
    assert readable(part, range(1, HEAD + 1)) == kept
    compact(part, KEPT, readers=False)
    assert readable(part, range(1, HEAD + 1)) == kept
    assert len(data_files(part)) == 6


# A commit: keys with the length of what is written there, or None to delete; short values stand in
# the tree. A number: so many commits of the same small kind, to fill blocks of version numbers.
_commit = st.dictionaries(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 400)), min_size=1)
_rounds = st.lists(
    st.tuples(
        st.lists(st.one_of(_commit, st.integers(1, 40)), max_size=6),
        st.floats(0, 1),
        st.booleans(),
        st.randoms(use_true_random=False),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15, deadline=None)
@given(rounds=_rounds)
def test_any_commits_and_any_choice_of_versions(rounds: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        part = Partition(directory + "/0_0_0", 8, 4)
        keys = ts.KvStore.open(ocdbt(objects.kvstore(part.url)), context=process_context()).result()
        serial = 0
        for steps, share, readers, rng in rounds:
            many = [[{1: 50, 2: 300}] * s if isinstance(s, int) else [s] for s in steps]
            for step in itertools.chain.from_iterable(many):
                transaction = ts.Transaction(atomic=True)
                staged = keys.with_transaction(transaction)
                serial += 1
                writes = [
                    staged.write(f"{k:03}", None if n is None else serial.to_bytes(4) + bytes(n))
                    for k, n in step.items()
                ]
                for write in writes:
                    write.result()
                transaction.commit_sync()
            head = partition.newest_version(part)
            before = readable(part, range(1, head + 1))
            keep = [v for v in before if rng.random() < share]
            done = compact(part, keep, readers=readers)
            expected = sorted({*keep, *([head] if head else [])})
            assert done.versions_kept == tuple(expected)
            assert readable(part, range(1, head + 1)) == {v: before[v] for v in expected}


def test_versions_of_a_deep_version_tree(tmp_path: pathlib.Path) -> None:
    part = Partition(str(tmp_path / "0_0_0"), 8, 4)
    # Two versions a node in place of 16, so that some 70 commits make a tree of many levels.
    spec = ocdbt(objects.kvstore(part.url)) | {"config": {"version_tree_arity_log2": 1}}
    keys = ts.KvStore.open(spec, context=process_context()).result()
    for i in range(70):
        keys.write("a", str(i) * 200).result()
    head = partition.newest_version(part)
    before = readable(part, range(1, head + 1))
    assert len(before) == head
    keep = [1, 2, 9, 17, 18, 40, 63]
    for _ in range(2):
        compact(part, keep, readers=False)
        expected = {v: before[v] for v in (*keep, head)}
        assert readable(part, range(1, head + 1)) == expected
    for i in range(70):
        keys.write("a", str(i) * 200).result()
    expected |= readable(part, range(head, head + 71))
    assert len(expected) == len(keep) + 71
    assert readable(part, range(1, head + 71)) == expected


_COMPACT = """
import sys
from volumes.compaction import compact
from volumes.partition import Partition, newest_version
part = Partition(sys.argv[1], 256, 16)
newest_version(part)
print("go", flush=True)
compact(part, [int(v) for v in sys.argv[2:]], readers=False)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path: pathlib.Path) -> None:
    whole = make(tmp_path / "whole", 200)
    keep = (3, 100, 190)
    head = partition.newest_version(whole)
    kept = of_versions(whole, (*keep, head))
    command = [sys.executable, "-c", _COMPACT]
    rng = random.Random(5)
    finished = 0
    for attempt in range(5):
        part = Partition(str(tmp_path / str(attempt)), 256, 16)
        shutil.copytree(whole.url, part.url)
        with subprocess.Popen(
            [*command, part.url, *map(str, keep)], stdout=subprocess.PIPE, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"go\n"
            time.sleep(rng.random() * 0.12)
            process.kill()
        finished += process.returncode == 0
        assert of_versions(part, kept) == kept
        assert compact(part, keep, readers=False).versions_kept == (*keep, head)
        assert readable(part, range(1, head + 1)) == kept
        assert len(data_files(part)) == 5
    assert finished < 5


_READ = """
import sys
from volumes.errors import RunError
from volumes.partition import Partition, read_rows
part = Partition(sys.argv[1], 256, 16)
for line in sys.stdin:
    try:
        print(*(read_rows(part, 1, int(v)).digest() for v in sys.argv[2:]), flush=True)
    except RunError as e:
        print(str(e).replace("\\n", " "), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("readers", [True, False])
def test_opened_readers_of_another_process(part: Partition, readers: bool) -> None:
    pinned = [v for v in (*KEPT, HEAD) if v > 3]
    digests = " ".join(partition.read_rows(part, 1, v).digest() for v in pinned)
    command = [sys.executable, "-c", _READ, part.url, *map(str, pinned)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def answer() -> str:
            process.stdin.write("\n")
            return process.stdout.readline().strip()

        assert answer() == digests
        compact(part, KEPT, readers=readers)
        found = answer()
        process.stdin.close()
    if readers:
        assert found == digests
    else:
        # Told which file is missing; never other rows.
        assert "NOT_FOUND" in found or "FAILED_PRECONDITION" in found
        assert "/d/" in found
