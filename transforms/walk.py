"""Sampled nodes: the grid is walked in ranges, and each box samples the sites it owns.

A range is a run of consecutive boxes of one partition: ``(block, start, stop)``, the block's linear
index in the lattice of partitions and positions on its box axis. Ranges are made by a worker and
spread, so that the graph is the same for ten boxes and for 10**12.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from segclr.nodes import Nodes
from segclr.sampler import sample_sites
from transforms.boxes import box_done, commit_plans
from transforms.counting import count, timed
from transforms.work import BoxNodes, EmbedWork, check_labels, plan_of
from volumes.errors import RunError
from volumes.geometry import ChunkGrid, Vec, vec
from volumes.opening import Volume, open_volume
from volumes.reading import Part, read_box
from volumes.store import Generation

Range = tuple[int, int, int]
"""(block, start, stop)."""

# Enough ranges to keep workers busy to the end, none so long that losing one hurts.
_RANGES = 256
_LONGEST = 64


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


def range_length(grid: ChunkGrid) -> int:
    """Boxes of a range: a share of a small grid, a constant of a large one."""
    return max(1, min(_LONGEST, grid.size // _RANGES))


def ranges(grid: ChunkGrid, generation: Generation) -> Iterator[Range]:
    """Every range of a grid; together they hold each box once."""
    blocks = generation.blocks(grid)
    boxes = math.prod(generation.block)
    step = range_length(grid)
    for block in range(blocks.size):
        for start in range(0, boxes, step):
            yield (block, start, min(start + step, boxes))


def boxes_of(grid: ChunkGrid, generation: Generation, span: Range) -> Iterator[int]:
    """Grid indices of the boxes in a range; a block at the edge reaches beyond the grid."""
    block, start, stop = span
    corner = generation.blocks(grid).coordinate(block)
    nx, ny, _ = generation.block
    for local in range(start, stop):
        offset = (local % nx, local // nx % ny, local // (nx * ny))
        coordinate: Vec = vec(
            c * n + o for c, n, o in zip(corner, generation.block, offset, strict=True)
        )
        if grid.lattice_domain.contains(coordinate):
            yield grid.index(coordinate)


def sample_box(work: EmbedWork, segmentation: Volume, index: int) -> BoxNodes:
    """Read the segmentation around a box and sample the sites that the box owns.

    Raises:
        RunError: The segmentation cannot be read, or holds what is no segment id.
    """
    if work.spacing_nm is None:
        raise ValueError("the run has given nodes; there is nothing to sample")
    labels_box = work.labels_box(index)
    try:
        labels = read_box(segmentation, labels_box, bytes_in_flight=work.bytes_in_flight)
    except RunError as e:
        raise RunError(f"{work.describe(index)}: {e}") from e
    check_labels(work, index, labels)
    if not labels.array.any():
        return BoxNodes(index, Nodes.empty(), labels)
    try:
        nodes = sample_sites(
            labels.array,
            labels_box,
            work.grid.box(index),
            work.grid.domain,
            work.voxel_size_nm,
            work.spacing_nm,
        )
    except ValueError as e:
        raise RunError(f"{work.describe(index)}: cannot sample sites: {e}") from e
    return BoxNodes(index, nodes, labels)


class ListRanges(beam.DoFn):
    """A run -> the ranges of its grid."""

    def process(self, work: EmbedWork) -> Iterator[Range]:
        """Yield each range."""
        yield from ranges(work.grid, work.generation)


class WalkRange(beam.DoFn):
    """A range -> its occupied boxes with their nodes, each planned before it is passed on.

    Beside them go the boxes found committed, the names of the partitions planned in, and what the
    walk found.
    """

    DONE, PARTITIONS, WALKED = "done", "partitions", "walked"

    def __init__(self, work: EmbedWork) -> None:
        """Walks ranges of the grid of ``work``."""
        self._work = work
        self._segmentation: Volume | None = None

    def setup(self) -> None:
        """Open the segmentation."""
        self._segmentation = open_volume(self._work.segmentation)

    def process(self, span: Range) -> Iterator[Any]:
        """Yield the occupied boxes of one range."""
        work = self._work
        boxes = empty = nodes = 0
        planned = False
        for index in boxes_of(work.grid, work.generation, span):
            boxes += 1
            done = box_done(work, index, None)
            if done is not None:
                nodes += done.receipt.planned
                planned = True
                count("boxes_skipped")
                yield beam.pvalue.TaggedOutput(self.DONE, done)
                continue
            box = self._sampled(index)
            if len(box.nodes) == 0:
                empty += 1
                continue
            planned = True
            nodes += len(box.nodes)
            count("nodes", len(box.nodes))
            commit_plans(work, [(index, plan_of(work, index, box.nodes))])
            yield box
        if planned:
            name = work.generation.partition_name(self._first_box(span))
            yield beam.pvalue.TaggedOutput(self.PARTITIONS, name)
        count("boxes_empty", empty)
        yield beam.pvalue.TaggedOutput(self.WALKED, Walked(span, boxes, empty, nodes))

    def _sampled(self, index: int) -> BoxNodes:
        if self._segmentation is None:
            raise RuntimeError("setup has not run")
        with timed("sample_ms"):
            box = sample_box(self._work, self._segmentation, index)
        labels: Part | None = box.labels
        if len(box.nodes) == 0 and labels is not None:
            count("bytes_read", labels.bytes_decoded)
        return box

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
