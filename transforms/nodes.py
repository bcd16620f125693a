"""Given nodes: read in packed arrays, sorted out, and grouped by the box that owns them.

Boxes come out in work ranges, as those of a walk do: a range is worked on by one worker, and its
boxes share commits.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from segclr.nodes import Nodes, reject_unplaced
from segclr.skeletons import skeleton_nodes
from transforms.counting import count
from transforms.ranges import Range, range_of
from transforms.work import BoxNodes, EmbedWork
from volumes import tables
from volumes.tables import NodeSource, Piece

Counts = tuple[tuple[str, int], ...]
"""(name, count) pairs, sorted: ``rows`` and the reasons for rejecting."""


def read_nodes(source: NodeSource, piece: Piece) -> Iterator[Nodes]:
    """The nodes of one piece of a source, in packed batches; skeletons thinned on the way."""
    if source.kind != "swc":
        for raw in tables.read_piece(source, piece):
            yield Nodes(*raw)
        return
    for skeleton in tables.read_skeletons(source, piece):
        yield skeleton_nodes(*skeleton, spacing_nm=source.spacing_nm)


def place_nodes(work: EmbedWork, nodes: Nodes) -> tuple[list[tuple[int, Nodes]], dict[str, int]]:
    """Split nodes by the box that owns them.

    Returns:
        (box index, its nodes) pairs, and how many nodes have no box, by reason.
    """
    placed, voxels, rejected = reject_unplaced(nodes, work.grid.domain, work.voxel_size_nm)
    index = work.grid.indices_at(voxels)
    order = np.argsort(index, kind="stable")
    boxes, starts = np.unique(index[order], return_index=True)
    parts = np.split(order, starts[1:])
    return [
        (int(b), placed.take(p)) for b, p in zip(boxes, parts, strict=bool(len(boxes)))
    ], rejected


class ListPieces(beam.DoFn):
    """A source -> its pieces; listed by a worker, so that the graph does not grow with files."""

    def process(self, source: NodeSource) -> Iterator[Piece]:
        """Yield each piece."""
        yield from tables.pieces(source)


class ReadNodes(beam.DoFn):
    """A piece -> packed batches of nodes."""

    def __init__(self, source: NodeSource) -> None:
        """A reader of the pieces of ``source``."""
        self._source = source

    def process(self, piece: Piece) -> Iterator[Nodes]:
        """Yield the batches of one piece."""
        yield from read_nodes(self._source, piece)


class PlaceNodes(beam.DoFn):
    """Nodes -> (box index, its nodes); counts of all rows, and of those without a box, beside."""

    UNPLACED = "unplaced"

    def __init__(self, work: EmbedWork) -> None:
        """Places nodes on the lattice of ``work``."""
        self._work = work

    def process(self, nodes: Nodes) -> Iterator[Any]:
        """Yield the nodes of each box, then the counts."""
        placed, rejected = place_nodes(self._work, nodes)
        count("nodes", len(nodes))
        for reason, n in rejected.items():
            count(f"rejected_{reason}", n)
        yield from placed
        counts = tuple(sorted({**rejected, "rows": len(nodes)}.items()))
        yield beam.pvalue.TaggedOutput(self.UNPLACED, counts)


class GatherNodes(beam.DoFn):
    """(range, its (box index, nodes) pairs) -> BoxNodes of each box, in the order of boxes."""

    def process(self, group: tuple[Any, Iterable[tuple[int, Nodes]]]) -> Iterator[BoxNodes]:
        """Yield the boxes of a range."""
        by_box: dict[int, list[Nodes]] = {}
        for index, nodes in group[1]:
            by_box.setdefault(index, []).append(nodes)
        for index in sorted(by_box):
            yield BoxNodes(index, Nodes.concat(by_box[index]))


@dataclasses.dataclass(eq=False)
class GroupNodes(beam.PTransform):
    """Reads a source and groups its nodes by box.

    The result is a dict of two collections: ``boxes``, a ``BoxNodes`` for each occupied box, and
    ``unplaced``, the counts of each batch.

    Attributes:
        work: The run.
        source: The nodes.
        also: (box index, no nodes) of boxes that come out whether they have nodes or not.
    """

    work: EmbedWork
    source: NodeSource
    also: beam.PCollection | None = None

    def expand(self, root: beam.Pipeline) -> Any:
        """Wire the steps."""
        placed = (
            root
            | "Source" >> beam.Create([self.source], reshuffle=False)
            | "ListPieces" >> beam.ParDo(ListPieces())
            | "SpreadPieces" >> beam.Reshuffle()
            | "ReadNodes" >> beam.ParDo(ReadNodes(self.source))
            | "PlaceNodes"
            >> beam.ParDo(PlaceNodes(self.work)).with_outputs(PlaceNodes.UNPLACED, main="placed")
        )
        parts = [placed.placed] if self.also is None else [placed.placed, self.also]
        boxes = (
            tuple(parts)
            | "Parts" >> beam.Flatten()
            | "KeyByRange"
            >> beam.Map(_keyed, self.work).with_output_types(tuple[Range, tuple[int, Nodes]])
            | "GroupByRange" >> beam.GroupByKey()
            | "GatherNodes" >> beam.ParDo(GatherNodes())
        )
        return {"boxes": boxes, "unplaced": placed[PlaceNodes.UNPLACED]}


def _keyed(element: tuple[int, Nodes], work: EmbedWork) -> tuple[Range, tuple[int, Nodes]]:
    """Boxes of one work range belong together: they lie in one partition and share commits."""
    return range_of(work.grid, work.generation, element[0]), element
