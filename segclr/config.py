"""What a network is made of: its shape, the names of its tensors and what a crop costs.

The network is a 3-D residual network with basic blocks, followed by dense heads. Its tensors carry
the names that the published weights use ("plain names"), scopes separated by ``/``:
``base_model_0/resnet18/stage_1/conv1/kernel``. ``stage_1`` is the stem, ``stage_2`` to ``stage_5``
hold the residual blocks ``block_a``, ``block_b``, ...; ``bottleneck_head_0`` yields the embedding
and ``projection_head_0_0``, which only training needs, follows it. Kernels are
``(z, y, x, in, out)``, dense kernels ``(in, out)``.
"""

import dataclasses
import math
import string
from collections.abc import Iterator
from typing import Any

from segclr.errors import ModelError

BOTTLENECK = "bottleneck_head_0"
"""Scope of the head whose output is the embedding."""

PROJECTION = "projection_head_0_0"
"""Scope of the head that follows the embedding in training."""

NORM_TENSORS = ("gamma", "beta", "moving_mean", "moving_variance")
"""Tensors of a batch normalisation, in inference."""

_DEPTH_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The shape of a network; the defaults are the published one.

    Attributes:
        blocks: Residual blocks of the four stages, 1 to 26 each.
        width: Channels of the stem and the first stage; the stages have 1, 2, 4 and 8 times as
            many.
        bottleneck: Widths of the dense layers of the bottleneck head, the last of which is the
            width of the embedding.
        projection: The same for the projection head; None where there is none.
    """

    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    width: int = 64
    bottleneck: tuple[int, ...] = (512, 512, 64)
    projection: tuple[int, ...] | None = (64, 64, 16)

    def __post_init__(self) -> None:
        """Refuse a network without extent."""
        letters = len(string.ascii_lowercase)
        if len(self.blocks) != 4 or not all(1 <= b <= letters for b in self.blocks):
            raise ModelError(
                f"a network needs four stages of 1 to {letters} blocks, got {self.blocks}"
            )
        heads = [self.bottleneck, *([] if self.projection is None else [self.projection])]
        if self.width < 1 or not all(h and min(h) >= 1 for h in heads):
            raise ModelError(
                "a network needs a width of at least 1 and heads of at least one layer of at least "
                f"1 unit, got width {self.width}, bottleneck {self.bottleneck}, projection "
                f"{self.projection}"
            )

    @property
    def depth(self) -> int:
        """Layers with weights from the stem to the pooling, as networks are named: 18, 34, ..."""
        return 2 + 2 * sum(self.blocks)

    @property
    def scope(self) -> str:
        """Scope of the residual network."""
        return f"base_model_0/resnet{self.depth}"

    @property
    def embedding_width(self) -> int:
        """Components of an embedding."""
        return self.bottleneck[-1]

    def without_projection(self) -> "NetworkConfig":
        """The network that computes the embedding and nothing else."""
        return dataclasses.replace(self, projection=None)

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON."""
        return {
            "blocks": list(self.blocks),
            "width": self.width,
            "bottleneck": list(self.bottleneck),
            "projection": None if self.projection is None else list(self.projection),
        }

    @classmethod
    def from_json(cls, document: Any) -> "NetworkConfig":
        """The configuration that ``to_json`` wrote; anything else is a ``ModelError``."""
        names = sorted(field.name for field in dataclasses.fields(cls))
        if not isinstance(document, dict) or sorted(document) != names:
            raise ModelError(
                f"a network's description has the fields {', '.join(names)}, got {document!r}"
            )
        blocks = _counts("blocks", document["blocks"])
        (width,) = _counts("width", [document["width"]])
        if len(blocks) != 4:
            raise ModelError(f"a network has four stages, got blocks {list(blocks)}")
        projection = document["projection"]
        return cls(
            blocks=(blocks[0], blocks[1], blocks[2], blocks[3]),
            width=width,
            bottleneck=_counts("bottleneck", document["bottleneck"]),
            projection=None if projection is None else _counts("projection", projection),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A residual block.

    Attributes:
        scope: Scope of its tensors.
        channels: Channels of its input.
        filters: Channels of its output.
        stride: Stride of its first convolution and of its shortcut.
        shortcut: Whether the shortcut is a convolution; otherwise it is the input itself.
    """

    scope: str
    channels: int
    filters: int
    stride: int
    shortcut: bool


def blocks_of_depth(depth: int) -> tuple[int, int, int, int]:
    """Blocks of the four stages of a network of 18 or 34 layers."""
    if depth not in _DEPTH_BLOCKS:
        raise ModelError(f"a depth of {depth} is not known: choose {_either(_DEPTH_BLOCKS)}")
    return _DEPTH_BLOCKS[depth]


def residual_blocks(config: NetworkConfig) -> tuple[Block, ...]:
    """The residual blocks, first to last."""
    found = []
    channels = config.width
    for stage, count in enumerate(config.blocks):
        filters = config.width * 2**stage
        for i, letter in enumerate(string.ascii_lowercase[:count]):
            scope = f"{config.scope}/stage_{stage + 2}/block_{letter}"
            stride = 2 if stage > 0 and i == 0 else 1
            found.append(Block(scope, channels, filters, stride, shortcut=i == 0))
            channels = filters
    return tuple(found)


def head_layers(config: NetworkConfig, head: str) -> tuple[tuple[str, int, int], ...]:
    """``(scope, inputs, units)`` of each dense layer of a head; none where the head is absent."""
    if head == BOTTLENECK:
        inputs, widths = config.width * 8, config.bottleneck
    else:
        inputs, widths = config.embedding_width, config.projection or ()
    return tuple(
        (f"{head}/nl_{i}", n, units)
        for i, (n, units) in enumerate(zip((inputs, *widths), widths, strict=False))
    )


def tensor_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Plain name and shape of every tensor that inference needs, in the order of the layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    _add_convolution(shapes, f"{config.scope}/stage_1/conv1", 7, 1, config.width)
    _add_norm(shapes, f"{config.scope}/stage_1/bn1", config.width)
    for block in residual_blocks(config):
        for i, channels in enumerate((block.channels, block.filters)):
            _add_convolution(shapes, f"{block.scope}/conv_{i}", 3, channels, block.filters)
            _add_norm(shapes, f"{block.scope}/bn_{i}", block.filters)
        if block.shortcut:
            _add_convolution(
                shapes, f"{block.scope}/shortcut_conv", 1, block.channels, block.filters
            )
            _add_norm(shapes, f"{block.scope}/shortcut_bn", block.filters)
    for head in (BOTTLENECK, PROJECTION):
        for scope, inputs, units in head_layers(config, head):
            shapes[f"{scope}/dense/kernel"] = (inputs, units)
            _add_norm(shapes, f"{scope}/{scope.rsplit('/')[-1]}_bn", units)
    return shapes


def stage_norms(config: NetworkConfig) -> tuple[tuple[str, int], ...]:
    """Scope and channels of each normalisation in the residual blocks (20 in the published net).

    In training these are batch-renormalisation layers, which keep further statistics.
    """
    return tuple(
        (f"{block.scope}/{norm}", block.filters)
        for block in residual_blocks(config)
        for norm in ("bn_0", "bn_1", *(("shortcut_bn",) if block.shortcut else ()))
    )


def weights_bytes(config: NetworkConfig) -> int:
    """Bytes of the float32 tensors that inference needs."""
    return _FLOAT_BYTES * sum(math.prod(shape) for shape in tensor_shapes(config).values())


def flops_per_crop(config: NetworkConfig, input_size: int) -> int:
    """Floating-point operations for the embedding of one crop of ``input_size`` voxels a side.

    Two (a multiplication and an addition) a weight and output voxel of every convolution and dense
    layer; the rest is well below 1 % and left out.
    """
    shapes = tensor_shapes(config.without_projection())
    sizes = dict(_convolution_sizes(config, input_size))
    return 2 * sum(
        math.prod(shape) * sizes.get(name.removesuffix("/kernel"), 1) ** 3
        for name, shape in shapes.items()
        if name.endswith("/kernel")
    )


def activation_bytes_per_crop(config: NetworkConfig, input_size: int) -> int:
    """Bytes that one crop of a batch keeps alive at once in the compiled network, at the most.

    From the shapes alone, for the order in which ``segclr.network.compile_forward`` computes: the
    pixels and their cells of 2 x 2 x 2 in uint8; the cells in float32, and again divided by 255 or
    through the stem's convolution; then three tensors a residual block, its input and the input and
    the output of the convolution at work. Normalisations and rectifiers work in place.
    """
    stem = _halved(input_size)
    cells = 8 * (stem + 3) ** 3
    size = _halved(stem)
    peak = cells + max(cells, stem**3 * config.width)
    for block in residual_blocks(config):
        inner = -(-size // block.stride)
        peak = max(peak, size**3 * block.channels + 2 * inner**3 * block.filters)
        size = inner
    return input_size**3 + cells + _FLOAT_BYTES * peak


def _convolution_sizes(config: NetworkConfig, input_size: int) -> Iterator[tuple[str, int]]:
    """Scope of each convolution and the voxels a side of its output."""
    size = _halved(input_size)
    yield f"{config.scope}/stage_1/conv1", size
    size = _halved(size)
    for block in residual_blocks(config):
        size = -(-size // block.stride)
        for name in ("conv_0", "conv_1", "shortcut_conv"):
            yield f"{block.scope}/{name}", size


def _halved(size: int) -> int:
    """Voxels a side after a stride of 2 with SAME padding."""
    return -(-size // 2)


def _add_convolution(
    shapes: dict[str, tuple[int, ...]], scope: str, kernel: int, channels: int, filters: int
) -> None:
    """Add the kernel and the bias of a convolution."""
    shapes[f"{scope}/kernel"] = (kernel, kernel, kernel, channels, filters)
    shapes[f"{scope}/bias"] = (filters,)


def _add_norm(shapes: dict[str, tuple[int, ...]], scope: str, channels: int) -> None:
    """Add the tensors of a normalisation."""
    for tensor in NORM_TENSORS:
        shapes[f"{scope}/{tensor}"] = (channels,)


def _counts(name: str, values: Any) -> tuple[int, ...]:
    """A list of integers from JSON."""
    if not isinstance(values, list) or not all(type(v) is int for v in values):
        raise ModelError(f"a network's {name} are integers, got {values!r}")
    return tuple(values)


def _either(choices: dict[int, Any]) -> str:
    """The keys, for a message."""
    return " or ".join(str(key) for key in choices)
