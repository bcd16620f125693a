import pathlib
import re
import shutil

import numpy as np
import pytest

from segclr.checkpoint import inspect_checkpoint, iter_weights, read_weights, resolve_prefix
from segclr.config import NetworkConfig, stage_norms, tensor_shapes
from segclr.errors import ModelError
from tests.segclr.checkpoints import (
    NARROW,
    VALUE,
    busy_weights,
    public_key,
    public_tensors,
    write_bundle,
    write_public_checkpoint,
)

ROOT = "base_model_0/resnet18"
STEM = f"{ROOT}/stage_1/conv1/kernel"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_public_checkpoint(tmp_path_factory.mktemp("narrow"), NARROW, 7)


def bundle_of(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> str:
    return write_bundle(path, {public_key(name): value for name, value in tensors.items()})


def test_a_checkpoint_that_tensorflow_wrote_is_read_whole(checkpoint):
    summary = inspect_checkpoint(checkpoint)
    assert summary.prefix == checkpoint
    assert summary.config == NARROW
    assert (summary.tensors, summary.renorm, summary.step) == (156, True, 1234)
    assert summary.ignored == 60 + 3
    weights = read_weights(checkpoint, summary.config)
    expected = busy_weights(NARROW, 7)
    assert list(weights) == sorted(expected)
    for name, value in weights.items():
        np.testing.assert_array_equal(value, expected[name])
        assert value.dtype == np.float32


def test_weights_come_one_at_a_time_and_by_name(checkpoint):
    names = [name for name, _ in iter_weights(checkpoint, NARROW.without_projection())]
    assert names == sorted(tensor_shapes(NARROW.without_projection()))
    assert len(names) == 141
    wide = NetworkConfig(width=4, bottleneck=(6, 5, 3))
    with pytest.raises(ModelError, match=r"should be float32 \(4,\), found float32 \(2,\)"):
        next(iter_weights(checkpoint, wide))


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(blocks=(3, 4, 6, 3), width=1, bottleneck=(4, 2), projection=None),
        NetworkConfig(blocks=(1, 2, 1, 1), width=3, bottleneck=(7,), projection=(5, 4, 3, 2)),
    ],
)
def test_the_network_is_read_off_names_and_shapes(tmp_path, config):
    prefix = bundle_of(tmp_path / "x", public_tensors(config, 0, renorm=False))
    summary = inspect_checkpoint(prefix)
    assert summary.config == config
    assert (summary.renorm, summary.step, summary.ignored) == (False, None, 0)


def test_counters_slots_and_the_optimizer_are_left_out(tmp_path):
    keys = {public_key(name): value for name, value in busy_weights(NARROW, 0).items()}
    one = np.ones(2, np.float32)
    slot = public_key(f"{ROOT}/stage_1/bn1/beta").removesuffix(VALUE)
    keys[f"{slot}/.OPTIMIZER_SLOT/optimizer/Momentum{VALUE}"] = one
    keys[f"optimizer/learning_rate{VALUE}"] = one
    keys[f"save_counter{VALUE}"] = np.array(3, np.int64)
    keys["_CHECKPOINTABLE_OBJECT_GRAPH"] = np.array(b"graph")
    summary = inspect_checkpoint(write_bundle(tmp_path / "x", keys))
    assert (summary.config, summary.ignored) == (NARROW, 4)


def test_missing_unused_and_misshapen_tensors_are_one_message(tmp_path):
    prefix = write_public_checkpoint(
        tmp_path,
        NARROW,
        0,
        drop=[f"{ROOT}/stage_3/block_b/conv_1/bias", "bottleneck_head_0/nl_1/nl_1_bn/gamma"],
        extra=[
            ("distance_head_0/dense/kernel", np.zeros((3, 1), np.float32)),
            (f"{ROOT}/stage_5/block_a/conv_0/kernel", np.zeros((3, 3, 3, 8, 15), np.float32)),
            (f"{ROOT}/stage_1/bn1/gamma", np.zeros(2, np.float64)),
        ],
    )
    with pytest.raises(ModelError) as caught:
        inspect_checkpoint(prefix)
    assert str(caught.value) == (
        f"the checkpoint {prefix} does not fit a resnet18 of width 2 with heads (6, 5, 3) and "
        "(4, 3, 2): tensors 2 missing: "
        f"{ROOT}/stage_3/block_b/conv_1/bias, bottleneck_head_0/nl_1/nl_1_bn/gamma; "
        "1 without use: distance_head_0/dense/kernel; 2 of another shape or type: "
        f"{ROOT}/stage_1/bn1/gamma is float64 (2,), not float32 (2,), "
        f"{ROOT}/stage_5/block_a/conv_0/kernel is float32 (3, 3, 3, 8, 15), not float32 "
        "(3, 3, 3, 8, 16)"
    )


def test_no_more_than_twenty_names_are_listed(tmp_path):
    extra = {f"other/{i:02d}": np.zeros(1, np.float32) for i in range(33)}
    prefix = bundle_of(tmp_path / "x", busy_weights(NARROW, 0) | extra)
    with pytest.raises(ModelError, match=r"33 without use: other/00, .*other/19 and 13 more$"):
        inspect_checkpoint(prefix)


def test_training_statistics_are_with_all_blocks_or_with_none(tmp_path):
    tensors = public_tensors(NARROW, 0)
    lost = [f"{scope}/renorm_mean" for scope, _ in stage_norms(NARROW)[3:5]]
    assert len(stage_norms(NARROW)) == 20
    for name in lost:
        del tensors[name]
    with pytest.raises(ModelError, match=f"2 missing: {lost[0]}, {lost[1]}$"):
        inspect_checkpoint(bundle_of(tmp_path / "x", tensors))


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        (STEM.removesuffix("conv1/kernel"), "a stem of width None"),
        (f"{ROOT}/stage_4", r"found \[2, 2, 0, 2\] blocks"),
        ("bottleneck_head_0", "a head of widths None"),
        ("base_model_0", "holds no base_model_0/resnet18 or the like, but bottleneck_head_0, pro"),
    ],
)
def test_a_network_without_one_of_its_parts_is_refused(tmp_path, start, problem):
    tensors = {n: v for n, v in busy_weights(NARROW, 0).items() if not n.startswith(start)}
    with pytest.raises(ModelError, match=problem):
        inspect_checkpoint(bundle_of(tmp_path / "x", tensors))


def test_blocks_of_another_kind_are_refused(tmp_path):
    tensors = {n.replace("resnet18", "resnet50"): v for n, v in busy_weights(NARROW, 0).items()}
    with pytest.raises(ModelError, match=r"resnet50 has \(2, 2, 2, 2\) blocks a stage, .*resnet18"):
        inspect_checkpoint(bundle_of(tmp_path / "x", tensors))


def test_another_kind_of_checkpoint_is_told_by_name(tmp_path):
    one = np.ones(1, np.float32)
    first = write_bundle(tmp_path / "tf1", {STEM: one, "global_step": np.array(1, np.int64)})
    with pytest.raises(ModelError, match="tf1 is a TensorFlow 1 checkpoint .*Only the published"):
        inspect_checkpoint(first)
    key = f"model/resnet_model/initial_conv_relu_max_pool/0/conv3d/kernel{VALUE}"
    newer = write_bundle(tmp_path / "new", {key: one})
    with pytest.raises(ModelError, match="new is of the newer architecture .*Only the published"):
        inspect_checkpoint(newer)
    other = write_bundle(tmp_path / "other", {f"k{i}": one for i in range(5)})
    with pytest.raises(ModelError, match=r"unknown kind \(its first keys: k0, k1, k2 and 2 more\)"):
        inspect_checkpoint(other)


def test_unknown_keys_beside_the_store_are_refused(tmp_path):
    keys = {public_key(name): value for name, value in busy_weights(NARROW, 0).items()}
    keys[f"ema/x{VALUE}"] = np.ones(1, np.float32)
    with pytest.raises(ModelError, match=rf"1 unknown keys: ema/x{re.escape(VALUE)}$"):
        inspect_checkpoint(write_bundle(tmp_path / "x", keys))


def test_a_prefix_an_index_and_a_directory_mean_the_same(checkpoint):
    assert resolve_prefix(checkpoint) == checkpoint
    assert resolve_prefix(f"{checkpoint}.index") == checkpoint
    assert resolve_prefix(str(pathlib.Path(checkpoint).parent)) == checkpoint


def test_a_directory_that_was_moved_keeps_its_checkpoint(checkpoint, tmp_path):
    moved = shutil.copytree(pathlib.Path(checkpoint).parent, tmp_path / "moved")
    name = pathlib.Path(checkpoint).name
    (moved / "checkpoint").write_text(f'model_checkpoint_path: "/gone/{name}"\n')
    assert resolve_prefix(str(moved)) == str(moved / name)
    (moved / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    with pytest.raises(ModelError, match=r"names the checkpoint model\.ckpt-9, but there is no "):
        resolve_prefix(str(moved))
    (moved / "checkpoint").write_text("nothing of the kind")
    with pytest.raises(ModelError, match="names no model_checkpoint_path"):
        resolve_prefix(str(moved))


def test_a_directory_needs_one_checkpoint_or_a_state_file(tmp_path):
    with pytest.raises(ModelError, match=r"holds no checkpoint: no \*\.index file"):
        resolve_prefix(str(tmp_path))
    (tmp_path / "a-1.index").touch()
    assert resolve_prefix(str(tmp_path)) == str(tmp_path / "a-1")
    (tmp_path / "a-2.index").touch()
    with pytest.raises(ModelError, match=r"holds 2 checkpoints .* which to take: a-1, a-2\. Give"):
        resolve_prefix(str(tmp_path))
    with pytest.raises(ModelError, match=r"no model at .*a-3: neither a checkpoint \(.*a-3\.index"):
        resolve_prefix(str(tmp_path / "a-3"))
