"""The sample volume while it is drawn: its random streams, its voxels in nm, who holds each.

Arrays over voxels are XYZ; points are rows ``[n, 3]`` in nm.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.geometry import Vec, Vec3

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(slots=True, eq=False)
class Canvas:
    """The volume while it is drawn.

    Attributes:
        shape: Voxels, XYZ.
        voxel_size_nm: Voxel size in nm, XYZ.
        seed: Seed of every random stream.
        axes: Coordinates in nm of the voxels along each axis, XYZ; float32.
        owner: int16, XYZ: index of the neurite that holds a voxel, -1 for none. Changed in place.
    """

    shape: Vec
    voxel_size_nm: Vec3
    seed: int
    axes: tuple[F32, F32, F32]
    owner: npt.NDArray[np.int16]

    def rng(self, stage: str) -> np.random.Generator:
        """The stream of one stage."""
        key = int.from_bytes(stage.encode(), "little")
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, key])))

    def window(self, centre: F64, reach: float) -> tuple[slice, slice, slice]:
        """The voxels within ``reach`` nm of a point on each axis; may be empty."""
        first, second, third = (
            slice(max(0, math.ceil((c - reach) / s)), max(0, min(n, int((c + reach) // s) + 1)))
            for c, s, n in zip(centre, self.voxel_size_nm, self.shape, strict=True)
        )
        return first, second, third

    def square_distance(self, centre: F64, window: tuple[slice, slice, slice]) -> F32:
        """Squared distance in nm2 of each voxel of a window to a point."""
        x, y, z = (
            (axis[part] - np.float32(c)) ** 2
            for axis, part, c in zip(self.axes, window, centre, strict=True)
        )
        out: F32 = (x[:, None] + y[None, :])[:, :, None] + z
        return out


def claim(
    canvas: Canvas,
    cost: F32,
    holder: npt.NDArray[np.signedinteger[Any]],
    number: int,
    point: F64,
    reach: float,
    scale: float,
    rough: F32 | None = None,
) -> None:
    """Make ``number`` the holder of the voxels around a point for which it is cheapest so far.

    Args:
        canvas: The volume.
        cost: Least cost of each voxel so far; changed.
        holder: Who has it; changed.
        number: Who asks.
        point: Where, nm ``[3]``.
        reach: How far it can matter, nm.
        scale: Cost of a squared distance of 1 nm2.
        rough: What is added to the cost of each voxel.
    """
    window = canvas.window(point, reach)
    if any(part.start >= part.stop for part in window):
        return
    asked = canvas.square_distance(point, window)
    asked *= np.float32(scale)
    if rough is not None:
        asked += rough[window]
    best = cost[window]
    np.copyto(holder[window], holder.dtype.type(number), where=asked < best)
    np.minimum(best, asked, out=best)


def random_field(canvas: Canvas, stage: str, cell_nm: float) -> F32:
    """A smooth random field about 0, XYZ: a quadratic B-spline over uniform values at knots."""
    shape, size = canvas.shape, canvas.voxel_size_nm
    knots = [int(n * s / cell_nm) + 4 for n, s in zip(shape, size, strict=True)]
    out = canvas.rng(stage).uniform(-1, 1, knots).astype(np.float32)
    for axis in range(3):
        at = np.arange(shape[axis]) * (size[axis] / cell_nm)
        low = np.floor(at).astype(np.int64)
        t = (at - low).astype(np.float32)
        t = t.reshape([-1 if a == axis else 1 for a in range(3)])
        weights = (0.5 * (1 - t) ** 2, 0.5 + t * (1 - t), 0.5 * t * t)
        total = weights[0] * np.take(out, low, axis=axis)
        for step in (1, 2):
            total += weights[step] * np.take(out, low + step, axis=axis)
        out = total
    return np.asarray(out, dtype=np.float32)
