"""From crops to embeddings: one compiled model, fixed batches, one encoded while the next fills."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from segclr import runtime
from segclr.errors import ModelError
from segclr.model import ModelSpec, embedding_weights, keras_fingerprint, weights_fingerprint

Crops = Iterable[npt.NDArray[np.uint8]]
"""Crops, each uint8 ``[n, n, n]``, ZYX."""

_Forward = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


class Encoder:
    """A model ready to encode; safe to share between threads.

    Every batch has the same shape, so that a crop's embedding does not depend on how many crops
    came with it.

    Attributes:
        spec: The model.
    """

    def __init__(self, spec: ModelSpec, forward: _Forward) -> None:
        """An encoder around a compiled model; see ``load_encoder``.

        Args:
            spec: The model.
            forward: From uint8 ``[batch, n, n, n]`` to float32 ``[batch, D]``.
        """
        self.spec = spec
        self._forward = forward

    @property
    def batch(self) -> int:
        """Crops a batch."""
        return self.spec.batch

    @property
    def input_size(self) -> int:
        """Voxels a side of a crop."""
        return self.spec.input_size

    @property
    def embedding_width(self) -> int:
        """Components of an embedding, D."""
        return self.spec.embedding_width

    def encode(self, crops: Crops) -> npt.NDArray[np.float32]:
        """The embeddings of crops, which are pulled one by one as a batch fills.

        While the model computes one batch, a thread of this call's own pulls the crops of the next;
        no more than these two batches are held.

        Args:
            crops: Crops, uint8 ``[n, n, n]`` each, ZYX; a crop may be reused by its maker as soon
                as the next is asked for. They are asked for by one thread, not the caller's.

        Returns:
            float32 ``[count, D]``, in the order of the crops.

        Raises:
            ModelError: If an embedding is not finite.
            ValueError: If a crop has another shape or type.
        """
        rows = [np.empty((0, self.embedding_width), dtype=np.float32)]
        batches = self._batches(crops)
        count = 0
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="crops") as thread:
            coming = thread.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = thread.submit(next, batches, None)
                rows.append(self._encode_part(*batch, count))
                count += batch[1]
        return np.concatenate(rows)

    def encode_batch(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The embeddings, float32 ``[batch, D]``, of one full batch, uint8 ``[batch, n, n, n]``."""
        return self._forward(pixels)

    def _batches(self, crops: Crops) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
        """Batches and the number of crops that lead each, 0 behind them, in two buffers in turn."""
        shape = (self.input_size,) * 3
        buffers = [np.zeros((self.batch, *shape), dtype=np.uint8) for _ in range(2)]
        filled = 0
        for count, crop in enumerate(crops):
            if crop.shape != shape or crop.dtype != np.uint8:
                raise ValueError(
                    f"a crop is uint8 {shape}, got {crop.dtype} {crop.shape} as crop {count}"
                )
            buffers[0][filled] = crop
            filled += 1
            if filled == self.batch:
                yield buffers[0], filled
                filled = 0
                buffers.reverse()
        if filled:
            buffers[0][filled:] = 0
            yield buffers[0], filled

    def _encode_part(
        self, buffer: npt.NDArray[np.uint8], filled: int, first: int
    ) -> npt.NDArray[np.float32]:
        """The embeddings of the ``filled`` crops that lead a batch."""
        embeddings = self.encode_batch(buffer)[:filled]
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if bad.size:
            raise ModelError(
                f"the {self.spec.title} gave an embedding with components that are not finite for "
                f"crop {first + bad[0]}: its weights cannot be right"
            )
        return embeddings


def load_encoder(spec: ModelSpec) -> Encoder:
    """Load TensorFlow and the model's weights, and compile it.

    Raises:
        ModelError: If the weights are not there any more, or are not those that were planned with.
    """
    network = runtime.network()
    model = _stored_model(spec, network) if spec.kind == "keras" else _built_model(spec, network)
    return Encoder(spec, network.compile_forward(model, spec.batch, spec.input_size))


def _built_model(spec: ModelSpec, network: runtime.NetworkModule) -> Any:
    """The network of a spec that says how it is built, with its weights."""
    config = spec.network
    if config is None:
        raise ModelError(f"the {spec.title} does not say how its network is built")
    weights = dict(embedding_weights(spec))
    _refuse_change(spec, weights_fingerprint(config, spec.input_size, spec.batch, weights.items()))
    model = network.build_network(config.without_projection(), spec.input_size)
    network.assign_weights(model, weights)
    return model


def _stored_model(spec: ModelSpec, network: runtime.NetworkModule) -> Any:
    """The model in a ``.keras`` file."""
    if spec.path is None:
        raise ModelError(f"the {spec.title} names no file")
    _refuse_change(spec, keras_fingerprint(spec.path, spec.input_size, spec.batch))
    model = network.load_keras(spec.path)
    size, width = network.model_shape(model)
    if size not in (None, spec.input_size) or width != spec.embedding_width:
        raise ModelError(
            f"the {spec.title} takes crops of {size} voxels a side and gives {width} components, "
            f"but says {spec.input_size} and {spec.embedding_width} of itself"
        )
    return model


class _Shared:
    """The encoder that the threads of this process share: the latest model's, and no other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None

    def get(self, spec: ModelSpec) -> Encoder:
        """The encoder of ``spec``, loaded by the first thread that asks."""
        with self._lock:
            if self._encoder is None or self._encoder.spec.fingerprint != spec.fingerprint:
                self._encoder = None
                self._encoder = load_encoder(spec)
            return self._encoder


_SHARED = _Shared()


def shared_encoder(spec: ModelSpec) -> Encoder:
    """The encoder of a model, one a process.

    Threads that ask at the same time wait for one loading. Only the encoder of the latest
    fingerprint is kept. Raises as ``load_encoder``.
    """
    return _SHARED.get(spec)


def _refuse_change(spec: ModelSpec, found: str) -> None:
    """Refuse weights that are not those of the plan."""
    if found != spec.fingerprint:
        raise ModelError(
            f"the weights changed since planning: the {spec.title} at {spec.path} has fingerprint "
            f"{found}, planned was {spec.fingerprint}. Plan again, or put the weights back"
        )
