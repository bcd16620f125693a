"""Sampled nodes: the grid is walked in ranges, and each box samples the sites it owns.

Ranges are made by a worker and spread, so that the graph is the same for ten boxes and for 10**12.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from segclr.nodes import Nodes
from transforms.boxes import WithInputs, removal, sampled_or_set_aside, settled
from transforms.counting import count, timed
from transforms.owing import commit_plans
from transforms.ranges import Range, boxes_of, ranges
from transforms.work import BoxNodes, BoxOutput, Done, EmbedWork, plan_of
from volumes import commits, partition
from volumes.geometry import Vec, vec
from volumes.receipts import Receipt


@dataclasses.dataclass(frozen=True, slots=True)
class Walked:
    """What the walk of a range found.

    Attributes:
        range: The range.
        boxes: Boxes of the grid in it.
        empty: Those without a site.
        nodes: Sites of the others.
    """

    range: Range
    boxes: int
    empty: int
    nodes: int


class ListRanges(beam.DoFn):
    """A run -> the ranges of its grid."""

    def process(self, work: EmbedWork) -> Iterator[Range]:
        """Yield each range."""
        yield from ranges(work.grid, work.generation)


class WalkRange(WithInputs):
    """A range -> its occupied boxes with their nodes, each planned before it is passed on.

    Beside them go the boxes found settled, the names of the partitions planned in, and what the
    walk found.
    """

    DONE, PARTITIONS, WALKED = "done", "partitions", "walked"

    def process(self, span: Range) -> Iterator[Any]:
        """Yield the occupied boxes of one range, all of them planned in one commit before."""
        work = self._work
        name = work.generation.partition_name(self._first_box(span))
        commits.shut_out(work.generation.partition(name), work.fence)
        boxes = empty = nodes = found = 0
        owed: list[BoxNodes | BoxOutput] = []
        for index in boxes_of(work.grid, work.generation, span):
            boxes += 1
            stands = settled(work, self.inputs(), index, None)
            if isinstance(stands, Done):
                assert stands.stands is not None  # a box that was removed is not found again
                nodes += stands.stands.planned
                found += 1
                yield beam.pvalue.TaggedOutput(self.DONE, stands)
                continue
            box = self._sampled(index, stands)
            if isinstance(box, BoxNodes) and len(box.nodes) == 0:
                empty += 1
                count("bytes_read", box.bytes_read)
                if stands is None and not (work.renew and self._is_planned(index)):
                    continue
                box = removal(work, index, stands)
            elif isinstance(box, BoxNodes):
                nodes += len(box.nodes)
            owed.append(box)
        self._plan(owed)
        count("nodes", sum(len(b.nodes) for b in owed if isinstance(b, BoxNodes)))
        yield from owed
        if found or owed:
            yield beam.pvalue.TaggedOutput(self.PARTITIONS, name)
        count("boxes_skipped", found)
        count("boxes_empty", empty)
        yield beam.pvalue.TaggedOutput(self.WALKED, Walked(span, boxes, empty, nodes))

    def _plan(self, owed: list[BoxNodes | BoxOutput]) -> None:
        """Commit what the boxes of a range owe; one that is set aside unseen owes nothing."""
        work = self._work
        plans = []
        for box in owed:
            if isinstance(box, BoxNodes):
                plans.append((box.index, plan_of(work, box.index, box.nodes)))
            elif box.change.failure is not None:
                plans.append((box.index, plan_of(work, box.index, Nodes.empty())))
        if plans:
            commit_plans(work, plans)

    def _sampled(self, index: int, prior: Receipt | None) -> BoxNodes | BoxOutput:
        """The box with its nodes; set aside, and owing nothing, where it cannot be sampled."""
        with timed("sample_ms"):
            return sampled_or_set_aside(self._work, self.inputs(), index, prior)

    def _is_planned(self, index: int) -> bool:
        where, _ = self._work.generation.place(self._work.grid.coordinate(index))
        return partition.read_plan(where, self._work.key(index)) is not None

    def _first_box(self, span: Range) -> Vec:
        corner = self._work.generation.blocks(self._work.grid).coordinate(span[0])
        return vec(c * n for c, n in zip(corner, self._work.generation.block, strict=True))


@dataclasses.dataclass(eq=False)
class SampleNodes(beam.PTransform):
    """Walks the grid and samples; a dict of ``boxes``, ``done``, ``partitions`` and ``walked``."""

    work: EmbedWork

    def expand(self, root: beam.Pipeline) -> Any:
        """Wire the steps."""
        walk = (
            root
            | "Run" >> beam.Create([self.work], reshuffle=False)
            | "ListRanges" >> beam.ParDo(ListRanges())
            | "SpreadRanges" >> beam.Reshuffle()
            | "WalkRange"
            >> beam.ParDo(WalkRange(self.work)).with_outputs(
                WalkRange.DONE, WalkRange.PARTITIONS, WalkRange.WALKED, main="boxes"
            )
        )
        return {
            "boxes": walk.boxes,
            "done": walk[WalkRange.DONE],
            "partitions": walk[WalkRange.PARTITIONS],
            "walked": walk[WalkRange.WALKED],
        }
