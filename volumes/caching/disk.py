"""Copies of remote objects in a local directory, which processes share.

An entry is a file named by the digest of the object's place: a line of JSON with the place, the
object's generation at its storage, length and SHA-256, then its bytes. Whether an entry is still
what the storage has is for the reader to ask (``volumes.caching.remote``); whether it is what was
written is checked on every use, and a damaged one is removed.

Processes need no lock. An entry appears whole, by a rename; one that vanishes is as one that never
was; two writers of one entry leave either's. Entries are evicted by last use, their modification
time. A process looks at the whole directory before what it has written since would pass a 32nd of
the budget, and leaves at most seven eighths of it: so up to four processes together stay within the
budget, and each one more may pass it by a 32nd. Files of writers that were killed go with the next
such look.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from volumes.caching import tally
from volumes.errors import RequestError

_FORMAT = "segclr-beam copy"
_VERSION = 1
_SHELVES = "segclr-beam-copies"
_TEMPORARY = ".tmp"

# What a process writes before it looks at the directory again, and what it leaves then.
_UNSEEN = 1 / 32
_FULL = 7 / 8

# An object of more than this share of the budget would drive out too much, and is not kept.
_LARGEST = 1 / 4

# A temporary file that nobody has written to for so long is of a writer that is no more.
_ABANDONED_S = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Copies:
    """Where copies are kept, and how much of them; opens nothing.

    Attributes:
        directory: Absolute path of a local directory, made with the first copy.
        budget_bytes: What they may take, at least 1.
    """

    directory: str
    budget_bytes: int

    def check(self) -> None:
        """Refuse a directory in which nothing can be kept; changes nothing.

        Raises:
            RequestError: It cannot be made, or not be written to.
        """
        path = self.shelves()
        while not os.path.lexists(path):
            path = path.parent
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            why = "may not be written to" if path.is_dir() else "is no directory"
            raise RequestError(
                f"--disk-cache {self.directory}: {path} {why}; copies of remote chunks are kept "
                "there: give a local directory of your own, or leave the flag out"
            )

    def shelves(self) -> pathlib.Path:
        """The directory that holds entries and nothing else."""
        return pathlib.Path(self.directory) / _SHELVES


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A copy of an object.

    Attributes:
        generation: The object's generation at its storage when it was copied.
        data: Its bytes.
    """

    generation: bytes
    data: bytes


class Shelf:
    """The copies of this process: finds and keeps entries within the budget; for any thread."""

    def __init__(self, copies: Copies) -> None:
        """Open nothing yet."""
        self._budget = copies.budget_bytes
        self._root = copies.shelves()
        self._lock = threading.Lock()
        self._unseen: int | None = None
        self._free = threading.Condition()
        self._claims: set[str] = set()

    def get(self, place: str) -> Entry | None:
        """The copy of an object, or None where there is none that is whole."""
        path = self._path(place)
        try:
            packed = path.read_bytes()
            os.utime(path)
        except OSError:  # gone, or not to be read: as if it never was
            return None
        entry = unpacked(packed, place)
        if entry is None:
            tally.add("disk_corrupt")
            path.unlink(missing_ok=True)
            return None
        tally.add("bytes_read_disk", len(packed))
        return entry

    def put(self, place: str, entry: Entry) -> bool:
        """Keep a copy of an object; False where it is too large, or the disk does not take it."""
        data = packed(place, entry)
        if len(data) > _LARGEST * self._budget:
            return False
        path = self._path(place)
        temporary = None
        try:
            self._make_room(len(data))
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(suffix=_TEMPORARY, dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError:  # no room, no right, or swept away: what was read does without a copy
            if temporary is not None:
                pathlib.Path(temporary).unlink(missing_ok=True)
            tally.add("disk_unwritten")
            return False
        tally.add("bytes_written_disk", len(data))
        return True

    @contextlib.contextmanager
    def claimed(self, places: Iterable[str]) -> Iterator[set[str]]:
        """Claim those of some places that no other thread has; waits until there is one.

        Threads of a process that want the same object at once so fetch it once. Who holds a claim
        must not wait for another.
        """
        wanted = set(places)
        with self._free:
            while not (mine := wanted - self._claims):
                self._free.wait()
            self._claims |= mine
        try:
            yield mine
        finally:
            with self._free:
                self._claims -= mine
                self._free.notify_all()

    def drop(self, place: str) -> None:
        """Remove the copy of an object, where there is one."""
        self._path(place).unlink(missing_ok=True)

    def _path(self, place: str) -> pathlib.Path:
        name = hashlib.sha256(place.encode()).hexdigest()
        return self._root / name[:2] / name[2:]

    def _make_room(self, size: int) -> None:
        """Look at the directory and evict, where this process has written enough since it did."""
        with self._lock:
            if self._unseen is None or self._unseen + size > _UNSEEN * self._budget:
                evict(self._root, round(_FULL * self._budget) - size)
                self._unseen = 0
            self._unseen += size


def packed(place: str, entry: Entry) -> bytes:
    """An entry as its file holds it."""
    header = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "place": place,
        "generation": entry.generation.hex(),
        "length": len(entry.data),
        "sha256": hashlib.sha256(entry.data).hexdigest(),
    }
    return json.dumps(header).encode() + b"\n" + entry.data


def unpacked(data: bytes, place: str) -> Entry | None:
    """The entry that a file holds; None where it is damaged, or of another object or format."""
    line, _, body = data.partition(b"\n")
    try:
        header: dict[str, Any] = json.loads(line)
        generation = bytes.fromhex(header["generation"])
        stated = (header["format"], header["format_version"], header["place"])
        whole = header["length"] == len(body)
        whole = whole and header["sha256"] == hashlib.sha256(body).hexdigest()
    except (ValueError, KeyError, TypeError):
        return None
    return Entry(generation, body) if whole and stated == (_FORMAT, _VERSION, place) else None


def evict(root: pathlib.Path, limit: int) -> int:
    """Remove the entries that were not used for longest until the others take at most ``limit``.

    Files of writers that were killed are removed too. Safe beside others who do the same.

    Returns:
        The bytes that are left.
    """
    found: list[tuple[float, int, str]] = []
    total = 0
    for path, stat in _files(root):
        if path.endswith(_TEMPORARY):
            if time.time() - stat.st_mtime > _ABANDONED_S:
                pathlib.Path(path).unlink(missing_ok=True)
            else:
                total += stat.st_size
            continue
        found.append((stat.st_mtime, stat.st_size, path))
        total += stat.st_size
    for _, size, path in sorted(found):
        if total <= limit:
            break
        pathlib.Path(path).unlink(missing_ok=True)
        tally.add("disk_evictions")
        total -= size
    return total


def _files(root: pathlib.Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below the directory that does not vanish while it is looked at."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            try:
                yield path, os.stat(path)
            except FileNotFoundError:
                continue
