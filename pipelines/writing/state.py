"""Before and after the graph of a job that writes volumes: what is written once, the accounting."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipelines.writing.output import check_output, keep_stages, owned_manifest, write_manifest
from pipelines.writing.plan import WritePlan
from volumes import documents, objects, provenance, removal
from volumes.errors import RunError
from volumes.units import STATE, WriteJob, current_record, read_record, write_list
from volumes.writing import create_levels

_T = TypeVar("_T")

_COMPLETE = "segclr-beam-volume-complete"
_COMPLETE_VERSION = 1
_THREADS = 16
_BLOCK = 1024
_NAMED = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """What is left to do.

    Attributes:
        units: Units of all passes.
        pending: Units that are not written, or whose source has changed since.
    """

    units: int
    pending: int

    def line(self) -> str:
        """For people."""
        if self.pending == 0:
            return (
                f"nothing to do: all {self.units:,} units are written and the source is unchanged"
            )
        return f"{self.pending:,} of {self.units:,} units to do"


def prepare(plan: WritePlan, command: str) -> Prepared:
    """Write what is written once (manifest, the volumes' metadata), and look what is left to do.

    It may be repeated, and killed at any moment. A volume that was complete and has units to do
    again loses its mark until ``finish``.

    Args:
        plan: What will run.
        command: The command line without secrets, for the record.

    Raises:
        RequestError: The output holds something else; nothing was changed.
        RunError: The store refuses.
    """
    ours = check_output(plan)
    if not ours:
        write_manifest(plan, command)
    manifest = owned_manifest(plan)
    keep_stages(plan, manifest)
    for stage in plan.stages:
        if stage.occupied is not None and stage.job.listed is not None:
            write_list(stage.job.listed, stage.job.grid, stage.occupied)
    if ours and is_complete(plan) and _pending(plan.last) == 0:
        return Prepared(plan.stages[-1].units, 0)
    known = _provenance(manifest)
    for levels in plan.volumes:
        create_levels(levels, known, name=plan.output.rpartition("/")[2], method=plan.method)
    pending = sum(_pending(s.job) if ours else s.units for s in plan.stages)
    if pending:
        removal.remove(objects.join(plan.output, STATE, _complete_name(plan)))
    return Prepared(sum(s.units for s in plan.stages), pending)


def finish(plan: WritePlan) -> dict[str, Any]:
    """Check from storage that every unit has its record, and mark the volume as complete.

    What was kept for the time of the work alone is removed.

    Returns:
        ``output``, ``units``, ``voxels``, ``bytes_raw``, ``bytes_stored``, ``voxels_missing`` and
        ``digest`` (of the units' digests, in order), as JSON.

    Raises:
        RunError: Units have no record; they are named.
    """
    found: dict[str, Any] = {}
    for stage in plan.stages:
        if stage.job.output == plan.output:  # a passing copy is as good as what was made of it
            found = _accounted(stage.job)
    body = {**found, "time": provenance.now(), "software": provenance.software()}
    where = objects.join(plan.output, STATE, _complete_name(plan))
    objects.create(where, documents.dump(_COMPLETE, _COMPLETE_VERSION, body))
    if plan.temporary is not None:
        for name in objects.names(plan.temporary):  # no record may outlive what it tells of
            removal.remove_tree(objects.join(plan.temporary, name, STATE))
        removal.remove_tree(plan.temporary)
    return {"output": plan.output, **found}


def units_done(plan: WritePlan) -> int:
    """How many units of all passes have a record, by listing."""
    jobs = [s.job for s in plan.stages]
    return sum(len(objects.names(objects.join(j.output, STATE, j.name))) for j in jobs)


def is_complete(plan: WritePlan) -> bool:
    """Whether the output has this job's mark."""
    return objects.exists(objects.join(plan.output, STATE, _complete_name(plan)))


def _accounted(job: WriteJob) -> dict[str, Any]:
    """The sums over a job's records.

    Raises:
        RunError: Units have no record.
    """
    digest = hashlib.blake2b(digest_size=16)
    missing: list[int] = []
    sums = {"units": 0, "bytes_stored": 0, "voxels_missing": 0}
    for index, record in _each(job, lambda i: read_record(job, i)):
        if record is None:
            missing.append(index)
            continue
        sums["units"] += 1
        sums["bytes_stored"] += record.stored_bytes
        sums["voxels_missing"] += record.missing
        digest.update(f"{record.name} {record.digest}\n".encode())
    if missing:
        named = ", ".join(f"{job.grid.name(i)} {job.grid.box(i)}" for i in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise RunError(
            f"{len(missing):,} of {job.count():,} units of {job.output} are not written: "
            f"{named}{more}; run the same command again, which does only what is missing"
        )
    layouts = [t.layout for t in job.targets]
    voxels = sum(layout.domain.size for layout in layouts)
    raw = sum(layout.domain.size * layout.itemsize for layout in layouts)
    return {**sums, "voxels": voxels, "bytes_raw": raw, "digest": digest.hexdigest()}


def _pending(job: WriteJob) -> int:
    """How many units have no record that is true of the source."""
    with contextlib.closing(job.source.open()) as reader:
        records = _each(job, lambda i: current_record(job, reader, i))
        return sum(record is None for _, record in records)


def _each(job: WriteJob, look: Callable[[int], _T]) -> Iterator[tuple[int, _T]]:
    """What ``look`` finds of each unit, in order; many at once, few held."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        block: list[int] = []
        for index in job.units():
            block.append(index)
            if len(block) == _BLOCK:
                yield from zip(block, pool.map(look, block), strict=True)
                block = []
        yield from zip(block, pool.map(look, block), strict=True)


def _complete_name(plan: WritePlan) -> str:
    return f"{plan.job}-complete.json"


def _provenance(manifest: dict[str, Any]) -> dict[str, Any]:
    """The volume's provenance: a function of the manifest, the same at every attempt."""
    identity = dict(manifest["identity"])
    return {
        "source": identity.pop("source"),
        "time": manifest["time"],
        "version": manifest["software"]["segclr-beam"],
        "software": manifest["software"],
        "command": manifest["command"],
        "parameters": identity,
    }
