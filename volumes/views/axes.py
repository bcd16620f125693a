"""Operations that give voxels other axes: other names, one axis as two, two as one.

====================  =============================================================================
operation             members
====================  =============================================================================
``transpose``         ``axes``: ``zyx`` for new x, y and z that are the old z, y and x
``label``             ``axes``: new names by old; ``voxel_size_nm`` where none is stated
``split``             ``axis``, ``into``: outer and inner name, ``inner_size``: extent of the inner
``merge``             ``axes``: outer and inner, ``into``: the name of what they become together
====================  =============================================================================

They are the reshapes that are exact on chunks: an outer and an inner axis, both from 0, stand for
the index ``outer * inner_size + inner``.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import tensorstore as ts

from volumes.errors import RequestError
from volumes.levels import SPATIAL
from volumes.views import members
from volumes.views.arrays import Array, Axis, Part, said
from volumes.views.members import Json, Members

_LAYERS = 4096
"""Into so many slices an axis is cut or of so many it is joined, at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Transpose:
    """Other axes as x, y and z."""

    op: ClassVar[str] = "transpose"
    axes: tuple[str, ...]

    @classmethod
    def read(cls, given: Members) -> "Transpose":
        """From its members."""
        axes = given.take("axes", members.names)
        if sorted(axes) != list(SPATIAL):
            raise RequestError(
                f"has axes {','.join(axes)}; x, y and z are needed, each once, in the order in "
                "which they become the new x, y and z"
            )
        return cls(axes)

    def to_json(self) -> Json:
        """Its members."""
        return {"axes": list(self.axes)}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array = arrays[0]
        new = {array.axis(old).name: name for old, name in zip(self.axes, SPATIAL, strict=True)}
        return array.with_axes(
            tuple(dataclasses.replace(a, name=new.get(a.name, a.name)) for a in array.axes)
        )

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        return (part,)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array; names are all that changes."""
        return stores[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
    """Other names of axes, and voxel sizes where nothing states one."""

    op: ClassVar[str] = "label"
    axes: tuple[tuple[str, str], ...]
    voxel_size_nm: tuple[tuple[str, float], ...]

    @classmethod
    def read(cls, given: Members) -> "Label":
        """From its members."""
        axes = given.maybe("axes", members.obj, {})
        named = tuple((k, members.text(v, f"axes, {k},")) for k, v in sorted(axes.items()))
        return cls(named, given.maybe("voxel_size_nm", members.lengths_by_axis, ()))

    def to_json(self) -> Json:
        """Its members."""
        sizes = {"voxel_size_nm": dict(self.voxel_size_nm)} if self.voxel_size_nm else {}
        return {"axes": dict(self.axes), **sizes}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array = arrays[0]
        new = {array.axis(old).name: name for old, name in self.axes}
        named = tuple(dataclasses.replace(a, name=new.get(a.name, a.name)) for a in array.axes)
        found = array.with_axes(named)
        for name, nm in self.voxel_size_nm:
            axis = found.axis(name)
            if axis.nm not in (None, nm):
                raise RequestError(
                    f"gives voxels of {nm:g} nm along {name}, and they have {axis.nm:g}; leave it "
                    "out, or correct the volume's metadata"
                )
            found = found.with_axis(dataclasses.replace(axis, nm=nm))
        return found

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        return (part,)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array; names are all that changes."""
        return stores[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """One axis as two, both from 0: index = outer * inner_size + inner."""

    op: ClassVar[str] = "split"
    axis: str
    into: tuple[str, ...]
    inner_size: int

    @classmethod
    def read(cls, given: Members) -> "Split":
        """From its members."""
        axis = given.take("axis", members.text)
        into = given.take("into", members.names)
        if len(into) != 2 or into[0] == into[1]:
            raise RequestError(f"has into {said(into)}; two names, outer and inner, are needed")
        return cls(axis, into, given.take("inner_size", members.positive))

    def to_json(self) -> Json:
        """Its members."""
        return {"axis": self.axis, "into": list(self.into), "inner_size": self.inner_size}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array, m = arrays[0], self.inner_size
        at = array.index(self.axis)
        axis = array.axes[at]
        k = axis.extent // m
        if k * m != axis.extent:
            raise RequestError(
                f"cuts {axis.name} with {axis.extent} indices into rows of {m}, which leaves "
                f"{axis.extent - k * m} over; give a size that divides it, or crop it before"
            )
        if min(k, m) > _LAYERS:
            raise RequestError(
                f"cuts {axis.name} into {k} x {m}; one of the two may be at most {_LAYERS:,}, as "
                "each of them is a slice of its own"
            )
        inner_chunk, outer_chunk = min(m, axis.chunk), 1
        if axis.chunk % m == 0 and (axis.start - axis.anchor) % axis.chunk == 0:
            outer_chunk = axis.chunk // m
        nm = axis.nm if self.into[1] in SPATIAL else None
        outer_nm = axis.nm * m if axis.nm is not None and self.into[0] in SPATIAL else None
        new = (
            Axis(self.into[0], 0, k, outer_chunk, 0, outer_nm),
            Axis(self.into[1], 0, m, inner_chunk, 0, nm),
        )
        return array.with_axes((*array.axes[:at], *new, *array.axes[at + 1 :]))

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of; between rows it may take more than it uses."""
        at = arrays[0].index(self.axis)
        axis, m = arrays[0].axes[at], self.inner_size
        (i, j), (a, b) = part[at], part[at + 1]
        ends = (axis.start + i * m + a, axis.start + (j - 1) * m + b)
        return ((*part[:at], ends, *part[at + 2 :]),)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array: a stack of slices, along the shorter one of the two axes."""
        store, m = stores[0], self.inner_size
        at = arrays[0].index(self.axis)
        axis = arrays[0].axes[at]
        k = axis.extent // m
        if k <= m:
            starts = range(axis.start, axis.stop, m)
            rows = [store[ts.d[at][a : a + m].translate_to[0]] for a in starts]
            return ts.stack(rows, axis=at)
        starts = range(axis.start, axis.start + m)
        columns = [store[ts.d[at][a : axis.stop : m].translate_to[0]] for a in starts]
        return ts.stack(columns, axis=at + 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Merge:
    """Two axes as one, from 0: index = outer * extent of inner + inner."""

    op: ClassVar[str] = "merge"
    axes: tuple[str, ...]
    into: str

    @classmethod
    def read(cls, given: Members) -> "Merge":
        """From its members."""
        axes = given.take("axes", members.names)
        if len(axes) != 2 or axes[0] == axes[1]:
            raise RequestError(f"has axes {said(axes)}; two names, outer and inner, are needed")
        return cls(axes, given.take("into", members.text))

    def to_json(self) -> Json:
        """Its members."""
        return {"axes": list(self.axes), "into": self.into}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        outer, inner = (arrays[0].axis(n) for n in self.axes)
        if outer.extent > _LAYERS:
            raise RequestError(
                f"joins {outer.extent:,} rows along {outer.name}, and at most {_LAYERS:,} can be "
                "joined, as each is a slice of its own; merge a part of it"
            )
        chunk = min(inner.chunk, inner.extent)
        if chunk == inner.extent:
            chunk *= min(outer.chunk, outer.extent)
        nm = inner.nm if self.into in SPATIAL else None
        axis = Axis(self.into, 0, outer.extent * inner.extent, chunk, 0, nm)
        return arrays[0].with_axes(
            tuple(axis if a == inner else a for a in arrays[0].axes if a != outer)
        )

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of; of several rows it takes the whole."""
        array = arrays[0]
        outer, inner = (array.axis(n) for n in self.axes)
        kept = dict(zip([a.name for a in array.axes if a != outer], part, strict=True))
        a, b = kept[inner.name]
        first, last = a // inner.extent, (b - 1) // inner.extent
        rows = {outer.name: (outer.start + first, outer.start + last + 1)}
        rows[inner.name] = (inner.start, inner.stop)
        if first == last:
            low = inner.start - first * inner.extent
            rows[inner.name] = (a + low, b + low)
        return (tuple((kept | rows)[n] for n in array.names),)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array: its rows, one behind the other."""
        store, array = stores[0], arrays[0]
        outer, inner = (array.axis(n) for n in self.axes)
        at, along = array.index(outer.name), array.index(inner.name)
        along -= at < along
        rows = []
        for i in range(outer.extent):
            row = store[ts.d[at][outer.start + i]]
            rows.append(row[ts.d[along].translate_to[i * inner.extent]])
        return ts.overlay(rows)
