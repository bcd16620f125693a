"""Writes checkpoints with TensorFlow itself, for tests of what reads them without it."""

import importlib
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from segclr import runtime
from segclr.config import NetworkConfig, stage_norms
from segclr.model import untrained_weights

NARROW = NetworkConfig(width=2, bottleneck=(6, 5, 3), projection=(4, 3, 2))
STORE = "_tf1_style_var_store/_vars/"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def tensorflow():
    """TensorFlow, loaded when a test first needs it."""
    runtime.network()
    return importlib.import_module("tensorflow")


def busy_weights(config: NetworkConfig, seed: int) -> dict[str, np.ndarray]:
    """Weights without a 0 or 1 that could hide a mistake."""
    rng = np.random.default_rng(seed)
    weights = dict(untrained_weights(config, seed))
    for name, value in weights.items():
        tensor = name.rsplit("/", 1)[1]
        if tensor in ("gamma", "moving_variance"):
            weights[name] = rng.uniform(0.5, 2, value.shape).astype(np.float32)
        elif tensor != "kernel":
            weights[name] = rng.normal(0, 0.2, value.shape).astype(np.float32)
    return weights


def public_tensors(config: NetworkConfig, seed: int, renorm: bool = True) -> dict[str, np.ndarray]:
    """What a published checkpoint holds, by plain name."""
    tensors = busy_weights(config, seed)
    if renorm:
        for scope, channels in stage_norms(config):
            for name in ("moving_stddev", "renorm_mean", "renorm_stddev"):
                tensors[f"{scope}/{name}"] = np.full(channels, 0.5, np.float32)
    return tensors


def write_public_checkpoint(
    directory: pathlib.Path,
    config: NetworkConfig,
    seed: int,
    *,
    drop: Iterable[str] = (),
    extra: Iterable[tuple[str, np.ndarray]] = (),
    renorm: bool = True,
) -> str:
    """Write a checkpoint in the published format; ``extra`` adds tensors or replaces them."""
    tf = tensorflow()
    tensors = public_tensors(config, seed, renorm) | dict(extra)
    for name in drop:
        del tensors[name]
    store = tf.train.Checkpoint(_vars={name: tf.Variable(value) for name, value in tensors.items()})
    step = tf.Variable(1234, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(_tf1_style_var_store=store, global_step=step)
    return checkpoint.save(str(directory / "model.ckpt"))


def write_bundle(prefix: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> str:
    """Write a bundle under exactly these keys."""
    tf = tensorflow()
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return str(prefix)


def public_key(name: str) -> str:
    """The key of a plain name in the published format."""
    return STORE + name.replace(".", "..").replace("/", ".S") + VALUE
