"""Nodes in packed form, and the two places at which one is rejected.

Representation: three arrays of one length, ``segment_id`` and ``node_id`` (uint64 ``[n]``) and
``position_nm`` (float64 ``[n, 3]``, XYZ, in the frame). A node's identity is its pair of ids. The
deterministic order is by segment_id, node_id, x, y, z; digests are taken in that order, so that
they do not depend on the order in which nodes arrive.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.geometry import Box, Vec3, voxels_at

_Ids = npt.NDArray[np.uint64]

# One node as it is pickled and digested, little-endian without padding.
_PACKED = np.dtype([("segment_id", "<u8"), ("node_id", "<u8"), ("position_nm", "<f8", (3,))])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """Sample sites on segments.

    The arrays are held as read-only views and nothing is converted: an array of another type or
    shape is a ``ValueError``, since an id that went through a float is another id. Two are equal
    when they hold the same nodes in the same order (NaN equals NaN). A pickle takes 40 bytes a
    node.

    Attributes:
        segment_id: uint64 ``[n]``.
        node_id: uint64 ``[n]``.
        position_nm: float64 ``[n, 3]``, XYZ in nm, in the frame.
    """

    segment_id: _Ids
    node_id: _Ids
    position_nm: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse arrays of another type or shape, and hold them read-only."""
        n = len(self.segment_id)
        for name, dtype, shape in (
            ("segment_id", np.dtype(np.uint64), (n,)),
            ("node_id", np.dtype(np.uint64), (n,)),
            ("position_nm", np.dtype(np.float64), (n, 3)),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"{name} must be {dtype} of shape {shape}, got {array.dtype} of {array.shape}"
                )
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def empty(cls) -> "Nodes":
        """No nodes."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty((0, 3), np.float64))

    @classmethod
    def concat(cls, parts: Sequence["Nodes"]) -> "Nodes":
        """The nodes of all parts, in the order given."""
        if not parts:
            return cls.empty()
        return cls(
            np.concatenate([p.segment_id for p in parts]),
            np.concatenate([p.node_id for p in parts]),
            np.concatenate([p.position_nm for p in parts]),
        )

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.segment_id)

    def __eq__(self, other: object) -> bool:
        """Whether ``other`` holds the same nodes in the same order."""
        if not isinstance(other, Nodes):
            return NotImplemented
        return (
            np.array_equal(self.segment_id, other.segment_id)
            and np.array_equal(self.node_id, other.node_id)
            and np.array_equal(self.position_nm, other.position_nm, equal_nan=True)
        )

    def __reduce__(self) -> tuple[Callable[[bytes], "Nodes"], tuple[bytes]]:
        """Pickle as one string of packed nodes."""
        return (_unpack, (self._packed().tobytes(),))

    def take(self, index: npt.NDArray[Any] | slice) -> "Nodes":
        """The nodes that an index array, a boolean mask or a slice picks, in its order."""
        return Nodes(self.segment_id[index], self.node_id[index], self.position_nm[index])

    def sorted(self) -> "Nodes":
        """The nodes by (segment_id, node_id), and by x, y, z where an identity is repeated."""
        return self.take(self._order())

    def identity_digest(self) -> str:
        """Hex SHA-256 of the sorted (segment_id, node_id) pairs, 16 little-endian bytes a node."""
        ids = self._packed()[["segment_id", "node_id"]][self._order()]
        return hashlib.sha256(
            np.stack([ids["segment_id"], ids["node_id"]], axis=1).astype("<u8").tobytes()
        ).hexdigest()

    def digest(self) -> str:
        """Hex SHA-256 of the sorted nodes with their positions, 40 little-endian bytes a node.

        -0 counts as 0, and every NaN as the same one.
        """
        packed = self._packed()[self._order()]
        position = packed["position_nm"] + 0.0
        packed["position_nm"] = np.where(np.isnan(position), np.nan, position)
        return hashlib.sha256(packed.tobytes()).hexdigest()

    def _order(self) -> npt.NDArray[np.int64]:
        x, y, z = (self.position_nm + 0.0).T
        return np.lexsort((z, y, x, self.node_id, self.segment_id)).astype(np.int64)

    def _packed(self) -> npt.NDArray[np.void]:
        packed = np.empty(len(self), _PACKED)
        for name in ("segment_id", "node_id", "position_nm"):
            packed[name] = getattr(self, name)
        return packed


def _unpack(data: bytes) -> Nodes:
    """The nodes that ``Nodes.__reduce__`` packed."""
    packed = np.frombuffer(data, _PACKED)
    return Nodes(
        packed["segment_id"].astype(np.uint64),
        packed["node_id"].astype(np.uint64),
        packed["position_nm"].astype(np.float64),
    )


def reject_unplaced(
    nodes: Nodes, domain: Box, voxel_size_nm: Vec3
) -> tuple[Nodes, npt.NDArray[np.int64], dict[str, int]]:
    """Sort out the nodes that belong to no box.

    Args:
        nodes: Nodes as read, in any order.
        domain: What image and segmentation share.
        voxel_size_nm: Voxel size in nm, XYZ.

    Returns:
        The nodes whose voxel lies in the domain, in the order given; their voxels (int64
        ``[n, 3]``, XYZ); and the number rejected as ``nan`` (any coordinate is NaN) and as
        ``outside`` (the voxel is not in the domain, or a coordinate is infinite).
    """
    nan: npt.NDArray[np.bool_] = np.asarray(np.isnan(nodes.position_nm).any(axis=1))
    known = nodes.take(~nan)
    voxels = voxels_at(known.position_nm, voxel_size_nm)
    inside = np.asarray(np.isfinite(known.position_nm).all(axis=1))
    for axis in range(3):
        inside &= voxels[:, axis] >= domain.start[axis]
        inside &= voxels[:, axis] < domain.stop[axis]
    counts = {"nan": int(nan.sum()), "outside": int(np.count_nonzero(~inside))}
    return known.take(inside), voxels[inside], counts


def reject_in_box(nodes: Nodes) -> tuple[Nodes, dict[str, int]]:
    """Sort out the nodes of one box that have no segment or repeat another's identity.

    Of the nodes that share an identity the first in the deterministic order is kept, the one of
    smallest x, then y, then z: whichever arrived first, the outcome is the same.

    Args:
        nodes: All nodes of one box, in any order.

    Returns:
        The nodes kept, sorted; and the number rejected as ``background`` (segment_id 0) and as
        ``duplicate``.
    """
    foreground = nodes.take(np.flatnonzero(nodes.segment_id))
    ordered = foreground.sorted()
    first = np.ones(len(ordered), np.bool_)
    first[1:] = (ordered.segment_id[1:] != ordered.segment_id[:-1]) | (
        ordered.node_id[1:] != ordered.node_id[:-1]
    )
    kept = ordered.take(first)
    counts = {
        "background": len(nodes) - len(foreground),
        "duplicate": len(ordered) - len(kept),
    }
    return kept, counts
