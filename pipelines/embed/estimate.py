"""What a run will cost, from geometry and the network's shape alone."""

import dataclasses
import math
import os

import numpy as np

from pipelines.embed.memory import box_bytes, inner_box, peak_bytes
from segclr.config import flops_per_crop
from transforms.work import EmbedWork
from volumes.geometry import Box, ChunkGrid
from volumes.reading import chunks_under
from volumes.spec import VolumeSpec
from volumes.survey import Survey

# What a core of a recent server does in single precision, and what it decodes: assumptions that the
# plan prints. A full-size crop measured 0.35 s on two cores, which is 107 GFLOP/s a core.
_GFLOPS_A_CORE = 100
_DECODED_MB_S = 200

# Segments that touch a cell of the sampler in dense neuropil: an assumption that the plan prints.
_SITES_A_CELL = 30

# Up to this many boxes and chunks, sums are exact; beyond, they follow from an inner box.
_EXACT_BOXES = 5_000
_EXACT_WALK = 200
_EXACT_CHUNKS = 500_000


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will cost.

    Attributes:
        boxes: Boxes to be embedded, or to be walked where nodes are sampled.
        nodes: Nodes to be embedded; None where only the segmentation tells.
        nodes_assumed: The number assumed where ``nodes`` is None.
        bytes_to_read: Decoded bytes of both volumes.
        chunk_reads: How often a chunk that is read is read, on average; None where there are too
            many to count.
        seconds: Time, by the assumed speed of a core.
        peak_bytes: Peak memory of a worker process.
    """

    boxes: int
    nodes: int | None
    nodes_assumed: int
    bytes_to_read: int
    chunk_reads: float | None
    seconds: float
    peak_bytes: int


def estimate(work: EmbedWork, found: Survey | None) -> Estimate:
    """Estimate a run.

    Args:
        work: The run.
        found: The survey of given nodes, None where nodes are sampled.
    """
    grid = work.grid
    boxes = grid.size
    nodes = None
    occupied: list[int] | None = None
    if found is not None:
        nodes = found.inside
        boxes = min(grid.size, nodes)
        if found.box_index is not None:
            boxes = len(found.box_index)
            if boxes <= _EXACT_BOXES:
                occupied = [int(i) for i in found.box_index]
    elif boxes <= _EXACT_WALK:
        occupied = list(range(boxes))
    total, reads = _reading(work, occupied, boxes)
    assumed = nodes if nodes is not None else _sampled(work)
    return Estimate(
        boxes=boxes,
        nodes=nodes,
        nodes_assumed=assumed,
        bytes_to_read=total,
        chunk_reads=reads,
        seconds=_seconds(work, assumed, total),
        peak_bytes=peak_bytes(work, occupied, boxes),
    )


def _reading(work: EmbedWork, occupied: list[int] | None, boxes: int) -> tuple[int, float | None]:
    """Decoded bytes, and how often a chunk is read."""
    if occupied is not None:
        return sum(box_bytes(work, i) for i in occupied), _chunk_reads(work, occupied)
    each = box_bytes(work, inner_box(work.grid))
    if boxes < work.grid.size:
        return boxes * each, None
    return boxes * each, _walked_reads(work)


def _walked_reads(work: EmbedWork) -> float:
    """Reads of chunks over chunks where an inner box stands for all of a grid's."""
    middle = inner_box(work.grid)
    reads = chunks = 0.0
    for volume, box in (
        (work.image, work.read_box(middle)),
        (work.segmentation, work.labels_box(middle)),
    ):
        reads += chunks_under(volume, box)
        chunks += work.grid.box(middle).size / math.prod(volume.read_chunk)
    return reads / chunks


def _chunk_reads(work: EmbedWork, occupied: list[int]) -> float | None:
    """Reads of chunks over chunks read, of both volumes together."""
    reads = distinct = 0
    for volume, boxes in (
        (work.image, [work.read_box(i) for i in occupied]),
        (work.segmentation, [work.labels_box(i) for i in occupied]),
    ):
        counts = [chunks_under(volume, box) for box in boxes]
        if sum(counts) > _EXACT_CHUNKS:
            return None
        reads += sum(counts)
        distinct += _distinct(volume, boxes)
    return reads / max(distinct, 1)


def _distinct(volume: VolumeSpec, boxes: list[Box]) -> int:
    """Number of chunks that meet at least one of the boxes."""
    grid = volume.read_grid
    seen: set[int] = set()
    for box in boxes:
        part = ChunkGrid(volume.domain.intersection(box), grid.chunk, grid.anchor)
        if part.size == 0:
            continue
        i, j, k = (
            np.arange(f - g, f - g + n)
            for f, g, n in zip(part.first, grid.first, part.counts, strict=True)
        )
        nx, ny, _ = grid.counts
        index = i + nx * (j[:, None] + ny * k[:, None, None])
        seen.update(index.ravel().tolist())
    return len(seen)


def _sampled(work: EmbedWork) -> int:
    if work.spacing_nm is None:
        return 0
    cells = [
        max(1.0, n * size / work.spacing_nm)
        for n, size in zip(work.grid.domain.shape, work.voxel_size_nm, strict=True)
    ]
    return math.ceil(math.prod(cells) * _SITES_A_CELL)


def _seconds(work: EmbedWork, nodes: int, bytes_to_read: int) -> float:
    cores = os.cpu_count() or 1
    network = work.model.network
    flops = 0 if network is None else flops_per_crop(network, work.model.input_size)
    computing = nodes * flops / (_GFLOPS_A_CORE * 1e9 * cores)
    return computing + bytes_to_read / (_DECODED_MB_S * 1e6 * cores)


def assumptions(work: EmbedWork) -> str:
    """The assumptions behind the time, for people."""
    rate = f"{_GFLOPS_A_CORE} GFLOP/s and {_DECODED_MB_S} MB/s decoded a core, "
    cores = f"{os.cpu_count()} cores"
    if work.model.network is None:
        return f"{rate}{cores}; computing is not in it, since the model does not tell its size"
    return rate + cores
