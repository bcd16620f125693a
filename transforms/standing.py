"""What stands in a generation that is to be renewed: its boxes come out, with nodes or without."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from segclr.nodes import Nodes
from transforms.counting import count
from transforms.work import Done, EmbedWork
from volumes import commits, partition, store
from volumes.commits import Change, standing_digest
from volumes.generation import coordinate_of


def remove_outside(work: EmbedWork, name: str, boxes: list[str]) -> list[Done]:
    """Remove boxes of a partition that the domain does not reach any more, in one transaction."""
    part = work.generation.partition(name)
    changes = []
    for box in boxes:
        receipt = partition.read_receipt(part, box)
        replaces = None if receipt is None else standing_digest(receipt)
        changes.append(Change(work.generation.local(coordinate_of(box)), box, replaces=replaces))
    if changes:
        commits.commit_boxes(part, changes, work.fence)
    return [Done(box, None, found=False) for box in boxes]


class ListStanding(beam.DoFn):
    """A partition's name -> (box index, no nodes) of each box that it knows.

    Older runs are shut out first. Boxes beyond the grid are removed and go out as done.
    """

    DONE = "done"

    def __init__(self, work: EmbedWork) -> None:
        """Lists boxes of ``work``."""
        self._work = work

    def process(self, name: str) -> Iterator[Any]:
        """Yield the boxes of one partition."""
        work = self._work
        part = work.generation.partition(name)
        commits.shut_out(part, work.fence)
        known = {b for what in ("plan", "receipts", "failed") for b in partition.listed(part, what)}
        outside = []
        for box in sorted(known, key=coordinate_of):
            if work.grid.lattice_domain.contains(coordinate_of(box)):
                yield work.grid.index(coordinate_of(box)), Nodes.empty()
            else:
                outside.append(box)
        for done in remove_outside(work, name, outside):
            count("boxes_removed")
            yield beam.pvalue.TaggedOutput(self.DONE, done)


class ListNames(beam.DoFn):
    """A run -> names of the partitions that its generation has."""

    def process(self, work: EmbedWork) -> Iterator[str]:
        """Yield each name."""
        yield from store.partitions_present(work.generation)


@dataclasses.dataclass(eq=False)
class StandingBoxes(beam.PTransform):
    """What a generation has: a dict of ``boxes``, ``done`` and ``partitions``."""

    work: EmbedWork

    def expand(self, root: beam.Pipeline) -> Any:
        """Wire the steps."""
        names = (
            root
            | "Run" >> beam.Create([self.work], reshuffle=False)
            | "ListNames" >> beam.ParDo(ListNames())
            | "SpreadNames" >> beam.Reshuffle()
        )
        listed = names | "ListStanding" >> beam.ParDo(ListStanding(self.work)).with_outputs(
            ListStanding.DONE, main="boxes"
        )
        return {
            "boxes": listed.boxes,
            "done": listed[ListStanding.DONE],
            "partitions": names,
        }
