"""The graph of a check and of a repair, and embed after it."""

import dataclasses
import json
import pathlib
import shutil

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from launch.runner import counted
from pipelines import embed, verify
from tests.pipelines import embed_case
from tests.pipelines.embed_case import Case, rows_by_node
from tests.transforms import test_verify as small
from tests.transforms.test_verify import put, rewrite, set_value
from transforms.findings import VerifyWork
from volumes import partition, runs, store
from volumes.commits import Fence
from volumes.embeddings import EmbeddingStore
from volumes.errors import RequestError, RunError
from volumes.generation import Generation, coordinate_of


def run(
    url: str,
    version: int | None = None,
    *,
    repair: bool = False,
    options: list[str] | None = None,
) -> tuple[verify.Result, dict[str, int]]:
    """Check a store; what was found, and Beam's counters."""
    plan = verify.plan(verify.VerifyConfig(url, version, repair))
    name = plan.work.run
    with runs.registered(
        url, name, job="verify", exclusive=repair, command="a test", identity=""
    ) as me:
        fence = Fence(me.epoch, me.exclusive)
        plan = dataclasses.replace(plan, work=dataclasses.replace(plan.work, fence=fence))
        verify.prepare(plan, "a test")
        pipeline = beam.Pipeline(options=PipelineOptions(options or ["--runner=FnApiRunner"]))
        verify.build(pipeline, plan)
        result = pipeline.run()
        result.wait_until_finish()
    return verify.finish(plan), counted(result)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    return small.make_store(str(tmp_path_factory.mktemp("verify") / "store"))


@pytest.fixture
def generation(whole: Generation, tmp_path: pathlib.Path) -> Generation:
    shutil.copytree(whole.store, tmp_path / "store")
    return dataclasses.replace(whole, store=str(tmp_path / "store"))


def damage(generation: Generation) -> None:
    """Some of everything, in both partitions."""
    set_value(generation, "-1_0_2", "mask_voxels", 4, 7)
    put(generation, "1_0_0", "node_id/c/L/1", None)
    put(generation, "1_1_1", "receipts/BOX", None)
    small.stray(generation)
    small.commit(generation, "1_0_1", small.rows_of(40, 4))
    rewrite(generation, "0_0_0", "receipts", planned=4)


FOUND = {
    "accounting": 2,
    "duplicate": 40,
    "lost": 1,
    "rows": 1,
    "stray": 2,
    "totals": 1,
    "undone": 1,
}


def test_a_whole_store_is_clean(generation: Generation) -> None:
    before = versions(generation)
    for version in (None, 1):
        found, counts = run(generation.store, version)
        assert found.clean
        assert found.lines() == ["5 boxes, 648 rows: every row is what its receipt says"]
        assert (found.boxes, found.nodes, found.rows) == (5, 649, 648)
        assert (counts["partitions"], counts["boxes"], counts["rows"]) == (2, 5, 648)
        assert list(found.remedies()) == [] or version
    assert versions(generation) == before


def versions(generation: Generation) -> dict[str, int]:
    names = store.partitions_present(generation)
    return {n: partition.newest_version(generation.partition(n)) for n in names}


def test_the_graph_finds_what_a_direct_look_finds(generation: Generation) -> None:
    damage(generation)
    before = versions(generation)
    found, _ = run(generation.store)
    direct = sorted(small.all_faults(generation), key=lambda f: f.order)
    assert found.named == tuple((f.where, f.kind, f.says) for f in direct)
    assert dict(found.faults) == FOUND
    assert dict(found.left) == {k: n for k, n in FOUND.items() if k != "undone"}
    assert (found.undone, found.failed, found.repaired) == (1, 0, 0)
    assert (found.mendable, found.recorded, found.published) == (6, False, None)
    assert versions(generation) == before
    assert store.version_numbers(generation.store) == [1]
    # What was published is as it was.
    assert run(generation.store, 1)[0].clean
    # Another runner, which hands out the partitions in another order and repeats none.
    other, _ = run(generation.store, options=["--runner=BundleBasedDirectRunner"])
    assert other == found


def test_the_order_of_partitions_does_not_matter(generation: Generation, monkeypatch) -> None:
    damage(generation)
    found, _ = run(generation.store)
    real = small.verify.parts
    monkeypatch.setattr(small.verify, "parts", lambda work: reversed(list(real(work))))
    assert run(generation.store)[0] == found


def test_a_repair_publishes_what_is_undone_and_is_done_once(generation: Generation) -> None:
    set_value(generation, "-1_0_2", "mask_voxels", 4, 7)
    put(generation, "1_0_0", "node_id/c/L/1", None)
    found, _ = run(generation.store, repair=True)
    assert (found.repaired, found.undone, found.left) == (2, 2, ())
    assert (found.published, found.recorded, found.clean) == (2, True, False)
    assert list(found.remedies()) == ["the same embed command computes the boxes that are undone"]
    document = store.read_version(generation.store, 2)
    assert document is not None
    assert (document["undone_boxes"], document["rows"], document["nodes"]) == (2, 43, 649)
    first = store.read_version(generation.store, 1)
    assert first is not None
    for same in ("run", "identity", "unplaced"):
        assert document[same] == first[same]
    # Who read version 1 reads it still; the latest has no damaged row.
    assert len(EmbeddingStore.open(generation.store, 1)) == 648
    assert len(EmbeddingStore.open(generation.store)) == 43
    before = versions(generation)
    again, _ = run(generation.store, repair=True)
    assert (again.repaired, again.undone, again.published) == (0, 2, 2)
    assert versions(generation) == before
    assert store.version_numbers(generation.store) == [1, 2]
    assert not run(generation.store, 2)[0].left


def test_a_repair_of_a_whole_store_changes_nothing(generation: Generation) -> None:
    before = versions(generation)
    found, _ = run(generation.store, repair=True)
    assert found.clean
    assert (found.repaired, found.published) == (0, None)
    assert versions(generation) == before
    assert store.version_numbers(generation.store) == [1]


def test_rows_without_a_receipt_are_all_that_a_repair_takes_away(generation: Generation) -> None:
    small.stray(generation)
    found, _ = run(generation.store, repair=True)
    assert (found.repaired, found.undone, found.clean, found.published) == (1, 0, True, None)
    assert found.lines() == [
        "5 boxes, 648 rows; found:",
        "  0_1_0 (stray): it has rows or a count (1 chunks) and no receipt",
        "1 box repaired",
        "5 boxes, 648 rows: every row is what its receipt says",
    ]
    assert run(generation.store)[0].faults == ()


def test_a_repair_records_undone_boxes_that_embed_does_not_know_of(generation: Generation) -> None:
    small.forget(generation, "1_1_1")
    found, _ = run(generation.store)
    assert (found.undone, found.recorded) == (1, False)
    assert next(found.remedies()).startswith("verify --repair records the undone boxes")
    found, _ = run(generation.store, repair=True)
    assert (found.repaired, found.undone, found.published) == (0, 1, 2)


@pytest.mark.parametrize("name", ["a plan is damaged", "a receipt for others"])
def test_a_repair_does_not_publish_what_cannot_be_accounted_for(
    generation: Generation, name: str
) -> None:
    small.DAMAGES[name][0](generation)
    set_value(generation, "1_0_0", "mask_voxels", 4, 7)
    found, _ = run(generation.store, repair=True)
    assert (found.repaired, found.published) == (1, None)
    assert store.version_numbers(generation.store) == [1]


def test_an_unpublished_store_stays_so(generation: Generation) -> None:
    pathlib.Path(generation.store, "versions", "1.json").unlink()
    set_value(generation, "1_0_0", "mask_voxels", 4, 7)
    found, _ = run(generation.store, repair=True)
    assert (found.repaired, found.undone, found.published, found.recorded) == (1, 1, None, True)
    assert dict(found.left) == {"unfinished": 1}
    assert store.version_numbers(generation.store) == []


def test_wrong_requests_are_refused(generation: Generation, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError, match="--store was empty"):
        verify.VerifyConfig("")
    with pytest.raises(RequestError, match="--repair was given with --version 3: .* never changes"):
        verify.VerifyConfig("s", 3, True)
    with pytest.raises(RequestError, match="absent is not an embedding store"):
        verify.plan(verify.VerifyConfig(str(tmp_path / "absent")))
    with pytest.raises(RequestError, match="has no version 7; give one that it has: 1"):
        verify.plan(verify.VerifyConfig(generation.store, 7))
    pathlib.Path(generation.url, "manifest.json").unlink()
    with pytest.raises(RunError, match=r"generations/1 has partitions and no manifest\.json"):
        verify.plan(verify.VerifyConfig(generation.store))


def test_planning_writes_nothing_and_is_json(generation: Generation) -> None:
    before = sorted(pathlib.Path(generation.store).rglob("*"))
    plan = verify.plan(verify.VerifyConfig(generation.store))
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()
    assert sorted(pathlib.Path(generation.store).rglob("*")) == before
    with pytest.raises(RunError, match="did not come to its end; run the same command again"):
        verify.finish(plan)


def proto_of(generation: Generation, run: str) -> bytes:
    plan = verify.plan(verify.VerifyConfig(generation.store))
    work = VerifyWork(plan.work.generation, None, run)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    verify.build(pipeline, dataclasses.replace(plan, work=work))
    return pipeline.to_runner_api().SerializeToString(deterministic=True)


def test_the_graph_does_not_grow_with_the_store(generation: Generation) -> None:
    before = proto_of(generation, "run")
    for i in range(40):
        small.commit(generation, f"{2 * i}_40_0", small.rows_of(3, 50 + i))
    assert len(verify.plan(verify.VerifyConfig(generation.store)).store.partitions) == 42
    # Pickles are compressed, so equal graphs differ by some bytes.
    assert abs(len(proto_of(generation, "run")) - len(before)) < 500


def test_step_names_stay(generation: Generation) -> None:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    verify.build(pipeline, verify.plan(verify.VerifyConfig(generation.store)))
    names = {t.unique_name for t in pipeline.to_runner_api().components.transforms.values()}
    assert {
        "Verify/ListParts",
        "Verify/CheckPartition",
        "Verify/GroupByHash",
        "Verify/FindRepeated",
        "Verify/CloseCheck",
    } <= names


# -- with embed --


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return embed_case.make_case(tmp_path_factory.mktemp("embed"))


def complete(case: Case, store_name: str, **changes: str) -> str:
    plan = embed.plan(case.config(store_name, **changes))
    embed_case.run(plan)
    assert embed.finish(plan).version == 1
    return plan.work.generation.store


@pytest.fixture(scope="module")
def given(case: Case) -> str:
    """A complete store of given nodes; copied, never written to."""
    return complete(case, "given")


@pytest.fixture(scope="module")
def sampled(case: Case) -> str:
    """A complete store of sampled nodes; copied, never written to."""
    return complete(case, "sampled", nodes="auto:120")


def test_after_a_repair_the_same_embed_command_makes_it_whole(
    case: Case, given: str, tmp_path: pathlib.Path
) -> None:
    _damage_and_make_whole(given, case.config(str(tmp_path / "store")))


@pytest.mark.slow
def test_after_a_repair_sampled_nodes_are_made_whole(
    case: Case, sampled: str, tmp_path: pathlib.Path
) -> None:
    _damage_and_make_whole(sampled, case.config(str(tmp_path / "store"), nodes="auto:120"))


def _damage_and_make_whole(whole: str, config: embed.EmbedConfig) -> None:
    url = config.output
    shutil.copytree(whole, url)
    assert run(url)[0].clean
    generation = EmbeddingStore.open(url).generation
    boxes = list(EmbeddingStore.open(url).boxes())
    assert len(boxes) > 15
    damaged = sorted([boxes[3], boxes[11], boxes[-1]], key=coordinate_of)
    put(generation, damaged[0], "embedding/c/L/0/0", None)
    set_value(generation, damaged[1], "embedding", 0, 7.5)
    put(generation, damaged[2], "receipts/BOX", None)
    found, _ = run(url)
    assert [(w, k) for w, k, _ in found.named] == [
        (damaged[0], "lost"),
        (damaged[1], "rows"),
        (damaged[2], "stray"),
        (damaged[2], "undone"),
    ]
    # Without a repair embed takes the published version for all there is.
    assert embed.plan(config).complete is not None
    found, _ = run(url, repair=True)
    assert (found.repaired, found.undone, found.published) == (3, 3, 2)
    plan = embed.plan(config)
    assert plan.complete is None
    fence = Fence(runs.highest_epoch(url))
    plan = dataclasses.replace(plan, work=dataclasses.replace(plan.work, fence=fence))
    embed_case.run(plan)
    result = embed.finish(plan)
    assert (result.boxes, result.boxes_skipped) == (3, len(boxes) - 3)
    assert result.version == 3
    assert run(url)[0].clean
    assert run(url, 3)[0].clean
    assert rows_by_node(url) == rows_by_node(whole)


@pytest.mark.slow
def test_a_box_that_a_walk_lost_is_missed(sampled: str, tmp_path: pathlib.Path) -> None:
    url = str(tmp_path / "store")
    shutil.copytree(sampled, url)
    opened = EmbeddingStore.open(url)
    box = next(opened.boxes())
    put(opened.generation, box, "plan/BOX", None)
    small.forget(opened.generation, box)
    found, _ = run(url)
    assert [(w, k) for w, k, _ in found.named] == [("store", "totals")]
    assert "sites, and" in found.named[0][2]


@pytest.mark.slow
def test_two_processes_find_the_same(generation: Generation) -> None:
    damage(generation)
    found, _ = run(generation.store)
    options = [
        "--runner=FnApiRunner",
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
    ]
    assert run(generation.store, options=options)[0] == found
