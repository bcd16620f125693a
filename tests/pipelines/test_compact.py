import contextlib
import dataclasses
import os
import pathlib
import pickle
import time
from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from launch.runner import counted
from pipelines import compact
from tests.pipelines import versioned
from transforms import compact as transform
from volumes import commits, documents, objects, partition, runs, seals, store
from volumes.commits import Change, Fence, FencedError
from volumes.embeddings import EmbeddingStore
from volumes.errors import RequestError, RunError
from volumes.generation import Generation

VERSIONS = 5


def boxes_of(number: int) -> dict[str, list]:
    """Of the version of a number: one partition changes each time, one never."""
    return {
        "0_0_0": [(1, i, number) for i in range(3)],
        "1_0_0": [(2, i, i) for i in range(number)],
        "9_0_0": [(3, 1, 1)],
    }


def made(tmp_path: pathlib.Path, versions: int = VERSIONS) -> Generation:
    generation = versioned.generation_of(tmp_path)
    for number in range(1, versions + 1):
        assert versioned.publish(generation, boxes_of(number)) == number
    return generation


@pytest.fixture
def generation(tmp_path: pathlib.Path) -> Generation:
    return made(tmp_path)


@contextlib.contextmanager
def alone(generation: Generation, keep: int) -> Iterator[compact.CompactPlan]:
    """The plan of a run that works alone."""
    name = store.new_run()
    with runs.registered(
        generation.store, name, job="compact", exclusive=True, command="", identity=""
    ) as registered:
        plan = compact.plan(compact.CompactConfig(generation.store, keep))
        work = dataclasses.replace(plan.work, run=name, fence=Fence(registered.epoch, True))
        yield dataclasses.replace(plan, work=work)


def run(generation: Generation, keep: int = 2) -> tuple[compact.Result, dict[str, int]]:
    """Compact through the graph."""
    with alone(generation, keep) as plan:
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        compact.build(pipeline, plan)
        result = pipeline.run()
        result.wait_until_finish()
        found = compact.finish(plan)
        assert compact.done(plan) == found.partitions
        return found, counted(result)


def directly(work: transform.CompactWork) -> None:
    """The same steps in the order of the graph, without one."""
    found = list(transform.parts(work))
    transform.remove_versions(work, [a for part in found for a in transform.lost(part)])
    freed = [transform.compact_part(work, part) for part in found]
    for name in work.dropped:
        transform.remove_generation(work, name)
    transform.close(work, transform.Freed.total(freed))


def files(generation: Generation) -> int:
    return sum(len(names) for _, _, names in os.walk(objects.local_path(generation.url)))


def test_the_newest_versions_stay_as_they_were_and_the_others_go(generation) -> None:
    url = generation.store
    before = {n: versioned.read(url, n) for n in (4, 5)}
    heads = versioned.newest(generation)
    result, counts = run(generation)
    assert (result.versions_kept, result.versions_removed) == ((4, 5), (1, 2, 3))
    assert (result.partitions, result.generations_removed) == (2, ())
    assert counts["partitions"] == 2
    assert counts["files_removed"] == result.files_removed
    assert store.version_numbers(url) == [4, 5]
    assert {n: versioned.read(url, n) for n in (4, 5)} == before
    # What is gone has a clear end, from the version down to the database.
    with pytest.raises(RequestError, match="has no version 2; give one that it has: 4, 5"):
        EmbeddingStore.open(url, 2)
    part = generation.partition("0_0_0")
    with pytest.raises(RunError, match="NOT_FOUND"):
        partition.read_key(part, "epoch", heads["0_0_0"] - 1)
    # Work under way goes on, with the next number.
    assert versioned.publish(generation, boxes_of(9)) == VERSIONS + 1
    assert {n: versioned.read(url, n) for n in (4, 5)} == before


def test_the_graph_goes_step_by_step(generation, tmp_path, monkeypatch) -> None:
    versioned.publish(versioned.generation_of(tmp_path, "2"), boxes_of(6))
    seen = []
    names = ("lost", "remove_versions", "compact_part", "remove_generation", "close")
    for name in names:
        whole = getattr(transform, name)

        def traced(*args, name=name, whole=whole):
            seen.append(name)
            return whole(*args)

        monkeypatch.setattr(transform, name, traced)
    run(generation, keep=1)
    # Side by side are only partitions that stay and generations that go.
    side_by_side = sorted(seen[3:6])
    assert [*seen[:3], *side_by_side, *seen[6:]] == [
        *("lost", "lost", "remove_versions"),
        *("compact_part", "compact_part", "remove_generation", "close"),
    ]


def test_compacted_again_and_again_it_keeps_what_it_keeps(generation) -> None:
    before = versioned.read(generation.store, VERSIONS)
    for _ in range(2):
        result, _ = run(generation, keep=1)
        assert result.versions_kept == (VERSIONS,)
        assert versioned.read(generation.store, VERSIONS) == before
    assert result.versions_removed == ()
    settled = files(generation)
    assert result.bytes_before is not None
    run(generation, keep=1)
    assert files(generation) == settled
    # The highest number is never given twice, since it always stays.
    assert versioned.publish(generation, boxes_of(1)) == VERSIONS + 1


def test_work_under_way_stays(generation) -> None:
    versioned.commit(generation, boxes_of(8) | {"20_0_0": [(7, 7, 7)]})
    live = EmbeddingStore.open(generation.store, "live")
    before = {box: live.by_box(box).digest() for box in live.boxes()}
    result, _ = run(generation, keep=1)
    assert result.partitions == 3
    after = EmbeddingStore.open(generation.store, "live")
    assert {box: after.by_box(box).digest() for box in after.boxes()} == before
    assert len(before) == 4


def test_a_store_without_a_version_keeps_its_work(tmp_path) -> None:
    generation = versioned.generation_of(tmp_path)
    versioned.commit(generation, boxes_of(2))
    result, _ = run(generation)
    assert (result.versions_kept, result.versions_removed, result.partitions) == ((), (), 2)
    assert len(EmbeddingStore.open(generation.store, "live")) == 6


def test_a_reader_of_before_goes_on(generation) -> None:
    reader = EmbeddingStore.open(generation.store, 4)
    before = [rows.digest() for rows in reader.all()]
    run(generation)
    assert [rows.digest() for rows in reader.all()] == before


def test_a_writer_that_was_taken_for_dead_is_shut_out(generation) -> None:
    part, local = generation.place((0, 0, 0))
    receipt = partition.read_receipt(part, "0_0_0")
    head = versioned.newest(generation)
    run(generation)
    change = Change(local, "0_0_0", replaces=commits.standing_digest(receipt))
    with pytest.raises(FencedError, match="was taken over by a newer run"):
        commits.commit_boxes(part, [change])
    # A version that it has sealed before, and publishes now, can be read.
    for name, at in head.items():
        assert seals.seal(generation, name, at).rows == seals.seal(generation, name).rows
    now = versioned.newest(generation)
    assert now == {name: at + 1 for name, at in head.items()}


def test_generations_that_nothing_refers_to_go_with_the_versions(generation, tmp_path) -> None:
    url = generation.store
    others = [versioned.generation_of(tmp_path, name, width=5) for name in ("2", "3")]
    assert versioned.publish(others[0], boxes_of(1)) == 6
    versioned.commit(others[1], boxes_of(2))
    # Generation 1 is of version 5, 3 is current.
    result, _ = run(generation, keep=2)
    assert (result.versions_kept, result.generations_removed) == ((5, 6), ())
    assert result.partitions == 6
    result, _ = run(generation, keep=1)
    assert (result.versions_kept, result.generations_removed) == ((6,), ("1",))
    assert store.generations(url) == ["2", "3"]
    assert store.current(url)[0] == "3"
    assert versioned.publish(others[1], boxes_of(2)) == 7
    result, _ = run(generation, keep=1)
    assert result.generations_removed == ("2",)
    assert store.generations(url) == ["3"]
    assert versioned.read(url, 7).keys() == boxes_of(2).keys()


def test_a_generation_removed_in_part_is_removed_by_the_next(generation, tmp_path, monkeypatch):
    second = versioned.generation_of(tmp_path, "2")
    versioned.publish(second, boxes_of(1))

    def killed(url: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transform.removal, "remove_tree", killed)
    with pytest.raises(KeyboardInterrupt), alone(generation, 1) as plan:
        directly(plan.work)
    monkeypatch.undo()
    assert store.generation_directories(generation.store) == ["1", "2"]
    assert store.generations(generation.store) == ["2"]
    assert store.read_manifest(generation.store, "1") is None
    assert store.current(generation.store)[0] == "2"
    result, _ = run(generation, keep=1)
    assert result.generations_removed == ("1",)
    assert store.generation_directories(generation.store) == ["2"]


STEPS = [
    (transform.removal, "remove"),
    (transform.commits, "shut_out"),
    (transform.compaction, "compact"),
    (transform.removal, "remove_tree"),
    (transform.store, "write_run"),
]


@pytest.mark.parametrize(("module", "step"), STEPS, ids=[s for _, s in STEPS])
def test_killed_at_any_step_nothing_that_is_kept_is_lost(
    tmp_path, monkeypatch, module, step: str
) -> None:
    first = made(tmp_path, 2)
    second = versioned.generation_of(tmp_path, "2")
    for number in (3, 4, 5):
        assert versioned.publish(second, boxes_of(number)) == number
    url, whole = first.store, getattr(module, step)
    before = {n: versioned.read(url, n) for n in (4, 5)}
    for nth in range(20):
        calls = []

        def killed(*args, calls=calls, nth=nth):
            calls.append(args)
            if len(calls) <= nth:
                return whole(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(module, step, killed)
        with contextlib.suppress(KeyboardInterrupt), alone(first, 2) as plan:
            directly(plan.work)
        monkeypatch.undo()
        numbers = store.version_numbers(url)
        # What is left is always the newest ones.
        assert numbers == list(range(numbers[0], 6))
        assert numbers[0] <= 4
        assert store.current(url)[0] == "2"
        assert {n: versioned.read(url, n) for n in (4, 5)} == before
        if len(calls) <= nth:
            break
    else:
        pytest.fail("the step was never passed")
    assert nth >= 1
    assert numbers == [4, 5]
    assert store.generations(url) == ["2"]
    result, _ = run(second)
    assert (result.versions_kept, result.versions_removed) == ((4, 5), ())
    assert {n: versioned.read(url, n) for n in (4, 5)} == before


def test_a_kept_version_that_is_lost_ends_it_before_anything_is_removed(generation) -> None:
    url = generation.store
    needs = "versions 4, 5 are to be kept and need version {} of .*0_0_0, which cannot be read"
    where = objects.join(url, "versions", "4.json")
    whole = objects.read(where)
    document = store.read_version(url, 4)
    document["partitions"]["0_0_0"]["version"] = 1_000_000
    objects.write(where, documents.dump("segclr-version", 1, document))
    with pytest.raises(RunError, match=needs.format(1_000_000)):
        run(generation)
    objects.write(where, whole)
    (pathlib.Path(generation.partition("0_0_0").url) / "manifest.ocdbt").unlink()
    with pytest.raises(RunError, match=needs.format(r"\d+")):
        run(generation)
    assert store.version_numbers(url) == [1, 2, 3, 4, 5]


def test_what_killed_writers_left_goes(generation) -> None:
    url = pathlib.Path(generation.store)
    old, young = (url / "versions" / f".{n}.json.abcdefgh.tmp" for n in (6, 7))
    for path in (old, young):
        path.write_bytes(b"{")
    os.utime(old, (time.time() - transform.STALE_S - 60,) * 2)
    leftover = pathlib.Path(generation.partition("0_0_0").url) / "d" / "x.__lock"
    leftover.write_bytes(b"")
    empty = pathlib.Path(generation.url) / "partitions" / "30_0_0"
    empty.mkdir()
    result, counts = run(generation)
    assert not old.exists()
    assert young.exists()
    assert not leftover.exists()
    assert result.files_removed == counts["files_removed"] + 1
    assert result.partitions == 2


def test_the_plan_says_what_would_go(generation) -> None:
    plan = compact.plan(compact.CompactConfig(generation.store, 1))
    assert plan.lines() == [
        f"store: {generation.store}",
        "versions to keep: 5, and work under way",
        "versions to remove: 1, 2, 3, 4",
        "partitions to compact: 2",
    ]
    assert plan.to_json() == {
        "job": "compact",
        "store": generation.store,
        "versions_kept": [5],
        "versions_removed": [1, 2, 3, 4],
        "generations_kept": ["1"],
        "generations_removed": [],
        "partitions": 2,
    }
    assert pickle.loads(pickle.dumps(plan.work)) == plan.work
    more = compact.plan(compact.CompactConfig(generation.store, 99))
    assert (more.work.kept, more.work.removed) == ((1, 2, 3, 4, 5), ())


def test_requests_that_mean_nothing_are_refused(generation, tmp_path) -> None:
    for keep in (0, -1):
        with pytest.raises(RequestError, match=f"--keep {keep}: at least 1 version stays"):
            compact.CompactConfig("store", keep)
    with pytest.raises(RequestError, match="--store was empty"):
        compact.CompactConfig("")
    with pytest.raises(RequestError, match="is not an embedding store"):
        compact.plan(compact.CompactConfig(str(tmp_path / "x")))
    headless = versioned.generation_of(tmp_path, "2")
    versioned.commit(headless, boxes_of(1))
    (pathlib.Path(headless.url) / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"generations/2 has partitions and no manifest.json"):
        compact.plan(compact.CompactConfig(generation.store))
    plan = compact.CompactPlan(compact.job.CompactWork(generation.store, "r", (), (), (), ()), 0)
    with pytest.raises(RunError, match="the run r left no outcome in .*: run the same command"):
        compact.finish(plan)
