import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from segclr import keras_file, runtime
from segclr.config import NetworkConfig, head_layers, residual_blocks, tensor_shapes
from segclr.errors import ModelError
from tests.segclr.checkpoints import NARROW, busy_weights, tensorflow

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

CONFIGS = [
    NARROW,
    NARROW.without_projection(),
    NetworkConfig(blocks=(3, 4, 6, 3), width=1, bottleneck=(4, 2), projection=None),
]


def numpy_conv(x, weights, scope, stride):
    """A SAME convolution by its definition, float64; x is ``[z, y, x, channels]``."""
    kernel = weights[f"{scope}/kernel"].astype(np.float64)
    k = kernel.shape[0]
    pads = []
    for n in x.shape[:3]:
        total = max((-(-n // stride) - 1) * stride + k - n, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, [*pads, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k, k), axis=(0, 1, 2))
    windows = windows[::stride, ::stride, ::stride]
    return np.einsum("zyxcijk,ijkco->zyxo", windows, kernel) + weights[f"{scope}/bias"]


def numpy_norm(x, weights, scope):
    gamma, beta, mean, variance = (
        weights[f"{scope}/{name}"].astype(np.float64)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta


def numpy_pool(x):
    """Max-pooling, 3 wide, stride 2, SAME: padding never wins."""
    pads = []
    for n in x.shape[:3]:
        total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, [*pads, (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(0, 1, 2))
    return windows[::2, ::2, ::2].max(axis=(-1, -2, -3))


def numpy_head(x, weights, config, head):
    for i, (scope, _, _) in enumerate(head_layers(config, head)):
        x = np.maximum(x, 0) if i else x
        x = numpy_norm(x @ weights[f"{scope}/dense/kernel"], weights, f"{scope}/nl_{i}_bn")
    return x


def numpy_network(crop, weights, config):
    """Embedding and projection of one crop by the architecture's definition, in float64."""
    x = crop.astype(np.float64)[..., np.newaxis] / 255
    stem = f"{config.scope}/stage_1"
    x = numpy_pool(numpy_norm(numpy_conv(x, weights, f"{stem}/conv1", 2), weights, f"{stem}/bn1"))
    for block in residual_blocks(config):
        y = x
        for i, stride in enumerate((block.stride, 1)):
            y = np.maximum(numpy_conv(y, weights, f"{block.scope}/conv_{i}", stride), 0)
            y = numpy_norm(y, weights, f"{block.scope}/bn_{i}")
        if block.shortcut:
            x = numpy_conv(x, weights, f"{block.scope}/shortcut_conv", block.stride)
            x = numpy_norm(x, weights, f"{block.scope}/shortcut_bn")
        x = np.maximum(x + y, 0)
    embedding = numpy_head(x.mean(axis=(0, 1, 2)), weights, config, "bottleneck_head_0")
    return embedding, numpy_head(embedding, weights, config, "projection_head_0_0")


def random_crops(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, size), dtype=np.uint8)


@pytest.mark.parametrize("config", CONFIGS)
def test_names_and_shapes_are_those_of_the_published_weights(config):
    network = runtime.network()
    with_projection = config.projection is not None
    model = network.build_network(config, with_projection=with_projection)
    shapes = {n: tuple(v.shape) for n, v in network.named_variables(model).items()}
    assert shapes == tensor_shapes(config)
    assert model.layers[0].batch_shape == (None, None, None, None, 1)
    plain = network.build_network(config, 17)
    assert plain.input_shape == (None, 17, 17, 17, 1)
    assert plain.output_shape == (None, config.embedding_width)
    assert set(network.named_variables(plain)) == set(tensor_shapes(config.without_projection()))


@pytest.mark.parametrize("size", [17, 20, 33])
def test_the_network_is_its_definition_at_odd_and_even_sizes(size):
    network = runtime.network()
    weights = busy_weights(NARROW, 3)
    model = network.build_network(NARROW, with_projection=True)
    network.assign_weights(model, weights)
    crops = random_crops(2, size)
    embedding, projection = model((crops / np.float32(255))[..., np.newaxis], training=False)
    for i, crop in enumerate(crops):
        expected, expected_projection = numpy_network(crop, weights, NARROW)
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(embedding[i], expected, rtol=3e-6, atol=3e-5)
        np.testing.assert_allclose(projection[i], expected_projection, rtol=3e-6, atol=6e-5)


def test_a_projection_that_is_not_there_cannot_be_built():
    with pytest.raises(ModelError, match="has no projection head to build"):
        runtime.network().build_network(NARROW.without_projection(), with_projection=True)


def test_weights_are_assigned_whole_or_not_at_all():
    network = runtime.network()
    model = network.build_network(NARROW, with_projection=True)
    before = {n: np.array(v) for n, v in network.named_variables(model).items()}
    weights = busy_weights(NARROW, 1)
    gone = sorted(weights)[5]
    lacking = {name: value for name, value in weights.items() if name != gone}
    with pytest.raises(ModelError, match=rf"1 tensors differ, the first is {gone}: .* given None"):
        network.assign_weights(model, lacking)
    with pytest.raises(ModelError, match=r"first is extra: needed None, given \(1,\)"):
        network.assign_weights(model, weights | {"extra": np.zeros(1, np.float32)})
    with pytest.raises(ModelError, match=rf"first is {gone}: needed .*, given \(99,\)"):
        network.assign_weights(model, weights | {gone: np.zeros(99, np.float32)})
    for name, variable in network.named_variables(model).items():
        np.testing.assert_array_equal(np.array(variable), before[name])
    network.assign_weights(model, weights)
    for name, variable in network.named_variables(model).items():
        np.testing.assert_array_equal(np.array(variable), weights[name])


def test_the_compiled_way_divides_by_255_to_the_last_bit():
    keras = tensorflow().keras
    pixels = keras.Input((17, 17, 17, 1))
    echo = keras.Model(pixels, keras.layers.Flatten()(pixels))
    crops = np.arange(2 * 17**3).astype(np.uint8).reshape(2, 17, 17, 17)
    found = runtime.network().compile_forward(echo, 2, 17)(crops)
    expected = (crops.astype(np.float32) / np.float32(255)).reshape(2, -1)
    assert found.tobytes() == expected.tobytes()
    assert (found.dtype, found.shape) == (np.float32, (2, 17**3))
    assert found.flags.owndata


def test_the_compiled_network_is_the_network():
    network = runtime.network()
    model = network.build_network(NARROW.without_projection(), 20)
    network.assign_weights(model, busy_weights(NARROW.without_projection(), 2))
    crops = random_crops(3, 20)
    forward = network.compile_forward(model, 3, 20)
    expected = model((crops / np.float32(255))[..., np.newaxis], training=False)
    np.testing.assert_allclose(forward(crops), expected, rtol=3e-6, atol=1e-5)
    assert forward(crops).tobytes() == forward(crops).tobytes()


def test_compiling_leaves_the_model_as_it_was(tmp_path):
    network = runtime.network()
    config = NARROW.without_projection()
    model = network.build_network(config, 17)
    before = model.get_config()
    crops = random_crops(2, 17)
    forward = network.compile_forward(model, 2, 17)
    first = forward(crops)
    assert model.get_config() == before
    network.save_keras(str(tmp_path / "x.keras"), model, config, 17)
    again = network.compile_forward(network.load_keras(str(tmp_path / "x.keras")), 2, 17)
    assert again(crops).tobytes() == first.tobytes()
    network.assign_weights(model, busy_weights(config, 4))
    assert np.abs(forward(crops) - first).max() > 0.01


def test_a_saved_network_comes_back_bit_for_bit(tmp_path):
    network = runtime.network()
    config = NARROW.without_projection()
    model = network.build_network(config)
    network.assign_weights(model, busy_weights(config, 5))
    path = tmp_path / "some.keras"
    network.save_keras(str(path), model, config, 17)
    assert [file.name for file in tmp_path.iterdir()] == ["some.keras"]
    assert keras_file.read_description(str(path)) == (config, 17)
    again = network.load_keras(str(path))
    crops = random_crops(2, 17)
    first = network.compile_forward(model, 2, 17)(crops)
    assert first.tobytes() == network.compile_forward(again, 2, 17)(crops).tobytes()


def test_a_model_is_saved_for_what_it_is(tmp_path):
    network = runtime.network()
    config = NARROW.without_projection()
    path = str(tmp_path / "some.keras")
    with pytest.raises(ModelError, match="crops of 17 voxels .* cannot be saved for 20 voxels"):
        network.save_keras(path, network.build_network(config, 17), config, 20)
    wider = NetworkConfig(width=2, bottleneck=(6, 5, 4), projection=None)
    with pytest.raises(ModelError, match="gives 3 components, .* and 4 components"):
        network.save_keras(path, network.build_network(config, 17), wider, 17)
    both = network.build_network(NARROW, 17, with_projection=True)
    with pytest.raises(ModelError, match=r"gives \[\(None, 3\), \(None, 2\)\]"):
        network.save_keras(path, both, NARROW, 17)
    assert list(tmp_path.iterdir()) == []


def test_a_keras_file_that_would_run_code_is_refused(tmp_path):
    network = runtime.network()
    config = NARROW.without_projection()
    path, other = tmp_path / "some.keras", tmp_path / "other.keras"
    network.save_keras(str(path), network.build_network(config, 17), config, 17)
    code = {"class_name": "__lambda__", "config": {"value": "4wAAAA==\n"}}
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(other, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                document = json.loads(content)
                layer = document["config"]["layers"][-1]
                layer["class_name"], layer["config"] = "Lambda", {"function": code, "name": "x"}
                content = json.dumps(document).encode()
            copy.writestr(name, content)
    with pytest.raises(ModelError, match="(?i)cannot be read by Keras: .*lambda"):
        network.load_keras(str(other))


def test_junk_is_no_keras_file(tmp_path):
    path = tmp_path / "junk.keras"
    with pytest.raises(ModelError, match=r"junk\.keras cannot be read by Keras"):
        runtime.network().load_keras(str(path))
    path.write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk\.keras cannot be read by Keras"):
        runtime.network().load_keras(str(path))


def test_planning_and_cutting_load_no_tensorflow():
    code = (
        "import sys, segclr.model, segclr.encoder, segclr.crops, segclr.checkpoint\n"
        "segclr.model.resolve_model('untrained:width=1')\n"
        "print(sorted({'tensorflow', 'keras', 'segclr.network'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
