import dataclasses
import hashlib
import json
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from segclr import config as configs
from segclr import runtime
from segclr.config import NetworkConfig
from segclr.errors import ModelError
from segclr.model import ModelSpec, embedding_weights, resolve_model, untrained_weights
from tests.segclr.checkpoints import (
    NARROW,
    busy_weights,
    public_key,
    tensorflow,
    write_bundle,
    write_public_checkpoint,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

PINNED = ["0x1.047a3c0000000p-1", "0x1.c88fd80000000p-3"]
PINNED_SHA256 = "433b22f7baa6cb290f99c0e5bd1a85274c1afc4b60b32a47c4b491cc9bf5111e"
TINY = "untrained:width=1,input=17,embedding=3"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_public_checkpoint(tmp_path_factory.mktemp("narrow"), NARROW, 7)


@pytest.fixture(scope="module")
def keras_path(tmp_path_factory):
    network = runtime.network()
    config = NARROW.without_projection()
    model = network.build_network(config, 17)
    network.assign_weights(model, busy_weights(config, 7))
    path = str(tmp_path_factory.mktemp("keras") / "narrow.keras")
    network.save_keras(path, model, config, 17)
    return path


def without(path, target, member):
    """A copy of a zip file that lacks a member."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            if name != member:
                copy.writestr(name, archive.read(name))
    return str(target)


def described(path, target, document):
    """A copy of a ``.keras`` file with another description."""
    copy = without(path, target, "segclr.json")
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr("segclr.json", json.dumps(document))
    return copy


def saved(path, *layers_of_input):
    """A Keras model that is not one of ours."""
    shape, dtype, units = layers_of_input
    keras = tensorflow().keras
    pixels = keras.Input(shape, dtype=dtype)
    x = keras.layers.Dense(units)(keras.layers.Flatten()(pixels)) if units else pixels
    keras.Model(pixels, x).save(path)
    return str(path)


def test_the_published_network_is_what_is_known_of_it():
    published = NetworkConfig()
    shapes = configs.tensor_shapes(published)
    assert (published.depth, published.embedding_width, len(shapes)) == (18, 64, 156)
    statistics = 3 * sum(channels for _, channels in configs.stage_norms(published))
    assert configs.weights_bytes(published) // 4 + statistics == 33_764_416
    assert configs.flops_per_crop(published, 129) / 1e9 == pytest.approx(74.74, abs=0.01)
    packed = 8 * 68**3
    assert configs.activation_bytes_per_crop(published, 129) == (
        129**3 + packed + 4 * (packed + 65**3 * 64)
    )
    assert NetworkConfig(blocks=configs.blocks_of_depth(34)).depth == 34
    assert configs.flops_per_crop(NARROW, 129) < configs.flops_per_crop(published, 129) / 20


@pytest.mark.parametrize(
    "config", [NetworkConfig(), NARROW, NARROW.without_projection(), NetworkConfig((3, 4, 6, 3))]
)
def test_a_configuration_survives_json(config):
    assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"width": 0}, "width 0"),
        ({"width": "8"}, r"width are integers, got \['8'\]"),
        ({"width": True}, "integers"),
        ({"blocks": [2, 2]}, r"four stages, got blocks \[2, 2\]"),
        ({"blocks": [2, 2, 2, 27]}, "stages of 1 to 26 blocks"),
        ({"bottleneck": []}, r"bottleneck \(\)"),
        ({"projection": [3, 0]}, r"projection \(3, 0\)"),
        ({"more": 1}, "has the fields blocks, bottleneck, projection, width"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change, problem):
    with pytest.raises(ModelError, match=problem):
        NetworkConfig.from_json(NARROW.to_json() | change)


def test_a_checkpoint_resolves_to_what_it_is(checkpoint):
    spec = resolve_model(str(pathlib.Path(checkpoint).parent), batch=4)
    assert spec.kind == "tf2-public"
    assert spec.path == checkpoint
    assert spec.network == NARROW
    assert (spec.input_size, spec.embedding_width, spec.batch, spec.seed) == (129, 3, 4, None)
    assert spec.title == "tf2-public model.ckpt-1 (ResNet-18, width 2, D=3)"
    assert spec.weights_bytes == configs.weights_bytes(NARROW.without_projection())
    assert spec.trained_voxel_size_nm is None
    assert len(spec.fingerprint) == 64
    assert (
        dict(embedding_weights(spec)).keys()
        == configs.tensor_shapes(NARROW.without_projection()).keys()
    )


@pytest.mark.parametrize("model", [TINY, "checkpoint", "keras"])
def test_a_spec_travels_as_pickle_and_as_json(model, checkpoint, keras_path):
    spec = resolve_model({"checkpoint": checkpoint, "keras": keras_path}.get(model, model))
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    sized = dataclasses.replace(spec, trained_voxel_size_nm=(32.0, 32.0, 33.0))
    assert ModelSpec.from_json(json.loads(json.dumps(sized.to_json()))) == sized
    with pytest.raises(ModelError, match="a model's description has batch, "):
        ModelSpec.from_json(spec.to_json() | {"kind": "other"})


def test_neither_place_nor_time_nor_projection_is_in_the_fingerprint(checkpoint, tmp_path):
    spec = resolve_model(checkpoint)
    copied = shutil.copytree(pathlib.Path(checkpoint).parent, tmp_path / "copy")
    assert resolve_model(str(copied)).fingerprint == spec.fingerprint
    config = NARROW.without_projection()
    tensors = {
        public_key(n): v for n, v in busy_weights(NARROW, 7).items() if "projection" not in n
    }
    bare = resolve_model(write_bundle(tmp_path / "bare", tensors))
    assert bare.network == config
    assert bare.fingerprint == spec.fingerprint


def test_sizes_and_each_weight_are_in_the_fingerprint(checkpoint, tmp_path):
    weights = busy_weights(NARROW, 7)
    name = "base_model_0/resnet18/stage_4/block_b/bn_1/moving_mean"
    weights[name] = np.nextafter(weights[name], np.float32(9))
    changed = write_bundle(tmp_path / "x", {public_key(n): v for n, v in weights.items()})
    prints = [
        resolve_model(checkpoint).fingerprint,
        resolve_model(checkpoint, batch=3).fingerprint,
        resolve_model(checkpoint, input_size=65).fingerprint,
        resolve_model(changed).fingerprint,
        resolve_model(TINY).fingerprint,
        resolve_model(f"{TINY},seed=1").fingerprint,
        resolve_model("untrained:width=1,input=18,embedding=3").fingerprint,
        resolve_model("untrained:width=1,input=17,embedding=2").fingerprint,
        resolve_model("untrained:width=1,input=17,embedding=3,depth=34").fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert resolve_model(TINY).fingerprint == prints[4]


def test_an_untrained_network_is_always_named_so():
    spec = resolve_model("untrained")
    assert spec.title == "untrained network (seed 0, ResNet-18, width 8, D=64)"
    assert spec.network == NetworkConfig(width=8, bottleneck=(64, 64, 64), projection=None)
    assert (spec.input_size, spec.seed, spec.path) == (129, 0, None)
    deep = resolve_model("untrained:depth=34,width=2,seed=9,embedding=5,input=33")
    assert deep.title == "untrained network (seed 9, ResNet-34, width 2, D=5)"
    assert (deep.input_size, deep.embedding_width) == (33, 5)


def test_untrained_weights_are_the_same_bits_everywhere():
    config = NetworkConfig(width=1, bottleneck=(2,), projection=None)
    weights = dict(untrained_weights(config, 0))
    kernel = weights["bottleneck_head_0/nl_0/dense/kernel"]
    assert [value.hex() for value in kernel[0].tolist()] == PINNED
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].astype("<f4").tobytes())
    assert digest.hexdigest() == PINNED_SHA256


def test_untrained_weights_have_the_scale_of_he():
    weights = dict(untrained_weights(NetworkConfig(width=8, projection=None), 1))
    kernel = weights["base_model_0/resnet18/stage_3/block_b/conv_0/kernel"]
    assert kernel.var() == pytest.approx(2 / (27 * 16), rel=0.05)
    assert abs(kernel.mean()) < 0.003
    assert np.unique(kernel).size > 0.99 * kernel.size
    assert weights["base_model_0/resnet18/stage_1/bn1/gamma"].tolist() == [1] * 8
    assert weights["base_model_0/resnet18/stage_1/bn1/moving_variance"].tolist() == [1] * 8
    assert weights["base_model_0/resnet18/stage_1/conv1/bias"].tolist() == [0] * 8


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("untrained:depht=18", "no 'depht' .*the keys are width, depth, input, seed, embedding"),
        ("untrained:width", "width is an integer of 1 to 2147483647, got ''"),
        ("untrained:width=0", "got '0'"),
        ("untrained:width=-1", "got '-1'"),
        ("untrained:seed=1.5", "seed is an integer of 0 to .* got '1.5'"),
        ("untrained:input=16", "input is an integer of 17 to .* got '16'"),
        ("untrained:width=8,,seed=1", "no ''"),
        ("untrained:depth=50", "a depth of 50 is not known: choose 18 or 34"),
        ("gs://bucket/model", "model gs://bucket/model is a URL, .* fetch it first"),
        (
            "/nowhere/model",
            r"no model at /nowhere/model: neither a checkpoint \(/nowhere/model\.in",
        ),
        ("/nowhere/model.keras", r"no model at /nowhere/model\.keras: no such file"),
    ],
)
def test_a_model_that_is_not_there_or_makes_no_sense_is_refused(model, problem):
    with pytest.raises(ModelError, match=problem):
        resolve_model(model)


def test_batches_and_crops_have_a_least_size(checkpoint):
    with pytest.raises(ModelError, match="a batch of 1 was asked for, at least 2 .* the last bit"):
        resolve_model(TINY, batch=1)
    with pytest.raises(ModelError, match="crops of 16 voxels a side were asked for, at least 17"):
        resolve_model(checkpoint, input_size=16)
    with pytest.raises(ModelError, match="asked for, but the untrained network takes 17: say untr"):
        resolve_model(TINY, input_size=33)
    assert resolve_model(TINY, input_size=17).input_size == 17
    assert resolve_model(checkpoint, input_size=17).input_size == 17


def test_a_card_names_the_voxel_size_of_training(checkpoint, keras_path, tmp_path):
    directory = shutil.copytree(pathlib.Path(checkpoint).parent, tmp_path / "with card")
    card = directory / "card.json"
    card.write_text('{"voxel_size_nm": [32, 32, 33], "title": "x"}')
    assert resolve_model(str(directory)).trained_voxel_size_nm == (32.0, 32.0, 33.0)
    card.write_text('{"voxel_size_nm": [32, 0, 33]}')
    with pytest.raises(ModelError, match=r"card\.json is three positive numbers .* \[32, 0, 33\]"):
        resolve_model(str(directory))
    card.write_text("{")
    with pytest.raises(ModelError, match=r"card .*card\.json is not readable JSON"):
        resolve_model(str(directory))
    copy = shutil.copy(keras_path, tmp_path / "x.keras")
    pathlib.Path(f"{copy}.card.json").write_text('{"voxel_size_nm": [8, 8, 40]}')
    assert resolve_model(str(copy)).trained_voxel_size_nm == (8.0, 8.0, 40.0)
    pathlib.Path(f"{copy}.card.json").write_text("{}")
    assert resolve_model(str(copy)).trained_voxel_size_nm is None


def test_a_keras_file_of_ours_describes_itself(keras_path, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "network", None)
    spec = resolve_model(keras_path)
    assert (spec.kind, spec.path, spec.input_size, spec.embedding_width) == (
        "keras",
        keras_path,
        17,
        3,
    )
    assert spec.network == NARROW.without_projection()
    assert spec.title == "keras narrow.keras (ResNet-18, width 2, D=3)"
    assert spec.weights_bytes > configs.weights_bytes(NARROW.without_projection())
    copy = str(shutil.copy(keras_path, tmp_path / "y.keras"))
    assert resolve_model(copy).fingerprint == spec.fingerprint
    assert resolve_model(copy, batch=3).fingerprint != spec.fingerprint
    with pytest.raises(ModelError, match=r"crops of 129 voxels .*narrow\.keras takes 17"):
        resolve_model(keras_path, input_size=129)


def test_a_keras_file_without_description_is_asked_through_keras(keras_path, tmp_path):
    path = without(keras_path, tmp_path / "plain.keras", "segclr.json")
    spec = resolve_model(path)
    assert (spec.network, spec.input_size, spec.embedding_width) == (None, 17, 3)
    assert spec.title == "keras plain.keras (D=3)"
    assert spec.fingerprint == resolve_model(keras_path).fingerprint


@pytest.mark.parametrize(
    ("shape", "dtype", "units", "problem"),
    [
        ((17, 17, 17, 2), "float32", 3, r"\(None, 17, 17, 17, 2\)"),
        ((17, 17, 18, 1), "float32", 3, r"\(None, 17, 17, 18, 1\)"),
        ((17, 17, 1), "float32", 3, r"\(None, 17, 17, 1\)"),
        ((17, 17, 17, 1), "float16", 3, "float16"),
        ((17, 17, 17, 1), "float32", 0, r"gives \[\(None, 17, 17, 17, 1\)\]"),
        ((9, 9, 9, 1), "float32", 3, "crops of 9 voxels a side, at least 17"),
    ],
)
def test_a_keras_file_for_something_else_is_refused(tmp_path, shape, dtype, units, problem):
    path = saved(tmp_path / "other.keras", shape, dtype, units)
    with pytest.raises(ModelError, match=problem):
        resolve_model(path)


def test_a_damaged_or_foreign_keras_file_is_refused(keras_path, tmp_path):
    junk = tmp_path / "junk.keras"
    junk.write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk\.keras is damaged or not a \.keras file"):
        resolve_model(str(junk))
    lacking = without(keras_path, tmp_path / "a.keras", "model.weights.h5")
    with pytest.raises(ModelError, match=r"a\.keras has no model\.weights\.h5"):
        resolve_model(lacking)
    content = bytearray(pathlib.Path(keras_path).read_bytes())
    content[content.index(b"\x89HDF") + 5000] ^= 1
    junk.write_bytes(content)
    with pytest.raises(ModelError, match=r"junk\.keras is damaged .*CRC-32 for file 'model\.weig"):
        resolve_model(str(junk))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "other"}, "does not describe a segclr-network"),
        ({"format_version": 2}, "format version 2, this release reads 1"),
        ({"embedding_width": 4}, "contradicts itself"),
        ({"input_size": None}, "contradicts itself"),
        ({"network": 1}, "a network's description has the fields"),
    ],
)
def test_a_false_description_in_a_keras_file_is_refused(keras_path, tmp_path, change, problem):
    with zipfile.ZipFile(keras_path) as archive:
        document = json.loads(archive.read("segclr.json"))
    path = described(keras_path, tmp_path / "x.keras", document | change)
    with pytest.raises(ModelError, match=problem):
        resolve_model(path)
