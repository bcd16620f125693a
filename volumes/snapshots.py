"""Reads boxes so that all voxels are of one moment.

Unsharded volumes are read through one repeatable-read transaction, which is validated when the
boxes are in memory: its commit fails if a chunk was replaced since it was read. In between, the
stamps of the chunks are taken, which therefore are those of what was read. Such a transaction only
reads and is not an atomic one; see docs/traps.md for what those do. Nor does it share a cache with
another (``volumes.context.private_context``): the volumes are opened anew for it, without a
request. Until it ends it holds the decoded chunks of all that it read, beside the arrays.

A sharded volume is read between two looks at its stamps: to validate a transaction TensorStore
reads every shard that was touched whole, nine times the bytes in a measurement with small shards.
The same goes for drivers that take no transactions, for views, which are computed and so cannot be
committed, and for a volume that is read through a cache pool, where a transaction would leave empty
chunks behind (``volumes.caching.pool``). A volume whose
storage has no stamps is read as it comes, and ``guard`` says so: there, a transaction would
validate nothing either. One that is pinned to a version of a database cannot change.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Literal

import tensorstore as ts

from volumes.caching.pool import has_pool
from volumes.context import private_context
from volumes.errors import DataError, RunError
from volumes.formats import TS_ERRORS, told
from volumes.opening import Volume
from volumes.pinning import database, pinned
from volumes.reading import BYTES_IN_FLIGHT, Part, Request, is_of_the_data, read_boxes
from volumes.spec import VIEW
from volumes.stamps import stamp, stamped

Guard = Literal["pinned", "transaction", "stamps", "none"]
"""How a volume is kept from changing while a box of it is read."""


class MovedError(DataError):
    """A volume was written to while it was read."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Boxes as they were at one moment.

    Attributes:
        parts: The boxes, in the order of the requests.
        stamps: Their stamps; None where the storage has none.
    """

    parts: tuple[Part, ...]
    stamps: tuple[str | None, ...]


@functools.lru_cache(maxsize=16)
def guard(volume: Volume) -> Guard:
    """How reads of a volume are kept consistent; looks at its metadata, once a volume.

    Raises:
        RunError: The storage fails.
    """
    spec = volume.spec
    document = json.loads(spec.tensorstore)
    if "version" in (database(pinned(document, spec.pinned)) or {}):
        return "pinned"
    if not stamped(volume):
        return "none"
    whole = spec.read_chunk == spec.write_chunk and spec.format != VIEW
    return "transaction" if whole and not has_pool(volume) else "stamps"


def read_snapshot(
    requests: Sequence[Request],
    *,
    bytes_in_flight: int = BYTES_IN_FLIGHT,
) -> Snapshot:
    """Read boxes of one or several volumes at one moment.

    Args:
        requests: What to read.
        bytes_in_flight: Decoded bytes of the chunks in a batch.

    Raises:
        MovedError: A volume was written to meanwhile; reading again may do.
        DataError: A chunk is damaged.
        RunError: Storage fails.
    """
    guards = [guard(r.volume) for r in requests]
    before = [
        stamp(r.volume, r.box) if g == "stamps" else None
        for r, g in zip(requests, guards, strict=True)
    ]
    transaction, context = ts.Transaction(repeatable_read=True), private_context()
    try:
        inside = [
            dataclasses.replace(r, volume=_within(r.volume, transaction, context))
            if g == "transaction"
            else r
            for r, g in zip(requests, guards, strict=True)
        ]
        parts = read_boxes(inside, bytes_in_flight=bytes_in_flight)
        stamps = [stamp(r.volume, r.box) for r in requests]
        _validate(transaction, requests)
    finally:
        if transaction.open:
            transaction.abort()
    for request, g, old, new in zip(requests, guards, before, stamps, strict=True):
        if g == "stamps" and old != new:
            source = request.volume.spec.source
            raise MovedError(f"voxels {request.box} of {source} changed while they were read")
    return Snapshot(tuple(parts), tuple(stamps))


def _within(volume: Volume, transaction: ts.Transaction, context: ts.Context) -> Volume:
    """The volume as a transaction reads it, with the metadata that it was opened with."""
    spec = volume.store.spec()
    spec.update(open=True, assume_metadata=True)
    own = ts.open(spec, read=True, write=False, context=context).result()
    return dataclasses.replace(volume, store=own.with_transaction(transaction))


def _validate(transaction: ts.Transaction, requests: Sequence[Request]) -> None:
    """End the transaction.

    Raises:
        MovedError: Something that was read has changed.
        RunError: The storage fails.
    """
    try:
        transaction.commit_sync()
    except TS_ERRORS as e:
        asked = " or ".join(f"{r.box} of {r.volume.spec.source}" for r in requests)
        if is_of_the_data(e):
            raise MovedError(f"voxels {asked} changed while they were read: {told(e)}") from e
        raise RunError(f"voxels {asked} were read and cannot be validated: {told(e)}") from e
