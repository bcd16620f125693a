"""Units: the work of every job that writes volumes, and the records that make it resumable.

A unit is a box of the source, in frame voxels. It owns the write chunks of each target that begin
in it, so units are disjoint, cover every target, and no two workers write one object. Where a
coarser level's chunks do not begin at units, what a unit reads reaches a little over its box.

A unit's record, ``OUTPUT/segclr-beam/JOB/I_J_K.json``, is written after its chunks are stored. It
holds the stamps of what was read, so that a unit is done as long as these last, and the length and
digest of every object that was stored, so that ``verify`` finds what was lost or damaged since.
"""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes import documents, objects
from volumes.downsampling import Method, reduced
from volumes.errors import RunError
from volumes.geometry import Box, ChunkGrid, Vec, vec
from volumes.keys import keys_of
from volumes.opening import Volume
from volumes.sources.base import Reader, Source, Stamp
from volumes.writing import Target, as_type, open_for_writing, storage_errors, write_box
from volumes.writing.arrays import is_sharded

STATE = "segclr-beam"
"""The directory below a volume that holds what this package knows of it."""

_RECORD = "segclr-beam-unit"
_RECORD_VERSION = 1
_READS_IN_FLIGHT = 64

Stored = tuple[int, str, int, str]
"""An object that was stored: which target, its key, its bytes, its digest."""


@dataclasses.dataclass(frozen=True, slots=True)
class WriteJob:
    """All that a worker needs to do any unit; small, picklable, opens nothing.

    Attributes:
        name: What the records are kept under: ``ingest``, ``convert``, ``downsample-1``, ...
        source: Where voxels come from.
        origin_vx: Frame voxel of the source's first voxel, XYZ.
        output: The directory that keeps the records.
        targets: What is written, finest first.
        factors: For each target, how many voxels of the source one of its voxels has, XYZ; each is
            a multiple of the one before.
        grid: The units, in frame voxels of the source.
        method: How a target is made of a finer one; None where all factors are 1.
        listed: Object that names the units there are, where they are not all of the grid.
        copied: The job that made the source, where that is a passing copy of another one, whose
            stamps the source gives.
    """

    name: str
    source: Source
    origin_vx: Vec
    output: str
    targets: tuple[Target, ...]
    factors: tuple[Vec, ...]
    grid: ChunkGrid
    method: Method | None = None
    listed: str | None = None
    copied: "WriteJob | None" = None

    def owned(self, index: int, which: int) -> Box:
        """The voxels of a target whose write chunks begin in a unit; of size 0 where none do."""
        layout, factors = self.targets[which].layout, self.factors[which]
        cell = self.grid.cell(self.grid.coordinate(index))
        grid = layout.write_grid
        start, stop = [], []
        for axis in range(3):
            first = self._chunk_from(grid, cell.start[axis], factors[axis], axis)
            if cell.start[axis] <= self.grid.domain.start[axis]:
                first = grid.domain.start[axis]
            last = self._chunk_from(grid, cell.stop[axis], factors[axis], axis)
            start.append(first)
            stop.append(max(first, last))
        return Box(vec(start), vec(stop))

    @staticmethod
    def _chunk_from(grid: ChunkGrid, voxel: int, factor: int, axis: int) -> int:
        """Where the first write chunk begins that begins at a source voxel or after it."""
        origin, chunk, end = grid.domain.start[axis], grid.chunk[axis], grid.domain.stop[axis]
        level = -(-voxel // factor)
        return min(end, origin + -((origin - level) // chunk) * chunk)

    def read_box(self, index: int) -> Box:
        """The source voxels that a unit reads, in the frame."""
        boxes = []
        for which, factors in enumerate(self.factors):
            owned = self.owned(index, which)
            if owned.size:
                boxes.append(scaled(owned, factors))
        if not boxes:
            return Box(self.grid.box(index).start, self.grid.box(index).start)
        whole = boxes[0]
        for box in boxes[1:]:
            whole = whole.hull(box)
        return whole.intersection(self.grid.domain)

    def within(self, box: Box) -> Box:
        """A frame box in the source's own voxels."""
        return box.translated(vec(-o for o in self.origin_vx))

    def units(self) -> Iterator[int]:
        """The units there are, in order.

        Raises:
            RunError: Their list is gone or damaged.
        """
        return listed_units(self.grid, self.listed)

    def count(self) -> int:
        """How many units there are."""
        return self.grid.size if self.listed is None else sum(1 for _ in self.units())


_LIST = "segclr-beam-units"
_LIST_VERSION = 1


def listed_units(grid: ChunkGrid, listed: str | None) -> Iterator[int]:
    """The units of a lattice, in order: those of a list, or all where there is none.

    Raises:
        RunError: The list is gone or damaged.
    """
    if listed is None:
        yield from range(grid.size)
        return
    data = objects.read(listed)
    if data is None:
        raise RunError(f"{listed} was removed while it was needed; start again")
    for name in documents.load(data, _LIST, _LIST_VERSION, listed)["units"]:
        yield grid.index(vec(int(i) for i in name.split("_")))


def write_list(where: str, grid: ChunkGrid, units: Sequence[int]) -> None:
    """Write the list of the units there are."""
    body = {"units": [grid.name(i) for i in units]}
    objects.write(where, documents.dump(_LIST, _LIST_VERSION, body))


@dataclasses.dataclass(frozen=True, slots=True)
class UnitRecord:
    """The durable record that a unit is written.

    Attributes:
        name: The unit's lattice coordinate, ``I_J_K``.
        box: Its source voxels, in the frame.
        digest: Digest of the list of the objects that hold it.
        stamps: What it was read from, as that was then.
        stored: The objects that hold it.
        missing: Voxels of the source that were not stored and taken as zeros.
    """

    name: str
    box: Box
    digest: str
    stamps: tuple[Stamp, ...]
    stored: tuple[Stored, ...]
    missing: int = 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the objects that hold it."""
        return sum(size for _, _, size, _ in self.stored)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "name": self.name,
            "box": self.box.to_json(),
            "digest": self.digest,
            "stamps": [list(s) for s in self.stamps],
            "stored": [list(s) for s in self.stored],
            "missing": self.missing,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "UnitRecord":
        """The record that ``to_json`` wrote."""
        stamps = tuple((str(name), str(stamp)) for name, stamp in body["stamps"])
        stored = tuple((int(t), str(k), int(n), str(d)) for t, k, n, d in body["stored"])
        box = Box.from_json(body["box"])
        return cls(body["name"], box, body["digest"], stamps, stored, int(body["missing"]))


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a unit.

    Attributes:
        record: Its record.
        skipped: Whether it was found done.
        read_ms: Milliseconds that reading took; 0 where skipped.
        write_ms: Milliseconds that reducing and writing took; 0 where skipped.
        voxels: Voxels written, of all targets.
        raw_bytes: Their bytes before compression.
    """

    record: UnitRecord
    skipped: bool
    read_ms: int = 0
    write_ms: int = 0
    voxels: int = 0
    raw_bytes: int = 0


def open_targets(job: WriteJob) -> tuple[Volume, ...]:
    """Open what a job writes.

    Raises:
        RunError: It is not there or cannot be opened.
    """
    return tuple(open_for_writing(t) for t in job.targets)


def write_unit(job: WriteJob, reader: Reader, volumes: tuple[Volume, ...], index: int) -> Outcome:
    """Bring one unit from the source to its targets, unless its record says that it is there.

    Any number of attempts, also at once, leave the same: the same voxels, then the same record.

    Raises:
        RunError: The source is damaged or changes while it is read, or the store refuses.
    """
    done = current_record(job, reader, index)
    if done is not None:
        return Outcome(done, skipped=True)
    began = time.monotonic()
    box = job.read_box(index)
    within = job.within(box)
    stamps = reader.stamps(within)
    voxels = reader.read(within)
    if reader.stamps(within) != stamps or not _copy_is_true(job, reader, within):
        original = job.source if job.copied is None else job.copied.source
        raise RunError(
            f"{original.url} changed while {box} was read from it; let nothing write to it and "
            "run the same command again"
        )
    read = time.monotonic()
    stored: list[Stored] = []
    written = raw = 0
    for which, (owned, part) in enumerate(parts(job, index, box, voxels)):
        write_box(volumes[which], owned, part)
        stored += [(which, *found) for found in objects_under(volumes[which], owned, part)]
        written += owned.size
        raw += part.nbytes
    record = UnitRecord(
        name=job.grid.name(index),
        box=job.grid.box(index),
        digest=_digest_of(stored),
        stamps=stamps,
        stored=tuple(stored),
        missing=reader.absent,
    )
    body = documents.dump(_RECORD, _RECORD_VERSION, record.to_json())
    objects.write(record_url(job, index), body)
    ended = time.monotonic()
    return Outcome(
        record, False, round(1e3 * (read - began)), round(1e3 * (ended - read)), written, raw
    )


def parts(
    job: WriteJob, index: int, box: Box, voxels: npt.NDArray[Any]
) -> Iterator[tuple[Box, npt.NDArray[Any]]]:
    """What a unit writes to each target: the box it owns there, and its voxels.

    Each level is made of the one before it. A target without a chunk in the unit is left out.
    """
    level, start, before = voxels, box.start, (1, 1, 1)
    for which, factors in enumerate(job.factors):
        step = vec(f // b for f, b in zip(factors, before, strict=True))
        if step != (1, 1, 1):
            if job.method is None:
                raise ValueError("a job with levels needs a method to make them")
            level, start = reduced(level, start, step, job.method)
            before = factors
        owned = job.owned(index, which)
        if owned.size:
            part = level[owned.slices(Box.of(start, vec(level.shape)))]
            where = f"{job.source.url} in {box}"
            yield owned, to_stored(part, job.targets[which].layout.dtype, where)


def _copy_is_true(job: WriteJob, reader: Reader, within: Box) -> bool:
    """Whether the source, where it is a copy, is one of what the original holds now.

    Without that, what changes after it was copied would be recorded as read and never be done.
    """
    first = job.copied
    if first is None:
        return True
    copied = within.translated(first.origin_vx)
    units = first.grid.meeting(copied)
    return all(current_record(first, reader, index) is not None for index in units)


def scaled(box: Box, factors: Vec) -> Box:
    """The finer voxels that a box of coarser ones has."""
    return Box(
        vec(a * f for a, f in zip(box.start, factors, strict=True)),
        vec(b * f for b, f in zip(box.stop, factors, strict=True)),
    )


def current_record(job: WriteJob, reader: Reader, index: int) -> UnitRecord | None:
    """A unit's record if it is still true of the source; None where the unit is to be done."""
    record = read_record(job, index)
    if record is None:
        return None
    within = job.within(job.read_box(index))
    return record if record.stamps == reader.stamps(within) else None


def read_record(job: WriteJob, index: int) -> UnitRecord | None:
    """A unit's record, whatever became of the source since; None where there is none.

    The record of another box, left by a run with units of another shape, is none.

    Raises:
        RunError: It is damaged or of newer software.
    """
    where = record_url(job, index)
    data = objects.read(where)
    if data is None:
        return None
    record = load_record(data, where)
    return record if record.box == job.grid.box(index) else None


def load_record(data: bytes, where: str) -> UnitRecord:
    """The record that a document holds.

    Raises:
        RunError: It is damaged or of newer software.
    """
    return UnitRecord.from_json(documents.load(data, _RECORD, _RECORD_VERSION, where))


def record_url(job: WriteJob, index: int) -> str:
    """Where a unit's record is."""
    return record_where(job.output, job.name, job.grid.name(index))


def record_where(output: str, job: str, unit: str) -> str:
    """Where the record of a job's unit is."""
    return objects.join(output, STATE, job, f"{unit}.json")


def objects_under(
    volume: Volume, box: Box, voxels: npt.NDArray[Any]
) -> Iterator[tuple[str, int, str]]:
    """Key, bytes and digest of each object that holds voxels of a box, as it is stored now.

    A precomputed shard of nothing but zeros is not stored, so there is none.

    Args:
        volume: What was written.
        box: Whole write chunks of it.
        voxels: What was written there.
    """
    store = volume.store.kvstore
    named = keys_of(volume)
    if store is None or named is None:
        raise ValueError(f"the keys of {volume.spec.source} are not known")
    keys = named.under(box)
    sharded = volume.spec.format == "neuroglancer_precomputed" and is_sharded(volume)
    with storage_errors(f"read back what was stored of {box} in {volume.spec.source}"):
        while some := list(itertools.islice(keys, _READS_IN_FLIGHT)):
            reads = [store.read(key) for key in some]
            for key, read in zip(some, reads, strict=True):
                found = read.result()
                held = named.box(key) if sharded and found.state != "value" else None
                if held is not None and not voxels[held.intersection(box).slices(box)].any():
                    continue
                if found.state != "value":
                    raise RunError(
                        f"{key} of {volume.spec.source} was written and is not there; something "
                        "else removes it: let nothing write there and run the same command again"
                    )
                yield key, len(found.value), bytes_digest(found.value)


def bytes_digest(data: bytes) -> str:
    """Hex SHA-256 of stored bytes, the first 16 of its bytes.

    No CRC: chunks that end with one of their own have the same CRC whatever they hold.
    """
    return hashlib.sha256(data).hexdigest()[:32]


def to_stored(voxels: npt.NDArray[Any], dtype: str, where: str) -> npt.NDArray[Any]:
    """The same voxels in a volume's dtype.

    Raises:
        RunError: The dtype does not hold one of them; a negative id is named as such.
    """
    if voxels.dtype.kind == "i" and np.dtype(dtype).kind == "u" and voxels.size:
        lowest = int(voxels.min())
        if lowest < 0:
            raise RunError(
                f"{where} (x, y, z) holds the id {lowest}; ids are never negative: replace it (0 "
                "is background) and run the same command again"
            )
        if voxels.dtype.itemsize == np.dtype(dtype).itemsize:
            return voxels.view(dtype)
    return as_type(voxels, dtype, f"{where} (x, y, z)")


def _digest_of(stored: Sequence[Stored]) -> str:
    """Hex BLAKE2b (16 bytes) of which objects there are, their lengths and digests."""
    lines = "".join(f"{t} {key} {size} {digest}\n" for t, key, size, digest in stored)
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()
