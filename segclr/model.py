"""Which model a run uses: resolved, described and fingerprinted, all before TensorFlow loads.

A ``ModelSpec`` is what a manifest stores and what travels to workers; it holds no weights. Its
fingerprint is the identity of what is computed: the network's shape, the size of the crops, the
shape of a batch and the weights themselves, and neither path nor time.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from segclr import keras_file, runtime
from segclr.checkpoint import inspect_checkpoint, iter_weights
from segclr.config import (
    NetworkConfig,
    blocks_of_depth,
    tensor_shapes,
    weights_bytes,
)
from segclr.errors import ModelError

Kind = Literal["tf2-public", "keras", "untrained"]
"""Where weights come from."""

Weights = Iterable[tuple[str, npt.NDArray[np.float32]]]
"""Plain names and values, sorted by name."""

DEFAULT_INPUT_SIZE = 129
"""Voxels a side of a crop of the published model."""

_MIN_INPUT_SIZE = 17
_MIN_BATCH = 2
_UNTRAINED = "untrained"
_UNTRAINED_DEFAULTS = {
    "width": 8,
    "depth": 18,
    "input": DEFAULT_INPUT_SIZE,
    "seed": 0,
    "embedding": 64,
}
# No value of an untrained network needs more digits than a signed 32-bit number.
_MOST = 2**31
_FINGERPRINT_TAG = b"segclr-model-1\n"


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSpec:
    """A resolved model.

    Attributes:
        kind: Where its weights come from.
        path: Absolute prefix of the checkpoint or path of the ``.keras`` file; None for an
            untrained network.
        network: Its shape; None for a ``.keras`` file that does not tell.
        input_size: Voxels a side of a crop.
        embedding_width: Components of an embedding.
        batch: Crops a batch, at least 2; shorter batches are padded.
        seed: Seed of an untrained network's weights; None otherwise.
        fingerprint: SHA-256 in hexadecimal of shape, sizes and weights.
        weights_bytes: Bytes of the weights.
        trained_voxel_size_nm: Voxel size the model was trained at, XYZ, from its card; None
            without one.
    """

    kind: Kind
    path: str | None
    network: NetworkConfig | None
    input_size: int
    embedding_width: int
    batch: int
    seed: int | None
    fingerprint: str
    weights_bytes: int
    trained_voxel_size_nm: tuple[float, float, float] | None

    @property
    def title(self) -> str:
        """A line for plans and summaries; an untrained network is always named as such."""
        shape = f"D={self.embedding_width}"
        if self.network is not None:
            shape = f"ResNet-{self.network.depth}, width {self.network.width}, {shape}"
        if self.path is None:
            return f"untrained network (seed {self.seed}, {shape})"
        return f"{self.kind} {pathlib.Path(self.path).name} ({shape})"

    def to_json(self) -> dict[str, Any]:
        """The model as JSON."""
        size = self.trained_voxel_size_nm
        return {
            "kind": self.kind,
            "path": self.path,
            "network": None if self.network is None else self.network.to_json(),
            "input_size": self.input_size,
            "embedding_width": self.embedding_width,
            "batch": self.batch,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
            "weights_bytes": self.weights_bytes,
            "trained_voxel_size_nm": None if size is None else list(size),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "ModelSpec":
        """The model that ``to_json`` wrote."""
        names = sorted(field.name for field in dataclasses.fields(cls))
        if sorted(document) != names or document["kind"] not in get_args(Kind):
            raise ModelError(f"a model's description has {', '.join(names)}, got {document}")
        network, size = document["network"], document["trained_voxel_size_nm"]
        return cls(
            kind=document["kind"],
            path=document["path"],
            network=None if network is None else NetworkConfig.from_json(network),
            input_size=document["input_size"],
            embedding_width=document["embedding_width"],
            batch=document["batch"],
            seed=document["seed"],
            fingerprint=document["fingerprint"],
            weights_bytes=document["weights_bytes"],
            trained_voxel_size_nm=None if size is None else (size[0], size[1], size[2]),
        )


def resolve_model(model: str, *, batch: int = 2, input_size: int | None = None) -> ModelSpec:
    """The model that a user means.

    Args:
        model: A checkpoint's prefix or directory, a ``.keras`` file, or
            ``untrained[:key=value,...]`` with the keys ``width`` (8), ``depth`` (18), ``input``
            (129), ``seed`` (0) and ``embedding`` (64).
        batch: Crops a batch, at least 2.
        input_size: Voxels a side of a crop, at least 17, for a model that leaves it open: 129 if
            left out.

    Raises:
        ModelError: If there is no such model, or it does not fit.
    """
    if batch < _MIN_BATCH:
        raise ModelError(
            f"a batch of {batch} was asked for, at least {_MIN_BATCH} are needed: a single crop "
            "takes another way through the network's code and differs in the last bit. Short "
            "batches are padded"
        )
    if input_size is not None and input_size < _MIN_INPUT_SIZE:
        raise ModelError(
            f"crops of {input_size} voxels a side were asked for, at least {_MIN_INPUT_SIZE} are "
            "needed: the network halves them five times"
        )
    name, _, options = model.partition(":")
    if name == _UNTRAINED:
        return _resolve_untrained(options, batch, input_size)
    if "://" in model:
        raise ModelError(
            f"the model {model} is a URL, but a model is read from local files: fetch it first and "
            "give the path"
        )
    path = os.path.abspath(os.path.expanduser(model))
    if path.endswith(".keras"):
        return _resolve_keras(path, batch, input_size)
    return _resolve_checkpoint(path, batch, input_size)


def untrained_weights(
    config: NetworkConfig, seed: int
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Weights of an untrained network, sorted by name: the same bits on every machine.

    Kernels are uniform with He's variance of 2 over the inputs of a unit, drawn from a Philox
    stream of their own (keyed by seed and name) by exact arithmetic alone; biases and offsets are
    0, scales and variances 1.
    """
    for name, shape in sorted(tensor_shapes(config).items()):
        tensor = name.rsplit("/", 1)[1]
        if tensor == "kernel":
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(
                math.prod(shape)
            )
            # 24 bits, centred: multiples of 2**-24 in (-1, 1), exact in float32.
            units = (2.0 * (raw >> np.uint64(40)) + 1.0 - 2.0**24) / 2.0**24
            limit = math.sqrt(6 / math.prod(shape[:-1]))
            yield name, (units * limit).astype(np.float32).reshape(shape)
        else:
            value = 1 if tensor in ("gamma", "moving_variance") else 0
            yield name, np.full(shape, value, dtype=np.float32)


def weights_fingerprint(
    config: NetworkConfig, input_size: int, batch: int, weights: Weights
) -> str:
    """SHA-256 of what decides an embedding: shape, sizes, and each tensor that it passes through.

    Args:
        config: The network, whose projection head does not count.
        input_size: Voxels a side of a crop.
        batch: Crops a batch.
        weights: The tensors of ``config.without_projection()``, sorted by name.
    """
    digest = hashlib.sha256(_FINGERPRINT_TAG)
    digest.update(
        _canonical(
            {
                "network": config.without_projection().to_json(),
                "input_size": input_size,
                "batch": batch,
            }
        )
    )
    for name, value in weights:
        little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        digest.update(_canonical([name, little.dtype.str, list(little.shape)]))
        digest.update(little.data)
    return digest.hexdigest()


def embedding_weights(spec: ModelSpec) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The tensors that an embedding passes through, sorted by name; not for a ``.keras`` file."""
    if spec.network is not None and spec.kind == "tf2-public" and spec.path is not None:
        return iter_weights(spec.path, spec.network.without_projection())
    if spec.network is not None and spec.kind == "untrained" and spec.seed is not None:
        return untrained_weights(spec.network.without_projection(), spec.seed)
    raise ModelError(f"the weights of {spec.title} are not read one by one")


def keras_fingerprint(path: str, input_size: int, batch: int) -> str:
    """SHA-256 of a ``.keras`` file's network and weights and of the sizes used with them.

    Raises:
        ModelError: If the file is not one of Keras 3, or damaged.
    """
    digest = hashlib.sha256(_FINGERPRINT_TAG)
    digest.update(_canonical({"input_size": input_size, "batch": batch}))
    for piece in keras_file.content(path):
        digest.update(piece)
    return digest.hexdigest()


def _resolve_checkpoint(path: str, batch: int, input_size: int | None) -> ModelSpec:
    """The published kind of checkpoint."""
    summary = inspect_checkpoint(path)
    config, size = summary.config, input_size or DEFAULT_INPUT_SIZE
    weights = iter_weights(summary.prefix, config.without_projection())
    prefix = pathlib.Path(summary.prefix)
    return ModelSpec(
        kind="tf2-public",
        path=summary.prefix,
        network=config,
        input_size=size,
        embedding_width=config.embedding_width,
        batch=batch,
        seed=None,
        fingerprint=weights_fingerprint(config, size, batch, weights),
        weights_bytes=weights_bytes(config.without_projection()),
        trained_voxel_size_nm=_card_voxel_size_nm(
            pathlib.Path(f"{prefix}.card.json"), prefix.parent / "card.json"
        ),
    )


def _resolve_keras(path: str, batch: int, input_size: int | None) -> ModelSpec:
    """A ``.keras`` file, through Keras only where the file does not describe itself."""
    if not os.path.isfile(path):
        raise ModelError(f"there is no model at {path}: no such file")
    described = keras_file.read_description(path)
    network = None
    fixed: int | None
    if described is None:
        fixed, embedding_width = _keras_shape(path)
    else:
        network, fixed = described
        embedding_width = network.embedding_width
    size = fixed or input_size or DEFAULT_INPUT_SIZE
    if input_size not in (None, size):
        raise ModelError(
            f"crops of {input_size} voxels a side were asked for, but the model {path} takes {size}"
        )
    if size < _MIN_INPUT_SIZE:
        raise ModelError(
            f"the model {path} takes crops of {size} voxels a side, at least {_MIN_INPUT_SIZE} are "
            "needed"
        )
    return ModelSpec(
        kind="keras",
        path=path,
        network=network,
        input_size=size,
        embedding_width=embedding_width,
        batch=batch,
        seed=None,
        fingerprint=keras_fingerprint(path, size, batch),
        weights_bytes=keras_file.weights_bytes(path),
        trained_voxel_size_nm=_card_voxel_size_nm(pathlib.Path(f"{path}.card.json")),
    )


def _keras_shape(path: str) -> tuple[int | None, int]:
    """Input size and embedding width of a ``.keras`` file, from Keras itself."""
    network = runtime.network()
    try:
        return network.model_shape(network.load_keras(path))
    except ModelError as error:
        raise ModelError(f"the model {path} is not one for crops: {error}") from error


def _resolve_untrained(options: str, batch: int, input_size: int | None) -> ModelSpec:
    """An untrained network."""
    values = _untrained_options(options)
    size, seed = values["input"], values["seed"]
    if input_size not in (None, size):
        raise ModelError(
            f"crops of {input_size} voxels a side were asked for, but the untrained network takes "
            f"{size}: say untrained:input={input_size}"
        )
    config = NetworkConfig(
        blocks=blocks_of_depth(values["depth"]),
        width=values["width"],
        bottleneck=(8 * values["width"], 8 * values["width"], values["embedding"]),
        projection=None,
    )
    return ModelSpec(
        kind="untrained",
        path=None,
        network=config,
        input_size=size,
        embedding_width=config.embedding_width,
        batch=batch,
        seed=seed,
        fingerprint=weights_fingerprint(config, size, batch, untrained_weights(config, seed)),
        weights_bytes=weights_bytes(config),
        trained_voxel_size_nm=None,
    )


def _untrained_options(options: str) -> dict[str, int]:
    """The values behind ``untrained:``, with their defaults."""
    values = dict(_UNTRAINED_DEFAULTS)
    least = {"width": 1, "depth": 1, "input": _MIN_INPUT_SIZE, "seed": 0, "embedding": 1}
    for item in options.split(",") if options else []:
        key, _, text = item.partition("=")
        if key not in values:
            raise ModelError(
                f"the untrained network has no {key!r} (in 'untrained:{options}'): the keys are "
                f"{', '.join(values)}, as in untrained:width=8,seed=1"
            )
        if not (text.isascii() and text.isdigit()) or not least[key] <= int(text) < _MOST:
            raise ModelError(
                f"the untrained network's {key} is an integer of {least[key]} to {_MOST - 1}, got "
                f"{text!r} (in 'untrained:{options}'); the keys are {', '.join(values)}"
            )
        values[key] = int(text)
    return values


def _card_voxel_size_nm(*cards: pathlib.Path) -> tuple[float, float, float] | None:
    """The voxel size that the first of these cards names; None where there is no card."""
    for card in cards:
        if card.is_file():
            break
    else:
        return None
    try:
        document = json.loads(card.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"the model's card {card} is not readable JSON: {error}") from error
    size = document.get("voxel_size_nm") if isinstance(document, dict) else None
    if size is None:
        return None
    if (
        not isinstance(size, list)
        or len(size) != 3
        or not all(type(n) in (int, float) and math.isfinite(n) and n > 0 for n in size)
    ):
        raise ModelError(
            f"voxel_size_nm in the model's card {card} is three positive numbers [x, y, z], got "
            f"{size!r}"
        )
    return (float(size[0]), float(size[1]), float(size[2]))


def _canonical(document: Any) -> bytes:
    """JSON with one spelling, and a line's end."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
