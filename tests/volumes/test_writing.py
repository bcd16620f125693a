import json
import pickle

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from volumes import writing
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, ChunkGrid, vec
from volumes.opening import open_volume, resolve_volume
from volumes.reading import read_box
from volumes.writing import VolumeLayout, create_volume, open_for_writing, remove, write_shards

_PROVENANCE = {
    "source": "em",
    "time": "2026-01-02T03:04:05+00:00",
    "version": "1",
    "parameters": {},
}


def _layout(**changes):
    fields = {
        "shape": (11, 7, 5),
        "dtype": "uint8",
        "kind": "image",
        "voxel_size_nm": (4.0, 4.0, 33.5),
        "origin_vx": (100, -20, 3),
        "chunk": (4, 2, 3),
        "shard": (4, 4, 3),
    }
    return VolumeLayout(**{**fields, **changes})


def _voxels(layout):
    rng = np.random.default_rng(5)
    return rng.integers(1, np.iinfo(layout.dtype).max, layout.shape, layout.dtype, endpoint=True)


def _made(path, layout):
    create_volume(str(path), layout, _PROVENANCE)
    return open_for_writing(str(path))


def _metadata(path):
    return json.loads((path / "zarr.json").read_text())


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_back(tmp_path_factory, data):
    chunk = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    shard = vec(c * data.draw(st.integers(1, 3)) for c in chunk)
    layout = _layout(
        shape=data.draw(st.tuples(*[st.integers(1, 17)] * 3)),
        dtype=data.draw(st.sampled_from(["uint8", "uint64"])),
        kind="segmentation",
        chunk=chunk,
        shard=shard,
    )
    path = tmp_path_factory.mktemp("volume")
    store = _made(path, layout)
    voxels = _voxels(layout)
    slab = vec(s * data.draw(st.integers(1, 3)) for s in shard)
    grid = ChunkGrid(layout.domain, slab)
    for index in (
        data.draw(st.permutations(range(grid.size))) if grid.size < 50 else range(grid.size)
    ):
        box = grid.box(index)
        write_shards(store, box, voxels[box.slices(layout.domain)])
    spec = resolve_volume(str(path), kind="segmentation")
    assert spec.domain == layout.domain.translated(layout.origin_vx)
    found = read_box(open_volume(spec), spec.domain, missing="error")
    np.testing.assert_array_equal(found.array, voxels)
    assert not found.missing


def test_the_reader_finds_voxel_size_origin_chunks_and_axes(tmp_path):
    _made(tmp_path, _layout())
    spec = resolve_volume(str(tmp_path), kind="image")
    assert spec.voxel_size_nm == (4.0, 4.0, 33.5)
    assert spec.origin_vx == (100, -20, 3)
    assert spec.read_chunk == (4, 2, 3)
    assert spec.write_chunk == (4, 4, 3)
    assert spec.axes == ("x", "y", "z")
    assert spec.assumed == ()


@pytest.mark.parametrize(("kind", "level"), [("image", 1), ("segmentation", 3)])
def test_metadata(tmp_path, kind, level):
    _made(tmp_path, _layout(kind=kind, dtype="uint16"))
    found = _metadata(tmp_path)
    assert found["dimension_names"] == ["x", "y", "z"]
    assert found["attributes"] == {
        "dimension_units": ["4 nm", "4 nm", "33.5 nm"],
        "voxel_offset": [100, -20, 3],
        "segclr_beam": {"kind": kind, "provenance": _PROVENANCE},
    }
    assert found["chunk_grid"]["configuration"]["chunk_shape"] == [4, 4, 3]
    (sharding,) = found["codecs"]
    assert sharding["name"] == "sharding_indexed"
    inner = sharding["configuration"]
    assert inner["chunk_shape"] == [4, 2, 3]
    assert [c["name"] for c in inner["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert inner["codecs"][0]["configuration"] == {"endian": "little"}
    assert inner["codecs"][1]["configuration"]["level"] == level
    assert [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]


def test_zeros_are_stored_and_a_lost_shard_is_told_from_them(tmp_path):
    layout = _layout()
    store = _made(tmp_path, layout)
    write_shards(store, layout.domain, np.zeros(layout.shape, np.uint8))
    shards = sorted(
        str(p.relative_to(tmp_path)) for p in (tmp_path / "c").rglob("*") if p.is_file()
    )
    assert len(shards) == 3 * 2 * 2
    strict = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/", "fill_missing_data_reads": False}
    assert not ts.open(strict).result().read().result().any()
    (tmp_path / "c/1/0/1").unlink()
    with pytest.raises(ValueError, match="is missing"):
        ts.open(strict).result().read().result()


def test_a_flipped_bit_is_noticed(tmp_path):
    layout = _layout()
    store = _made(tmp_path, layout)
    write_shards(store, layout.domain, _voxels(layout))
    shard = tmp_path / "c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[12] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="DATA_LOSS"):
        store[0:4, 0:4, 0:3].read().result()


@pytest.mark.parametrize("shard", ["c/0/0/0", "c/2/1/1"])
def test_a_damaged_shard_is_replaced_also_where_it_sticks_out(tmp_path, shard):
    layout = _layout()
    store = _made(tmp_path, layout)
    voxels = _voxels(layout)
    write_shards(store, layout.domain, voxels)
    for junk in (b"", b"junk", bytes(10_000)):
        (tmp_path / shard).write_bytes(junk)
        write_shards(store, layout.domain, voxels)
        np.testing.assert_array_equal(open_for_writing(str(tmp_path)).read().result(), voxels)


@pytest.mark.parametrize(
    "box",
    [
        Box((0, 0, 0), (4, 3, 3)),
        Box((1, 0, 0), (4, 4, 3)),
        Box((0, 0, 0), (8, 4, 6)),
        Box((0, 0, 0), (0, 4, 3)),
        Box((-4, 0, 0), (4, 4, 3)),
    ],
)
def test_boxes_that_are_not_whole_shards_are_refused(tmp_path, box):
    store = _made(tmp_path, _layout())
    with pytest.raises(
        RequestError, match=r"is not made of whole shards of \(4, 4, 3\) in the vol"
    ):
        write_shards(store, box, np.zeros(box.shape, np.uint8))
    assert not (tmp_path / "c").exists()


def test_voxels_must_fill_the_box_in_the_volumes_dtype(tmp_path):
    store = _made(tmp_path, _layout())
    box = Box((0, 0, 0), (4, 4, 3))
    with pytest.raises(RunError, match=r"uint16 voxels of shape \(4, 4, 3\) do not fill"):
        write_shards(store, box, np.zeros(box.shape, np.uint16))
    with pytest.raises(RunError, match=r"uint8 voxels of shape \(4, 4, 2\) do not fill"):
        write_shards(store, box, np.zeros((4, 4, 2), np.uint8))


@pytest.mark.parametrize("shard", [(4, 3, 3), (2, 2, 3), (5, 4, 3)])
def test_a_shard_is_whole_chunks(shard):
    with pytest.raises(RequestError) as caught:
        _layout(shard=shard)
    assert str(caught.value).startswith(f"shard {shard} is not a multiple of chunk (4, 2, 3)")


def test_creating_again_changes_nothing_and_another_layout_is_refused(tmp_path):
    layout = _layout()
    store = _made(tmp_path, layout)
    voxels = _voxels(layout)
    write_shards(store, layout.domain, voxels)
    before = (tmp_path / "zarr.json").stat()
    create_volume(str(tmp_path), layout, _PROVENANCE)
    assert (tmp_path / "zarr.json").stat().st_mtime_ns == before.st_mtime_ns
    np.testing.assert_array_equal(store.read().result(), voxels)
    with pytest.raises(RunError, match="cannot create the volume .*FAILED_PRECONDITION"):
        create_volume(str(tmp_path), _layout(shape=(11, 7, 6)), _PROVENANCE)


def test_provenance_is_written_without_secrets(tmp_path):
    create_volume(
        str(tmp_path), _layout(), {"source": "http://me:pw1@a.org/x?sig=t0k3n", "api_key": "k3y"}
    )
    text = (tmp_path / "zarr.json").read_text()
    assert "a.org/x" in text
    assert not any(secret in text for secret in ("pw1", "t0k3n", "k3y"))


def test_a_store_that_refuses_is_an_error_with_the_shard_and_the_reason(tmp_path):
    layout = _layout()
    store = _made(tmp_path, layout)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/1").write_text("in the way")
    with pytest.raises(
        RunError,
        match=r"cannot write shard c/1/0/0, voxels \[4:8, 0:4, 0:3\), of file://.*: .*rror",
    ) as caught:
        write_shards(store, layout.domain, _voxels(layout))
    assert "source locations" not in str(caught.value)
    (tmp_path / "c/1").unlink()
    write_shards(store, layout.domain, _voxels(layout))
    np.testing.assert_array_equal(store.read().result(), _voxels(layout))


def test_opening_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RunError, match="cannot open the volume .*none: NOT_FOUND"):
        open_for_writing(str(tmp_path / "none"))


def test_no_write_is_lost_when_the_garbage_collector_is_busy(tmp_path):
    # Dropped futures lose writes without a word; many small shards make that likely.
    layout = _layout(shape=(40, 40, 6), shard=(4, 2, 3))
    store = _made(tmp_path, layout)
    voxels = _voxels(layout)
    write_shards(store, layout.domain, voxels)
    np.testing.assert_array_equal(open_for_writing(str(tmp_path)).read().result(), voxels)


def test_shards_in_flight_are_bounded(tmp_path, monkeypatch):
    begun, finished, most = 0, 0, 0

    class Counted(writing._Write):
        def __init__(self, *args):
            nonlocal begun, most
            begun += 1
            most = max(most, begun - finished)
            super().__init__(*args)

        def finish(self):
            nonlocal finished
            super().finish()
            finished += 1

    monkeypatch.setattr(writing, "_Write", Counted)
    layout = _layout()
    write_shards(_made(tmp_path, layout), layout.domain, _voxels(layout))
    assert most == writing.SHARDS_IN_FLIGHT
    assert begun == finished == 12


def test_removing_is_repeatable(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    remove(str(tmp_path), "a.json")
    remove(str(tmp_path), "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_layout_travels_as_a_pickle():
    layout = _layout()
    assert pickle.loads(pickle.dumps(layout)) == layout
