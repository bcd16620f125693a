"""The check of a volume that this package wrote: every stored object against its record."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam

from pipelines.writing.output import written_by
from transforms.check import FAULT_COUNTERS, CheckUnits
from volumes import objects, removal
from volumes.checks import CheckJob, Fault, check_metadata
from volumes.errors import RequestError
from volumes.units import STATE


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeCheckPlan:
    """What will run.

    Attributes:
        volume: The volume's directory: an absolute path or a URL.
        jobs: Name of each job that wrote there, and the passes it made.
        repair: Whether units with faults are put back in the queue of their job.
    """

    volume: str
    jobs: tuple[tuple[str, tuple[CheckJob, ...]], ...]
    repair: bool

    @property
    def checks(self) -> tuple[CheckJob, ...]:
        """The passes of all jobs."""
        return tuple(c for _, checks in self.jobs for c in checks)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "job": "verify",
            "volume": self.volume,
            "checks": [c.to_json() for c in self.checks],
            "repair": self.repair,
        }

    def lines(self) -> list[str]:
        """The plan for people, a line each."""
        passes = ", ".join(f"{c.name} ({math.prod(c.grid.counts):,} units)" for c in self.checks)
        queue = "units with faults are put back in the queue of their job"
        return [
            f"volume: {self.volume}",
            f"to check: every stored object of {passes}",
            f"repair: {queue if self.repair else 'no, only look'}",
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeResult:
    """What a check found.

    Attributes:
        units: Units looked at.
        objects: Stored objects looked at.
        bytes: Their bytes.
        faults: (kind, count) pairs of what was found.
        named: The first faults, in order of place.
        repaired: Units put back in the queue.
    """

    units: int
    objects: int
    bytes: int
    faults: tuple[tuple[str, int], ...]
    named: tuple[Fault, ...]
    repaired: int


def plan_volume(volume: str, *, repair: bool) -> VolumeCheckPlan:
    """Find out what was written to a volume; nothing is changed.

    Raises:
        RequestError: It is none that this package wrote.
        RunError: A manifest is damaged.
    """
    url = objects.absolute(volume)
    jobs = tuple(
        (
            manifest["job"],
            tuple(CheckJob.from_json(s["check"], url) for s in manifest["stages"] if s["kept"]),
        )
        for manifest in written_by(url)
    )
    if not jobs:
        raise RequestError(
            f"--volume {objects.redacted(volume)} has no record of a job of this package, so there "
            "is nothing to compare with; segclr-beam info counts the chunks that are missing of "
            "any volume"
        )
    return VolumeCheckPlan(url, jobs, repair)


def build_volume(root: beam.Pipeline, plan: VolumeCheckPlan) -> Any:
    """Put the check into a pipeline; gives how many faults each unit has."""
    return root | "CheckVolume" >> CheckUnits(plan.checks, plan.repair)


def finish_volume(
    plan: VolumeCheckPlan, counts: Mapping[str, int], told: Iterable[str]
) -> VolumeResult:
    """Sum up a check; a volume with units to do again loses its jobs' marks of completeness.

    Args:
        plan: What was run.
        counts: Its counters.
        told: The first faults, as JSON.
    """
    metadata = check_metadata(plan.volume, plan.checks)
    if counts.get("repaired", 0) or (plan.repair and metadata):
        for job, _ in plan.jobs:
            removal.remove(objects.join(plan.volume, STATE, f"{job}-complete.json"))
    named = [*metadata, *(Fault.from_json(json.loads(text)) for text in told)]
    found = dict(counts) | {"metadata": len(metadata)}
    return VolumeResult(
        units=counts.get("units", 0),
        objects=counts.get("objects", 0),
        bytes=counts.get("bytes_read", 0),
        faults=tuple((k, found[k]) for k in (*FAULT_COUNTERS, "metadata") if found.get(k, 0)),
        named=tuple(sorted(named, key=lambda f: (f.volume, f.box is None, str(f.box), f.key))),
        repaired=counts.get("repaired", 0),
    )
