"""Whether what a job wrote is still there as it was stored, told unit by unit.

A unit's record has the length and the digest of every object that holds it. A check reads each
object and compares; nothing is decoded, so it costs what reading the stored bytes costs, and it
works for lossy codecs and for formats without checksums alike. What a unit owes is known without
its record: the lattice of units stands in the job's manifest.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import tensorstore as ts

from volumes import objects
from volumes.context import process_context
from volumes.errors import DataError, RequestError, RunError
from volumes.formats import TS_ERRORS
from volumes.geometry import Box, ChunkGrid
from volumes.keys import box_of
from volumes.opening import Volume, open_volume
from volumes.resolving import resolve_levels
from volumes.spec import VolumeSpec, canonical, numbers
from volumes.units import (
    STATE,
    UnitRecord,
    WriteJob,
    bytes_digest,
    listed_units,
    load_record,
    record_where,
)
from volumes.writing import storage_errors

FaultKind = Literal["unwritten", "missing", "damaged", "record", "metadata"]
"""A unit without a record, an object that is gone, one with other bytes, a damaged record, metadata
that are gone or tell of another volume."""

_READS_IN_FLIGHT = 64


@dataclasses.dataclass(frozen=True, slots=True)
class CheckJob:
    """All that a worker needs to check any unit of a job; small, picklable, opens nothing.

    Attributes:
        name: The job's, under which its records are kept.
        output: The directory that keeps them.
        grid: The units.
        targets: What was written.
        listed: Object that names the units there are, where they are not all of the grid.
    """

    name: str
    output: str
    grid: ChunkGrid
    targets: tuple[VolumeSpec, ...]
    listed: str | None

    @classmethod
    def of(cls, job: WriteJob) -> "CheckJob":
        """The check of what a job writes."""
        targets = tuple(t.spec() for t in job.targets)
        return cls(job.name, job.output, job.grid, targets, job.listed)

    def units(self) -> Iterator[int]:
        """The units there are, in order."""
        return listed_units(self.grid, self.listed)

    def to_json(self) -> dict[str, Any]:
        """The job as JSON, for a manifest in its output; that, and no path in it, says where."""
        return {
            "name": self.name,
            "grid": self.grid.to_json(),
            "targets": [t.to_json() for t in self.targets],
            "below": [_below(t.source, self.output) for t in self.targets],
            "listed": None if self.listed is None else self.listed.rpartition("/")[2],
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], output: str) -> "CheckJob":
        """The job that ``to_json`` wrote into a manifest of an output."""
        listed = document["listed"]
        return cls(
            name=document["name"],
            output=output,
            grid=ChunkGrid.from_json(document["grid"]),
            targets=tuple(
                _moved(VolumeSpec.from_json(target), objects.join(output, *below))
                for target, below in zip(document["targets"], document["below"], strict=True)
            ),
            listed=None if listed is None else objects.join(output, STATE, listed),
        )


def _below(array: str, output: str) -> list[str]:
    """The directories that lead from an output to an array in it."""
    return [name for name in array.removeprefix(output).split("/") if name]


def _moved(spec: VolumeSpec, where: str) -> VolumeSpec:
    """An array as it is where a volume was moved or copied to."""
    document = json.loads(spec.tensorstore) | {"kvstore": objects.kvstore(where)}
    return dataclasses.replace(spec, source=where, tensorstore=canonical(document))


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was written.

    Attributes:
        kind: What is wrong.
        volume: The array concerned; the output where the unit has no record.
        key: The object's key in it, or the unit's name.
        box: Voxels concerned, of the array; of the unit where it has no record.
        says: What was found.
    """

    kind: FaultKind
    volume: str
    key: str
    box: Box | None
    says: str

    def to_json(self) -> dict[str, Any]:
        """The fault as JSON."""
        box = None if self.box is None else self.box.to_json()
        return {
            "kind": self.kind,
            "volume": self.volume,
            "key": self.key,
            "box": box,
            "says": self.says,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Fault":
        """The fault that ``to_json`` wrote."""
        box = document["box"]
        return cls(**(document | {"box": None if box is None else Box.from_json(box)}))

    def line(self) -> str:
        """The fault for people."""
        where = f"voxels {self.box}" if self.box else "voxels not known"
        return f"{self.kind}: {where} of {self.volume} ({self.key}): {self.says}"


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """What was found of a unit.

    Attributes:
        objects: Objects that were looked at.
        bytes: Their bytes.
        faults: What is wrong.
    """

    objects: int
    bytes: int
    faults: tuple[Fault, ...]


def check_unit(job: CheckJob, index: int) -> Checked:
    """Compare what is stored of a unit with its record.

    Raises:
        RunError: The storage fails.
    """
    where = record_where(job.output, job.name, job.grid.name(index))
    box = job.grid.box(index)
    data = objects.read(where)
    if data is None:
        fault = Fault("unwritten", job.output, job.grid.name(index), box, "it has no record")
        return Checked(0, 0, (fault,))
    try:
        record = load_record(data, where)
    except (DataError, KeyError, TypeError, ValueError) as e:
        says = f"its record is damaged: {e}"
        fault = Fault("record", job.output, job.grid.name(index), box, says)
        return Checked(0, 0, (fault,))
    if record.box != box:
        says = f"its record is of {record.box}, by a run with other units"
        return Checked(0, 0, (Fault("record", job.output, record.name, box, says),))
    return _compared(job, record)


def _compared(job: CheckJob, record: UnitRecord) -> Checked:
    faults: list[Fault] = []
    size = 0
    for which, group in itertools.groupby(record.stored, key=lambda s: s[0]):
        volume = _Target(job.targets[which])
        while some := list(itertools.islice(group, _READS_IN_FLIGHT)):
            for (_, key, length, digest), found in zip(
                some, volume.read([s[1] for s in some]), strict=True
            ):
                size += 0 if found is None else len(found)
                if found is None:
                    faults.append(volume.fault("missing", key, f"{length:,} bytes are gone"))
                elif len(found) != length:
                    says = f"it has {len(found):,} bytes and {length:,} were written"
                    faults.append(volume.fault("damaged", key, says))
                elif bytes_digest(found) != digest:
                    faults.append(volume.fault("damaged", key, "its bytes are not those written"))
    return Checked(len(record.stored), size, tuple(faults))


def check_metadata(volume: str, jobs: Sequence[CheckJob]) -> tuple[Fault, ...]:
    """Compare what a volume says of itself with what was written: each level's voxels and place.

    Args:
        volume: The volume's directory.
        jobs: What was written there.
    """
    try:
        levels = resolve_levels(volume, kind=None)
        told = ""
    except (RequestError, RunError) as e:
        levels, told = (), str(e)
    found = {(v.domain, v.dtype, v.voxel_size_nm) for v in levels}
    faults = []
    for target in (t for job in jobs for t in job.targets):
        if (target.domain, target.dtype, target.voxel_size_nm) not in found:
            sizes = numbers(target.voxel_size_nm)
            says = told or f"no {target.dtype} voxels of {sizes} nm are told of there"
            faults.append(Fault("metadata", target.source, "metadata", target.domain, says))
    return tuple(faults)


class _Target:
    """An array whose objects are read raw; opened for the box of a key only where one is needed."""

    def __init__(self, spec: VolumeSpec) -> None:
        self._spec = spec
        self._volume: Volume | None = None

    def read(self, keys: list[str]) -> list[bytes | None]:
        """The bytes of objects; None for those that are not there."""
        with storage_errors(f"read {keys[0]} of {self._spec.source}"):
            place = json.loads(self._spec.tensorstore)["kvstore"]
            store = ts.KvStore.open(place, context=process_context()).result()
            reads = [store.read(key) for key in keys]
            found = [read.result() for read in reads]
        return [bytes(f.value) if f.state == "value" else None for f in found]

    def fault(self, kind: FaultKind, key: str, says: str) -> Fault:
        """A fault of an object, with the box it holds."""
        return Fault(kind, self._spec.source, key, self._box(key), says)

    def _box(self, key: str) -> Box | None:
        try:
            if self._volume is None:
                self._volume = open_volume(self._spec)
            return box_of(self._volume, key)
        except (RequestError, RunError, *TS_ERRORS):  # its metadata are damaged, too
            return None
