"""Volumes that CloudVolume writes are read here, voxel for voxel."""

import pathlib
from typing import Any

import numpy as np
import pytest

from tests.interop.cloudvolume_side import Precomputed, read, write
from tests.interop.oracle import SIZE, image, labels, read_by_us, smooth, strided

pytestmark = pytest.mark.slow

SHAPE = (70, 41, 33)
ORIGIN = (-5, 1000, 17)

LOSSLESS = [
    (encoding, dtype, sharded)
    for encoding, dtype in (
        ("raw", "uint8"),
        ("png", "uint8"),
        ("raw", "uint32"),
        ("compressed_segmentation", "uint32"),
        ("compressed_segmentation", "uint64"),
    )
    for sharded in (False, True)
]


def _kind(dtype: str) -> str:
    return "image" if dtype == "uint8" else "segmentation"


def _array(dtype: str) -> Any:
    return image(SHAPE) if dtype == "uint8" else labels(SHAPE, dtype)


def _levels() -> list[Any]:
    return strided(labels(SHAPE), [(2, 2, 1), (2, 2, 1)])


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> pathlib.Path:
    """All volumes of this file, written by one process."""
    folder: pathlib.Path = tmp_path_factory.mktemp("cloudvolume")
    volumes = {
        folder / f"{encoding}-{dtype}-{sharded}": (
            [_array(dtype)],
            Precomputed(encoding, _kind(dtype), offset=ORIGIN, sharded=sharded),
        )
        for encoding, dtype, sharded in LOSSLESS
    }
    volumes[folder / "jpeg"] = [smooth(SHAPE)], Precomputed("jpeg", offset=ORIGIN)
    for sharded in (False, True):
        how = Precomputed(
            "compressed_segmentation", "segmentation", offset=(8, 16, -4), sharded=sharded
        )
        volumes[folder / f"levels-{sharded}"] = _levels(), how
    write(volumes)
    return folder


@pytest.mark.parametrize(("encoding", "dtype", "sharded"), LOSSLESS)
def test_lossless(written, encoding, dtype, sharded):
    array, kind = _array(dtype), _kind(dtype)
    found, size, origin = read_by_us(written / f"{encoding}-{dtype}-{sharded}", kind)
    assert (size, origin, found.dtype) == (SIZE, ORIGIN, array.dtype)
    np.testing.assert_array_equal(found, array)


def test_jpeg_keeps_the_grey_values_nearly(written):
    array = smooth(SHAPE)
    found, size, origin = read_by_us(written / "jpeg", "image")
    assert (size, origin) == (SIZE, ORIGIN)
    difference = np.abs(found.astype(int) - array)
    assert difference.max() <= 12
    assert 0 < difference.mean() < 2


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
def test_levels_of_an_anisotropic_volume(written, sharded):
    for level, array in enumerate(_levels()):
        scale = (8.0 * 2**level, 8.0 * 2**level, 40.0)
        found, size, origin = read_by_us(written / f"levels-{sharded}", "segmentation", scale)
        assert (size, origin) == (scale, (8 >> level, 16 >> level, -4))
        np.testing.assert_array_equal(found, array)


def test_the_reader_of_the_other_tests_reads_these(written):
    found = read([written / "levels-True", written / "raw-uint8-False"])
    for level, scale in enumerate(found[0]):
        assert (scale.resolution, scale.sharded) == ((8.0 * 2**level, 8.0 * 2**level, 40.0), True)
        np.testing.assert_array_equal(scale.array, _levels()[level])
    assert (found[1][0].offset, found[1][0].kind) == (ORIGIN, "image")
    np.testing.assert_array_equal(found[1][0].array, _array("uint8"))
