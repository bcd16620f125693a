"""The masked patch around a node: the one place where XYZ turns into ZYX.

Volumes come as arrays with axes XYZ; the network takes ``[z, y, x]``. A crop of ``size`` voxels a
side around voxel ``v`` is ``[v - size // 2, v - size // 2 + size)``; in it, grey values of other
segments and everything outside the box at hand are 0.
"""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from volumes.geometry import Box, Vec, vec

DIGEST_BYTES = 16
"""Bytes of a crop's digest."""

Labels = npt.NDArray[np.integer]
"""Segment ids of any integer type, axes XYZ."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A masked patch.

    Attributes:
        pixels: Grey values, uint8 ``[size, size, size]``, ZYX, C-contiguous.
        mask_voxels: Voxels of the segment in the patch, whatever their grey value.
    """

    pixels: npt.NDArray[np.uint8]
    mask_voxels: int


def crop_box(voxel: Vec, size: int) -> Box:
    """The box of a crop of ``size`` voxels a side around a voxel."""
    return Box.of(vec(v - size // 2 for v in voxel), (size, size, size))


def cut_crop(
    image: npt.NDArray[np.uint8],
    labels: Labels,
    box: Box,
    voxel: Vec,
    segment_id: int,
    size: int,
) -> Crop:
    """The crop around a voxel, masked by one segment.

    Args:
        image: Grey values, uint8, XYZ, of the shape of ``box``.
        labels: Segment ids, any integer type, XYZ, of the shape of ``box``.
        box: Where both arrays lie, in voxels of the frame.
        voxel: Centre of the crop in the frame; it may lie outside ``box``.
        segment_id: The segment to keep, compared as an exact integer. An id that the labels' type
            cannot hold matches nothing.
        size: Voxels a side.

    Raises:
        ValueError: If the arrays are not of these types or not of the shape of ``box``.
    """
    _refuse_other_arrays(image, labels, box)
    pixels = np.zeros((size, size, size), dtype=np.uint8)
    whole = crop_box(voxel, size)
    part = whole.intersection(box)
    limits = np.iinfo(labels.dtype)
    if part.size == 0 or not limits.min <= segment_id <= limits.max:
        return Crop(pixels, 0)
    source = part.slices(box)
    grey, ids, target = image[source], labels[source], pixels.T[part.slices(whole)]
    wanted = labels.dtype.type(segment_id)
    mask_voxels = 0
    # Plane by plane, as one fits the cache: half the time of masking and turning the whole.
    for y in range(part.shape[1]):
        mask = ids[:, y] == wanted
        mask_voxels += int(np.count_nonzero(mask))
        target[:, y] = grey[:, y] * mask
    return Crop(pixels, mask_voxels)


def iter_crops(
    image: npt.NDArray[np.uint8],
    labels: Labels,
    box: Box,
    voxels: npt.NDArray[np.int64],
    segment_ids: npt.NDArray[np.uint64],
    size: int,
) -> Iterator[Crop]:
    """The crops of nodes, each cut when it is asked for.

    Args:
        image: See ``cut_crop``.
        labels: See ``cut_crop``.
        box: See ``cut_crop``.
        voxels: Centres, int64 ``[n, 3]``, XYZ, in the frame.
        segment_ids: Segments, uint64 ``[n]``.
        size: Voxels a side.
    """
    for voxel, segment_id in zip(voxels, segment_ids, strict=True):
        yield cut_crop(image, labels, box, vec(voxel), int(segment_id), size)


def crop_digest(pixels: npt.NDArray[np.uint8]) -> bytes:
    """BLAKE2b digest, 16 bytes, of a crop's grey values in the order ZYX."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=DIGEST_BYTES).digest()


def _refuse_other_arrays(image: npt.NDArray[np.uint8], labels: Labels, box: Box) -> None:
    """Refuse arrays that are not what ``cut_crop`` takes."""
    if image.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"an image of uint8 and labels of integers are needed, got {image.dtype} and "
            f"{labels.dtype}"
        )
    if image.shape != box.shape or labels.shape != box.shape:
        raise ValueError(
            f"image and labels must fill the box {box} of shape {box.shape}, got {image.shape} "
            f"and {labels.shape}"
        )
