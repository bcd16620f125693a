import dataclasses
import json
import math
import pathlib
import pickle

import apache_beam as beam
import numpy as np
import pytest

from pipelines import embed
from tests.pipelines import embed_case
from tests.pipelines.embed_case import SIZE_NM, Case, direct, rows_by_node, run
from transforms import boxes, ranges, walk
from transforms.accounts import CloseTheRun
from transforms.boxes import EmbedBoxes
from transforms.nodes import GroupNodes
from transforms.owing import OweBoxes
from transforms.work import EmbedWork
from volumes import commits, partition, seals, store
from volumes.commits import Change
from volumes.errors import RequestError, RunError
from volumes.generation import Generation, coordinate_of
from volumes.geometry import Box, ChunkGrid
from volumes.receipts import Receipt


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return embed_case.make_case(tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="module")
def done(case: Case) -> tuple[embed.EmbedPlan, dict[str, int]]:
    plan = embed.plan(case.config("done"))
    return plan, run(plan)


def receipts(plan: embed.EmbedPlan) -> list[Receipt]:
    found = []
    for name in store.partitions_present(plan.work.generation):
        part = plan.work.generation.partition(name)
        for box in partition.listed(part, "receipts"):
            receipt = partition.read_receipt(part, box)
            assert receipt is not None
            found.append(receipt)
    return found


def test_many_boxes_equal_one_direct_computation(case: Case, done) -> None:
    plan, _ = done
    expected = direct(case)
    rows = rows_by_node(plan.work.generation.store)
    assert rows.keys() == expected.keys()
    assert all(rows[k][3] == expected[k].tobytes() for k in expected)
    # The case is not trivial: many boxes, crops across them and beyond the volume, all different.
    assert plan.work.grid.size == 27
    vectors = np.stack(list(expected.values()))
    assert len(np.unique(vectors, axis=0)) == len(vectors)
    assert vectors.std(axis=0).min() > 0
    positions = np.array([n[2:] for n in case.nodes]) / SIZE_NM
    assert ((positions % 16 < 8) | (positions % 16 >= 8)).all(axis=1).sum() == len(positions)
    assert (positions < 8).any(axis=1).sum() > 5
    assert len({s for s, _ in expected}) == 5


@pytest.mark.parametrize("box", [(24, 24, 24), (32, 16, 8), (128, 128, 128)])
def test_the_box_does_not_change_the_rows(case: Case, done, tmp_path, box) -> None:
    plan = embed.plan(case.config(str(tmp_path / "store"), box=box))
    run(plan)
    assert rows_by_node(plan.work.generation.store) == rows_by_node(done[0].work.generation.store)


def test_counters_equal_receipts_and_the_summary(case: Case, done) -> None:
    plan, counts = done
    found = receipts(plan)
    result = embed.finish(plan)
    assert counts["embeddings"] == sum(r.committed for r in found) == result.embeddings == 66
    assert counts["nodes"] == result.nodes == 66
    assert counts["bytes_read"] == result.bytes_read > 0
    assert len(found) == counts["boxes"] == result.boxes == plan.estimate.boxes
    assert {"read_ms_sum", "encode_ms_sum", "commit_ms_sum"} <= counts.keys()
    assert result.bytes_read == plan.estimate.bytes_to_read
    assert result.boxes_skipped == 0
    assert result.version == 1


def test_a_second_run_has_nothing_to_do(case: Case, done) -> None:
    again = embed.plan(case.config("done"))
    assert again.complete is not None
    result = embed.found_complete(again)
    assert (result.embeddings, result.boxes, result.version) == (0, 0, 1)
    assert (result.boxes_skipped, result.embeddings_total) == (done[0].estimate.boxes, 66)


def test_the_graph_on_a_complete_store_computes_and_writes_nothing(case: Case, done) -> None:
    plan, _ = done
    part = plan.work.generation.partition("0_0_0")
    before = partition.newest_version(part)
    again = embed.plan(case.config("done"))
    counts = run(again)
    assert counts.get("embeddings", 0) == counts.get("bytes_read", 0) == 0
    result = embed.finish(again)
    assert (result.boxes, result.boxes_skipped) == (0, plan.estimate.boxes)
    assert counts["boxes_skipped"] == plan.estimate.boxes
    assert result.version == 1
    assert partition.newest_version(part) == before
    assert store.version_numbers(plan.work.generation.store) == [1]


def _build_losing(root: beam.Pipeline, plan: embed.EmbedPlan, losing) -> None:
    """The embed graph with something lost between two of its steps."""
    work = plan.work
    nodes = root | "Nodes" >> GroupNodes(work, plan.source)
    groups = nodes["boxes"]
    if losing == "before planning":
        groups = groups | "Lose" >> beam.Filter(lambda box: box.index != 13)
    owed = groups | "Owe" >> OweBoxes(work)
    if losing == "before work":
        groups = groups | "Lose" >> beam.Filter(lambda box: box.index != 13)
    done = groups | "Embed" >> EmbedBoxes(work, after=(owed,))
    _ = owed | "Close" >> CloseTheRun(work, done, unplaced=nodes["unplaced"])


def test_a_group_lost_before_the_work_is_named_from_storage(case: Case, tmp_path) -> None:
    plan = embed.plan(case.config(str(tmp_path / "store")))
    run(plan, lambda root, p: _build_losing(root, p, "before work"))
    key = plan.work.key(13)
    assert key == "1_1_1"
    sealed = seals.seal(plan.work.generation, "0_0_0")
    assert sealed.undone == (key,)
    with pytest.raises(RunError, match=r"1 planned boxes were not committed: 1_1_1\. No version"):
        embed.finish(plan)
    assert store.version_numbers(plan.work.generation.store) == []
    # The same command does what is missing, and nothing else.
    again = embed.plan(case.config(str(tmp_path / "store")))
    assert again.resuming
    assert again.complete is None
    run(again)
    result = embed.finish(again)
    assert (result.boxes, result.boxes_skipped) == (1, plan.estimate.boxes - 1)
    assert result.version == 1


def test_a_group_lost_before_planning_is_told_by_the_count(case: Case, tmp_path) -> None:
    plan = embed.plan(case.config(str(tmp_path / "store")))
    run(plan, lambda root, p: _build_losing(root, p, "before planning"))
    with pytest.raises(RunError, match=r"66 nodes were read, \d\d planned and 0 belong to no box"):
        embed.finish(plan)


def test_rejected_nodes_are_counted_by_reason(case: Case, tmp_path) -> None:
    nodes = list(case.nodes)
    segment, _, *position = nodes[0]
    far = max(nodes, key=lambda n: sum(abs(a - b) for a, b in zip(n[2:], position, strict=True)))
    nodes += [
        (0, 1, *position),
        nodes[0],
        (123456789, 5, *position),
        (segment, 6, float("nan"), 0.0, 0.0),
        (segment, 7, 1e9, 0.0, 0.0),
        (segment, 8, -1.0, 0.0, 0.0),
    ]
    assert far != nodes[0]
    embed_case.write_nodes(tmp_path / "nodes.csv", nodes)
    plan = embed.plan(case.config(str(tmp_path / "store"), nodes=str(tmp_path / "nodes.csv")))
    counts = run(plan)
    result = embed.finish(plan)
    assert dict(result.rejected) == {
        "background": 1,
        "duplicate": 1,
        "empty_mask": 1,
        "nan": 1,
        "outside": 2,
    }
    assert {k: counts[f"rejected_{k}"] for k in dict(result.rejected)} == dict(result.rejected)
    assert (result.nodes, result.embeddings) == (72, 66)


def test_sampled_nodes_do_not_depend_on_the_box(case: Case, tmp_path) -> None:
    found = []
    for i, box in enumerate([(16, 16, 16), (24, 40, 8)]):
        plan = embed.plan(case.config(str(tmp_path / f"{i}"), nodes="auto:60", box=box))
        counts = run(plan)
        result = embed.finish(plan)
        assert counts["embeddings"] == result.embeddings == result.embeddings_total
        found.append(rows_by_node(plan.work.generation.store))
    assert found[0] == found[1]
    assert len(found[0]) > 500
    walked = store.read_run(plan.work.generation.store, plan.work.run, "walked")
    assert walked is not None
    assert walked["boxes"] == plan.work.grid.size
    assert walked["nodes"] == len(found[0])


def test_a_sampled_run_goes_on_where_it_stopped(case: Case, tmp_path, monkeypatch) -> None:
    config = case.config(str(tmp_path / "store"), nodes="auto:60")
    plan = embed.plan(config)
    real, seen = boxes.embed_box, []

    def failing(work: EmbedWork, load, box, prior_rows):
        if len(seen) == 3:
            raise RunError("the power went")
        seen.append(box.index)
        return real(work, load, box, prior_rows)

    monkeypatch.setattr(boxes, "embed_box", failing)
    monkeypatch.setattr(boxes, "COMMIT_BOXES", 1)
    with pytest.raises(RunError, match="the power went"):
        run(plan)
    monkeypatch.undo()
    assert len(receipts(plan)) == 3
    again = embed.plan(config)
    run(again)
    result = embed.finish(again)
    assert result.boxes_skipped == 3
    assert result.boxes + 3 == len(receipts(plan))


def test_a_range_that_was_not_walked_is_told(case: Case, tmp_path, monkeypatch) -> None:
    plan = embed.plan(case.config(str(tmp_path / "store"), nodes="auto:60"))
    real = walk.ranges
    monkeypatch.setattr(walk, "ranges", lambda *a: list(real(*a))[1:])
    run(plan)
    with pytest.raises(RunError, match="the grid has 27 boxes and 26 were walked"):
        embed.finish(plan)


def test_ranges_hold_each_box_once() -> None:
    from_grid = ChunkGrid(Box((-20, 5, 0), (100, 90, 40)), (16, 16, 16))
    generation = Generation("s", "1", 8, (16, 16, 16), (2, 3, 2))
    found = [
        i
        for r in ranges.ranges(from_grid, generation)
        for i in ranges.boxes_of(from_grid, generation, r)
    ]
    assert all(
        i in ranges.boxes_of(from_grid, generation, ranges.range_of(from_grid, generation, i))
        for i in found
    )
    assert sorted(found) == list(range(from_grid.size))
    names = {generation.partition_name(from_grid.coordinate(i)) for i in found}
    assert len(names) == generation.blocks(from_grid).size


def test_an_attempt_that_is_repeated_writes_nothing_new(case: Case, done) -> None:
    plan, _ = done
    receipt = receipts(plan)[0]
    where, local = plan.work.generation.place(coordinate_of(receipt.box))
    before = partition.newest_version(where)
    rows = partition.read_rows(where, local)
    late = dataclasses.replace(receipt, run="a zombie")
    assert commits.commit_boxes(where, [Change(local, late.box, late, rows)]) == [receipt]
    assert partition.newest_version(where) == before


def test_a_retrying_runner_commits_each_box_once(case: Case, done, tmp_path, monkeypatch) -> None:
    plan = embed.plan(case.config(str(tmp_path / "store")))
    real, attempts = commits.commit_boxes, []

    def lost_answer(where, changes, epoch):
        attempts.append([c.box for c in changes])
        stands = real(where, changes, epoch)
        if len(attempts) in (2, 5):
            raise OSError("the answer was lost")
        return stands

    monkeypatch.setattr(commits, "commit_boxes", lost_answer)
    monkeypatch.setattr(boxes, "COMMIT_BOXES", 4)
    run(plan, options=["--runner=BundleBasedDirectRunner"])
    # The bundle ran three times, and each box was committed once: a version of the database for
    # each commit that wrote, and one for the plan.
    each = math.ceil(plan.estimate.boxes / 4)
    assert len(attempts) == 2 + 3 + each
    newest = partition.newest_version(plan.work.generation.partition("0_0_0"))
    assert newest == 1 + 1 + each
    embed.finish(plan)
    assert rows_by_node(plan.work.generation.store) == rows_by_node(done[0].work.generation.store)


def test_another_identity_is_refused_with_the_fields_that_differ(case: Case, done) -> None:
    with pytest.raises(RequestError, match=r"differs in box: \[16, 16, 16\] there, \[32, 32, 32\]"):
        embed.plan(case.config("done", box=(32, 32, 32)))
    with pytest.raises(RequestError, match=r"batch: 2 there, 4 asked; model: "):
        embed.plan(case.config("done", batch=4))


def test_what_travels_and_what_is_written_survive(case: Case, done) -> None:
    plan, _ = done
    assert pickle.loads(pickle.dumps(plan.work)) == plan.work
    manifest = store.read_manifest(plan.work.generation.store, "1")
    assert manifest is not None
    assert manifest["identity"] == plan.identity
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()


def test_planning_writes_nothing(case: Case, tmp_path: pathlib.Path) -> None:
    before = sorted(case.folder.rglob("*"))
    embed.plan(case.config(str(tmp_path / "never")))
    assert sorted(case.folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def proto_of(plan: embed.EmbedPlan) -> bytes:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    embed.build(pipeline, plan)
    return pipeline.to_runner_api().SerializeToString(deterministic=True)


@pytest.mark.parametrize("nodes", ["nodes.csv", "auto:60"])
def test_the_graph_does_not_grow_with_the_boxes(case: Case, tmp_path, nodes) -> None:
    named = nodes if nodes.startswith("auto") else str(case.folder / nodes)
    plan = embed.plan(case.config(str(tmp_path / "s"), nodes=named))
    grid = plan.work.grid
    huge = dataclasses.replace(grid, domain=grid.domain.grown((0, 0, 0), (160_000,) * 3))
    assert huge.size > 10**12
    large = dataclasses.replace(plan, work=dataclasses.replace(plan.work, grid=huge))
    assert abs(len(proto_of(large)) - len(proto_of(plan))) < 2_000


def test_step_names_stay(case: Case, tmp_path) -> None:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    embed.build(pipeline, embed.plan(case.config(str(tmp_path / "s"))))
    names = {t.unique_name for t in pipeline.to_runner_api().components.transforms.values()}
    assert {
        "Nodes/ReadNodes",
        "Nodes/GroupByRange",
        "Owe/CommitPlans",
        "Embed/ReviewBox",
        "Embed/ReadBox",
        "Embed/EncodeBox",
        "Embed/CommitBoxes",
        "Close/SealPartition",
        "Close/CloseRun",
    } <= names


@pytest.mark.slow
def test_two_processes_give_the_same_rows(case: Case, done, tmp_path) -> None:
    plan = embed.plan(case.config(str(tmp_path / "store")))
    counts = run(
        plan,
        options=[
            "--runner=FnApiRunner",
            "--direct_running_mode=multi_processing",
            "--direct_num_workers=2",
        ],
    )
    result = embed.finish(plan)
    assert counts["embeddings"] == result.embeddings == 66
    assert rows_by_node(plan.work.generation.store) == rows_by_node(done[0].work.generation.store)
