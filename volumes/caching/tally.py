"""Counts of the copy on disk, for the whole process and from its start on, as TensorStore's are."""

import threading
from typing import Literal

Name = Literal[
    "disk_hits",
    "disk_misses",
    "disk_evictions",
    "disk_corrupt",
    "disk_unwritten",
    "bytes_read_disk",
    "bytes_written_disk",
]

NAMES: tuple[Name, ...] = (
    "disk_hits",
    "disk_misses",
    "disk_evictions",
    "disk_corrupt",
    "disk_unwritten",
    "bytes_read_disk",
    "bytes_written_disk",
)
"""The counts.

``disk_hits``: objects of which the copy was still what the storage has. ``disk_misses``: objects
that were fetched. ``disk_evictions``, ``disk_corrupt``: copies that were removed to make room, and
since they were damaged. ``disk_unwritten``: objects that the disk did not take. Bytes of copies.
"""

_lock = threading.Lock()
_counts: dict[str, int] = dict.fromkeys(NAMES, 0)


def add(name: Name, n: int = 1) -> None:
    """Add to a count."""
    with _lock:
        _counts[name] += n


def look() -> dict[str, int]:
    """The counts as they stand."""
    with _lock:
        return dict(_counts)
