"""Nodes from skeletons: thinning along paths.

Representation: a skeleton is a forest of n samples. ``position_nm`` is float64 ``[n, 3]``, XYZ in
nm; ``parent`` is int64 ``[n]``, the index of each sample's parent, -1 for a root.
"""

import math

import numpy as np
import numpy.typing as npt

from segclr.nodes import Nodes

_Floats = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]


def thin(position_nm: _Floats, parent: _Indices, spacing_nm: float) -> npt.NDArray[np.bool_]:
    """Which samples remain when a skeleton is thinned along its paths.

    Roots are kept. Walking away from the root, a sample is kept when the length of the path from
    its nearest kept ancestor reaches ``spacing_nm``. So neighbouring kept samples of one path are
    at least ``spacing_nm`` apart along it, and a branch shorter than that may keep none. The
    outcome depends on the tree alone, not on the order of the samples.

    Args:
        position_nm: float64 ``[n, 3]``, finite.
        parent: int64 ``[n]``, -1 for a root.
        spacing_nm: Path length in nm, above 0.

    Returns:
        bool ``[n]``, True where a sample is kept.

    Raises:
        ValueError: The spacing is not a positive number, a position is not finite, or the parents
            run in a circle.
    """
    if not spacing_nm > 0:
        raise ValueError(f"a spacing must be above 0 nm, got {spacing_nm}")
    if not np.isfinite(position_nm).all():
        raise ValueError("a path through a position that is not finite has no length")
    step = position_nm - position_nm[np.maximum(parent, 0)]
    lengths = np.sqrt(step[:, 0] ** 2 + step[:, 1] ** 2 + step[:, 2] ** 2).tolist()
    parents = parent.tolist()
    walked = [0.0] * len(parents)
    kept = np.zeros(len(parents), np.bool_)
    for i in np.argsort(_depths(parent), kind="stable").tolist():
        length = math.inf if parents[i] < 0 else walked[parents[i]] + lengths[i]
        if length >= spacing_nm:
            kept[i] = True
        else:
            walked[i] = length
    return kept


def skeleton_nodes(
    segment_id: int,
    sample: npt.NDArray[np.uint64],
    position_nm: _Floats,
    parent: _Indices,
    spacing_nm: float | None,
) -> Nodes:
    """The nodes of one skeleton, in the order of its samples.

    Args:
        segment_id: The segment that the skeleton belongs to, below 2**64.
        sample: uint64 ``[n]``, the sample numbers; they become the node_ids.
        position_nm: float64 ``[n, 3]``.
        parent: int64 ``[n]``, -1 for a root.
        spacing_nm: Path length to thin to, see ``thin``; None keeps every sample.

    Returns:
        The nodes kept.
    """
    segment = np.full(len(sample), segment_id, np.uint64)
    nodes = Nodes(segment, sample, position_nm)
    return nodes if spacing_nm is None else nodes.take(thin(position_nm, parent, spacing_nm))


def _depths(parent: _Indices) -> _Indices:
    """Edges between each sample and its root, found by doubling the stride of a walk upwards."""
    up = parent.copy()
    depth = (up >= 0).astype(np.int64)
    for _ in range(len(parent).bit_length()):
        depth += np.where(up >= 0, depth[up], 0)
        up = np.where(up >= 0, up[up], -1)
    if (up >= 0).any():
        raise ValueError(f"the parent of sample {int(np.argmax(up >= 0))} leads round in a circle")
    return depth
