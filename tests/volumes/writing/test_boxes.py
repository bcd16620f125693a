"""The writing of boxes: whole write chunks, all stored, damage replaced, nothing lost."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes.writing.layouts import layout_of, layouts, made, voxels_of
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, ChunkGrid, vec
from volumes.keys import keys_of
from volumes.opening import open_volume
from volumes.reading import read_box
from volumes.resolving import resolve_volume
from volumes.writing import Target, as_type, boxes, open_for_writing, write_box
from volumes.writing.codecs import FORMATS


def _read(path):
    spec = resolve_volume(str(path), kind=None)
    return read_box(open_volume(spec), spec.domain, missing="error")


def _reopened(path, layout):
    return open_for_writing(Target(str(path), layout))


def _files(volume, box):
    """The files that hold a box."""
    base = pathlib.Path(volume.store.kvstore.spec().to_json()["path"])
    return [base / key for key in keys_of(volume).under(box)]


_CASES = [
    ("zarr3", (4, 4, 3)),
    ("zarr3", None),
    ("ome-zarr", (4, 4, 3)),
    ("zarr2", None),
    ("n5", None),
    ("precomputed", (8, 4, 3)),
    ("precomputed", (4, 2, 3)),
    ("precomputed", None),
]


def _case(form, shard, **changes):
    return layout_of(format=form, shard=shard, dtype="uint16", **changes)


# Round trips


@settings(max_examples=40, deadline=None)
@given(layout=layouts())
def test_a_volume_written_as_one_box_is_read_back(tmp_path_factory, layout):
    path = tmp_path_factory.mktemp("volume")
    volume = made(path, layout)
    voxels = voxels_of(layout)
    write_box(volume, layout.domain, voxels)
    found = _read(path)
    assert found.array.dtype == layout.dtype
    np.testing.assert_array_equal(found.array, voxels)
    assert not found.missing


@settings(max_examples=40, deadline=None)
@given(layout=layouts(), data=st.data())
def test_a_volume_written_unit_by_unit_in_any_order_is_read_back(tmp_path_factory, layout, data):
    path = tmp_path_factory.mktemp("volume")
    volumes = [made(path, layout), _reopened(path, layout)]
    voxels = voxels_of(layout)
    unit = vec(s * data.draw(st.integers(1, 3)) for s in layout.write_chunk)
    grid = ChunkGrid(layout.domain, unit, layout.origin_vx)
    order = list(range(grid.size))
    data.draw(st.randoms(use_true_random=False)).shuffle(order)
    for index in [*order, *order[:3]]:
        box = grid.box(index)
        write_box(volumes[index % 2], box, voxels[box.slices(layout.domain)])
    found = _read(path)
    np.testing.assert_array_equal(found.array, voxels)
    assert not found.missing
    np.testing.assert_array_equal(volumes[0].store.read().result(), voxels)


@pytest.mark.parametrize(("form", "shard"), _CASES)
def test_what_is_written_last_stays(tmp_path, form, shard):
    layout = _case(form, shard)
    volume = made(tmp_path, layout)
    write_box(volume, layout.domain, voxels_of(layout, 1))
    voxels = voxels_of(layout, 2)
    write_box(volume, layout.domain, voxels)
    np.testing.assert_array_equal(_read(tmp_path).array, voxels)


@pytest.mark.parametrize("order", ["C", "F"])
def test_voxels_in_any_memory_order_and_read_only(tmp_path, order):
    layout = layout_of(dtype="uint16")
    volume = made(tmp_path, layout)
    voxels = np.array(voxels_of(layout), order=order)
    voxels.setflags(write=False)
    write_box(volume, layout.domain, voxels)
    np.testing.assert_array_equal(_read(tmp_path).array, voxels)


# Damage


@pytest.mark.parametrize("form", ["zarr3", "ome-zarr"])
@pytest.mark.parametrize("shard", [(4, 4, 3), None])
def test_a_flipped_bit_is_noticed(tmp_path, form, shard):
    layout = layout_of(format=form, shard=shard)
    volume = made(tmp_path, layout)
    write_box(volume, layout.domain, voxels_of(layout))
    box = Box.of(layout.origin_vx, layout.chunk)
    (file, *_) = _files(volume, box)
    data = bytearray(file.read_bytes())
    data[12] ^= 1
    file.write_bytes(data)
    index = tuple(itertools.starmap(slice, zip(box.start, box.stop, strict=True)))
    with pytest.raises(ValueError, match="DATA_LOSS|INVALID_ARGUMENT"):
        _reopened(tmp_path, layout).store[index].read().result()


@pytest.mark.parametrize(("form", "shard"), _CASES)
@pytest.mark.parametrize("last", [False, True])
def test_what_is_damaged_is_replaced_also_where_it_sticks_out(tmp_path, form, shard, last):
    layout = _case(form, shard)
    volume = made(tmp_path, layout)
    voxels = voxels_of(layout)
    write_box(volume, layout.domain, voxels)
    corner = vec(n - 1 for n in layout.domain.stop) if last else layout.domain.start
    (file,) = _files(volume, Box.of(corner, (1, 1, 1)))
    whole = file.read_bytes()
    for junk in (b"", b"junk", bytes(10_000), whole[: len(whole) // 2]):
        file.write_bytes(junk)
        write_box(volume, layout.domain, voxels)
        np.testing.assert_array_equal(_read(tmp_path).array, voxels)
        fresh = _reopened(tmp_path, layout).store.read().result()
        np.testing.assert_array_equal(fresh, voxels)


@pytest.mark.parametrize(("form", "shard"), _CASES)
def test_a_box_replaces_what_is_damaged_in_it_and_leaves_the_rest(tmp_path, form, shard):
    layout = _case(form, shard)
    volume = made(tmp_path, layout)
    write_box(volume, layout.domain, voxels_of(layout, 1))
    voxels = voxels_of(layout, 1)
    part = layout.write_grid.box(0)
    voxels[part.slices(layout.domain)] = voxels_of(layout, 2)[part.slices(layout.domain)]
    for file in _files(volume, part):
        file.write_bytes(b"junk")
    write_box(volume, part, voxels[part.slices(layout.domain)])
    np.testing.assert_array_equal(_read(tmp_path).array, voxels)


# What is refused


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
@pytest.mark.parametrize("form", ["zarr3", "zarr2", "n5", "ome-zarr", "precomputed"])
def test_boxes_that_are_not_whole_write_chunks_are_refused(tmp_path, box, form):
    layout = layout_of(format=form, chunk=(4, 4, 3), shard=None)
    volume = made(tmp_path, layout)
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    moved = box.translated(layout.origin_vx)
    with pytest.raises(RequestError) as caught:
        write_box(volume, moved, np.zeros(box.shape, np.uint8))
    assert str(caught.value) == (
        f"box {moved} is not made of whole shards of (4, 4, 3) in the volume {layout.domain}; two "
        "workers would write one shard: give a multiple of the shard on each axis"
    )
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(("form", "shard"), _CASES)
def test_a_chunk_of_a_shard_is_refused(tmp_path, form, shard):
    layout = _case(form, shard)
    volume = made(tmp_path, layout)
    chunk = Box.of(layout.origin_vx, layout.chunk)
    if layout.write_chunk == layout.chunk:
        write_box(volume, chunk, np.ones(chunk.shape, np.uint16))
        assert int(volume.store[layout.origin_vx].read().result()) == 1
        return
    with pytest.raises(RequestError, match=r"is not made of whole shards of \("):
        write_box(volume, chunk, np.ones(chunk.shape, np.uint16))


def test_voxels_must_fill_the_box_in_the_volumes_dtype(tmp_path):
    layout = layout_of()
    volume = made(tmp_path, layout)
    box = Box.of(layout.origin_vx, (4, 4, 3))
    with pytest.raises(RunError, match=r"uint16 voxels of shape \(4, 4, 3\) do not fill \[100:104"):
        write_box(volume, box, np.zeros(box.shape, np.uint16))
    with pytest.raises(RunError, match=r"uint8 voxels of shape \(4, 4, 2\) do not fill"):
        write_box(volume, box, np.zeros((4, 4, 2), np.uint8))
    assert not (tmp_path / "c").exists()


def test_a_store_that_refuses_is_an_error_with_the_box_and_the_reason(tmp_path):
    layout = layout_of()
    volume = made(tmp_path, layout)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/1").write_text("in the way")
    with pytest.raises(
        RunError,
        match=r"cannot write voxels \[104:108, -20:-16, 3:6\) of .*test_a_store_that_ref.*: .*rror",
    ) as caught:
        write_box(volume, layout.domain, voxels_of(layout))
    assert "source locations" not in str(caught.value)
    assert "c/1" in str(caught.value)
    (tmp_path / "c/1").unlink()
    write_box(volume, layout.domain, voxels_of(layout))
    np.testing.assert_array_equal(_read(tmp_path).array, voxels_of(layout))


# What is under way


@pytest.mark.parametrize("form", ["zarr3", "zarr2", "precomputed"])
def test_no_write_is_lost_when_the_garbage_collector_is_busy(tmp_path, form, monkeypatch):
    # Dropped futures lose writes without a word; many small transactions make that likely.
    monkeypatch.setattr(boxes, "PIECE_BYTES", 1)
    shard = (4, 2, 3) if form == "zarr3" else None
    layout = layout_of(shape=(40, 40, 6), shard=shard, format=form)
    volume = made(tmp_path, layout)
    voxels = voxels_of(layout)
    write_box(volume, layout.domain, voxels)
    np.testing.assert_array_equal(_reopened(tmp_path, layout).store.read().result(), voxels)


class _Counted(boxes._Write):
    """Counts what is under way."""

    begun = finished = most = 0

    def __init__(self, *args):
        _Counted.begun += 1
        _Counted.most = max(_Counted.most, _Counted.begun - _Counted.finished)
        super().__init__(*args)

    def finish(self):
        super().finish()
        _Counted.finished += 1


@pytest.mark.parametrize(
    ("form", "shard", "writes"),
    [("zarr3", (4, 4, 3), 12), ("precomputed", (8, 4, 3), 8), ("precomputed", None, 24)],
)
def test_what_is_in_flight_is_bounded(tmp_path, monkeypatch, form, shard, writes):
    _Counted.begun = _Counted.finished = _Counted.most = 0
    monkeypatch.setattr(boxes, "_Write", _Counted)
    monkeypatch.setattr(boxes, "PIECE_BYTES", 24)
    layout = layout_of(format=form, shard=shard)
    write_box(made(tmp_path, layout), layout.domain, voxels_of(layout))
    assert _Counted.most == boxes.SHARDS_IN_FLIGHT
    assert _Counted.begun == _Counted.finished == writes


def test_what_was_begun_is_waited_for_where_another_part_fails(tmp_path, monkeypatch):
    settled = []

    class Failing(boxes._Write):
        def finish(self):
            raise RunError("disk full")

        def settle(self):
            super().settle()
            settled.append(self._box)

    monkeypatch.setattr(boxes, "_Write", Failing)
    layout = layout_of()
    volume = made(tmp_path, layout)
    with pytest.raises(RunError, match="disk full"):
        write_box(volume, layout.domain, voxels_of(layout))
    (box,) = settled  # the one that failed has told
    index = tuple(itertools.starmap(slice, zip(box.start, box.stop, strict=True)))
    part = voxels_of(layout)[box.slices(layout.domain)]
    np.testing.assert_array_equal(volume.store[index].read().result(), part)


@given(
    st.tuples(*[st.integers(1, 200)] * 3),
    st.tuples(*[st.integers(1, 64)] * 3),
    st.sampled_from([1, 2, 8]),
)
def test_pieces_are_whole_chunks_of_a_bounded_size(shape, chunk, itemsize):
    piece = boxes._piece(Box((5, 5, 5), vec(5 + n for n in shape)), chunk, itemsize)
    assert all(p % c == 0 for p, c in zip(piece, chunk, strict=True))
    limit = boxes.PIECE_BYTES
    assert np.prod(piece) * itemsize <= limit or piece == chunk


# Types


_INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


@given(st.sampled_from(_INTEGERS), st.sampled_from([*_INTEGERS, "float32", "float64"]), st.data())
def test_a_number_is_the_same_in_another_type_or_refused(dtype, wanted, data):
    info = np.iinfo(dtype)
    near = [v + d for v in (0, 2**7, 2**8, 2**24, 2**53, 2**63, 2**64) for d in (-1, 0, 1)]
    edges = [v for v in (*near, info.min, info.max) if info.min <= v <= info.max]
    value = data.draw(st.sampled_from(edges) | st.integers(int(info.min), int(info.max)))
    voxels = np.full((2, 1, 1), value, dtype)
    if np.dtype(wanted).kind == "f":
        mantissa = {"float32": 24, "float64": 53}[wanted]
        whole = abs(value)
        shift = max(0, whole.bit_length() - mantissa)
        holds = whole >> shift << shift == whole
    else:
        holds = np.iinfo(wanted).min <= value <= np.iinfo(wanted).max
    if holds:
        found = as_type(voxels, wanted, "em")
        assert found.dtype == wanted
        assert int(found[0, 0, 0]) == value
        return
    with pytest.raises(RunError, match=f"^em holds {value}, which {wanted} does not hold exactly"):
        as_type(voxels, wanted, "em")


@pytest.mark.parametrize("form", FORMATS)
def test_the_frame_is_where_the_layout_says(tmp_path, form):
    layout = dataclasses.replace(layout_of(format=form), origin_vx=(-7, 10**9, -(10**6)))
    volume = made(tmp_path, layout)
    assert volume.store.domain.inclusive_min == layout.origin_vx
    write_box(volume, layout.domain, voxels_of(layout))
    assert _read(tmp_path).array[0, 0, 0] == voxels_of(layout)[0, 0, 0]
