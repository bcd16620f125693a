"""How much memory a worker process takes at its peak: the model behind the plan's figure.

The parts, each following from shapes or measured by ``benchmarks/embed.py``, which prints the sum
beside the peak of a fresh process:

- Python with Beam, TensorStore and TensorFlow loaded: a constant of the software.
- the weights, half of them twice: the file's arrays live until they are assigned.
- what a batch keeps alive in the network, by ``segclr.config.activation_bytes_per_crop``.
- the voxels of a box: image and segmentation, and the chunks in flight while they are read; the
  transaction in which unsharded volumes are read holds all of theirs until the box is in memory.
- the same again for each box that is read ahead.
- the pool of decoded chunks, full; where there is one, no transaction holds any.
- where remote objects are copied to disk, those of a box, whole: at most as large as decoded.
- from the second box on, what the C library keeps of freed blocks in the heaps of its threads: up
  to twice a box's arrays and a batch, and no more than a bound, as measured.
- the sampler's working arrays, a few times a cell's voxels.
- an agglomeration table, while it is loaded, and the bodies beside the ids that are mapped to them.
"""

import math

from segclr.config import activation_bytes_per_crop
from segclr.sampler import cells_box
from transforms.work import EmbedWork
from volumes.caching.remote import refusal
from volumes.geometry import Box, ChunkGrid, vec
from volumes.reading import decoded_bytes
from volumes.spec import VolumeSpec

_LIBRARIES = 900 << 20
_RETAINED = 300 << 20
_WEIGHTS = 1.5
_ACTIVATIONS = 1.05

_ID_BYTES = 8

# Of an agglomeration table while it is loaded.
_PAIR_BYTES = 60

# What boxes that are read ahead may take, unless there is to be none.
_AHEAD = 1 << 30

# Working arrays of the sampler, in times the bytes of a cell's ids.
_SAMPLER = 5


def peak_bytes(work: EmbedWork, occupied: list[int] | None, boxes: int) -> int:
    """Predicted peak of a worker's resident memory in bytes.

    Args:
        work: The run.
        occupied: The boxes to be read, where they are known; otherwise an inner box is taken.
        boxes: How many boxes there are.
    """
    indices = occupied if occupied else [inner_box(work.grid)]
    arrays = max(_array_bytes(work, i) for i in indices)
    flying = max(_flying_bytes(work, i) for i in indices)
    batch = _batch_bytes(work)
    retained = min(_RETAINED, 2 * (arrays + batch)) if boxes > 1 else 0
    weights = round(_WEIGHTS * work.model.weights_bytes)
    sampler = _sampler_bytes(work, indices[0])
    table = 0 if work.agglomeration is None else _PAIR_BYTES * work.agglomeration.pairs
    reading = (1 + work.read_ahead) * arrays + max(1, work.read_ahead) * flying + work.cache_bytes
    return _LIBRARIES + weights + batch + reading + retained + sampler + table


def fitting_read_ahead(work: EmbedWork, asked: int) -> int:
    """How many boxes are read ahead: as many as asked that fit into a gigabyte, at least one.

    Args:
        work: The run.
        asked: The most; 0 for none.
    """
    index = inner_box(work.grid)
    each = _array_bytes(work, index) + _flying_bytes(work, index)
    return min(asked, max(1, _AHEAD // each))


def _array_bytes(work: EmbedWork, index: int) -> int:
    labels = work.labels_box(index).size
    bodies = 0 if work.agglomeration is None else labels * _ID_BYTES
    return work.read_box(index).size + labels * work.segmentation.itemsize + bodies


def _flying_bytes(work: EmbedWork, index: int) -> int:
    """Chunks at once: those a transaction holds to its end, others in flight, and their copies."""
    held = others = whole = 0
    for volume, box in (
        (work.image, work.read_box(index)),
        (work.segmentation, work.labels_box(index)),
    ):
        copied = work.copies is not None and refusal(volume) is None
        chunk_by_chunk = volume.read_chunk != volume.write_chunk
        if copied or chunk_by_chunk or work.cache_bytes:
            others += decoded_bytes(volume, box)
        else:
            held += decoded_bytes(volume, box)
        if copied:
            whole += _stored_bytes(volume, box)
    return held + min(work.bytes_in_flight, others) + whole


def _stored_bytes(volume: VolumeSpec, box: Box) -> int:
    """Bytes of the stored objects under a box, if nothing compressed them."""
    return volume.write_grid.count_meeting(box) * math.prod(volume.write_chunk) * volume.itemsize


def box_bytes(work: EmbedWork, index: int) -> int:
    """Decoded bytes of both volumes that a box reads; the segmentation's twice to be sampled."""
    times = 1 if work.spacing_nm is None else 2
    labels = decoded_bytes(work.segmentation, work.labels_box(index))
    return decoded_bytes(work.image, work.read_box(index)) + times * labels


def _batch_bytes(work: EmbedWork) -> int:
    model = work.model
    if model.network is None:
        return 0
    crop = activation_bytes_per_crop(model.network, model.input_size)
    return round(_ACTIVATIONS * model.batch * crop)


def _sampler_bytes(work: EmbedWork, index: int) -> int:
    """Working arrays for one cell of the sampler."""
    if work.spacing_nm is None:
        return 0
    start = work.grid.box(index).start
    corner = Box(start, vec(v + 1 for v in start))
    cell = cells_box(corner, work.grid.domain, work.voxel_size_nm, work.spacing_nm)
    return _SAMPLER * cell.size * work.segmentation.itemsize


def inner_box(grid: ChunkGrid) -> int:
    """A box in the middle of the grid, which the domain does not clip where there is such a one."""
    return grid.index(vec(f + n // 2 for f, n in zip(grid.first, grid.counts, strict=True)))
