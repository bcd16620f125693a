"""Before and after the graph of an ingest: what is written once, and the accounting."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipelines.ingest.output import check_output, owned_manifest, write_manifest
from pipelines.ingest.plan import IngestPlan
from volumes import documents, objects, provenance
from volumes.errors import RunError
from volumes.slabs import STATE, SlabJob, current_record, read_record
from volumes.writing import create_volume, remove

_T = TypeVar("_T")

_COMPLETE = "segclr-beam-ingest-complete"
_COMPLETE_VERSION = 1
_COMPLETE_NAME = "complete.json"
_THREADS = 16
_BLOCK = 1024
_NAMED = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """What is left to do.

    Attributes:
        slabs: Slabs of the volume.
        pending: Slabs that are not written, or whose source has changed since.
    """

    slabs: int
    pending: int

    def line(self) -> str:
        """For people."""
        if self.pending == 0:
            return (
                f"nothing to do: all {self.slabs:,} slabs are written and the source is unchanged"
            )
        return f"{self.pending:,} of {self.slabs:,} slabs to do"


def prepare(plan: IngestPlan) -> Prepared:
    """Write what is written once (manifest, the volume's metadata), and look what is left to do.

    It may be repeated, and killed at any moment. A volume that was complete and has slabs to do
    again loses its mark until ``finish``.

    Raises:
        RequestError: The output holds something else; nothing was changed.
        RunError: The store refuses.
    """
    job, identity = plan.job, plan.identity()
    ours = check_output(job.output, job.source.url, identity)
    if not ours:
        write_manifest(job.output, identity)
    manifest = owned_manifest(job.output, identity)
    create_volume(job.output, job.layout, _provenance(manifest))
    pending = _pending(job) if ours else job.grid.size
    if pending:
        remove(objects.join(job.output, STATE), _COMPLETE_NAME)
    return Prepared(job.grid.size, pending)


def finish(plan: IngestPlan) -> dict[str, Any]:
    """Check from storage that every slab has its record, and mark the volume as complete.

    Returns:
        ``output``, ``slabs``, ``voxels`` and ``digest`` (of all slabs' digests, in order), as JSON.

    Raises:
        RunError: Slabs have no record; they are named.
    """
    job = plan.job
    digest = hashlib.blake2b(digest_size=16)
    missing, voxels = [], 0
    for index, record in enumerate(_each(job, lambda i: read_record(job, i))):
        if record is None:
            missing.append(index)
            continue
        voxels += record.box.size
        digest.update(f"{record.name} {record.digest}\n".encode())
    if missing:
        named = ", ".join(f"{job.grid.name(i)} {job.grid.box(i)}" for i in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise RunError(
            f"{len(missing):,} of {job.grid.size:,} slabs of {job.output} are not written: "
            f"{named}{more}; run the same command again, which does only what is missing"
        )
    found = {
        "output": job.output,
        "slabs": job.grid.size,
        "voxels": voxels,
        "digest": digest.hexdigest(),
    }
    body = {**found, "time": provenance.now(), "software": provenance.software()}
    where = objects.join(job.output, STATE, _COMPLETE_NAME)
    objects.create(where, documents.dump(_COMPLETE, _COMPLETE_VERSION, body))
    return found


def _pending(job: SlabJob) -> int:
    """How many slabs have no record that is true of the source."""
    with contextlib.closing(job.source.open()) as reader:
        records = _each(job, lambda i: current_record(job, reader, i))
        return sum(record is None for record in records)


def _each(job: SlabJob, look: Callable[[int], _T]) -> Iterator[_T]:
    """What ``look`` finds of each slab, in order; many at once, few held."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, job.grid.size, _BLOCK):
            yield from pool.map(look, range(start, min(start + _BLOCK, job.grid.size)))


def _provenance(manifest: dict[str, Any]) -> dict[str, Any]:
    """The volume's provenance: a function of the manifest, the same at every attempt."""
    identity = dict(manifest["identity"])
    return {
        "source": identity.pop("source"),
        "time": manifest["time"],
        "version": manifest["software"]["segclr-beam"],
        "parameters": identity,
    }
