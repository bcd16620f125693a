"""Volumes that zarr-python writes are read here, voxel for voxel: Zarr 2 and 3, and OME-Zarr."""

import numpy as np
import pytest
import zarr
from numcodecs import Blosc as Blosc2
from numcodecs import GZip, Zlib
from numcodecs import Zstd as Zstd2
from ome_zarr_models import v04, v05
from ome_zarr_models.v04.axes import Axis as Axis04
from ome_zarr_models.v05.axes import Axis as Axis05
from pydantic_zarr.v2 import ArraySpec as Spec2
from pydantic_zarr.v3 import ArraySpec as Spec3
from zarr.codecs import BloscCodec, GzipCodec, TransposeCodec, ZstdCodec

from tests.interop.oracle import SIZE, image, labels, read_by_us, strided

SHAPE = (45, 38, 21)
ORIGIN = (-3, 40, 7)
CHUNK = (16, 8, 10)

V2 = {
    "plain": None,
    "gzip": GZip(level=1),
    "zlib": Zlib(level=1),
    "zstd": Zstd2(level=1),
    "blosc-lz4": Blosc2(cname="lz4", shuffle=Blosc2.BITSHUFFLE),
    "blosc-zstd": Blosc2(cname="zstd", shuffle=Blosc2.SHUFFLE),
}
V3 = {
    "plain": None,
    "gzip": GzipCodec(level=1),
    "zstd": ZstdCodec(level=1, checksum=True),
    "blosc": BloscCodec(cname="zstd", shuffle="bitshuffle"),
}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
@pytest.mark.parametrize("codec", list(V2))
def test_zarr2(tmp_path, codec, dtype, order):
    array, kind = _array(dtype)
    made = zarr.create_array(
        tmp_path / "v",
        shape=SHAPE[::-1],
        chunks=CHUNK[::-1],
        dtype=dtype,
        compressors=V2[codec],
        order=order,
        fill_value=0,
        zarr_format=2,
        attributes={"voxel_size": [40, 8, 8], "units": ["nm"] * 3, "axis_names": ["z", "y", "x"]},
    )
    made[...] = array.T
    found, size, origin = read_by_us(tmp_path / "v", kind, origin_vx=ORIGIN)
    assert (size, origin, found.dtype) == (SIZE, ORIGIN, array.dtype)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("separator", [".", "/"])
def test_zarr2_by_the_separator_of_its_keys(tmp_path, separator):
    array, kind = _array("uint8")
    encoding = {"name": "v2", "separator": separator}
    made = zarr.create_array(
        tmp_path / "v",
        shape=SHAPE,
        chunks=CHUNK,
        dtype="uint8",
        zarr_format=2,
        chunk_key_encoding=encoding,
    )
    made[...] = array
    found, size, origin = read_by_us(tmp_path / "v", kind, axes="xyz", voxel_size_nm=SIZE)
    assert (size, origin) == (SIZE, (0, 0, 0))
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("turned", [False, True], ids=["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
@pytest.mark.parametrize("codec", list(V3))
def test_zarr3(tmp_path, codec, dtype, turned, sharded):
    array, kind = _array(dtype)
    made = zarr.create_array(
        tmp_path / "v",
        shape=SHAPE[::-1],
        chunks=CHUNK[::-1],
        shards=tuple(2 * n for n in CHUNK[::-1]) if sharded else None,
        dtype=dtype,
        filters=TransposeCodec(order=(2, 1, 0)) if turned else None,
        compressors=V3[codec],
        fill_value=0,
        dimension_names=("z", "y", "x"),
        attributes={
            "dimension_units": ["40 nm", "8 nm", "8 nm"],
            "voxel_offset": list(ORIGIN[::-1]),
        },
    )
    made[...] = array.T
    found, size, origin = read_by_us(tmp_path / "v", kind)
    assert (size, origin, found.dtype) == (SIZE, ORIGIN, array.dtype)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("centred", [False, True], ids=["corners", "centres"])
def test_ome_zarr(tmp_path, version, centred):
    levels = strided(labels(SHAPE), [(2, 2, 1), (2, 2, 1)])
    sizes = [tuple(s * f for s, f in zip(SIZE, (2**i, 2**i, 1), strict=True)) for i in range(3)]
    starts = [tuple(o * s for o, s in zip((-4, 40, 7), SIZE, strict=True))] * 3
    if centred:
        starts = [
            tuple(a + (s - f) / 2 for a, s, f in zip(start, size, SIZE, strict=True))
            for start, size in zip(starts, sizes, strict=True)
        ]
    _write_ome(tmp_path / "v", version, levels, sizes, starts)
    for level, array in enumerate(levels):
        found, size, origin = read_by_us(tmp_path / "v", "segmentation", sizes[level])
        assert (size, origin) == (sizes[level], (-4 >> level, 40 >> level, 7))
        np.testing.assert_array_equal(found, array)


def _array(dtype):
    return (image(SHAPE), "image") if dtype == "uint8" else (labels(SHAPE, dtype), "segmentation")


def _write_ome(path, version, levels, sizes, starts):
    """A group, dimensions z, y, x, that ome-zarr-models makes and zarr-python fills."""
    old = version == "0.4"
    axis, spec, model = (Axis04, Spec2, v04.Image) if old else (Axis05, Spec3, v05.Image)
    arrays = [np.ascontiguousarray(level.T) for level in levels]
    bytes_codec = {"name": "bytes", "configuration": {"endian": "little"}}
    named = {"dimension_names": ("z", "y", "x"), "codecs": (bytes_codec,)}
    more = {"chunks": (10, 8, 16)} if old else named
    group = model.new(
        array_specs=[spec.from_array(a, **more) for a in arrays],
        paths=[f"s{i}" for i in range(len(arrays))],
        axes=[axis(name=n, type="space", unit="nanometer") for n in "zyx"],
        scales=[s[::-1] for s in sizes],
        translations=[t[::-1] for t in starts],
        name="interop",
    )
    made = group.to_zarr(str(path), path="")
    for i, array in enumerate(arrays):
        made[f"s{i}"][...] = array
