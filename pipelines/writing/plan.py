"""The plan of a job that writes volumes: its stages, each a lattice of units, and their cost."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.text import bytes_text, shape_text
from volumes.downsampling import Method, scratch_bytes
from volumes.geometry import Box, ChunkGrid, Vec, vec
from volumes.shapes import TARGET_BYTES, choose_unit, refuse_memory, times_read
from volumes.sources.base import Source
from volumes.units import WriteJob
from volumes.writing import SHARDS_IN_FLIGHT, Target, VolumeLayout
from volumes.writing.boxes import PIECE_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """A pass over a source.

    Attributes:
        job: What its workers do.
        times_read: How often each voxel of the source is decoded, on average.
        peak_bytes: Memory that a worker takes, besides Python and its libraries.
        occupied: The units there are, in order, where they are not all of the grid.
    """

    job: WriteJob
    times_read: float
    peak_bytes: int
    occupied: tuple[int, ...] | None = None

    @property
    def units(self) -> int:
        """How many units there are."""
        return self.job.grid.size if self.occupied is None else len(self.occupied)

    @property
    def unit(self) -> Vec:
        """Shape of a unit, XYZ."""
        return self.job.grid.chunk

    @property
    def source_bytes(self) -> int:
        """Bytes of the source's voxels."""
        source = self.job.source
        return math.prod(source.shape) * np.dtype(source.dtype).itemsize

    @property
    def bytes_to_read(self) -> int:
        """Bytes to be decoded from the source when every unit is read once."""
        share = self.units / self.job.grid.size
        return round(self.source_bytes * self.times_read * share)

    @property
    def bytes_to_write(self) -> int:
        """Bytes to be written, before compression."""
        layouts = [t.layout for t in self.job.targets]
        raw = sum(math.prod(layout.shape) * layout.itemsize for layout in layouts)
        return round(raw * (self.units / self.job.grid.size))

    def lines(self) -> list[str]:
        """The stage for people."""
        grid = self.job.grid
        return [
            f"work: units of {shape_text(self.unit)} voxels, {self.units:,} in all "
            f"({shape_text(grid.counts)} along x, y, z)",
            f"to read: {bytes_text(self.bytes_to_read)} decoded, each byte of the source "
            f"{self.times_read:.3g} times",
            f"to write: {bytes_text(self.bytes_to_write)} before compression",
        ]

    def to_json(self) -> dict[str, Any]:
        """The stage as JSON."""
        return {
            "job": self.job.name,
            "unit": list(self.unit),
            "units": self.units,
            "source_bytes": self.source_bytes,
            "bytes_to_read": self.bytes_to_read,
            "bytes_to_write": self.bytes_to_write,
            "peak_bytes": self.peak_bytes,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class WritePlan:
    """What will run.

    Attributes:
        job: ``ingest``, ``convert`` or ``downsample``.
        source: Where voxels come from.
        output: The volume's directory: an absolute path or a URL.
        volumes: The volumes that are created: the levels of each, those there already included.
        stages: The passes, in order.
        identity_text: What makes this job this one, as canonical JSON: an output takes no other.
        about: What is read and written, for people: a line each.
        budget_bytes: Memory allowed for a worker.
        chosen_for_bytes: Memory that the units were chosen for: another where a run that began
            with it is taken up again.
        warnings: What the user should know before it runs.
        method: How levels are made of one another.
        fresh: Whether the output must be new, or this job's already.
        temporary: A directory that is removed at the end.
    """

    job: str
    source: str
    output: str
    volumes: tuple[tuple[Target, ...], ...]
    stages: tuple[Stage, ...]
    identity_text: str
    about: tuple[str, ...]
    budget_bytes: int
    chosen_for_bytes: int
    warnings: tuple[str, ...] = ()
    method: Method | None = None
    fresh: bool = True
    temporary: str | None = None

    @property
    def last(self) -> WriteJob:
        """The job of the last stage."""
        return self.stages[-1].job

    def identity(self) -> dict[str, Any]:
        """What makes this job this one, as JSON."""
        found: dict[str, Any] = json.loads(self.identity_text)
        return found

    @property
    def peak_bytes(self) -> int:
        """Memory that a worker takes at most, besides Python and its libraries."""
        return max(s.peak_bytes for s in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "job": self.job,
            "identity": self.identity(),
            "source": self.stages[0].job.source.to_json(),
            "output": self.output,
            "stages": [s.to_json() for s in self.stages],
            "peak_bytes": self.peak_bytes,
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """The plan for people, a line each."""
        work = [line for s in self.stages for line in s.lines()]
        return [
            *self.about,
            *work,
            f"memory: at most about {bytes_text(self.peak_bytes)} a worker besides Python and its "
            f"libraries, of {bytes_text(self.budget_bytes)} allowed",
            *(f"warning: {w}" for w in self.warnings),
        ]


def stage(
    name: str,
    source: Source,
    origin_vx: Vec,
    output: str,
    targets: Sequence[Target],
    factors: Sequence[Vec],
    method: Method | None,
    budget_bytes: int,
    offset: Vec = (0, 0, 0),
) -> Stage:
    """Choose the units of a pass: they read the source least often within the memory budget.

    Args:
        name: What its records are kept under.
        source: Where voxels come from.
        origin_vx: Frame voxel of the source's first voxel.
        output: The directory that keeps the records.
        targets: What is written, finest first.
        factors: For each target, how many voxels of the source one of its voxels has.
        method: How a target is made of a finer one.
        budget_bytes: Memory allowed for a worker.
        offset: A voxel of the source at which one of its pieces begins.

    Raises:
        RequestError: Not even one write chunk of each target fits into the budget.
    """
    write = granule(targets, factors)
    memory = Memory.of(source, [t.layout for t in targets], factors, method)
    refuse_memory(memory.needed(write), budget_bytes, source.scratch_bytes, write)
    limit = memory.limit(budget_bytes)
    wished = max(1, TARGET_BYTES // np.dtype(source.dtype).itemsize)
    unit = choose_unit(source.shape, write, source.piece, limit, wished, offset)
    grid = ChunkGrid(Box.of(origin_vx, source.shape), unit, origin_vx)
    return Stage(
        WriteJob(name, source, origin_vx, output, tuple(targets), tuple(factors), grid, method),
        times_read(source.shape, unit, source.piece, offset),
        memory.needed(unit),
    )


def granule(targets: Sequence[Target], factors: Sequence[Vec]) -> Vec:
    """The smallest box of source voxels that is whole write chunks of every target."""
    sides = [
        [w * f for w, f in zip(t.layout.write_chunk, factor, strict=True)]
        for t, factor in zip(targets, factors, strict=True)
    ]
    return vec(math.lcm(*axis) for axis in zip(*sides, strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """What a worker takes besides Python and its libraries, by the unit that it works on.

    Attributes:
        shape: Voxels of the source, XYZ: a unit holds no more.
        scratch: Bytes taken whatever the unit: to decode the source, and to make coarser levels.
        held: Bytes taken for each voxel of a unit: as it was read, and for each level.
        flying: For each level the most bytes that are on their way to the store at once, and its
            bytes for a voxel of the source. They are there as a copy and, encoded, once more: at
            worst in their own size.
    """

    shape: Vec
    scratch: int
    held: float
    flying: tuple[tuple[int, float], ...]

    @classmethod
    def of(
        cls,
        source: Source,
        layouts: Sequence[VolumeLayout],
        factors: Sequence[Vec],
        method: Method | None = None,
    ) -> "Memory":
        """The memory of a pass.

        Args:
            source: Where voxels come from.
            layouts: What is written, finest first.
            factors: For each, how many voxels of the source one of its voxels has.
            method: How it is made of a finer one.
        """
        levels = [
            (SHARDS_IN_FLIGHT * _piece(x), x.itemsize / math.prod(f))
            for x, f in zip(layouts, factors, strict=True)
        ]
        scratch = source.scratch_bytes + _reducing(source, factors, method)
        return cls(source.shape, scratch, _per_voxel(source, layouts, factors), tuple(levels))

    def needed(self, unit: Vec) -> int:
        """Bytes that a worker takes at most on units of a shape."""
        # Formats store whole chunks, also where they stick out of the volume.
        voxels = math.prod(unit)
        flying = max(min(most, voxels * each) for most, each in self.flying)
        held = math.prod(min(a, b) for a, b in zip(unit, self.shape, strict=True)) * self.held
        return round(self.scratch + 2 * flying + held)

    def limit(self, budget_bytes: int) -> int:
        """The most voxels of a unit that a budget surely holds."""
        left = budget_bytes - self.scratch
        whole = (left - 2 * max(most for most, _ in self.flying)) / self.held
        small = left / (self.held + 2 * max(each for _, each in self.flying))
        return max(0, math.floor(max(whole, small)))


def _piece(layout: VolumeLayout) -> int:
    """Bytes of a level that are written at once."""
    sharded = layout.shard not in (None, layout.chunk)
    return layout.write_bytes if sharded else max(PIECE_BYTES, layout.write_bytes)


def _reducing(source: Source, factors: Sequence[Vec], method: Method | None) -> int:
    """Memory that making coarser levels takes besides them."""
    if method is None:
        return 0
    itemsize = np.dtype(source.dtype).itemsize
    steps = [f for f in factors if math.prod(f) > 1]
    return max((scratch_bytes(source.shape, itemsize, f, method) for f in steps), default=0)


def _per_voxel(source: Source, layouts: Sequence[VolumeLayout], factors: Sequence[Vec]) -> float:
    """Memory a worker takes for each voxel of a unit: as it was read, and for each level."""
    itemsize = np.dtype(source.dtype).itemsize
    taken = float(itemsize)
    for layout, factor in zip(layouts, factors, strict=True):
        if math.prod(factor) > 1 or layout.itemsize != itemsize:
            taken += layout.itemsize / math.prod(factor)
    return taken
