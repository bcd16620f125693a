"""From what the user typed to the levels of a volume: the ways a volume can be named.

A local path, a URL (``file://``, ``gs://``, ``s3://``, ``http(s)://``), a TensorStore URL
(``gs://bucket/path/|neuroglancer-precomputed:``) or a TensorStore JSON spec, inline or as
``@file.json``, which may have the further members ``voxel_size_nm``, ``origin_vx`` and ``axes``.
Secrets are taken out before anything is opened. A view, which is JSON as well, is told apart before
(``volumes.views.document``).
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import tensorstore as ts

from volumes import objects
from volumes.errors import RequestError
from volumes.formats import TS_ERRORS, Directory, find_levels, opened, told
from volumes.geometry import Vec, Vec3, vec
from volumes.levels import Level, asked_axes, floats, named_axes, quantity_nm
from volumes.redaction import redacted
from volumes.spec import FORMATS, canonical, numbers

# Members of a JSON spec that make it another array than the one its format states.
_VIEWING = frozenset({"transform", "schema", "scale_metadata", "multiscale_metadata"})
# Members of a JSON spec by which opening could write or trust what it did not read.
_OPEN_MODES = frozenset(
    {"open", "create", "delete_existing", "assume_metadata", "assume_cached_metadata"}
)
# Drivers of single pictures, which have no labels.
_PICTURES = frozenset({"avif", "bmp", "jpeg", "png", "tiff", "webp"})


@dataclasses.dataclass(frozen=True, slots=True)
class Flags:
    """What the user states about a volume besides its place."""

    voxel_size_nm: Vec3 | None
    origin_vx: Vec | None
    axes: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Located:
    """A place, as levels that a format states or as a spec that only TensorStore understands."""

    name: str
    levels: tuple[Level, ...]
    flags: Flags


def locate(volume: str, name: str, flags: Flags) -> Located:
    """Tell the ways of naming a volume apart, and read the metadata."""
    if volume.startswith("@") or volume.lstrip().startswith("{"):
        document = _json_spec(volume, name)
        flags = _with_members(document, flags, name)
        return Located(name, _spec_levels(document, name), flags)
    volume = redacted(volume)
    path = objects.local_path(volume)
    if "|" in volume and not (path is not None and path.exists()):
        return Located(name, _url_levels(volume, name), flags)
    if path is not None:
        _refuse_local(volume, name)
    try:
        kvstore = ts.KvStore.Spec(objects.kvstore(volume)).to_json()
    except RequestError:
        raise
    except TS_ERRORS as e:
        raise RequestError(f"{name} is no location: {told(e)}; correct the URL") from e
    return Located(name, find_levels(Directory(kvstore, name)), flags)


def _refuse_local(volume: str, name: str) -> None:
    """Refuse a local path that is absent or a file."""
    path = objects.local_path(volume)
    if path is None or path.is_dir():
        return
    if path.exists():
        raise RequestError(
            f"{name} is a file, and a volume is a directory (Zarr, N5, precomputed); make a volume "
            "of sections (PNG, JPEG, TIFF), HDF5, NPY, MRC or NIfTI with: "
            "segclr-beam ingest --source"
        )
    raise RequestError(
        f"{name} does not exist; give a path or URL of a volume, or make one with: "
        "segclr-beam ingest"
    )


def _json_spec(volume: str, name: str) -> dict[str, Any]:
    """The JSON spec, inline or in a file, without secrets."""
    text = volume
    if volume.startswith("@"):
        data = objects.read(volume[1:])
        if data is None:
            raise RequestError(
                f"{name}: there is no file {name[1:]}; after @ give a JSON file that holds a "
                "TensorStore spec"
            )
        text = data.decode("utf-8", errors="replace")
    try:
        document = json.loads(text)
    except ValueError as e:
        raise RequestError(f"{name} is not JSON ({e}); a TensorStore spec is a JSON object") from e
    if not isinstance(document, dict) or not isinstance(document.get("driver"), str):
        raise RequestError(
            f"{name} is no TensorStore spec: a JSON object with a driver, such as "
            '{"driver": "zarr3", "kvstore": "file:///data/em.zarr/"}, is needed'
        )
    return dict(redacted(document))


def _with_members(document: dict[str, Any], flags: Flags, name: str) -> Flags:
    """Take our own members out of a JSON spec and put them beside the flags."""
    size = _three(document.pop("voxel_size_nm", None), "voxel_size_nm", name)
    origin = _three(document.pop("origin_vx", None), "origin_vx", name)
    axes = document.pop("axes", None)
    if axes is not None and not isinstance(axes, str):
        axes = ",".join(str(a) for a in axes) if isinstance(axes, list) else str(axes)
    if origin is not None and not all(v.is_integer() for v in origin):
        raise RequestError(f"{name} has origin_vx {numbers(origin)}; whole voxels are needed")
    voxel = None if origin is None else vec(origin)
    named = None if axes is None else asked_axes(axes)
    both = (
        ("voxel_size_nm", size, flags.voxel_size_nm),
        ("origin_vx", voxel, flags.origin_vx),
        ("axes", named, flags.axes),
    )
    for what, member, flag in both:
        if member is not None and flag is not None and tuple(member) != tuple(flag):
            raise RequestError(
                f"{name} has {what} {list(member)} in its JSON and {list(flag)} by flag; "
                "leave one of them out"
            )
    return Flags(size or flags.voxel_size_nm, voxel or flags.origin_vx, named or flags.axes)


def _three(value: Any, what: str, name: str) -> Vec3 | None:
    """Three numbers of a JSON member."""
    if value is None:
        return None
    read = floats(value)
    if read is None or len(read) != 3:
        raise RequestError(f"{name} has {what} {value!r}; three numbers [x, y, z] are needed")
    return (read[0], read[1], read[2])


def _url_levels(volume: str, name: str) -> tuple[Level, ...]:
    """The levels of a TensorStore URL."""
    head, _, rest = volume.partition("|")
    path = objects.local_path(head)
    if path is not None and "://" not in head:
        head = pathlib.Path(os.path.abspath(path)).as_uri()
    try:
        document = dict(ts.Spec(f"{head}|{rest}").to_json() or {})
    except TS_ERRORS as e:
        raise RequestError(
            f"{name} is no TensorStore URL: {told(e)}; one reads file:///data/em/|zarr3: or "
            "gs://bucket/em/|neuroglancer-precomputed:"
        ) from e
    return _spec_levels({k: v for k, v in document.items() if k != "transform"}, name)


def _spec_levels(document: dict[str, Any], name: str) -> tuple[Level, ...]:
    """The levels of a TensorStore spec: those its format states, or the one it describes itself."""
    document = _without_modes(document)
    driver = document["driver"] = "zarr" if document["driver"] == "zarr2" else document["driver"]
    if not (driver == "auto" or driver in FORMATS) or document.keys() & _VIEWING:
        return (_viewed_level(document, name),)
    try:
        place = ts.Spec(document).kvstore
    except TS_ERRORS as e:
        raise RequestError(f"{name} is refused by TensorStore: {told(e)}; correct the spec") from e
    if place is None:
        raise RequestError(f"{name} has no kvstore, so it says nowhere to read from; give one")
    kvstore = place.to_json()
    path = kvstore.get("path", "")
    kvstore["path"] = path + "/" if path and not path.endswith("/") else path
    levels = find_levels(Directory(kvstore, name), None if driver == "auto" else driver)
    index = document.pop("scale_index", None)
    if index is not None:
        if not isinstance(index, int) or not 0 <= index < len(levels):
            raise RequestError(f"{name} has no scale_index {index}: it has {len(levels)} scales")
        levels = (levels[index],)
    rest = {k: v for k, v in document.items() if k not in ("driver", "kvstore", "path")}
    return tuple(
        dataclasses.replace(v, tensorstore=canonical(rest | json.loads(v.tensorstore)))
        for v in levels
    )


def _viewed_level(document: dict[str, Any], name: str) -> Level:
    """The one level of a spec whose meaning is TensorStore's alone."""
    store = opened(document, name)
    axes = named_axes([d.label for d in store.domain])
    if axes is None and document["driver"] in _PICTURES:
        axes = ("y", "x", "channel")
    units = [None if u is None else (u.multiplier, u.base_unit) for u in store.dimension_units]
    sizes = tuple(
        None if a in ("channel", "time") else quantity_nm(u, name)
        for u, a in zip(units, axes or (None,) * store.rank, strict=True)
    )
    start = store.domain.inclusive_min
    return Level(
        tensorstore=canonical(document),
        format="json-spec",
        axes=axes,
        voxel_size_nm=None if all(v is None for v in sizes) else sizes,
        origin_vx=tuple(float(v) for v in start) if any(start) else None,
    )


def _without_modes(value: Any) -> Any:
    """A spec without the members by which opening could write, at any depth."""
    if isinstance(value, dict):
        return {k: _without_modes(v) for k, v in value.items() if k not in _OPEN_MODES}
    return [_without_modes(v) for v in value] if isinstance(value, list) else value
