"""The way of one box as pure functions: what it owes, what is read, what is computed.

No Beam here: the transforms of ``transforms.boxes`` call these and count.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segclr.crops import Crop, crop_box, crop_digest, iter_crops
from segclr.encoder import Encoder
from segclr.errors import ModelError
from segclr.model import ModelSpec
from segclr.nodes import Nodes, reject_in_box
from segclr.sampler import cells_box
from volumes.errors import RunError
from volumes.geometry import Box, ChunkGrid, Vec, Vec3, voxels_at
from volumes.reading import Part, Subvolume
from volumes.receipts import (
    DIGEST_BYTES,
    BoxPlan,
    Receipt,
    Rows,
    array_digest,
    fingerprint,
)
from volumes.spec import VolumeSpec
from volumes.store import Generation, name_of

MissingImage = Literal["error", "zero"]
MissingSegmentation = Literal["background", "error"]


@dataclasses.dataclass(frozen=True, slots=True)
class EmbedWork:
    """All that a worker needs to know to embed any box of a run; picklable, opens nothing.

    Attributes:
        image: The image volume, uint8.
        segmentation: The segmentation volume, an integer type, of the image's voxel size.
        grid: The lattice of boxes over what both volumes share, anchored at voxel 0.
        generation: Where the rows go.
        model: The network that encodes.
        identity: Digest of what makes this run this run.
        run: The run's name.
        halo: Voxels read around a core, XYZ, on each side.
        missing_image: What an image chunk that is not stored means under a node's mask.
        missing_segmentation: What a segmentation chunk that is not stored means.
        spacing_nm: Spacing of the sampler's lattice in nm; None where nodes are given.
        bytes_in_flight: Decoded bytes that may be under way at once while a box is read.
    """

    image: VolumeSpec
    segmentation: VolumeSpec
    grid: ChunkGrid
    generation: Generation
    model: ModelSpec
    identity: str
    run: str
    halo: Vec
    missing_image: MissingImage
    missing_segmentation: MissingSegmentation
    spacing_nm: float | None
    bytes_in_flight: int

    @property
    def voxel_size_nm(self) -> Vec3:
        """Voxel size in nm, XYZ, that both volumes have."""
        return self.image.voxel_size_nm

    def key(self, index: int) -> str:
        """The key ``I_J_K`` of a box of the grid."""
        return name_of(self.grid.coordinate(index))

    def read_box(self, index: int) -> Box:
        """The core grown by the halo, clipped to the domain."""
        return self.grid.box(index).grown(self.halo).intersection(self.grid.domain)

    def labels_box(self, index: int) -> Box:
        """What is read of the segmentation: the read box, and every sampler cell at the core."""
        box = self.read_box(index)
        if self.spacing_nm is None:
            return box
        cells = cells_box(
            self.grid.box(index), self.grid.domain, self.voxel_size_nm, self.spacing_nm
        )
        return box.hull(cells)

    def describe(self, index: int) -> str:
        """The box for messages: its key and the voxels it owns."""
        return f"box {self.key(index)} {self.grid.box(index)}"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BoxNodes:
    """A box and the nodes that belong to it; the segmentation, where it is read already."""

    index: int
    nodes: Nodes
    labels: Part | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BoxInput:
    """A box with its nodes and voxels."""

    index: int
    nodes: Nodes
    subvolume: Subvolume


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BoxOutput:
    """A box's rows and the receipt for them, not yet committed."""

    index: int
    rows: Rows
    receipt: Receipt
    bytes_read: int


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A box that is committed.

    Attributes:
        receipt: The receipt that stands.
        skipped: Whether it was found committed and nothing was computed.
        bytes_read: Decoded bytes read for it now.
    """

    receipt: Receipt
    skipped: bool
    bytes_read: int


def plan_of(work: EmbedWork, index: int, nodes: Nodes) -> BoxPlan:
    """What a box owes: every node that belongs to it, those to be rejected included."""
    return BoxPlan(work.key(index), len(nodes), nodes.identity_digest(), nodes.digest())


def fingerprint_of(work: EmbedWork, plan: BoxPlan) -> str:
    """The fingerprint of a box's receipt in this run."""
    return fingerprint(work.identity, plan.content)


def check_labels(work: EmbedWork, index: int, labels: Part) -> None:
    """Apply the policy for segmentation chunks that are not stored.

    Raises:
        RunError: A chunk is missing and the policy is ``error``.
    """
    if labels.missing and work.missing_segmentation == "error":
        raise RunError(
            f"{work.describe(index)}: {len(labels.missing)} chunks of {work.segmentation.source} "
            f"are not stored, the first at {labels.missing[0]}; --missing-segmentation error takes "
            "that for a loss: restore them, or run with --missing-segmentation background into a "
            "new --output"
        )


def embed_box(work: EmbedWork, encoder: Encoder, box: BoxInput) -> BoxOutput:
    """Cut, mask and encode the crops of a box, one batch of crops at a time.

    Args:
        work: The run.
        encoder: The loaded model.
        box: The box with its voxels.

    Returns:
        The rows sorted by (segment_id, node_id), and their receipt.

    Raises:
        RunError: An image chunk is missing under a mask and the policy is ``error``, or the
            network gave something that is not a number.
    """
    plan = plan_of(work, box.index, box.nodes)
    kept, rejected = reject_in_box(box.nodes)
    cutting = _Cutting(work, box, kept)
    try:
        vectors = encoder.encode(cutting.pixels())
    except ModelError as e:
        raise RunError(f"{work.describe(box.index)}: {e}") from e
    rows = cutting.rows(vectors)
    rejected = {**rejected, "empty_mask": len(kept) - len(rows)}
    sub = box.subvolume
    receipt = Receipt(
        box=plan.box,
        core=work.grid.box(box.index),
        read_box=sub.box,
        fingerprint=fingerprint_of(work, plan),
        planned=plan.nodes,
        committed=len(rows),
        rejected=tuple(sorted((reason, n) for reason, n in rejected.items() if n)),
        identities=plan.identities,
        rows_digest=rows.digest(),
        image_digest=array_digest(sub.image),
        labels_digest=array_digest(sub.labels),
        run=work.run,
    )
    return BoxOutput(box.index, rows, receipt, sub.bytes_decoded)


class _Cutting:
    """Hands out the crops of a box one by one and keeps what the rows need of each."""

    def __init__(self, work: EmbedWork, box: BoxInput, nodes: Nodes) -> None:
        self._work = work
        self._box = box
        self._nodes = nodes
        self._voxels = voxels_at(nodes.position_nm, work.voxel_size_nm)
        self._kept: list[int] = []
        self._mask_voxels: list[int] = []
        self._digests: list[bytes] = []

    def pixels(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The crops that show something of their segment, in the order of the nodes."""
        sub, size = self._box.subvolume, self._work.model.input_size
        labels = sub.labels[sub.box.slices(sub.labels_box)]
        ids = self._nodes.segment_id
        crops = iter_crops(sub.image, labels, sub.box, self._voxels, ids, size)
        for i, crop in enumerate(crops):
            if crop.mask_voxels == 0:
                continue
            if sub.missing_image and self._work.missing_image == "error":
                self._refuse_missing(i, labels)
            self._keep(i, crop)
            yield crop.pixels

    def rows(self, vectors: npt.NDArray[np.float32]) -> Rows:
        """The rows of the crops handed out, given their vectors."""
        kept = self._nodes.take(np.array(self._kept, dtype=np.int64))
        return Rows(
            segment_id=kept.segment_id,
            node_id=kept.node_id,
            position_nm=kept.position_nm,
            embedding=vectors,
            mask_voxels=np.array(self._mask_voxels, dtype=np.uint32),
            crop_digest=np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, DIGEST_BYTES),
        )

    def _keep(self, i: int, crop: Crop) -> None:
        self._kept.append(i)
        self._mask_voxels.append(crop.mask_voxels)
        self._digests.append(crop_digest(crop.pixels))

    def _refuse_missing(self, i: int, labels: npt.NDArray[Any]) -> None:
        sub = self._box.subvolume
        voxel: Vec = tuple(int(v) for v in self._voxels[i])  # type: ignore[assignment]
        segment, node = int(self._nodes.segment_id[i]), int(self._nodes.node_id[i])
        crop = crop_box(voxel, self._work.model.input_size)
        for missing in sub.missing_image:
            hidden = missing.intersection(crop).intersection(sub.box)
            if hidden.size and (labels[hidden.slices(sub.box)] == segment).any():
                raise RunError(
                    f"{self._work.describe(self._box.index)}: the image chunk {missing} of "
                    f"{self._work.image.source} is not stored, and node {node} of segment "
                    f"{segment} has its mask there; a lost chunk would be embedded as black: "
                    "restore it, or run with --missing-image zero into a new --output"
                )
