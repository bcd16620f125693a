"""Volumes that ``convert`` and ``downsample`` write are read by the software they are made for.

Every volume is made through the command line, and read without this project's own reading: Zarr by
zarr-python, OME-Zarr by ome-zarr-models' validator, precomputed by CloudVolume, all by TensorStore.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from tests.interop import cloudvolume_side, readers
from tests.interop.oracle import HUGE, SIZE, assert_coarser, image, labels, read_by_us, smooth

pytestmark = pytest.mark.slow

SHAPE = (70, 41, 33)
ORIGIN = (9, 16, -3)
FACTORS = ((2, 2, 1), (2, 2, 1))
DRIVERS = {
    "zarr2": "zarr",
    "zarr3": "zarr3",
    "n5": "n5",
    "precomputed": "neuroglancer_precomputed",
}


@dataclasses.dataclass(frozen=True)
class Made:
    """A volume that is made by ``convert``, and by ``downsample`` where it has levels."""

    source: str
    format: str
    flags: tuple[str, ...] = ()
    levels: int = 0

    @property
    def name(self) -> str:
        words = [f.removeprefix("--").replace("=", "-") for f in self.flags]
        return "_".join([self.source, self.format, *words, *["levels"] * bool(self.levels)])

    @property
    def kind(self) -> str:
        return "image" if self.source in ("em", "smooth") else "segmentation"


ARRAYS = (
    *(
        Made(source, "zarr3", flags)
        for source in ("em", "seg")
        for flags in (
            (),
            ("--shard=none",),
            ("--axes=xyz",),
            ("--axes=xyz", "--shard=none", "--codec=raw"),
            ("--codec=gzip:1",),
            ("--codec=blosc-zstd",),
        )
    ),
    *(
        Made(source, "zarr2", flags)
        for source in ("em", "seg")
        for flags in (
            (),
            ("--axes=xyz",),
            ("--codec=raw",),
            ("--codec=gzip:1",),
            ("--codec=blosc-lz4",),
        )
    ),
)
N5 = tuple(
    Made(source, "n5", flags)
    for source in ("em", "seg")
    for flags in ((), ("--axes=zyx",), ("--codec=zstd",), ("--codec=raw",))
)
GROUPS = tuple(
    Made(source, "ome-zarr", flags, levels=2)
    for source in ("em", "seg")
    for flags in ((), ("--axes=xyz", "--shard=none"))
)
PRECOMPUTED = (
    Made("em", "precomputed"),
    Made("em", "precomputed", ("--codec=raw",)),
    Made("em", "precomputed", ("--shard=none", "--codec=raw"), levels=2),
    Made("em", "precomputed", ("--shard=none", "--codec=png")),
    Made("seg", "precomputed", levels=2),
    Made("seg", "precomputed", ("--shard=none",), levels=2),
    Made("seg", "precomputed", ("--shard=none", "--codec=raw")),
    Made("small", "precomputed"),
)
JPEG = Made("smooth", "precomputed", ("--shard=none", "--codec=jpeg"))
ALL = (*ARRAYS, *N5, *GROUPS, *PRECOMPUTED, JPEG)


def source(name: str) -> Any:
    if name == "em":
        return image(SHAPE)
    if name == "smooth":
        return smooth(SHAPE)
    return labels(SHAPE, "uint32" if name == "small" else "uint64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> pathlib.Path:
    """All volumes of this file."""
    made: pathlib.Path = tmp_path_factory.mktemp("written")
    for name in ("em", "smooth", "seg", "small"):
        np.save(made / f"{name}.npy", source(name))
        kind = Made(name, "").kind
        words = ["ingest", f"--source={made}/{name}.npy", "--axes=xyz", f"--kind={kind}"]
        words += [f"--output={made}/{name}", "--voxel-size=8,8,40", "--chunk=16,16,8"]
        run([*words, f"--origin={','.join(map(str, ORIGIN))}", "--shard=32,32,16"])
    for volume in ALL:
        words = ["convert", f"--input={made}/{volume.source}", f"--output={made}/{volume.name}"]
        run([*words, f"--format={volume.format}", "--chunk=16,16,8", *volume.flags])
        if volume.levels:
            steps = "/".join(",".join(map(str, f)) for f in FACTORS)
            words = ["downsample", f"--volume={made}/{volume.name}", f"--levels={volume.levels}"]
            run([*words, f"--factors={steps}"])
    return made


@pytest.fixture(scope="module")
def scales(folder: pathlib.Path) -> dict[str, list[cloudvolume_side.Scale]]:
    """The precomputed volumes as CloudVolume reads them, by one process."""
    volumes = [*PRECOMPUTED, JPEG]
    read = cloudvolume_side.read([folder / v.name for v in volumes])
    return {v.name: found for v, found in zip(volumes, read, strict=True)}


def run(words: list[str]) -> None:
    assert main([*words, "--quiet"]) == 0, words


def check_levels(found: list[Any], volume: Made) -> list[tuple[tuple[float, ...], Any]]:
    """The levels are the source and what the oracle makes of it; gives voxel sizes and origins."""
    np.testing.assert_array_equal(found[0], source(volume.source))
    assert len(found) == 1 + volume.levels
    stated, size, start = [(SIZE, ORIGIN)], SIZE, ORIGIN
    for finer, coarse, factors in zip(found, found[1:], FACTORS, strict=False):
        start = assert_coarser(coarse, finer, start, factors, volume.kind)
        size = tuple(s * f for s, f in zip(size, factors, strict=True))
        stated.append((size, start))
    return stated


def test_the_sources_are_worth_reading():
    assert source("seg").max() > HUGE
    assert len(np.unique(source("seg"))) > 30
    assert all(o % 2 for o in ORIGIN[::2])
    assert source("em").min() > 0


@pytest.mark.parametrize("kind", ["image", "segmentation"])
def test_the_oracle_tells_a_level_that_lies_elsewhere(kind):
    finer = source("em" if kind == "image" else "seg")
    shifted = np.roll(finer, 3, axis=0)[::2, ::2]
    with pytest.raises(AssertionError):
        assert_coarser(shifted, finer, (0, 0, 0), (2, 2, 1), kind)
    with pytest.raises(AssertionError):
        assert_coarser(shifted, finer, (1, 0, 0), (2, 2, 1), kind)  # one voxel more on x


@pytest.mark.parametrize("volume", ARRAYS, ids=lambda v: v.name)
def test_zarr_python_reads_arrays(folder, volume):
    found, attributes = readers.zarr_python(folder / volume.name)
    assert found.dtype == source(volume.source).dtype
    check_levels([found], volume)
    stored = [dict(zip("xyz", ORIGIN, strict=True))[a] for a in _order(volume)]
    assert attributes["voxel_offset"] == stored


@pytest.mark.parametrize("volume", [*ARRAYS, *N5], ids=lambda v: v.name)
def test_tensorstore_reads_arrays(folder, volume):
    found = readers.tensorstore(folder / volume.name, DRIVERS[volume.format])
    if volume.format in ("zarr2", "n5") and _order(volume) == "zyx" and found.shape != SHAPE:
        found = found.T  # Zarr 2 has no names that TensorStore knows
    check_levels([found], volume)


@pytest.mark.parametrize("volume", GROUPS, ids=lambda v: v.name)
def test_the_validator_of_ome_zarr_reads_groups(folder, volume):
    levels = readers.ome_zarr(folder / volume.name)
    stated = check_levels([array for array, _, _ in levels], volume)
    for (_, scale, translation), (size, start) in zip(levels, stated, strict=True):
        assert scale == size
        centre = [o * s + (s - f) / 2 for o, s, f in zip(start, size, SIZE, strict=True)]
        assert translation == tuple(centre)


@pytest.mark.parametrize("volume", GROUPS, ids=lambda v: v.name)
def test_tensorstore_reads_the_arrays_of_groups(folder, volume):
    places = [folder / volume.name / str(i) for i in range(1 + volume.levels)]
    check_levels([readers.tensorstore(p, "zarr3") for p in places], volume)


@pytest.mark.parametrize("volume", PRECOMPUTED, ids=lambda v: v.name)
def test_cloudvolume_reads_precomputed(scales, volume):
    found = scales[volume.name]
    stated = check_levels([scale.array for scale in found], volume)
    assert [(s.resolution, s.offset) for s in found] == stated
    assert {s.kind for s in found} == {volume.kind}
    assert found[0].sharded == ("--shard=none" not in volume.flags)


@pytest.mark.parametrize("volume", PRECOMPUTED, ids=lambda v: v.name)
def test_tensorstore_reads_precomputed(folder, volume):
    driver = DRIVERS["precomputed"]
    levels = range(1 + volume.levels)
    check_levels([readers.tensorstore(folder / volume.name, driver, i) for i in levels], volume)


def test_cloudvolume_and_tensorstore_decode_a_jpeg_alike(folder, scales):
    (scale,) = scales[JPEG.name]
    difference = np.abs(scale.array.astype(int) - source("smooth"))
    assert difference.max() <= 12
    found = readers.tensorstore(folder / JPEG.name, DRIVERS["precomputed"], 0)
    assert np.abs(scale.array.astype(int) - found).max() <= 1


@pytest.mark.parametrize("volume", [v for v in ALL if v is not JPEG], ids=lambda v: v.name)
def test_they_are_read_here(folder, volume):
    size, start, found = SIZE, ORIGIN, []
    for level in range(1 + volume.levels):
        array, stated, origin = read_by_us(
            folder / volume.name, volume.kind, size if volume.levels else None
        )
        assert (stated, origin) == (size, start)
        found.append(array)
        factors = FACTORS[min(level, 1)]
        size = tuple(s * f for s, f in zip(size, factors, strict=True))
        start = tuple(o // f for o, f in zip(start, factors, strict=True))
    check_levels(found, volume)


def _order(volume: Made) -> str:
    otherwise = "xyz" if volume.format == "n5" else "zyx"
    return next((f.removeprefix("--axes=") for f in volume.flags if "--axes" in f), otherwise)
