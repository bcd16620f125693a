"""What is stored of a volume, against what its geometry asks for; no voxel is read.

The chunks (shards, where sharded) that there should be are counted by geometry and those that are
there by listing, so an exabyte of empty space costs nothing. Inside shards, chunks are counted by
the shards' indices. Counts are exact or None, with the reason; bounds are stated below.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import tensorstore as ts

from volumes.errors import DataError, RunError
from volumes.geometry import Box
from volumes.key_schemes import Keys, ShardedKeys
from volumes.keys import keys_in
from volumes.listing import stored_objects
from volumes.shard_index import Shards, shards_in, stored_chunks

KEPT = 10**6
"""The most stored keys that are kept in memory, to name what is missing; more are counted alone."""

ENUMERATED = 10**6
"""The most chunks of a grid of which the missing ones are named."""

PLACES = 10**7
"""The most places in the indices of shards that are read to count chunks in them."""

# Telling whether a shard of a number can hold a chunk takes as long as so many keys.
_SHARD_COST = 20
_UNKNOWN_KEYS = "the names of its chunks are not known here"


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """Something that is not stored.

    Attributes:
        key: The key of the chunk or shard; that of the shard for a chunk inside one.
        box: Its frame voxels; None where a shard has none.
    """

    key: str
    box: Box | None


@dataclasses.dataclass(frozen=True, slots=True)
class Inside:
    """The chunks inside the shards of a volume.

    Attributes:
        chunks: How many the volume has.
        stored: How many are stored; None where not counted.
        missing: The first ones that a stored shard does not hold; shorter than ``absent`` where
            there are many.
        absent: How many stored shards do not hold; None where not counted.
        unknown: Why something is None; empty otherwise.
        damaged: Shards whose index is damaged, so that none of their chunks counts as stored.
        damage: What is wrong with the first of them; empty where there is none.
    """

    chunks: int
    stored: int | None
    missing: tuple[Box, ...]
    absent: int | None
    unknown: str
    damaged: int = 0
    damage: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Inventory:
    """What is stored of an array.

    Attributes:
        expected: Chunks (shards, where sharded) that there are by geometry; None where it is only
            known that there are at most ``at_most``.
        at_most: A bound of ``expected``.
        stored: How many are stored; None where it cannot be told.
        stored_bytes: Their bytes; None where the storage does not tell.
        decoded_bytes: Bytes of their values before compression; of whole shards where it is not
            known which chunks they hold (``Inside.stored`` is None), and None where that neither.
        missing: The first ones that are not stored; empty where none is, or where there are too
            many to look through.
        inside: The chunks in shards; None where not sharded.
        strays: Objects that lie among the chunks and are none.
        stray: The key of one of them; empty where there is none.
        unknown: Why something is None; empty otherwise.
    """

    expected: int | None
    at_most: int
    stored: int | None
    stored_bytes: int | None
    decoded_bytes: int | None
    missing: tuple[Missing, ...]
    inside: Inside | None
    strays: int = 0
    stray: str = ""
    unknown: str = ""

    @property
    def absent(self) -> int | None:
        """How many chunks, or shards, are not stored; None where it cannot be told."""
        if self.expected is None or self.stored is None:
            return None
        return self.expected - self.stored

    @property
    def ratio(self) -> float | None:
        """Decoded bytes by stored bytes; None where it cannot be told."""
        if not self.stored_bytes or self.decoded_bytes is None:
            return None
        return self.decoded_bytes / self.stored_bytes


@dataclasses.dataclass(slots=True)
class _Listed:
    """What a listing found."""

    stored: int = 0
    stored_bytes: int | None = 0
    values: int | None = 0
    keys: list[str] | None = dataclasses.field(default_factory=list)
    strays: int = 0
    stray: str = ""

    def add(self, keys: Keys, key: str, size: int | None) -> None:
        """Count an object."""
        values = keys.values(key)
        if values is None and not keys.holds(key):
            if keys.prefix:  # else metadata and records lie among the chunks
                self.strays += 1
                self.stray = self.stray or key
            return
        self.stored += 1
        self.stored_bytes = _sum(self.stored_bytes, size)
        self.values = _sum(self.values, values)
        if self.keys is not None:
            self.keys.append(key)
            if len(self.keys) > KEPT:
                self.keys = None


def _sum(total: int | None, more: int | None) -> int | None:
    return None if total is None or more is None else total + more


def inventory(store: ts.TensorStore, form: str, named: int = 10) -> Inventory:
    """What is stored of an array.

    Args:
        store: The array, its dimensions x, y, z in frame voxels; all of it.
        form: The format, as ``VolumeSpec.format`` has it.
        named: How many missing chunks to name.

    Raises:
        RunError: The storage fails.
    """
    keys, place = keys_in(store, form), store.kvstore
    if keys is None or place is None:
        return Inventory(None, 0, None, None, None, (), None, unknown=_UNKNOWN_KEYS)
    shards = shards_in(store, keys)
    expected, at_most = _expected(keys)
    listed = _Listed()
    try:
        for key, size in stored_objects(place, keys.prefix):
            listed.add(keys, key, size)
    except RunError as e:
        inside = None if shards is None else Inside(shards.count, None, (), None, str(e))
        return Inventory(expected, at_most, None, None, None, (), inside, unknown=str(e))
    itemsize = store.dtype.numpy_dtype.itemsize
    inside, values = None, listed.values
    if shards is not None:
        inside, counted = _inside(shards, place, listed.keys, named)
        values = values if counted is None else counted
    return Inventory(
        expected=expected,
        at_most=at_most,
        stored=listed.stored,
        stored_bytes=listed.stored_bytes,
        decoded_bytes=None if values is None else values * itemsize,
        missing=_missing(keys, listed, expected, named),
        inside=inside,
        strays=listed.strays,
        stray=listed.stray,
    )


def _expected(keys: Keys) -> tuple[int | None, int]:
    """How many keys there are by geometry, and a bound where that is not told."""
    count = keys.count
    if count is not None:
        return count, count
    if not isinstance(keys, ShardedKeys):
        raise ValueError("only hashed shards are not counted by geometry")
    chunks = math.prod(keys.sharding.grid)
    if chunks > ENUMERATED:
        return None, min(chunks, 1 << keys.sharding.shard_bits)
    count = sum(1 for _ in keys.every())
    return count, count


def _missing(keys: Keys, listed: _Listed, expected: int | None, named: int) -> tuple[Missing, ...]:
    """The first keys that are not stored; none where there are too many to look through."""
    if expected is None or listed.keys is None or max(expected, _looked_at(keys)) > ENUMERATED:
        return ()
    stored = set(listed.keys)
    lacking: Iterator[str] = (k for k in keys.every() if k not in stored)
    wanted = min(named, expected - len(stored))
    return tuple(Missing(k, keys.box(k)) for k in itertools.islice(lacking, wanted))


def _looked_at(keys: Keys) -> int:
    """What it takes to list all keys, in chunks of a grid."""
    if not isinstance(keys, ShardedKeys):
        return 0
    if keys.sharding.ordered:
        return keys.sharding.numbers * _SHARD_COST
    return math.prod(keys.sharding.grid)


def _inside(
    shards: Shards, place: ts.KvStore, keys: list[str] | None, named: int
) -> tuple[Inside, int | None]:
    """The chunks inside the stored shards, and how many values they have."""
    chunks = shards.count
    if keys is None or len(keys) * shards.places > PLACES:
        needed = "too many" if keys is None else f"{len(keys) * shards.places:,}"
        unknown = f"not counted: the indices of its shards have {needed} places, over {PLACES:,}"
        return Inside(chunks, None, (), None, unknown), None
    marked = np.zeros(shards.grid, bool) if chunks <= ENUMERATED else None
    stored = values = 0
    damage = []
    for cells in stored_chunks(shards, place, keys):
        if isinstance(cells, DataError):
            damage.append(str(cells))
            continue
        stored += len(cells)
        values += shards.values(cells)
        if marked is not None:
            marked[tuple(cells.T)] = True
    capacities = [shards.capacity(k) for k in keys]
    absent = None if None in capacities else sum(c or 0 for c in capacities) - stored
    missing: tuple[Box, ...] = ()
    if marked is not None and absent != 0:
        lacking = np.argwhere(shards.owned(keys) & ~marked)
        absent = len(lacking)
        boxes = (shards.box(cell) for cell in lacking[:named].tolist())
        missing = tuple(b for b in boxes if b is not None)
    unknown = "" if absent is not None else "the shards do not tell which chunks belong into them"
    first = damage[0] if damage else ""
    return Inside(chunks, stored, missing, absent, unknown, len(damage), first), values
