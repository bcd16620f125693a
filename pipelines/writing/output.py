"""The output of a job that writes a volume: what may lie there, and what says whose it is."""

import json
from typing import Any

from pipelines.writing.plan import Stage, WritePlan
from volumes import documents, objects, provenance
from volumes.checks import CheckJob
from volumes.errors import RequestError, RunError
from volumes.units import STATE

_MANIFEST = "segclr-beam-volume-job"
_MANIFEST_VERSION = 1
_JOBS = ("ingest.json", "convert.json", "downsample.json")
_NAMED = 3


def check_output(plan: WritePlan) -> bool:
    """Refuse an output that this job may not write to; changes nothing.

    Returns:
        Whether the output is this job's already.

    Raises:
        RequestError: It is the source or a file, holds something else, or is another job's.
    """
    output = plan.output
    path = objects.local_path(output)
    if plan.fresh and output == plan.source:
        raise RequestError(f"--output {output} is the source; give another directory")
    if plan.fresh and plan.job != "ingest" and output.startswith(f"{_directory(plan.source)}/"):
        raise RequestError(
            f"--output {output} lies inside the input {plan.source}; a volume's directory holds "
            "that volume alone: give a directory elsewhere"
        )
    if path is not None and path.exists() and not path.is_dir():
        raise RequestError(f"--output {output} is a file; a volume is a directory: give another")
    manifest = read_manifest(output, plan.job)
    if manifest is None:
        if plan.fresh:
            _refuse_foreign(output, plan.job)
        return False
    _refuse_other(plan, manifest["identity"])
    return True


def _directory(source: str) -> str:
    """The directory of a volume that is named by one; of a JSON spec, none that there is."""
    return source if source.lstrip().startswith("{") else objects.absolute(source)


def read_manifest(output: str, job: str) -> dict[str, Any] | None:
    """The manifest of a job in an output; None where there is none.

    Raises:
        RunError: It is damaged or of newer software.
    """
    where = manifest_url(output, job)
    data = objects.read(where)
    return None if data is None else documents.load(data, _MANIFEST, _MANIFEST_VERSION, where)


def kept_budget(output: str, job: str, budget_bytes: int) -> int:
    """The memory that units are to be chosen for: what the run chose them for that began.

    Others would be other units, and each be done again.

    Args:
        output: The volume.
        job: What is to be done again.
        budget_bytes: What is allowed now, which counts where the units there take more.

    Raises:
        RunError: The manifest there is damaged or of newer software.
    """
    manifest = read_manifest(output, job)
    if manifest is None or "chosen_for_bytes" not in manifest:
        return budget_bytes
    taken = max(int(stage["peak_bytes"]) for stage in manifest["stages"])
    return int(manifest["chosen_for_bytes"]) if taken <= budget_bytes else budget_bytes


def write_manifest(plan: WritePlan, command: str) -> bool:
    """Write the manifest unless there is one; returns whether it was written.

    Raises:
        RunError: The store refuses.
    """
    body = {
        "job": plan.job,
        "identity": plan.identity(),
        "stages": _stages(plan),
        "chosen_for_bytes": plan.chosen_for_bytes,
        "source": plan.stages[0].job.source.to_json(),
        "command": command,
        "time": provenance.now(),
        "software": provenance.software(),
    }
    document = documents.dump(_MANIFEST, _MANIFEST_VERSION, body)
    return objects.create(manifest_url(plan.output, plan.job), document)


def keep_stages(plan: WritePlan, manifest: dict[str, Any]) -> None:
    """Bring the units in this job's manifest up to date, which another memory makes others.

    Without that a check would look for the units of the run that began.

    Args:
        plan: What will run.
        manifest: The output's, which is this job's.

    Raises:
        RunError: The store refuses.
    """
    stages = json.loads(json.dumps(_stages(plan)))
    checked = [[s["check"] for s in found if s["kept"]] for found in (manifest["stages"], stages)]
    if checked[0] != checked[1]:
        changed = {"stages": stages, "chosen_for_bytes": plan.chosen_for_bytes}
        document = documents.dump(_MANIFEST, _MANIFEST_VERSION, manifest | changed)
        objects.write(manifest_url(plan.output, plan.job), document)


def owned_manifest(plan: WritePlan) -> dict[str, Any]:
    """The manifest of an output, which must be this job's.

    Raises:
        RequestError: It is another one's, which was quicker.
        RunError: It is gone.
    """
    manifest = read_manifest(plan.output, plan.job)
    if manifest is None:
        where = manifest_url(plan.output, plan.job)
        raise RunError(f"{where} was removed while it was needed; start again")
    _refuse_other(plan, manifest["identity"])
    return manifest


def written_by(output: str) -> list[dict[str, Any]]:
    """The manifests of all jobs that wrote to an output, by name.

    Raises:
        RunError: One is damaged or of newer software.
    """
    names = [n for n in objects.names(objects.join(output, STATE)) if n in _JOBS]
    found = (read_manifest(output, n.removesuffix(".json")) for n in sorted(names))
    return [manifest for manifest in found if manifest is not None]


def manifest_url(output: str, job: str) -> str:
    """Where the manifest of a job is."""
    return objects.join(output, STATE, f"{job}.json")


def _stages(plan: WritePlan) -> list[dict[str, Any]]:
    """The stages for the manifest."""
    return [_stage(plan, s) for s in plan.stages]


def _stage(plan: WritePlan, stage: Stage) -> dict[str, Any]:
    """A stage for the manifest, with what a check of it needs; a passing copy is not kept."""
    kept = stage.job.output == plan.output
    return stage.to_json() | {"check": CheckJob.of(stage.job).to_json(), "kept": kept}


def _refuse_foreign(output: str, job: str) -> None:
    """Refuse a directory with anything in it but what a killed ``write_manifest`` leaves."""
    found = [n for n in objects.names(output) if n != f"{STATE}/"]
    found += [
        f"{STATE}/{n}"
        for n in objects.names(objects.join(output, STATE))
        if not (n.startswith(f".{job}.json.") and n.endswith(".tmp"))
    ]
    if found:
        more = ", ..." if len(found) > _NAMED else ""
        raise RequestError(
            f"--output {output} is not empty and no {job} of this package (it holds "
            f"{', '.join(found[:_NAMED])}{more}); writing there would mix two things: give an "
            "empty or a new directory"
        )


def _refuse_other(plan: WritePlan, there: dict[str, Any]) -> None:
    """Refuse an output of another identity, naming each field that differs."""
    # Through JSON, as the one there has been.
    asked = json.loads(json.dumps(plan.identity()))
    fields = [k for k in {**asked, **there} if there.get(k) != asked.get(k)]
    if fields:
        differ = "; ".join(f"{k}: {there.get(k)} there, {asked.get(k)} asked" for k in fields)
        raise RequestError(
            f"--output {plan.output} was made by another {plan.job} ({differ}); voxels of both "
            "would mix: give the same values, or another directory"
        )
