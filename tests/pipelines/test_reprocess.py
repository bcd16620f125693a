"""A renewed store equals one embedded anew, and only crops that differ are computed."""

import csv
import dataclasses
import pathlib

import numpy as np
import pytest
import tensorstore as ts

from pipelines import embed, reprocess
from pipelines.reprocess import ReprocessConfig
from tests.pipelines import embed_case
from tests.pipelines.embed_case import Case, rows_by_node, run
from volumes import partition, store
from volumes.commits import Fence
from volumes.context import process_context
from volumes.embeddings import EmbeddingStore
from volumes.errors import RequestError
from volumes.generation import Generation

AUTO = "auto:60"


@pytest.fixture
def case(tmp_path: pathlib.Path) -> Case:
    return embed_case.make_case(tmp_path)


def embedded(case: Case, name: str = "store", **changes) -> str:
    plan = embed.plan(case.config(name, **changes))
    run(plan)
    embed.finish(plan)
    return plan.work.generation.store


def renewed(url: str, **given) -> embed.Result:
    """Reprocess, alone, under a newer epoch each time."""
    plan = reprocess.plan(ReprocessConfig(url, **given))
    epoch = len(store.version_numbers(url)) + renewed.times
    renewed.times += 1
    plan = dataclasses.replace(
        plan, work=dataclasses.replace(plan.work, fence=Fence(epoch, alone=True))
    )
    run(plan)
    return embed.finish(plan)


renewed.times = 1


def opened(path: pathlib.Path) -> ts.TensorStore:
    spec = {"driver": "zarr3", "kvstore": f"file://{path}"}
    return ts.open(spec, context=process_context(), write=True, read=True).result()


def differing(before: dict, after: dict) -> int:
    """Crops of ``after`` that no row of ``before`` has."""
    known = {row[5] for row in before.values()}
    return len({row[5] for row in after.values()} - known)


@pytest.mark.parametrize("nodes", ["nodes.csv", AUTO])
def test_nothing_changed_reads_nothing_and_publishes_nothing(case: Case, nodes: str) -> None:
    named = nodes if nodes == AUTO else str(case.folder / nodes)
    url = embedded(case, nodes=named)
    boxes = EmbeddingStore.open(url).document["boxes"]
    result = renewed(url)
    assert (result.embeddings, result.boxes, result.bytes_read) == (0, 0, 0)
    assert (result.boxes_skipped, result.version) == (boxes, 1)
    assert store.version_numbers(url) == [1]


@pytest.mark.parametrize("nodes", ["nodes.csv", AUTO])
def test_a_voxel_redoes_the_crops_that_show_it(case: Case, nodes: str) -> None:
    named = nodes if nodes == AUTO else str(case.folder / nodes)
    url = embedded(case, nodes=named)
    before = rows_by_node(url)
    image = opened(case.folder / "image")
    at = (22, 20, 18)
    image[at] = int(image[at].read().result()) ^ 1
    result = renewed(url)
    anew = rows_by_node(embedded(case, "anew", nodes=named))
    assert rows_by_node(url) == anew
    assert result.embeddings == differing(before, anew) > 0
    assert result.embeddings < len(anew)
    assert result.version == 2
    # The older version is as it was.
    old = EmbeddingStore.open(url, 1)
    assert {embed_case.row(r, i) for r in old.all() for i in range(len(r))} == set(before.values())


@pytest.mark.parametrize("nodes", ["nodes.csv", AUTO])
def test_segment_ids_that_change_redo_their_crops(case: Case, nodes: str) -> None:
    named = nodes if nodes == AUTO else str(case.folder / nodes)
    url = embedded(case, nodes=named)
    before = rows_by_node(url)
    labels = opened(case.folder / "labels")
    part = labels[:20, :20].read().result()
    part[part == 3] = 77
    labels[:20, :20] = part
    result = renewed(url)
    anew = rows_by_node(embedded(case, "anew", nodes=named))
    assert rows_by_node(url) == anew
    assert anew != before
    assert result.embeddings <= differing(before, anew)
    assert result.embeddings > 0


def test_sampled_boxes_that_become_background_leave_the_store(case: Case) -> None:
    url = embedded(case, nodes=AUTO)
    boxes = set(EmbeddingStore.open(url).boxes())
    labels = opened(case.folder / "labels")
    labels[:16, :16, :16] = 0
    labels[32:, 32:] = 0
    result = renewed(url)
    anew = embedded(case, "anew", nodes=AUTO)
    assert rows_by_node(url) == rows_by_node(anew)
    left = set(EmbeddingStore.open(url).boxes())
    assert left == set(EmbeddingStore.open(anew).boxes())
    assert result.boxes_removed == len(boxes - left) >= 3
    assert renewed(url).boxes == 0


def test_a_chunk_written_again_is_read_and_computes_nothing(case: Case) -> None:
    url = embedded(case)
    image = opened(case.folder / "image")
    image[:16, :16, :16] = image[:16, :16, :16].read().result()
    result = renewed(url)
    assert result.embeddings == 0
    assert result.boxes > 0
    assert result.bytes_read > 0
    assert store.version_numbers(url) == [1]
    # Its new stamps are known now.
    again = renewed(url)
    assert (again.boxes, again.bytes_read) == (0, 0)


def test_nodes_that_come_go_and_move(case: Case) -> None:
    url = embedded(case)
    before = rows_by_node(url)
    nodes = list(case.nodes)
    segment, node, x, y, z = nodes[5]
    nodes[5] = (segment, node, x + 1.0, y, z)  # the same voxel
    segment, node, x, y, z = nodes[6]
    nodes[6] = (segment, node, (x + 160.0) % 352, y, z)  # another box
    gone = [n for n in nodes if n[2] < 16 * 8 and n[3] < 16 * 8]
    kept = [n for n in nodes if n not in gone]
    new = [(n[0], n[1] + 1000, *n[2:]) for n in kept[:4]]  # a second node of the same place
    embed_case.write_nodes(case.folder / "nodes.csv", [*kept, *new])
    assert gone
    result = renewed(url)
    anew = rows_by_node(embedded(case, "anew"))
    assert rows_by_node(url) == anew
    assert result.boxes_removed > 0
    assert result.embeddings == differing(before, anew)
    assert result.version == 2
    live = EmbeddingStore.open(url, "live")
    assert set(live.boxes()) == set(EmbeddingStore.open(str(case.folder / "anew"), "live").boxes())


def test_another_place_is_looked_at_from_now_on(case: Case) -> None:
    url = embedded(case)
    other = embed_case.make_case(case.folder / "other", seed=1)
    result = renewed(url, image=str(other.folder / "image"))
    anew = rows_by_node(embedded(case, "anew", image=str(other.folder / "image")))
    assert rows_by_node(url) == anew
    assert result.embeddings == len(anew)
    assert renewed(url).boxes == 0
    with pytest.raises(RequestError, match="belongs to another run; it differs in image"):
        embed.plan(case.config("store"))
    assert embed.plan(case.config("store", image=str(other.folder / "image"))).complete


def test_a_killed_reprocess_goes_on_and_embed_keeps_out(case: Case, monkeypatch) -> None:
    url = embedded(case)
    other = embed_case.make_case(case.folder / "other", seed=1)
    given = {"image": str(other.folder / "image")}
    plan = reprocess.plan(ReprocessConfig(url, **given))
    embed.prepare(plan, "a test")  # and there it ended
    with pytest.raises(RequestError, match=r"was being reprocessed.*reprocess --store"):
        embed.plan(case.config("store", **given))
    renewed(url)
    assert rows_by_node(url) == rows_by_node(embedded(case, "anew", **given))


def test_another_model_makes_a_generation_and_leaves_the_old_one(case: Case) -> None:
    url = embedded(case)
    before = rows_by_node(url)
    model = "untrained:width=3,input=17,seed=2,embedding=6"
    result = renewed(url, model=model)
    assert result.version == 2
    anew = rows_by_node(embedded(case, "anew", model=model))
    assert rows_by_node(url) == anew
    assert result.embeddings == len(anew)
    old = EmbeddingStore.open(url, 1)
    assert (old.generation.name, old.width, len(old)) == ("1", 8, len(before))
    assert EmbeddingStore.open(url).generation.name == "2"
    assert renewed(url).embeddings == 0
    assert EmbeddingStore.open(url, "live").width == 6


def write_table(path: pathlib.Path, pairs: list[tuple[int, int]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("supervoxel", "body"), *pairs])
    return str(path)


def test_a_changed_table_redoes_the_bodies_that_it_changes(case: Case) -> None:
    ids = [int(i) for i in embed_case.IDS if i]
    table = write_table(case.folder / "table.csv", [(ids[1], 5000), (ids[2], 5000)])
    given = {"nodes": AUTO, "agglomeration": table}
    url = embedded(case, **given)
    before = rows_by_node(url)
    assert {s for s, _ in before} == {ids[0], 5000, *ids[3:]}
    write_table(case.folder / "table.csv", [(ids[1], 5000), (ids[3], ids[0])])
    result = renewed(url, agglomeration=table)
    anew = rows_by_node(embedded(case, "anew", **given))
    assert rows_by_node(url) == anew
    assert result.embeddings == differing(before, anew) > 0
    # The body of which nothing changed was not computed.
    assert result.embeddings <= len([k for k in anew if k[0] != ids[4]])
    # No table at all, from now on.
    renewed(url, agglomeration="none")
    assert rows_by_node(url) == rows_by_node(embedded(case, "plain", nodes=AUTO))


def test_a_table_that_moves_no_supervoxel_of_a_box_reads_nothing(case: Case) -> None:
    table = write_table(case.folder / "table.csv", [(3, 5000)])
    url = embedded(case, agglomeration=table)
    write_table(case.folder / "table.csv", [(3, 5000), (123456, 9)])
    result = renewed(url)
    assert (result.boxes, result.bytes_read) == (0, 0)


def test_supervoxels_that_change_within_a_body_are_known_to_the_next_table(case: Case) -> None:
    """They leave the bodies as they are, so rows stay; what a later table splits must be found."""
    table = write_table(case.folder / "table.csv", [(3, 5000), (77, 5000)])
    given = {"nodes": AUTO, "agglomeration": table}
    url = embedded(case, **given)
    labels = opened(case.folder / "labels")
    found = labels[...].read().result()
    labels[...] = np.where(found == 3, np.uint64(77), found)
    result = renewed(url)
    assert (result.embeddings, result.version) == (0, 1)
    assert result.boxes > 0
    write_table(case.folder / "table.csv", [(3, 5000), (77, 6000)])
    renewed(url)
    anew = rows_by_node(embedded(case, "anew", **given))
    assert rows_by_node(url) == anew
    assert 6000 in {segment for segment, _ in anew}


def test_a_domain_that_shrinks_takes_its_boxes_along(case: Case) -> None:
    url = embedded(case)
    shape = (28, 40, 36)
    smaller = embed_case.make_volumes(case.folder / "cut", case.image[:28], case.labels[:28])
    assert case.image[:28].shape == shape
    given = {"image": str(smaller / "image"), "segmentation": str(smaller / "labels")}
    renewed(url, **given)
    anew = embedded(case, "anew", **given)
    assert rows_by_node(url) == rows_by_node(anew)
    assert set(EmbeddingStore.open(url, "live").boxes()) == set(EmbeddingStore.open(anew).boxes())


def test_a_box_that_cannot_be_read_is_set_aside_and_mended_by_the_next(case: Case) -> None:
    url = embedded(case)
    before = rows_by_node(url)
    shard = case.folder / "image" / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    result = renewed(url)
    assert result.failed_boxes > 0
    assert all("cannot be read" in error for _, error in result.failed)
    assert len(rows_by_node(url)) < len(before)
    shard.write_bytes(whole)
    result = renewed(url)
    assert result.failed_boxes == 0
    assert rows_by_node(url) == before
    assert result.version == 3


def test_a_store_that_is_none_is_refused(tmp_path: pathlib.Path, case: Case) -> None:
    with pytest.raises(RequestError, match=r"nowhere is not an embedding store: it has no store"):
        reprocess.plan(ReprocessConfig(str(tmp_path / "nowhere")))
    with pytest.raises(RequestError, match="--nodes was empty"):
        ReprocessConfig("s", nodes="")
    url = embedded(case)
    assert partition.newest_version(
        Generation.from_json(store.current(url)[1]["generation"] | {"store": url}).partition(
            "0_0_0"
        )
    )
