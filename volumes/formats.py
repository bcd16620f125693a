"""Tells the formats of volumes apart by their metadata files, and reads what each one states.

==================  ==========================================  ==================================
format              told by                                     voxel size and origin from
==================  ==========================================  ==================================
Zarr 3              ``zarr.json``, an array                     ``dimension_units`` and
                                                                ``voxel_offset``, or as Zarr 2
OME-Zarr 0.5        ``zarr.json``, a group with ``ome``         ``multiscales``
Zarr 2              ``.zarray``                                 ``resolution`` or ``voxel_size``,
                                                                ``offset``, ``units``
OME-Zarr 0.4        ``.zgroup`` or ``.zattrs``                  ``multiscales``
precomputed         ``info``                                    ``resolution``, ``voxel_offset``
N5                  ``attributes.json``                         ``resolution``, ``offset``,
                                                                ``units``; ``pixelResolution``
==================  ==========================================  ==================================

``voxel_offset`` counts voxels, ``offset`` is a length in the unit of ``resolution`` (nm where
``units`` is absent). Metadata is read through the same kvstore as the voxels will be.
"""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable
from typing import Any

import tensorstore as ts

from volumes.context import process_context
from volumes.errors import RequestError
from volumes.levels import Level, floats, named_axes, nm_per, quantity_nm, tidy
from volumes.ome import image_levels
from volumes.redaction import redacted_text
from volumes.spec import FORMATS, Kind, canonical

TS_ERRORS = (ValueError, NotImplementedError, IndexError, TypeError, KeyError, OSError)
"""What TensorStore raises for a spec it refuses or storage that fails."""

_Json = dict[str, Any]

# Names of a directory that tell how its files are named.
_LOOKED_AT = 100


def told(error: Exception) -> str:
    """TensorStore's message without secrets and without the spec it appends."""
    return redacted_text(re.split(r" \[(tensorstore_spec|source locations)=", str(error))[0])


def open_array(document: dict[str, Any]) -> ts.TensorStore:
    """The array, read-only; TensorStore's exceptions pass."""
    context = process_context()
    return ts.open(document, context=context, open=True, read=True, write=False).result()


def opened(document: dict[str, Any], name: str) -> ts.TensorStore:
    """The array, read-only; a failure is the request's."""
    try:
        return open_array(document)
    except TS_ERRORS as e:
        raise RequestError(
            f"{name} cannot be opened: {told(e)}; check the location, its metadata and this "
            "process's credentials"
        ) from e


class Directory:
    """A place that may hold a volume: a kvstore directory and its name in messages.

    Args:
        kvstore: TensorStore kvstore spec whose path ends in ``/`` or is empty.
        name: What the user gave, without secrets.
    """

    def __init__(self, kvstore: _Json, name: str) -> None:
        """Open nothing yet."""
        self.kvstore = kvstore
        self.name = name
        self.denied = ""

    def json(self, key: str) -> _Json | None:
        """The JSON object of a metadata file, or None where the file is absent.

        A store that hides what is absent behind "permission denied" counts as one without the file;
        ``denied`` keeps what it said.

        Raises:
            RequestError: The place cannot be read, or the file is no JSON object.
        """
        try:
            store = ts.KvStore.open(self.kvstore, context=process_context()).result()
            result = store.read(key).result()
        except TS_ERRORS as e:
            if str(e).startswith("PERMISSION_DENIED"):
                self.denied = told(e)
                return None
            raise RequestError(
                f"{self.name}: its {key} cannot be read: {told(e)}; "
                "check the location and this process's credentials"
            ) from e
        if result.state != "value":
            return None
        try:
            document = json.loads(result.value)
        except ValueError as e:
            raise RequestError(f"{self.name}: its {key} is not JSON ({e}); it is damaged") from e
        if not isinstance(document, dict):
            raise RequestError(f"{self.name}: its {key} is no JSON object; it is no volume's")
        return document

    def below(self, path: str) -> "Directory":
        """A directory below this one."""
        return Directory(
            self.kvstore | {"path": self.kvstore.get("path", "") + path.strip("/") + "/"},
            f"{self.name.rstrip('/')}/{path.strip('/')}",
        )

    def parent(self) -> tuple["Directory", str] | None:
        """The directory that holds this one and this one's name in it, or None at the top."""
        head, _, last = self.kvstore.get("path", "").rstrip("/").rpartition("/")
        if not last:
            return None
        path = head + "/" if head or self.kvstore.get("path", "").startswith("/") else ""
        return Directory(self.kvstore | {"path": path}, f"{self.name.rstrip('/')}/.."), last

    def spec(self, driver: str, **members: int) -> str:
        """TensorStore spec of an array in this directory, as canonical text."""
        return canonical({"driver": driver, "kvstore": self.kvstore, **members})


def find_levels(directory: Directory, driver: str | None = None) -> tuple[Level, ...]:
    """The levels of the volume in a directory, finest first as its format lists them.

    Args:
        directory: Where to look.
        driver: TensorStore driver where the user names one; None to tell by what is found.

    Raises:
        RequestError: Nothing recognisable is there, or its metadata cannot be understood.
    """
    looked: list[str] = []
    for name, (described, find) in _FINDERS.items():
        if driver in (None, name):
            found = find(directory)
            if found is not None:
                return found
            looked.append(described)
    if directory.denied:
        raise RequestError(
            f"{directory.name} cannot be read, or is not a volume: {directory.denied}; check the "
            "location and this process's credentials"
        )
    raise RequestError(
        f"{directory.name} is not a volume: looked there for {', '.join(looked)} and found none; "
        "give the directory that holds that file, or make a volume of sections, HDF5, NPY, MRC or "
        "NIfTI with: segclr-beam ingest"
    )


def _zarr3(directory: Directory) -> tuple[Level, ...] | None:
    document = directory.json("zarr.json")
    if document is None:
        return None
    attributes = _object(document.get("attributes"))
    if document.get("node_type") != "array":
        return _group(directory, attributes, "zarr3")
    names = document.get("dimension_names")
    axes = named_axes(names if isinstance(names, list) else None) or _stated_axes(attributes)
    return (_zarr_level(directory, attributes, axes, _rank(document), "zarr3"),)


def _zarr2(directory: Directory) -> tuple[Level, ...] | None:
    array = directory.json(".zarray")
    attributes = directory.json(".zattrs")
    if array is None:
        if attributes is None and directory.json(".zgroup") is None:
            return None
        return _group(directory, attributes or {}, "zarr")
    attributes = attributes or {}
    axes = _stated_axes(attributes)
    return (_zarr_level(directory, attributes, axes, _rank(array), "zarr"),)


def _precomputed(directory: Directory) -> tuple[Level, ...] | None:
    info = directory.json("info")
    if info is None:
        return None
    scales = info.get("scales")
    if not isinstance(scales, list) or not scales or not all(isinstance(x, dict) for x in scales):
        raise RequestError(
            f"{directory.name} is not a volume: its info lists no scales (@type "
            f"{info.get('@type')!r}, so it may be a mesh, skeleton or annotation source); "
            "give the directory of the volume itself"
        )
    for scale in scales:
        _refuse_compressed_names(directory, str(scale.get("key", "")))
    driver = "neuroglancer_precomputed"
    return tuple(
        Level(
            tensorstore=directory.spec(driver, scale_index=index),
            format=FORMATS[driver],
            axes=("x", "y", "z", "channel"),
            voxel_size_nm=floats(scale.get("resolution")),
            origin_vx=floats(scale.get("voxel_offset")),
            kind=_kind(info.get("type")),
        )
        for index, scale in enumerate(scales)
    )


def _refuse_compressed_names(directory: Directory, key: str) -> None:
    """Refuse a scale on a local disk whose chunks have names that TensorStore does not look for.

    CloudVolume compresses whole chunk files and adds the ending; every one would count as missing.
    """
    if directory.kvstore.get("driver") != "file":
        return
    path = os.path.join(directory.kvstore.get("path", ""), key)
    try:
        with os.scandir(path) as found:
            names = [entry.name for entry in itertools.islice(found, _LOOKED_AT)]
    except OSError:
        return
    ended = [n for n in names if n.endswith((".gz", ".br"))]
    if 2 * len(ended) > len(names):
        raise RequestError(
            f"{directory.name} stores chunks as {ended[0]}, compressed as whole files, which are "
            "not read here and would all count as missing; write them without (compress=False in "
            f"CloudVolume), or unpack them in place: gunzip -r {redacted_text(path)}"
        )


def _n5(directory: Directory) -> tuple[Level, ...] | None:
    attributes = directory.json("attributes.json")
    if attributes is None:
        return None
    if "dimensions" not in attributes:
        raise RequestError(
            f"{directory.name} is an N5 group, not an N5 dataset: its attributes.json states no "
            "dimensions; give the dataset in it, such as its s0"
        )
    size, origin = _physical(directory, attributes)
    pixel = _object(attributes.get("pixelResolution"))
    if size is None and "unit" in pixel:
        factor = nm_per(str(pixel["unit"]), directory.name)
        values = floats(pixel.get("dimensions"))
        size = None if values is None else tuple(tidy(v * factor) for v in values)
    if any(f != 1 for f in floats(attributes.get("downsamplingFactors")) or ()):
        # Some writers state the size of the full-resolution voxel there, others that of the level.
        size = origin = None
    axes, kind = _stated_axes(attributes), _own_kind(attributes)
    return (Level(directory.spec("n5"), FORMATS["n5"], axes, size, origin, kind),)


_FINDERS: dict[str, tuple[str, Callable[[Directory], tuple[Level, ...] | None]]] = {
    "zarr3": ("zarr.json (Zarr 3, OME-Zarr 0.5)", _zarr3),
    "zarr": (".zarray or .zgroup (Zarr 2, OME-Zarr 0.4)", _zarr2),
    "neuroglancer_precomputed": ("info (neuroglancer precomputed)", _precomputed),
    "n5": ("attributes.json (N5)", _n5),
}


def _group(directory: Directory, attributes: _Json, driver: str) -> tuple[Level, ...]:
    """The levels of an OME-Zarr group."""
    multiscale = _multiscale(attributes)
    if multiscale is None:
        raise RequestError(
            f"{directory.name} is a Zarr group without OME-Zarr multiscales, so it names no array "
            "to read; give the array in it"
        )
    levels = image_levels(
        multiscale, directory.name, FORMATS[driver], lambda p: directory.below(p).spec(driver)
    )
    kind = _own_kind(attributes)
    return tuple(dataclasses.replace(level, kind=kind) for level in levels)


def _zarr_level(
    directory: Directory,
    attributes: _Json,
    axes: tuple[str, ...] | None,
    rank: int,
    driver: str,
) -> Level:
    """A Zarr array; what it leaves out is taken from the OME-Zarr group that lists it, if any."""
    units = attributes.get("dimension_units")
    size: tuple[float | None, ...] | None = None
    if isinstance(units, list) and len(units) == rank:
        named = axes or (None,) * rank
        size = tuple(
            None if a in ("channel", "time") else quantity_nm(u, directory.name)
            for u, a in zip(units, named, strict=True)
        )
        size = None if all(v is None for v in size) else size
    origin = floats(attributes.get("voxel_offset"))
    if size is None:
        size, offset = _physical(directory, attributes)
        origin = offset if origin is None else origin
    listed = _listed_level(directory, driver) if axes is None or size is None else None
    if listed is not None and listed.axes is not None and len(listed.axes) == rank:
        if axes in (None, listed.axes):
            axes = listed.axes
            size = listed.voxel_size_nm if size is None else size
            origin = listed.origin_vx if origin is None else origin
    kind = _own_kind(attributes)
    return Level(directory.spec(driver), FORMATS[driver], axes, size, origin, kind)


def _listed_level(directory: Directory, driver: str) -> Level | None:
    """The level of the OME-Zarr group one directory up that is this array."""
    above = directory.parent()
    if above is None:
        return None
    group, last = above
    if driver == "zarr":
        multiscale = _multiscale(group.json(".zattrs") or {})
    else:
        multiscale = _multiscale(_object((group.json("zarr.json") or {}).get("attributes")))
    if multiscale is None:
        return None
    try:
        levels = image_levels(
            multiscale, group.name, FORMATS[driver], lambda p: group.below(p).spec(driver)
        )
    except RequestError:  # a group that cannot be understood says nothing about its arrays
        return None
    mine = group.below(last).spec(driver)
    return next((level for level in levels if level.tensorstore == mine), None)


def _multiscale(attributes: _Json) -> _Json | None:
    """The first image that OME-Zarr attributes describe (0.5 under ``ome``, 0.4 at the top)."""
    images = _object(attributes.get("ome", attributes)).get("multiscales")
    if isinstance(images, list) and images and isinstance(images[0], dict):
        return images[0]
    return None


def _physical(
    directory: Directory, attributes: _Json
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Voxel size in nm and origin in voxels from ``resolution``, ``offset`` and ``units``."""
    size = floats(attributes.get("resolution", attributes.get("voxel_size")))
    if size is None:
        return None, None
    units = attributes.get("units", "nm")
    named = units if isinstance(units, list) else [units] * len(size)
    if len(named) != len(size):
        raise RequestError(
            f"{directory.name} states {len(size)} values of resolution and {len(named)} units; "
            "correct its metadata"
        )
    offset = floats(attributes.get("offset"))
    origin = None
    if offset is not None and len(offset) == len(size) and all(size):
        origin = tuple(o / s for o, s in zip(offset, size, strict=True))
    factors = (nm_per(str(u), directory.name) if u else 1.0 for u in named)
    return tuple(tidy(s * f) for s, f in zip(size, factors, strict=True)), origin


def _stated_axes(attributes: _Json) -> tuple[str, ...] | None:
    """Axis names from xarray's or funlib's attribute."""
    for key in ("_ARRAY_DIMENSIONS", "axis_names", "axes"):
        names = attributes.get(key)
        if isinstance(names, list):
            return named_axes(names)
    return None


def _own_kind(attributes: _Json) -> Kind | None:
    """The kind that this package writes into attributes."""
    return _kind(_object(attributes.get("segclr_beam")).get("kind"))


def _kind(value: Any) -> Kind | None:
    """The kind of that name, or None."""
    match value:
        case "image":
            return "image"
        case "segmentation":
            return "segmentation"
        case _:
            return None


def _rank(array: _Json) -> int:
    """Number of dimensions that an array's metadata states."""
    shape = array.get("shape")
    return len(shape) if isinstance(shape, list) else 0


def _object(value: Any) -> _Json:
    """The value where it is a JSON object, an empty one otherwise."""
    return value if isinstance(value, dict) else {}
