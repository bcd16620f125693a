"""Failures as an input: a table says which attempt of which box fails, and where on its way.

Whatever the schedule, the same command given again until it is done ends in the same store, and
every box is attempted exactly as often as the schedule says.
"""

import collections
import dataclasses
import functools
import os
import pathlib
import tempfile
import threading

import pytest

from pipelines import embed
from tests.pipelines import embed_case
from tests.pipelines.embed_case import Case, rows_by_node, run
from transforms import boxes
from volumes import commits, partition, seals, snapshots, store
from volumes.errors import DataError, RunError
from volumes.generation import coordinate_of

STEPS = ("before read", "after read", "after encode", "in the commit", "after the commit")


@dataclasses.dataclass(frozen=True)
class Fault:
    """Box number ``box`` (in the order of keys) fails ``times`` times at a step."""

    box: int
    step: str
    times: int = 1


SCHEDULES = [
    *([Fault(3, step)] for step in STEPS),
    *([Fault(0, step, times=3)] for step in STEPS[:-1]),
    [Fault(i, step) for i, step in enumerate(STEPS)],
    [Fault(2, "before read"), Fault(2, "after encode"), Fault(2, "after the commit")],
    [Fault(0, "after the commit"), Fault(5, "in the commit", times=2), Fault(6, "after read")],
]


class Injected(RuntimeError):
    """The failure that a schedule asks for: not one that a box is set aside for."""


class Faulty:
    """Raises as a schedule says, and counts how often each box came to each step."""

    def __init__(self, keys: list[str], schedule: list[Fault]) -> None:
        self.left = {(keys[f.box], f.step): f.times for f in schedule}
        self.seen: collections.Counter[tuple[str, str]] = collections.Counter()

    def __call__(self, box: str, step: str) -> None:
        self.seen[box, step] += 1
        if self.left.get((box, step), 0):
            self.left[box, step] -= 1
            raise Injected(f"{box} {step}")

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real_read, real_embed = boxes.read_input, boxes.embed_box
        real_commit, real_end = commits.commit_boxes, commits._commit
        under_way = threading.local()

        def read(work, inputs, box):
            key = work.key(box.index)
            self(key, "before read")
            found = real_read(work, inputs, box)
            self(key, "after read")
            return found

        def encode(work, load, box, prior_rows):
            output = real_embed(work, load, box, prior_rows)
            self(output.change.box, "after encode")
            return output

        def commit(where, changes, fence):
            under_way.changes = changes
            try:
                stands = real_commit(where, changes, fence)
            finally:
                under_way.changes = ()
            for change in changes:
                self(change.box, "after the commit")
            return stands

        def end(part, transaction):
            for change in getattr(under_way, "changes", ()):
                self(change.box, "in the commit")
            real_end(part, transaction)

        monkeypatch.setattr(boxes, "read_input", read)
        monkeypatch.setattr(boxes, "embed_box", encode)
        monkeypatch.setattr(commits, "commit_boxes", commit)
        monkeypatch.setattr(commits, "_commit", end)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return embed_case.make_case(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(case: Case) -> tuple[list[str], dict]:
    plan = embed.plan(case.config("undisturbed"))
    run(plan)
    embed.finish(plan)
    part = plan.work.generation.partition("0_0_0")
    keys = sorted(
        partition.listed(part, "receipts"),
        key=lambda k: plan.work.grid.index(coordinate_of(k)),
    )
    return keys, rows_by_node(plan.work.generation.store)


def until_done(config: embed.EmbedConfig, attempts: int = 20) -> tuple[int, embed.Result]:
    """Give the same command until it succeeds; gives how often it failed, and the last result."""
    for failures in range(attempts):
        plan = embed.plan(config)
        if plan.complete:
            return failures, embed.found_complete(plan)
        try:
            run(plan)
        except Injected:
            continue
        return failures, embed.finish(plan)
    raise AssertionError("the schedule never ends")


@pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda s: "; ".join(f"{f.box} {f.step} x{f.times}" for f in s)
)
def test_every_schedule_ends_in_the_same_store(
    case: Case, undisturbed, tmp_path: pathlib.Path, monkeypatch, schedule: list[Fault]
) -> None:
    keys, rows = undisturbed
    faulty = Faulty(keys, schedule)
    faulty.installed(monkeypatch)
    monkeypatch.setattr(boxes, "COMMIT_BOXES", 1)
    config = case.config(str(tmp_path / "store"), read_ahead=0)
    failures, result = until_done(config)
    assert failures == sum(f.times for f in schedule)
    assert not any(faulty.left.values())
    # A box is attempted once more for each failure before its commit came through; after that,
    # never again, and no other box because of it.
    expected = collections.Counter(dict.fromkeys(keys, 1))
    for fault in schedule:
        expected[keys[fault.box]] += fault.times if fault.step != "after the commit" else 0
    seen = {box: faulty.seen[box, "before read"] for box in keys}
    # An answer that is lost more often than a commit can be is found by the receipt.
    assert seen == dict(expected)
    assert result.embeddings_total == len(rows)
    assert rows_by_node(str(tmp_path / "store")) == rows
    sealed = seals.seal(embed.plan(config).work.generation, "0_0_0")
    assert (sealed.boxes, sealed.undone_boxes, sealed.failed_boxes) == (len(keys), 0, 0)


def test_boxes_that_share_a_commit_share_its_fate(
    case: Case, undisturbed, tmp_path: pathlib.Path, monkeypatch
) -> None:
    keys, rows = undisturbed
    faulty = Faulty(keys, [Fault(5, "in the commit"), Fault(9, "after the commit")])
    faulty.installed(monkeypatch)
    monkeypatch.setattr(boxes, "COMMIT_BOXES", 4)
    failures, _ = until_done(case.config(str(tmp_path / "store"), read_ahead=0))
    assert failures == 2
    # The first four were committed; the four with number 5 were done again; number 9 was durable.
    assert [faulty.seen[k, "before read"] for k in keys[:12]] == [1] * 4 + [2] * 4 + [1] * 4
    assert rows_by_node(str(tmp_path / "store")) == rows


@pytest.mark.parametrize(
    "schedule",
    [
        *([Fault(3, step)] for step in STEPS),
        [Fault(i, step) for i, step in enumerate(STEPS)],
        [Fault(0, "after the commit"), Fault(5, "in the commit", times=2), Fault(6, "after read")],
    ],
    ids=lambda s: "; ".join(f"{f.box} {f.step} x{f.times}" for f in s),
)
def test_what_overlaps_ends_in_the_same_store(
    case: Case, undisturbed, tmp_path: pathlib.Path, monkeypatch, schedule: list[Fault]
) -> None:
    """Boxes are read ahead and committed behind; a failure costs those under way, and no more."""
    keys, rows = undisturbed
    faulty = Faulty(keys, schedule)
    faulty.installed(monkeypatch)
    monkeypatch.setattr(boxes, "COMMIT_BOXES", 1)
    config = case.config(str(tmp_path / "store"), read_ahead=2)
    failures, result = until_done(config)
    # Two faults of one attempt fail it once.
    assert 1 <= failures <= sum(f.times for f in schedule)
    assert not any(faulty.left.values())
    assert result.embeddings_total == len(rows)
    assert rows_by_node(str(tmp_path / "store")) == rows
    sealed = seals.seal(embed.plan(config).work.generation, "0_0_0")
    assert (sealed.boxes, sealed.undone_boxes, sealed.failed_boxes) == (len(keys), 0, 0)
    # Under way are two reads, a box that is encoded, one that gathers and one that is committed.
    attempts = sum(n for (_, step), n in faulty.seen.items() if step == "before read")
    assert attempts <= len(keys) + 5 * failures


def failing_reads(monkeypatch, bad: dict[str, int]) -> collections.Counter[str]:
    """Reads of boxes fail for a reason of their own, so often; gives how often each was tried."""
    real, tried = boxes.read_input, collections.Counter()

    def read(work, inputs, box):
        key = work.key(box.index)
        tried[key] += 1
        if bad.get(key, 0) >= tried[key]:
            raise DataError(f"{work.describe(box.index)}: the chunk is corrupt")
        return real(work, inputs, box)

    monkeypatch.setattr(boxes, "read_input", read)
    monkeypatch.setattr(boxes, "_PAUSE_S", 0.0)
    return tried


@pytest.mark.parametrize("nodes", ["nodes.csv", "auto:60"])
def test_a_box_of_a_fault_of_its_own_is_tried_again_then_set_aside(
    case: Case, tmp_path: pathlib.Path, monkeypatch, nodes: str
) -> None:
    named = nodes if nodes.startswith("auto") else str(case.folder / nodes)
    config = case.config(str(tmp_path / "store"), nodes=named)
    tried = failing_reads(monkeypatch, {"0_0_0": 2, "1_1_1": 10**6, "2_0_1": 10**6})
    plan = embed.plan(config)
    counts = run(plan)
    result = embed.finish(plan)
    assert (tried["0_0_0"], tried["1_1_1"], tried["1_0_0"]) == (3, boxes.ATTEMPTS, 1)
    assert result.failed_boxes == counts["boxes_failed"] == 2
    assert {box for box, _ in result.failed} == {"2_0_1", "1_1_1"}
    assert "box 1_1_1 [16:32, 16:32, 16:32): the chunk is corrupt" in dict(result.failed)["1_1_1"]
    version = store.latest_version(plan.work.generation.store)
    assert version is not None
    assert version[1]["failed_boxes"] == 2
    planned = version[1]["nodes"]
    assert planned == result.embeddings_total + version[1]["failed_nodes"]

    # The same command leaves them where they are.
    tried.clear()
    again = embed.plan(config)
    assert again.complete is not None
    assert embed.found_complete(again).failed_boxes == 2
    run(again)
    assert tried == {}
    assert embed.finish(again).failed_boxes == 2
    # Asked to, it tries them again: one is mended, the other is not.
    monkeypatch.undo()
    failing_reads(monkeypatch, {"1_1_1": 10**6})
    retry = embed.plan(dataclasses.replace(config, retry_failed=True))
    assert retry.complete is None
    run(retry)
    result = embed.finish(retry)
    assert (result.failed_boxes, result.boxes, result.version) == (1, 1, 2)
    monkeypatch.undo()
    last = embed.plan(dataclasses.replace(config, retry_failed=True))
    run(last)
    assert embed.finish(last).failed_boxes == 0
    whole = embed.plan(case.config(str(tmp_path / "whole"), nodes=named))
    run(whole)
    assert rows_by_node(str(tmp_path / "store")) == rows_by_node(str(tmp_path / "whole"))


def test_a_box_that_cannot_be_sampled_is_set_aside_and_owes_nothing(tmp_path, monkeypatch) -> None:
    case = embed_case.make_case(tmp_path)
    config = case.config("store", nodes="auto:60")
    chunk = case.folder / "labels" / "c" / "5" / "4" / "4"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(boxes, "_PAUSE_S", 0.0)
    plan = embed.plan(config)
    run(plan)
    result = embed.finish(plan)
    # Those that the chunk is in, and their neighbours, whose crops reach into it.
    assert {box for box, _ in result.failed} == {"2_1_1", "2_1_2", "2_2_1", "2_2_2"}
    assert all("labels cannot be read" in error for _, error in result.failed)
    chunk.write_bytes(whole)
    again = embed.plan(dataclasses.replace(config, retry_failed=True))
    run(again)
    result = embed.finish(again)
    assert (result.failed_boxes, result.boxes, result.version) == (0, 4, 2)
    undisturbed = embed.plan(case.config("whole", nodes="auto:60"))
    run(undisturbed)
    assert rows_by_node(str(tmp_path / "store")) == rows_by_node(str(tmp_path / "whole"))


def test_a_failure_of_the_run_stops_it_at_once(
    case: Case, tmp_path: pathlib.Path, monkeypatch
) -> None:
    real, tried = boxes.read_input, []

    def read(work, inputs, box):
        tried.append(box.index)
        if len(tried) == 3:
            raise RunError("PERMISSION_DENIED")
        return real(work, inputs, box)

    monkeypatch.setattr(boxes, "read_input", read)
    plan = embed.plan(case.config(str(tmp_path / "store"), read_ahead=0))
    with pytest.raises(RunError, match="PERMISSION_DENIED"):
        run(plan)
    assert len(tried) == 3
    assert partition.listed(plan.work.generation.partition("0_0_0"), "failed") == []


def replace_with_itself(path: pathlib.Path) -> None:
    """As storage does it: whole, and whoever else does the same at that time."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(path.read_bytes())
    os.replace(name, path)


def test_a_volume_that_does_not_hold_still_is_read_again(
    tmp_path: pathlib.Path, monkeypatch
) -> None:
    """Another writer replaces a shard between the two looks at its stamp, once, then always."""
    moving = embed_case.make_case(tmp_path)
    shard, real, looks = moving.folder / "image" / "c" / "1" / "1" / "1", snapshots.stamp, []

    def stamped(volume, box, *, last: int = 2):
        looks.append(volume.spec.kind)
        if volume.spec.kind == "image" and looks.count("image") <= last:
            replace_with_itself(shard)
        return real(volume, box)

    monkeypatch.setattr(boxes, "_PAUSE_S", 0.0)
    monkeypatch.setattr(snapshots, "stamp", stamped)
    plan = embed.plan(moving.config("store"))
    run(plan)
    assert (embed.finish(plan).failed_boxes, embed.finish(plan).embeddings) == (0, 66)

    monkeypatch.setattr(snapshots, "stamp", functools.partial(stamped, last=10**9))
    plan = embed.plan(moving.config("restless"))
    run(plan)
    result = embed.finish(plan)
    assert result.failed_boxes > 0
    assert all("changed while they were read" in error for _, error in result.failed)
    # Boxes that do not read that shard are done.
    assert result.boxes > 0
