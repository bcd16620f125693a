"""Conformance: the published format at full size, against vectors of the reference network."""

import pathlib
import shutil
import tarfile

import numpy as np
import pytest

from segclr import bundle, runtime
from segclr.checkpoint import inspect_checkpoint, read_weights
from segclr.config import NetworkConfig
from segclr.encoder import load_encoder
from segclr.model import resolve_model
from tests.segclr.checkpoints import tensorflow
from tests.support import shared

pytestmark = pytest.mark.slow

EMBEDDING_ATOL, PROJECTION_ATOL = 1e-4, 2e-4


def unpacked(archive: str, directory: pathlib.Path, suffix: str = "") -> pathlib.Path:
    """The directory in an archive, unpacked as far as names end in ``suffix``."""
    with tarfile.open(shared("reference", f"{archive}.tar.xz")) as tar:
        members = [member for member in tar if member.name.endswith(suffix)]
        tar.extractall(directory, members=members, filter="data")
    return directory / archive


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published")
    yield unpacked("segclr_tf2_legacy_ckpt", directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def crops():
    reference = np.load(shared("reference", "segclr_crops.npz"), allow_pickle=False)["crops"]
    return [*reference, np.zeros_like(reference[0])]


@pytest.fixture(scope="module")
def network(published):
    """The network with its projection head, which the encoder leaves out."""
    door = runtime.network()
    summary = inspect_checkpoint(str(published))
    model = door.build_network(summary.config, with_projection=True)
    door.assign_weights(model, read_weights(summary.prefix, summary.config))
    return model


def test_both_indexes_give_the_tensors_that_tensorflow_reads(published):
    prefix = resolve_model(str(published)).path
    index = bundle.read_index(prefix)
    packed = bundle.read_index(str(published / "snappy_index" / pathlib.Path(prefix).name))
    assert packed == index
    assert len(index) == 219
    reader = tensorflow().train.load_checkpoint(prefix)
    assert set(reader.get_variable_to_shape_map()) == set(index)
    numeric = [key for key, entry in index.items() if entry.dtype != bundle.STRING]
    assert len(numeric) == 218
    for key in numeric:
        value, expected = bundle.read_tensor(prefix, key, index[key]), reader.get_tensor(key)
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


def test_the_published_checkpoint_is_the_published_network(published):
    summary = inspect_checkpoint(str(published))
    assert summary.config == NetworkConfig()
    assert (summary.tensors, summary.ignored, summary.renorm, summary.step) == (156, 63, True, 1234)


@pytest.mark.parametrize("batch", [2, 3])
def test_embeddings_are_those_of_the_reference(published, crops, batch):
    expected = np.load(published / "expected.npz", allow_pickle=False)
    embeddings = load_encoder(resolve_model(str(published), batch=batch)).encode(crops)
    for name in ("embedding", "embedding_tf221_tfkeras", "embedding_float64"):
        np.testing.assert_allclose(embeddings, expected[name], rtol=0, atol=EMBEDDING_ATOL)
    assert np.abs(expected["embedding"][0] - expected["embedding"][1]).max() > 0.1


def test_projections_are_those_of_the_reference(published, network, crops):
    expected = np.load(published / "expected.npz", allow_pickle=False)
    pixels = (np.stack(crops) / np.float32(255))[..., np.newaxis]
    embedding, projection = network.predict_on_batch(pixels)
    np.testing.assert_allclose(embedding, expected["embedding"], rtol=0, atol=EMBEDDING_ATOL)
    for name in ("projection", "projection_float64"):
        np.testing.assert_allclose(projection, expected[name], rtol=0, atol=PROJECTION_ATOL)


def test_even_and_odd_sizes_pad_as_the_reference(published, network, crops, tmp_path):
    # The two archives hold the same weights; only the other one has these vectors.
    vectors = unpacked("segclr_tf1_ckpt", tmp_path, "expected_extra.npz") / "expected_extra.npz"
    expected = np.load(vectors, allow_pickle=False)
    even = np.stack([crops[0][32:96, 32:96, 32:96]] * 2)
    odd = np.stack([crop[48:81, 48:81, 48:81] for crop in crops[:2]])
    for crop, vectors in ((even, expected["embedding_even64"]), (odd, expected["embedding_odd33"])):
        spec = resolve_model(str(published), input_size=crop.shape[1])
        embeddings = load_encoder(spec).encode(crop)[: len(vectors)]
        np.testing.assert_allclose(embeddings, vectors, rtol=0, atol=EMBEDDING_ATOL)
