"""What it costs to read, view and write volumes, each figure beside its baseline.

    python -m benchmarks.access                     all parts
    python -m benchmarks.access --parts views,cache
    python -m benchmarks.access --quick             small volumes: does it run; no figures to quote

The volumes are noise over smooth shapes, uint8, in shards of 256 voxels a side and chunks of 64
unless a part says otherwise. Times are medians over ``--repetitions``; both ways of a part take
turns in one run. The files lie in the page cache.

views         the mean of a part of the volume, every other voxel of it, read box by box through a
              view, against a copy of that part as an array: resident memory added at most, each in
              a process of its own.
latency       64 boxes of one chunk from a web server on the loopback that answers after 30 ms: all
              at once, against one after another.
cache         a walk of 200 overlapping crops of 129 voxels, 8 voxels apart, with a cache pool,
              against without.
batch         64 boxes of one shard in one batch, against each by itself; over HTTP with 5 ms.
processes     2 and 4 processes that read, and that write shards of one volume, against 1.
random        boxes of 64 voxels at random places, against an HDF5 dataset stored in one run or in
              gzip chunks of a section each, and against a stack of PNG sections.
"""

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

import volumes
from benchmarks.machine import Peak, describe, met, table
from benchmarks.served import served
from volumes.caching.pool import pooled
from volumes.geometry import Box, ChunkGrid, Vec, vec
from volumes.levels import SPATIAL
from volumes.opening import Volume, open_volume
from volumes.reading import Request, read_box, read_boxes
from volumes.writing import Target, VolumeLayout, create_levels, open_for_writing, write_box

Array = npt.NDArray[np.uint8]

_SHARD: Vec = (256, 256, 256)
_CHUNK: Vec = (64, 64, 64)
_CROPS = 200


class Bench:
    """The volume that all parts read, and how often each part is repeated."""

    def __init__(self, folder: pathlib.Path, side: int, repetitions: int) -> None:
        """Make the volume."""
        self.folder, self.side, self.repetitions = folder, side, repetitions
        self.voxels = noise(side)
        self.target = made(folder / "em", self.voxels)

    def volume(self) -> Volume:
        """The volume, open."""
        return open_volume(self.target.spec())

    def medians(self, *ways: Callable[[], None]) -> list[float]:
        """Median seconds of each way; the ways take turns, after one round that does not count."""
        for way in ways:
            way()
        rounds = [[timed(way) for way in ways] for _ in range(self.repetitions)]
        return [statistics.median(times) for times in zip(*rounds, strict=True)]


def noise(side: int) -> Array:
    """Grey values that compress like EM: smooth shapes under noise, ``[x, y, z]``."""
    rng = np.random.default_rng(0)
    axis = np.arange(side)
    waves = [np.sin(axis / (7 + 3 * k)) for k in range(3)]
    smooth = 128 + 25 * (waves[0][:, None, None] + waves[1][None, :, None] + waves[2])
    grain = rng.integers(-20, 20, (side,) * 3, dtype=np.int8)
    return np.asfortranarray((smooth.astype(np.int16) + grain).astype(np.uint8))


def layout(side: int, shard: Vec | None = _SHARD) -> VolumeLayout:
    """A cube's layout, stored as ``convert`` and ``ingest`` store zarr3."""
    cube: Vec = (side, side, side)
    axes = tuple(reversed(SPATIAL))
    size = (8.0, 8.0, 8.0)
    return VolumeLayout(cube, "uint8", "image", size, (0, 0, 0), _CHUNK, shard, axes=axes)


def made(folder: pathlib.Path, voxels: Array, shard: Vec | None = _SHARD) -> Target:
    """Write a cube."""
    target = Target(str(folder), layout(voxels.shape[0], shard))
    create_levels([target], {})
    write_box(open_for_writing(target), target.layout.domain, voxels)
    return target


def timed(way: Callable[[], None]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def printed(title: str, rows: list[list[str]]) -> None:
    """A part's table."""
    table(title, ["what", "this", "baseline", "ratio", "goal"], rows)


def compared(
    what: str, this: float, baseline: float, unit: str, goal: float | None = None
) -> list[str]:
    """A row: two figures of which the smaller is better."""
    ratio = baseline / this
    wanted = "-" if goal is None else f">= {goal:g}: {met(ratio >= goal)}"
    return [what, f"{this:,.4g} {unit}", f"{baseline:,.4g} {unit}", f"{ratio:.2f}", wanted]


def views(bench: Bench) -> None:
    """Memory of a view against that of a copy."""
    with _process() as pool:
        view = pool.submit(_view_peak, str(bench.folder / "em"), bench.side).result()
    with _process() as pool:
        copy = pool.submit(_copy_peak, str(bench.folder / "em"), bench.side).result()
    if view[1] != copy[1]:
        raise ValueError(f"the view's mean is {view[1]} and the copy's {copy[1]}")
    printed("views", [compared("memory added", view[0] / 1e6, copy[0] / 1e6, "MB", 5)])


def _view_peak(url: str, side: int) -> tuple[int, float]:
    view = volumes.open(url).crop(_inner(side)).stride((2, 1, 1))
    part = view.domain
    read_box(open_volume(view.spec), Box.of(part.start, (64, 64, 64)))
    total, grid = 0, ChunkGrid(part, (128, 128, 128))
    opened = open_volume(view.spec)
    with Peak() as peak:
        for index in range(grid.size):
            box = read_box(opened, grid.box(index), order="F", bytes_in_flight=16 << 20)
            total += int(box.array.sum(dtype=np.int64))
    return peak.bytes, total / part.size


def _copy_peak(url: str, side: int) -> tuple[int, float]:
    volume = open_volume(volumes.open(url).spec)
    read_box(volume, Box.of((0, 0, 0), (64, 64, 64)))
    with Peak() as peak:
        read = read_box(volume, _inner(side), order="F", bytes_in_flight=16 << 20)
        copy = read.array[::2].copy()
        mean = float(copy.sum(dtype=np.int64) / copy.size)
    return peak.bytes, mean


def _inner(side: int) -> Box:
    return Box((0, 0, 0), (side, side, side - side // 8))


def latency(bench: Bench) -> None:
    """All at once against one after another, on a slow store."""
    made(bench.folder / "plain", bench.voxels[:256, :256, :256], None)
    grid = ChunkGrid(Box((0, 0, 0), (256, 256, 256)), _CHUNK)
    boxes = [grid.box(i) for i in range(grid.size)]
    with served(bench.folder, 0.03) as url:
        lazy = volumes.open(f"{url}/plain")

        def together() -> None:
            lazy.read_many(boxes)

        def one_by_one() -> None:
            for box in boxes:
                lazy.read_many([box])

        this, baseline = bench.medians(together, one_by_one)
    row = compared(f"{len(boxes)} boxes, 30 ms a request", this, baseline, "s", 10)
    printed("latency", [row])


def cache(bench: Bench) -> None:
    """A walk of overlapping crops with a cache pool and without, each in a process of its own."""
    found: dict[int, list[float]] = {0: [], 512 << 20: []}
    for _ in range(bench.repetitions):
        for size, times in found.items():
            with _process() as pool:
                times.append(
                    pool.submit(_walk, str(bench.folder / "em"), bench.side, size).result()
                )
    baseline, this = (statistics.median(times) for times in found.values())
    printed("cache", [compared(f"{_CROPS} crops of 129 voxels", this, baseline, "s", 5)])


def _walk(url: str, side: int, cache_bytes: int) -> float:
    volume = open_volume(volumes.open(url).spec)
    if cache_bytes:
        volume = pooled(volume, cache_bytes)
    steps = np.random.default_rng(1).integers(-8, 9, (_CROPS, 3)).cumsum(axis=0)
    starts = np.clip(steps + (side - 129) // 2, 0, side - 129)
    read_box(volume, Box.of((0, 0, 0), (8, 8, 8)))

    def walk() -> None:
        for start in starts.tolist():
            read_box(volume, Box.of(vec(start), (129, 129, 129)), order="F")

    return timed(walk)


def batch(bench: Bench) -> None:
    """Boxes of one shard in one batch against each by itself."""
    grid = ChunkGrid(Box((0, 0, 0), _SHARD), _CHUNK)
    boxes = [grid.box(i) for i in range(grid.size)]
    with served(bench.folder, 0.005) as url:
        volume = open_volume(volumes.open(f"{url}/em").spec)

        def together() -> None:
            read_boxes([Request(volume, box, order="F") for box in boxes])

        def alone() -> None:
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda box: read_box(volume, box, order="F"), boxes))

        this, baseline = bench.medians(together, alone)
    row = compared(f"{len(boxes)} boxes of a shard, against 16 threads", this, baseline, "s")
    printed("batch", [row])


def processes(bench: Bench) -> None:
    """Throughput of several processes against one."""
    rows = []
    for what, work in (("read", _reading), ("write", _writing)):
        one = 0.0
        for count in (1, 2, 4):
            times = []
            for repetition in range(bench.repetitions):
                folder = bench.folder / f"{what}-{count}-{repetition}"
                times.append(
                    _together(work, count, str(folder), str(bench.folder / "em"), bench.side)
                )
            rate = (bench.side**3 / 1e6) / statistics.median(times)
            if count == 1:
                one = rate
            row = [f"{what}, {count} processes", f"{rate:,.0f} MB/s", f"{one:,.0f} MB/s"]
            rows.append([*row, f"{rate / one:.2f}", "-"])
    printed("processes, of one volume", rows)


def _together(
    work: Callable[[str, str, int, int, int], None], count: int, folder: str, url: str, side: int
) -> float:
    """Seconds that several processes take for a volume, each for its share of the shards."""
    target = Target(folder, layout(side))
    create_levels([target], {})
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(count, spawn) as pool:
        list(pool.map(_nothing, range(count)))
        began = time.perf_counter()
        shares = [pool.submit(work, folder, url, side, i, count) for i in range(count)]
        for share in shares:
            share.result()
        return time.perf_counter() - began


def _nothing(number: int) -> None:
    """So that a process is there, with its imports."""
    time.sleep(0.2)


def _reading(folder: str, url: str, side: int, which: int, count: int) -> None:
    volume = open_volume(volumes.open(url).spec)
    grid = ChunkGrid(volume.spec.domain, _SHARD)
    for index in range(which, grid.size, count):
        read_box(volume, grid.box(index), order="F")


def _writing(folder: str, url: str, side: int, which: int, count: int) -> None:
    volume = open_for_writing(Target(folder, layout(side)))
    voxels = noise(_SHARD[0])
    grid = ChunkGrid(volume.spec.domain, _SHARD)
    for index in range(which, grid.size, count):
        box = grid.box(index)
        write_box(volume, box, voxels[tuple(slice(0, n) for n in box.shape)])


def random(bench: Bench) -> None:
    """Random boxes against other ways to keep a volume."""
    side = bench.side
    stored = np.ascontiguousarray(bench.voxels.T)
    with h5py.File(bench.folder / "flat.h5", "w") as file:
        file.create_dataset("one-run", data=stored)
        file.create_dataset("sections", data=stored, chunks=(1, side, side), compression="gzip")
    sections = bench.folder / "sections"
    sections.mkdir()
    for z, section in enumerate(stored):
        Image.fromarray(section).save(sections / f"{z:05}.png")
    rng = np.random.default_rng(2)
    boxes = [Box.of(vec(s), _CHUNK) for s in rng.integers(0, side - 64, (20, 3)).tolist()]
    volume = bench.volume()

    def ours() -> None:
        for box in boxes:
            read_box(volume, box, order="F")

    def hdf5(name: str) -> Callable[[], None]:
        def way() -> None:
            with h5py.File(bench.folder / "flat.h5") as file:
                for box in boxes:
                    x, y, z = box.slices(Box((0, 0, 0), (side,) * 3))
                    file[name][z, y, x]

        return way

    def stack() -> None:
        for box in boxes:
            x, y, z = box.slices(Box((0, 0, 0), (side,) * 3))
            for k in range(z.start, z.stop):
                with Image.open(sections / f"{k:05}.png") as image:
                    np.asarray(image)[y, x]

    this, flat, chunked, png = bench.medians(ours, hdf5("one-run"), hdf5("sections"), stack)
    each = [f / len(boxes) * 1e3 for f in (this, flat, chunked, png)]
    rows = [
        compared("against HDF5 in one run", each[0], each[1], "ms"),
        compared("against HDF5, gzip, a chunk a section", each[0], each[2], "ms", 10),
        compared("against PNG sections", each[0], each[3], "ms", 10),
    ]
    printed(f"random boxes of 64 voxels in {side}", rows)


@contextlib.contextmanager
def _process() -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A new process."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


PARTS: dict[str, Callable[[Bench], None]] = {
    "views": views,
    "latency": latency,
    "cache": cache,
    "batch": batch,
    "processes": processes,
    "random": random,
}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: " + ",".join(PARTS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--side", type=int, default=768, help="voxels of the volume a side")
    parser.add_argument("--quick", action="store_true", help="does it run")
    given = parser.parse_args()
    parts = given.parts.split(",")
    for part in parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}; give {', '.join(PARTS)}")
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        side, repetitions = (256, 1) if given.quick else (given.side, given.repetitions)
        bench = Bench(pathlib.Path(name), side, repetitions)
        for part in parts:
            PARTS[part](bench)


if __name__ == "__main__":
    main()
