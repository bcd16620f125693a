"""The output of an ingest: what may lie there, and the manifest that says what it is."""

import json
from typing import Any

from volumes import documents, objects, provenance
from volumes.errors import RequestError, RunError
from volumes.slabs import STATE

_MANIFEST = "segclr-beam-ingest"
_MANIFEST_VERSION = 1
_NAMED = 3


def check_output(output: str, source: str, identity: dict[str, Any]) -> bool:
    """Refuse an output that this ingest may not write to; changes nothing.

    Args:
        output: The volume's directory: an absolute path or a URL.
        source: Where the source is.
        identity: What makes this ingest this one.

    Returns:
        Whether the output is this ingest's already.

    Raises:
        RequestError: It is the source or a file, holds something else, or is another ingest's.
    """
    path = objects.local_path(output)
    if output == source:
        raise RequestError(f"--output {output} is the source; give another directory")
    if path is not None and path.exists() and not path.is_dir():
        raise RequestError(f"--output {output} is a file; a volume is a directory: give another")
    manifest = read_manifest(output)
    if manifest is None:
        _refuse_foreign(output)
        return False
    _refuse_other(output, manifest["identity"], identity)
    return True


def read_manifest(output: str) -> dict[str, Any] | None:
    """The manifest of an output; None where there is none.

    Raises:
        RunError: It is damaged or of newer software.
    """
    where = _manifest_url(output)
    data = objects.read(where)
    return None if data is None else documents.load(data, _MANIFEST, _MANIFEST_VERSION, where)


def write_manifest(output: str, identity: dict[str, Any]) -> bool:
    """Write the manifest unless there is one; returns whether it was written.

    Raises:
        RunError: The store refuses.
    """
    body = {
        "identity": identity,
        "time": provenance.now(),
        "software": provenance.software(),
    }
    return objects.create(_manifest_url(output), documents.dump(_MANIFEST, _MANIFEST_VERSION, body))


def owned_manifest(output: str, identity: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an output, which must be this ingest's.

    Raises:
        RequestError: It is another ingest's, which was quicker.
        RunError: It is gone.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise RunError(f"{_manifest_url(output)} was removed while it was needed; start again")
    _refuse_other(output, manifest["identity"], identity)
    return manifest


def _manifest_url(output: str) -> str:
    return objects.join(output, STATE, "ingest.json")


def _refuse_foreign(output: str) -> None:
    """Refuse a directory with anything in it but what a killed ``write_manifest`` leaves."""
    found = [n for n in objects.names(output) if n != f"{STATE}/"]
    found += [
        f"{STATE}/{n}"
        for n in objects.names(objects.join(output, STATE))
        if not (n.startswith(".ingest.json.") and n.endswith(".tmp"))
    ]
    if found:
        more = ", ..." if len(found) > _NAMED else ""
        raise RequestError(
            f"--output {output} is not empty and no ingest of this package (it holds "
            f"{', '.join(found[:_NAMED])}{more}); writing there would mix two things: give an "
            "empty or a new directory"
        )


def _refuse_other(output: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse an output of another identity, naming each field that differs."""
    # Through JSON, as the one there has been.
    asked = json.loads(json.dumps(asked))
    fields = [k for k in {**asked, **there} if there.get(k) != asked.get(k)]
    if fields:
        differ = "; ".join(f"{k}: {there.get(k)} there, {asked.get(k)} asked" for k in fields)
        raise RequestError(
            f"--output {output} was made by another ingest ({differ}); voxels of both would mix: "
            "give the same values, or another directory"
        )
