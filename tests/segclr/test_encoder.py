import dataclasses
import json
import shutil
import threading
import zipfile

import numpy as np
import pytest

from segclr import encoder as encoders
from segclr import runtime
from segclr.encoder import Encoder, load_encoder, shared_encoder
from segclr.errors import ModelError
from segclr.model import resolve_model, untrained_weights
from tests.segclr.checkpoints import NARROW, write_public_checkpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

TINY = "untrained:width=2,input=17,embedding=3"


def random_crops(count, size=17, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, size), dtype=np.uint8)


def fake_encoder(batch=4):
    """An encoder whose embedding is the first three voxels of a crop, and its batches."""
    spec = resolve_model(TINY, batch=batch)
    seen = []

    def forward(pixels):
        seen.append(pixels.copy())
        return pixels[:, 0, 0, :3].astype(np.float32)

    return Encoder(spec, forward), seen


@pytest.fixture(scope="module")
def tiny():
    return load_encoder(resolve_model(TINY, batch=2))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8])
def test_rows_come_in_order_whatever_the_number_of_crops(count):
    encoder, seen = fake_encoder(batch=4)
    crops = random_crops(count) | 1
    embeddings = encoder.encode(iter(crops))
    assert embeddings.shape == (count, 3)
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, crops[:, 0, 0, :3])
    assert [pixels.shape for pixels in seen] == [(4, 17, 17, 17)] * (-(-count // 4))
    if count % 4:
        assert not seen[-1][count % 4 :].any()
        assert seen[-1][: count % 4].all()


def test_crops_are_asked_for_no_earlier_than_for_the_next_batch():
    encoder, seen = fake_encoder(batch=3)
    asked = []

    def crops():
        scratch = np.zeros((17, 17, 17), np.uint8)
        for i in range(20):
            asked.append((i // 3, len(seen)))
            scratch[:] = i
            yield scratch

    embeddings = encoder.encode(crops())
    # While batch k fills, batch k - 1 may be at work; batch k - 2 has been computed.
    assert all(batch - 1 <= computed <= batch for batch, computed in asked)
    assert embeddings[:, 0].tolist() == list(range(20))


def test_the_next_batch_fills_while_one_is_computed():
    spec = resolve_model(TINY)
    pulled = [threading.Event() for _ in range(5)]

    def crops():
        for i in range(4):
            pulled[i].set()
            yield np.full((17, 17, 17), i, np.uint8)
        pulled[4].set()

    def forward(pixels):
        assert pulled[min(int(pixels[0, 0, 0, 0]) + 3, 4)].wait(timeout=30)
        return pixels[:, 0, 0, :3].astype(np.float32)

    assert Encoder(spec, forward).encode(crops())[:, 0].tolist() == [0, 1, 2, 3]


def test_what_the_maker_of_crops_raises_is_raised_and_nothing_more_is_asked_for():
    encoder, seen = fake_encoder(batch=2)
    asked = []

    def crops():
        for i in range(9):
            asked.append(i)
            if i == 5:
                raise KeyError("the power went")
            yield np.zeros((17, 17, 17), np.uint8)

    before = threading.active_count()
    with pytest.raises(KeyError, match="the power went"):
        encoder.encode(crops())
    assert (asked, len(seen)) == (list(range(6)), 2)
    assert threading.active_count() == before


def test_crops_of_another_shape_or_type_are_refused():
    encoder, _ = fake_encoder()
    with pytest.raises(ValueError, match=r"uint8 \(17, 17, 17\), got uint8 \(18, .* as crop 5"):
        encoder.encode([*random_crops(5), random_crops(1, 18)[0]])
    with pytest.raises(ValueError, match=r"got float32 \(17, 17, 17\) as crop 0"):
        encoder.encode([random_crops(1)[0].astype(np.float32)])


def test_an_embedding_that_is_not_finite_names_its_crop():
    spec = resolve_model(TINY)

    def forward(pixels):
        return np.where(pixels[:, 0, 0, :3] == 7, np.nan, 1).astype(np.float32)

    crops = np.ones((5, 17, 17, 17), np.uint8)
    crops[3, 0, 0, 1] = 7
    with pytest.raises(ModelError, match=r"untrained network .* not finite for crop 3: its weigh"):
        Encoder(spec, forward).encode(crops)


def test_the_pieces_of_an_encoder_fit(tiny):
    assert (tiny.batch, tiny.input_size, tiny.embedding_width) == (2, 17, 3)
    batch = random_crops(2)
    assert tiny.encode_batch(batch).tobytes() == tiny.encode(batch).tobytes()
    assert np.abs(np.diff(tiny.encode(batch), axis=0)).max() > 1e-4


def test_a_crops_bits_do_not_depend_on_its_company(tiny):
    crops = random_crops(6)
    together = tiny.encode(crops)
    backwards = tiny.encode(crops[::-1])
    alone = np.concatenate([tiny.encode([crop]) for crop in crops])
    assert together.tobytes() == backwards[::-1].tobytes() == alone.tobytes()


def test_the_encoder_is_the_network_of_crops_over_255(tiny):
    network = runtime.network()
    config = tiny.spec.network
    model = network.build_network(config, with_projection=False)
    network.assign_weights(model, dict(untrained_weights(config, 0)))
    crops = random_crops(3)
    expected = model((crops.astype(np.float32) / np.float32(255))[..., np.newaxis], training=False)
    np.testing.assert_allclose(tiny.encode(crops), expected, rtol=2e-6, atol=1e-6)


def test_a_checkpoint_and_its_keras_file_encode_alike(tmp_path):
    spec = resolve_model(write_public_checkpoint(tmp_path, NARROW, 7), input_size=17)
    network = runtime.network()
    config = NARROW.without_projection()
    model = network.build_network(config, 17)
    network.assign_weights(model, dict(encoders.embedding_weights(spec)))
    path = str(tmp_path / "same.keras")
    network.save_keras(path, model, config, 17)
    crops = random_crops(3)
    first = load_encoder(spec).encode(crops)
    assert first.tobytes() == load_encoder(resolve_model(path)).encode(crops).tobytes()


def test_weights_that_changed_since_planning_are_refused(tmp_path):
    prefix = write_public_checkpoint(tmp_path / "a", NARROW, 7)
    spec = resolve_model(prefix, input_size=17)
    other = write_public_checkpoint(tmp_path / "b", NARROW, 8)
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(other + suffix, prefix + suffix)
    with pytest.raises(ModelError, match=rf"since planning: .* was {spec.fingerprint}"):
        load_encoder(spec)


def test_a_keras_file_that_changed_or_lies_is_refused(tmp_path):
    network = runtime.network()
    config = NARROW.without_projection()
    path = tmp_path / "x.keras"
    network.save_keras(str(path), network.build_network(config, 17), config, 17)
    spec = resolve_model(str(path))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(members["segclr.json"]) | {"input_size": 33}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"segclr.json": json.dumps(document)}).items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="takes crops of 17 voxels .* but says 33 and 3 of itself"):
        load_encoder(resolve_model(str(path)))
    network.save_keras(str(path), network.build_network(config, 17), config, 17)
    with pytest.raises(ModelError, match="weights changed since planning: the keras x.keras"):
        load_encoder(spec)


def test_threads_share_one_encoder_and_the_latest_is_kept(monkeypatch):
    specs = [resolve_model(f"{TINY},seed={seed}") for seed in (0, 1)]
    loaded = []

    def load(spec):
        loaded.append(spec.seed)
        return Encoder(spec, lambda pixels: np.zeros((len(pixels), 3), np.float32))

    monkeypatch.setattr(encoders, "load_encoder", load)
    monkeypatch.setattr(encoders, "_SHARED", encoders._Shared())
    found = []
    gate = threading.Barrier(8)

    def ask():
        gate.wait()
        found.append(shared_encoder(specs[0]))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == [0]
    assert {id(encoder) for encoder in found} == {id(found[0])}
    moved = dataclasses.replace(specs[0], trained_voxel_size_nm=(1.0, 1.0, 1.0))
    assert shared_encoder(moved) is found[0]
    assert shared_encoder(specs[1]).spec == specs[1]
    shared_encoder(specs[0])
    assert loaded == [0, 1, 0]


def test_a_shared_encoder_that_failed_to_load_is_tried_again(monkeypatch):
    monkeypatch.setattr(encoders, "_SHARED", encoders._Shared())
    good = resolve_model(TINY)
    bad = dataclasses.replace(good, fingerprint="0" * 64)
    for _ in range(2):
        with pytest.raises(ModelError, match="planned was 0000"):
            shared_encoder(bad)
    assert shared_encoder(good).encode([]).shape == (0, 3)
