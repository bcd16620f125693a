"""Grey values stretched: by one window, by windows that follow the section, or by CLAHE.

====================  =============================================================================
``method``            members of ``contrast``
====================  =============================================================================
``window``            ``low``, ``high``: the grey values that become 0 and 255
``percentile``        ``low``, ``high``: percentiles; ``cell``, ``plane``
``clahe``             ``clip``: the most of a cell's voxels that one grey value may count for;
                      ``cell``, ``plane``; of uint8 alone
====================  =============================================================================

The latter two look at the voxels of *cells*, ``cell`` a side, of a lattice on the sections' plane
that begins at voxel 0 of the frame; between the centres of four cells what they give is weighted
linearly. A cell is always taken whole, as far as the volume has it. So a voxel comes out the same
however the boxes are cut that are read, and there is no seam between cells.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes.errors import RequestError
from volumes.views import members
from volumes.views.arrays import Array, Axis, Part, said
from volumes.views.computing import EachVoxel, Voxels, away, computed, read
from volumes.views.members import Json, Members, refused

_Floats = npt.NDArray[np.float64]

_GREYS = 256
_TOP = 255.0
_CELL = 64
# Cells along a side of what is read at once, so that those around it are few.
_CELLS_AT_ONCE = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Contrast:
    """Grey values stretched to uint8.

    Attributes:
        method: ``window``, ``percentile`` or ``clahe``.
        low: Grey value or percentile that becomes 0.
        high: Grey value or percentile that becomes 255.
        clip: The most of a cell's voxels that one grey value may count for.
        cell: Extent of a cell along both axes of the plane.
        plane: The two axes of a section.
    """

    op: ClassVar[str] = "contrast"
    method: str
    low: float
    high: float
    clip: float
    cell: int
    plane: tuple[str, ...]

    @classmethod
    def read(cls, given: Members) -> "Contrast":
        """From its members."""
        word = members.one_of("window", "percentile", "clahe")
        method = given.maybe("method", word, "window")
        low = high = clip = 0.0
        cell = 0
        plane: tuple[str, ...] = ()
        if method != "clahe":
            low = given.take("low", members.number)
            high = given.take("high", members.number)
            if not low < high:
                raise RequestError(f"has low {low:g} and high {high:g}; low must be below high")
        if method == "percentile" and not 0 <= low < high <= 100:
            raise RequestError(f"has percentiles {low:g} and {high:g}; they lie from 0 to 100")
        if method == "clahe":
            clip = given.maybe("clip", members.number, 0.01)
            if not 0 < clip <= 1:
                raise refused(clip, "clip", "a share of the voxels above 0, up to 1,")
        if method != "window":
            cell = given.maybe("cell", members.positive, _CELL)
            plane = given.maybe("plane", members.names, ("x", "y"))
            if len(set(plane)) != 2:
                raise RequestError(f"has plane {said(plane)}; two axes are needed")
        return cls(method, low, high, clip, cell, plane)

    def to_json(self) -> Json:
        """Its members."""
        match self.method:
            case "window":
                return {"method": "window", "low": self.low, "high": self.high}
            case "percentile":
                own: Json = {"low": self.low, "high": self.high}
            case _:
                own = {"clip": self.clip}
        return {"method": self.method, **own, "cell": self.cell, "plane": list(self.plane)}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array = arrays[0]
        if array.kind != "image":
            raise RequestError("changes grey values, and ids of segments are none; give an image")
        if self.method == "clahe" and array.dtype != "uint8":
            raise RequestError(
                f"equalises uint8, and the voxels are {array.dtype}; give a window before"
            )
        found = dataclasses.replace(array, dtype="uint8")
        for name in self.plane:
            axis = found.axis(name)
            chunk = -(-max(axis.chunk, _CELLS_AT_ONCE * self.cell) // self.cell) * self.cell
            found = found.with_axis(dataclasses.replace(axis, chunk=chunk, anchor=0))
        return found

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of: the whole cells around."""
        ends = list(part)
        for name in self.plane:
            at = arrays[0].index(name)
            axis = arrays[0].axes[at]
            first, last = self._cells(axis, ends[at])
            ends[at] = (
                max(first * self.cell, axis.start),
                min((last + 1) * self.cell, axis.stop),
            )
        return (tuple(ends),)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        if self.method == "window":
            change = functools.partial(windowed, low=self.low, high=self.high)
            if arrays[0].dtype == "uint8":
                change = functools.partial(np.take, table_of(self.low, self.high))
            return computed(self.result(arrays), EachVoxel(stores[0], change))
        return computed(self.result(arrays), _Cells(self, stores[0], arrays[0]))

    def stretched(self, array: Array, found: Voxels, whole: Part, part: Part) -> Voxels:
        """The voxels of a part, from those of the cells around it."""
        at = [array.index(n) for n in self.plane]
        sides = [_Side(self.cell, whole[i], part[i]) for i in at]
        inner = tuple(slice(a - w, b - w) for (a, b), (w, _) in zip(part, whole, strict=True))
        # Sections one behind the other: each is looked at several times.
        front = np.ascontiguousarray(np.moveaxis(found, at, (-2, -1)))
        wanted = np.moveaxis(found[inner], at, (-2, -1))
        out = np.empty(wanted.shape, np.uint8)
        pieces = _pieces(*sides)
        for section in np.ndindex(front.shape[:-2]):
            inside = np.ascontiguousarray(wanted[section])
            out[section] = self._section(front[section], inside, sides, pieces)
        return np.moveaxis(out, (-2, -1), at)

    def _section(
        self, found: Voxels, wanted: Voxels, sides: "list[_Side]", pieces: "list[_Piece]"
    ) -> Voxels:
        """A section: piece by piece, each what lies between the centres of the same four cells."""
        measure = functools.partial(equalising, clip=self.clip)
        if self.method == "percentile":
            measure = functools.partial(percentiles, shares=(self.low, self.high))
        cells = _each(found, sides, measure)
        out = np.empty(wanted.shape, np.uint8)
        for piece in pieces:
            voxels = wanted[piece.where]
            made = [cells[cell] for cell in piece.cells]
            if self.method == "clahe":
                out[piece.where] = _round(piece.mixed([table.take(voxels) for table in made]))
            else:
                low, high = (piece.mixed([window[k] for window in made]) for k in (0, 1))
                out[piece.where] = windowed(voxels, low, high)
        return out

    def _cells(self, axis: Axis, ends: tuple[int, int]) -> tuple[int, int]:
        """First and last cell that a range of voxels is made of."""
        low, high = axis.start // self.cell, (axis.stop - 1) // self.cell
        before = (2 * ends[0] + 1 - self.cell) // (2 * self.cell)
        after = (2 * (ends[1] - 1) + 1 - self.cell) // (2 * self.cell) + 1
        return min(max(before, low), high), max(min(after, high), low)


@dataclasses.dataclass(frozen=True, eq=False)
class _Cells:
    contrast: Contrast
    store: ts.TensorStore
    array: Array

    async def voxels(self, part: Part) -> Voxels:
        """The voxels of a part."""
        (whole,) = self.contrast.needs(part, (self.array,))
        assert whole is not None  # there is one array, and all of it is asked for
        found = await read(self.store, whole)
        return await away(self.contrast.stretched, self.array, found, whole, part)


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """Voxels of an axis between the same two cells.

    Attributes:
        where: Which they are.
        before: Which of the cells is the one before.
        after: Which is the one after; the same one beyond the outermost centres.
        weight: Weight of the one after, for each voxel.
    """

    where: slice
    before: int
    after: int
    weight: _Floats


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """One axis of a section.

    Attributes:
        cell: Extent of a cell.
        whole: What was read.
        part: What is wanted.
    """

    cell: int
    whole: tuple[int, int]
    part: tuple[int, int]

    def edges(self) -> list[int]:
        """Where cells end in what was read."""
        first, last = self._ends()
        ends = (
            min(max(i * self.cell, self.whole[0]), self.whole[1]) for i in range(first, last + 2)
        )
        return [e - self.whole[0] for e in ends]

    def runs(self) -> list[_Run]:
        """The voxels that are wanted, by the cells between which they lie."""
        first, last = self._ends()
        # The centre of a cell lies at twice its index plus one, in halves of a cell.
        twice = 2 * np.arange(*self.part) + 1 - self.cell
        before = twice // (2 * self.cell)
        weight = (twice - before * 2 * self.cell) / (2 * self.cell)
        starts = [0, *(np.flatnonzero(before[1:] != before[:-1]) + 1).tolist(), len(before)]
        runs = []
        for a, b in zip(starts, starts[1:], strict=False):
            cells = [min(max(int(before[a]) + i, first), last) - first for i in (0, 1)]
            runs.append(_Run(slice(a, b), cells[0], cells[1], weight[a:b]))
        return runs

    def _ends(self) -> tuple[int, int]:
        return self.whole[0] // self.cell, (self.whole[1] - 1) // self.cell


@dataclasses.dataclass(frozen=True, eq=False)
class _Piece:
    """Voxels of a section between the same four cells.

    Attributes:
        where: Which they are.
        cells: Which the cells are.
        weights: Weight of each cell for each voxel.
    """

    where: tuple[slice, slice]
    cells: list[tuple[int, int]]
    weights: list[_Floats]

    def mixed(self, values: Sequence[_Floats]) -> _Floats:
        """What the cells give, weighted; always added up in the same order."""
        a, b, c, d = (v * w for v, w in zip(values, self.weights, strict=True))
        return a + b + c + d


def _pieces(first: _Side, second: _Side) -> list[_Piece]:
    """The pieces of a section."""
    found = []
    for x, y in itertools.product(first.runs(), second.runs()):
        near = [
            ((i, j), u[:, None] * v[None, :])
            for i, u in ((x.before, 1 - x.weight), (x.after, x.weight))
            for j, v in ((y.before, 1 - y.weight), (y.after, y.weight))
        ]
        found.append(_Piece((x.where, y.where), [c for c, _ in near], [w for _, w in near]))
    return found


def _each(
    found: Voxels, sides: list[_Side], measure: Callable[[Voxels], npt.NDArray[np.float64]]
) -> _Floats:
    """What a function gives for each cell, ``[i, j, ...]``."""
    rows, columns = (list(itertools.pairwise(s.edges())) for s in sides)
    return np.array([[measure(found[a:b, c:d]) for c, d in columns] for a, b in rows])


def equalising(voxels: Voxels, clip: float) -> _Floats:
    """What each grey value becomes where all are to be equally many, as far as ``clip`` allows.

    Args:
        voxels: uint8, at least one.
        clip: The most of the voxels that one grey value may count for; what is above is dealt out
            to all grey values.

    Returns:
        float64 ``[256]``, from 0 to 255, never falling.
    """
    counts = np.bincount(voxels.reshape(-1), minlength=_GREYS).astype(np.float64)
    most = max(1.0, clip * voxels.size)
    above = np.maximum(counts - most, 0.0).sum()
    counts = np.minimum(counts, most) + above / _GREYS
    return np.cumsum(counts) * (_TOP / voxels.size)


def percentiles(voxels: Voxels, shares: tuple[float, float]) -> _Floats:
    """Percentiles of voxels, float64 ``[2]``, as ``numpy.percentile`` has them."""
    if voxels.dtype != np.uint8:
        return np.asarray(np.percentile(voxels.astype(np.float64), shares))
    upto = np.cumsum(np.bincount(voxels.reshape(-1), minlength=_GREYS))
    at = np.array(shares) / 100 * (voxels.size - 1)
    low = np.searchsorted(upto, np.floor(at), side="right")
    high = np.searchsorted(upto, np.ceil(at), side="right")
    return low + (high - low) * (at - np.floor(at))


def table_of(low: float, high: float) -> Voxels:
    """What a window makes of each uint8."""
    return windowed(np.arange(_GREYS), low, high)


def windowed(voxels: Voxels, low: float | _Floats, high: float | _Floats) -> Voxels:
    """Grey values with ``low`` at 0 and ``high`` at 255, as uint8; NaN is 0.

    Where low is not below high, what is above low is 255.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        span = (voxels.astype(np.float64) - low) / np.maximum(np.subtract(high, low), 1e-9)
    return _round(np.nan_to_num(span) * _TOP)


def _round(values: _Floats) -> Voxels:
    return np.floor(np.clip(values, 0.0, _TOP) + 0.5).astype(np.uint8)
