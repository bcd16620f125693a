"""From a box's voxels to its rows and their receipt, as pure functions."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from segclr.crops import crop_box, crop_digest, iter_crops
from segclr.encoder import Encoder
from segclr.errors import ModelError
from segclr.nodes import Nodes, reject_in_box
from transforms.work import BoxInput, BoxOutput, EmbedWork, fingerprint_of, plan_of
from volumes.commits import Change, standing_digest
from volumes.errors import DataError, RunError
from volumes.geometry import Vec, voxels_at
from volumes.receipts import DIGEST_BYTES, Receipt, Rows, array_digest


def check_image(work: EmbedWork, box: BoxInput) -> None:
    """Apply the policy for image chunks that are not stored.

    Raises:
        DataError: A chunk is missing under a node's mask and the policy is ``error``.
    """
    sub = box.subvolume
    if not sub.missing_image or work.missing_image != "error":
        return
    kept, _ = reject_in_box(box.nodes)
    labels = _labels_of(box)
    voxels = voxels_at(kept.position_nm, work.voxel_size_nm)
    for i, segment in enumerate(kept.segment_id.tolist()):
        voxel: Vec = tuple(int(v) for v in voxels[i])  # type: ignore[assignment]
        crop = crop_box(voxel, work.model.input_size)
        for missing in sub.missing_image:
            hidden = missing.intersection(crop).intersection(sub.box)
            if hidden.size and (labels[hidden.slices(sub.box)] == segment).any():
                raise DataError(
                    f"{work.describe(box.index)}: the image chunk {missing} of "
                    f"{work.image.source} is not stored, and node {int(kept.node_id[i])} of "
                    f"segment {segment} has its mask there; a lost chunk would be embedded as "
                    "black: restore it, or run with --missing-image zero into a new --output"
                )


def embed_box(
    work: EmbedWork,
    load: Callable[[], Encoder],
    box: BoxInput,
    prior_rows: Callable[[], Rows | None],
) -> BoxOutput:
    """Cut, mask and encode the crops of a box, one batch of crops at a time.

    Where the box is committed already, what was read is compared with what its receipt says; where
    it differs, only crops that no row of the box has go through the network.

    Args:
        work: The run.
        load: Gives the loaded model; called when the first crop is to be encoded.
        box: The box with its voxels.
        prior_rows: Gives the rows that the prior receipt is for; None where there is none.

    Returns:
        The rows sorted by (segment_id, node_id), and their receipt.

    Raises:
        RunError: The network gave something that is not a number.
    """
    plan = plan_of(work, box.index, box.nodes)
    sub = box.subvolume
    image_digest, labels_digest = array_digest(sub.image), array_digest(sub.labels)
    prior = box.prior
    replaces = None if prior is None else standing_digest(prior)
    _, local = work.generation.place(work.grid.coordinate(box.index))
    seen: dict[str, Any] = {
        "core": work.grid.box(box.index),
        "read_box": sub.box,
        "inputs": work.inputs,
        "image_digest": image_digest,
        "labels_digest": labels_digest,
        "image_stamp": box.image_stamp,
        "labels_stamp": box.labels_stamp,
        "agglomeration": None if work.agglomeration is None else work.agglomeration.digest,
        "run": work.run,
    }
    if prior is not None and _reads_the_same(prior, fingerprint_of(work, plan), seen):
        receipt = dataclasses.replace(prior, computed=0, **seen)
        change = Change(local, plan.box, receipt, replaces=replaces, supervoxels=box.supervoxels)
        return BoxOutput(box.index, change, sub.bytes_decoded)
    kept, rejected = reject_in_box(box.nodes)
    cutting = _Cutting(work, box, kept, prior_rows())
    rows, computed = cutting.encoded(load)
    rejected = {**rejected, "empty_mask": len(kept) - len(rows)}
    receipt = Receipt(
        box=plan.box,
        fingerprint=fingerprint_of(work, plan),
        planned=plan.nodes,
        committed=len(rows),
        computed=computed,
        rejected=tuple(sorted((reason, n) for reason, n in rejected.items() if n)),
        identities=plan.identities,
        content=plan.content,
        rows_digest=rows.digest(),
        **seen,
    )
    change = Change(local, plan.box, receipt, rows, replaces=replaces, supervoxels=box.supervoxels)
    return BoxOutput(box.index, change, sub.bytes_decoded)


def _reads_the_same(prior: Receipt, fingerprint: str, seen: dict[str, Any]) -> bool:
    same = ("core", "read_box", "image_digest", "labels_digest")
    return prior.fingerprint == fingerprint and all(getattr(prior, n) == seen[n] for n in same)


def _labels_of(box: BoxInput) -> npt.NDArray[Any]:
    """The ids of the image's box."""
    sub = box.subvolume
    return sub.labels[sub.box.slices(sub.labels_box)]


class _Cutting:
    """Hands out the crops of a box one by one and keeps what the rows need of each."""

    def __init__(self, work: EmbedWork, box: BoxInput, nodes: Nodes, prior: Rows | None) -> None:
        self._work = work
        self._box = box
        self._nodes = nodes
        self._voxels = voxels_at(nodes.position_nm, work.voxel_size_nm)
        self._prior = Rows.empty(work.model.embedding_width) if prior is None else prior
        digests = (bytes(d) for d in self._prior.crop_digest)
        self._known = {digest: i for i, digest in enumerate(digests)}
        self._kept: list[int] = []
        self._mask_voxels: list[int] = []
        self._digests: list[bytes] = []

    def encoded(self, load: Callable[[], Encoder]) -> tuple[Rows, int]:
        """The rows of the box, and how many of them were computed now."""
        crops = self._new_crops()
        first = next(crops, None)
        vectors = np.zeros((0, self._work.model.embedding_width), np.float32)
        if first is not None:
            try:
                vectors = load().encode(_chained(first, crops))
            except ModelError as e:
                raise RunError(f"{self._work.describe(self._box.index)}: {e}") from e
        old = np.array([self._known.get(d, -1) for d in self._digests], dtype=np.int64)
        embedding = np.empty((len(old), vectors.shape[1]), np.float32)
        embedding[old < 0] = vectors
        embedding[old >= 0] = self._prior.embedding[old[old >= 0]]
        kept = self._nodes.take(np.array(self._kept, dtype=np.int64))
        rows = Rows(
            segment_id=kept.segment_id,
            node_id=kept.node_id,
            position_nm=kept.position_nm,
            embedding=embedding,
            mask_voxels=np.array(self._mask_voxels, dtype=np.uint32),
            crop_digest=np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, DIGEST_BYTES),
        )
        return rows, len(vectors)

    def _new_crops(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The crops that show something of their segment and that no prior row has."""
        sub, size = self._box.subvolume, self._work.model.input_size
        ids = self._nodes.segment_id
        crops = iter_crops(sub.image, _labels_of(self._box), sub.box, self._voxels, ids, size)
        for i, crop in enumerate(crops):
            if crop.mask_voxels == 0:
                continue
            digest = crop_digest(crop.pixels)
            self._kept.append(i)
            self._mask_voxels.append(crop.mask_voxels)
            self._digests.append(digest)
            if digest not in self._known:
                yield crop.pixels


def _chained(
    first: npt.NDArray[np.uint8], others: Iterator[npt.NDArray[np.uint8]]
) -> Iterator[npt.NDArray[np.uint8]]:
    yield first
    yield from others
