"""Reads volumes over a network through copies on local disk; the storage is asked about each.

For a box, every object under it is taken from the copy where that is still what the storage has: a
conditional read, which brings no bytes then. The objects are laid out in the memory of this
process, and the volume is read there: so an eviction by another process cannot turn into a chunk
that is missing. Then the storage is looked at again: equal generations mean that all that was read
is of one moment, as for any volume that is read between two looks (``volumes.snapshots``).

An object that is not stored is remembered for the box at hand alone.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import tensorstore as ts

from volumes.caching import tally
from volumes.caching.disk import Copies, Entry, Shelf
from volumes.errors import RunError
from volumes.formats import TS_ERRORS, told
from volumes.geometry import Box
from volumes.opening import Volume
from volumes.pinning import database
from volumes.reading import BYTES_IN_FLIGHT, Part, Request, read_boxes
from volumes.snapshots import MovedError, Snapshot, read_snapshot
from volumes.spec import FORMATS, VolumeSpec
from volumes.stamps import keys_under, stamp, stamped

_NETWORK = ("http", "gcs", "gcs_grpc", "s3")

# Objects that are asked for at once.
_IN_FLIGHT = 256

# Objects are copied whole, and those of a box are in memory at once: larger ones are not copied.
LARGEST_BYTES = 256 << 20

# TensorStore's generation of a key that is not stored.
_ABSENT = b"\x02"


def refusal(spec: VolumeSpec) -> str | None:
    """Why a volume is read without a copy, as a clause for people; None where it may have one.

    It is told from the plan's record; what only its storage tells, ``copied`` says.
    """
    if spec.driver not in FORMATS:
        return "its driver stores nothing itself"
    kvstore = ts.KvStore.Spec(json.loads(spec.tensorstore)["kvstore"]).to_json()
    if database({"kvstore": kvstore}) is not None:
        return "it lies in a database"
    if kvstore["driver"] not in _NETWORK:
        return "it is not read over a network"
    decoded = math.prod(spec.write_chunk) * spec.itemsize
    if decoded > LARGEST_BYTES:
        return f"its stored objects have {decoded:,} bytes decoded, and would be read whole"
    return None


@functools.lru_cache(maxsize=16)
def copied(volume: Volume) -> bool:
    """Whether copies of a volume's objects can be told from the objects; asks once a volume.

    Raises:
        RunError: The storage fails.
    """
    return refusal(volume.spec) is None and stamped(volume)


def read_through(
    copies: Copies, requests: Sequence[Request], *, bytes_in_flight: int = BYTES_IN_FLIGHT
) -> Snapshot:
    """Read boxes at one moment, through copies where the volume may have them.

    Args:
        copies: Where they are kept.
        requests: What to read.
        bytes_in_flight: Decoded bytes of the chunks in a batch.

    Raises:
        MovedError: A volume was written to meanwhile; reading again may do.
        DataError: A chunk is damaged.
        RunError: Storage fails.
    """
    shelf = shelf_of(copies)
    brought = {i: bring(shelf, r.volume, r.box) for i, r in enumerate(requests) if copied(r.volume)}
    others = [i for i in range(len(requests)) if i not in brought]
    parts: dict[int, Part] = {}
    stamps: dict[int, str | None] = {i: b.stamp for i, b in brought.items()}
    if others:
        found = read_snapshot([requests[i] for i in others], bytes_in_flight=bytes_in_flight)
        parts |= dict(zip(others, found.parts, strict=True))
        stamps |= dict(zip(others, found.stamps, strict=True))
    if brought:
        inside = [dataclasses.replace(requests[i], volume=b.volume) for i, b in brought.items()]
        parts |= dict(
            zip(brought, read_boxes(inside, bytes_in_flight=bytes_in_flight), strict=True)
        )
    for i, b in brought.items():
        if stamp(requests[i].volume, requests[i].box) != b.stamp:
            source = requests[i].volume.spec.source
            raise MovedError(f"voxels {requests[i].box} of {source} changed while they were read")
    order = range(len(requests))
    return Snapshot(tuple(parts[i] for i in order), tuple(stamps[i] for i in order))


@functools.lru_cache(maxsize=4)
def shelf_of(copies: Copies) -> Shelf:
    """The one view that this process has of a directory of copies."""
    return Shelf(copies)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Brought:
    """What is stored under a box, in memory.

    Attributes:
        volume: The volume over that alone: a chunk elsewhere is not stored.
        stamp: The stamp of what was brought, if it was so at one moment: look again to know.
    """

    volume: Volume
    stamp: str


def bring(shelf: Shelf, volume: Volume, box: Box) -> Brought:
    """Bring what is stored under a box into memory, from copies where they are still true.

    Args:
        shelf: The copies.
        volume: A volume that may have copies, by ``copied``.
        box: Frame voxels, XYZ.

    Raises:
        RunError: The storage fails.
    """
    keys = keys_under(volume, box)
    if keys is None:
        raise ValueError(f"the keys of {volume.spec.source} are not known")
    context = ts.Context()
    digest = hashlib.sha256()
    try:
        memory = ts.KvStore.open({"driver": "memory"}, context=context).result()
        while some := list(itertools.islice(keys, _IN_FLIGHT)):
            for key, entry in zip(some, _fetched(shelf, volume, some), strict=True):
                digest.update(f"{key}\0{entry.generation.hex()}\n".encode())
                if entry.generation != _ABSENT:
                    memory.write(key, entry.data).result()
        document: dict[str, Any] = volume.store.spec().to_json()
        document |= {"kvstore": {"driver": "memory"}, "assume_metadata": True}
        store = ts.open(document, context=context, read=True, write=False).result()
    except TS_ERRORS as e:
        raise RunError(
            f"voxels {box} of the {volume.spec.kind} {volume.spec.source} cannot be read: "
            f"{told(e)}; check that this process may read the volume, or try again"
        ) from e
    return Brought(dataclasses.replace(volume, store=store), digest.hexdigest())


def _fetched(shelf: Shelf, volume: Volume, keys: Sequence[str]) -> list[Entry]:
    """The objects as they are at their storage now; what was not in the copies is, from now on."""
    places = {f"{volume.spec.where()}\n{key}": key for key in keys}
    found: dict[str, Entry] = {}
    while len(found) < len(places):
        with shelf.claimed(places.keys() - found.keys()) as mine:
            found |= _asked(shelf, volume, {p: key for p, key in places.items() if p in mine})
    return [found[place] for place in places]


def _asked(shelf: Shelf, volume: Volume, places: dict[str, str]) -> dict[str, Entry]:
    """Objects by their places, of which the storage is asked for all at once, by their keys."""
    store = volume.store.kvstore
    assert store is not None  # the formats that may have copies all have one
    known = {place: shelf.get(place) for place in places}
    reads = {
        place: store.read(places[place])
        if entry is None
        else store.read(places[place], if_not_equal=entry.generation)
        for place, entry in known.items()
    }
    found: dict[str, Entry] = {}
    for place, entry in known.items():
        result = reads.pop(place).result()
        if result.state == "missing":
            if entry is not None:
                shelf.drop(place)
            found[place] = Entry(_ABSENT, b"")
        elif result.state == "value":
            tally.add("disk_misses")
            found[place] = Entry(bytes(result.stamp.generation), bytes(result.value))
            shelf.put(place, found[place])
        else:
            assert entry is not None  # without one the read had no condition
            tally.add("disk_hits")
            found[place] = entry
    return found
