"""Ingest as a Beam transform: slab indices spread over workers, one fused step a slab.

Only indices cross the shuffle; voxels never do. The graph is the same for one slab and for a
million: the indices are listed by a worker.
"""

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.pvalue import PBegin, PCollection

from transforms.counting import count, note
from volumes.geometry import ChunkGrid
from volumes.slabs import Outcome, SlabJob, SlabRecord, ingest_slab
from volumes.sources_base import Reader, decoded_bytes
from volumes.writing import OpenArray, open_for_writing

COUNTERS = ("slabs", "slabs_skipped", "voxels", "bytes_read", "bytes_written")
"""Counters: slabs written now, slabs found done, voxels written, bytes decoded from the source,
bytes written before compression."""

DISTRIBUTIONS = ("read_ms", "write_ms")
"""Distributions over the slabs written now."""


@dataclasses.dataclass(eq=False)
class IngestSlabs(beam.PTransform[PBegin, PCollection[SlabRecord]]):
    """Ingests every slab of a job; emits the record of each.

    Its fields are not to be changed; Beam assigns to transforms, so it cannot be frozen.

    Attributes:
        job: What is to be ingested.
    """

    job: SlabJob

    def expand(self, root: PBegin) -> PCollection[SlabRecord]:
        """Wire the steps."""
        records: PCollection[SlabRecord] = (
            root
            | "Seed" >> beam.Create([0], reshuffle=False)
            | "ListSlabs" >> beam.ParDo(ListSlabs(self.job.grid))
            | "Reshuffle" >> beam.Reshuffle()
            | "IngestSlab" >> beam.ParDo(IngestSlab(self.job))
        )
        return records


class ListSlabs(beam.DoFn):
    """Emits the index of every cell of a grid, for one seed."""

    def __init__(self, grid: ChunkGrid) -> None:
        """Keep the grid."""
        self._grid = grid

    def process(self, element: int) -> Iterator[int]:
        """Emit the indices."""
        yield from range(self._grid.size)


class IngestSlab(beam.DoFn):
    """Ingests a slab, given its index; emits its record."""

    def __init__(self, job: SlabJob) -> None:
        """Keep the job; ``setup`` opens what it names."""
        self._job = job
        self._reader: Reader | None = None
        self._store: OpenArray | None = None

    def setup(self) -> None:
        """Open the source and the volume."""
        self._reader = self._job.source.open()
        self._store = open_for_writing(self._job.output)

    def process(self, element: int) -> Iterator[SlabRecord]:
        """Ingest one slab."""
        if self._reader is None or self._store is None:
            raise RuntimeError("setup has not run")
        outcome = ingest_slab(self._job, self._reader, self._store, element)
        self._count(outcome)
        yield outcome.record

    def teardown(self) -> None:
        """Close the source."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._store = None

    def _count(self, outcome: Outcome) -> None:
        if outcome.skipped:
            count("slabs_skipped")
            return
        box = outcome.record.box
        counts = {
            "slabs": 1,
            "voxels": box.size,
            "bytes_read": decoded_bytes(self._job.source, box),
            "bytes_written": box.size * self._job.layout.itemsize,
        }
        for name, n in counts.items():
            count(name, n)
        note("read_ms", outcome.read_ms)
        note("write_ms", outcome.write_ms)
