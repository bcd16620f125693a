"""Boxes, lattices and the voxel a position falls in.

Representation: every coordinate is XYZ. A voxel coordinate is a Python ``int`` (or an int64 array
of shape ``[n, 3]``) in the *frame*: voxel 0 lies at 0 nm, and a volume's origin says where its
first voxel lies in the frame. A box is half-open, ``[start, stop)``. Nothing here lists cells: a
lattice over 10**30 voxels costs what a lattice over ten costs.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Vec = tuple[int, int, int]
"""A voxel coordinate or a shape, XYZ."""

Vec3 = tuple[float, float, float]
"""A length or a position per axis in nm, XYZ."""

# A position this far from the frame's origin lies outside every domain that can be stored.
_FAR_VX = 2**62


def vec(values: Any) -> Vec:
    """Three integers as a ``Vec``; whatever is not integral is a ``ValueError``."""
    given = tuple(values)
    out = tuple(int(v) for v in given)
    if len(out) != 3 or any(a != b for a, b in zip(out, given, strict=True)):
        raise ValueError(f"three integers (x, y, z) are needed, got {given}")
    return (out[0], out[1], out[2])


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Box:
    """An axis-aligned half-open box ``[start, stop)`` in voxels of one scale, XYZ.

    A box with ``stop <= start`` on any axis is not made: the constructor refuses ``stop < start``,
    and an empty box has ``size`` 0.
    """

    start: Vec
    stop: Vec

    def __post_init__(self) -> None:
        """Refuse a box that runs backwards."""
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(
                f"a box needs start <= stop on each axis, got {self.start}, {self.stop}"
            )

    @classmethod
    def of(cls, start: Vec, shape: Vec) -> "Box":
        """The box of ``shape`` voxels that begins at ``start``."""
        return cls(start, vec(a + n for a, n in zip(start, shape, strict=True)))

    @property
    def shape(self) -> Vec:
        """Voxels on each axis."""
        return vec(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Voxels in the box, an exact integer of any length."""
        return math.prod(self.shape)

    def contains(self, voxel: Vec) -> bool:
        """Whether the voxel lies in the box."""
        return all(a <= v < b for a, v, b in zip(self.start, voxel, self.stop, strict=True))

    def encloses(self, other: "Box") -> bool:
        """Whether every voxel of ``other`` lies in this box."""
        return self.intersection(other).shape == other.shape

    def intersection(self, other: "Box") -> "Box":
        """What both boxes share; a box of size 0 where they share nothing."""
        start = vec(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = vec(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, vec(max(a, b) for a, b in zip(start, stop, strict=True)))

    def hull(self, other: "Box") -> "Box":
        """The smallest box that holds both."""
        return Box(
            vec(min(a, b) for a, b in zip(self.start, other.start, strict=True)),
            vec(max(a, b) for a, b in zip(self.stop, other.stop, strict=True)),
        )

    def grown(self, before: Vec, after: Vec | None = None) -> "Box":
        """The box with ``before`` voxels added below and ``after`` (same, if left out) above."""
        after = before if after is None else after
        return Box(
            vec(a - h for a, h in zip(self.start, before, strict=True)),
            vec(b + h for b, h in zip(self.stop, after, strict=True)),
        )

    def translated(self, offset: Vec) -> "Box":
        """The box moved by ``offset`` voxels."""
        return Box(
            vec(a + d for a, d in zip(self.start, offset, strict=True)),
            vec(b + d for b, d in zip(self.stop, offset, strict=True)),
        )

    def slices(self, within: "Box") -> tuple[slice, slice, slice]:
        """Index of this box in an array that holds ``within``."""
        first, second, third = (
            slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, within.start, strict=True)
        )
        return (first, second, third)

    def to_json(self) -> dict[str, list[int]]:
        """The box as JSON."""
        return {"start": list(self.start), "stop": list(self.stop)}

    @classmethod
    def from_json(cls, document: dict[str, list[int]]) -> "Box":
        """The box that ``to_json`` wrote."""
        return cls(vec(document["start"]), vec(document["stop"]))

    def __str__(self) -> str:
        """``[x:X, y:Y, z:Z)``, for messages."""
        inner = ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))
        return f"[{inner})"


@dataclasses.dataclass(frozen=True, slots=True)
class ChunkGrid:
    """A lattice of chunks over a domain: a bijection between ``range(size)`` and disjoint boxes.

    Cell ``(i, j, k)`` of the lattice is ``[anchor + (i, j, k) * chunk, anchor + (i+1, j+1, k+1) *
    chunk)``; the grid holds the cells that meet the domain, each clipped to it. Cells are therefore
    disjoint, cover the domain, and keep their lattice coordinates when the domain grows. The linear
    index runs fastest along x.

    Attributes:
        domain: The box to be covered.
        chunk: Shape of an unclipped cell, at least 1 on each axis.
        anchor: A voxel at which a cell begins.
    """

    domain: Box
    chunk: Vec
    anchor: Vec = (0, 0, 0)

    def __post_init__(self) -> None:
        """Refuse a chunk without extent."""
        if min(self.chunk) < 1:
            raise ValueError(f"a chunk needs at least one voxel on each axis, got {self.chunk}")

    @property
    def first(self) -> Vec:
        """Lattice coordinate of the first cell."""
        return vec(
            (a - o) // c for a, o, c in zip(self.domain.start, self.anchor, self.chunk, strict=True)
        )

    @property
    def counts(self) -> Vec:
        """Cells on each axis; 0 on every axis where the domain is empty."""
        if self.domain.size == 0:
            return (0, 0, 0)
        return vec(
            -((o - b) // c) - f
            for b, o, c, f in zip(
                self.domain.stop, self.anchor, self.chunk, self.first, strict=True
            )
        )

    @property
    def size(self) -> int:
        """Number of cells."""
        return math.prod(self.counts)

    @property
    def lattice_domain(self) -> Box:
        """The box of lattice coordinates that the grid's cells have."""
        return Box.of(self.first, self.counts)

    def coordinate(self, index: int) -> Vec:
        """Lattice coordinate of cell ``index``."""
        if not 0 <= index < self.size:
            raise IndexError(f"cell {index} is not in range(0, {self.size})")
        nx, ny, _ = self.counts
        return vec(
            f + i
            for f, i in zip(
                self.first, (index % nx, index // nx % ny, index // (nx * ny)), strict=True
            )
        )

    def index(self, coordinate: Vec) -> int:
        """Linear index of the cell at a lattice coordinate."""
        i, j, k = (c - f for c, f in zip(coordinate, self.first, strict=True))
        nx, ny, nz = self.counts
        if not (0 <= i < nx and 0 <= j < ny and 0 <= k < nz):
            raise IndexError(f"lattice coordinate {coordinate} is not in the grid of {self.domain}")
        return i + nx * (j + ny * k)

    def cell(self, coordinate: Vec) -> Box:
        """The unclipped cell at a lattice coordinate."""
        return Box.of(
            vec(o + i * c for o, i, c in zip(self.anchor, coordinate, self.chunk, strict=True)),
            self.chunk,
        )

    def box(self, index: int) -> Box:
        """Cell ``index``, clipped to the domain."""
        return self.cell(self.coordinate(index)).intersection(self.domain)

    def name(self, index: int) -> str:
        """Name of cell ``index``: its lattice coordinate as ``I_J_K``."""
        return "_".join(str(i) for i in self.coordinate(index))

    def index_at(self, voxel: Vec) -> int:
        """Linear index of the cell that holds a voxel of the domain."""
        if not self.domain.contains(voxel):
            raise IndexError(f"voxel {voxel} is outside the domain {self.domain}")
        return self.index(
            vec((v - o) // c for v, o, c in zip(voxel, self.anchor, self.chunk, strict=True))
        )

    def indices_at(self, voxels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Linear indices (int64 ``[n]``) of the cells that hold voxels (int64 ``[n, 3]``).

        Every voxel must lie in the domain, and the grid must have fewer than 2**63 cells.
        """
        if self.size >= 2**63:
            raise OverflowError(f"a grid of {self.size} cells has no 64-bit index")
        cells = (voxels - np.array(self.anchor)) // np.array(self.chunk) - np.array(self.first)
        nx, ny, _ = self.counts
        return np.asarray(cells[:, 0] + nx * (cells[:, 1] + ny * cells[:, 2]), dtype=np.int64)

    def meeting(self, box: Box) -> Iterator[int]:
        """Indices, ascending, of the cells that meet ``box``."""
        part = ChunkGrid(self.domain.intersection(box), self.chunk, self.anchor)
        for i in range(part.size):
            yield self.index(part.coordinate(i))

    def count_meeting(self, box: Box) -> int:
        """Number of cells that meet ``box``, without listing them."""
        return ChunkGrid(self.domain.intersection(box), self.chunk, self.anchor).size

    def to_json(self) -> dict[str, Any]:
        """The grid as JSON."""
        return {
            "domain": self.domain.to_json(),
            "chunk": list(self.chunk),
            "anchor": list(self.anchor),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "ChunkGrid":
        """The grid that ``to_json`` wrote."""
        return cls(
            Box.from_json(document["domain"]), vec(document["chunk"]), vec(document["anchor"])
        )


def same_voxel_size(first: Vec3, second: Vec3) -> bool:
    """Whether two voxel sizes are equal but for the rounding of units."""
    return all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(first, second, strict=True))


def voxels_at(position_nm: npt.NDArray[np.float64], voxel_size_nm: Vec3) -> npt.NDArray[np.int64]:
    """The voxel of each position: the one rule that decides box, crop and ``outside``.

    ``q = position / voxel size; r = rint(q); r if |q - r| < 1/64 else floor(q)``, per axis, in
    float64. A position that is a voxel's own coordinate, give or take a rounding, is that voxel;
    any other is the voxel it lies in.

    Args:
        position_nm: float64 ``[n, 3]``, XYZ in nm, in the frame. NaN is not allowed; an infinite
            or very far position gives a voxel that no domain holds.
        voxel_size_nm: Voxel size in nm, XYZ.

    Returns:
        int64 ``[n, 3]``, XYZ.
    """
    with np.errstate(over="ignore"):
        q = np.asarray(position_nm, dtype=np.float64) / np.array(voxel_size_nm, dtype=np.float64)
    q = np.clip(q, -float(_FAR_VX), float(_FAR_VX))
    r = np.rint(q)
    return np.where(np.abs(q - r) < 1 / 64, r, np.floor(q)).astype(np.int64)
