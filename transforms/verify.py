"""The check of a store: planned against committed, digests against bytes, no node twice.

    partitions ─ spread ─> CheckPartition ─┬─ findings ───────────────────────────┐
                                           └─ ids by hash ─ group ─ FindRepeated ─┴─> CloseCheck

Rows are read partition by partition and never cross a shuffle; packed ids do. With ``repair`` a
partition with damaged boxes is mended as soon as it is checked.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt

from transforms import audits as boxes
from transforms.audits import IDS, Audit, Fault
from transforms.counting import count, timed
from transforms.findings import Finding, Part, Pin, VerifyWork, finding_of
from transforms.verdict import close
from volumes import audits, commits, partition, seals, store
from volumes.errors import DataError, RunError
from volumes.generation import Generation, coordinate_of, name_of
from volumes.seals import Seal

# Hashes that ids are grouped by: 10**9 rows are 20 MB of ids each.
_HASHES = 1024

# Boxes that are reopened in one transaction.
_BOXES_A_COMMIT = 256


def parts(work: VerifyWork) -> Iterator[Part | Fault]:
    """The partitions to be checked; a version's document that cannot be read is a fault."""
    generation = work.generation
    pins: dict[tuple[str, str], list[Pin]] = {}
    generations = {generation.name: generation}
    at: dict[str, int | None] = {}
    if work.version is None:
        at = dict.fromkeys(store.partitions_present(generation))
    numbers = store.version_numbers(generation.store) if work.version is None else [work.version]
    for number in numbers:
        try:
            document = _version(generation.store, number)
        except DataError as e:
            yield Fault("version", f"version {number}", str(e))
            continue
        its = Generation.from_json(document["generation"] | {"store": generation.store})
        generations.setdefault(its.name, its)
        for name, entry in document["partitions"].items():
            digest = entry["digest"] if number == numbers[-1] else None
            pins.setdefault((its.name, name), []).append(Pin(number, entry["version"], digest))
            if work.version is not None:
                at[name] = entry["version"]
    for owner, name in sorted(pins.keys() | {(generation.name, name) for name in at}):
        mine = owner == generation.name and name in at
        pinned = tuple(pins.get((owner, name), ()))
        yield Part(generations[owner], name, mine, at.get(name) if mine else None, pinned)


def _version(url: str, number: int) -> dict[str, Any]:
    document = store.read_version(url, number)
    if document is None:
        raise RunError(f"version {number} is listed and is not there")
    return document


# -- a partition --


def check_boxes(part: Part) -> Audit:
    """Check the boxes of a partition; a database that cannot be read has one fault, and no boxes.

    Raises:
        RunError: The storage fails.
    """
    try:
        where = part.generation.partition(part.name)
        at = partition.newest_version(where) if part.at is None else part.at
        return boxes.audit(part.generation, part.name, at)
    except DataError as e:
        return _unreadable(part, str(e))


def _unreadable(part: Part, why: str) -> Audit:
    fault = Fault("database", f"partition {part.name}", f"its database cannot be read: {why}")
    return Audit({}, {}, (fault,), np.empty(0, IDS))


def pin_faults(part: Part) -> Iterator[Fault]:
    """What versions say of a partition, against its database."""
    where = part.generation.partition(part.name)
    for pin in part.pins:
        place = f"version {pin.number}"
        if not audits.has_version(where, pin.at):
            says = f"version {pin.at} of the database of partition {part.name} is gone"
            yield Fault("version", place, says)
            continue
        if pin.digest is None:
            continue
        try:
            sealed = seals.seal(part.generation, part.name, pin.at).digest
        except DataError as e:
            yield Fault("version", place, f"partition {part.name} cannot be accounted for: {e}")
            continue
        if sealed != pin.digest:
            says = f"partition {part.name} has digest {sealed[:12]} there, not {pin.digest[:12]}"
            yield Fault("version", place, says)


def mend(work: VerifyWork, part: Part, audit: Audit) -> tuple[Audit, frozenset[str]]:
    """Put the damaged boxes of a partition back in the queue, where there are any.

    Older runs are shut out first, and the partition is checked again then.

    Returns:
        What was found once nobody else could write, and the boxes that were reopened.
    """
    where = part.generation.partition(part.name)
    if not audit.mendable():
        return audit, frozenset()
    commits.shut_out(where, work.fence)
    audit = check_boxes(part)
    damaged = audit.mendable()
    for start in range(0, len(damaged), _BOXES_A_COMMIT):
        batch = damaged[start : start + _BOXES_A_COMMIT]
        places = [(part.generation.local(coordinate_of(box)), box) for box in batch]
        commits.reopen_boxes(where, places, work.fence)
    return audit, frozenset(damaged)


# -- nodes of several boxes --


@dataclasses.dataclass(frozen=True, slots=True)
class PackedIds:
    """Identities of rows of one partition, of one hash.

    Attributes:
        partition: The partition's name.
        ids: Bytes of an array of ``transforms.audits.IDS``.
    """

    partition: str
    ids: bytes


def by_hash(name: str, ids: npt.NDArray[np.void]) -> Iterator[tuple[int, PackedIds]]:
    """Split identities by hash, so that equal ones meet wherever they come from."""
    mixed = ids["segment_id"] * np.uint64(0x9E3779B97F4A7C15) + ids["node_id"]
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    shards = (mixed >> np.uint64(32)) % np.uint64(_HASHES)
    order = np.argsort(shards, kind="stable")
    found, starts = np.unique(shards[order], return_index=True)
    for shard, places in zip(found, np.split(order, starts[1:]), strict=bool(len(found))):
        yield int(shard), PackedIds(name, ids[places].tobytes())


def repeated(generation: Generation, packed: Iterable[PackedIds]) -> Iterator[Fault]:
    """A fault for each node of one hash that has rows in more than one box."""
    given = sorted(packed, key=lambda p: p.partition)
    names = [p.partition for p in given]
    arrays = [np.frombuffer(p.ids, IDS) for p in given]
    ids = np.concatenate([np.empty(0, IDS), *arrays])
    owner = np.repeat(np.arange(len(given)), [len(a) for a in arrays])
    order = np.lexsort((ids["local"], owner, ids["node_id"], ids["segment_id"]))
    ids, owner = ids[order], owner[order]
    new = np.ones(len(ids), np.bool_)
    new[1:] = (ids["segment_id"][1:] != ids["segment_id"][:-1]) | (
        ids["node_id"][1:] != ids["node_id"][:-1]
    )
    starts = np.flatnonzero(new)
    stops = np.append(starts[1:], len(ids))
    several = stops - starts > 1
    for start, stop in zip(starts[several], stops[several], strict=True):
        places = {(int(owner[i]), int(ids["local"][i])) for i in range(start, stop)}
        keys = {name_of(generation.box_at(coordinate_of(names[o]), local)) for o, local in places}
        if len(keys) > 1:
            first, *others = sorted(keys, key=coordinate_of)
            says = (
                f"node {ids['node_id'][start]} of segment {ids['segment_id'][start]} has a row in "
                f"it, and in {', '.join(others[:5])}" + (", ..." if len(others) > 5 else "")
            )
            yield Fault("duplicate", first, says)


# -- the graph --


class ListParts(beam.DoFn):
    """A check -> the partitions to be looked at; faults of versions' documents beside."""

    FOUND = "found"

    def process(self, work: VerifyWork) -> Iterator[Any]:
        """Yield each partition."""
        for part in parts(work):
            if isinstance(part, Fault):
                yield beam.pvalue.TaggedOutput(self.FOUND, Finding.of([part]))
            else:
                yield part


class CheckPartition(beam.DoFn):
    """A partition -> its Finding; its ids by hash, and its Seal after a repair, beside."""

    IDS, SEALS = "ids", "seals"

    def __init__(self, work: VerifyWork) -> None:
        """Checks partitions of the store of ``work``."""
        self._work = work

    def process(self, part: Part) -> Iterator[Any]:
        """Check one partition."""
        with timed("verify_ms"):
            yield Finding.of(pin_faults(part))
            if part.boxes:
                yield from self._boxes(part)
        count("partitions")

    def _boxes(self, part: Part) -> Iterator[Any]:
        audit, reopened = check_boxes(part), frozenset[str]()
        if self._work.repair:
            audit, reopened = mend(self._work, part, audit)
        found = finding_of(audit, reopened)
        if self._work.repair:
            try:
                seal = seals.seal(part.generation, part.name)
                yield beam.pvalue.TaggedOutput(self.SEALS, seal)
            except DataError:
                found = dataclasses.replace(found, unsealed=1)
        yield found
        count("boxes", found.boxes)
        count("rows", found.rows)
        for shard, packed in by_hash(part.name, audit.ids):
            yield beam.pvalue.TaggedOutput(self.IDS, (shard, packed))


class FindRepeated(beam.DoFn):
    """(hash, packed ids) -> the Finding of nodes that have rows in several boxes."""

    def __init__(self, work: VerifyWork) -> None:
        """Looks for nodes of the store of ``work``."""
        self._work = work

    def process(self, group: tuple[int, Iterable[PackedIds]]) -> Iterator[Finding]:
        """Look through the ids of one hash."""
        faults = list(repeated(self._work.generation, group[1]))
        if faults:
            yield Finding.of(faults)


class SumFindings(beam.CombineFn):
    """Finding -> one Finding."""

    def create_accumulator(self) -> Finding:
        """Nothing yet."""
        return Finding()

    def add_input(self, total: Finding, found: Finding) -> Finding:
        """Add one."""
        return Finding.total([total, found])

    def merge_accumulators(self, totals: Iterable[Finding]) -> Finding:
        """Add up."""
        return Finding.total(totals)

    def extract_output(self, total: Finding) -> Finding:
        """The sum."""
        return total


class CloseCheck(beam.DoFn):
    """Writes the outcome when everything is looked at, and emits it."""

    def __init__(self, work: VerifyWork) -> None:
        """Closes the check of ``work``."""
        self._work = work

    def process(self, _: None, found: Finding, seals: list[Seal]) -> Iterator[dict[str, Any]]:
        """Close the check."""
        yield close(self._work, found, seals)


@dataclasses.dataclass(eq=False)
class VerifyStore(beam.PTransform):
    """Checks a store; the one element of the result is the outcome's body."""

    work: VerifyWork

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        """Wire the steps."""
        listed = (
            root
            | "Check" >> beam.Create([self.work], reshuffle=False)
            | "ListParts" >> beam.ParDo(ListParts()).with_outputs(ListParts.FOUND, main="parts")
        )
        checked = (
            listed.parts
            | "SpreadParts" >> beam.Reshuffle()
            | "CheckPartition"
            >> beam.ParDo(CheckPartition(self.work)).with_outputs(
                CheckPartition.IDS, CheckPartition.SEALS, main="found"
            )
        )
        repeats = (
            checked[CheckPartition.IDS]
            | "KeyedByHash" >> beam.Map(_same).with_output_types(tuple[int, PackedIds])
            | "GroupByHash" >> beam.GroupByKey()
            | "FindRepeated" >> beam.ParDo(FindRepeated(self.work))
        )
        total = (
            (listed[ListParts.FOUND], checked.found, repeats)
            | "AllFindings" >> beam.Flatten()
            | "SumFindings" >> beam.CombineGlobally(SumFindings())
        )
        return (
            root
            | "Once" >> beam.Create([None], reshuffle=False)
            | "CloseCheck"
            >> beam.ParDo(
                CloseCheck(self.work),
                beam.pvalue.AsSingleton(total),
                beam.pvalue.AsList(checked[CheckPartition.SEALS]),
            )
        )


def _same(element: tuple[int, PackedIds]) -> tuple[int, PackedIds]:
    """The element; the step gives the key its type, and so its coder."""
    return element
