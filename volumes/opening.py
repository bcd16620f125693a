"""From what the user typed to a ``VolumeSpec``, and from a ``VolumeSpec`` to an open volume.

The ways of naming a volume stand in ``volumes.naming``, the formats in ``volumes.formats``.
Resolving reads metadata alone, never a voxel, and costs the same for any extent.

What a format states counts; a flag fills in what it leaves out, and one that contradicts it is
refused. Where neither states axes, the stored order is taken as x, y, z; where neither states an
origin, the first voxel is voxel 0 (``VolumeSpec.assumed`` tells). A JSON spec with a transform, or
of a driver that stores no volume itself (``cast``, ``stack``, ...), states what TensorStore says of
it: labels, dimension units and domain.
"""

import dataclasses
import json
import math
from collections.abc import Sequence

import tensorstore as ts

from volumes import pinning
from volumes.errors import RequestError, RunError
from volumes.formats import TS_ERRORS, open_array, opened, told
from volumes.geometry import Box, Vec, Vec3, same_voxel_size, vec
from volumes.levels import SPATIAL, Level, asked_axes, by_axis
from volumes.naming import Flags, Located, locate
from volumes.spec import FORMATS, Kind, VolumeSpec, canonical, numbers, redacted_source

_INTEGRAL = 1 / 64
# Extent taken for a chunk where a driver names none (a stack, a downsampled view).
_NO_CHUNK = 64
_ID_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """An open volume.

    Attributes:
        spec: What it was planned as.
        store: The array with dimensions x, y, z over ``spec.domain``, in frame voxels. Reading a
            chunk that is not stored is an error, where the driver can tell.
    """

    spec: VolumeSpec
    store: ts.TensorStore


def resolve_volume(
    volume: str,
    *,
    kind: Kind,
    scale: Vec3 | None = None,
    voxel_size_nm: Vec3 | None = None,
    origin_vx: Vec | None = None,
    axes: str | None = None,
) -> VolumeSpec:
    """Find out what a volume is, from its metadata alone.

    Query strings, ``user:password@`` and credential members are taken out before anything is
    opened, so what works here works on a worker.

    Args:
        volume: Path, URL, TensorStore URL, inline JSON spec or ``@file.json``; see ``naming``.
        kind: What the voxels must be: an image is uint8, a segmentation of any integer type.
        scale: Voxel size in nm, XYZ, of the level to take; needed where there are several.
        voxel_size_nm: Voxel size, XYZ, where the format states none.
        origin_vx: Frame voxel of the first voxel, XYZ, where the format states none.
        axes: Stored order of the dimensions (``zyx``), where the format states none.

    Raises:
        RequestError: It is no volume, cannot be opened, or does not fit what was asked.
    """
    name = redacted_source(volume)
    flags = Flags(voxel_size_nm, origin_vx, None if axes is None else asked_axes(axes))
    try:
        located = locate(volume, name, flags)
        level, size = _choose(located, scale)
        return _described(located, level, size, kind)
    except RequestError as e:
        if not _hides(volume, name):
            raise
        raise RequestError(
            f"{e} (query strings, user:password@ and credential members were removed from what was "
            "given: this process's own credentials are used, as a worker's will be)"
        ) from e


def open_volume(spec: VolumeSpec, *, cache_bytes: int = 0) -> Volume:
    """Open a volume for reading and check that it still is what was planned.

    Args:
        spec: From ``resolve_volume``.
        cache_bytes: Decoded chunks to keep in memory for this volume; 0 for none.

    Raises:
        RunError: It cannot be opened, or its type or extent has changed since.
    """
    document = pinning.pinned(json.loads(spec.tensorstore), spec.pinned)
    if document["driver"] in FORMATS:
        document |= {"fill_missing_data_reads": False, "recheck_cached_data": "open"}
    try:
        stored = open_array(document, cache_bytes)
        fits = stored.rank == len(spec.axes)
        store = _framed(stored, spec.axes, spec.origin_vx) if fits else stored
    except TS_ERRORS as e:
        raise RunError(
            f"{spec.source} was planned as a volume and cannot be opened now: {told(e)}; "
            "check that it is still there and that this process may read it"
        ) from e
    found = f"{stored.dtype.name} {stored.domain}"
    if not fits or stored.dtype.name != spec.dtype or _box(store) != spec.domain:
        raise RunError(
            f"{spec.source} has changed since the plan: {spec.dtype} over {spec.domain} was "
            f"planned and {found} is stored now; plan the run again on the volume as it is"
        )
    return Volume(spec, store)


def shared_domain(image: VolumeSpec, segmentation: VolumeSpec) -> Box:
    """The frame voxels that image and segmentation share.

    Raises:
        RequestError: Their voxel sizes differ, or they share nothing.
    """
    if not same_voxel_size(image.voxel_size_nm, segmentation.voxel_size_nm):
        raise RequestError(
            f"the image {image.source} has voxels of {numbers(image.voxel_size_nm)} nm and the "
            f"segmentation {segmentation.source} of {numbers(segmentation.voxel_size_nm)} nm; one "
            "lattice is needed, so pick levels of one voxel size with --scale"
        )
    shared = image.domain.intersection(segmentation.domain)
    if shared.size == 0:
        raise RequestError(
            f"the image {image.source} covers voxels {image.domain} and the segmentation "
            f"{segmentation.source} covers {segmentation.domain}, which do not overlap; "
            "check their origins (--origin X,Y,Z at ingest, voxel_offset or offset in metadata)"
        )
    return shared


def _choose(located: Located, scale: Vec3 | None) -> tuple[Level, Vec3]:
    """The level that the scale names, and its voxel size, XYZ."""
    levels, name = located.levels, located.name
    flags = located.flags
    if len(levels) > 1:  # one voxel size cannot be that of several levels
        flags = dataclasses.replace(flags, voxel_size_nm=None)
    sizes = [_voxel_size(level, flags, name) for level in levels]
    stated = [s for s in sizes if s is not None]
    if len(levels) > 1 and len(stated) < len(levels):
        raise RequestError(
            f"{name} has {len(levels)} levels whose scales have no unit, so none can be picked by "
            "its voxel size; give the array of one level in it, with --voxel-size X,Y,Z (nm)"
        )
    if not stated:
        raise RequestError(
            f"{name} has no voxel size: add --voxel-size X,Y,Z (nm); positions in nm have no voxel "
            "without it"
        )
    fitting = [i for i, s in enumerate(stated) if scale is None or same_voxel_size(s, scale)]
    if not fitting or (len(levels) > 1 and scale is None):
        given = "no --scale" if scale is None else f"--scale {numbers(scale)} names none"
        listed = "".join(
            f"\n  --scale {numbers(size)}  {_extent(level, located)}"
            for level, size in zip(levels, stated, strict=True)
        )
        count = f"{len(levels)} level" + "s" * (len(levels) > 1)
        raise RequestError(f"{name} has {count} and {given}; give one of:{listed}")
    size = stated[fitting[0]]
    flag = located.flags.voxel_size_nm
    if flag is not None and not same_voxel_size(size, flag):
        raise RequestError(
            f"{name} states a voxel size of {numbers(size)} nm and --voxel-size gives "
            f"{numbers(flag)}; leave the flag out, or correct the volume's metadata"
        )
    return levels[fitting[0]], size


def _voxel_size(level: Level, flags: Flags, name: str) -> Vec3 | None:
    """A level's voxel size, XYZ in nm, checked; the flag's where the format states none."""
    stated: Sequence[float | None] = (None,)
    if level.voxel_size_nm is not None:
        stated = by_axis(level.voxel_size_nm, _axes(level, flags, name), name)
    size = flags.voxel_size_nm if None in stated else tuple(v for v in stated if v is not None)
    if size is None:
        return None
    if not all(math.isfinite(v) and v > 0 for v in size):
        raise RequestError(
            f"{name} has a voxel size of {numbers(size)} nm; three positive lengths are needed: "
            "correct its metadata or --voxel-size"
        )
    return (float(size[0]), float(size[1]), float(size[2]))


def _hides(volume: str, name: str) -> bool:
    """Whether something was taken out of what the user gave."""
    if not volume.lstrip().startswith("{"):
        return volume != name
    try:
        return canonical(json.loads(volume)) != name
    except ValueError:
        return False


def _axes(level: Level, flags: Flags, name: str) -> tuple[str, ...]:
    """The axes that the format states, or the user, or x, y, z."""
    if level.axes is None:
        return flags.axes or SPATIAL
    if any(level.axes.count(a) != 1 for a in SPATIAL):
        raise RequestError(
            f"{name} has the axes {', '.join(level.axes)}; a volume has x, y and z, once each"
        )
    if flags.axes is not None and flags.axes != level.axes:
        raise RequestError(
            f"{name} states its axes as {','.join(level.axes)} and the axes given are "
            f"{','.join(flags.axes)}; leave them out, or correct the volume's metadata"
        )
    return level.axes


def _origin(level: Level, axes: tuple[str, ...], located: Located) -> Vec:
    """The frame voxel of the first voxel, XYZ: the format's, the flag's, or voxel 0."""
    name, flag = located.name, located.flags.origin_vx
    if level.origin_vx is None:
        return flag or (0, 0, 0)
    stated = [float(v or 0.0) for v in by_axis(level.origin_vx, axes, name)]
    if not all(math.isfinite(v) and abs(v - round(v)) <= _INTEGRAL for v in stated):
        raise RequestError(
            f"{name} states an origin of {numbers(tuple(stated))} voxels, which is no whole number "
            "of voxels, so its voxels lie between those of the frame; take another level, or "
            "correct its translation or offset"
        )
    origin = vec(round(v) for v in stated)
    if flag is not None and flag != origin:
        raise RequestError(
            f"{name} states its origin as voxel {numbers(origin)} and --origin gives "
            f"{numbers(flag)}; leave the flag out, or correct the volume's metadata"
        )
    return origin


def _described(located: Located, level: Level, size: Vec3, kind: Kind) -> VolumeSpec:
    """Open a level and put down what it is."""
    name = located.name
    document = json.loads(level.tensorstore)
    version = pinning.newest(document, name)
    stored = opened(pinning.pinned(document, version), name)
    axes = _axes(level, located.flags, name)
    _check_shape(stored, axes, name)
    _check_dtype(stored.dtype.name, kind, name)
    origin = _origin(level, axes, located)
    store = _framed(stored, axes, origin)
    layout = store.chunk_layout
    domain = _box(store)
    anchor = vec(layout.grid_origin) if None not in (layout.grid_origin or (None,)) else None
    unstated = {
        "axes": level.axes is None and located.flags.axes is None,
        "origin": level.origin_vx is None and located.flags.origin_vx is None,
    }
    return VolumeSpec(
        source=name,
        tensorstore=level.tensorstore,
        axes=axes,
        voxel_size_nm=size,
        origin_vx=origin,
        kind=kind,
        dtype=stored.dtype.name,
        domain=domain,
        read_chunk=_chunk(layout.read_chunk.shape, domain),
        write_chunk=_chunk(layout.write_chunk.shape, domain),
        format=level.format,
        anchor_vx=None if anchor == domain.start else anchor,
        assumed=tuple(what for what, is_so in unstated.items() if is_so),
        pinned=version,
    )


def _check_shape(store: ts.TensorStore, axes: tuple[str, ...], name: str) -> None:
    """Refuse what is not three-dimensional, bounded and of some extent."""
    found = f"{store.rank} dimensions of extent {tuple(store.domain.shape)}"
    if len(axes) != store.rank:
        raise RequestError(
            f"{name} has {found}, taken as {', '.join(axes)}; state the stored order of all of "
            "them with axes, as in zyxc, where channel (c) and time (t) have extent 1"
        )
    if any(a not in SPATIAL and n != 1 for a, n in zip(axes, store.domain.shape, strict=True)):
        raise RequestError(
            f"{name} has {found} named {', '.join(axes)}; a volume has x, y and z, and besides "
            "them only dimensions of extent 1: take one channel, by a JSON spec with a transform"
        )
    if not all(d.finite and d.size > 0 for d in store.domain):
        raise RequestError(f"{name} has the domain {store.domain}; a bounded one is needed")


def _check_dtype(dtype: str, kind: Kind, name: str) -> None:
    """Refuse voxels of another type than the kind's."""
    if kind == "image" and dtype != "uint8":
        raise RequestError(
            f"{name} has {dtype} voxels, and an image is uint8, as the model's grey values are; "
            "scale it to uint8 first, or give the segmentation as --segmentation"
        )
    if kind == "segmentation" and dtype not in _ID_TYPES:
        raise RequestError(
            f"{name} has {dtype} voxels, and a segmentation holds ids of an integer type "
            f"({', '.join(_ID_TYPES)}); give the volume of ids, or convert it"
        )


def _framed(store: ts.TensorStore, axes: tuple[str, ...], origin: Vec) -> ts.TensorStore:
    """The array with dimensions x, y, z alone, its first voxel at ``origin``."""
    for i in reversed(range(len(axes))):
        if axes[i] not in SPATIAL:
            store = store[ts.d[i][store.domain[i].inclusive_min]]
    spatial = [a for a in axes if a in SPATIAL]
    turned = store.transpose([spatial.index(a) for a in SPATIAL])
    return turned[ts.d[0, 1, 2].translate_to[list(origin)].label[list(SPATIAL)]]


def _box(store: ts.TensorStore) -> Box:
    """The domain of a framed array."""
    return Box(vec(store.domain.inclusive_min), vec(store.domain.exclusive_max))


def _chunk(shape: Sequence[int | None] | None, domain: Box) -> Vec:
    """A chunk's shape, with a stand-in where the driver names none."""
    return vec(
        n or min(_NO_CHUNK, extent)
        for n, extent in zip(shape or (None,) * 3, domain.shape, strict=True)
    )


def _extent(level: Level, located: Located) -> str:
    """Shape of a level for a list of levels."""
    try:
        stored = open_array(json.loads(level.tensorstore))
    except TS_ERRORS as e:
        return f"cannot be opened: {told(e)}"
    axes = _axes(level, located.flags, located.name)
    shape = by_axis(tuple(stored.domain.shape), axes, located.name)
    return " x ".join(f"{n}" for n in shape) + " voxels"
