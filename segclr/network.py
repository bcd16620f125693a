"""The network in Keras: built, given weights, compiled, saved and loaded.

This module imports TensorFlow and Keras; reach it through ``segclr.runtime.network()`` alone.

A layer's name is its scope's plain name (see ``segclr.config``) with ``.`` for ``/``, and Keras
names the variables inside as the published weights do, so plain names map one to one. Convolutions
pad SAME and have a bias. Inside a residual block the rectifier comes before the normalisation; the
stem has none. The bottleneck head ends in a normalisation, whose output is the embedding.
"""

import json
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Mapping

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from segclr import keras_file
from segclr.config import (
    BOTTLENECK,
    PROJECTION,
    Block,
    NetworkConfig,
    head_layers,
    residual_blocks,
)
from segclr.errors import ModelError

_MOMENTUM = 0.9
_EPSILON = 1e-5
_WHITE = 255.0
_STEM_KERNEL = 7
_STEM_NAME = ".stage_1.conv1"


def build_network(
    config: NetworkConfig, input_size: int | None = None, with_projection: bool = False
) -> keras.Model:
    """The network with freshly initialised weights.

    Args:
        config: Its shape.
        input_size: Voxels a side of its input; None leaves them open.
        with_projection: Whether the projection head follows the embedding.

    Returns:
        A functional model. Input: float32 ``[batch, z, y, x, 1]``. Output: the embedding, float32
        ``[batch, D]``; with the projection head, the embedding and the projection.
    """
    if with_projection and config.projection is None:
        raise ModelError(f"the network {config} has no projection head to build")
    pixels = keras.Input((*(input_size,) * 3, 1), dtype="float32", name="pixels")
    stem = f"{config.scope}/stage_1"
    x = _convolution(pixels, f"{stem}/conv1", config.width, kernel=_STEM_KERNEL, stride=2)
    x = _norm(x, f"{stem}/bn1")
    x = keras.layers.MaxPooling3D(3, strides=2, padding="same", name=_layer(f"{stem}/pool"))(x)
    for block in residual_blocks(config):
        x = _residual(x, block)
    x = keras.layers.GlobalAveragePooling3D(name="pool")(x)
    embedding = _head(x, config, BOTTLENECK)
    outputs = [embedding, _head(embedding, config, PROJECTION)] if with_projection else embedding
    return keras.Model(pixels, outputs, name="segclr")


def named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """The variables of a network built here, by plain name."""
    return {
        f"{layer.name.replace('.', '/')}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.weights
    }


def assign_weights(model: keras.Model, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Give a network its weights, by plain name.

    Raises:
        ModelError: If the names or shapes are not exactly those of the network; it then keeps the
            weights it had.
    """
    variables = named_variables(model)
    needed = {name: tuple(variable.shape) for name, variable in variables.items()}
    given = {name: value.shape for name, value in weights.items()}
    if needed != given:
        names = sorted(n for n in needed | given if needed.get(n) != given.get(n))
        first = names[0]
        raise ModelError(
            f"the weights do not fit the network: {len(names)} tensors differ, the first is "
            f"{first}: needed {needed.get(first)}, given {given.get(first)}"
        )
    for name, variable in variables.items():
        variable.assign(weights[name])


def model_shape(model: keras.Model) -> tuple[int | None, int]:
    """Voxels a side of a model's input (None where open) and the width of its embedding.

    Raises:
        ModelError: If the input is not one float32 ``[batch, n, n, n, 1]`` or the output not one
            ``[batch, D]``.
    """
    inputs, outputs = model.inputs, model.outputs
    shape = tuple(inputs[0].shape) if len(inputs) == 1 else ()
    fits_input = (
        len(shape) == 5
        and shape[4] == 1
        and len(set(shape[1:4])) == 1
        and inputs[0].dtype == "float32"
    )
    output = tuple(outputs[0].shape) if len(outputs) == 1 else ()
    if not fits_input or len(output) != 2 or output[1] is None:
        raise ModelError(
            "a model takes one float32 (batch, n, n, n, 1) and gives one (batch, D); this one "
            f"takes {[(str(t.dtype), tuple(t.shape)) for t in inputs]} and gives "
            f"{[tuple(t.shape) for t in outputs]}"
        )
    return shape[1], output[1]


def save_keras(path: str, model: keras.Model, config: NetworkConfig, input_size: int) -> None:
    """Write a model as a ``.keras`` file that can be planned with before Keras is loaded.

    The file is Keras' own, with one member more: ``segclr.json``. It appears whole or not at all.

    Args:
        path: Where to; an existing file is replaced.
        model: A model from ``build_network`` without projection head.
        config: Its configuration.
        input_size: Voxels a side of the crops it is meant for.
    """
    size, embedding_width = model_shape(model)
    if size not in (None, input_size) or embedding_width != config.embedding_width:
        raise ModelError(
            f"the model takes crops of {size} voxels a side and gives {embedding_width} components,"
            f" so it cannot be saved for {input_size} voxels and {config.embedding_width} "
            "components"
        )
    target = pathlib.Path(path)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        file = pathlib.Path(folder) / "model.keras"
        model.save(file)
        with zipfile.ZipFile(file, "a") as archive:
            document = keras_file.describe(config, input_size)
            archive.writestr(keras_file.MEMBER, json.dumps(document, indent=1))
        os.replace(file, target)


def load_keras(path: str) -> keras.Model:
    """The model in a ``.keras`` file, read in safe mode: nothing in it can run code.

    Raises:
        ModelError: If the file is absent, damaged or asks for code of its own.
    """
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, ImportError, zipfile.BadZipFile) as error:
        raise ModelError(f"the model {path} cannot be read by Keras: {error}") from error
    if not isinstance(model, keras.Model):
        raise ModelError(f"the file {path} holds a {type(model).__name__}, not a model")
    return model


def compile_forward(
    model: keras.Model, batch: int, input_size: int
) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """The compiled way from pixels to embeddings, for one shape of batch.

    The stem's convolution, 7 wide with stride 2 on one channel, is computed as one 4 wide with
    stride 1 on the eight voxels of each 2 x 2 x 2 cell: the same products, added in another order.
    TensorFlow on a CPU takes less than half the time for it, which saves a quarter of a crop's.

    Returns:
        A function of uint8 ``[batch, n, n, n]`` (ZYX) that returns float32 ``[batch, D]``, its own
        array. Grey values are divided by 255.
    """
    # Reduced-precision products on a GPU would not keep the stated tolerance.
    tf.config.experimental.enable_tensor_float_32_execution(False)

    # A constant divisor would become a product with its reciprocal, which differs in the last bit.
    white = tf.Variable(_WHITE, trainable=False)
    stem = _stem_convolution(model)
    rest = model if stem is None else keras.Model(stem.output, model.outputs[0])

    def forward(pixels: tf.Tensor) -> tf.Tensor:
        if stem is None:
            x = (tf.cast(pixels, tf.float32) / white)[..., tf.newaxis]
        else:
            grey = tf.cast(_packed_pixels(pixels, input_size), tf.float32) / white
            kernel = _packed_kernel(stem.kernel)
            x = tf.nn.bias_add(tf.nn.conv3d(grey, kernel, [1] * 5, "VALID"), stem.bias)
        return rest(x, training=False)

    signature = [tf.TensorSpec((batch, *(input_size,) * 3), tf.uint8)]
    compiled = tf.function(forward, input_signature=signature, autograph=False)
    compiled.get_concrete_function()

    def run(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.array(compiled(tf.constant(pixels)).numpy(), dtype=np.float32)

    return run


def _stem_convolution(model: keras.Model) -> keras.Layer | None:
    """The stem's convolution of a network built here; None in any other model."""
    for layer in model.layers:
        if layer.name.endswith(_STEM_NAME) and isinstance(layer, keras.layers.Conv3D):
            kernel = tuple(layer.kernel.shape[:4])
            settings = (layer.strides, layer.padding, layer.use_bias, layer.activation)
            expected = ((2, 2, 2), "same", True, keras.activations.linear)
            return layer if (kernel, settings) == ((_STEM_KERNEL,) * 3 + (1,), expected) else None
    return None


def _packed_pixels(pixels: tf.Tensor, size: int) -> tf.Tensor:
    """Crops ``[batch, n, n, n]``, padded SAME, as ``[batch, m, m, m, 8]`` cells of 2 x 2 x 2."""
    out = -(-size // 2)
    before = (2 * (out - 1) + _STEM_KERNEL - size) // 2
    cells = out + _STEM_KERNEL // 2
    x = tf.pad(pixels, [[0, 0], *[[before, 2 * cells - size - before]] * 3])
    x = tf.reshape(x, (-1, cells, 2, cells, 2, cells, 2))
    return tf.reshape(tf.transpose(x, (0, 1, 3, 5, 2, 4, 6)), (-1, cells, cells, cells, 8))


def _packed_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """The stem's kernel ``[7, 7, 7, 1, filters]`` for such cells: ``[4, 4, 4, 8, filters]``."""
    cells, filters = (_STEM_KERNEL + 1) // 2, kernel.shape[-1]
    k = tf.pad(tf.squeeze(kernel, 3), [*[[0, 1]] * 3, [0, 0]])
    k = tf.reshape(k, (cells, 2, cells, 2, cells, 2, filters))
    return tf.reshape(tf.transpose(k, (0, 2, 4, 1, 3, 5, 6)), (cells, cells, cells, 8, filters))


def _residual(x: keras.KerasTensor, block: Block) -> keras.KerasTensor:
    """A residual block."""
    y = x
    for i, stride in enumerate((block.stride, 1)):
        y = _convolution(y, f"{block.scope}/conv_{i}", block.filters, kernel=3, stride=stride)
        y = keras.layers.ReLU(name=_layer(f"{block.scope}/relu_{i}"))(y)
        y = _norm(y, f"{block.scope}/bn_{i}")
    if block.shortcut:
        scope = f"{block.scope}/shortcut"
        x = _convolution(x, f"{scope}_conv", block.filters, kernel=1, stride=block.stride)
        x = _norm(x, f"{scope}_bn")
    x = keras.layers.Add(name=_layer(f"{block.scope}/add"))([y, x])
    return keras.layers.ReLU(name=_layer(f"{block.scope}/out"))(x)


def _head(x: keras.KerasTensor, config: NetworkConfig, head: str) -> keras.KerasTensor:
    """A head: dense layers, each normalised, with a rectifier between them."""
    for i, (scope, _, units) in enumerate(head_layers(config, head)):
        if i:
            x = keras.layers.ReLU(name=_layer(f"{scope}/relu"))(x)
        x = keras.layers.Dense(units, use_bias=False, name=_layer(f"{scope}/dense"))(x)
        x = _norm(x, f"{scope}/nl_{i}_bn")
    return x


def _convolution(
    x: keras.KerasTensor, scope: str, filters: int, kernel: int, stride: int
) -> keras.KerasTensor:
    """A convolution with a bias."""
    layer = keras.layers.Conv3D(filters, kernel, strides=stride, padding="same", name=_layer(scope))
    return layer(x)


def _norm(x: keras.KerasTensor, scope: str) -> keras.KerasTensor:
    """A batch normalisation with scale and offset."""
    layer = keras.layers.BatchNormalization(
        momentum=_MOMENTUM, epsilon=_EPSILON, name=_layer(scope)
    )
    return layer(x)


def _layer(scope: str) -> str:
    """A layer's name, in which Keras allows no slash."""
    return scope.replace("/", ".")
