"""Reports of models and of embedding stores."""

from typing import Any

from pipelines import versions
from pipelines.info.report import Report, facts
from pipelines.text import bytes_text, shape_text
from segclr.checkpoint import inspect_checkpoint
from segclr.errors import ModelError
from segclr.model import ModelSpec, resolve_model
from volumes import objects, store
from volumes.errors import RequestError
from volumes.geometry import vec
from volumes.spec import numbers

_INPUTS = ("image", "segmentation", "agglomeration", "nodes")


def model_report(path: str) -> Report:
    """What a model is.

    Raises:
        RequestError: There is no such model, or it is damaged.
    """
    try:
        spec = resolve_model(path)
        step = None
        if spec.kind == "tf2-public" and spec.path is not None:
            step = inspect_checkpoint(spec.path).step
    except ModelError as e:
        raise RequestError(f"{objects.redacted(path)}: {e}") from e
    size, network = spec.trained_voxel_size_nm, spec.network
    body = {"path": path, "title": spec.title, "step": step, **_without_path(spec)}
    lines = [
        f"{spec.path or path}: a model, {spec.title}",
        *facts(
            [
                ("crops", f"{spec.input_size} x {spec.input_size} x {spec.input_size} voxels"),
                ("embeddings", f"{spec.embedding_width} numbers each"),
                (
                    "network",
                    ""
                    if network is None
                    else f"ResNet-{network.depth}, width {network.width}, bottleneck "
                    f"{', '.join(map(str, network.bottleneck))}",
                ),
                ("weights", bytes_text(spec.weights_bytes)),
                ("step", "" if step is None else f"{step:,}"),
                ("trained at", f"{numbers(size)} nm" if size else "no card tells the voxel size"),
                ("fingerprint", f"{spec.fingerprint} (batches of {spec.batch})"),
            ]
        ),
    ]
    return Report("model", body, tuple(lines))


def _without_path(spec: ModelSpec) -> dict[str, Any]:
    """A model as JSON; its path by another name, since that of the request stands beside it."""
    document = spec.to_json()
    document["file"] = document.pop("path")
    return document


def store_report(path: str) -> Report:
    """What an embedding store is.

    Raises:
        RequestError: It is of newer software.
        RunError: A document is damaged.
    """
    url = objects.absolute(path)
    about = store.read_store(url) or {}
    published = versions.listed(versions.VersionsConfig(url))
    generations = [_generation(url, name) for name in store.generations(url)]
    runs = [n[:-1] for n in objects.names(objects.join(url, "runs")) if n.endswith("/")]
    body = {
        "path": path,
        "name": url.rpartition("/")[2],
        "store": url,
        "width": about.get("width"),
        "lattice": about.get("lattice"),
        "generations": generations,
        "versions": [v.to_json() for v in published],
        "rows": published[-1].rows if published else None,
        "model": published[-1].model if published else None,
        "runs": len(runs),
    }
    latest = generations[-1] if generations else None
    rows = [
        ("embeddings", _rows(published)),
        ("model", _model_line(published, latest)),
        ("lattice", f"boxes of {shape_text(vec(about['lattice']))} voxels"),
        ("width", f"{about['width']} numbers an embedding"),
        ("generations", ", ".join(str(g["name"]) for g in generations)),
        *((what, str(latest["inputs"].get(what) or "")) for what in _INPUTS if latest),
        ("runs", f"{len(runs):,}"),
    ]
    lines = [f"{objects.redacted(path)}: an embedding store", *facts(rows)]
    if published:
        lines += ["", *(f"  {line}" for line in versions.table(published))]
    return Report("store", body, tuple(lines))


def _generation(url: str, name: str) -> dict[str, Any]:
    """A generation as its manifest tells."""
    manifest = store.read_manifest(url, name) or {}
    identity = manifest.get("identity", {})
    return {
        "name": name,
        "made": manifest.get("made"),
        "command": manifest.get("command"),
        "model": _title(manifest.get("model")),
        "inputs": {what: identity.get(what) for what in _INPUTS},
        "identity": identity,
    }


def _title(model: Any) -> str | None:
    """A model in a line, from a manifest's description."""
    if not isinstance(model, dict):
        return None
    try:
        return ModelSpec.from_json(model).title
    except ModelError:  # other software's description
        return None


def _rows(published: list[versions.Published]) -> str:
    if not published:
        return "no version is published yet"
    latest = published[-1]
    undone = latest.failed_boxes + latest.undone_boxes
    left = f", {undone:,} boxes not done" if undone else ""
    return f"{latest.rows:,} in {latest.boxes:,} boxes, version {latest.version}{left}"


def _model_line(published: list[versions.Published], latest: dict[str, Any] | None) -> str:
    if published:
        return published[-1].model
    return str((latest or {}).get("model") or "not recorded")
