"""What an array of a view is, told from metadata: named axes, extents, type and where chunks begin.

An array inside a view has axes of any number and order, each with a name. A *part* of it is a pair
``(start, stop)`` an axis, in the order of the axes. Indices of x, y and z are frame voxels.
"""

import dataclasses
import math

import tensorstore as ts

from volumes.errors import RequestError
from volumes.geometry import Box, Vec3, vec
from volumes.levels import SPATIAL
from volumes.spec import Kind

Part = tuple[tuple[int, int], ...]
"""A box of an array of any rank: ``(start, stop)`` by axis."""

NO_CHUNK = 64
"""Extent of what is read at once where nothing tells a better one."""

# TensorStore's indices end a little above.
_FAR = 2**62 - 2
# A chunk that covers whole chunks of a finer array is not made longer than this.
_LONGEST = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an array.

    Attributes:
        name: ``x``, ``y``, ``z``, or any other word.
        start: First index.
        stop: End of the indices, exclusive.
        chunk: Extent of what is best read at once.
        anchor: An index at which such a chunk begins.
        nm: Voxel size; None where nothing states one.
    """

    name: str
    start: int
    stop: int
    chunk: int
    anchor: int
    nm: float | None = None

    @property
    def extent(self) -> int:
        """Number of indices."""
        return self.stop - self.start

    def moved(self, by: int) -> "Axis":
        """The axis with every index moved."""
        return dataclasses.replace(
            self, start=self.start + by, stop=self.stop + by, anchor=self.anchor + by
        )

    def at(self, start: int) -> "Axis":
        """The axis with its first index at ``start``."""
        return self.moved(start - self.start)

    def coarser(self, factor: int, start: int, stop: int) -> "Axis":
        """The axis of voxels ``factor`` times as long, whose chunks cover whole chunks of this."""
        chunk = math.lcm(self.chunk, factor) // factor
        if chunk > max(_LONGEST, self.chunk):
            chunk = max(1, self.chunk // factor)
        nm = None if self.nm is None else self.nm * factor
        return Axis(self.name, start, stop, chunk, self.anchor // factor, nm)


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """An array of a view.

    Attributes:
        axes: The axes, in the order in which TensorStore has them.
        dtype: NumPy name of the type.
        kind: What the voxels are.
    """

    axes: tuple[Axis, ...]
    dtype: str
    kind: Kind

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(a.name for a in self.axes)

    @property
    def part(self) -> Part:
        """All of it."""
        return tuple((a.start, a.stop) for a in self.axes)

    @property
    def itemsize(self) -> int:
        """Bytes a voxel."""
        return int(ts.dtype(self.dtype).numpy_dtype.itemsize)

    @property
    def domain(self) -> ts.IndexDomain:
        """All of it, as TensorStore has it."""
        return ts.IndexDomain(
            inclusive_min=[a.start for a in self.axes],
            exclusive_max=[a.stop for a in self.axes],
            labels=list(self.names),
        )

    def index(self, name: str) -> int:
        """Which axis has the name.

        Raises:
            RequestError: None has.
        """
        if name not in self.names:
            raise RequestError(f"there is no axis {name!r}, but {said(self.names)}; name one")
        return self.names.index(name)

    def axis(self, name: str) -> Axis:
        """The axis of that name."""
        return self.axes[self.index(name)]

    def with_axis(self, axis: Axis, name: str | None = None) -> "Array":
        """The array with an axis in the place of the one of ``name``, or of its own name."""
        at = self.index(name or axis.name)
        return self.with_axes((*self.axes[:at], axis, *self.axes[at + 1 :]))

    def with_axes(self, axes: tuple[Axis, ...]) -> "Array":
        """The array with other axes."""
        return dataclasses.replace(self, axes=axes)


def said(names: tuple[str, ...]) -> str:
    """Names of axes, for messages."""
    return ", ".join(names) if names else "no axis at all"


def extents(array: Array) -> str:
    """The domain by axis, for messages."""
    return ", ".join(f"{a.name} {a.start}:{a.stop}" for a in array.axes)


def checked(array: Array) -> Array:
    """The array, if it can be one.

    Raises:
        RequestError: It has no voxel, two axes of one name, or more voxels than have an index.
    """
    if len(set(array.names)) < len(array.names):
        raise RequestError(
            f"the result has the axes {said(array.names)}; each name may stand for one axis only: "
            "rename one before"
        )
    if any(a.extent < 1 for a in array.axes):
        raise RequestError(f"the result has no voxel: {extents(array)}")
    if any(max(abs(a.start), abs(a.stop)) > _FAR for a in array.axes):
        raise RequestError(
            f"the result reaches over {extents(array)}, and indices end at 2**62; move or crop it"
        )
    return array


def part_of(array: Array, box: Box) -> Part:
    """A frame box as a part of a framed array, whose axes besides x, y and z have extent 1."""
    own = dict(zip(SPATIAL, zip(box.start, box.stop, strict=True), strict=True))
    return tuple(own.get(a.name, (a.start, a.stop)) for a in array.axes)


def box_of(array: Array, part: Part) -> Box:
    """The frame box of a part."""
    own = dict(zip(array.names, part, strict=True))
    ends = [own[n] for n in SPATIAL]
    return Box(vec(a for a, _ in ends), vec(b for _, b in ends))


def index_of(part: Part) -> tuple[slice, ...]:
    """A part as an index."""
    return tuple(slice(a, b) for a, b in part)


def meet(first: Part, second: Part) -> Part | None:
    """What two parts share, None where they share nothing."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(first, second, strict=True))
    return both if all(a < b for a, b in both) else None


def voxel_size(array: Array) -> Vec3:
    """Voxel size, XYZ.

    Raises:
        RequestError: It is not stated on each of x, y and z.
    """
    sizes = [array.axis(n).nm for n in SPATIAL]
    unstated = tuple(n for n, s in zip(SPATIAL, sizes, strict=True) if s is None)
    if unstated:
        raise RequestError(
            f"there is no voxel size along {said(unstated)}, and a volume needs one on each axis: "
            'add {"op": "label", "voxel_size_nm": {"' + unstated[0] + '": ...}}'
        )
    x, y, z = (float(s or 0) for s in sizes)
    return (x, y, z)
