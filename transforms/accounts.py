"""The end of a run: every partition is accounted for from storage, and a version is published."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from transforms.nodes import Counts
from transforms.walk import Walked
from transforms.work import Done, EmbedWork
from volumes import commits, provenance, seals, store
from volumes.receipts import Failure
from volumes.seals import Seal


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """What the boxes that a run settled add up to.

    Attributes:
        boxes: Boxes committed by this invocation.
        boxes_skipped: Boxes found committed, and those set aside by an earlier invocation.
        boxes_failed: Boxes set aside by this invocation.
        boxes_removed: Boxes whose nodes have vanished.
        embeddings: Vectors computed now.
        nodes: Nodes of all these.
        rejected: (reason, count) pairs of the boxes committed now, sorted.
        bytes_read: Decoded bytes read for the boxes that were not found settled.
    """

    boxes: int = 0
    boxes_skipped: int = 0
    boxes_failed: int = 0
    boxes_removed: int = 0
    embeddings: int = 0
    nodes: int = 0
    rejected: Counts = ()
    bytes_read: int = 0

    @classmethod
    def of(cls, done: Done) -> "Tally":
        """The tally of one box."""
        stands, read = done.stands, done.bytes_read
        if stands is None:
            return cls(boxes_removed=1)
        if done.found:
            return cls(boxes_skipped=1, nodes=stands.planned, bytes_read=read)
        if isinstance(stands, Failure):
            return cls(boxes_failed=1, nodes=stands.planned)
        return cls(
            boxes=1,
            embeddings=stands.computed,
            nodes=stands.planned,
            rejected=stands.rejected,
            bytes_read=read,
        )

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """The sum."""
        parts = list(tallies)
        sums = {
            f.name: sum(getattr(t, f.name) for t in parts)
            for f in dataclasses.fields(cls)
            if f.name != "rejected"
        }
        return cls(rejected=seals.added(t.rejected for t in parts), **sums)


class SumDone(beam.CombineFn):
    """Done -> one Tally."""

    def create_accumulator(self) -> Tally:
        """Nothing yet."""
        return Tally()

    def add_input(self, tally: Tally, done: Done) -> Tally:
        """Add a box."""
        return Tally.total([tally, Tally.of(done)])

    def merge_accumulators(self, tallies: Iterable[Tally]) -> Tally:
        """Add up."""
        return Tally.total(tallies)

    def extract_output(self, tally: Tally) -> Tally:
        """The sum."""
        return tally


class SumCounts(beam.CombineFn):
    """(name, count) pairs -> their sum."""

    def create_accumulator(self) -> Counts:
        """Nothing yet."""
        return ()

    def add_input(self, total: Counts, counts: Counts) -> Counts:
        """Add a batch's."""
        return seals.added([total, counts])

    def merge_accumulators(self, totals: Iterable[Counts]) -> Counts:
        """Add up."""
        return seals.added(totals)

    def extract_output(self, total: Counts) -> Counts:
        """The sum."""
        return total


class SumWalks(beam.CombineFn):
    """Walked -> (merged ranges, boxes, empty boxes, nodes)."""

    def create_accumulator(self) -> "WalkTotal":
        """Nothing yet."""
        return WalkTotal()

    def add_input(self, total: "WalkTotal", walked: Walked) -> "WalkTotal":
        """Add a range."""
        part = WalkTotal((walked.range,), walked.boxes, walked.empty, walked.nodes)
        return self.merge_accumulators([total, part])

    def merge_accumulators(self, totals: Iterable["WalkTotal"]) -> "WalkTotal":
        """Add up, joining ranges that meet."""
        parts = list(totals)
        joined: list[tuple[int, int, int]] = []
        for block, start, stop in sorted(r for p in parts for r in p.ranges):
            if joined and joined[-1][0] == block and joined[-1][2] == start:
                joined[-1] = (block, joined[-1][1], stop)
            else:
                joined.append((block, start, stop))
        return WalkTotal(
            tuple(joined),
            sum(p.boxes for p in parts),
            sum(p.empty for p in parts),
            sum(p.nodes for p in parts),
        )

    def extract_output(self, total: "WalkTotal") -> "WalkTotal":
        """The sum."""
        return total


@dataclasses.dataclass(frozen=True, slots=True)
class WalkTotal:
    """The ranges walked, joined where they meet, and what they held."""

    ranges: tuple[tuple[int, int, int], ...] = ()
    boxes: int = 0
    empty: int = 0
    nodes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, as storage tells it.

    Attributes:
        version: The version published or found; None where boxes are left undone.
        tally: What this invocation did.
        unplaced: Rows read, and those that belong to no box, by reason.
        embeddings_total: Rows of all partitions.
        failed: (box, error) of the boxes that are set aside, the first hundred.
        failed_boxes: How many those are.
        undone: Boxes left undone, the first hundred by key.
        undone_boxes: How many those are.
        faults: Sentences about what does not add up; empty where all does.
    """

    version: int | None
    tally: Tally
    unplaced: Counts
    embeddings_total: int
    failed: tuple[tuple[str, str], ...]
    failed_boxes: int
    undone: tuple[str, ...]
    undone_boxes: int
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON."""
        body = dataclasses.asdict(self)
        body["tally"]["rejected"] = dict(self.tally.rejected)
        body["unplaced"] = dict(self.unplaced)
        return body


def close_run(
    work: EmbedWork,
    seals: list[Seal],
    tally: Tally,
    unplaced: Counts,
    walked: WalkTotal | None,
) -> Outcome:
    """Do a run's accounting and publish its version if it adds up.

    ``planned = committed + rejected + set aside``, by node and by box; rows read from the source =
    planned + rejected without a box; and a walk covered the grid.
    """
    undone = [box for s in seals for box in s.undone]
    undone_boxes = sum(s.undone_boxes for s in seals)
    faults = list(_faults(work, seals, unplaced, walked))
    version = None
    if not undone_boxes and not faults:
        body = {
            "run": work.run,
            "identity": work.identity,
            "published": provenance.now(),
            "unplaced": dict(unplaced),
        }
        version = store.publish(work.generation, seals, body)
    return Outcome(
        version=version,
        tally=tally,
        unplaced=unplaced,
        embeddings_total=sum(s.rows for s in seals),
        failed=tuple(f for s in seals for f in s.failed)[:100],
        failed_boxes=sum(s.failed_boxes for s in seals),
        undone=tuple(undone[:100]),
        undone_boxes=undone_boxes,
        faults=tuple(faults),
    )


def _faults(
    work: EmbedWork, seals: list[Seal], unplaced: Counts, walked: WalkTotal | None
) -> Iterator[str]:
    planned = sum(s.nodes for s in seals)
    strays = sum(s.unplanned_boxes for s in seals)
    if strays:
        yield f"{strays} boxes have a receipt and no plan"
    if not any(s.undone_boxes for s in seals):
        settled = sum(s.rows + s.failed_nodes for s in seals)
        settled += sum(n for s in seals for _, n in s.rejected)
        if settled != planned:
            yield (
                f"{planned} nodes were planned, {settled} are committed, rejected or of a box that "
                "is set aside"
            )
    if walked is None:
        rows = dict(unplaced).get("rows", 0)
        away = sum(n for name, n in unplaced if name != "rows")
        if rows != planned + away:
            yield f"{rows} nodes were read, {planned} planned and {away} belong to no box"
        return
    if walked.boxes != work.grid.size:
        yield f"the grid has {work.grid.size} boxes and {walked.boxes} were walked"
    if walked.nodes != planned:
        yield f"{walked.nodes} sites were sampled and {planned} planned"


class SealPartition(beam.DoFn):
    """A partition's name -> its Seal, after everything in ``barriers``."""

    def __init__(self, work: EmbedWork) -> None:
        """Seals partitions of ``work``."""
        self._work = work

    def process(self, name: str, *barriers: Any) -> Iterator[Seal]:
        """Account for one partition, unless a newer run has taken it over."""
        commits.refuse_fenced(self._work.generation.partition(name), self._work.fence)
        yield seals.seal(self._work.generation, name)


class CloseRun(beam.DoFn):
    """Writes the run's documents and publishes; emits the one Outcome."""

    def __init__(self, work: EmbedWork) -> None:
        """Closes the run of ``work``."""
        self._work = work

    def process(
        self,
        _: None,
        seals: Iterable[Seal],
        tally: Tally,
        unplaced: Counts,
        walked: WalkTotal | None,
    ) -> Iterator[Outcome]:
        """Close the run."""
        work = self._work
        where = (work.generation.store, work.run)
        if walked is not None:
            store.write_run(*where, "walked", dataclasses.asdict(walked))
        else:
            store.write_run(*where, "unplaced", {"counts": dict(unplaced)})
        outcome = close_run(work, list(seals), tally, unplaced, walked)
        store.write_run(*where, "summary", outcome.to_json())
        yield outcome


@dataclasses.dataclass(eq=False)
class CloseTheRun(beam.PTransform):
    """Names of partitions -> the run's Outcome.

    Attributes:
        work: The run.
        done: Done of every box; partitions are accounted for when it is complete.
        unplaced: Counts of rows without a box, or None for a sampled run.
        walked: Walked of every range, or None for a run with given nodes.
    """

    work: EmbedWork
    done: beam.PCollection
    unplaced: beam.PCollection | None = None
    walked: beam.PCollection | None = None

    def expand(self, partitions: beam.PCollection) -> beam.PCollection:
        """Wire the steps."""
        tally = self.done | "SumDone" >> beam.CombineGlobally(SumDone())
        seals = (
            partitions
            | "DistinctPartitions" >> beam.Distinct()
            | "SealPartition"
            >> beam.ParDo(SealPartition(self.work), beam.pvalue.AsSingleton(tally))
        )
        unplaced: Any = ()
        walked: Any = None
        if self.unplaced is not None:
            unplaced = beam.pvalue.AsSingleton(
                self.unplaced | "SumUnplaced" >> beam.CombineGlobally(SumCounts())
            )
        if self.walked is not None:
            walked = beam.pvalue.AsSingleton(
                self.walked | "SumWalks" >> beam.CombineGlobally(SumWalks())
            )
        return (
            partitions.pipeline
            | "Once" >> beam.Create([None], reshuffle=False)
            | "CloseRun"
            >> beam.ParDo(
                CloseRun(self.work),
                beam.pvalue.AsList(seals),
                beam.pvalue.AsSingleton(tally),
                unplaced,
                walked,
            )
        )
