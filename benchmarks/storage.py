"""What volumes take on disk, and how fast they are written and read.

    python -m benchmarks.storage            FIB-25 and the synthetic volume of the demo
    python -m benchmarks.storage --quick    a corner of the synthetic one; no figures to quote

How it measures:

- The image and the segmentation of each sample are written to and read from a new directory, whole,
  by each configuration in turn, and that ``--repetitions`` times over; speeds are medians, in raw
  megabytes (voxels before compression) a second. What was written lies in the page cache when it is
  read. Files are synced as each writer does it by itself: TensorStore does, NumPy and HDF5 do not.
- Every configuration runs in processes of its own: *peak* is the resident memory that writing, or
  reading, adds at most to a process that holds the voxels, or none; the larger of both counts.
- *default* is what ``ingest`` writes where nothing is said, *smallest* the smallest that reads at
  500 MB/s or more of raw voxels (segmentations) or the smallest that changes nothing (images).
- What is read back is compared with what was written; PSNR is given where it differs.
"""

import argparse
import concurrent.futures
import dataclasses
import math
import multiprocessing
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.machine import Peak, describe, met, table
from pipelines.demo.phantom import PhantomConfig, make_phantom
from pipelines.writing.layout import Wanted
from volumes.geometry import Vec
from volumes.opening import open_volume
from volumes.reading import read_box
from volumes.spec import Kind
from volumes.writing import Target, VolumeLayout, create_levels, open_for_writing, write_box
from volumes.writing.morton import chosen_shard

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "fib25"

_SHARD: Vec = (256, 256, 256)


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """A way of storing a volume.

    Attributes:
        name: In the table.
        format: ``npy``, ``hdf5`` or a format of ours.
        codec: Of ours; None for the default.
        sharded: Of ours.
        axes: Stored order of ours; None for the default.
    """

    name: str
    format: str
    codec: str | None = None
    sharded: bool = True
    axes: str | None = None

    def layout(self, shape: Vec, dtype: str, kind: Kind) -> VolumeLayout:
        """How a volume is stored that way."""
        wanted = Wanted(
            shape=shape,
            dtype=dtype,
            kind=kind,
            voxel_size_nm=(10.0, 10.0, 10.0),
            origin_vx=(0, 0, 0),
            format=self.format,
            codec=self.codec,
            axes=None if self.axes is None else tuple(self.axes),
        )
        if not self.sharded:
            return wanted.layout(None)
        if self.format == "precomputed":
            return wanted.layout(chosen_shard(shape, wanted.chunk, math.prod(_SHARD)))
        return wanted.layout(_SHARD)


WAYS: dict[Kind, tuple[Way, ...]] = {
    "image": (
        Way("NPY", "npy"),
        Way("HDF5 gzip 4", "hdf5"),
        Way("default", "zarr3"),
        Way("zarr3 stored x, y, z", "zarr3", axes="xyz"),
        Way("ome-zarr zstd:3", "ome-zarr", "zstd:3"),
        Way("precomputed gzip:6", "precomputed", "gzip:6"),
        Way("smallest: png:6", "precomputed", "png:6", sharded=False),
        Way("jpeg:90", "precomputed", "jpeg:90", sharded=False),
        Way("asked for 10x: jpeg:40", "precomputed", "jpeg:40", sharded=False),
    ),
    "segmentation": (
        Way("NPY", "npy"),
        Way("HDF5 gzip 4", "hdf5"),
        Way("default", "zarr3"),
        Way("zarr3 stored x, y, z", "zarr3", axes="xyz"),
        Way("zarr3 zstd:9", "zarr3", "zstd:9"),
        Way("zarr3 blosc-lz4", "zarr3", "blosc-lz4"),
        Way("n5 gzip:6", "n5", "gzip:6", sharded=False),
        Way("smallest: compressed_segmentation in shards", "precomputed", "cseg:8"),
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """What a way took, one repetition."""

    stored: int
    write_s: float
    read_s: float
    peak: int
    psnr: float


def write(way: Way, voxels: npt.NDArray[Any], kind: Kind, folder: pathlib.Path) -> None:
    """Write a volume ``[x, y, z]`` into an empty directory."""
    if way.format == "npy":
        np.save(folder / "voxels.npy", voxels)
    elif way.format == "hdf5":
        chunks = tuple(min(64, n) for n in voxels.shape)
        with h5py.File(folder / "voxels.h5", "w") as file:
            file.create_dataset(
                "voxels", data=voxels, chunks=chunks, compression="gzip", compression_opts=4
            )
    else:
        x, y, z = voxels.shape
        layout = way.layout((x, y, z), voxels.dtype.name, kind)
        target = Target(str(folder), layout)
        create_levels([target], {})
        write_box(open_for_writing(target), layout.domain, voxels)


def read(way: Way, shape: Vec, dtype: str, kind: Kind, folder: pathlib.Path) -> npt.NDArray[Any]:
    """Read the volume again."""
    if way.format == "npy":
        return np.asarray(np.load(folder / "voxels.npy"))
    if way.format == "hdf5":
        with h5py.File(folder / "voxels.h5") as file:
            return np.asarray(file["voxels"][:])
    layout = way.layout(shape, dtype, kind)
    volume = open_volume(Target(str(folder), layout).spec())
    return read_box(volume, layout.domain, missing="error", order="F").array


def _written(way: Way, sample: str, kind: Kind, folder: str) -> tuple[float, int]:
    """In a process of its own: seconds, and bytes of memory added."""
    voxels = np.asfortranarray(np.load(sample))
    _warm(way, kind)
    with Peak() as peak:
        began = time.perf_counter()
        write(way, voxels, kind, pathlib.Path(folder))
        ended = time.perf_counter()
    return ended - began, peak.bytes


def _read(way: Way, sample: str, kind: Kind, folder: str) -> tuple[float, int, float]:
    """In a process of its own: seconds, bytes of memory added, PSNR."""
    mapped = np.load(sample, mmap_mode="r")
    x, y, z = mapped.shape
    _warm(way, kind)
    with Peak() as peak:
        began = time.perf_counter()
        found = read(way, (x, y, z), mapped.dtype.name, kind, pathlib.Path(folder))
        ended = time.perf_counter()
    added = peak.bytes
    if np.array_equal(found, mapped):
        return ended - began, added, math.inf
    error = np.mean((found.astype(np.float64) - mapped) ** 2)
    return ended - began, added, float(10 * np.log10(255**2 / error))


def _warm(way: Way, kind: Kind) -> None:
    """Load libraries and start threads, with a small volume."""
    with tempfile.TemporaryDirectory() as folder:
        some = np.ones((64, 64, 64), np.uint8 if kind == "image" else np.uint64)
        write(way, some, kind, pathlib.Path(folder))
        read(way, (64, 64, 64), some.dtype.name, kind, pathlib.Path(folder))


def measured(way: Way, sample: pathlib.Path, kind: Kind, folder: pathlib.Path) -> Figures:
    """Write and read a volume one way, each in a new process."""
    place = folder / "volume"
    place.mkdir()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        write_s, writing = pool.submit(_written, way, str(sample), kind, str(place)).result()
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        read_s, reading, psnr = pool.submit(_read, way, str(sample), kind, str(place)).result()
    stored = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    shutil.rmtree(place)
    return Figures(stored, write_s, read_s, max(writing, reading), psnr)


def compared(
    title: str, sample: pathlib.Path, kind: Kind, folder: pathlib.Path, repetitions: int
) -> None:
    """Print the table of a volume, with its goals."""
    raw = np.load(sample, mmap_mode="r").nbytes
    rounds = [[measured(w, sample, kind, folder) for w in WAYS[kind]] for _ in range(repetitions)]
    rows = []
    for way, figures in zip(WAYS[kind], zip(*rounds, strict=True), strict=True):
        ratio = raw / figures[0].stored
        write_mb = raw / 1e6 / statistics.median(f.write_s for f in figures)
        read_mb = raw / 1e6 / statistics.median(f.read_s for f in figures)
        psnr = figures[0].psnr
        rows.append(
            [
                way.name,
                f"{figures[0].stored:,}",
                f"{ratio:.2f}",
                f"{write_mb:,.0f}",
                f"{read_mb:,.0f}",
                f"{statistics.median(f.peak for f in figures) / 1e6:,.0f}",
                "same" if math.isinf(psnr) else f"{psnr:.1f} dB",
                _goal(way, kind, ratio, read_mb, psnr),
            ]
        )
    header = ["way", "bytes", "x", "write MB/s", "read MB/s", "peak MB", "voxels", "goal"]
    table(f"{title}, {raw / 1e6:,.0f} MB raw", header, rows)


def _goal(way: Way, kind: Kind, ratio: float, read_mb: float, psnr: float) -> str:
    if way.name.startswith("smallest") and kind == "segmentation":
        return f">= 100 x at >= 500 MB/s: {met(ratio >= 100 and read_mb >= 500)}"
    if way.name.startswith("smallest"):
        return f">= 1.45 x, same: {met(ratio >= 1.45 and math.isinf(psnr))}"
    if way.name.startswith("asked"):
        return f">= 10 x at >= 32 dB: {met(ratio >= 10 and psnr >= 32)}"
    return ""


def samples(folder: pathlib.Path, quick: bool) -> list[tuple[str, Kind, pathlib.Path]]:
    """Write the samples as NPY files ``[x, y, z]``; gives title, kind and file of each."""
    found: list[tuple[str, Kind, npt.NDArray[Any]]] = []
    if SHARED.is_dir() and not quick:
        sections = [np.asarray(Image.open(p)) for p in sorted((SHARED / "em").glob("*.png"))]
        found.append(("FIB-25, image", "image", np.stack(sections).T))
        with h5py.File(SHARED / "groundtruth.h5") as file:
            found.append(("FIB-25, segmentation", "segmentation", file["stack"][:].T))
    elif not quick:
        print(f"FIB-25 is not at {SHARED} and was left out")
    made = make_phantom(PhantomConfig())
    corner = (slice(0, 64),) * 3 if quick else (slice(None),) * 3
    found.append(("synthetic, image", "image", made.image[corner]))
    found.append(("synthetic, segmentation", "segmentation", made.labels[corner]))
    out = []
    for number, (title, kind, voxels) in enumerate(found):
        np.save(folder / f"{number}.npy", voxels)
        out.append((title, kind, folder / f"{number}.npy"))
    return out


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="does it run")
    given = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for title, kind, sample in samples(folder, given.quick):
            compared(title, sample, kind, folder, 1 if given.quick else given.repetitions)


if __name__ == "__main__":
    main()
