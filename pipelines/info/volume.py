"""The report of a volume."""

from typing import Any

from pipelines.info.checks import checks, ome_image
from pipelines.info.provenance import made_by, made_lines
from pipelines.info.report import Report, facts, table
from pipelines.text import bytes_text, shape_text
from volumes.geometry import Box
from volumes.inspection import Broken, Inspected, Scale
from volumes.inventory import Inventory, Missing

_HEAD = ("scale", "voxel nm", "shape", "origin", "chunk", "shard", "stored", "bytes", "ratio")
_UM = 1000.0

_Json = dict[str, Any]


def volume_report(found: Inspected) -> Report:
    """What a volume is."""
    image = ome_image(found.root)
    made = made_by(found)
    noticed = checks(found)
    body = {
        "path": found.name,
        "url": found.url,
        "format": found.format,
        "kind": found.kind,
        "ome": None
        if image is None
        else {"version": image[1], "name": image[0].get("name"), "type": image[0].get("type")},
        "scales": [_broken(s) if isinstance(s, Broken) else _scale(s) for s in found.scales],
        "provenance": made,
        "view": None,
        "checks": noticed,
    }
    lines = [f"{found.name}: {_title(found)}", *facts(_common(found))]
    lines += ["", *(f"  {line}" for line in table(_HEAD, _rows(found)))]
    lines += ["", *facts([("missing", _lacking(found) or ["nothing"])])]
    if said := made_lines(made):
        lines += ["", *facts(said)]
    if noticed:
        lines += ["", *facts([("notice", noticed)])]
    return Report("volume", body, tuple(lines))


def _title(found: Inspected) -> str:
    """What it is, in a few words."""
    kind = found.kind or "volume of a kind that is not stated"
    image = ome_image(found.root)
    form = found.format.replace("_", " ")
    if image is not None:
        name = f", {image[0]['name']!r}" if image[0].get("name") else ""
        form = f"OME-Zarr {image[1]} ({form}){name}"
    count = len(found.scales)
    levels = f", {count} scales" if count > 1 else ""
    return f"{'an ' if kind == 'image' else 'a '}{kind}, {form}{levels}"


def _common(found: Inspected) -> list[tuple[str, str | list[str]]]:
    """What all levels share, or what each has where they differ."""
    scales = [s for s in found.scales if isinstance(s, Scale)]
    extents = []
    for scale in scales[:1]:
        if scale.voxel_size_nm is not None:
            lengths = zip(scale.shape, scale.voxel_size_nm, strict=True)
            extents.append(" x ".join(_rounded(n * v / _UM) for n, v in lengths) + " um")
    versions = {s.version for s in scales if s.version is not None}
    return [
        ("voxels", _each(scales, [s.dtype for s in scales])),
        ("axes", _each(scales, [_axes(s) for s in scales])),
        ("extent", extents),
        ("codec", _each(scales, [s.codec for s in scales])),
        ("database", [f"OCDBT, version {v}" for v in sorted(versions)]),
    ]


def _rounded(value: float) -> str:
    """A number of four digits, without an exponent."""
    return f"{float(f'{value:.4g}'):,.10g}"


def _axes(scale: Scale) -> str:
    """The axes as they are stored, and what is not in x, y, z."""
    others = zip(scale.axes, scale.extents, strict=True)
    more = [f"{n} {a}" for a, n in others if a not in "xyz" and n != 1]
    named = f"{', '.join(scale.axes)} as stored; lengths below are x, y, z"
    return named + (f", without {' and '.join(more)}" if more else "")


def _each(scales: list[Scale], values: list[str]) -> list[str]:
    """The value that all levels have, or a line a value with the levels that have it."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return distinct
    pairs = list(zip(scales, values, strict=True))
    return [f"{', '.join(s.path for s, v in pairs if v == value)}: {value}" for value in distinct]


def _rows(found: Inspected) -> list[tuple[str, ...]]:
    """A row a level."""
    rows = []
    for scale in found.scales:
        if isinstance(scale, Broken):
            rows.append((scale.path or "-", "cannot be opened", *[""] * (len(_HEAD) - 2)))
            continue
        size, origin, stored = scale.voxel_size_nm, scale.origin_vx, scale.inventory
        rows.append(
            (
                scale.path,
                "not stated" if size is None else " x ".join(f"{v:.6g}" for v in size),
                shape_text(scale.shape),
                "not stated" if origin is None else ", ".join(f"{v:.12g}" for v in origin),
                "" if scale.chunk is None else shape_text(scale.chunk),
                "" if scale.shard is None else _shard(scale),
                _stored(stored, scale.shard is not None),
                "unknown" if stored.stored_bytes is None else bytes_text(stored.stored_bytes),
                _ratio(stored),
            )
        )
    return rows


def _shard(scale: Scale) -> str:
    """The shard's shape; none where chunks are spread over shards by a hash."""
    hashed = scale.inventory.expected is None or "murmurhash" in scale.codec
    return "hashed" if hashed or scale.shard is None else shape_text(scale.shard)


def _stored(stored: Inventory, sharded: bool) -> str:
    """How much is stored of how much."""
    what = "shards" if sharded else "chunks"
    expected = f"up to {stored.at_most:,}" if stored.expected is None else f"{stored.expected:,}"
    if stored.stored is None:
        return f"unknown of {expected} {what}" if stored.at_most else "unknown"
    said = f"{stored.stored:,} of {expected} {what}"
    inside = stored.inside
    if inside is None:
        return said
    found = "uncounted" if inside.stored is None else f"{inside.stored:,}"
    return f"{said}, {found} of {inside.chunks:,} chunks"


def _ratio(stored: Inventory) -> str:
    """Compression; at most that much where shards were taken as full."""
    if stored.ratio is None:
        return ""
    full = stored.inside is None or stored.inside.stored is not None
    return f"{'' if full else 'up to '}{stored.ratio:,.3g}x"


def _lacking(found: Inspected) -> list[str]:
    """What is missing, by level and box."""
    lines = []
    for scale in found.scales:
        if isinstance(scale, Broken):
            continue
        stored, of = scale.inventory, f"{scale.path}: " if scale.path else ""
        what = "chunks" if scale.shard is None else "shards"
        if stored.unknown:
            lines.append(f"{of}unknown: {stored.unknown}")
            continue
        if stored.absent is None:
            lines.append(f"{of}{what} of hashed names are counted up to 1,000,000 chunks alone")
        if stored.absent:
            named = [_missing(m) for m in stored.missing]
            lines.append(f"{of}{_some(stored.absent, what, named)}")
        inside = stored.inside
        if inside is not None and inside.absent:
            boxes = [str(b) for b in inside.missing]
            lines.append(f"{of}{_some(inside.absent, 'chunks in stored shards', boxes)}")
        elif inside is not None and inside.unknown:
            lines.append(f"{of}chunks in shards {inside.unknown}")
    return lines


def _some(count: int, what: str, named: list[str]) -> str:
    """A count, and the first ones by name."""
    what = what.replace("chunks", "chunk", 1).replace("shards", "shard", 1) if count == 1 else what
    more = ", ..." if len(named) < count else ""
    return f"{count:,} {what}" + (f": {', '.join(named)}{more}" if named else "")


def _missing(missing: Missing) -> str:
    return missing.key if missing.box is None else str(missing.box)


def _broken(scale: Broken) -> _Json:
    """A level that cannot be looked at, as JSON."""
    return {"path": scale.path, "error": scale.error}


def _scale(scale: Scale) -> _Json:
    """A level as JSON."""
    return {
        "path": scale.path,
        "voxel_size_nm": _list(scale.voxel_size_nm),
        "origin_vx": _list(scale.origin_vx),
        "shape": list(scale.shape),
        "dtype": scale.dtype,
        "axes": list(scale.axes),
        "extents": list(scale.extents),
        "axes_stated": scale.stated_axes,
        "chunk": _list(scale.chunk),
        "shard": _list(scale.shard),
        "codec": scale.codec,
        "checksum": scale.checked,
        "database_version": scale.version,
        "stored": _inventory(scale.inventory),
    }


def _inventory(stored: Inventory) -> _Json:
    """What is stored, as JSON: ``objects`` are chunks, or shards where sharded."""
    inside = stored.inside
    return {
        "objects": stored.expected,
        "objects_at_most": stored.at_most,
        "objects_stored": stored.stored,
        "objects_missing": stored.absent,
        "missing": [{"key": m.key, "box": _box(m.box)} for m in stored.missing],
        "chunks": stored.expected if inside is None else inside.chunks,
        "chunks_stored": stored.stored if inside is None else inside.stored,
        "chunks_missing_in_shards": None if inside is None else inside.absent,
        "missing_in_shards": [] if inside is None else [b.to_json() for b in inside.missing],
        "shards_damaged": 0 if inside is None else inside.damaged,
        "bytes": stored.stored_bytes,
        "decoded_bytes": stored.decoded_bytes,
        "compression": stored.ratio,
        "strays": stored.strays,
        "unknown": stored.unknown or ("" if inside is None else inside.unknown),
    }


def _box(box: Box | None) -> _Json | None:
    return None if box is None else box.to_json()


def _list(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)
