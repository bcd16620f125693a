"""The ways in which formats name the keys of chunks and shards.

Each scheme goes from boxes to keys and back, by metadata alone; a grid of any size costs the same.
``volumes.keys`` finds a volume's scheme.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from volumes.geometry import Box, vec
from volumes.sharding import Sharding

_NAME = re.compile(r"_".join([r"(-?[0-9]+)-(-?[0-9]+)"] * 3))
_HASHED = (
    "its shards hold chunks in the order of a hash ({}), so a shard's name tells no box of voxels"
)

_Extents = Sequence[tuple[int, int]]
_Json = dict[str, Any]


class Keys(Protocol):
    """How the keys of a volume are named."""

    @property
    def prefix(self) -> str:
        """What every key begins with; empty where metadata may lie beside chunks."""

    @property
    def count(self) -> int | None:
        """How many keys the volume has when all is stored; None where only a listing tells."""

    @property
    def boxless(self) -> str:
        """Why keys have no box; empty where they have."""

    def under(self, box: Box) -> Iterator[str]:
        """The keys that hold the voxels of a frame box, each once, in an order of their own."""

    def every(self) -> Iterator[str]:
        """All keys, in that order."""

    def box(self, key: str) -> Box | None:
        """The frame box of a key, clipped to the domain; None where it is no chunk's."""

    def holds(self, key: str) -> bool:
        """Whether it is a key of a chunk or shard."""

    def values(self, key: str) -> int | None:
        """How many values are stored under a key when all of it is, channels included.

        None where it is no chunk's, or where ``boxless``.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """Where the stored dimensions of an array lie in the frame.

    Attributes:
        domain: The frame voxels that the array has.
        axes: The frame axis of each stored dimension; None for one that is no axis.
        offsets: What is added to a frame voxel to give the stored index.
    """

    domain: Box
    axes: tuple[int | None, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, document: _Json, domain: Box) -> "Frame":
        """From an array's JSON spec."""
        as_they_are = [{"input_dimension": axis} for axis in range(3)]  # which JSON leaves out
        outputs = document["transform"].get("output", as_they_are)
        return cls(
            domain,
            tuple(o.get("input_dimension") for o in outputs),
            tuple(o.get("offset", 0) for o in outputs),
        )

    def stored(self, part: Box) -> list[tuple[int, int]]:
        """A part of the domain along each stored dimension, as (start, stop)."""
        extents = []
        for axis, offset in zip(self.axes, self.offsets, strict=True):
            inside = (0, 1) if axis is None else (part.start[axis], part.stop[axis])
            extents.append((inside[0] + offset, inside[1] + offset))
        return extents

    def box(self, extents: _Extents) -> Box | None:
        """The part of the domain that extents of the first stored dimensions have, if any."""
        start, stop = list(self.domain.start), list(self.domain.stop)
        # Not strict: the dimensions that a Zarr 2 field has of its own come after those of the key.
        for axis, offset, (a, b) in zip(self.axes, self.offsets, extents, strict=False):
            if axis is not None:
                start[axis], stop[axis] = a - offset, b - offset
        found = Box(vec(start), vec(stop)).intersection(self.domain)
        return found if found.size else None


@dataclasses.dataclass(frozen=True, slots=True)
class JoinedKeys:
    """Keys that are the chunk's index in stored order: zarr2, zarr3 and n5."""

    frame: Frame
    prefix: str
    separator: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    boxless: str = ""

    @property
    def count(self) -> int | None:
        """How many keys there are when all is stored."""
        return math.prod(self.grid)

    def under(self, box: Box) -> Iterator[str]:
        """The keys that hold the voxels of a frame box."""
        part = self.frame.domain.intersection(box)
        if part.size == 0:
            return
        extents = self.frame.stored(part)
        cells = [range(a // c, -(-b // c)) for (a, b), c in zip(extents, self.chunk, strict=False)]
        for cell in itertools.product(*cells):
            yield self.prefix + self.separator.join(map(str, cell))

    def every(self) -> Iterator[str]:
        """All keys."""
        return self.under(self.frame.domain)

    def box(self, key: str) -> Box | None:
        """The frame box of a key; None where it is no chunk's."""
        cell = self.cell(key)
        return None if cell is None else self.frame.box(self._extents(cell))

    def holds(self, key: str) -> bool:
        """Whether it is a key of a chunk or shard."""
        return self.cell(key) is not None

    def values(self, key: str) -> int | None:
        """How many values are stored under a key when all of it is."""
        cell = self.cell(key)
        if cell is None:
            return None
        sides = zip(cell, self.chunk, self.shape, strict=True)
        return math.prod([min(c, n - i * c) for i, c, n in sides])

    @property
    def grid(self) -> list[int]:
        """Chunks, or shards, along each stored dimension."""
        return [-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True)]

    def _extents(self, cell: Sequence[int]) -> list[tuple[int, int]]:
        sides = zip(cell, self.chunk, self.shape, strict=True)
        return [(i * c, min((i + 1) * c, n)) for i, c, n in sides]

    def cell(self, key: str) -> tuple[int, ...] | None:
        """Index of a chunk, or shard, in stored order; None for the key of anything else."""
        parts = key[len(self.prefix) :].split(self.separator)
        if not key.startswith(self.prefix) or len(parts) != len(self.chunk):
            return None
        cell = []
        for part, c, n in zip(parts, self.chunk, self.shape, strict=True):
            if not (part.isascii() and part.isdecimal()) or (part[0] == "0" and part != "0"):
                return None
            cell.append(int(part))
            if cell[-1] * c >= n:
                return None
        return tuple(cell)


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """A precomputed scale: its chunks, in the format's own voxels, XYZ."""

    frame: Frame
    prefix: str
    first: tuple[int, ...]
    size: tuple[int, ...]
    chunk: tuple[int, ...]
    channels: int

    @property
    def grid(self) -> list[int]:
        """Chunks on each axis."""
        return [-(-n // c) for n, c in zip(self.size, self.chunk, strict=True)]

    def cells(self, box: Box) -> list[range]:
        """The chunks under a part of the domain, by axis."""
        extents = self.frame.stored(box)[:3]
        sides = zip(extents, self.first, self.chunk, strict=True)
        return [range((a - o) // c, -((o - b) // c)) for (a, b), o, c in sides]

    def extents(self, cells: _Extents) -> list[tuple[int, int]]:
        """The voxels of a block of chunks, given as (first, last) by axis."""
        sides = zip(cells, self.first, self.size, self.chunk, strict=True)
        return [(o + a * c, o + min((b + 1) * c, n)) for (a, b), o, n, c in sides]


@dataclasses.dataclass(frozen=True, slots=True)
class NamedKeys:
    """Keys that are the chunk's bounds: precomputed, not sharded."""

    scale: Scale
    boxless: str = ""

    @property
    def prefix(self) -> str:
        """What every key begins with."""
        return self.scale.prefix

    @property
    def count(self) -> int | None:
        """How many keys there are when all is stored."""
        return math.prod(self.scale.grid)

    def under(self, box: Box) -> Iterator[str]:
        """The keys that hold the voxels of a frame box."""
        part = self.scale.frame.domain.intersection(box)
        if part.size:
            for cell in itertools.product(*self.scale.cells(part)):
                yield self._key(cell)

    def every(self) -> Iterator[str]:
        """All keys."""
        return self.under(self.scale.frame.domain)

    def box(self, key: str) -> Box | None:
        """The frame box of a key; None where it is no chunk's."""
        extents = self._extents(key)
        return None if extents is None else self.scale.frame.box(extents)

    def holds(self, key: str) -> bool:
        """Whether it is a key of a chunk or shard."""
        return self._extents(key) is not None

    def values(self, key: str) -> int | None:
        """How many values are stored under a key when all of it is."""
        extents = self._extents(key)
        if extents is None:
            return None
        return math.prod(b - a for a, b in extents) * self.scale.channels

    def _key(self, cell: Sequence[int]) -> str:
        extents = self.scale.extents([(i, i) for i in cell])
        return self.prefix + "_".join(f"{a}-{b}" for a, b in extents)

    def _extents(self, key: str) -> list[tuple[int, int]] | None:
        match = _NAME.fullmatch(key, len(self.prefix)) if key.startswith(self.prefix) else None
        if match is None:
            return None
        starts = [int(a) for a in match.groups()[::2]]
        sides = zip(starts, self.scale.first, self.scale.chunk, strict=True)
        cell = [(a - o) // c for a, o, c in sides]
        inside = all(0 <= i < n for i, n in zip(cell, self.scale.grid, strict=True))
        if not inside or self._key(cell) != key:
            return None
        return self.scale.extents([(i, i) for i in cell])


@dataclasses.dataclass(frozen=True, slots=True)
class ShardedKeys:
    """Keys that are the names of shard files: precomputed, sharded."""

    scale: Scale
    sharding: Sharding

    @property
    def prefix(self) -> str:
        """What every key begins with."""
        return self.scale.prefix

    @property
    def count(self) -> int | None:
        """How many keys there are when all is stored."""
        return self.sharding.count

    @property
    def boxless(self) -> str:
        """Why keys have no box; empty where they have."""
        return "" if self.sharding.ordered else _HASHED.format(self.sharding.hash)

    def under(self, box: Box) -> Iterator[str]:
        """The keys that hold the voxels of a frame box."""
        part = self.scale.frame.domain.intersection(box)
        if part.size:
            for name in self.sharding.names(self.scale.cells(part)):
                yield self.prefix + name

    def every(self) -> Iterator[str]:
        """All keys."""
        if not self.sharding.ordered:
            return self.under(self.scale.frame.domain)
        numbers = range(self.sharding.numbers)
        return (self.prefix + self.sharding.name(n) for n in numbers if self.sharding.cells(n))

    def box(self, key: str) -> Box | None:
        """The frame box of a key; None where it is no chunk's."""
        number = self.number(key)
        cells = None
        if number is not None and self.sharding.ordered:
            cells = self.sharding.cells(number)
        if cells is None:
            return None
        return self.scale.frame.box(self.scale.extents([(a.first, a.last) for a in cells]))

    def holds(self, key: str) -> bool:
        """Whether it is a key of a chunk or shard."""
        number = self.number(key)
        if number is None or not self.sharding.ordered:
            return number is not None
        return self.sharding.cells(number) is not None

    def values(self, key: str) -> int | None:
        """How many values are stored under a key when all of it is."""
        number = self.number(key)
        if number is None or not self.sharding.ordered:
            return None
        cells = self.sharding.cells(number)
        if cells is None:
            return None
        sides = zip(cells, self.scale.chunk, self.scale.size, self.scale.grid, strict=True)
        # The last chunk of an axis may stick out of the volume.
        voxels = (s.size * c - (n * c - size if s.holds(n - 1) else 0) for s, c, size, n in sides)
        return math.prod(voxels) * self.scale.channels

    def number(self, key: str) -> int | None:
        """Number of a shard; None for the key of anything else."""
        if not key.startswith(self.prefix):
            return None
        return self.sharding.number(key[len(self.prefix) :])
