"""The levels of a pyramid, and which of them are made in one pass over their source.

A unit of a pass is whole write chunks of every level made in it. With ``chunk * F`` voxels a side,
``F`` being the factor of the pass's last level, that level has one chunk a side in a unit and the
finer ones several, which make a shard. So a pass makes as many levels as the memory holds such a
unit, and decodes each chunk of its source once.
"""

import dataclasses
import math
from collections.abc import Sequence

from volumes.geometry import Vec, Vec3, vec
from volumes.writing import VolumeLayout
from volumes.writing.morton import legal_shards

_CHUNKS_A_SHARD = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """Levels that are made in one pass.

    Attributes:
        layouts: What is written, finest first; the first may be the source's own level.
        factors: Source voxels that one voxel of each has, XYZ.
    """

    layouts: tuple[VolumeLayout, ...]
    factors: tuple[Vec, ...]


def coarser(layout: VolumeLayout, factor: Vec) -> VolumeLayout:
    """The layout of a level whose voxels are each a box of ``factor`` voxels.

    Its shards, where the finer level has some, are of one chunk.

    Its voxel ``k`` covers voxels ``[k * factor, (k + 1) * factor)`` of the frame, whatever the
    origin, so nothing drifts.
    """
    start = [a // f for a, f in zip(layout.domain.start, factor, strict=True)]
    stop = [-(-b // f) for b, f in zip(layout.domain.stop, factor, strict=True)]
    sizes = [s * f for s, f in zip(layout.voxel_size_nm, factor, strict=True)]
    size: Vec3 = (sizes[0], sizes[1], sizes[2])
    return dataclasses.replace(
        layout,
        shape=vec(b - a for a, b in zip(start, stop, strict=True)),
        origin_vx=vec(start),
        voxel_size_nm=size,
        shard=None if layout.shard is None else layout.chunk,
    )


def passes(
    base: VolumeLayout, steps: Sequence[Vec], limit_voxels: int, *, copied: bool
) -> list[Pass]:
    """Levels in passes, each as many as the memory holds a unit of; at least one.

    Args:
        base: The level there is; levels have shards where it has, whatever their shape.
        steps: For each level to make, how many voxels of the one before make one of its own.
        limit_voxels: The most voxels of a pass's source that a unit may have.
        copied: Whether the first pass writes the base's own level too.
    """
    made: list[Pass] = []
    source, left = base, list(steps)
    while left:
        many = _many(source.chunk, left, limit_voxels)
        factors = [vec(_product(left[: k + 1], axis) for axis in range(3)) for k in range(many)]
        layouts = [coarser(source, f) for f in factors]
        if copied and not made:
            factors, layouts = [(1, 1, 1), *factors], [source, *layouts]
        if base.shard is not None:
            layouts = [_sharded(x, f, factors[-1]) for x, f in zip(layouts, factors, strict=True)]
        made.append(Pass(tuple(layouts), tuple(factors)))
        source, left = coarser(source, factors[-1]), left[many:]
    return made


def _many(chunk: Vec, steps: Sequence[Vec], limit_voxels: int) -> int:
    """How many of the next levels fit into one pass."""
    many = 1
    while many < len(steps):
        unit = [c * _product(steps[: many + 1], axis) for axis, c in enumerate(chunk)]
        if math.prod(unit) > limit_voxels:
            break
        many += 1
    return many


def _product(steps: Sequence[Vec], axis: int) -> int:
    return math.prod(step[axis] for step in steps)


def _sharded(layout: VolumeLayout, factor: Vec, last: Vec) -> VolumeLayout:
    """The layout with the largest shard, of at most four chunks a side, that tiles a unit."""
    sides = [b // a for a, b in zip(factor, last, strict=True)]  # chunks of a unit at this level
    if layout.format == "precomputed":
        fitting = [
            shard
            for shard in legal_shards(layout.shape, layout.chunk)
            if all(
                n % (s // c) == 0 and s // c <= _CHUNKS_A_SHARD
                for s, c, n in zip(shard, layout.chunk, sides, strict=True)
            )
        ]
        return dataclasses.replace(layout, shard=fitting[-1])
    chunks = [max(d for d in range(1, _CHUNKS_A_SHARD + 1) if n % d == 0) for n in sides]
    shard = vec(c * k for c, k in zip(layout.chunk, chunks, strict=True))
    return dataclasses.replace(layout, shard=shard)
