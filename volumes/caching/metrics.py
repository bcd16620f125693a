"""What a process asked of its storage, in a few numbers, by difference.

TensorStore counts for the whole process, from its start on: which volume, thread or step asked is
not told. So a difference between two looks has all that the process did in between. The process
has one ``Account``, which hands out every difference once: whoever asks gets what happened since
anybody last asked, and the sum over all who ask is what happened, whatever the number of threads
and steps. Where two runs share a process at the same time, either may be given the other's.

What is in the numbers: reads and writes of volumes and of embedding stores alike, as the storage
saw them (compressed bytes, whole objects or ranges). What goes through other libraries is not:
whole files by google-cloud-storage, HDF5, PNG.
"""

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import tensorstore as ts

from volumes.caching import tally

SOURCES = ("file", "gcs", "s3", "http")
"""The storage that bytes are counted by; an OCDBT database's are those of what it lies on."""

# TensorStore's names of the storage, by ours.
_DRIVERS = {"file": ("file",), "gcs": ("gcs", "gcs_grpc"), "s3": ("s3",), "http": ("http",)}

# What is asked of a store that does not go over the wire of ``/tensorstore/http``.
_ASKED = ("read", "write", "list", "delete_range")
_OFF_THE_WIRE = ("file", "gcs_grpc")

# Answers after which a request is made again.
_AGAIN = ("408", "429", "500", "502", "503", "504")

_ROOT = "/tensorstore/"

Numbers = dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Io:
    """What was asked of storage, by the names that Beam's counters have.

    Attributes:
        numbers: (name, count) pairs, sorted, without those that are 0.
    """

    numbers: tuple[tuple[str, int], ...] = ()

    def __getitem__(self, name: str) -> int:
        """A number by its name; 0 where nothing was counted.

        Raises:
            KeyError: There is no such name.
        """
        if name not in NAMES:
            raise KeyError(name)
        return dict(self.numbers).get(name, 0)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """The (name, count) pairs."""
        return iter(self.numbers)

    @classmethod
    def between(cls, before: Mapping[str, int], after: Mapping[str, int]) -> "Io":
        """What came between two looks."""
        changes = {name: after[name] - before.get(name, 0) for name in NAMES}
        return cls(tuple(sorted((name, n) for name, n in changes.items() if n)))


NAMES: tuple[str, ...] = (
    *(f"bytes_read_{source}" for source in SOURCES),
    *(f"bytes_written_{source}" for source in SOURCES if source != "http"),
    "requests",
    "retries",
    "cache_hits",
    "cache_misses",
    "cache_evictions",
    *tally.NAMES,
)
"""The numbers.

``bytes_read_S``, ``bytes_written_S``: bytes of objects that storage S gave and took.
``requests``: operations on files, and requests sent over a network, tries and metadata included.
``retries``: of those, the ones made again: what a store counts itself, or the answers 408, 429 and
5xx, whichever are more; a connection that failed without an answer over plain HTTP is not in it.
``cache_hits``, ``cache_misses``, ``cache_evictions``: entries of TensorStore's cache: decoded
chunks, indexes of shards, nodes of a database. A hit may have cost a request that brought nothing;
what is in use at that moment is hit without any pool.
The others are those of the copy on disk: see ``volumes.caching.tally``.
"""


def look() -> Numbers:
    """All numbers as they stand: sums since the process began."""
    found = _collected()
    numbers: Numbers = {}
    for source, drivers in _DRIVERS.items():
        for what in ("bytes_read", "bytes_written"):
            if f"{what}_{source}" in NAMES:
                names = [f"kvstore/{driver}/{what}" for driver in drivers]
                numbers[f"{what}_{source}"] = sum(found.get(name, 0) for name in names)
    asked = [f"kvstore/{driver}/{what}" for driver in _OFF_THE_WIRE for what in _ASKED]
    numbers["requests"] = found.get("http/request_started", 0) + sum(
        found.get(name, 0) for name in asked
    )
    wire = sum(found.get(f"http/response_codes {code}", 0) for code in _AGAIN)
    told = sum(found.get(f"kvstore/{driver}/retries", 0) for driver in ("gcs", "s3"))
    other = sum(found.get(f"kvstore/{driver}/retries", 0) for driver in _OFF_THE_WIRE)
    numbers["retries"] = max(wire, told) + other
    for name in ("hit", "miss", "evict"):
        ours = {"hit": "hits", "miss": "misses", "evict": "evictions"}[name]
        numbers[f"cache_{ours}"] = found.get(f"cache/{name}_count", 0)
    return numbers | tally.look()


def _collected() -> Numbers:
    """TensorStore's counters by name without their common root; a label follows its name."""
    found: Numbers = {}
    for metric in ts.experimental_collect_matching_metrics(_ROOT):
        name = metric["name"].removeprefix(_ROOT)
        for value in metric["values"]:
            label = value.get("code")
            key = name if label is None else f"{name} {label}"
            found[key] = found.get(key, 0) + _number(value)
    return found


def _number(value: Mapping[str, Any]) -> int:
    number = value.get("value", 0)
    return int(number) if isinstance(number, int | float) else 0


class Account:
    """Hands out what a process asked of its storage, every difference once; safe from any thread.

    Attributes:
        holder: Whom the account was opened for last.
    """

    def __init__(self) -> None:
        """An account that nobody has opened yet."""
        self.holder: str | None = None
        self._lock = threading.Lock()
        self._last: Numbers = {}

    def open(self, holder: str) -> None:
        """Begin to count for a holder, such as a run, unless it is its already.

        What came before is nobody's.
        """
        with self._lock:
            if self.holder != holder:
                self.holder = holder
                self._last = look()

    def take(self) -> Io:
        """What came since this was last asked, or since the account was opened."""
        with self._lock:
            if self.holder is None:
                raise RuntimeError("the account is not open")
            now = look()
            taken = Io.between(self._last, now)
            self._last = now
            return taken


PROCESS = Account()
"""The account of this process."""
