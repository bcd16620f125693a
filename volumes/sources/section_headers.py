"""The headers of all sections of a directory; of remote files only the parts that hold them."""

import concurrent.futures
import functools
import os
import urllib.parse
from typing import Any, BinaryIO, cast

from volumes import objects
from volumes.errors import RequestError
from volumes.sources import images, remote
from volumes.sources.headers import Header, ImageError
from volumes.writing import storage_errors

_AT_ONCE = 16


def headers_of(url: str, names: list[str]) -> list[Header]:
    """The header of each section.

    Args:
        url: Absolute path or URL of the directory.
        names: The files, in order.

    Raises:
        RequestError: One is no image of a known format, or its header is damaged; it is named.
        RunError: The storage fails.
    """
    path = objects.local_path(url)
    if path is not None:
        return [_local_header(os.path.join(path, n)) for n in names]
    with storage_errors(f"read the sections in {url}"):
        store = remote.store_of(url)
        one = functools.partial(_remote_header, url, store)
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(one, names))


def _local_header(path: str) -> Header:
    try:
        with open(path, "rb") as file:
            return _header(file, path, None)
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror}; make it readable") from e


def _remote_header(url: str, store: Any, name: str) -> Header:
    file = cast(BinaryIO, remote.RemoteFile(store, name))
    return _header(file, below(url, name), remote.BOUNDLESS)


def _header(file: BinaryIO, where: str, size: int | None) -> Header:
    try:
        return images.header(file, size)
    except ImageError as e:
        raise RequestError(
            f"{where} {e}; supply the section again, since leaving it out would shift all that "
            "follow in z"
        ) from e


def below(url: str, name: str) -> str:
    """Where a file of the directory is; names are quoted in URLs."""
    remotely = objects.local_path(url) is None
    return objects.join(url, urllib.parse.quote(name) if remotely else name)
