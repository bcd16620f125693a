"""Coarser levels of arrays, and the steps by which a pyramid gets there.

Representation: arrays are XYZ. Voxel ``k`` of a level covers the frame voxels ``[k * f, (k + 1) *
f)`` on each axis, wherever an array begins, so levels of arrays that begin anywhere lie on one
lattice and fit together. A voxel at an edge is made of those voxels alone that there are: nothing
is padded, and nothing moves by half a voxel.
"""

import concurrent.futures
import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volumes.cells import CELL_LIMIT, mean_cells, mode_cells
from volumes.geometry import Vec, Vec3, vec

Method = Literal["mean", "mode", "sparse-mode"]
"""How a coarser voxel is made of finer ones.

``mean``: the mean; integers are rounded to the nearest, halves to the even one; floats are summed
as float64. ``mode``: the most frequent id, of equally frequent ones the smallest. ``sparse-mode``:
the same, where 0 counts only if there is nothing else, which keeps what is thin.
"""

# Voxels taken in at a time: few enough for a cache, enough that the time of calls does not count,
# of which a mode needs more.
_TILE_VOXELS = {"mean": 2**19, "mode": 2**20, "sparse-mode": 2**20}

# Where one axis is this much better than another, and no less, it is taken: sizes are rounded.
_ALIKE = 1 - 1e-9


def reduced(
    array: npt.NDArray[Any], start: Vec, factors: Vec, method: Method, *, threads: int = 1
) -> tuple[npt.NDArray[Any], Vec]:
    """The array at a coarser level, and the level voxel at which it starts.

    Args:
        array: XYZ voxels in any memory order; integers, or floats where the method is ``mean``.
        start: Frame voxel of the array's first voxel.
        factors: Voxels on each axis that make one, at least 1.
        method: How they make one.
        threads: Threads that share the work.

    Returns:
        The level, in a new array of the same type and memory order, that covers level voxels
        ``floor(start / f)`` to ``ceil(stop / f)``; and the first of them.

    Raises:
        ValueError: The array has not three axes, a factor is below 1, factors multiply to 2**31 or
            more, or the method is unknown or does not take the array's type.
    """
    _check(array, factors, method)
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    turned = array.transpose(order)
    runs = [_runs(start[axis], array.shape[axis], factors[axis]) for axis in order]
    level = np.empty([sum(r.cells for r in axis) for axis in runs], array.dtype)
    tiles = _tiles(runs, _TILE_VOXELS[method])
    if threads == 1:
        for tile in tiles:
            _reduce(turned, level, method, tile)
    else:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda tile: _reduce(turned, level, method, tile), tiles):
                pass
    back = sorted(range(3), key=order.__getitem__)
    return level.transpose(back), vec(a // f for a, f in zip(start, factors, strict=True))


def scratch_bytes(shape: Vec, itemsize: int, factors: Vec, method: Method) -> int:
    """The most memory that a thread of ``reduced`` takes besides the array and what it returns.

    Args:
        shape: Shape of the array.
        itemsize: Bytes of a voxel.
        factors: Voxels on each axis that make one.
        method: How they make one.
    """
    cell = math.prod(max(1, min(f, n)) for f, n in zip(factors, shape, strict=True))
    tile = min(max(_TILE_VOXELS[method], cell), math.prod(shape))
    # By voxel: a mean keeps sums along one axis and the next, up to three arrays of them by cell,
    # and halves of integers of 8 bytes; a mode what it gathers twice (once sorted), flags, and up
    # to four arrays of 8 bytes by cell.
    if method == "mean":
        each = 40 if itemsize == 8 else 5 if itemsize == 1 and cell <= 2**8 else 20
    else:
        each = 3 * itemsize + 18 + 32 // min(cell, 32)
    return tile * each + 2**16


@dataclasses.dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring cells of one length along an axis.

    Attributes:
        voxel: Where the first begins in the array.
        cell: Its place in the level's array.
        cells: How many there are.
        factor: How many voxels each has; fewer than asked at the array's ends.
    """

    voxel: int
    cell: int
    cells: int
    factor: int

    def split(self, most: int) -> Iterator["_Run"]:
        """The same cells in runs of at most ``most``."""
        for first in range(0, self.cells, most):
            yield _Run(
                self.voxel + first * self.factor,
                self.cell + first,
                min(most, self.cells - first),
                self.factor,
            )

    def voxels(self) -> slice:
        """The voxels of the cells."""
        return slice(self.voxel, self.voxel + self.cells * self.factor)

    def level(self) -> slice:
        """The cells in the level."""
        return slice(self.cell, self.cell + self.cells)


_Tile = tuple[_Run, _Run, _Run]


def _runs(start: int, length: int, factor: int) -> list[_Run]:
    """The cells along an axis: a first that begins before the array, whole ones, and a rest."""
    head = min(-start % factor, length)
    whole, tail = divmod(length - head, factor)
    runs = [_Run(0, 0, 1, head)] if head else []
    if whole:
        runs.append(_Run(head, len(runs), whole, factor))
    if tail:
        runs.append(_Run(length - tail, sum(r.cells for r in runs), 1, tail))
    return runs


def _tiles(runs: list[list[_Run]], most_voxels: int) -> Iterator[_Tile]:
    """The cells of all axes in pieces of so many voxels at most, or of one cell."""
    for first, second, third in itertools.product(*runs):
        room = most_voxels // (first.factor * second.factor * third.factor)
        most = [0, 0, 0]
        for axis, run in ((2, third), (1, second), (0, first)):
            most[axis] = max(1, min(run.cells, room))
            room //= most[axis]
        yield from itertools.product(
            first.split(most[0]), second.split(most[1]), third.split(most[2])
        )


def _reduce(array: npt.NDArray[Any], level: npt.NDArray[Any], method: Method, tile: _Tile) -> None:
    """Make the cells of a tile."""
    first, second, third = tile
    voxels = array[first.voxels(), second.voxels(), third.voxels()]
    out = level[first.level(), second.level(), third.level()]
    factors = (first.factor, second.factor, third.factor)
    if method == "mean":
        mean_cells(voxels, factors, out)
    else:
        mode_cells(voxels, factors, out, method == "sparse-mode")


def _check(array: npt.NDArray[Any], factors: Vec, method: Method) -> None:
    """Refuse what cannot be reduced."""
    if array.ndim != 3:
        raise ValueError(f"an array with the axes x, y, z is needed, got the shape {array.shape}")
    if min(factors) < 1 or math.prod(factors) >= CELL_LIMIT:
        raise ValueError(f"factors of at least 1 and below 2**31 in all are needed, got {factors}")
    if method not in _TILE_VOXELS:
        raise ValueError(f"a method of {', '.join(_TILE_VOXELS)} is needed, got {method!r}")
    if array.dtype.kind not in ("iuf" if method == "mean" else "iu"):
        takes = "integers and floats" if method == "mean" else "integers"
        raise ValueError(f"voxels of {array.dtype} have no {method}, which takes {takes}")


def ladder(
    shape: Vec,
    voxel_size_nm: Vec3,
    *,
    levels: int | None = None,
    chunk: Vec = (64, 64, 64),
) -> tuple[Vec, ...]:
    """Factors of each step, which bring voxels nearer to cubes and then keep them so.

    A step doubles the axis of the smallest voxel size, or the two or three axes of the smallest
    sizes: as many as leave the least ratio of the largest size to the smallest, and the most of
    those that are equally good. So 4 x 4 x 40 nm becomes 8 x 8 x 40, 16 x 16 x 40, 32 x 32 x 40,
    then 64 x 64 x 80; of two sizes the larger is doubled too where it is at most sqrt(2) times the
    smaller. The ratio never grows. An axis of one voxel has nothing to give: it is left alone and
    its size does not count.

    Args:
        shape: Voxels on each axis.
        voxel_size_nm: Voxel size in nm.
        levels: How many steps, or None for as many as it takes to fit the volume into one chunk.
            There are fewer where a single voxel is left before.
        chunk: Voxels of a chunk on each axis.

    Returns:
        Factors of 1 or 2 of each step, of which each has a 2.
    """
    made: list[Vec] = []
    extent, size = shape, voxel_size_nm
    while any(n > 1 for n in extent):
        fits = all(n <= c for n, c in zip(extent, chunk, strict=True))
        if fits and levels is None or levels is not None and len(made) >= levels:
            break
        step = _step(extent, size)
        made.append(step)
        extent = vec(-(-n // f) for n, f in zip(extent, step, strict=True))
        size = (size[0] * step[0], size[1] * step[1], size[2] * step[2])
    return tuple(made)


def _step(extent: Vec, size: Vec3) -> Vec:
    """The factors of one step."""
    axes = sorted((a for a in range(3) if extent[a] > 1), key=size.__getitem__)
    best, doubled = math.inf, axes
    for count in range(len(axes), 0, -1):
        sizes = [size[a] * (2 if a in axes[:count] else 1) for a in axes]
        ratio = max(sizes) / min(sizes)
        if ratio < best * _ALIKE:
            best, doubled = ratio, axes[:count]
    return vec(2 if a in doubled else 1 for a in range(3))
