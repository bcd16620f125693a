"""How much memory a worker process takes at its peak: the model behind the plan's figure.

The parts, each following from shapes or measured by ``benchmarks/embed.py``, which prints the sum
beside the peak of a fresh process:

- Python with Beam, TensorStore and TensorFlow loaded, and what the C library keeps of freed blocks
  after some boxes: a constant of the software.
- the weights, half of them twice: the file's arrays live until they are assigned.
- what a batch keeps alive in the network, by ``segclr.config.activation_bytes_per_crop``.
- the voxels of a box: image and segmentation, and the chunks in flight while they are read. Where
  there are several boxes, the last box's arrays may still be held while the next ones are read.
- the sampler's working arrays, a few times a cell's voxels.
"""

from segclr.config import activation_bytes_per_crop
from segclr.sampler import cells_box
from transforms.work import EmbedWork
from volumes.geometry import Box, vec
from volumes.reading import decoded_bytes

_LIBRARIES = 990 << 20
_WEIGHTS = 1.5
_ACTIVATIONS = 1.05

# Working arrays of the sampler, in times the bytes of a cell's ids.
_SAMPLER = 5


def peak_bytes(work: EmbedWork, occupied: list[int] | None, boxes: int) -> int:
    """Predicted peak of a worker's resident memory in bytes.

    Args:
        work: The run.
        occupied: The boxes to be read, where they are known; otherwise an inner box is taken.
        boxes: How many boxes there are.
    """
    indices = occupied if occupied else [_inner(work)]
    voxels = max(_box_bytes(work, i, boxes > 1) for i in indices)
    weights = round(_WEIGHTS * work.model.weights_bytes)
    return _LIBRARIES + weights + _batch_bytes(work) + voxels + _sampler_bytes(work, indices[0])


def _box_bytes(work: EmbedWork, index: int, several: bool) -> int:
    image_box, labels_box = work.read_box(index), work.labels_box(index)
    arrays = image_box.size + labels_box.size * work.segmentation.itemsize
    decoded = decoded_bytes(work.image, image_box) + decoded_bytes(work.segmentation, labels_box)
    return arrays * (2 if several else 1) + min(work.bytes_in_flight, decoded)


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


def _inner(work: EmbedWork) -> int:
    """A box in the middle of the grid, which the domain does not clip where there is such a one."""
    grid = work.grid
    return grid.index(vec(f + n // 2 for f, n in zip(grid.first, grid.counts, strict=True)))
