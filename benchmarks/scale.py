"""What more workers bring, and what each engine costs: by the box, and to begin with.

    python -m benchmarks.scale                        both parts, in this process's engine
    python -m benchmarks.scale --parts speed-up       one of speed-up, engines
    python -m benchmarks.scale --engine 'prism=--runner PrismRunner --prism_location /opt/prism'
    python -m benchmarks.scale --quick                does it run at all; no figures to quote

How it measures:

- Every run is a command of its own, ``segclr-beam embed``, from its start to its end, over the same
  image of noise and segmentation of blocks, into a new store.
- Each engine embeds a small and a large share of the boxes, in turn with the others. The cost of a
  box is the difference in time over the difference in boxes, and the start is what is left of the
  small run without its boxes: imports, the plan, the engine's own start, the last commit.
- *speed-up*: boxes with work in them, by one process and by two. Each process computes with one
  thread, so that one does not take both cores already. The speed-up of the work is that of the cost
  of a box, whose goal is 1.9; that of the whole command has the starts in it.
- *engines*: boxes with next to no work, one node each and a network of one channel: what is left
  is reading, committing and the engine. ``--engine NAME=FLAGS`` adds one, as often as needed.

Figures are medians over the repetitions.
"""

import argparse
import csv
import dataclasses
import itertools
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

import volumes
from benchmarks.machine import describe, met, table

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_BOX = 32
_NM = 10.0
_LIMIT_S = 1800
_GOAL = 1.9

# What keeps a process to one thread of computing.
_ONE_THREAD = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What is embedded.

    Attributes:
        model: The network.
        nodes: Nodes in each box.
        boxes: Boxes of the small run and of the large one.
    """

    model: str
    nodes: int
    boxes: tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a command with many boxes: its start, each box, and all of the large run."""

    start: float
    box: float
    whole: float


def write_volumes(folder: pathlib.Path, side: int) -> None:
    """An image of noise and a segmentation of one block a box, both of whole boxes a side."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (side * _BOX,) * 3, dtype=np.uint8)
    ids = np.arange(1, side**3 + 1, dtype=np.uint64).reshape((side,) * 3)
    labels = ids.repeat(_BOX, 0).repeat(_BOX, 1).repeat(_BOX, 2)
    for name, voxels in (("image", image), ("segmentation", labels)):
        made = {"voxel_size_nm": (_NM,) * 3, "chunk": (_BOX,) * 3}
        volumes.create(folder / name, voxels, **made)


def write_nodes(path: pathlib.Path, side: int, boxes: int, nodes: int) -> None:
    """Nodes in the middle of each of the first boxes, on the segment that fills it."""
    cells = itertools.islice(itertools.product(range(side), repeat=3), boxes)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["segment_id", "node_id", "x_nm", "y_nm", "z_nm"])
        for segment, cell in enumerate(cells, start=1):
            for node in range(nodes):
                voxel = [c * _BOX + _BOX // 2 for c in cell]
                voxel[0] += node - nodes // 2
                writer.writerow([segment, node, *(v * _NM for v in voxel)])


def seconds(folder: pathlib.Path, nodes: pathlib.Path, work: Work, flags: Sequence[str]) -> float:
    """Time of one command, from its start to its end.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        words = [sys.executable, "-m", "launch", "embed", "--quiet", f"--nodes={nodes}"]
        words += [f"--image={folder / 'image'}", f"--segmentation={folder / 'segmentation'}"]
        words += [f"--model={work.model}", f"--box={_BOX}", f"--output={place}/store", *flags]
        environment = os.environ | _ONE_THREAD
        with (folder / "log.txt").open("w") as log:
            began = time.perf_counter()
            done = subprocess.run(
                words, cwd=_ROOT, env=environment, stdout=log, stderr=log, timeout=_LIMIT_S
            )
            took = time.perf_counter() - began
    if done.returncode:
        told = (folder / "log.txt").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{shlex.join(words)} ended with {done.returncode}: {told}")
    return took


def costs(
    folder: pathlib.Path, side: int, work: Work, engines: dict[str, list[str]], repetitions: int
) -> dict[str, Cost]:
    """What each engine takes, by name."""
    files = [folder / f"nodes-{work.nodes}-{boxes}.csv" for boxes in work.boxes]
    for path, boxes in zip(files, work.boxes, strict=True):
        write_nodes(path, side, boxes, work.nodes)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(repetitions):
        for name, flags in engines.items():
            small, large = (seconds(folder, path, work, flags) for path in files)
            found[name].append((small, large))
    few, many = work.boxes
    made = {}
    for name, pairs in found.items():
        small, large = (statistics.median(p[i] for p in pairs) for i in range(2))
        box = (large - small) / (many - few)
        made[name] = Cost(small - few * box, box, large)
    return made


def speed_up(folder: pathlib.Path, side: int, work: Work, repetitions: int) -> None:
    """Print what a second process brings."""
    engines = {str(n): [f"--workers={n}"] for n in (1, 2)}
    found = costs(folder, side, work, engines, repetitions)
    one = found["1"]
    rows = []
    for name, cost in found.items():
        more, whole = one.box / cost.box, one.whole / cost.whole
        goal = "" if name == "1" else met(more >= _GOAL)
        row = [f"{cost.start:.1f}", f"{1e3 * cost.box:.0f}", f"{cost.whole:.1f}"]
        rows.append([name, *row, f"{more:.2f}", f"{whole:.2f}", goal])
    table(
        f"speed-up, {work.model}, {work.nodes} nodes a box, {work.boxes[1]} boxes, one thread a "
        f"process; medians of {repetitions}",
        ("processes", "start s", "box ms", "whole s", "work", "whole", f"goal {_GOAL}"),
        rows,
    )


def engines_beside(
    folder: pathlib.Path, side: int, work: Work, engines: dict[str, list[str]], repetitions: int
) -> None:
    """Print what each engine takes for boxes with next to no work."""
    found = costs(folder, side, work, engines, repetitions)
    first = next(iter(found.values()))
    rows = [
        [
            name,
            f"{cost.start:.1f}",
            f"{cost.start / first.start:.2f}",
            f"{1e3 * cost.box:.1f}",
            f"{cost.box / first.box:.2f}",
        ]
        for name, cost in found.items()
    ]
    table(
        f"engines, {work.model}, a node a box, {work.boxes[1]} boxes; medians of {repetitions}",
        ("engine", "start s", "ratio", "box ms", "ratio"),
        rows,
    )


def _engine(text: str) -> tuple[str, list[str]]:
    name, equals, flags = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"NAME=FLAGS is needed, got {text!r}")
    return name, shlex.split(flags)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default="speed-up,engines", help="speed-up, engines")
    parser.add_argument("--engine", type=_engine, action="append", default=[], metavar="NAME=FLAGS")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="does it run: tiny, no figures")
    given = parser.parse_args()
    parts = given.parts.split(",")
    for part in parts:
        if part not in ("speed-up", "engines"):
            parser.error(f"there is no part {part!r}; give speed-up, engines")
    side, work = 8, Work("untrained:width=16,input=33", 8, (64, 512))
    light = Work("untrained:width=1,input=17", 1, (64, 512))
    if given.quick:
        side, given.repetitions = 3, 1
        work = dataclasses.replace(light, nodes=2, boxes=(3, 27))
        light = dataclasses.replace(light, boxes=(3, 27))
    engines = {"in process": ["--workers=1"], "2 processes": ["--workers=2"]} | dict(given.engine)
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_volumes(folder, side)
        if "speed-up" in parts:
            speed_up(folder, side, work, given.repetitions)
        if "engines" in parts:
            engines_beside(folder, side, light, engines, given.repetitions)


if __name__ == "__main__":
    main()
