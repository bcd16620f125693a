"""Rows of two versions as small records that cancel out, and what is counted from them.

A record stands for a row: its identity, 16 bytes of digest, and in how many more rows the later
version has it. Records of equal rows are added up wherever they meet, in any order, and vanish
where both versions have as many.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.receipts import Rows

RECORD = np.dtype([*((n, "<u8") for n in ("segment", "node", "high", "low")), ("net", "<i4")])
"""A row that differs: identity, digest, and in how many more rows the later version has it."""

COUNTS = np.dtype([("segment", "<u8"), ("added", "<i8"), ("removed", "<i8"), ("changed", "<i8")])
"""What differs of a segment."""

_ROW = ("segment", "node", "high", "low")

Array = npt.NDArray[Any]
"""Of ``RECORD`` or ``COUNTS``."""


def records_of(rows: Rows, box: str, net: int) -> Array:
    """The records (``RECORD [n]``) of a box's rows, of a version that has them ``net`` times."""
    found = np.zeros(len(rows), RECORD)
    found["segment"], found["node"], found["net"] = rows.segment_id, rows.node_id, net
    if not len(rows):
        return found
    flat = [np.ascontiguousarray(a).view(np.uint8).reshape(len(rows), -1) for a in _values(rows)]
    joined = np.concatenate(flat, axis=1)
    key = box.encode()
    digests = b"".join(
        hashlib.blake2b(row.tobytes(), digest_size=16, key=key).digest() for row in joined
    )
    halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
    found["high"], found["low"] = halves[:, 0], halves[:, 1]
    return found


def _values(rows: Rows) -> Iterator[Array]:
    for name, array in rows.arrays().items():
        # A row's digest tells the width too, so that no two rows of other widths are alike.
        yield array
        if name == "embedding":
            yield np.full(len(rows), array.shape[1], "<u4")


def settled(records: Array) -> Array:
    """Records in order, equal rows added up, without those that cancel out."""
    ordered = records[np.lexsort([records[name] for name in reversed(_ROW)])]
    starts = _starts(ordered, _ROW)
    if not len(starts):
        return ordered
    merged = ordered[starts]
    merged["net"] = np.add.reduceat(ordered["net"], starts)
    left: Array = merged[merged["net"] != 0]
    return left


def counted(records: Array) -> Array:
    """What differs by segment (``COUNTS [m]``, in order), of records with all rows of their nodes.

    Of a node's rows that only one version has, those of both sides are paired as changed, and what
    is left on one side is added or removed.
    """
    rows = settled(records)
    nodes = _starts(rows, ("segment", "node"))
    if not len(nodes):
        return np.zeros(0, COUNTS)
    net = rows["net"].astype(np.int64)
    plus = np.add.reduceat(np.maximum(net, 0), nodes)
    minus = np.add.reduceat(np.maximum(-net, 0), nodes)
    changed = np.minimum(plus, minus)
    found = np.zeros(len(nodes), COUNTS)
    found["segment"] = rows["segment"][nodes]
    found["added"], found["removed"], found["changed"] = plus - changed, minus - changed, changed
    return summed(found)


def summed(counts: Array) -> Array:
    """Counts in the order of segments, each segment once."""
    ordered = counts[np.argsort(counts["segment"], kind="stable")]
    starts = _starts(ordered, ("segment",))
    if not len(starts):
        return ordered
    total = ordered[starts]
    for name in ("added", "removed", "changed"):
        total[name] = np.add.reduceat(ordered[name], starts)
    return total


def _starts(ordered: Array, names: Iterable[str]) -> npt.NDArray[np.intp]:
    """Where runs of equal values of these fields begin."""
    new = np.ones(len(ordered), bool)
    if len(ordered):
        new[1:] = functools.reduce(
            np.logical_or, (ordered[n][1:] != ordered[n][:-1] for n in names)
        )
    return np.flatnonzero(new)


def spread(keys: Iterable[npt.NDArray[np.uint64]], over: int) -> npt.NDArray[np.int64]:
    """A number below ``over`` for each tuple of keys, the same for equal ones."""
    mixed: Any = np.uint64(0)
    for key in keys:
        # The finalizer of MurmurHash3, on what wraps around by design.
        mixed = np.bitwise_xor(mixed * np.uint64(0x9E3779B97F4A7C15), key)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
        mixed = mixed ^ (mixed >> np.uint64(33))
    return np.asarray(mixed % np.uint64(over), dtype=np.int64)


def packed(values: Array, where: npt.NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
    """Values by the number that each has, as bytes."""
    if not len(values):
        return
    order = np.argsort(where, kind="stable")
    numbers, starts = np.unique(where[order], return_index=True)
    for number, some in zip(numbers, np.split(values[order], starts[1:]), strict=True):
        yield int(number), some.tobytes()
