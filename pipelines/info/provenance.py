"""Who made a volume, of what and how: as stored with it by whoever wrote it."""

import json
from collections.abc import Sequence
from typing import Any

from volumes import objects
from volumes.errors import RequestError, RunError
from volumes.inspection import Inspected
from volumes.spec import canonical
from volumes.units import STATE

_JOBS = ("ingest", "convert", "downsample")
_COMPLETE = "-complete.json"
_MANIFEST = "segclr-beam-volume-job"

_Json = dict[str, Any]


def made_by(found: Inspected) -> _Json:
    """What is stored about a volume's making.

    Returns:
        ``source`` (what it was made of) and ``by`` (what made it, when), both texts or None;
        ``attributes``: our own provenance as it stands in the format's metadata, or None;
        ``file``: the ``provenance`` file of a precomputed volume, or None; ``jobs``: a record a job
        that has written to the volume, with ``job``, ``command``, ``time``, ``version``,
        ``complete`` (whether it ended) and ``digest`` (of what it stored).
    """
    attributes, file = _attributes(found), found.root.get("provenance")
    jobs = [] if found.url is None else _jobs(found.url)
    return {
        "source": _source(attributes, file),
        "by": _by(attributes, file),
        "attributes": attributes,
        "file": file,
        "jobs": jobs,
    }


def made_lines(made: _Json) -> list[tuple[str, Sequence[str]]]:
    """The same for people, as facts."""
    rows: list[tuple[str, Sequence[str]]] = []
    if made["source"]:
        rows.append(("source", [made["source"]]))
    if made["by"]:
        rows.append(("made by", [made["by"]]))
    for job in made["jobs"]:
        ended = f"digest {job['digest']}" if job["complete"] else "not complete"
        rows.append((job["job"], [f"{job['time']}, {ended}", str(job["command"])]))
    command = (made["attributes"] or {}).get("command")
    if command and not made["jobs"]:
        rows.append(("command", [str(command)]))
    if made["file"] is not None and not made["attributes"]:
        steps = made["file"].get("processing")
        some = [canonical(s.get("method", s)) for s in steps or () if isinstance(s, dict)]
        rows.append(("processing", some))
    return rows


def _attributes(found: Inspected) -> _Json | None:
    """Our own provenance in the metadata of the volume or of its first level."""
    for documents in (found.root, found.first):
        holders: list[Any] = [
            (documents.get("zarr.json") or {}).get("attributes"),
            documents.get(".zattrs"),
            documents.get("attributes.json"),
        ]
        for holder in holders:
            ours = holder.get("segclr_beam") if isinstance(holder, dict) else None
            if isinstance(ours, dict) and isinstance(ours.get("provenance"), dict):
                return dict(ours["provenance"])
    for step in _processing(found.root.get("provenance")):
        if step.get("by") == "segclr-beam" and isinstance(step.get("method"), dict):
            return dict(step["method"])
    return None


def _processing(file: _Json | None) -> list[_Json]:
    """The steps that a ``provenance`` file lists, the last one first."""
    steps = (file or {}).get("processing")
    return [s for s in reversed(steps) if isinstance(s, dict)] if isinstance(steps, list) else []


def _source(attributes: _Json | None, file: _Json | None) -> str | None:
    """What a volume was made of."""
    if attributes is not None and attributes.get("source"):
        source = attributes["source"]
        return source if isinstance(source, str) else canonical(source)
    sources = (file or {}).get("sources")
    named = [str(s) for s in sources if s] if isinstance(sources, list) else []
    return ", ".join(named) or None


def _by(attributes: _Json | None, file: _Json | None) -> str | None:
    """What made a volume, and when."""
    if attributes is not None:
        version, time = attributes.get("version"), attributes.get("time")
        return f"segclr-beam {version or 'of a version not recorded'}" + (
            f", {time}" if time else ""
        )
    for step in _processing(file):
        said = [str(step[k]) for k in ("by", "date") if step.get(k)]
        return ", ".join(said) or None
    owners = (file or {}).get("owners")
    named = [str(o) for o in owners if o] if isinstance(owners, list) else []
    return ", ".join(named) or None


def _jobs(url: str) -> list[_Json]:
    """The jobs of this package that have written to a volume, by their manifests."""
    state = objects.join(url, STATE)
    try:
        names = [n.removesuffix(".json") for n in objects.names(state) if n.endswith(".json")]
    except RequestError:  # a web server, which gives no list: try the names there may be
        names = list(_JOBS)
    jobs = []
    for name in names:
        manifest = _read(objects.join(state, f"{name}.json"))
        if manifest is None or manifest.get("format") != _MANIFEST:
            continue
        complete = _read(objects.join(state, name + _COMPLETE))
        software = manifest.get("software")
        jobs.append(
            {
                "job": name,
                "command": manifest.get("command"),
                "time": manifest.get("time"),
                "version": software.get("segclr-beam") if isinstance(software, dict) else None,
                "complete": complete is not None,
                "digest": (complete or {}).get("digest"),
            }
        )
    return jobs


def _read(url: str) -> _Json | None:
    """A JSON object; None where there is none, or none that can be read."""
    try:
        data = objects.read(url)
        document = None if data is None else json.loads(data)
    except (RunError, ValueError):  # its damage is for verify to tell
        return None
    return document if isinstance(document, dict) else None
