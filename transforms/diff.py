"""What differs between two versions of a store: nodes added, removed and changed, by segment.

    partitions ─ ComparePartition ─ records by node ─ group ─ CountNodes ─ counts by segment ─ group
        ─ WritePart ─ CloseDiff

A node is its identity (segment_id, node_id), in whatever box it is. It is changed where anything of
its row is: position, vector, mask count, crop digest, and the box, where both versions have the
same boxes. Where an identity has several rows in a version, equal rows are paired first.

The cost follows the change. Of one generation, partitions of the same recorded digest are not
opened, and boxes whose receipts have the same digest of rows are not read. Of two generations,
everything is compared. A row crosses the shuffle as a record of 36 bytes: its identity, 16 bytes of
digest and a count, +1 in the later version and -1 in the earlier one, so that equal rows cancel
out wherever they meet.
"""

import dataclasses
import hashlib
import heapq
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.counting import count, timed
from transforms.records import (
    COUNTS,
    RECORD,
    Array,
    counted,
    packed,
    records_of,
    settled,
    spread,
    summed,
)
from volumes import documents, objects, partition, store
from volumes.errors import DataError
from volumes.generation import Generation, coordinate_of
from volumes.receipts import Receipt, Rows

FORMAT = ("segclr-diff", 1)
"""Format and version of the document that stands beside the table."""

LARGEST = 20
"""So many segments are named in the document: those with the most nodes that differ."""

HEADER = "segment_id,added,removed,changed"
"""Columns of the table."""

# Records held before they go into the shuffle.
_RECORDS_HELD = 2**18


@dataclasses.dataclass(frozen=True, slots=True)
class DiffWork:
    """A comparison; picklable, opens nothing.

    Attributes:
        store: Location of the embedding store.
        before: Number of the version that is compared from.
        after: Number of the version that is compared to.
        shards: Hashes that rows are grouped by.
        parts: Files of the table, that segments are spread over by hash.
        output: Location of the table.
    """

    store: str
    before: int
    after: int
    shards: int
    parts: int
    output: str

    @property
    def document(self) -> str:
        """Location of the document beside the table."""
        return f"{self.output}.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """A partition in one of the versions.

    Attributes:
        generation: The version's generation.
        name: The partition's name.
        at: The database version.
    """

    generation: Generation
    name: str
    at: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A partition in both versions, or in the one that has it.

    Attributes:
        before: In the version compared from.
        after: In the version compared to.
        boxes: Whether the box is part of a row, as it is where both versions have the same boxes.
    """

    before: Side | None
    after: Side | None
    boxes: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A file of the table.

    Attributes:
        name: Its name.
        sha256: Digest of its bytes.
        segments: Its rows.
        added: Nodes of all these that were added.
        removed: Nodes that were removed.
        changed: Nodes that were changed.
        largest: (segment, added, removed, changed) of the segments with the most.
    """

    name: str
    sha256: str
    segments: int
    added: int
    removed: int
    changed: int
    largest: tuple[tuple[int, int, int, int], ...]


def part_url(output: str, part: int, parts: int) -> str:
    """Location of a file of the table: the table's own where it is in one file."""
    if parts == 1:
        return output
    stem, suffix = posixpath.splitext(output)
    return f"{stem}-{part:05d}-of-{parts:05d}{suffix}"


def pairs(before: dict[str, Any], after: dict[str, Any], url: str) -> Iterator[Pair]:
    """The partitions that may differ between two versions, from their documents alone."""
    sides = [Generation.from_json(d["generation"] | {"store": url}) for d in (before, after)]
    entries = [d["partitions"] for d in (before, after)]
    boxes = sides[0].lattice == sides[1].lattice
    if sides[0] != sides[1]:
        for name in sorted(entries[0], key=coordinate_of):
            yield Pair(Side(sides[0], name, int(entries[0][name]["version"])), None, boxes)
        for name in sorted(entries[1], key=coordinate_of):
            yield Pair(None, Side(sides[1], name, int(entries[1][name]["version"])), boxes)
        return
    for name in sorted(entries[0].keys() | entries[1].keys(), key=coordinate_of):
        found = [e.get(name) for e in entries]
        if found[0] and found[1] and found[0]["digest"] == found[1]["digest"]:
            continue
        earlier, later = (
            Side(generation, name, int(entry["version"])) if entry else None
            for generation, entry in zip(sides, found, strict=True)
        )
        yield Pair(earlier, later, boxes)


def compared(pair: Pair) -> Iterator[Array]:
    """Records of what differs in a partition, box by box; they may hold rows that cancel out."""
    sides = [(pair.before, -1), (pair.after, 1)]
    receipts = [_receipts(side) for side, _ in sides]
    for box in sorted(receipts[0].keys() | receipts[1].keys(), key=coordinate_of):
        both = [found.get(box) for found in receipts]
        if both[0] and both[1] and both[0].rows_digest == both[1].rows_digest:
            count("boxes_equal")
            continue
        count("boxes_compared")
        parts = [
            records_of(_rows(side, receipt), box if pair.boxes else "", net)
            for (side, net), receipt in zip(sides, both, strict=True)
            if side is not None and receipt is not None
        ]
        yield settled(np.concatenate(parts))


def _receipts(side: Side | None) -> dict[str, Receipt]:
    if side is None:
        return {}
    part = side.generation.partition(side.name)
    return partition.read_all(part, "receipts", Receipt.from_bytes, side.at)


def _rows(side: Side, receipt: Receipt) -> Rows:
    generation = side.generation
    if receipt.committed == 0:
        return Rows.empty(generation.width)
    part, local = generation.place(coordinate_of(receipt.box))
    rows = partition.read_rows(part, local, side.at)
    if len(rows) != receipt.committed:
        raise DataError(
            f"box {receipt.box} of {part} has {len(rows)} rows at version {side.at} and its "
            f"receipt says {receipt.committed}: the store is damaged, and nothing can be said of "
            "what differs; segclr-beam verify says what is lost"
        )
    count("rows_read", len(rows))
    return rows


def table_of(counts: Array) -> bytes:
    """The table (CSV) of counts in order, ids in decimals."""
    lines = (",".join(map(str, row)) for row in counts.tolist())
    return ("\n".join([HEADER, *lines]) + "\n").encode()


def write_part(work: DiffWork, part: int, counts: Array) -> Part:
    """Write one file of the table, whole or not at all."""
    url = part_url(work.output, part, work.parts)
    data = table_of(counts)
    objects.write(url, data)
    return Part(
        name=url.rpartition("/")[2],
        sha256=hashlib.sha256(data).hexdigest(),
        segments=len(counts),
        added=int(counts["added"].sum()),
        removed=int(counts["removed"].sum()),
        changed=int(counts["changed"].sum()),
        largest=_largest([tuple(row) for row in counts.tolist()]),
    )


def _largest(
    rows: Iterable[tuple[int, int, int, int]],
) -> tuple[tuple[int, int, int, int], ...]:
    return tuple(heapq.nsmallest(LARGEST, rows, key=lambda row: (-sum(row[1:]), row[0])))


def close(diff: dict[str, Any], parts: Iterable[Part]) -> dict[str, Any]:
    """The body of the document beside the table: what was compared, and the result."""
    ordered = sorted(parts, key=lambda p: p.name)
    largest = _largest(row for p in ordered for row in p.largest)
    result: dict[str, Any] = {
        name: sum(getattr(p, name) for p in ordered)
        for name in ("added", "removed", "changed", "segments")
    }
    result["largest"] = [[str(row[0]), *row[1:]] for row in largest]
    result["files"] = [
        {"name": p.name, "sha256": p.sha256, "segments": p.segments} for p in ordered
    ]
    return {"diff": diff, "result": result}


class ListPairs(beam.DoFn):
    """A comparison -> its Pairs."""

    def process(self, work: DiffWork) -> Iterator[Pair]:
        """Yield each partition that may differ."""
        before, after = (read_document(work.store, n) for n in (work.before, work.after))
        yield from pairs(before, after, work.store)


def read_document(url: str, number: int) -> dict[str, Any]:
    """The document of a version that is there.

    Raises:
        DataError: It is gone.
    """
    document = store.read_version(url, number)
    if document is None:
        raise DataError(
            f"version {number} of {objects.redacted(url)} was removed while it was compared; "
            "segclr-beam versions lists those that there are"
        )
    return document


class ComparePartition(beam.DoFn):
    """A Pair -> (shard, packed records)."""

    def __init__(self, work: DiffWork) -> None:
        """Compares for ``work``."""
        self._work = work

    def process(self, pair: Pair) -> Iterator[tuple[int, bytes]]:
        """Compare one partition."""
        count("partitions_compared")
        held: list[Array] = []
        size = 0
        with timed("compare_ms"):
            for records in compared(pair):
                held.append(records)
                size += len(records)
                if size >= _RECORDS_HELD:
                    yield from self._sent(held)
                    held, size = [], 0
            if held:
                yield from self._sent(held)

    def _sent(self, held: list[Array]) -> Iterator[tuple[int, bytes]]:
        records = settled(np.concatenate(held))
        shards = spread((records["segment"], records["node"]), self._work.shards)
        yield from packed(records, shards)


class CountNodes(beam.DoFn):
    """A shard's packed records -> (part, packed counts by segment)."""

    def __init__(self, work: DiffWork) -> None:
        """Counts for ``work``."""
        self._work = work

    def process(self, shard: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
        """Count one shard's nodes."""
        counts = counted(np.concatenate([np.frombuffer(b, RECORD) for b in shard[1]]))
        for name in ("added", "removed", "changed"):
            count(name, int(counts[name].sum()))
        yield from packed(counts, spread((counts["segment"],), self._work.parts))


class WritePart(beam.DoFn):
    """A part's packed counts -> the Part."""

    def __init__(self, work: DiffWork) -> None:
        """Writes the table of ``work``."""
        self._work = work

    def process(self, part: tuple[int, Iterable[bytes]]) -> Iterator[Part]:
        """Write one file."""
        counts = np.concatenate([np.frombuffer(b, COUNTS) for b in part[1]])
        yield write_part(self._work, part[0], summed(counts))


class CloseDiff(beam.DoFn):
    """Writes the document beside the table when every file is there; emits its body."""

    def __init__(self, work: DiffWork) -> None:
        """Closes ``work``."""
        self._work = work

    def process(self, diff: dict[str, Any], parts: list[Part]) -> Iterator[dict[str, Any]]:
        """Close."""
        body = close(diff, parts)
        objects.write(self._work.document, documents.dump(*FORMAT, body))
        yield body


@dataclasses.dataclass(eq=False)
class DiffVersions(beam.PTransform):
    """Compares two versions; the one element of the result is the body of the document.

    Attributes:
        work: The comparison.
        diff: What it is of, as the document says it.
    """

    work: DiffWork
    diff: dict[str, Any]

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        """Wire the steps."""
        # An empty table is a table: each part has an element, whatever differs.
        every = root | "EveryPart" >> beam.Create([(i, b"") for i in range(self.work.parts)])
        counts = (
            root
            | "Diff" >> beam.Create([self.work], reshuffle=False)
            | "ListPairs" >> beam.ParDo(ListPairs())
            | "SpreadPairs" >> beam.Reshuffle()
            | "ComparePartition" >> beam.ParDo(ComparePartition(self.work))
            | "GroupByNode" >> beam.GroupByKey()
            | "CountNodes" >> beam.ParDo(CountNodes(self.work))
        )
        parts = (
            (every, counts)
            | "AllParts" >> beam.Flatten()
            | "GroupBySegment" >> beam.GroupByKey()
            | "WritePart" >> beam.ParDo(WritePart(self.work))
        )
        return (
            root
            | "Once" >> beam.Create([self.diff], reshuffle=False)
            | "CloseDiff" >> beam.ParDo(CloseDiff(self.work), beam.pvalue.AsList(parts))
        )
