"""Layouts: what no volume of a format can be is refused with the values."""

import pickle

import pytest

from tests.volumes.writing.layouts import layout_of
from volumes.errors import RequestError
from volumes.geometry import Box
from volumes.writing import Codec
from volumes.writing.codecs import FORMATS


@pytest.mark.parametrize("shard", [(4, 3, 3), (2, 2, 3), (5, 4, 3)])
@pytest.mark.parametrize("form", ["zarr3", "ome-zarr", "precomputed"])
def test_a_shard_is_whole_chunks(shard, form):
    with pytest.raises(RequestError) as caught:
        layout_of(shard=shard, format=form)
    assert str(caught.value) == (
        f"shard {shard} is not a multiple of chunk (4, 2, 3) on each axis (x, y, z); a shard is "
        "made of whole chunks: give a --shard that is"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": "tiff", "shard": None},
            "--format tiff is not written here; give one of zarr2, zarr3, ome-zarr, n5, precomp",
        ),
        (
            {"axes": ("x", "y", "y")},
            "the axes xyy are no order of x, y and z; a volume has each once",
        ),
        (
            {"format": "precomputed", "axes": ("z", "y", "x")},
            "--axes zyx: precomputed stores x, y, z and no other order; leave it out",
        ),
        (
            {"format": "precomputed", "dtype": "float64"},
            "--format precomputed has no voxels of float64, only uint8, uint16, uint32, uint64, "
            "int8, int16, int32, float32; give --dtype with one of them",
        ),
        (
            {"format": "n5", "shard": (4, 4, 3)},
            "--shard 4,4,3: n5 has no shards; leave it out, or give --format zarr3 or ome-zarr or",
        ),
        (
            {"format": "zarr2", "shard": (4, 4, 3)},
            "--shard 4,4,3: zarr2 has no shards; leave it out",
        ),
        (
            {"format": "precomputed", "shard": (4, 4, 3)},
            r"--shard 4,4,3 is no shard of a precomputed volume of \(11, 7, 5\) voxels in chunks "
            r"of \(4, 2, 3\): .*; give one of 8,2,3; 8,4,3; 8,4,6; 16,4,6; 16,8,6$",
        ),
        (
            {"format": "precomputed", "codec": Codec("zstd", 3)},
            "--codec zstd:3 does not fit: --format precomputed has no zstd; for this volume give "
            "one of raw, png, jpeg$",
        ),
    ],
)
def test_what_no_volume_of_a_format_can_be_is_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        layout_of(**changes)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shard", [None, (8, 4, 3)])
def test_what_is_derived(form, shard):
    if shard and form in ("zarr2", "n5"):
        return
    layout = layout_of(format=form, shard=shard, dtype="uint16")
    assert layout.domain == Box((100, -20, 3), (111, -13, 8))
    assert layout.write_chunk == (shard or (4, 2, 3))
    assert layout.write_bytes == (96 if shard else 24) * 2
    assert layout.write_grid.domain == layout.domain
    assert layout.write_grid.box(0).start == (100, -20, 3)
    assert layout.stored((1, 2, 3)) == [1, 2, 3]
    assert layout.codec == layout.compression
    assert pickle.loads(pickle.dumps(layout)) == layout


def test_values_in_stored_order():
    layout = layout_of(axes=("z", "x", "y"))
    assert layout.stored(("x", "y", "z")) == ["z", "x", "y"]
