"""The report of a view: what it is made of, and how; none of it is run."""

from typing import Any

from pipelines.info.report import Report, facts
from pipelines.text import shape_text
from volumes.errors import RequestError
from volumes.resolving import resolve_volume
from volumes.spec import VolumeSpec, canonical, numbers, redacted_source
from volumes.views.document import view_in
from volumes.views.tree import Chain, Leaf, Node, Plain, leaves, node_in

_SHOWN = 100
_EXACT = 2**53

_Json = dict[str, Any]


def view_report(volume: str) -> Report | None:
    """What a view is; None for what is no view.

    A view that cannot be resolved (a volume of it is gone, it runs functions) is told by its
    document, with the reason.

    Raises:
        RequestError: The document cannot be read.
    """
    document = view_in(volume)
    if document is None:
        return None
    name = redacted_source(volume)
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    body: _Json = {
        "path": name,
        "url": None,
        "format": "view",
        "kind": None,
        "ome": None,
        "scales": [],
        "provenance": None,
        "view": {"document": _with_ids(document), "volumes": []},
        "checks": [],
    }
    try:
        spec = resolve_volume(volume, kind=None)
    except RequestError as e:
        body["checks"] = [str(e)]
        lines = [f"{shown}: a view that cannot be opened", *facts([("notice", [str(e)])])]
        return Report("volume", body, tuple(lines))
    node = node_in(spec)
    body["kind"] = spec.kind
    body["scales"] = [_scale(spec)]
    body["view"]["volumes"] = [_leaf(leaf) for leaf in leaves(node)]
    kind = "an image" if spec.kind == "image" else "a segmentation"
    voxels = f"{spec.dtype}, {shape_text(spec.domain.shape)}, first at {numbers(spec.origin_vx)}"
    lines = [
        f"{shown}: {kind}, a view; it stores nothing and is computed as it is read",
        *facts(
            [
                ("voxels", voxels),
                ("voxel size", f"{numbers(spec.voxel_size_nm)} nm"),
                ("chunk", shape_text(spec.read_chunk)),
                ("made of", _made(node)),
            ]
        ),
    ]
    return Report("volume", body, tuple(lines))


def _with_ids(value: Any) -> Any:
    """JSON in which integers that JSON readers round, which are ids, are decimal strings."""
    if isinstance(value, dict):
        return {k: _with_ids(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_ids(v) for v in value]
    return str(value) if isinstance(value, int) and abs(value) > _EXACT else value


def _made(node: Node) -> list[str]:
    """The volumes of a node, then its steps; those of views inside stand further in."""
    if not isinstance(node, Chain):
        return [_line(node)]
    lines = [line for inner in node.inputs for line in _inner(inner)]
    for number, applied in enumerate(node.steps, 1):
        members = canonical(applied.step.to_json())
        more = "..." if len(members) > _SHOWN else ""
        lines.append(f"{number}. {applied.step.op} {members[:_SHOWN]}{more}")
        lines += [f"   with {line}" for inner in applied.inputs for line in _inner(inner)]
    return lines


def _inner(node: Node) -> list[str]:
    if not isinstance(node, Chain):
        return _made(node)
    return ["a view of", *(f"  {line}" for line in _made(node))]


def _line(leaf: Leaf) -> str:
    """A stored array in a line."""
    if isinstance(leaf, Plain):
        spec = leaf.spec
        return f"{spec.source} ({spec.format}, {spec.dtype}, {shape_text(spec.domain.shape)})"
    extents = " x ".join(f"{a.extent:,} {a.name}" for a in leaf.array.axes)
    return f"{leaf.source} ({leaf.format}, {leaf.array.dtype}, {extents})"


def _leaf(leaf: Leaf) -> _Json:
    """A stored array as JSON."""
    return leaf.to_json()


def _scale(spec: VolumeSpec) -> _Json:
    """What a view comes to, as JSON; of what is stored, there is nothing."""
    return {
        "path": "",
        "voxel_size_nm": list(spec.voxel_size_nm),
        "origin_vx": [float(v) for v in spec.origin_vx],
        "shape": list(spec.domain.shape),
        "dtype": spec.dtype,
        "axes": list(spec.axes),
        "extents": list(spec.domain.shape),
        "axes_stated": True,
        "chunk": list(spec.read_chunk),
        "shard": None,
        "codec": "",
        "checksum": None,
        "database_version": None,
        "stored": None,
    }
