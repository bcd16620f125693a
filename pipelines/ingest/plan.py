"""The plan of an ingest: made from metadata alone, and refused where it cannot work."""

import dataclasses
import math
from typing import Any

import numpy as np

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.output import check_output
from pipelines.text import bytes_text, shape_text
from volumes import objects
from volumes.geometry import ChunkGrid, Vec, vec
from volumes.slabs import SlabJob, fixed_bytes, peak_bytes, slab_shape, voxels_decoded
from volumes.sources import resolve_source
from volumes.sources_base import Source, stored_dtype
from volumes.writing import VolumeLayout

_CHUNKS_A_SHARD = 4


@dataclasses.dataclass(frozen=True, slots=True)
class IngestPlan:
    """What will run.

    Attributes:
        config: The request.
        job: Source, output, layout and slabs.
    """

    config: IngestConfig
    job: SlabJob

    @property
    def slab(self) -> Vec:
        """Shape of a slab, XYZ."""
        return self.job.grid.chunk

    @property
    def source_bytes(self) -> int:
        """Bytes of the source's voxels."""
        source = self.job.source
        return math.prod(source.shape) * np.dtype(source.dtype).itemsize

    @property
    def bytes_to_read(self) -> int:
        """Bytes to be decoded from the source when every slab is read once."""
        source = self.job.source
        voxels = voxels_decoded(source.shape, self.slab, source.piece)
        return voxels * np.dtype(source.dtype).itemsize

    @property
    def peak_bytes(self) -> int:
        """Memory that a worker takes, besides Python and its libraries."""
        return peak_bytes(self.job.layout, self.slab, self.job.source.scratch_bytes)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before it runs."""
        found = []
        if self.config.kind == "image" and self.job.layout.dtype != "uint8":
            found.append(
                f"the image is {self.job.layout.dtype} and is stored so; embed takes uint8 images "
                "only, so scale the grey values first if that is what it is for"
            )
        if self.bytes_to_read > 2 * self.source_bytes:
            found.append(
                "a section or chunk of the source is decoded for each slab it meets; more "
                "--memory-mb, or a --shard of less depth in z, makes fewer"
            )
        return tuple(found)

    def identity(self) -> dict[str, Any]:
        """What makes this ingest this one, as JSON: an output takes no other."""
        layout, source = self.job.layout, self.job.source
        return {
            "source": source.url,
            "dataset": self.config.dataset,
            "axes": self.config.axes,
            "kind": layout.kind,
            "shape": list(layout.shape),
            "dtype": layout.dtype,
            "voxel_size_nm": list(layout.voxel_size_nm),
            "origin_vx": list(layout.origin_vx),
            "chunk": list(layout.chunk),
            "shard": list(layout.shard),
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "job": "ingest",
            "identity": self.identity(),
            "source": self.job.source.to_json(),
            "output": self.job.output,
            "slab": list(self.slab),
            "slabs": self.job.grid.size,
            "source_bytes": self.source_bytes,
            "bytes_to_read": self.bytes_to_read,
            "peak_bytes": self.peak_bytes,
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """The plan for people, a line each."""
        layout, source, grid = self.job.layout, self.job.source, self.job.grid
        reads = self.bytes_to_read / self.source_bytes
        kept = "" if source.dtype == layout.dtype else f", stored as {layout.dtype}"
        sizes = ", ".join(f"{v:g}" for v in layout.voxel_size_nm)
        return [
            *source.lines(),
            f"volume: {layout.kind}, {shape_text(layout.shape)} voxels (x, y, z) of {source.dtype}"
            f"{kept}; voxel size {sizes} nm; first voxel at {layout.origin_vx}",
            f"output: {self.job.output}, zarr3, chunks of {shape_text(layout.chunk)} in shards of "
            f"{shape_text(layout.shard)}",
            f"work: slabs of {shape_text(self.slab)} voxels, {grid.size:,} in all "
            f"({shape_text(grid.counts)} along x, y, z)",
            f"to read: {bytes_text(self.bytes_to_read)} decoded, each byte of the source "
            f"{reads:.3g} times",
            f"to write: {bytes_text(math.prod(layout.shape) * layout.itemsize)} before compression",
            f"memory: at most about {bytes_text(self.peak_bytes)} a worker besides Python and its "
            f"libraries, of {bytes_text(self.config.memory_mb * 10**6)} allowed",
            *(f"warning: {w}" for w in self.warnings),
        ]


def plan(config: IngestConfig) -> IngestPlan:
    """Look at the source's metadata and decide shards and slabs; nothing is written.

    Raises:
        RequestError: The source is no source of such a volume, a shard does not fit into memory, or
            the output holds something else.
    """
    source = resolve_source(config.source, config.dataset, config.axes, config.kind)
    budget = config.memory_mb * 10**6
    layout = _layout(config, source, config.shard or config.chunk)
    if config.shard is None:
        layout = _layout(config, source, _choose_shard(layout, source, budget))
    slab = slab_shape(layout, source.scratch_bytes, budget)
    output = objects.absolute(config.output)
    made = IngestPlan(config, SlabJob(source, output, layout, ChunkGrid(layout.domain, slab)))
    check_output(output, source.url, made.identity())
    return made


def _layout(config: IngestConfig, source: Source, shard: Vec) -> VolumeLayout:
    return VolumeLayout(
        shape=source.shape,
        dtype=stored_dtype(source.dtype, config.kind),
        kind=config.kind,
        voxel_size_nm=config.voxel_size_nm,
        origin_vx=config.origin_vx,
        chunk=config.chunk,
        shard=shard,
    )


def _choose_shard(layout: VolumeLayout, source: Source, budget: int) -> Vec:
    """Up to four chunks a side, no more than cover the volume.

    As wide in x and y as the memory allows; as deep in z as leaves the source decoded least often,
    the deeper where it makes no difference. Where not even one chunk fits, a chunk: ``slab_shape``
    then refuses with the figures.
    """
    for wide in range(_CHUNKS_A_SHARD, 0, -1):
        fitting = []
        for deep in range(_CHUNKS_A_SHARD, 0, -1):
            shard = _shard(layout, (wide, wide, deep))
            tried = dataclasses.replace(layout, shard=shard)
            if fixed_bytes(tried, source.scratch_bytes) + tried.shard_bytes <= budget:
                slab = slab_shape(tried, source.scratch_bytes, budget)
                fitting.append((voxels_decoded(layout.shape, slab, source.piece), shard))
        if fitting:
            return min(fitting, key=lambda found: found[0])[1]
    return layout.chunk


def _shard(layout: VolumeLayout, chunks: Vec) -> Vec:
    return vec(
        c * min(k, -(-n // c)) for n, c, k in zip(layout.shape, layout.chunk, chunks, strict=True)
    )
