"""Looks into a ``.keras`` file without Keras.

Such a file is a zip archive with the network in ``config.json`` and the weights in
``model.weights.h5``. Files that this project writes hold ``segclr.json`` as well::

    {"format": "segclr-network", "format_version": 1, "input_size": 129, "embedding_width": 64,
     "network": {...}}

so that a run can be planned before Keras is loaded.
"""

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from segclr.config import NetworkConfig
from segclr.errors import ModelError

MEMBER = "segclr.json"
"""Member that describes the network."""

CONFIG_MEMBER = "config.json"
"""Member in which Keras keeps the network."""

WEIGHTS_MEMBER = "model.weights.h5"
"""Member in which Keras keeps the weights."""

_FORMAT = "segclr-network"
_VERSION = 1
_PIECE_BYTES = 1 << 20


def describe(config: NetworkConfig, input_size: int) -> dict[str, Any]:
    """What the member ``segclr.json`` says."""
    return {
        "format": _FORMAT,
        "format_version": _VERSION,
        "input_size": input_size,
        "embedding_width": config.embedding_width,
        "network": config.to_json(),
    }


def read_description(path: str) -> tuple[NetworkConfig, int] | None:
    """Network and input size that the file's ``segclr.json`` gives; None without that member.

    Raises:
        ModelError: If the file is no ``.keras`` file, damaged, or described by a newer version.
    """
    with _opened(path) as archive:
        if MEMBER not in archive.namelist():
            return None
        text = b"".join(_pieces(archive, MEMBER))
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{MEMBER} in the model {path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ModelError(f"{MEMBER} in the model {path} does not describe a {_FORMAT}")
    if document.get("format_version") != _VERSION:
        raise ModelError(
            f"{MEMBER} in the model {path} has format version {document.get('format_version')!r}, "
            f"this release reads {_VERSION}: use the release that wrote it or a later one"
        )
    size = document.get("input_size")
    config = NetworkConfig.from_json(document.get("network"))
    if type(size) is not int or document != describe(config, size):
        raise ModelError(f"{MEMBER} in the model {path} contradicts itself: {document}")
    return config, size


def weights_bytes(path: str) -> int:
    """Bytes of the file's weights, as stored by Keras."""
    with _opened(path) as archive:
        return archive.getinfo(WEIGHTS_MEMBER).file_size


def content(path: str) -> Iterator[bytes]:
    """The network and the weights, in pieces, each member led by its name and length.

    Raises:
        ModelError: If the file is no ``.keras`` file, or damaged.
    """
    with _opened(path) as archive:
        for member in (CONFIG_MEMBER, WEIGHTS_MEMBER):
            yield f"{member} {archive.getinfo(member).file_size}\n".encode()
            yield from _pieces(archive, member)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[zipfile.ZipFile]:
    """The archive, with both of Keras' members in it; its damage told as a ``ModelError``."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in (CONFIG_MEMBER, WEIGHTS_MEMBER):
                if member not in archive.namelist():
                    raise ModelError(
                        f"the model {path} has no {member}: it was not saved by Keras 3 in one file"
                    )
            yield archive
    except OSError as error:
        raise ModelError(f"the model {path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ModelError(
            f"the model {path} is damaged or not a .keras file: {error}. Fetch it again"
        ) from error


def _pieces(archive: zipfile.ZipFile, member: str) -> Iterator[bytes]:
    """The bytes of a member, whose CRC-32 the end of the reading checks."""
    with archive.open(member) as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
