"""Parts of remote files: the first bytes of many, and one as a file that can be searched."""

import io
import os
from typing import Any

import tensorstore as ts

from volumes import objects
from volumes.context import process_context
from volumes.errors import RunError
from volumes.writing import storage_errors

BLOCK_BYTES = 1 << 16
"""What is read of a file at a time."""

BOUNDLESS = 1 << 48
"""The size of a file whose size is not known."""

_AT_ONCE = 256
_KEPT = 8


def store_of(url: str) -> ts.KvStore:
    """The key-value store of a directory."""
    return ts.KvStore.open(objects.kvstore(url), context=process_context()).result()


def starts(url: str, names: list[str], size: int) -> list[ts.KvStore.ReadResult]:
    """The first ``size`` bytes, with the generation, of each of many files of a directory.

    A file shorter than that gives all it has.

    Raises:
        RunError: One is gone, or the store fails.
    """
    out: list[ts.KvStore.ReadResult] = []
    with storage_errors(f"read the sections in {url}"):
        store = store_of(url)
        for i in range(0, len(names), _AT_ONCE):
            part = names[i : i + _AT_ONCE]
            futures = [store.read(n, byte_range=slice(0, size)) for n in part]
            out.extend(_start(store, n, f) for n, f in zip(part, futures, strict=True))
    for name, result in zip(names, out, strict=True):
        if result.state != "value":
            raise RunError(f"{objects.join(url, name)} is gone; put it back and start again")
    return out


def _start(
    store: ts.KvStore, name: str, future: ts.Future[ts.KvStore.ReadResult]
) -> ts.KvStore.ReadResult:
    try:
        return future.result()
    except ValueError as e:
        if not str(e).startswith("OUT_OF_RANGE"):
            raise
        return store.read(name).result()


class RemoteFile(io.RawIOBase):
    """A remote file that is read in blocks; its size is not known."""

    def __init__(self, store: ts.KvStore, name: str) -> None:
        """Read nothing yet."""
        self._store = store
        self._name = name
        self._at = 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte; the end is not known, and cannot be gone to."""
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the size of a remote file is not known")
        self._at = offset + (self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read what one block has of what is asked for."""
        number, inside = divmod(self._at, BLOCK_BYTES)
        data = self._block(number)[inside : inside + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Read that many bytes, or what there is."""
        parts = []
        while size > 0 and (part := super().read(min(size, BLOCK_BYTES))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            if len(self._blocks) >= _KEPT:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[number] = self._fetched(number * BLOCK_BYTES)
        return self._blocks[number]

    def _fetched(self, start: int) -> bytes:
        """A block; nothing past the end of the file."""
        for stop in (start + BLOCK_BYTES, None):
            try:
                found = self._store.read(self._name, byte_range=slice(start, stop)).result()
            except ValueError as e:
                if not str(e).startswith("OUT_OF_RANGE"):
                    raise
                continue
            return bytes(found.value) if found.state == "value" else b""
        return b""
