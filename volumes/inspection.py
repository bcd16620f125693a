"""What a volume is, as its own metadata tells, with as little required of it as goes.

``volumes.opening`` resolves a volume for a job and refuses what a job cannot work with: several
levels without a choice, no voxel size, an origin between voxels. Here all of that is told instead.
Nothing but metadata is read; what is stored is counted by listing it.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import tensorstore as ts

from volumes import objects, pinning
from volumes.encodings import checked, encoding
from volumes.errors import RequestError, RunError
from volumes.formats import TS_ERRORS, Directory, open_array, told
from volumes.framing import framed
from volumes.geometry import Vec, Vec3, vec
from volumes.inventory import Inventory, inventory
from volumes.levels import SPATIAL, Level, by_axis
from volumes.naming import Flags, Located, locate
from volumes.spec import Kind, redacted_source

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", "info", "attributes.json")
"""Files by which the formats of volumes are told."""

_NOTHING_STATED = Flags(None, None, None)

_Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """One level of a volume. What is XYZ here was turned from the stored order.

    Attributes:
        path: Where it lies in the volume: a directory, or the key of a precomputed scale.
        axes: Name of each stored dimension, in stored order; x, y, z where none is stated.
        extents: Voxels of each of them.
        stated_axes: Whether the format states the axes.
        voxel_size_nm: Voxel size, XYZ; None where the format states none.
        origin_vx: Frame voxel of the first voxel, XYZ, not rounded; None where none is stated.
        shape: Voxels, XYZ.
        dtype: Name of the stored type.
        chunk: Voxels of what is decoded at once, XYZ; None where the driver tells none.
        shard: Voxels of what is written at once, where that is more than a chunk, XYZ.
        codec: The encoding in a line; empty where not known.
        checked: Whether chunks carry a checksum; None where not known.
        inventory: What is stored.
        version: Version of the OCDBT database in which it lies, and at which it was looked at.
    """

    path: str
    axes: tuple[str, ...]
    extents: tuple[int, ...]
    stated_axes: bool
    voxel_size_nm: Vec3 | None
    origin_vx: Vec3 | None
    shape: Vec
    dtype: str
    chunk: Vec | None
    shard: Vec | None
    codec: str
    checked: bool | None
    inventory: Inventory
    version: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Broken:
    """A level that cannot be looked at.

    Attributes:
        path: Where it lies in the volume.
        error: Why not.
    """

    path: str
    error: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """A volume.

    Attributes:
        name: What the user gave, secrets out.
        url: Its directory, as ``volumes.objects`` takes it; None for a spec.
        format: The format of its levels.
        kind: What the voxels are; None where the volume does not say.
        scales: Its levels, in the order of the format.
        root: The metadata documents of its directory, by file name; ``provenance`` included.
        first: Those of the directory of the first level, where that is another one.
    """

    name: str
    url: str | None
    format: str
    kind: Kind | None
    scales: tuple[Scale | Broken, ...]
    root: dict[str, _Json]
    first: dict[str, _Json]


def is_volume(url: str) -> bool:
    """Whether a directory has a metadata file of a volume; whether it can be read is not asked.

    Raises:
        RunError: The store fails.
    """
    return any(objects.exists(objects.join(url, name)) for name in METADATA)


def inspect(volume: str, named: int = 10) -> Inspected:
    """Look at a volume.

    Args:
        volume: As ``volumes.naming`` takes it.
        named: How many missing chunks of a level to name.

    Raises:
        RequestError: It is no volume, or its metadata cannot be understood.
        RunError: The storage fails.
    """
    name = redacted_source(volume)
    located = locate(volume, name, _NOTHING_STATED)
    url = None if _is_spec(volume) else objects.absolute(objects.redacted(volume))
    first = json.loads(located.levels[0].tensorstore).get("kvstore")
    root = first if url is None else objects.kvstore(url)
    return Inspected(
        name=name,
        url=url,
        format=located.levels[0].format,
        kind=located.levels[0].kind,
        scales=tuple(_scale(level, located, root, named) for level in located.levels),
        root=_documents(root, name),
        first={} if _place(first) == _place(root) else _documents(first, name),
    )


def _is_spec(volume: str) -> bool:
    """Whether a volume is given as a TensorStore spec or URL."""
    path = objects.local_path(volume)
    if path is not None and path.exists():
        return False
    return volume.startswith("@") or volume.lstrip().startswith("{") or "|" in volume


def _place(kvstore: Any) -> Any:
    """A kvstore spec in its canonical form; None where there is none."""
    return None if kvstore is None else ts.KvStore.Spec(kvstore).to_json()


def _documents(kvstore: Any, name: str) -> dict[str, _Json]:
    """The metadata documents of a directory; one that cannot be read is left out."""
    if kvstore is None:
        return {}
    directory = Directory(_place(kvstore), name)
    found = {}
    for file in (*METADATA, "provenance"):
        try:
            document = directory.json(file)
        except RequestError:  # a file of that name that is none of a volume's
            continue
        if document is not None:
            found[file] = document
    return found


def _scale(level: Level, located: Located, root: Any, named: int) -> Scale | Broken:
    """Look at a level."""
    document = json.loads(level.tensorstore)
    path = _path(document, root)
    try:
        version = pinning.newest(document, located.name)
        store = open_array(pinning.pinned(document, version))
        axes = _axes(level, store, located.name)
        size = _stated(level.voxel_size_nm, axes, located.name)
        origin = _stated(level.origin_vx, axes, located.name)
        whole = vec(round(v) if math.isfinite(v) else 0 for v in origin or (0.0, 0.0, 0.0))
        found = framed(store, axes, whole)
        layout = found.chunk_layout
        chunk, shard = (_shape(p.shape) for p in (layout.read_chunk, layout.write_chunk))
        return Scale(
            path=path or _key(store, level.format),
            axes=axes,
            extents=tuple(int(d.size) for d in store.domain),
            stated_axes=level.axes is not None,
            voxel_size_nm=size,
            origin_vx=origin,
            shape=vec(found.shape),
            dtype=store.dtype.name,
            codec=encoding(found, level.format),
            checked=checked(store, level.format),
            inventory=inventory(found, level.format, named),
            version=version,
            chunk=chunk,
            shard=None if shard == chunk else shard,
        )
    except (RequestError, RunError) as e:
        return Broken(path, str(e))
    except TS_ERRORS as e:
        return Broken(path, told(e))


def _axes(level: Level, store: ts.TensorStore, name: str) -> tuple[str, ...]:
    """The axes that the format states, or x, y, z.

    Raises:
        RequestError: They are not those of a volume.
    """
    axes = level.axes or SPATIAL
    if len(axes) != store.rank or any(axes.count(a) != 1 for a in SPATIAL):
        extents = " x ".join(str(d.size) for d in store.domain)
        raise RequestError(
            f"{name} has {store.rank} dimensions ({extents}), taken as {', '.join(axes)}; a volume "
            "has x, y and z, once each: state the axes in its metadata"
        )
    return axes


def _stated(
    values: tuple[float | None, ...] | None, axes: tuple[str, ...], name: str
) -> Vec3 | None:
    """Values by dimension as values of x, y and z; None where one is not stated."""
    if values is None:
        return None
    x, y, z = by_axis(values, axes, name)
    return None if x is None or y is None or z is None else (x, y, z)


def _shape(shape: Sequence[int | None] | None) -> Vec | None:
    """A shape that the driver tells."""
    return None if shape is None or None in shape else vec(shape)


def _path(document: _Json, root: Any) -> str:
    """Where a level lies below the volume's directory."""
    found, place = document.get("kvstore"), _place(root)
    if found is None or place is None:
        return ""
    below, above = _place(found).get("path", ""), place.get("path", "")
    return str(below)[len(above) :].strip("/") if str(below).startswith(above) else ""


def _key(store: ts.TensorStore, form: str) -> str:
    """The key of a precomputed scale."""
    if form != "neuroglancer_precomputed":
        return ""
    return str(store.spec().to_json(include_defaults=True)["scale_metadata"]["key"])
