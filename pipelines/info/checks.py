"""What about a volume's metadata will surprise: rules of its format, and facts worth knowing."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.text import bytes_text
from volumes.geometry import same_voxel_size
from volumes.inspection import Broken, Inspected, Scale

_Json = dict[str, Any]

_TYPES = {"time": 0, "channel": 1, "space": 2}
_INTEGRAL = 1 / 64
_WASTEFUL = 0.9
_ID_TYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


def ome_image(documents: _Json) -> tuple[_Json, str] | None:
    """The first OME-Zarr image that a directory's documents describe, and its version.

    Args:
        documents: Metadata documents by file name.
    """
    attributes = (documents.get("zarr.json") or {}).get("attributes")
    for holder in (attributes, documents.get(".zattrs")):
        if not isinstance(holder, dict):
            continue
        ome = holder.get("ome", holder)
        images = ome.get("multiscales") if isinstance(ome, dict) else None
        if isinstance(images, list) and images and isinstance(images[0], dict):
            version = ome.get("version") or images[0].get("version") or "not stated"
            return images[0], str(version)
    return None


def checks(found: Inspected) -> list[str]:
    """Sentences about what is wrong or will surprise; none where all is well."""
    scales = [s for s in found.scales if isinstance(s, Scale)]
    said = [f"{s.path or 'the array'}: {s.error}" for s in found.scales if isinstance(s, Broken)]
    image = ome_image(found.root)
    if image is not None:
        said += _ome(image[0], image[1], scales)
    for scale in scales:
        said += [f"{scale.path}: {line}" if scale.path else line for line in _scale(found, scale)]
    said += _levels(scales)
    return said


def _scale(found: Inspected, scale: Scale) -> Iterator[str]:
    """What there is to say of a level."""
    stored = scale.inventory
    if scale.voxel_size_nm is None:
        yield "no voxel size is stated; jobs need --voxel-size X,Y,Z (nm)"
    elif not all(math.isfinite(v) and v > 0 for v in scale.voxel_size_nm):
        yield f"the voxel size {scale.voxel_size_nm} is not three positive lengths"
    if not scale.stated_axes:
        yield "no axes are stated; the stored order is taken as x, y, z"
    origin = scale.origin_vx or (0.0,)
    if not all(math.isfinite(v) and abs(v - round(v)) <= _INTEGRAL for v in origin):
        yield f"the origin {origin} lies between voxels, so jobs refuse this level"
    if found.kind == "segmentation" and scale.dtype not in _ID_TYPES:
        yield f"it is called a segmentation, and its voxels are {scale.dtype}, no ids"
    others = zip(scale.axes, scale.extents, strict=True)
    if more := [f"{n} of {a}" for a, n in others if a not in "xyz" and n != 1]:
        yield f"it has {', '.join(more)}; a volume has 1, so jobs refuse it"
    if scale.checked is False and scale.codec:
        yield "chunks carry no checksum, so a flipped bit is read as another voxel"
    if stored.strays:
        yield (
            f"{stored.strays:,} among the files of its chunks are no chunk's, such as "
            f"{stored.stray}; they are not read"
        )
    if stored.inside is not None and stored.inside.damaged:
        yield f"shards that are damaged: {stored.inside.damaged:,}; {stored.inside.damage}"
    if stored.stored_bytes and stored.decoded_bytes and (stored.ratio or 1) < _WASTEFUL:
        yield (
            f"it takes more than its voxels do ({bytes_text(stored.stored_bytes)} for "
            f"{bytes_text(stored.decoded_bytes)})"
        )


def _levels(scales: Sequence[Scale]) -> Iterator[str]:
    """What there is to say of levels together."""
    sizes = [s.voxel_size_nm for s in scales]
    for i, size in enumerate(sizes):
        for before in sizes[:i]:
            if size is not None and before is not None and same_voxel_size(size, before):
                yield (
                    f"{scales[i].path}: another level has the same voxel size, so --scale cannot "
                    "tell them apart"
                )
    if len({s.dtype for s in scales}) > 1:
        yield f"levels are of several types: {', '.join(sorted({s.dtype for s in scales}))}"


def _ome(image: _Json, version: str, scales: Sequence[Scale]) -> Iterator[str]:
    """The rules of OME-Zarr that readers stumble over."""
    axes = [a for a in image.get("axes", ()) if isinstance(a, dict)]
    ranks = [_TYPES.get(str(a.get("type")), 1) for a in axes]
    names = [str(a.get("name")) for a in axes]
    if ranks != sorted(ranks):
        yield (
            f"OME-Zarr {version}: the axes {', '.join(names)} must be ordered time, channel, space"
        )
    space = [n for n, r in zip(names, ranks, strict=True) if r == _TYPES["space"]]
    if len(space) not in (2, 3):
        yield f"OME-Zarr {version}: there must be 2 or 3 axes of type space, and there are {space}"
    elif space != sorted(space, reverse=True) and set(space) <= set("xyz"):
        yield (
            f"OME-Zarr {version}: the axes are stored as {', '.join(space)}; z, y, x is what it "
            "recommends, and some viewers show another order turned"
        )
    if unitless := [n for n, a in zip(names, axes, strict=True) if n in space and "unit" not in a]:
        yield f"OME-Zarr {version}: the axes {', '.join(unitless)} have no unit"
    sizes = [s.voxel_size_nm for s in scales if s.voxel_size_nm is not None]
    pairs = zip(sizes, sizes[1:], strict=False)
    if any(a > b for one, two in pairs for a, b in zip(one, two, strict=True)):
        yield f"OME-Zarr {version}: levels must be listed from the finest to the coarsest"
