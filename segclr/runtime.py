"""The door through which TensorFlow and Keras load.

They take seconds and half a gigabyte, so they load when a process first encodes or trains, never
for help or a plan. ``network()`` is the only way to ``segclr.network``; no other module may import
that module, Keras or TensorFlow.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from segclr.config import NetworkConfig

_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "KERAS_BACKEND": "tensorflow"}


class NetworkModule(Protocol):
    """What ``segclr.network`` offers; a model is a ``keras.Model``. See there."""

    def build_network(
        self, config: NetworkConfig, input_size: int | None = None, with_projection: bool = False
    ) -> Any:
        """A network without weights."""

    def named_variables(self, model: Any) -> dict[str, Any]:
        """Its variables by plain name."""

    def assign_weights(self, model: Any, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Gives it weights."""

    def model_shape(self, model: Any) -> tuple[int | None, int]:
        """Input size (None where open) and embedding width, or a refusal."""

    def save_keras(self, path: str, model: Any, config: NetworkConfig, input_size: int) -> None:
        """Writes a ``.keras`` file."""

    def load_keras(self, path: str) -> Any:
        """Reads a ``.keras`` file."""

    def compile_forward(
        self, model: Any, batch: int, input_size: int
    ) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
        """The compiled way from pixels to embeddings."""


def network() -> NetworkModule:
    """The module ``segclr.network``, with TensorFlow and Keras loaded behind it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return cast(NetworkModule, importlib.import_module("segclr.network"))
