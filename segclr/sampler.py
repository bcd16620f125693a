"""The ``auto`` sampler: one site a segment and cell of a lattice, from the segmentation alone.

Rule ``cell-medoid``, version 1. Space is cut into cubic cells of ``spacing_nm``, anchored at 0 nm
of the frame: on each axis cell i owns the voxels v with ``floor(v * voxel_size / spacing) == i``.
Every segment but 0 that has a voxel in a cell gets one site there: *of the segment's voxels in the
whole cell (clipped to the domain), the one nearest in nm to their mean position; ties go to the
smallest z, then y, then x*. Such a site lies in its segment by construction, which the mean alone
may not; it is central, so that a crop around it shows the segment; and it depends on the voxels of
its cell alone, so that however a volume is cut into boxes, the sites are the same.

A site belongs to the box whose core holds its voxel. Its node_id is its cell's linear index in a
frame of 2**21 cells an axis centred on the origin, and so is unique in its segment.

All of it is integer arithmetic on the decimal text of voxel size and spacing: no rounding, hence no
dependence on the platform or on the box.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from segclr.nodes import Nodes
from volumes.geometry import Box, Vec, Vec3, vec

NAME = "cell-medoid"
"""The rule's name, part of a run's identity."""

VERSION = 1
"""The rule's version: another one may place sites elsewhere."""

DEFAULT_SPACING_NM = 1500.0
"""Edge of a cell where the user gives none."""

_AXIS_BITS = 21
_HALF = 1 << (_AXIS_BITS - 1)

_Ints = npt.NDArray[np.int64]


def cell_range(box: Box, voxel_size_nm: Vec3, spacing_nm: float) -> Box:
    """The cells that touch ``box``, as a half-open box of cell coordinates.

    Raises:
        ValueError: ``spacing_nm`` is not a positive number or is below the voxel size on an axis.
    """
    ratios = _ratios(voxel_size_nm, spacing_nm)
    if box.size == 0:
        return Box((0, 0, 0), (0, 0, 0))
    return Box(
        vec(math.floor(v * r) for v, r in zip(box.start, ratios, strict=True)),
        vec(math.floor((v - 1) * r) + 1 for v, r in zip(box.stop, ratios, strict=True)),
    )


def cells_box(core: Box, domain: Box, voxel_size_nm: Vec3, spacing_nm: float) -> Box:
    """What must be read to sample a box: the hull of the cells that touch it.

    Args:
        core: What the box owns, in the domain.
        domain: What image and segmentation share.
        voxel_size_nm: Voxel size in nm, XYZ.
        spacing_nm: Edge of a cell in nm.

    Returns:
        The hull, in voxels, clipped to the domain.
    """
    cells = cell_range(core, voxel_size_nm, spacing_nm)
    return _voxels_of(cells, _ratios(voxel_size_nm, spacing_nm)).intersection(domain)


def check_domain(domain: Box, voxel_size_nm: Vec3, spacing_nm: float) -> None:
    """Refuse, before a run, a spacing or a domain that cannot be sampled.

    Raises:
        ValueError: ``spacing_nm`` is not a positive number, is below the voxel size on an axis, or
            is so small that the domain's cells have no node_id.
    """
    cells = cell_range(domain, voxel_size_nm, spacing_nm)
    if min(cells.start) < -_HALF or max(cells.stop) > _HALF:
        raise ValueError(
            f"with a spacing of {spacing_nm:g} nm the domain {domain} covers the cells {cells}, but"
            f" cells from {-_HALF} to {_HALF - 1} an axis can be numbered; give a larger spacing"
        )


def sample_sites(
    labels: npt.NDArray[np.integer],
    box: Box,
    core: Box,
    domain: Box,
    voxel_size_nm: Vec3,
    spacing_nm: float,
) -> Nodes:
    """The sites that one box owns.

    Args:
        labels: Segment ids ``[X, Y, Z]``, any integer type, 0 is background; in any memory order.
        box: The voxels that ``labels`` holds.
        core: What the box owns, in the domain.
        domain: What image and segmentation share.
        voxel_size_nm: Voxel size in nm, XYZ.
        spacing_nm: Edge of a cell in nm.

    Returns:
        The sites whose voxel lies in ``core``, sorted by (segment_id, node_id). A position is its
        voxel times the voxel size, so that ``voxels_at`` gives that voxel again.

    Raises:
        ValueError: ``labels`` is not an integer array of the box's shape, holds a negative label,
            or does not cover ``cells_box(core, ...)``; or the spacing or the cells are refused as
            by ``check_domain``.
    """
    needed = cells_box(core, domain, voxel_size_nm, spacing_nm)
    check_domain(core, voxel_size_nm, spacing_nm)
    if labels.dtype.kind not in "iu" or labels.shape != box.shape:
        raise ValueError(
            f"labels must be integers of shape {box.shape}, got {labels.dtype} of {labels.shape}"
        )
    if not domain.encloses(core) or not box.encloses(needed):
        raise ValueError(
            f"labels of {box} do not cover {needed}, the cells that touch {core} of {domain}"
        )
    ratios = _ratios(voxel_size_nm, spacing_nm)
    weights = _weights(voxel_size_nm)
    parts = []
    for cell in _coordinates(cell_range(core, voxel_size_nm, spacing_nm)):
        extent = _voxels_of(Box.of(cell, (1, 1, 1)), ratios).intersection(domain)
        segment_id, local = _medoids(labels[extent.slices(box)], weights)
        voxels = local + np.array(extent.start, np.int64)
        owned = ((voxels >= core.start) & (voxels < core.stop)).all(axis=1)
        number = np.full(int(owned.sum()), _node_id(cell), np.uint64)
        position_nm = voxels[owned].astype(np.float64) * np.array(voxel_size_nm, np.float64)
        parts.append(Nodes(segment_id[owned], number, position_nm))
    return Nodes.concat(parts).sorted()


def _medoids(
    labels: npt.NDArray[np.integer], weights: Vec
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The site of each segment of one cell.

    A segment of n voxels with coordinate sums S has its mean at S / n. The squared distance of a
    voxel x to it, times n and less a constant, is ``sum_a W_a (n x_a**2 - 2 S_a x_a)``, an integer.
    Voxels are handled as runs along one axis: of a run, the voxel nearest to the mean is found in
    one step, and ties between runs are left to the order of z, y, x.

    Args:
        labels: One cell, ``[X, Y, Z]``.
        weights: Integers in the ratio of the squared voxel size, XYZ.

    Returns:
        The segment ids, uint64 ``[n]`` ascending, and their sites, int64 ``[n, 3]``, XYZ in the
        cell.
    """
    axis = int(np.argmin([abs(s) for s in labels.strides]))
    ids, start, length = _runs(labels, axis)
    if len(ids) == 0:
        return np.empty(0, np.uint64), np.empty((0, 3), np.int64)
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    segment = np.cumsum(np.concatenate([[0], ids[1:] != ids[:-1]]))
    count = np.add.reduceat(length, first)
    sums = np.stack([np.add.reduceat(start[:, a] * length, first) for a in range(3)], axis=1)
    sums[:, axis] += np.add.reduceat(length * (length - 1) // 2, first)

    # The integer nearest to the mean, the smaller of two: ceil(S / n - 1/2); then into the run.
    nearest = -((count - 2 * sums[:, axis]) // (2 * count))
    voxel = start
    voxel[:, axis] = np.clip(nearest[segment], start[:, axis], start[:, axis] + length - 1)

    cost = _cost(voxel, count[segment], sums[segment], weights, labels.shape)
    least = np.minimum.reduceat(cost, first)
    tied = np.flatnonzero(cost == least[segment])
    x, y, z = voxel[tied].T
    tied = tied[np.lexsort((x, y, z, segment[tied]))]
    chosen = np.concatenate([[True], segment[tied][1:] != segment[tied][:-1]])
    return ids[first], voxel[tied[chosen]]


def _runs(
    labels: npt.NDArray[np.integer], axis: int
) -> tuple[npt.NDArray[np.uint64], _Ints, _Ints]:
    """The runs of equal labels along ``axis``, without 0, sorted by label.

    Returns:
        Labels uint64 ``[r]``, first voxels int64 ``[r, 3]`` XYZ, lengths int64 ``[r]``.
    """
    lines = np.ascontiguousarray(np.moveaxis(labels, axis, -1))
    begins = np.ones(lines.shape, np.bool_)
    np.not_equal(lines[..., 1:], lines[..., :-1], out=begins[..., 1:])
    at = np.flatnonzero(begins)
    ids = lines.reshape(-1)[at]
    length = np.diff(at, append=lines.size)
    keep = np.flatnonzero(ids)
    if keep.size and ids.min() < 0:
        raise ValueError(f"a segment id is an unsigned integer, the labels hold {ids.min()}")
    keep = keep[np.argsort(ids[keep], kind="stable")]
    start = np.empty((len(keep), 3), np.int64)
    others = [a for a in range(3) if a != axis]
    for a, coordinate in zip([*others, axis], np.unravel_index(at[keep], lines.shape), strict=True):
        start[:, a] = coordinate
    return ids[keep].astype(np.uint64), start, length[keep].astype(np.int64)


def _cost(
    voxel: _Ints, count: _Ints, sums: _Ints, weights: Vec, shape: tuple[int, ...]
) -> npt.NDArray[np.int64] | npt.NDArray[np.object_]:
    """``sum_a W_a (n x_a**2 - 2 S_a x_a)`` a voxel, exact: in int64 where it fits, else unbounded.

    No term exceeds ``W n extent**2``. Voxel sizes of few digits fit; one such as 10.666666666666666
    nm beside 33.3 does not.
    """
    bound = sum(w * math.prod(shape) * n * n for w, n in zip(weights, shape, strict=True))
    dtype = np.dtype(np.int64) if bound < 2**62 else np.dtype(object)
    n = count.astype(dtype)
    total = np.zeros(len(voxel), dtype)
    for axis, weight in enumerate(weights):
        x = voxel[:, axis].astype(dtype)
        total += weight * (x * (n * x - 2 * sums[:, axis].astype(dtype)))
    return total


def _ratios(voxel_size_nm: Vec3, spacing_nm: float) -> tuple[Fraction, Fraction, Fraction]:
    """Voxel size over spacing on each axis, exactly as the two are written."""
    if not 0 < spacing_nm < math.inf:
        raise ValueError(f"a spacing must be a number of nm above 0, got {spacing_nm}")
    if spacing_nm < max(voxel_size_nm):
        raise ValueError(
            f"a spacing of {spacing_nm:g} nm is below the voxel size {voxel_size_nm} nm: a cell"
            " must hold at least one voxel on each axis; give a larger spacing"
        )
    x, y, z = (_exact(v) / _exact(spacing_nm) for v in voxel_size_nm)
    return (x, y, z)


def _weights(voxel_size_nm: Vec3) -> Vec:
    """The smallest integers in the ratio of the squared voxel size."""
    squares = [_exact(v) ** 2 for v in voxel_size_nm]
    common = math.lcm(*(s.denominator for s in squares))
    whole = [int(s * common) for s in squares]
    return vec(w // math.gcd(*whole) for w in whole)


def _exact(value: float) -> Fraction:
    """The number that the shortest decimal text of a float spells."""
    return Fraction(repr(float(value)))


def _voxels_of(cells: Box, ratios: tuple[Fraction, Fraction, Fraction]) -> Box:
    """The voxels that a box of cells owns; cell i begins at the first v with v * ratio >= i."""
    return Box(
        vec(math.ceil(i / r) for i, r in zip(cells.start, ratios, strict=True)),
        vec(math.ceil(i / r) for i, r in zip(cells.stop, ratios, strict=True)),
    )


def _coordinates(cells: Box) -> Iterator[Vec]:
    """The coordinates of a box of cells, one after the other."""
    for k in range(cells.start[2], cells.stop[2]):
        for j in range(cells.start[1], cells.stop[1]):
            for i in range(cells.start[0], cells.stop[0]):
                yield (i, j, k)


def _node_id(cell: Vec) -> int:
    """The cell's linear index in the frame of 2**21 cells an axis."""
    i, j, k = (c + _HALF for c in cell)
    return i + (j << _AXIS_BITS) + (k << 2 * _AXIS_BITS)
