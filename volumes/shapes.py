"""Shapes of the work of jobs that write volumes: which box is read and written at once.

A unit of work is a box of whole write chunks, so that no two workers write one object. Its shape
decides how often each chunk of the source is decoded and how much memory a worker takes. Nothing is
listed: units and chunks that meet are counted axis by axis.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError
from volumes.geometry import Vec, vec

TARGET_BYTES = 64 << 20
"""What a unit has, where the memory allows and it costs no reading: enough to keep storage busy."""

# An axis with more units than that is judged by its first ones, which repeat.
_LOOKED_AT = 100_000
# Shapes that read within a hundredth of the least are alike, so the size decides.
_ALIKE = 0.01


def decoded_along(extent: int, unit: int, piece: int, offset: int = 0) -> float:
    """Voxels decoded along an axis when every unit is read once, each in whole pieces.

    Args:
        extent: Voxels of the axis.
        unit: Voxels of a unit; units begin at 0.
        piece: Voxels of what is decoded at once.
        offset: A voxel at which a piece begins.

    Returns:
        Their number: exact for up to 100,000 units, and taken from the first ones for more.
    """
    units = -(-extent // unit)
    some = min(units, _LOOKED_AT)
    starts = np.arange(some, dtype=np.float64 if extent > 2**52 else np.int64) * unit
    stops = np.minimum(starts + unit, extent)
    lows = np.maximum((starts - offset) // piece * piece + offset, 0)
    highs = np.minimum(-((offset - stops) // piece) * piece + offset, extent)
    decoded = float((highs - lows).sum())
    return decoded * (extent / float(stops[-1]))


def times_read(shape: Vec, unit: Vec, piece: Vec, offset: Vec = (0, 0, 0)) -> float:
    """How often each voxel of a volume is decoded, on average, when every unit is read once."""
    axes = zip(shape, unit, piece, offset, strict=True)
    return math.prod(decoded_along(n, u, p, o) / n for n, u, p, o in axes)


def choose_unit(
    shape: Vec,
    write: Vec,
    piece: Vec,
    limit_voxels: int,
    target_voxels: int,
    offset: Vec = (0, 0, 0),
) -> Vec:
    """The unit that reads the source least often, within a limit.

    Args:
        shape: Voxels of the volume.
        write: Voxels of what is written at once; a unit is a multiple on each axis.
        piece: Voxels of what is decoded at once.
        limit_voxels: The most voxels that a unit may have.
        target_voxels: What it should have, among units that read alike.
        offset: A voxel at which a piece begins.

    Returns:
        Its shape; ``write`` where nothing larger is within the limit, ``write`` itself or not.
    """
    sides = [_sides(n, w, p) for n, w, p in zip(shape, write, piece, strict=True)]
    costs = [
        np.array([decoded_along(n, s, p, o) / n for s in axis])
        for n, p, o, axis in zip(shape, piece, offset, sides, strict=True)
    ]
    voxels = _product([np.array(axis, np.float64) for axis in sides])
    cost = _product(costs)
    fitting = voxels <= limit_voxels
    if not fitting.any():
        return write
    least = cost[fitting].min()
    fitting &= cost <= least * (1 + _ALIKE)
    distance = np.where(fitting, np.abs(np.log(voxels / target_voxels)), np.inf)
    best = np.unravel_index(int(distance.argmin()), distance.shape)
    return vec(axis[i] for axis, i in zip(sides, best, strict=True))


def refuse_memory(needed: int, budget: int, decoding: int, write: Vec) -> None:
    """Refuse a memory budget that does not hold one write chunk in work.

    Raises:
        RequestError: It does not; the message has the figures.
    """
    if needed > budget:
        raise RequestError(
            f"a memory budget of {budget / 1e6:,.0f} MB does not hold one shard of "
            f"{write} in work, which takes {needed / 1e6:,.0f} MB "
            f"({decoding / 1e6:,.0f} of them to decode the source); give --memory-mb "
            f"{math.ceil(needed / 1e6)} or more, or a smaller --shard"
        )


def _sides(extent: int, write: int, piece: int) -> list[int]:
    """Extents worth a try along an axis: multiples of the write chunk up to the whole axis."""
    most = -(-extent // write)
    common = math.lcm(write, piece) // write
    found = {most}
    for step in (1, common):
        many = step
        while many < most:
            found |= {many, min(most, many + many // 2 // step * step)}
            many *= 2
    return [write * m for m in sorted(found)]


def _product(axes: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """The outer product of three axes."""
    xs, ys, zs = axes
    return np.asarray(xs[:, None, None] * ys[None, :, None] * zs[None, None, :])
