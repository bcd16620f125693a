"""Given nodes: read in packed arrays, sorted out, and grouped by the box that owns them."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from segclr.nodes import Nodes, reject_unplaced
from segclr.skeletons import skeleton_nodes
from transforms.counting import count
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


def _gather(index: int, parts: Iterable[Nodes]) -> BoxNodes:
    return BoxNodes(index, Nodes.concat(list(parts)))


@dataclasses.dataclass(eq=False)
class GroupNodes(beam.PTransform):
    """Reads a source and groups its nodes by box.

    The result is a dict of two collections: ``boxes``, a ``BoxNodes`` for each occupied box, and
    ``unplaced``, the counts of each batch.

    Attributes:
        work: The run.
        source: The nodes.
    """

    work: EmbedWork
    source: NodeSource

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
        boxes = (
            placed.placed
            | "KeyedByBox" >> beam.Map(_same).with_output_types(tuple[int, Nodes])
            | "GroupByBox" >> beam.GroupByKey()
            | "GatherNodes" >> beam.MapTuple(_gather)
        )
        return {"boxes": boxes, "unplaced": placed[PlaceNodes.UNPLACED]}


def _same(element: tuple[int, Nodes]) -> tuple[int, Nodes]:
    return element
