import multiprocessing
import pathlib
import shutil

import numpy as np
import pytest

from tests.volumes.test_partition import make_rows, plan_of, receipt_of
from volumes import commits, documents, objects, seals, store
from volumes.commits import Change
from volumes.embeddings import EmbeddingStore
from volumes.errors import RequestError, RunError
from volumes.generation import Generation, coordinate_of, name_of
from volumes.geometry import Box, ChunkGrid

IDENTITY = {"image": "a", "box": [8, 8, 8]}


@pytest.fixture
def generation(tmp_path: pathlib.Path) -> Generation:
    return Generation(str(tmp_path / "store"), "1", 4, (8, 8, 8), (2, 2, 2))


def manifest(generation: Generation, **identity) -> dict:
    return {"identity": IDENTITY | identity, "generation": generation.to_json() | {"store": ""}}


def commit(generation: Generation, box: str, n: int, seed: int = 0):
    part, local = generation.place(coordinate_of(box))
    rows = make_rows(n, seed)
    commits.plan_boxes(part, [plan_of(box, n)])
    commits.commit_boxes(part, [Change(local, box, receipt_of(box, rows), rows)])
    return rows


def all_sealed(generation: Generation) -> list[seals.Seal]:
    names = sorted(store.partitions_present(generation))
    return [seals.seal(generation, name) for name in names]


def filled(generation: Generation) -> dict[str, object]:
    store.prepare(generation, manifest(generation))
    # Two partitions, one with negative coordinates.
    boxes = {"0_0_0": 3, "1_1_1": 0, "-1_0_2": 5, "-2_1_3": 700}
    return {b: commit(generation, b, n, seed=i) for i, (b, n) in enumerate(boxes.items())}


def test_boxes_have_one_place_in_one_partition(generation: Generation) -> None:
    grid = ChunkGrid(Box((-30, -9, 0), (33, 20, 12)), generation.lattice)
    places = set()
    for i in range(grid.size):
        part, local = generation.place(grid.coordinate(i))
        assert 0 <= local < part.boxes
        places.add((part.url, local))
    assert len(places) == grid.size
    assert coordinate_of("-1_0_12") == (-1, 0, 12)
    assert name_of((-1, 0, 12)) == "-1_0_12"


def test_a_partition_of_too_many_boxes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 to 262144 boxes, got \(64, 64, 65\)"):
        Generation("s", "1", 4, (8, 8, 8), (64, 64, 65))


def test_a_version_is_read_back_by_box_by_segment_and_whole(generation: Generation) -> None:
    rows = filled(generation)
    assert store.publish(generation, all_sealed(generation), {"run": "r"}) == 1
    found = EmbeddingStore.open(generation.store)
    assert (found.version, found.width, len(found)) == (1, 4, 708)
    # By partition, then by place on its box axis.
    assert list(found.boxes()) == ["-1_0_2", "-2_1_3", "0_0_0", "1_1_1"]
    for box, expected in rows.items():
        assert found.by_box(box).digest() == expected.digest()
        assert found.by_box(coordinate_of(box)).digest() == expected.digest()
    assert len(found.by_box("7_7_7")) == 0
    assert sum(len(r) for r in found.all()) == 708
    segment = int(rows["-2_1_3"].segment_id[5])
    mine = found.by_segment(segment)
    assert set(mine.segment_id.tolist()) == {segment}
    total = sum(int((r.segment_id == np.uint64(segment)).sum()) for r in rows.values())
    assert len(mine) == total >= 1
    assert len(found.by_segment(1)) == 0
    assert found.by_segment(1).embedding.shape == (0, 4)


def test_a_version_is_not_disturbed_by_later_commits(generation: Generation) -> None:
    filled(generation)
    store.publish(generation, all_sealed(generation), {"run": "r"})
    commit(generation, "0_1_0", 9)
    assert len(EmbeddingStore.open(generation.store)) == 708
    assert "0_1_0" not in list(EmbeddingStore.open(generation.store).boxes())
    live = EmbeddingStore.open(generation.store, "live")
    assert live.version is None
    assert len(live) == 717
    assert "0_1_0" in list(live.boxes())
    assert store.publish(generation, all_sealed(generation), {"run": "s"}) == 2
    assert len(EmbeddingStore.open(generation.store)) == 717
    assert len(EmbeddingStore.open(generation.store, 1)) == 708


def test_equal_content_is_not_published_twice(generation: Generation) -> None:
    filled(generation)
    assert store.publish(generation, all_sealed(generation), {"run": "r"}) == 1
    assert store.publish(generation, all_sealed(generation), {"run": "another"}) == 1
    assert store.version_numbers(generation.store) == [1]


def test_what_is_owed_and_not_committed_is_named(generation: Generation) -> None:
    filled(generation)
    part, _ = generation.place((1, 0, 0))
    commits.plan_boxes(part, [plan_of("1_0_0", 4)])
    sealed = seals.seal(generation, "0_0_0")
    assert (sealed.undone, sealed.undone_boxes) == (("1_0_0",), 1)
    assert (sealed.boxes, sealed.nodes, sealed.rows) == (2, 7, 3)


def test_another_identity_is_refused_and_named(generation: Generation) -> None:
    assert not store.refuse_other_identity(generation.store, "1", IDENTITY)
    store.prepare(generation, manifest(generation))
    assert store.refuse_other_identity(generation.store, "1", IDENTITY)
    with pytest.raises(RequestError, match=r"differs in image: 'a' there, 'b' asked; model: None"):
        store.refuse_other_identity(generation.store, "1", IDENTITY | {"image": "b", "model": "m"})
    with pytest.raises(RequestError, match="belongs to another run"):
        store.prepare(generation, manifest(generation, image="b"))
    wider = Generation(generation.store, "1", 5, (8, 8, 8), (2, 2, 2))
    with pytest.raises(RequestError, match="holds embeddings of width 4 .* makes width 5"):
        store.prepare(wider, manifest(wider))


def test_a_foreign_directory_or_file_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"not empty and not an embedding store .*notes.txt"):
        store.read_store(str(tmp_path))
    with pytest.raises(RequestError, match="is a file; a store is a directory"):
        store.read_store(str(tmp_path / "notes.txt"))
    assert store.read_store(str(tmp_path / "absent")) is None


def test_a_newer_format_is_refused_with_the_version_that_reads_it(
    generation: Generation,
) -> None:
    filled(generation)
    where = objects.join(generation.store, "store.json")
    objects.write(where, documents.dump("segclr-store", 2, {}))
    with pytest.raises(RequestError, match="segclr-store version 2.* reads up to version 1"):
        store.read_store(generation.store)


def test_opening_says_what_is_missing(tmp_path: pathlib.Path, generation: Generation) -> None:
    with pytest.raises(RequestError, match="is not an embedding store: it has no store.json"):
        EmbeddingStore.open(str(tmp_path))
    filled(generation)
    with pytest.raises(RequestError, match="no published version yet"):
        EmbeddingStore.open(generation.store)
    store.publish(generation, all_sealed(generation), {"run": "r"})
    with pytest.raises(RequestError, match="has no version 9; give one that it has: 1"):
        EmbeddingStore.open(generation.store, 9)


def test_documents_say_what_is_wrong_with_them() -> None:
    with pytest.raises(RunError, match=r"here is not a JSON document .* damaged"):
        documents.load(b"{", "kind", 1, "here")
    with pytest.raises(RunError, match="here has format 'other' where 'kind' was expected"):
        documents.load(documents.dump("other", 1, {}), "kind", 1, "here")
    with pytest.raises(RunError, match="here has format 'list'"):
        documents.load(b"[]", "kind", 1, "here")
    body = {"ids": ["18446744073709551615"], "a": 1}
    assert documents.load(documents.dump("kind", 1, body), "kind", 1, "here") == body


def test_what_a_killed_writer_left_does_not_make_a_directory_foreign(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / ".store.json.abc123.tmp").write_bytes(b"{")
    assert store.read_store(str(tmp_path)) is None


def _refill(generation: Generation) -> None:
    store.prepare(generation, manifest(generation))
    commit(generation, "0_0_0", 9, seed=5)
    store.publish(generation, all_sealed(generation), {"run": "r"})


def test_a_store_that_was_made_anew_in_its_place_is_opened_anew(generation: Generation) -> None:
    filled(generation)
    store.publish(generation, all_sealed(generation), {"run": "r"})
    assert len(EmbeddingStore.open(generation.store).by_box("0_0_0")) == 3
    shutil.rmtree(generation.store)
    process = multiprocessing.get_context("spawn").Process(target=_refill, args=(generation,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert len(EmbeddingStore.open(generation.store).by_box("0_0_0")) == 9
    assert len(EmbeddingStore.open(generation.store, 1).by_box("0_0_0")) == 9
