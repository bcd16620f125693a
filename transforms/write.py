"""The writing of volumes as a Beam transform: unit indices spread over workers, one step a unit.

Ingest, convert and downsample are this transform with other sources and targets. Only indices cross
the shuffle; voxels never do. The graph is the same for one unit and for a million: the indices are
listed by a worker.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PBegin, PCollection

from transforms.counting import count, note
from volumes.opening import Volume
from volumes.sources.base import Reader, decoded_bytes
from volumes.units import Outcome, UnitRecord, WriteJob, open_targets, write_unit

COUNTERS = (
    "units",
    "units_skipped",
    "voxels",
    "bytes_read",
    "bytes_written",
    "bytes_stored",
    "voxels_missing",
)
"""Counters: units written now, units found done, voxels written, bytes decoded from the source,
bytes written before and after compression, voxels of the source that were not stored."""

DISTRIBUTIONS = ("read_ms", "write_ms")
"""Distributions over the units written now."""


@dataclasses.dataclass(eq=False)
class WriteUnits(beam.PTransform[PBegin, PCollection[UnitRecord]]):
    """Does every unit of a job; emits the record of each.

    Its fields are not to be changed; Beam assigns to transforms, so it cannot be frozen.

    Attributes:
        job: What is to be written.
        after: Collections that must be complete before the first unit is begun.
    """

    job: WriteJob
    after: tuple[PCollection[Any], ...] = ()

    def expand(self, root: PBegin) -> PCollection[UnitRecord]:
        """Wire the steps."""
        barriers = [beam.pvalue.AsIter(c) for c in self.after]
        records: PCollection[UnitRecord] = (
            root
            | "Seed" >> beam.Create([0], reshuffle=False)
            | "ListUnits" >> beam.ParDo(ListUnits(self.job), *barriers)
            | "Reshuffle" >> beam.Reshuffle()
            | "WriteUnit" >> beam.ParDo(WriteUnit(self.job))
        )
        return records


class ListUnits(beam.DoFn):
    """Emits the index of every unit of a job, for one seed."""

    def __init__(self, job: WriteJob) -> None:
        """Keep the job."""
        self._job = job

    def process(self, element: int, *after: Any) -> Iterator[int]:
        """Emit the indices."""
        yield from self._job.units()


class WriteUnit(beam.DoFn):
    """Does a unit, given its index; emits its record."""

    def __init__(self, job: WriteJob) -> None:
        """Keep the job; ``process`` opens what it names, once what comes before is complete."""
        self._job = job
        self._reader: Reader | None = None
        self._volumes: tuple[Volume, ...] | None = None

    def process(self, element: int) -> Iterator[UnitRecord]:
        """Do one unit."""
        if self._reader is None:
            self._reader = self._job.source.open()
        if self._volumes is None:
            self._volumes = open_targets(self._job)
        outcome = write_unit(self._job, self._reader, self._volumes, element)
        self._count(element, outcome)
        yield outcome.record

    def teardown(self) -> None:
        """Close the source."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._volumes = None

    def _count(self, index: int, outcome: Outcome) -> None:
        if outcome.skipped:
            count("units_skipped")
            return
        job = self._job
        within = job.within(job.read_box(index))
        counts = {
            "units": 1,
            "voxels": outcome.voxels,
            "bytes_read": decoded_bytes(job.source, within),
            "bytes_written": outcome.raw_bytes,
            "bytes_stored": outcome.record.stored_bytes,
            "voxels_missing": outcome.record.missing,
        }
        for name, n in counts.items():
            count(name, n)
        note("read_ms", outcome.read_ms)
        note("write_ms", outcome.write_ms)
