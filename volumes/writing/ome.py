"""The metadata of OME-Zarr 0.5 groups: ``multiscales`` in the group's ``zarr.json``.

A level's ``scale`` is its voxel size and its ``translation`` the centre of its first voxel, in nm.
In the frame, voxel 0 of level 0 has its centre at 0 nm, and a coarser voxel covers whole finer
ones, so its centre lies half the difference of their sizes further (see ``volumes.ome``).
"""

import json
from collections.abc import Sequence
from typing import Any

from volumes.errors import RunError
from volumes.geometry import Vec3
from volumes.levels import nm_per, tidy
from volumes.redaction import redacted
from volumes.writing.layout import VolumeLayout

_Json = dict[str, Any]

_METHODS = {"mean": "mean", "mode": "mode", "sparse-mode": "sparse mode"}


def group_metadata(
    levels: Sequence[VolumeLayout], name: str, method: str | None, provenance: _Json
) -> _Json:
    """The ``zarr.json`` of the group that holds levels ``0``, ``1``, ...

    Args:
        levels: Finest first.
        name: Name of the image.
        method: How levels were made of one another; None where there is one level.
        provenance: JSON, secrets are removed.
    """
    first = levels[0]
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in first.axes]
    image: _Json = {
        "name": name,
        "axes": axes,
        "datasets": [
            _dataset(index, level, first.voxel_size_nm) for index, level in enumerate(levels)
        ],
    }
    if method is not None:
        image |= _made_by(method)
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "ome": {"version": "0.5", "multiscales": [image]},
            "segclr_beam": {"kind": first.kind, "provenance": redacted(provenance)},
        },
    }


def begins_with(group: Any, made: _Json) -> bool:
    """Whether a group is the one that is to be made, be it with coarser levels added since.

    Args:
        group: The document as it is.
        made: What ``group_metadata`` gives.
    """
    try:
        there = group["attributes"]["ome"]["multiscales"][0]
        own = group["attributes"]["segclr_beam"]
        wanted = made["attributes"]["ome"]["multiscales"][0]
        listed = there["datasets"][: len(wanted["datasets"])]
        same = (there["axes"], listed) == (wanted["axes"], wanted["datasets"])
    except (KeyError, IndexError, TypeError):
        return False
    return same and bool(own == made["attributes"]["segclr_beam"])


def with_levels(
    group: _Json, number: int, levels: Sequence[VolumeLayout], method: str | None
) -> _Json:
    """The ``zarr.json`` of a group with levels added to its first image, or replaced there.

    Args:
        group: The document as it is.
        number: Of the first level that is added.
        levels: What is added, finest first.
        method: How they were made.

    Raises:
        RunError: The group has fewer levels than that.
    """
    made: _Json = json.loads(json.dumps(group))
    image = made["attributes"]["ome"]["multiscales"][0]
    listed = image["datasets"][:number]
    if len(listed) < number:
        raise RunError(
            f"the OME-Zarr group has {len(listed)} levels where {number} were planned to be; "
            "something else has replaced it: start again"
        )
    steps = {t["type"]: t for t in listed[0]["coordinateTransformations"]}
    names = [axis["name"] for axis in image["axes"]]
    scale = steps["scale"]["scale"]
    x, y, z = (float(scale[names.index(a)]) for a in "xyz")
    unit = nm_per(str(image["axes"][0].get("unit") or "nanometer"), "the OME-Zarr group")
    finest = (x * unit, y * unit, z * unit)
    added = [_dataset(number + i, level, finest, unit) for i, level in enumerate(levels)]
    image["datasets"] = listed + added
    if method is not None:
        image |= _made_by(method)
    return made


def _made_by(method: str) -> _Json:
    described = {"method": f"segclr-beam downsample, {method}"}
    return {"type": _METHODS[method], "metadata": described}


def _dataset(number: int, level: VolumeLayout, finest: Vec3, unit: float = 1.0) -> _Json:
    """The entry of a level: scale, then translation, in stored order.

    Args:
        number: The level's, and its array's name.
        level: Its layout.
        finest: Voxel size of level 0 in nm, XYZ.
        unit: Of the axes, in nm.
    """
    scale = [tidy(size / unit) for size in level.voxel_size_nm]
    ends = zip(level.origin_vx, level.voxel_size_nm, finest, strict=True)
    centre = [tidy((origin * size + (size - first) / 2) / unit) for origin, size, first in ends]
    return {
        "path": str(number),
        "coordinateTransformations": [
            {"type": "scale", "scale": level.stored(tuple(scale))},
            {"type": "translation", "translation": level.stored(tuple(centre))},
        ],
    }
