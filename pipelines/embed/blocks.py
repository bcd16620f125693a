"""The shape of a store's partitions: how many boxes share one database.

What is known of a database (OCDBT; ``benchmarks/commit.py`` measures it here):

- every commit rewrites one small manifest, so a database takes one commit at a time: some hundred a
  second on a file system, and about one a second on an object store, which limits how often one
  object is replaced;
- it slows down and leaves garbage with the number of its commits, so it should see no more than
  about a thousand;
- a database costs a few objects and a few requests of every reader, so there should be no more of
  them than that takes.

It follows that a block is as large as it may be: so that the fullest partition has at most
``COMMITS`` occupied boxes, and that there are enough partitions for all workers to commit at the
rate they do. A worker commits once a box, or, where boxes are quicker, once in the time for which
they gather to share a commit or in which ``COMMIT_BOXES`` are done; work ranges are spread over the
partitions at random, so a partition is asked for ``workers / partitions`` of that, and at most a
``SHARE`` of what it takes keeps the wait short. (What boxes owe is committed before, but a range at
a time.) Expected commits count, not the grid: sparse nodes get large blocks.
"""

import math

import numpy as np
import numpy.typing as npt

from transforms.boxes import COMMIT_BOXES
from transforms.work import COMMIT_SECONDS
from volumes import objects
from volumes.geometry import ChunkGrid, Vec, vec

COMMITS = 1024
"""Occupied boxes of the fullest partition, at most: one commit each, where boxes are slow."""

SHARE = 0.25
"""The share of a database's write rate that is planned with."""

FILE_WRITES = 100.0
"""Commits a second that a database on a file system takes from several writers."""

OBJECT_WRITES = 1.0
"""Commits a second that a database on an object store takes."""

# No box is quicker than this, whatever an estimate says: opening, reading and planning take it.
_LEAST_S = 0.1

# A store on an object store is there for many workers, whose number a plan does not know yet.
_REMOTE_WORKERS = 1000

# Blocks begin at this shape, unless the write rate asks for smaller ones, and grow to the other.
_USUAL = 8
_LARGEST = 64


def writes_a_second(store: str) -> float:
    """Commits a second that one database takes at a location."""
    return FILE_WRITES if objects.local_path(store) is not None else OBJECT_WRITES


def partitions_needed(
    workers: int, box_seconds: float, writes: float, commit_seconds: float = COMMIT_SECONDS
) -> int:
    """How many partitions must be at work so that commits do not wait for each other."""
    seconds = max(box_seconds, _LEAST_S)
    interval = max(seconds, min(commit_seconds, COMMIT_BOXES * seconds))
    return max(1, math.ceil(workers / (interval * writes * SHARE)))


def block_for(
    grid: ChunkGrid,
    occupied: npt.NDArray[np.int64] | None,
    *,
    store: str,
    workers: int,
    box_seconds: float,
    commit_seconds: float = COMMIT_SECONDS,
) -> Vec:
    """Boxes of a partition on each axis; see the module's docstring for the rule.

    Args:
        grid: The boxes of the run.
        occupied: Grid indices of the boxes that will be committed; None for all of them, or where
            they are not known.
        store: Where the store will be.
        workers: Local processes; on an object store at least a thousand workers are planned for.
        box_seconds: Time that a worker takes for a box.
        commit_seconds: For how long boxes gather to share a commit.
    """
    remote = objects.local_path(store) is None
    workers = max(workers, _REMOTE_WORKERS) if remote else workers
    needed = partitions_needed(workers, box_seconds, writes_a_second(store), commit_seconds)
    best = (1, 1, 1)
    for block in _ladder():
        fullest, partitions = _filled(grid, occupied, block)
        if fullest > COMMITS or partitions < needed:
            break
        best = block
        if partitions == 1 and min(block) >= _USUAL:
            break
    return best


def _ladder() -> list[Vec]:
    """Blocks from one box on, doubled along x, y and z in turn."""
    found, block = [], [1, 1, 1]
    while block[2] < _LARGEST:
        for axis in range(3):
            found.append(vec(block))
            block[axis] *= 2
    return [*found, vec(block)]


def _filled(grid: ChunkGrid, occupied: npt.NDArray[np.int64] | None, block: Vec) -> tuple[int, int]:
    """Occupied boxes of the fullest partition of this shape, and how many partitions have any."""
    if occupied is None:
        per_axis = [min(n, b) for n, b in zip(grid.counts, block, strict=True)]
        blocks = ChunkGrid(grid.lattice_domain, block)
        return math.prod(per_axis), blocks.size
    nx, ny, _ = grid.counts
    local = np.stack([occupied % nx, occupied // nx % ny, occupied // (nx * ny)], axis=1)
    coordinates = local + np.array(grid.first)
    _, counts = np.unique(coordinates // np.array(block), axis=0, return_counts=True)
    return (int(counts.max()), len(counts)) if len(counts) else (0, 1)
