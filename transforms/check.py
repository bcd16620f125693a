"""The check of what jobs wrote into a volume, as a Beam transform: one step a unit.

What is wrong is told by counters, and the first faults of each worker in words.
"""

import dataclasses
import json
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PBegin, PCollection

from transforms.counting import NAMESPACE, count
from volumes import removal
from volumes.checks import CheckJob, check_unit
from volumes.units import record_where

FAULT_COUNTERS = ("unwritten", "missing", "damaged", "record")
"""The kinds of faults, in the order in which they are told."""

COUNTERS = ("units", "objects", "bytes_read", *FAULT_COUNTERS, "repaired")
"""Counters: units and objects looked at, their stored bytes, faults by kind, units put back."""

FAULTS = "faults"
"""The set of faults in words, as JSON."""

# Faults that a worker tells of in words; all of them are counted.
_TOLD = 1000


@dataclasses.dataclass(eq=False)
class CheckUnits(beam.PTransform[PBegin, PCollection[int]]):
    """Checks every unit of some jobs; emits how many faults each has.

    Its fields are not to be changed; Beam assigns to transforms, so it cannot be frozen.

    Attributes:
        jobs: What was written.
        repair: Whether units with faults lose their records, so that their job does them again.
    """

    jobs: tuple[CheckJob, ...]
    repair: bool

    def expand(self, root: PBegin) -> PCollection[int]:
        """Wire the steps."""
        faults: PCollection[int] = (
            root
            | "Seed" >> beam.Create(list(range(len(self.jobs))), reshuffle=False)
            | "ListUnits" >> beam.ParDo(ListUnits(self.jobs))
            | "Reshuffle" >> beam.Reshuffle()
            | "CheckUnit" >> beam.ParDo(CheckUnit(self.jobs, self.repair))
        )
        return faults


class ListUnits(beam.DoFn):
    """The number of a job -> that number with each of its units."""

    def __init__(self, jobs: tuple[CheckJob, ...]) -> None:
        """Keep the jobs."""
        self._jobs = jobs

    def process(self, element: int) -> Iterator[tuple[int, int]]:
        """Emit the units."""
        for index in self._jobs[element].units():
            yield element, index


class CheckUnit(beam.DoFn):
    """A job's number and a unit -> how many faults it has."""

    def __init__(self, jobs: tuple[CheckJob, ...], repair: bool) -> None:
        """Keep the jobs."""
        self._jobs, self._repair = jobs, repair
        self._told = 0

    def process(self, element: tuple[int, int]) -> Iterator[int]:
        """Check one unit."""
        job, index = self._jobs[element[0]], element[1]
        found = check_unit(job, index)
        count("units")
        count("objects", found.objects)
        count("bytes_read", found.bytes)
        for fault in found.faults:
            count(fault.kind)
            self._told += 1
            if self._told <= _TOLD:
                Metrics.string_set(NAMESPACE, FAULTS).add(json.dumps(fault.to_json()))
        if self._repair and any(f.kind != "unwritten" for f in found.faults):
            removal.remove(record_where(job.output, job.name, job.grid.name(index)))
            count("repaired")
        yield len(found.faults)
