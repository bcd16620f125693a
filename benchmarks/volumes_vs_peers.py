"""Convert and downsample beside igneous: the same volume, format, levels and codec, on two cores.

    python -m benchmarks.volumes_vs_peers                       all cases; about an hour
    python -m benchmarks.volumes_vs_peers --cases downsample    those whose name holds the word
    python -m benchmarks.volumes_vs_peers --quick               tiny volumes: does it run at all

How it measures:

- *peer*: igneous (GPL) is a program apart. It is installed into a virtual environment of its own,
  ``.venv-igneous`` unless told otherwise, and started by its command line.
- *input*: 1,024**3 voxels of image and 512**3 of segmentation in uint64, over 1 GB each, as a
  neuroglancer precomputed volume in raw chunks of 64 voxels a side, which both read. They are the
  FIB-25 sample of ``../shared``, or the demo's volume where that is absent, mirrored until it fills
  the volume; the ids of each tile are its own. ``downsample`` begins with the level that our
  ``convert`` wrote, the same for both, and adds three levels of 2, 2, 2.
- *cores*: this process and all it starts are bound to two cores. igneous runs two processes
  (``-p 2``); ours runs ``--workers`` processes, one unless told otherwise, whose storage threads
  use both cores.
- *time*: from the start of the command to its end, imports and planning included. Both write to the
  same disk, each into a new directory, since ext4 is slow where much was removed just before; the
  disk is flushed before each run, and the input is in the page cache. The two take turns.
  The bytecode of both is there, as after an installation.
- *memory*: the most proportional set size of the process and all below it at one time, ten looks a
  second. What processes share counts once, so that neither pays for how it makes them.
- *codec*: seconds that encoding the chunks of all that was written, and nothing else, takes on both
  cores: the floor below which no program with this codec comes.
- *same*: that both wrote the same voxels: the share of equal ones in the middle of each level. Not
  equal are means that lie between two grey values, and ids that are equally frequent.

Figures are medians over the repetitions.
"""

import argparse
import concurrent.futures
import dataclasses
import gzip
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import tensorstore as ts
from PIL import Image

from benchmarks.machine import describe, met, table
from pipelines.demo.phantom import PhantomConfig, make_phantom

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_SHARED = _ROOT.parent / "shared" / "data" / "fib25"
_CHUNK = 64
_CORES = 2
_PEER = ("igneous-pipeline>=4.37,<5", "pyspng-seunglab>=1.1,<2")
_LIMIT_S = 3600
_PACKAGES = ("volumes", "segclr", "transforms", "pipelines", "launch")

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One comparison.

    Attributes:
        job: ``convert`` or ``downsample``.
        kind: ``image`` or ``segmentation``.
        codec: ``raw``, ``jpeg``, ``compressed_segmentation``.
        sharded: Shards whose chunks are compressed with gzip besides; otherwise a file a chunk.
        levels: Coarser levels that ``downsample`` adds.
    """

    job: str
    kind: str
    codec: str
    sharded: bool
    levels: int

    @property
    def name(self) -> str:
        """What it is called in tables and by ``--cases``."""
        codec = self.codec + "+gzip" * self.sharded
        return f"{self.job} {self.kind} {codec} {'shards' if self.sharded else 'chunks'}"


CASES = tuple(
    Case(job, kind, codec, sharded, 3 if job == "downsample" else 0)
    for job in ("convert", "downsample")
    for kind, codec, sharded in (
        ("image", "raw", False),
        ("image", "raw", True),
        ("image", "jpeg", False),
        ("segmentation", "compressed_segmentation", False),
        ("segmentation", "compressed_segmentation", True),
    )
    if (job, codec) != ("downsample", "jpeg")
)


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What a run took: seconds, and bytes at the peak."""

    seconds: float
    peak: int


class Watch:
    """Looks at the memory of a process and all below it until it ends."""

    def __init__(self, pid: int) -> None:
        """Begin to look."""
        self.peak = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stop looking; the peak in bytes."""
        self._over.set()
        self._thread.join()
        return self.peak

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.peak = max(self.peak, sum(_proportional(pid) for pid in _tree(self._pid)))


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    found, below = [], [root]
    while below:
        pid = below.pop()
        found.append(pid)
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                below += [int(p) for p in task.read_text().split()]
            except OSError:  # it has ended
                continue
    return found


def _proportional(pid: int) -> int:
    """Proportional set size in bytes; 0 for a process that has ended."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def measured(words: Sequence[str], folder: pathlib.Path) -> Cost:
    """Run a command; what it took."""
    os.sync()
    log = folder / "log"
    with log.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            words, cwd=_ROOT, stdout=out, stderr=subprocess.STDOUT, env=_environment()
        )
        watch = Watch(process.pid)
        try:
            process.wait(_LIMIT_S)
        finally:
            process.kill()
            peak = watch.end()
        seconds = time.perf_counter() - started
    if process.returncode:
        told = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {told}")
    return Cost(seconds, peak)


def _environment() -> dict[str, str]:
    """This process's, in which Python may keep bytecode."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def peer_program(venv: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The peer's command, installed where it is not there yet, and its name and version."""
    python = venv / "bin" / "python"
    if not (venv / "bin" / "igneous").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *_PEER], check=True)
    asked = [str(python), "-m", "pip", "show", "igneous-pipeline"]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    version = next(line.split()[1] for line in shown if line.startswith("Version:"))
    return venv / "bin" / "igneous", f"igneous {version}"


def sample() -> tuple[Array, Array, str]:
    """An image and its segmentation, XYZ, and what they are."""
    if _SHARED.exists():
        files = sorted((_SHARED / "em").glob("*.png"))
        grey = np.stack([np.asarray(Image.open(p)) for p in files]).T
        with h5py.File(_SHARED / "groundtruth.h5") as file:
            return grey, np.asarray(file["stack"])[...].T, "FIB-25, mirrored"
    phantom = make_phantom(PhantomConfig())
    return phantom.image, phantom.labels, "the demo's synthetic volume, mirrored"


def write_input(folder: pathlib.Path, side: dict[str, int]) -> str:
    """Write both input volumes as ``image`` and ``segmentation``; what they are."""
    grey, ids, name = sample()
    for kind, tile in (("image", grey), ("segmentation", ids)):
        n = side[kind]
        store = _precomputed(folder / kind, kind, tile.dtype, n)
        for start in range(0, n, _CHUNK):
            stop = min(n, start + _CHUNK)
            index = [
                _mirrored(np.arange(a, b), s)
                for (a, b), s in zip(((start, stop), (0, n), (0, n)), tile.shape, strict=True)
            ]
            slab = tile[np.ix_(*[i for i, _ in index])]
            if kind == "segmentation":
                (x, y, z) = (number.astype(np.uint64) for _, number in index)
                tiles = (x[:, None, None] * 64 + y[None, :, None]) * 64 + z[None, None, :]
                slab = np.where(slab == 0, slab, slab + (tiles << np.uint64(32)))
            store[start:stop, :, :, 0].write(slab).result()
    return name


def _mirrored(position: Array, extent: int) -> tuple[Array, Array]:
    """Index into a tile that is mirrored at its ends, and the tile's number."""
    number, inside = np.divmod(position, extent)
    return np.where(number % 2, extent - 1 - inside, inside), number


def _precomputed(path: pathlib.Path, kind: str, dtype: Any, side: int) -> ts.TensorStore:
    return ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"type": kind, "data_type": dtype.name, "num_channels": 1},
            "scale_metadata": {
                "size": [side] * 3,
                "resolution": [10, 10, 10],
                "chunk_size": [_CHUNK] * 3,
                "encoding": "raw",
            },
        },
        create=True,
    ).result()


def ours(case: Case, source: pathlib.Path, output: pathlib.Path, workers: int) -> list[str]:
    """Our command."""
    words = [sys.executable, "-m", "launch", case.job, f"--kind={case.kind}", "--quiet"]
    words += [f"--workers={workers}"]
    if case.job == "downsample":
        words += [f"--volume={output}", f"--levels={case.levels}", "--factors=2,2,2"]
        return words if case.sharded else [*words, "--shard=none"]
    words += [f"--input={source}", f"--output={output}", "--format=precomputed"]
    words += [f"--chunk={_CHUNK},{_CHUNK},{_CHUNK}"]
    if case.sharded:
        inner = {"raw": "gzip", "compressed_segmentation": "compressed_segmentation"}
        return [*words, f"--codec={inner[case.codec]}"]
    return [*words, "--shard=none", "--codec=" + case.codec + ":75" * (case.codec == "jpeg")]


def theirs(
    case: Case, program: pathlib.Path, source: pathlib.Path, output: pathlib.Path
) -> list[str]:
    """The peer's command."""
    words = [str(program), "-p", str(_CORES), "image"]
    compress = "gzip" if case.sharded else "none"
    if case.job == "downsample":
        words += ["downsample", f"file://{output}", "--volumetric", "--num-mips", str(case.levels)]
        return [*words, "--compress", compress, *["--sharded"] * case.sharded]
    words += ["xfer", f"file://{source}", f"file://{output}", "--skip-downsample"]
    words += ["--chunk-size", f"{_CHUNK},{_CHUNK},{_CHUNK}", "--compress", compress]
    words += ["--encoding", "cseg" if case.kind == "segmentation" else case.codec]
    words += ["--encoding-level", "75"] if case.codec == "jpeg" else []
    return [*words, *["--sharded"] * case.sharded]


def linked(source: pathlib.Path, target: pathlib.Path) -> None:
    """The volume once more: metadata copied, voxels by hard links, which nobody writes through."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for entry in source.iterdir():
        if entry.is_dir():
            shutil.copytree(entry, target / entry.name, copy_function=os.link)
        else:
            shutil.copy(entry, target / entry.name)


def read_level(path: pathlib.Path, level: int) -> ts.TensorStore:
    """A level of a precomputed volume."""
    place = {"driver": "file", "path": f"{path}/"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": place, "scale_index": level}
    return ts.open(spec, open=True).result()[..., 0]


def alike(first: pathlib.Path, second: pathlib.Path, levels: int) -> float:
    """The least share of equal voxels in the middle of a level."""
    least = 1.0
    for level in range(levels):
        stores = [read_level(p, level) for p in (first, second)]
        shapes = [s.shape for s in stores]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"level {level} has shapes {shapes[0]} and {shapes[1]}")
        box = tuple(slice(n // 2 - min(n, 128) // 2, n // 2 + min(n, 128) // 2) for n in shapes[0])
        one, other = (np.asarray(s[box].read().result()) for s in stores)
        if not one.any():
            raise RuntimeError(f"{first} holds zeros at level {level}")
        least = min(least, float((one == other).mean()))
    return least


def codec_seconds(case: Case, path: pathlib.Path) -> float:
    """Seconds of encoding all chunks of the levels that a job wrote, on both cores."""
    written = range(1, 1 + case.levels) if case.levels else range(1)
    total = 0.0
    for level in written:
        store = read_level(path, level)
        chunks = math.prod(-(-n // _CHUNK) for n in store.shape)
        picked = min(chunks, 64)
        middle = tuple(slice(0, min(n, 4 * _CHUNK)) for n in store.shape)
        total += _encoding(np.asarray(store[middle].read().result()), case) * chunks / picked
    return total


def _encoding(voxels: Array, case: Case) -> float:
    """Seconds of encoding an array of up to 64 chunks, on both cores."""
    form = {"raw": "raw", "jpeg": "jpeg"}.get(case.codec, "compressed_segmentation")
    size: dict[str, Any] = {"size": list(voxels.shape), "resolution": [1, 1, 1]}
    scale = size | {"chunk_size": [_CHUNK] * 3, "encoding": form}
    scale |= {"jpeg_quality": 75} if form == "jpeg" else {}
    kind = {"type": case.kind, "data_type": voxels.dtype.name, "num_channels": 1}
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "memory"},
        "multiscale_metadata": kind,
        "scale_metadata": scale,
    }
    store = ts.open(spec, create=True).result()
    ordered = np.asfortranarray(voxels)
    started = time.perf_counter()
    store[..., 0].write(ordered).result()
    if case.sharded:
        kvstore = store.kvstore
        values = [kvstore.read(k).result().value for k in kvstore.list().result() if b"_" in k]
        with concurrent.futures.ThreadPoolExecutor(_CORES) as pool:
            list(pool.map(lambda v: gzip.compress(v, 6), values))
    return time.perf_counter() - started


def run_case(
    case: Case, folder: pathlib.Path, program: pathlib.Path | None, given: argparse.Namespace
) -> list[str]:
    """Measure a case; its row."""
    source, place = folder / case.kind, folder / case.name.replace(" ", "-")
    start = place / "start"
    place.mkdir()
    if case.job == "downsample":
        first = dataclasses.replace(case, job="convert", levels=0)
        measured(ours(first, source, start, given.workers), folder)
        shutil.rmtree(start / "segclr-beam", ignore_errors=True)
    costs: dict[str, list[Cost]] = {"ours": [], "theirs": []}
    for number in range(given.repetitions):
        mine, other = (place / f"{who}-{number}" for who in costs)
        for who, path in (("ours", mine), ("theirs", other)):
            if who == "theirs" and program is None:
                continue
            if case.job == "downsample":
                linked(start, path)
            words = ours(case, source, path, given.workers)
            if who == "theirs" and program is not None:
                words = theirs(case, program, source, path)
            costs[who].append(measured(words, folder))
    seconds = {k: statistics.median(c.seconds for c in v) for k, v in costs.items() if v}
    peaks = {k: statistics.median(c.peak for c in v) / 2**20 for k, v in costs.items() if v}
    row = [case.name, f"{seconds['ours']:.1f}", f"{peaks['ours']:.0f}"]
    row.append(f"{codec_seconds(case, mine):.1f}")
    if program is None:
        shutil.rmtree(place)
        return row
    same = alike(mine, other, 1 + case.levels)
    shutil.rmtree(place)
    share, memory = seconds["ours"] / seconds["theirs"], peaks["ours"] / peaks["theirs"]
    return [
        *row,
        f"{seconds['theirs']:.1f}",
        f"{peaks['theirs']:.0f}",
        f"{share:.2f} {met(share <= 0.5)}",
        f"{memory:.2f} {met(memory <= 1)}",
        f"{same:.4f}",
    ]


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="", help="words of which a case's name holds all")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes of ours")
    parser.add_argument("--folder", help="scratch on the disk to be measured")
    parser.add_argument("--venv", default=str(_ROOT / ".venv-igneous"))
    parser.add_argument("--alone", action="store_true", help="ours only, without the peer")
    parser.add_argument("--quick", action="store_true", help="does it run: tiny, no figures")
    given = parser.parse_args()
    cases = [c for c in CASES if all(word in c.name for word in given.cases.split())]
    if not cases:
        parser.error(f"no case holds {given.cases!r}; there are {', '.join(c.name for c in CASES)}")
    side = {"image": 1024, "segmentation": 512}
    if given.quick:
        side, given.repetitions = {"image": 160, "segmentation": 160}, 1
        cases = [dataclasses.replace(c, levels=min(c.levels, 1)) for c in cases]
    compileall = [sys.executable, "-m", "compileall", "-q", *_PACKAGES]
    subprocess.run(compileall, cwd=_ROOT, check=True, env=_environment())
    program, peer = (None, "") if given.alone else peer_program(pathlib.Path(given.venv))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    print(describe() + (f"\npeer: {peer}, 2 processes" if peer else ""))
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = pathlib.Path(scratch)
        name = write_input(folder, side)
        rows = [run_case(case, folder, program, given) for case in cases]
    header = ["case", "ours s", "ours MiB", "codec s"]
    if program is not None:
        header += ["igneous s", "igneous MiB", "time, goal 0.5", "memory, goal 1", "same"]
    extents = ", ".join(f"{k} {n}^3" for k, n in side.items())
    table(f"{name}, {extents}; medians of {given.repetitions}, on {_CORES} cores", header, rows)


if __name__ == "__main__":
    main()
