"""What is durable about a box: the nodes it owes, the rows it has, and the receipt for them.

A box's key is its lattice coordinate ``I_J_K`` in the frame, which no growth of the domain renames.
"""

import dataclasses
import hashlib
import json
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from volumes import documents
from volumes.errors import DataError
from volumes.geometry import Box

_T = TypeVar("_T")

DIGEST_BYTES = 16
"""Length of a crop's digest in a row."""

REASONS = ("nan", "outside", "background", "empty_mask", "duplicate")
"""Why a node has no row: the same words in counters, receipts and summary."""


def sha256(*parts: bytes) -> str:
    """Hex SHA-256 over parts, each preceded by its length so that no two splits are alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form."""
    return sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode())


def array_digest(array: npt.NDArray[Any]) -> str:
    """Hex SHA-256 of an array's dtype, shape and bytes in C order."""
    head = f"{array.dtype.str}{array.shape}".encode()
    digest = hashlib.sha256(head)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of one box, sorted by (segment_id, node_id).

    Attributes:
        segment_id: uint64 ``[n]``.
        node_id: uint64 ``[n]``.
        position_nm: float64 ``[n, 3]``, XYZ, in nm.
        embedding: float32 ``[n, D]``.
        mask_voxels: uint32 ``[n]``, voxels of the crop that are the node's segment.
        crop_digest: uint8 ``[n, 16]``, digest of the masked crop.
    """

    segment_id: npt.NDArray[np.uint64]
    node_id: npt.NDArray[np.uint64]
    position_nm: npt.NDArray[np.float64]
    embedding: npt.NDArray[np.float32]
    mask_voxels: npt.NDArray[np.uint32]
    crop_digest: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.segment_id)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by the names they have in a partition."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def digest(self) -> str:
        """Hex SHA-256 over every array's name, dtype, shape and bytes."""
        return json_digest({name: array_digest(a) for name, a in self.arrays().items()})

    def take(self, index: npt.NDArray[Any]) -> "Rows":
        """The rows at an index or under a mask."""
        return Rows(**{name: a[index] for name, a in self.arrays().items()})

    @classmethod
    def empty(cls, width: int) -> "Rows":
        """No rows, of embeddings of a width."""
        return cls(
            segment_id=np.zeros(0, np.uint64),
            node_id=np.zeros(0, np.uint64),
            position_nm=np.zeros((0, 3)),
            embedding=np.zeros((0, width), np.float32),
            mask_voxels=np.zeros(0, np.uint32),
            crop_digest=np.zeros((0, DIGEST_BYTES), np.uint8),
        )

    @classmethod
    def concatenated(cls, parts: list["Rows"]) -> "Rows":
        """Several boxes' rows, in the order given; at least one part."""
        return cls(
            **{
                f.name: np.concatenate([getattr(p, f.name) for p in parts])
                for f in dataclasses.fields(cls)
            }
        )


@dataclasses.dataclass(frozen=True, slots=True)
class BoxPlan:
    """What a box owes, committed before its first crop.

    Attributes:
        box: The box's key.
        nodes: Number of nodes that belong to the box, before any is rejected.
        identities: Digest of the sorted node identities.
        content: Digest of identities and positions.
    """

    box: str
    nodes: int
    identities: str
    content: str

    def to_bytes(self) -> bytes:
        """The document under ``plan/<box>``."""
        return documents.dump("segclr-plan", 1, dataclasses.asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "BoxPlan":
        """The plan that ``to_bytes`` wrote."""
        return _made(cls, documents.load(data, "segclr-plan", 1, where), where)


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """The durable record that a box is committed.

    Attributes:
        box: The box's key.
        core: What the box owns of the domain.
        read_box: What was read of image and segmentation for its crops.
        fingerprint: Digest of the run's recipe and the box's own nodes; a second attempt with
            the same fingerprint is a no-op.
        planned: Nodes of the box.
        committed: Rows of the box.
        computed: Vectors that were computed for this commit; the other rows kept theirs.
        rejected: (reason, count) pairs, sorted; ``planned = committed + rejected``.
        identities: Digest of the sorted node identities, as in the plan.
        content: Digest of identities and positions, as in the plan.
        rows_digest: Digest of the rows' bytes.
        inputs: Digest of where image and segmentation are.
        image_digest: Digest of the image voxels read.
        labels_digest: Digest of the segment ids read, bodies where a table maps them.
        image_stamp: Digest of the storage generations of the image's chunks as they were read;
            None where the storage has none.
        labels_stamp: The same of the segmentation's chunks.
        agglomeration: Digest of the table that mapped the segment ids, None for none.
        run: The run that committed it.
    """

    box: str
    core: Box
    read_box: Box
    fingerprint: str
    planned: int
    committed: int
    computed: int
    rejected: tuple[tuple[str, int], ...]
    identities: str
    content: str
    rows_digest: str
    inputs: str
    image_digest: str
    labels_digest: str
    image_stamp: str | None
    labels_stamp: str | None
    agglomeration: str | None
    run: str

    def to_bytes(self) -> bytes:
        """The document under ``receipts/<box>``."""
        body = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        body["core"] = self.core.to_json()
        body["read_box"] = self.read_box.to_json()
        body["rejected"] = dict(self.rejected)
        return documents.dump("segclr-receipt", 1, body)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Receipt":
        """The receipt that ``to_bytes`` wrote."""
        body = documents.load(data, "segclr-receipt", 1, where)
        try:
            body["core"] = Box.from_json(body["core"])
            body["read_box"] = Box.from_json(body["read_box"])
            body["rejected"] = tuple(sorted(body["rejected"].items()))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise DataError(f"{where} is damaged: {e!r}") from e
        return _made(cls, body, where)


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """The durable record that a box is set aside, in the place of its receipt.

    Attributes:
        box: The box's key.
        fingerprint: As a receipt's.
        planned: Nodes of the box, none of which has a row.
        error: What went wrong, for people.
        attempts: How often it was tried.
        run: The run that gave it up.
    """

    box: str
    fingerprint: str
    planned: int
    error: str
    attempts: int
    run: str

    def to_bytes(self) -> bytes:
        """The document under ``failed/<box>``."""
        return documents.dump("segclr-failure", 1, dataclasses.asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "Failure":
        """The failure that ``to_bytes`` wrote."""
        return _made(cls, documents.load(data, "segclr-failure", 1, where), where)


def fingerprint(recipe: str, plan_content: str) -> str:
    """A receipt's fingerprint: the run's recipe and the box's own nodes."""
    return sha256(recipe.encode(), plan_content.encode())


def _made(cls: type[_T], body: dict[str, Any], where: str) -> _T:
    try:
        return cls(**body)
    except TypeError as e:
        raise DataError(f"{where} is damaged: {e}") from e
