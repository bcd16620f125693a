"""Blocks of voxels made one voxel each: exact means, and the most frequent id.

Representation: a tile is an array of three axes, of ``n * f`` voxels on each, of which cell ``k``
is ``[k * f, (k + 1) * f)``; what is made of it has ``n``. A tile is small enough for the cache, so
everything here works on whole arrays and keeps a few of them. The axes have any order; both
functions run fastest where the last one is contiguous in memory.
"""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.geometry import Vec

Array = npt.NDArray[Any]

# A cell of this many voxels or more is refused: the sums of its halves would leave 64 bits.
CELL_LIMIT = 2**31

# Cells of more voxels are so few in a tile that each is counted by itself.
_LONG = 1024

_LOW_BITS = 32


def mean_cells(tile: Array, factors: Vec, out: Array) -> None:
    """Write the mean of each cell to ``out``.

    Integers: the exact mean, rounded to the nearest, halves to the even one. Floats: the mean of
    float64 sums, rounded to their type.

    Args:
        tile: Integers or floats, ``[n * f]`` by axis.
        factors: Voxels of a cell by axis.
        out: Array of the tile's type, ``[n]`` by axis.
    """
    count = math.prod(factors)
    dtype = tile.dtype
    if dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = _sums(tile, factors, np.dtype(np.float64)) / count
    elif dtype.itemsize == 8:
        out[...] = _long_mean(tile, factors, count)
    else:
        np.copyto(out, _rounded(_sums(tile, factors, sum_type(dtype, count)), count), "unsafe")


def sum_type(dtype: np.dtype[Any], count: int) -> np.dtype[Any]:
    """The narrowest integers of the same kind that hold ``count`` values and half of ``count``."""
    bits = next(b for b in (16, 32, 64) if b > 8 * dtype.itemsize and count <= 1 << (b // 2))
    return np.dtype(f"{dtype.kind}{bits // 8}")


def _sums(tile: Array, factors: Vec, dtype: np.dtype[Any]) -> Array:
    """The sum of each cell, in a wider type: the outer axes first, whose rows are contiguous."""
    sums = tile
    for axis, factor in enumerate(factors):
        if factor > 1:
            sums = _along(sums, axis, factor, dtype)
    return sums.astype(dtype) if sums is tile or sums.dtype != dtype else sums


def _along(values: Array, axis: int, factor: int, dtype: np.dtype[Any]) -> Array:
    """The sums of each ``factor`` values along an axis."""
    parts = [values[(slice(None),) * axis + (slice(i, None, factor),)] for i in range(factor)]
    sums: Array = np.add(parts[0], parts[1], dtype=dtype)
    for part in parts[2:]:
        np.add(sums, part, out=sums, casting="unsafe")
    return sums


def _rounded(sums: Array, count: int) -> Array:
    """The sums divided by ``count``, halves to even; the sums are overwritten."""
    if count == 1:
        return sums
    if count % 2:
        sums += count // 2
        sums //= count
        return sums
    if count & (count - 1) == 0:
        shift = count.bit_length() - 1
        parity = sums >> shift
        parity &= 1
        sums += parity
        sums += count // 2 - 1
        sums >>= shift
        return sums
    sums += count // 2
    means = sums // count
    means -= (means * count == sums) & (means & 1 == 1)
    return means


def _long_mean(tile: Array, factors: Vec, count: int) -> Array:
    """The exact mean of integers of 64 bits: the upper and the lower halves are summed apart."""
    if count == 1:
        return tile
    unsigned = np.dtype(np.uint64)
    upper = _sums(tile >> _LOW_BITS, factors, tile.dtype)
    lower = _sums(tile.view(unsigned) & (2**_LOW_BITS - 1), factors, unsigned)
    means = upper // count
    rest = ((upper - means * count).astype(unsigned) << _LOW_BITS) + lower
    quotient = rest // count
    rest -= quotient * count
    quotient += (rest * 2 > count) | ((rest * 2 == count) & (quotient & 1 == 1))
    means <<= _LOW_BITS
    means += quotient.view(tile.dtype)
    return means


def mode_cells(tile: Array, factors: Vec, out: Array, sparse: bool) -> None:
    """Write the most frequent value of each cell to ``out``; of equally frequent ones the smallest.

    Most cells of a segmentation hold one id alone: they are found by comparing, and copied. The
    values of the others are gathered and counted.

    Args:
        tile: Integers, ``[n * f]`` by axis.
        factors: Voxels of a cell by axis.
        out: Array of the tile's type, ``[n]`` by axis.
        sparse: Whether 0 counts only where a cell holds nothing else.
    """
    if tile.strides[2] != tile.itemsize or min(tile.strides) < tile.itemsize:
        tile = np.ascontiguousarray(tile)
    corners = tile[:: factors[0], :: factors[1], :: factors[2]]
    np.copyto(out, corners)
    mixed = _mixed(tile, factors, corners)
    index = np.flatnonzero(mixed)
    if index.size and math.prod(factors) > _LONG:
        split = [n for pair in zip(out.shape, factors, strict=True) for n in pair]
        cells = tile.reshape(split).transpose(0, 2, 4, 1, 3, 5)
        out[mixed] = [_most_frequent_of(cells[tuple(at)], sparse) for at in np.argwhere(mixed)]
    elif index.size:
        out[mixed] = _most_frequent(_gathered(tile, factors, index), sparse)


def _mixed(tile: Array, factors: Vec, corners: Array) -> npt.NDArray[np.bool_]:
    """Whether each cell holds more than one value."""
    rows = tile[:: factors[0], :: factors[1]]
    differ: npt.NDArray[np.bool_] | None = None
    for i, j in itertools.product(range(factors[0]), range(factors[1])):
        if i or j:
            one = tile[i :: factors[0], j :: factors[1]] != rows
            differ = one if differ is None else np.logical_or(differ, one, out=differ)
    mixed = np.zeros(corners.shape, np.bool_) if differ is None else _any(differ, factors[2])
    for k in range(1, factors[2]):
        mixed |= rows[..., k :: factors[2]] != corners
    return mixed


def _any(flags: npt.NDArray[np.bool_], factor: int) -> npt.NDArray[np.bool_]:
    """Whether any of each ``factor`` flags along the last axis is set."""
    if factor == 1:
        return flags
    if factor in (2, 4, 8):
        together: Array = flags.view(f"u{factor}")
        return together.astype(np.bool_)
    found: npt.NDArray[np.bool_] = flags[..., ::factor].copy()
    for k in range(1, factor):
        found |= flags[..., k::factor]
    return found


def _gathered(tile: Array, factors: Vec, index: npt.NDArray[np.intp]) -> Array:
    """The values ``[voxels of a cell, cells]`` of the cells at flat positions."""
    strides = [s // tile.itemsize for s in tile.strides]
    span = 1 + sum((n - 1) * s for n, s in zip(tile.shape, strides, strict=True))
    flat = np.lib.stride_tricks.as_strided(tile, (span,), (tile.itemsize,), writeable=False)
    cells = tuple(n // f for n, f in zip(tile.shape, factors, strict=True))
    where = np.zeros(index.shape, np.intp)
    for at, stride, factor in zip(np.unravel_index(index, cells), strides, factors, strict=True):
        where += at * (stride * factor)
    values = np.empty((math.prod(factors), index.size), tile.dtype)
    voxels = itertools.product(*(range(f) for f in factors))
    for row, voxel in zip(values, voxels, strict=True):
        offset = sum(v * s for v, s in zip(voxel, strides, strict=True))
        np.take(flat[offset:], where, out=row, mode="clip")
    return values


def _most_frequent(values: Array, sparse: bool) -> Array:
    """The most frequent of each column's values, which are not all equal.

    Nearly all such columns hold two values: the lowest and the highest.
    """
    count = len(values)
    low: Array = np.minimum.reduce(values)
    high: Array = np.maximum.reduce(values)
    lows, highs = _occurrences(values, low), _occurrences(values, high)
    take_low = lows >= highs
    if sparse:
        take_low = ((low != 0) & take_low) | (high == 0)
    found = high
    np.copyto(found, low, where=take_low)
    more = np.flatnonzero(lows + highs != count)
    if more.size:
        found[more] = _longest_run(np.sort(values[:, more], axis=0), sparse)
    return found


def _most_frequent_of(cell: Array, sparse: bool) -> Any:
    """The most frequent of a cell's values, which are not all equal."""
    ordered = np.sort(cell, axis=None)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    lengths = np.diff(starts, append=ordered.size)
    if sparse:
        lengths[ordered[starts] == 0] = 0
    return ordered[starts[lengths.argmax()]]


def _occurrences(values: Array, wanted: Array) -> npt.NDArray[Any]:
    """How often each column holds its wanted value."""
    times = np.zeros(wanted.shape, np.min_scalar_type(len(values)))
    for row in values:
        times += row == wanted
    return times


def _longest_run(ordered: Array, sparse: bool) -> Array:
    """The value of each sorted column's longest run, the first of equally long ones."""
    count = len(ordered)
    # Length and place in one number, so that the greatest is the longest, and of those the first.
    dtype = np.min_scalar_type(count * count + count)
    run = np.full(ordered.shape[1], count, dtype)
    best = run + dtype.type(count - 1)
    if sparse:
        best *= ordered[0] != 0
    for place in range(1, count):
        run *= ordered[place - 1] == ordered[place]
        run += count
        key = run + dtype.type(count - 1 - place)
        if sparse:
            key *= ordered[place] != 0
        np.maximum(best, key, out=best)
    places = (count - 1 - best % count).astype(np.intp)
    return np.asarray(np.take_along_axis(ordered, places[np.newaxis], axis=0)[0])
