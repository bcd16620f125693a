"""Operations that make one array of several; each is the first step of a view of several volumes.

====================  =============================================================================
operation             members
====================  =============================================================================
``stack``             ``axis``: new, or of extent 1 in each; ``start`` of its indices;
                      ``voxel_size_nm`` along it
``concat``            ``axis``: each begins where the one before ends; ``move``: true puts it there
``overlay``           later ones win; ``gaps``: ``refuse`` or ``zero``
====================  =============================================================================
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import tensorstore as ts

from volumes.errors import RequestError
from volumes.views import members
from volumes.views.arrays import Array, Axis, Part, extents, meet, said
from volumes.views.members import Json, Members

# Cells of the raster of all edges, by which gaps between boxes are found.
_CELLS = 50_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """Arrays of one domain, as indices of a further axis."""

    op: ClassVar[str] = "stack"
    axis: str
    start: int | None
    voxel_size_nm: float | None

    @classmethod
    def read(cls, given: Members) -> "Stack":
        """From its members."""
        return cls(
            given.take("axis", members.text),
            given.maybe("start", members.whole, None),
            given.maybe("voxel_size_nm", members.length, None),
        )

    def to_json(self) -> Json:
        """Its members."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of arrays."""
        first = arrays[0]
        flat = [self._flat(a) for a in arrays]
        _check_alike(flat)
        for i, other in enumerate(flat):
            if _ordered(other, flat[0]).part != flat[0].part:
                raise RequestError(
                    f"stacks {extents(flat[0])} and, as number {i + 1}, {extents(other)}; all must "
                    "have the same voxels: crop or translate them before"
                )
        old = first.axis(self.axis) if self.axis in first.names else None
        nm = self.voxel_size_nm or (None if old is None else old.nm)
        start = self.start if self.start is not None else 0 if old is None else old.start
        axis = Axis(self.axis, start, start + len(arrays), 1, start, nm)
        return flat[0].with_axes((*flat[0].axes, axis))

    def _flat(self, array: Array) -> Array:
        """An array without the axis."""
        if self.axis not in array.names:
            return array
        axis = array.axis(self.axis)
        if axis.extent != 1:
            raise RequestError(
                f"stacks along {self.axis}, along which a volume has {axis.start}:{axis.stop}; "
                "only sections, of extent 1, are stacked: use concat"
            )
        return array.with_axes(tuple(a for a in array.axes if a != axis))

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        result = self.result(arrays)
        own = dict(zip(result.names, part, strict=True))
        low, high = (i - result.axis(self.axis).start for i in own.pop(self.axis))
        return tuple(
            tuple(own.get(a.name, (a.start, a.stop)) for a in array.axes)
            if low <= i < high
            else None
            for i, array in enumerate(arrays)
        )

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        flat = []
        for store, array in zip(stores, arrays, strict=True):
            if self.axis in array.names:
                at = array.index(self.axis)
                store = store[ts.d[at][array.axes[at].start]]
            flat.append(store)
        flats = [self._flat(a) for a in arrays]
        stacked = ts.stack(_turned(flat, flats), axis=-1)
        return stacked[ts.d[-1].translate_to[self.result(arrays).axis(self.axis).start]]


@dataclasses.dataclass(frozen=True, slots=True)
class Concat:
    """Arrays one behind the other."""

    op: ClassVar[str] = "concat"
    axis: str
    move: bool

    @classmethod
    def read(cls, given: Members) -> "Concat":
        """From its members."""
        return cls(given.take("axis", members.text), given.maybe("move", members.flag, False))

    def to_json(self) -> Json:
        """Its members."""
        return {"axis": self.axis, "move": self.move}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of arrays."""
        _check_alike(arrays)
        first = arrays[0]
        placed = self._placed(arrays)
        for i, (array, axis) in enumerate(zip(arrays, placed, strict=True)):
            rest = [a for a in _ordered(array, first).axes if a.name != self.axis]
            ours = [a for a in first.axes if a.name != self.axis]
            if [(a.start, a.stop) for a in rest] != [(a.start, a.stop) for a in ours]:
                raise RequestError(
                    f"joins {extents(first)} and, as number {i + 1}, {extents(array)}; along all "
                    f"axes but {self.axis} they must have the same voxels: crop or translate them"
                )
            if i and axis.start != placed[i - 1].stop:
                raise RequestError(
                    f"joins a volume that ends at {self.axis} {placed[i - 1].stop} and, as number "
                    f'{i + 1}, one that begins at {axis.start}; translate it, or give "move": true'
                )
        return first.with_axis(dataclasses.replace(placed[0], stop=placed[-1].stop))

    def _placed(self, arrays: Sequence[Array]) -> list[Axis]:
        """The axis of each array, where it comes to lie."""
        placed = [arrays[0].axis(self.axis)]
        for array in arrays[1:]:
            axis = array.axis(self.axis)
            placed.append(axis.at(placed[-1].stop) if self.move else axis)
        return placed

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        own = dict(zip(arrays[0].names, part, strict=True))
        found: list[Part | None] = []
        for array, placed in zip(arrays, self._placed(arrays), strict=True):
            low, high = own[self.axis]
            back = array.axis(self.axis).start - placed.start
            ends = (max(low, placed.start) + back, min(high, placed.stop) + back)
            inside = ends[0] < ends[1]
            ask = own | {self.axis: ends}
            found.append(tuple(ask[n] for n in array.names) if inside else None)
        return tuple(found)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        placed = []
        for store, array, axis in zip(stores, arrays, self._placed(arrays), strict=True):
            placed.append(store[ts.d[array.index(self.axis)].translate_to[axis.start]])
        return ts.overlay(_turned(placed, arrays))


@dataclasses.dataclass(frozen=True, slots=True)
class Overlay:
    """Arrays over one another; where several have a voxel, the last one's counts."""

    op: ClassVar[str] = "overlay"
    gaps: str

    @classmethod
    def read(cls, given: Members) -> "Overlay":
        """From its members."""
        return cls(given.maybe("gaps", members.one_of("refuse", "zero"), "refuse"))

    def to_json(self) -> Json:
        """Its members."""
        return {"gaps": self.gaps}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of arrays."""
        _check_alike(arrays)
        first = arrays[0]
        parts = [_ordered(a, first).part for a in arrays]
        hull = tuple(
            (min(p[i][0] for p in parts), max(p[i][1] for p in parts))
            for i in range(len(first.axes))
        )
        axes = tuple(
            dataclasses.replace(a, start=start, stop=stop)
            for a, (start, stop) in zip(first.axes, hull, strict=True)
        )
        found = first.with_axes(axes)
        if self.gaps == "refuse" and not covers(parts, hull):
            raise RequestError(
                f"covers {extents(found)} with gaps between the {len(arrays)} volumes, and where "
                'none has a voxel there is nothing to read; give "gaps": "zero", or a base that '
                "covers all"
            )
        return found

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of; of what is hidden too, as it may come to light."""
        own = dict(zip(arrays[0].names, part, strict=True))
        return tuple(meet(tuple(own[n] for n in array.names), array.part) for array in arrays)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        layers = _turned(stores, arrays)
        if self.gaps == "zero":
            part = self.result(arrays).part
            everywhere = ts.IndexTransform(
                input_inclusive_min=[a for a, _ in part],
                input_exclusive_max=[b for _, b in part],
                input_labels=list(arrays[0].names),
                output=[],
            )
            zero = ts.array(np.zeros((), ts.dtype(arrays[0].dtype).numpy_dtype))
            layers = [zero[everywhere], *layers]
        return ts.overlay(layers)


def covers(parts: Sequence[Part], hull: Part) -> bool:
    """Whether every index of a hull lies in one of the parts.

    Raises:
        RequestError: There are too many parts to tell.
    """
    if hull in parts:
        return True
    edges = [np.unique([e for p in parts for e in p[i]]) for i in range(len(hull))]
    shape = tuple(len(e) - 1 for e in edges)
    if math.prod(shape) > _CELLS:
        raise RequestError(
            f"has {len(parts)} volumes, too many to tell whether they leave gaps; give "
            '"gaps": "zero", or a base that covers all'
        )
    covered = np.zeros(shape, np.bool_)
    for part in parts:
        ends = zip(edges, part, strict=True)
        covered[tuple(slice(*np.searchsorted(e, p)) for e, p in ends)] = True
    return bool(covered.all())


def _check_alike(arrays: Sequence[Array]) -> None:
    """Refuse arrays that are not of one type, kind, voxel size and set of axes."""
    first = arrays[0]
    for i, other in enumerate(arrays):
        if sorted(other.names) != sorted(first.names):
            raise RequestError(
                f"joins an array with {said(first.names)} and, as number {i + 1}, one with "
                f"{said(other.names)}; all need the same axes: label or channel makes them so"
            )
        for what, ours, theirs in (
            ("voxels", first.dtype, other.dtype),
            ("a kind", first.kind, other.kind),
        ):
            if ours != theirs:
                raise RequestError(
                    f"joins {what} of {ours} and, as number {i + 1}, of {theirs}; all must be of "
                    "one: cast makes them so, and kind states it"
                )
        for axis in first.axes:
            nm = other.axis(axis.name).nm
            if (nm is None) != (axis.nm is None) or not math.isclose(
                nm or 1, axis.nm or 1, rel_tol=1e-9
            ):
                raise RequestError(
                    f"joins voxels of {axis.nm} nm along {axis.name} and, as number {i + 1}, of "
                    f"{nm} nm; all must lie on one lattice"
                )


def _ordered(array: Array, like: Array) -> Array:
    """The array with its axes in the order of another one's."""
    return array.with_axes(tuple(array.axis(n) for n in like.names))


def _turned(stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> list[ts.TensorStore]:
    """The arrays with their axes in the order of the first one's."""
    names = arrays[0].names
    return [s.transpose([a.index(n) for n in names]) for s, a in zip(stores, arrays, strict=True)]
