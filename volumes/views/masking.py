"""Voxels kept or blanked by another volume, also of coarser or finer voxels.

====================  =============================================================================
operation             members
====================  =============================================================================
``mask``              ``by``: a volume; kept where it is not 0, or one of ``ids``; ``invert``: where
                      it is 0, or none of them
====================  =============================================================================
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes.errors import RequestError
from volumes.levels import SPATIAL
from volumes.views import members
from volumes.views.arrays import Array, Axis, Part, meet
from volumes.views.computing import Voxels, away, computed, read
from volumes.views.members import Json, Members

_NEAR = 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class Mask:
    """Voxels that another volume keeps; all others are 0.

    A voxel is kept by the voxel of the other volume in which its centre lies; where that has none,
    it is not.
    """

    op: ClassVar[str] = "mask"
    ids: tuple[int, ...]
    invert: bool

    @classmethod
    def read(cls, given: Members) -> "Mask":
        """From its members besides the volume."""
        ids = given.maybe("ids", members.ids, ())
        return cls(ids, given.maybe("invert", members.flag, False))

    def to_json(self) -> Json:
        """Its members."""
        ids = {"ids": [str(i) for i in self.ids]} if self.ids else {}
        return {**ids, "invert": self.invert}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array, by = arrays
        for axis in by.axes:
            _ratio(array.axis(axis.name), axis)
        if self.ids and np.dtype(by.dtype).kind not in "iu":
            raise RequestError(f"looks for ids in a volume of {by.dtype}; ids are integers")
        return array

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        array, by = arrays
        own = dict(zip(array.names, part, strict=True))
        ends = []
        for axis in by.axes:
            first, last = _under(np.array([own[axis.name][0], own[axis.name][1] - 1]), array, axis)
            ends.append((int(first), int(last) + 1))
        return (part, meet(tuple(ends), by.part))

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        return computed(arrays[0], _Masked(self, tuple(stores), tuple(arrays)))

    def keeps(self, by: Voxels) -> npt.NDArray[np.bool_]:
        """Where a mask keeps voxels."""
        kept = np.isin(by, np.array(self.ids, np.uint64).astype(by.dtype)) if self.ids else by != 0
        return ~kept if self.invert else kept


@dataclasses.dataclass(frozen=True, eq=False)
class _Masked:
    mask: Mask
    stores: tuple[ts.TensorStore, ...]
    arrays: tuple[Array, ...]

    async def voxels(self, part: Part) -> Voxels:
        """The voxels of a part, those that are not kept being 0."""
        _, under = self.mask.needs(part, self.arrays)
        if under is None:
            return np.zeros([b - a for a, b in part], self.arrays[0].dtype)
        found, by = await asyncio.gather(read(self.stores[0], part), read(self.stores[1], under))
        return await away(self._masked, found, part, by, under)

    def _masked(self, found: Voxels, part: Part, by: Voxels, under: Part) -> Voxels:
        array, other = self.arrays
        kept: Any = self.mask.keeps(by)
        for at, axis in enumerate(other.axes):
            low, high = part[array.index(axis.name)]
            if under[at] == (low, high) and _ratio(array.axis(axis.name), axis) == (1, 1):
                continue
            rows = _under(np.arange(low, high), array, axis) - under[at][0]
            inside = (rows >= 0) & (rows < by.shape[at])
            kept = np.take(kept, np.where(inside, rows, 0), at)
            kept &= inside.reshape([-1 if i == at else 1 for i in range(len(other.axes))])
        turned = kept.transpose([other.index(n) for n in array.names if n in other.names])
        shape = [
            n if a in other.names else 1 for n, a in zip(found.shape, array.names, strict=True)
        ]
        return np.where(turned.reshape(shape), found, np.zeros((), found.dtype))


def _under(indices: npt.NDArray[np.int64], array: Array, axis: Axis) -> npt.NDArray[np.int64]:
    """The indices of a mask's axis in whose voxels the centres of an array's voxels lie."""
    up, down = _ratio(array.axis(axis.name), axis)
    return np.asarray((indices * up + up // 2) // down, np.int64)


def _ratio(ours: Axis, mask: Axis) -> tuple[int, int]:
    """By what an index is multiplied, then divided, to be a mask's.

    Raises:
        RequestError: The voxel sizes have no whole ratio.
    """
    if ours.nm is None or mask.nm is None:
        if ours.name in SPATIAL and (ours.nm is None) != (mask.nm is None):
            raise RequestError(
                f"has voxels of {ours.nm} nm along {ours.name} and a mask of {mask.nm} nm; both "
                "need a voxel size: label states it"
            )
        return (1, 1)
    coarse, fine = mask.nm / ours.nm, ours.nm / mask.nm
    if coarse >= 1 - _NEAR and abs(coarse - round(coarse)) < _NEAR * coarse:
        return (1, round(coarse))
    if abs(fine - round(fine)) < _NEAR * fine:
        return (round(fine), 1)
    raise RequestError(
        f"has voxels of {ours.nm:g} nm along {ours.name} and a mask of {mask.nm:g} nm; one must be "
        "a whole multiple of the other: downsample or stride one of them"
    )
