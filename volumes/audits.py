"""Reads for those who doubt what they read: what is damaged in a partition is told, box by box.

The readers in ``volumes.partition`` end at the first thing that is wrong. These go on: a document
or a chunk that cannot be read becomes a sentence about its box. Storage that does not answer, and
documents of newer software, are errors here as well, since they say nothing about the box.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import tensorstore as ts

from volumes import objects
from volumes.errors import DataError, RunError
from volumes.partition import ARRAYS, ROWS_A_CHUNK, Partition, array, keys, read_each, result
from volumes.receipts import Rows

_T = TypeVar("_T")

# Rows that are read side by side, those that pad a chunk among them.
_ROWS_AT_ONCE = 2**16

_CHUNK = re.compile(rf"(?:{'|'.join(ARRAYS)})/c/(-?\d+)(?:/|$)")


def has_version(partition: Partition, version: int) -> bool:
    """Whether a version of the database can still be read.

    Raises:
        RunError: The storage fails.
    """
    try:
        result(partition, keys(partition, version).read("epoch"))
    except DataError:
        return False
    return True


def read_documents(
    partition: Partition, what: str, load: Callable[[bytes, str], _T], version: int
) -> tuple[dict[str, _T], dict[str, str]]:
    """The documents under ``plan``, ``receipts`` or ``failed``, by box.

    Returns:
        Those that can be read, and what is wrong with the others.

    Raises:
        RunError: The storage fails, the list cannot be read, or newer software wrote a document.
    """
    found, damaged = {}, {}
    for box, future in read_each(partition, what, version):
        try:
            found[box] = load(bytes(result(partition, future).value), f"{what}/{box}")
        except DataError as e:
            damaged[box] = str(e)
    return found, damaged


def read_chunk_keys(partition: Partition, version: int) -> dict[int, set[str]]:
    """Keys of the chunks that there are, by the index of their box on the box axis."""
    found: dict[int, set[str]] = {}
    stored = keys(partition, version)
    spans = [ts.KvStore.KeyRange(f"{name}/c/", f"{name}/c0") for name in ARRAYS]
    for listing in [stored.list(span) for span in spans]:
        for key in result(partition, listing):
            match = _CHUNK.match(key.decode())
            if match is not None:
                found.setdefault(int(match[1]), set()).add(key.decode())
    return found


def read_counts(
    partition: Partition, boxes: Sequence[int], version: int
) -> dict[int, int | DataError]:
    """The number of rows that is stored for each box, or why it cannot be read."""
    if not boxes:
        return {}
    stored = array(partition, "count", version)
    with ts.Batch() as batch:
        futures = [stored[local].read(batch=batch) for local in boxes]
    found: dict[int, int | DataError] = {}
    for local, future in zip(boxes, futures, strict=True):
        try:
            found[local] = int(result(partition, future))
        except DataError as e:
            found[local] = e
    return found


def read_rows(
    partition: Partition, boxes: Sequence[tuple[int, int]], version: int
) -> Iterator[tuple[int, Rows | DataError]]:
    """The rows of boxes, or why they cannot be read, in the order given.

    Args:
        partition: The partition.
        boxes: (index on the box axis, number of rows) of each. The number decides what is
            allocated, so it must be one that the stored chunks can hold.
        version: The version of the database.
    """
    for group in _grouped(boxes):
        with ts.Batch() as batch:
            futures = [
                {
                    name: array(partition, name, version)[local, :count].read(batch=batch)
                    for name in ARRAYS
                    if name != "count"
                }
                for local, count in group
            ]
        for (local, _), by_name in zip(group, futures, strict=True):
            try:
                read = {name: result(partition, future) for name, future in by_name.items()}
                yield local, Rows(**read)
            except DataError as e:
                yield local, e


def _grouped(boxes: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The boxes in runs of a bounded number of rows, of one box at least."""
    padded = (max(1, math.ceil(count / ROWS_A_CHUNK)) * ROWS_A_CHUNK for _, count in boxes)
    before = itertools.accumulate(padded, initial=0)
    numbered = zip(before, boxes, strict=False)
    for _, run in itertools.groupby(numbered, key=lambda pair: pair[0] // _ROWS_AT_ONCE):
        yield [box for _, box in run]


def repeats(rows: Rows) -> bool:
    """Whether an identity (segment_id, node_id) occurs twice."""
    pairs = np.stack([rows.segment_id, rows.node_id], axis=1)
    return len(np.unique(pairs, axis=0)) < len(pairs)


def is_ascending(rows: Rows) -> bool:
    """Whether rows are in ascending order of (segment_id, node_id), none twice."""
    segments, nodes = rows.segment_id, rows.node_id
    later = segments[1:] > segments[:-1]
    later |= (segments[1:] == segments[:-1]) & (nodes[1:] > nodes[:-1])
    return bool(later.all())


def reason(error: RunError, partition: Partition) -> str:
    """An error as part of a sentence about a box: without the place, on one line."""
    text = str(objects.redacted(str(error))).removeprefix(f"{partition}: ")
    return " ".join(text.split())[:300]
