"""Slabs: the units of work of an ingest, and the records that make them resumable.

A slab is a box of whole shards of the output. Slabs are disjoint and cover the volume, so that no
two workers write one shard. A slab is as wide as the volume and one shard deep, since sections and
most files are stored that way; where that does not fit into the memory budget it is split in y,
then in x, and pieces of the source that meet several slabs are decoded once for each.

A slab's record, ``OUTPUT/segclr-beam/slabs/I_J_K.json``, is written after its shards are committed.
It holds the stamps of the files it was read from, so that a slab is done as long as these last.
"""

import dataclasses
import hashlib
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes import documents, objects
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, ChunkGrid, Vec, vec
from volumes.sources_base import Reader, Source, Stamp, whole_units
from volumes.writing import SHARDS_IN_FLIGHT, VolumeLayout, write_shards

STATE = "segclr-beam"
"""The directory below a volume that holds what this package knows of it."""

_RECORD = "segclr-beam-ingest-slab"
_RECORD_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class SlabJob:
    """All that a worker needs to ingest any slab; small, picklable, opens nothing.

    Attributes:
        source: Where voxels come from.
        output: The volume's directory: an absolute path or a URL.
        layout: What the volume is made like.
        grid: The slabs, in stored voxels.
    """

    source: Source
    output: str
    layout: VolumeLayout
    grid: ChunkGrid


@dataclasses.dataclass(frozen=True, slots=True)
class SlabRecord:
    """The durable record that a slab is written.

    Attributes:
        name: The slab's lattice coordinate, ``I_J_K``.
        box: Its stored voxels.
        digest: Digest of the voxels written, see ``voxels_digest``.
        stamps: The files it was read from, as they were then.
    """

    name: str
    box: Box
    digest: str
    stamps: tuple[Stamp, ...]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "name": self.name,
            "box": self.box.to_json(),
            "digest": self.digest,
            "stamps": [list(s) for s in self.stamps],
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "SlabRecord":
        """The record that ``to_json`` wrote."""
        stamps = tuple((str(name), str(stamp)) for name, stamp in body["stamps"])
        return cls(body["name"], Box.from_json(body["box"]), body["digest"], stamps)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a slab.

    Attributes:
        record: Its record.
        skipped: Whether it was found done.
        read_ms: Milliseconds that reading took; 0 where skipped.
        write_ms: Milliseconds that writing took; 0 where skipped.
    """

    record: SlabRecord
    skipped: bool
    read_ms: int = 0
    write_ms: int = 0


def ingest_slab(job: SlabJob, reader: Reader, store: ts.TensorStore, index: int) -> Outcome:
    """Bring one slab from the source to the volume, unless its record says that it is there.

    Any number of attempts, also at once, leave the same: the same voxels, then the same record.

    Raises:
        RunError: The source is damaged or changes while it is read, or the store refuses.
    """
    done = current_record(job, reader, index)
    if done is not None:
        return Outcome(done, skipped=True)
    box = job.grid.box(index)
    began = time.monotonic()
    stamps = reader.stamps(box)
    voxels = to_stored(reader.read(box), job, box)
    if reader.stamps(box) != stamps:
        raise RunError(
            f"{job.source.url} changed while {box} was read from it; let nothing write to it and "
            "run the same command again"
        )
    read = time.monotonic()
    write_shards(store, box, voxels)
    record = SlabRecord(job.grid.name(index), box, voxels_digest(voxels), stamps)
    body = documents.dump(_RECORD, _RECORD_VERSION, record.to_json())
    objects.write(record_url(job, index), body)
    written = time.monotonic()
    return Outcome(record, False, round(1e3 * (read - began)), round(1e3 * (written - read)))


def current_record(job: SlabJob, reader: Reader, index: int) -> SlabRecord | None:
    """A slab's record if it is still true of the source; None where the slab is to be done."""
    record = read_record(job, index)
    if record is None or record.stamps != reader.stamps(record.box):
        return None
    return record


def read_record(job: SlabJob, index: int) -> SlabRecord | None:
    """A slab's record, whatever became of the source since; None where there is none.

    The record of another box, left by a run with slabs of another shape, is none.

    Raises:
        RunError: It is damaged or of newer software.
    """
    where = record_url(job, index)
    data = objects.read(where)
    if data is None:
        return None
    record = SlabRecord.from_json(documents.load(data, _RECORD, _RECORD_VERSION, where))
    return record if record.box == job.grid.box(index) else None


def record_url(job: SlabJob, index: int) -> str:
    """Where a slab's record is."""
    return objects.join(job.output, STATE, "slabs", f"{job.grid.name(index)}.json")


def voxels_digest(voxels: npt.NDArray[Any]) -> str:
    """Hex BLAKE2b (16 bytes) of voxels ``[x, y, z]``: little endian, x fastest, then y, then z."""
    little = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    return hashlib.blake2b(np.ascontiguousarray(little.T).data, digest_size=16).hexdigest()


def to_stored(voxels: npt.NDArray[Any], job: SlabJob, box: Box) -> npt.NDArray[Any]:
    """The same voxels in the volume's dtype: signed ids are seen as unsigned ones.

    Raises:
        RunError: An id is negative.
    """
    if voxels.dtype.kind == "i":
        lowest = int(voxels.min())
        if lowest < 0:
            raise RunError(
                f"{job.source.url} holds the id {lowest} in {box} (x, y, z); ids are never "
                "negative: replace it (0 is background) and run the same command again"
            )
    return voxels.view(job.layout.dtype)


def slab_shape(layout: VolumeLayout, scratch_bytes: int, budget_bytes: int) -> Vec:
    """The shape of a slab, in whole shards, that keeps a worker within its memory.

    Raises:
        RequestError: Not even one shard fits.
    """
    room = (budget_bytes - fixed_bytes(layout, scratch_bytes)) // layout.itemsize
    if room < math.prod(layout.shard):
        needed = fixed_bytes(layout, scratch_bytes) + layout.shard_bytes
        raise RequestError(
            f"a memory budget of {budget_bytes / 1e6:,.0f} MB does not hold one shard of "
            f"{layout.shard} in work, which takes {needed / 1e6:,.0f} MB "
            f"({scratch_bytes / 1e6:,.0f} of them to decode the source); give --memory-mb "
            f"{math.ceil(needed / 1e6)} or more, or a smaller --shard"
        )
    extent = vec((*layout.shape[:2], min(layout.shape[2], layout.shard[2])))
    return whole_units(extent, layout.shard, room, order=(1, 0))


def fixed_bytes(layout: VolumeLayout, scratch_bytes: int) -> int:
    """Memory a worker takes besides the slab: the source's, and each shard in flight twice.

    A shard is there as a copy and, encoded, once more: at worst in its own size.
    """
    return scratch_bytes + 2 * SHARDS_IN_FLIGHT * layout.shard_bytes


def peak_bytes(layout: VolumeLayout, slab: Vec, scratch_bytes: int) -> int:
    """Memory that a worker takes for its largest slab, besides Python and its libraries."""
    held = math.prod(min(a, b) for a, b in zip(slab, layout.shape, strict=True))
    return fixed_bytes(layout, scratch_bytes) + held * layout.itemsize


def voxels_decoded(shape: Vec, slab: Vec, piece: Vec) -> int:
    """Voxels that are decoded when every slab of a volume is read once.

    A piece of the source that meets k slabs counts k times. Nothing is listed: on each axis the
    pieces and slabs that meet are as many as both together, less the edges they share.
    """
    return math.prod(_decoded_along(n, s, p) for n, s, p in zip(shape, slab, piece, strict=True))


def _decoded_along(extent: int, slab: int, piece: int) -> int:
    slabs, pieces = -(-extent // slab), -(-extent // piece)
    shared = (extent - 1) // math.lcm(slab, piece)
    meetings = slabs + pieces - 1 - shared
    last = (pieces - 1) * piece
    meetings_of_last = slabs - last // slab
    return (meetings - meetings_of_last) * piece + meetings_of_last * (extent - last)
