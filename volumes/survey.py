"""A look at given nodes before a run: how many lie in the domain, where, and in how many boxes."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from volumes import tables
from volumes.errors import RequestError
from volumes.geometry import Box, ChunkGrid, Vec3, voxels_at

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

Thin = Callable[[_Floats, _Ints, float], npt.NDArray[np.bool_]]
"""Which samples of a skeleton remain: positions ``[n, 3]`` and parents ``[n]``, spacing in nm."""

_MERGE_AT = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What a source holds, measured against a domain.

    Attributes:
        location: The source, for messages.
        basis: What the counts describe. ``all``: every row. ``statistics``: every row, judged by
            the bounds of its Parquet row group: ``outside`` are the rows of groups that lie wholly
            outside the domain, ``inside`` all others, an upper bound. ``first``: the first rows.
        rows: Rows that the counts describe; of thinned skeletons, the samples that remain.
        inside: Rows whose voxel lies in the domain.
        outside: Rows whose voxel does not, or with an infinite coordinate.
        nan: Rows with a coordinate that is NaN or missing.
        bounds_nm: Smallest and largest finite coordinates, XYZ in nm; None where there are none.
        box_index: Indices of the occupied boxes, int64 ``[b]`` ascending; None without a grid and
            where ``basis`` is not ``all``.
        box_nodes: Nodes in each of them, int64 ``[b]``, rows of segment 0 and repeated identities
            included.
    """

    location: str
    basis: Literal["all", "statistics", "first"]
    rows: int
    inside: int
    outside: int
    nan: int
    bounds_nm: tuple[Vec3, Vec3] | None
    box_index: _Ints | None
    box_nodes: _Ints | None

    @property
    def exact(self) -> bool:
        """Whether the counts are those of the whole source."""
        return self.basis == "all"

    @property
    def boxes(self) -> int | None:
        """Number of occupied boxes, where it is known."""
        return None if self.box_index is None else len(self.box_index)


def survey(
    source: tables.NodeSource,
    domain: Box,
    voxel_size_nm: Vec3,
    grid: ChunkGrid | None = None,
    thin: Thin | None = None,
    limit: int = 10_000_000,
) -> Survey:
    """Read a source up to a limit and measure it against the domain.

    A Parquet source of more rows is judged by its statistics, where every row group has them.

    Args:
        source: The nodes.
        domain: What image and segmentation share.
        voxel_size_nm: Voxel size in nm, XYZ.
        grid: The boxes to count nodes in; it must cover the domain.
        thin: How skeletons are thinned; needed where the source has a spacing.
        limit: The most rows to read (samples, before any thinning).

    Raises:
        RequestError: A row or a file cannot be read exactly, or there are no rows at all.
        ValueError: The grid is another domain's, or ``thin`` is missing.
    """
    if grid is not None and grid.domain != domain:
        raise ValueError(f"the grid covers {grid.domain}, not the domain {domain}")
    if source.spacing_nm is not None and thin is None:
        raise ValueError(f"to thin to {source.spacing_nm:g} nm, a survey needs the rule for it")
    if source.kind == "parquet" and (source.rows or 0) > limit:
        found = _by_statistics(source, domain, voxel_size_nm)
        if found is not None:
            return found
    return _by_reading(source, domain, voxel_size_nm, grid, thin, limit)


def outside_message(found: Survey, domain: Box, voxel_size_nm: Vec3) -> str:
    """What to tell the user when no position lies in the domain.

    Positions that would lie in it if they were voxels are pointed out.
    """
    size = _triple(voxel_size_nm)
    start, stop = (
        np.array(corner, np.float64) * np.array(voxel_size_nm)
        for corner in (domain.start, domain.stop)
    )
    extent = f"{_triple(start)} to {_triple(stop)} nm (voxels {domain} of {size} nm)"
    if found.bounds_nm is None:
        return (
            f"{found.location}: none of the {found.rows} positions is a finite number, so that no"
            f" node lies in the domain, {extent}; fill in x_nm, y_nm, z_nm"
        )
    low, high = found.bounds_nm
    text = (
        f"{found.location}: none of the {found.rows} positions lies in the domain; they run from"
        f" {_triple(low)} to {_triple(high)} nm, the domain from {extent}"
    )
    within = zip(domain.start, low, high, domain.stop, strict=True)
    if all(a <= first and last < b for a, first, last, b in within):
        return f"{text}. They look like voxels: multiply by the voxel size {size} nm"
    return f"{text}. Check that the nodes belong to this volume and are in nm in its frame"


def check_inside(found: Survey, domain: Box, voxel_size_nm: Vec3) -> None:
    """Refuse a source of which no position lies in the domain.

    A survey of only the first rows of a larger table proves nothing and is let pass.

    Raises:
        RequestError: No position lies in the domain.
    """
    if found.inside == 0 and found.basis != "first":
        raise RequestError(outside_message(found, domain, voxel_size_nm))


class _BoxCounter:
    """Nodes an occupied box, merged now and then so that memory follows the occupied boxes."""

    def __init__(self, grid: ChunkGrid) -> None:
        self._grid = grid
        self._index: list[_Ints] = [np.empty(0, np.int64)]
        self._nodes: list[_Ints] = [np.empty(0, np.int64)]
        self._pending = 0

    def add(self, voxels: _Ints) -> None:
        """Count voxels of the domain, int64 ``[n, 3]``."""
        index, nodes = np.unique(self._grid.indices_at(voxels), return_counts=True)
        self._index.append(index)
        self._nodes.append(nodes.astype(np.int64))
        self._pending += len(index)
        if self._pending > max(_MERGE_AT, len(self._index[0])):
            self.merged()

    def merged(self) -> tuple[_Ints, _Ints]:
        """Indices of the occupied boxes, ascending, and their nodes."""
        index, where = np.unique(np.concatenate(self._index), return_inverse=True)
        nodes = np.zeros(len(index), np.int64)
        np.add.at(nodes, where, np.concatenate(self._nodes))
        self._index, self._nodes, self._pending = [index], [nodes], 0
        return index, nodes


def _by_reading(
    source: tables.NodeSource,
    domain: Box,
    voxel_size_nm: Vec3,
    grid: ChunkGrid | None,
    thin: Thin | None,
    limit: int,
) -> Survey:
    """The survey of all rows, or of the first ``limit`` where there are more."""
    counter = None if grid is None else _BoxCounter(grid)
    read = rows = inside = nan = 0
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    complete = True
    for position_nm, samples in _positions(source, thin):
        if read + samples > limit:
            position_nm = position_nm[: limit - read]
            complete = False
        read += samples
        rows += len(position_nm)
        known = position_nm[~np.isnan(position_nm).any(axis=1)]
        nan += len(position_nm) - len(known)
        finite = known[np.isfinite(known).all(axis=1)]
        low = np.minimum(low, finite.min(axis=0, initial=np.inf))
        high = np.maximum(high, finite.max(axis=0, initial=-np.inf))
        voxels = voxels_at(finite, voxel_size_nm)
        voxels = voxels[_in(voxels, domain)]
        inside += len(voxels)
        if counter is not None:
            counter.add(voxels)
        if not complete:
            break
    if rows == 0:
        raise RequestError(f"{source.location} holds no nodes; there is nothing to do")
    index, nodes = counter.merged() if counter is not None and complete else (None, None)
    return Survey(
        location=source.location,
        basis="all" if complete else "first",
        rows=rows,
        inside=inside,
        outside=rows - inside - nan,
        nan=nan,
        bounds_nm=_bounds(low, high),
        box_index=index,
        box_nodes=nodes,
    )


def _positions(source: tables.NodeSource, thin: Thin | None) -> Iterator[tuple[_Floats, int]]:
    """Positions to be judged, and how many rows or samples were read for them."""
    for piece in tables.pieces(source):
        if source.kind != "swc":
            for batch in tables.read_piece(source, piece):
                yield batch.position_nm, len(batch.position_nm)
            continue
        for skeleton in tables.read_skeletons(source, piece):
            position_nm = skeleton.position_nm
            if source.spacing_nm is not None and thin is not None:
                position_nm = position_nm[thin(position_nm, skeleton.parent, source.spacing_nm)]
            yield position_nm, len(skeleton.sample)


def _by_statistics(source: tables.NodeSource, domain: Box, voxel_size_nm: Vec3) -> Survey | None:
    """The survey from the bounds of row groups; None where one of them has none."""
    rows = inside = 0
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for group_rows, bounds in tables.row_group_bounds(source):
        if group_rows == 0:
            continue
        if bounds is None:
            return None
        first, last = voxels_at(bounds, voxel_size_nm)
        meets = (first < np.array(domain.stop)) & (last >= np.array(domain.start))
        rows += group_rows
        inside += group_rows if meets.all() else 0
        low, high = np.minimum(low, bounds[0]), np.maximum(high, bounds[1])
    return Survey(
        location=source.location,
        basis="statistics",
        rows=rows,
        inside=inside,
        outside=rows - inside,
        nan=0,
        bounds_nm=_bounds(low, high),
        box_index=None,
        box_nodes=None,
    )


def _in(voxels: _Ints, domain: Box) -> npt.NDArray[np.bool_]:
    above = voxels >= np.array(domain.start)
    return np.asarray((above & (voxels < np.array(domain.stop))).all(axis=1))


def _bounds(low: _Floats, high: _Floats) -> tuple[Vec3, Vec3] | None:
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    return (low[0].item(), low[1].item(), low[2].item()), (
        high[0].item(),
        high[1].item(),
        high[2].item(),
    )


def _triple(values: Vec3 | _Floats) -> str:
    return "(" + ", ".join(f"{float(v):.10g}" for v in values) + ")"
