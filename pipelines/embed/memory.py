"""How much memory a worker process takes at its peak: the model behind the plan's figure.

The parts, each measured or following from shapes:

- Python with Beam, TensorStore and TensorFlow loaded: a constant of the software.
- the weights, twice: the file's arrays live until they are assigned.
- a batch's activations, with the convolutions' scratch space as a factor.
- the voxels of the read box: image and segmentation, with the chunks in flight while they are read.

``benchmarks/embed.py`` prints this beside the measured peak.
"""

from segclr.config import activation_bytes_per_crop
from transforms.work import EmbedWork
from volumes.reading import decoded_bytes

_LIBRARIES = 900 << 20
_ACTIVATION_FACTOR = 3.0


def peak_bytes(work: EmbedWork, occupied: list[int] | None) -> int:
    """Predicted peak of a worker's resident memory in bytes.

    Args:
        work: The run.
        occupied: The boxes to be read, where they are known; otherwise the largest possible read
            box is taken.
    """
    voxels = max((_box_bytes(work, i) for i in occupied or [0]), default=0)
    return _LIBRARIES + 2 * work.model.weights_bytes + _batch_bytes(work) + voxels


def _box_bytes(work: EmbedWork, index: int) -> int:
    image_box, labels_box = work.read_box(index), work.labels_box(index)
    arrays = image_box.size + labels_box.size * work.segmentation.itemsize
    decoded = decoded_bytes(work.image, image_box) + decoded_bytes(work.segmentation, labels_box)
    return arrays + min(work.bytes_in_flight, decoded)


def _batch_bytes(work: EmbedWork) -> int:
    model = work.model
    if model.network is None:
        return 0
    crop = activation_bytes_per_crop(model.network, model.input_size)
    return round(_ACTIVATION_FACTOR * model.batch * crop)
