"""Operations that pick voxels, move them or repeat them, and change none.

====================  =============================================================================
operation             members
====================  =============================================================================
``crop``              ``start``, ``stop``: frame voxels; an axis that is left out stays whole
``stride``            ``step``: every n-th voxel, those whose index is a multiple of n
``translate``         ``by``: voxels to move by, or ``to``: where the first voxel comes to lie
``channel``           ``index``: which one of an ``axis`` (``channel``), which is then gone
``broadcast``         ``axis``, ``size``: an axis of extent 1, or a new one, repeated; ``start`` of
                      its indices; ``voxel_size_nm`` along it
====================  =============================================================================

A value by axis is ``[x, y, z]`` or an object such as ``{"z": 2}``.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import tensorstore as ts

from volumes.errors import RequestError
from volumes.views import members
from volumes.views.arrays import NO_CHUNK, Array, Axis, Part, extents, index_of, said
from volumes.views.members import ByAxis, Json, Members


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    """A part of an array; every voxel keeps its index."""

    op: ClassVar[str] = "crop"
    start: ByAxis
    stop: ByAxis

    @classmethod
    def read(cls, given: Members) -> "Crop":
        """From its members."""
        start = given.maybe("start", members.by_axis, ())
        return cls(start, given.maybe("stop", members.by_axis, ()))

    def to_json(self) -> Json:
        """Its members."""
        return {"start": dict(self.start), "stop": dict(self.stop)}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array = found = arrays[0]
        for name, start in self.start:
            found = found.with_axis(dataclasses.replace(found.axis(name), start=start))
        for name, stop in self.stop:
            found = found.with_axis(dataclasses.replace(found.axis(name), stop=stop))
        for old, new in zip(array.axes, found.axes, strict=True):
            if not old.start <= new.start < new.stop <= old.stop:
                raise RequestError(
                    f"gives {new.name} {new.start}:{new.stop}, and the volume has "
                    f"{extents(array)}; give a part of it with at least one voxel"
                )
        return found

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        return (part,)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        return stores[0][index_of(self.result(arrays).part)]


@dataclasses.dataclass(frozen=True, slots=True)
class Stride:
    """Every n-th voxel: voxel i is voxel i * n of the array, so that nothing lies beside it."""

    op: ClassVar[str] = "stride"
    step: ByAxis

    @classmethod
    def read(cls, given: Members) -> "Stride":
        """From its members."""
        return cls(given.take("step", members.positive_by_axis))

    def to_json(self) -> Json:
        """Its members."""
        return {"step": dict(self.step)}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        found = arrays[0]
        for name, n in self.step:
            axis = found.axis(name)
            start, stop = -(-axis.start // n), (axis.stop - 1) // n + 1
            if start >= stop:
                raise RequestError(
                    f"takes the multiples of {n} along {name}, and there is none in "
                    f"{axis.start}:{axis.stop}; translate the volume, or give a smaller step"
                )
            found = found.with_axis(axis.coarser(n, start, stop))
        return found

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        steps = dict(self.step)
        by = [steps.get(n, 1) for n in arrays[0].names]
        return (tuple((a * n, (b - 1) * n + 1) for (a, b), n in zip(part, by, strict=True)),)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        steps = dict(self.step)
        index = []
        for axis in arrays[0].axes:
            n = steps.get(axis.name, 1)
            index.append(slice(-(-axis.start // n) * n, axis.stop, n))
        return stores[0][tuple(index)]


@dataclasses.dataclass(frozen=True, slots=True)
class Translate:
    """The same voxels at other indices."""

    op: ClassVar[str] = "translate"
    by: ByAxis
    to: ByAxis

    @classmethod
    def read(cls, given: Members) -> "Translate":
        """From its members."""
        by = given.maybe("by", members.by_axis, ())
        to = given.maybe("to", members.by_axis, ())
        twice = tuple(n for n, _ in by if n in dict(to))
        if twice or not (by or to):
            raise RequestError(
                f"gives both by and to for {said(twice)}; give one of them"
                if twice
                else "gives neither by nor to, so nothing tells where to; give one of them"
            )
        return cls(by, to)

    def to_json(self) -> Json:
        """Its members."""
        both = {"by": dict(self.by), "to": dict(self.to)}
        return {k: v for k, v in both.items() if v}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        found = arrays[0]
        for name, by in self.by:
            found = found.with_axis(found.axis(name).moved(by))
        for name, to in self.to:
            found = found.with_axis(found.axis(name).at(to))
        return found

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        moved = zip(part, self.result(arrays).axes, arrays[0].axes, strict=True)
        return (tuple((a - m.start + o.start, b - m.start + o.start) for (a, b), m, o in moved),)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        return stores[0][ts.d[:].translate_to[[a.start for a in self.result(arrays).axes]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Channel:
    """One index of an axis, which is then gone."""

    op: ClassVar[str] = "channel"
    index: int
    axis: str

    @classmethod
    def read(cls, given: Members) -> "Channel":
        """From its members."""
        index = given.take("index", members.whole)
        return cls(index, given.maybe("axis", members.text, "channel"))

    def to_json(self) -> Json:
        """Its members."""
        return {"index": self.index, "axis": self.axis}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        axis = arrays[0].axis(self.axis)
        if not axis.start <= self.index < axis.stop:
            raise RequestError(
                f"has index {self.index}, and {axis.name} has {axis.start}:{axis.stop}; give one "
                "of these"
            )
        return arrays[0].with_axes(tuple(a for a in arrays[0].axes if a != axis))

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        at = arrays[0].index(self.axis)
        return ((*part[:at], (self.index, self.index + 1), *part[at:]),)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        return stores[0][ts.d[arrays[0].index(self.axis)][self.index]]


@dataclasses.dataclass(frozen=True, slots=True)
class Broadcast:
    """The one index of an axis, repeated; the axis may be new."""

    op: ClassVar[str] = "broadcast"
    axis: str
    size: int
    start: int | None
    voxel_size_nm: float | None

    @classmethod
    def read(cls, given: Members) -> "Broadcast":
        """From its members."""
        return cls(
            given.take("axis", members.text),
            given.take("size", members.positive),
            given.maybe("start", members.whole, None),
            given.maybe("voxel_size_nm", members.length, None),
        )

    def to_json(self) -> Json:
        """Its members."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array = arrays[0]
        old = array.axis(self.axis) if self.axis in array.names else None
        if old is not None and old.extent != 1:
            raise RequestError(
                f"repeats {self.axis}, which has {old.start}:{old.stop}; only an axis of extent 1, "
                "or a new one, is repeated: crop it to the index that you mean"
            )
        nm = self.voxel_size_nm if old is None or old.nm is None else old.nm
        if self.voxel_size_nm not in (None, nm):
            raise RequestError(
                f"gives voxels of {self.voxel_size_nm:g} nm along {self.axis}, and they have "
                f"{nm:g}; leave it out"
            )
        start = self.start if self.start is not None else 0 if old is None else old.start
        chunk = min(self.size, NO_CHUNK)
        axis = Axis(self.axis, start, start + self.size, chunk, start, nm)
        return array.with_axes((*array.axes, axis)) if old is None else array.with_axis(axis)

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        if self.axis not in arrays[0].names:
            return (part[:-1],)
        at = arrays[0].index(self.axis)
        axis = arrays[0].axes[at]
        return ((*part[:at], (axis.start, axis.stop), *part[at + 1 :]),)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        store, array = stores[0], arrays[0]
        at = len(array.axes)
        if self.axis in array.names:
            at = array.index(self.axis)
            store = store[ts.d[at][array.axes[at].start]]
        axis = self.result(arrays).axis(self.axis)
        return store[ts.d[at][ts.newaxis]][ts.d[at][axis.start : axis.stop]]
