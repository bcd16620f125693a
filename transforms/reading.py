"""What is read for a box: its voxels at one moment, and whether they are those of its receipt."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from segclr.nodes import Nodes
from segclr.sampler import sample_sites
from transforms.embedding import check_image
from transforms.work import BoxInput, BoxNodes, EmbedWork, Labels, check_labels
from volumes import agglomeration, partition
from volumes.agglomeration import Agglomeration
from volumes.caching.disk import Copies
from volumes.caching.pool import pooled
from volumes.caching.remote import read_through
from volumes.errors import DataError, RunError
from volumes.opening import Volume, open_volume
from volumes.reading import Part, Request, Subvolume
from volumes.receipts import Receipt
from volumes.snapshots import MovedError, Snapshot, read_snapshot
from volumes.spec import VolumeSpec
from volumes.stamps import stamp


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The open volumes of a run, and how they are read.

    Attributes:
        image: The image.
        segmentation: The segmentation.
        copies: Where what is read over a network is kept; None to keep none.
    """

    image: Volume
    segmentation: Volume
    copies: Copies | None = None

    @classmethod
    def opened(cls, work: EmbedWork) -> "Inputs":
        """Open both, through the process's pool of decoded chunks where the run has one."""
        return cls(
            input_volume(work, work.image), input_volume(work, work.segmentation), work.copies
        )

    def snapshot(self, requests: Sequence[Request], bytes_in_flight: int) -> Snapshot:
        """Read boxes as they were at one moment: see ``volumes.snapshots.read_snapshot``."""
        if self.copies is None:
            return read_snapshot(requests, bytes_in_flight=bytes_in_flight)
        return read_through(self.copies, requests, bytes_in_flight=bytes_in_flight)


def input_volume(work: EmbedWork, spec: VolumeSpec) -> Volume:
    """An input as the run reads it."""
    return pooled(open_volume(spec), work.cache_bytes)


def read_input(work: EmbedWork, inputs: Inputs, box: BoxNodes) -> BoxInput:
    """Read what a box's crops need, image and segmentation as of one moment.

    Raises:
        DataError: A chunk is damaged or missing, or does not hold still; the box is named.
        RunError: Storage fails; the box is named.
    """
    read_box, labels_box = work.read_box(box.index), work.labels_box(box.index)
    requests = [Request(inputs.image, read_box), Request(inputs.segmentation, labels_box)]
    try:
        found = inputs.snapshot(requests, work.bytes_in_flight)
    except RunError as e:
        raise _named(work, box.index, e) from e
    image = found.parts[0]
    labels = mapped(work, found.parts[1], found.stamps[1])
    if box.sampled is not None and labels.stamp != box.sampled:
        raise MovedError(
            f"{work.describe(box.index)}: {work.segmentation.source} changed since the nodes of "
            "this box were sampled"
        )
    check_labels(work, box.index, labels.part)
    subvolume = Subvolume(
        box=read_box,
        image=image.array,
        labels_box=labels_box,
        labels=labels.part.array,
        missing_image=image.missing,
        missing_labels=labels.part.missing,
        bytes_decoded=image.bytes_decoded + labels.part.bytes_decoded + box.bytes_read,
    )
    read = BoxInput(
        index=box.index,
        nodes=box.nodes,
        prior=box.prior,
        subvolume=subvolume,
        image_stamp=found.stamps[0],
        labels_stamp=labels.stamp,
        supervoxels=labels.supervoxels,
    )
    check_image(work, read)
    return read


def read_labels(work: EmbedWork, inputs: Inputs, index: int) -> Labels:
    """Read the segmentation around a box.

    Raises:
        DataError: A chunk is damaged or missing, or does not hold still; the box is named.
        RunError: Storage fails; the box is named.
    """
    request = Request(inputs.segmentation, work.labels_box(index))
    try:
        found = inputs.snapshot([request], work.bytes_in_flight)
    except RunError as e:
        raise _named(work, index, e) from e
    check_labels(work, index, found.parts[0])
    return mapped(work, found.parts[0], found.stamps[0])


def mapped(work: EmbedWork, part: Part, stamp: str | None) -> Labels:
    """The ids as bodies: the one place where a table maps what was read."""
    if work.agglomeration is None:
        return Labels(part, stamp, None)
    ids = agglomeration.distinct(part.array)
    bodies = agglomeration.load(work.agglomeration).apply(part.array)
    return Labels(dataclasses.replace(part, array=bodies), stamp, agglomeration.pack_ids(ids))


def sample_box(work: EmbedWork, inputs: Inputs, index: int) -> BoxNodes:
    """Read the segmentation around a box and sample the sites that the box owns.

    Raises:
        DataError: The segmentation is damaged, or holds what is no segment id.
        RunError: The segmentation cannot be read.
    """
    if work.spacing_nm is None:
        raise ValueError("the run has given nodes; there is nothing to sample")
    labels = read_labels(work, inputs, index)
    read = labels.part.bytes_decoded
    if not labels.part.array.any():
        return BoxNodes(index, Nodes.empty(), bytes_read=read)
    try:
        nodes = sample_sites(
            labels.part.array,
            work.labels_box(index),
            work.grid.box(index),
            work.grid.domain,
            work.voxel_size_nm,
            work.spacing_nm,
        )
    except ValueError as e:
        raise DataError(f"{work.describe(index)}: cannot sample sites: {e}") from e
    return BoxNodes(index, nodes, sampled=labels.stamp, bytes_read=read)


def is_current(work: EmbedWork, inputs: Inputs, index: int, receipt: Receipt) -> bool:
    """Whether the inputs of a committed box are surely those of its receipt; reads no voxel.

    It is so where the stamps of the chunks under it stand as they were, and where no supervoxel in
    it has another body. What has no stamps is never surely so.
    """
    if receipt.inputs != work.inputs:
        return False
    if receipt.core != work.grid.box(index) or receipt.read_box != work.read_box(index):
        return False
    for volume, box, before in (
        (inputs.segmentation, work.labels_box(index), receipt.labels_stamp),
        (inputs.image, work.read_box(index), receipt.image_stamp),
    ):
        if before is None or stamp(volume, box) != before:
            return False
    return not _has_moved(work, index, receipt)


def _has_moved(work: EmbedWork, index: int, receipt: Receipt) -> bool:
    """Whether a supervoxel of a box belongs to another body than when it was committed."""
    now = work.agglomeration
    if receipt.agglomeration == (None if now is None else now.digest):
        return False
    where, _ = work.generation.place(work.grid.coordinate(index))
    key = f"supervoxels/{receipt.box}"
    packed = partition.read_key(where, key)
    if packed is None:
        return True
    moved = _moved(work.generation.store, receipt.agglomeration, now)
    ids = agglomeration.unpack_ids(packed, f"{where} {key}")
    return bool(np.isin(ids, moved, assume_unique=True).any())


@functools.lru_cache(maxsize=4)
def _moved(store: str, before: str | None, now: Agglomeration | None) -> npt.NDArray[np.uint64]:
    """The supervoxels that two tables give other bodies."""
    old = None if before is None else agglomeration.load(agglomeration.kept(store, before))
    return agglomeration.moved(old, None if now is None else agglomeration.load(now))


def _named(work: EmbedWork, index: int, error: RunError) -> RunError:
    """The error with the box's name before it."""
    kind = DataError if isinstance(error, DataError) else RunError
    return kind(f"{work.describe(index)}: {error}")
