"""Work ranges: runs of consecutive boxes of one partition, the unit in which work is handed out.

A range is ``(block, start, stop)``: the block's linear index in the lattice of partitions, and
positions on its box axis.
"""

import math
from collections.abc import Iterator

from volumes.generation import Generation
from volumes.geometry import ChunkGrid, vec

Range = tuple[int, int, int]
"""(block, start, stop)."""

# Enough ranges to keep workers busy to the end, none so long that losing one hurts.
_RANGES = 256
_LONGEST = 64


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
    for local in range(start, stop):
        coordinate = generation.box_at(corner, local)
        if grid.lattice_domain.contains(coordinate):
            yield grid.index(coordinate)


def range_of(grid: ChunkGrid, generation: Generation, index: int) -> Range:
    """The range that holds a box of the grid."""
    coordinate = grid.coordinate(index)
    step = range_length(grid)
    start = generation.local(coordinate) // step * step
    block = vec(c // n for c, n in zip(coordinate, generation.block, strict=True))
    stop = min(start + step, math.prod(generation.block))
    return (generation.blocks(grid).index(block), start, stop)
