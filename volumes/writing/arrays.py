"""Arrays that this package writes: created once, then opened by workers and written in boxes.

Metadata are written once, by ``create_levels``; workers only open. Zeros are stored like any other
voxels, so that a chunk that is absent was lost or never written. (TensorStore does not do that in
precomputed shards: there the record of the work tells.)
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import tensorstore as ts

from volumes import objects
from volumes.context import process_context
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, vec
from volumes.opening import Volume, framed
from volumes.spec import FORMATS, VolumeSpec, canonical
from volumes.writing.codecs import Codec, codec_in
from volumes.writing.errors import storage_errors
from volumes.writing.layout import VolumeLayout
from volumes.writing.morton import shard_in_volume
from volumes.writing.n5 import n5_metadata
from volumes.writing.ome import begins_with, group_metadata, with_levels
from volumes.writing.precomputed import multiscale_metadata, provenance_file, scale_metadata
from volumes.writing.zarr import zarr2_attributes, zarr2_metadata, zarr3_metadata

_Json = dict[str, Any]

_DRIVERS = {
    "zarr2": "zarr",
    "zarr3": "zarr3",
    "ome-zarr": "zarr3",
    "n5": "n5",
    "precomputed": "neuroglancer_precomputed",
}
_WHOLE = {"store_data_equal_to_fill_value": True}
MULTISCALE = ("ome-zarr", "precomputed")
"""The formats that hold several levels."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """An array that a job writes: a level of a volume.

    Attributes:
        url: The volume's directory: an absolute path or a URL.
        layout: What the array is made like.
        level: Which level of the volume it is; 0 is the finest.
    """

    url: str
    layout: VolumeLayout
    level: int = 0

    def __post_init__(self) -> None:
        """Refuse a level that the format has no place for."""
        if self.level and self.layout.format not in MULTISCALE:
            raise RequestError(
                f"{objects.redacted(self.url)} is {self.layout.format}, which holds one level; "
                f"several need --format {' or '.join(MULTISCALE)}"
            )

    @property
    def array_url(self) -> str:
        """The array's own directory, which in precomputed is the volume's."""
        if self.layout.format == "ome-zarr":
            return objects.join(self.url, str(self.level))
        return self.url

    def spec(self) -> VolumeSpec:
        """The array as a volume to be read; made from the layout, nothing is opened."""
        layout = self.layout
        driver = _DRIVERS[layout.format]
        document: _Json = {"driver": driver, "kvstore": objects.kvstore(self.array_url)}
        axes, write_chunk = layout.axes, layout.write_chunk
        if layout.format == "precomputed":
            document["scale_index"] = self.level
            axes = (*axes, "channel")
            write_chunk = shard_in_volume(layout.shape, layout.chunk, write_chunk)
        return VolumeSpec(
            source=self.array_url,
            tensorstore=canonical(document),
            axes=axes,
            voxel_size_nm=layout.voxel_size_nm,
            origin_vx=layout.origin_vx,
            kind=layout.kind,
            dtype=layout.dtype,
            domain=layout.domain,
            read_chunk=layout.chunk,
            write_chunk=write_chunk,
            format=FORMATS[driver],
        )


def create_levels(
    targets: Sequence[Target], provenance: _Json, *, name: str = "", method: str | None = None
) -> None:
    """Write the metadata of a volume's levels; where exactly these are there, nothing is changed.

    Args:
        targets: The levels, finest first. Where the first is not level 0, they are added to a
            volume that is there.
        provenance: JSON, for the attributes: ``source``, ``time``, ``version``, ``parameters``.
        name: Name of the image, where the format states one.
        method: How levels are made of one another.

    Raises:
        RunError: The store refuses, or holds a volume with other metadata.
    """
    first = targets[0]
    for target in targets:
        with storage_errors(f"create the volume {target.array_url}"):
            ts.open(
                array_spec(target.layout, objects.kvstore(target.array_url), provenance),
                open=True,
                create=True,
                context=process_context(),
            ).result()
    if first.layout.format == "zarr2":
        _keep(first.url, ".zattrs", zarr2_attributes(first.layout, provenance))
    if first.layout.format == "precomputed" and not first.level:
        _keep(first.url, "provenance", provenance_file(provenance))
    if first.layout.format == "ome-zarr":
        _keep_group(targets, name, method, provenance)


def open_for_writing(target: Target) -> Volume:
    """Open an array that ``create_levels`` made, for writing; its voxels are those of the frame.

    Raises:
        RunError: It is not there, is no such array, or cannot be opened.
    """
    with storage_errors(f"open the volume {target.array_url}"):
        stored = ts.open(_writing(target), open=True, context=process_context()).result()
        spec = target.spec()
        store = framed(stored, spec.axes, spec.origin_vx)
    found = Box(vec(store.domain.inclusive_min), vec(store.domain.exclusive_max))
    if found != spec.domain or stored.dtype.name != spec.dtype:
        raise RunError(
            f"{target.array_url} is {stored.dtype.name} over {found}, and {spec.dtype} over "
            f"{spec.domain} was planned; something else has replaced it: give another --output"
        )
    return Volume(spec, store)


def array_spec(layout: VolumeLayout, kvstore: _Json, provenance: _Json | None = None) -> _Json:
    """The TensorStore spec by which an array of a layout is created in a directory."""
    document = {"driver": _DRIVERS[layout.format], "kvstore": kvstore} | _WHOLE
    if layout.format == "precomputed":
        document["scale_metadata"] = scale_metadata(layout)
    return document | _metadata(layout, provenance or {})


def _writing(target: Target) -> _Json:
    """The spec by which an array is written."""
    document: _Json = {
        "driver": _DRIVERS[target.layout.format],
        "kvstore": objects.kvstore(target.array_url),
    } | _WHOLE
    if target.layout.format == "precomputed":
        document["scale_metadata"] = scale_metadata(target.layout)
    return document


def _metadata(layout: VolumeLayout, provenance: _Json) -> _Json:
    """The members by which an array is created."""
    match layout.format:
        case "zarr3" | "ome-zarr":
            return {"metadata": zarr3_metadata(layout, provenance)}
        case "zarr2":
            return {"metadata": zarr2_metadata(layout)}
        case "n5":
            return {"metadata": n5_metadata(layout, provenance)}
        case _:
            return {"multiscale_metadata": multiscale_metadata(layout)}


def is_group(url: str) -> bool:
    """Whether there is an OME-Zarr 0.5 group in a directory."""
    where = objects.join(url, "zarr.json")
    data = objects.read(where)
    if data is None:
        return False
    document = _json(data, where)
    return isinstance(document, dict) and "ome" in (document.get("attributes") or {})


def stored_codec(volume: Volume) -> Codec | None:
    """The codec of an open volume, where it is one that is written here."""
    return codec_in(volume.store.spec().to_json(include_defaults=True))


def is_sharded(volume: Volume) -> bool:
    """Whether an open volume has shards, also where each holds one chunk."""
    document = volume.store.spec().to_json(include_defaults=True)
    if document["driver"] == "neuroglancer_precomputed":
        return document["scale_metadata"].get("sharding") is not None
    codecs = document.get("metadata", {}).get("codecs", ())
    return any(codec["name"] == "sharding_indexed" for codec in codecs)


def _keep_group(
    targets: Sequence[Target], name: str, method: str | None, provenance: _Json
) -> None:
    """Write the metadata of an OME-Zarr group, or add levels to it."""
    first = targets[0]
    layouts = [t.layout for t in targets]
    where = objects.join(first.url, "zarr.json")
    data = objects.read(where)
    if first.level == 0:
        made = group_metadata(layouts, name, method, provenance)
        if data is None or not begins_with(_json(data, where), made):
            objects.write(where, json.dumps(made, indent=2).encode())
        return
    if data is None:
        raise RunError(f"{where} was removed while it was needed; start again")
    group = with_levels(_json(data, where), first.level, layouts, method)
    _keep(first.url, "zarr.json", group)


def _keep(url: str, name: str, document: _Json) -> None:
    """Write a metadata file unless it is there just so."""
    where = objects.join(url, name)
    data = objects.read(where)
    if data is None or _json(data, where) != json.loads(json.dumps(document)):
        objects.write(where, json.dumps(document, indent=2).encode())


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as e:
        raise RunError(
            f"{where} is not JSON ({e}); it is damaged: remove it and start again"
        ) from e
