"""From what the user typed to a ``VolumeSpec``.

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
from volumes.choosing import axes_of, choose, kind_of, origin_of
from volumes.errors import RequestError
from volumes.formats import opened
from volumes.framing import box_in, framed
from volumes.geometry import Box, Vec, Vec3, same_voxel_size, vec
from volumes.levels import SPATIAL, Level, asked_axes
from volumes.naming import Flags, Located, locate
from volumes.spec import Kind, VolumeSpec, canonical, numbers, redacted_source
from volumes.views.arrays import Array, Axis, said
from volumes.views.document import Documents, Stated, view_in
from volumes.views.tree import Chain, Leaf, Plain, Raw, spec_of

_INTEGRAL = 1 / 64
# Extent taken for a chunk where a driver names none (a stack, a downsampled view).
_NO_CHUNK = 64
_ID_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
# So much of an inline view stands in a message.
_SHOWN = 200


def resolve_volume(
    volume: str,
    *,
    kind: Kind | None,
    scale: Vec3 | None = None,
    voxel_size_nm: Vec3 | None = None,
    origin_vx: Vec | None = None,
    axes: str | None = None,
    allow_functions: Sequence[str] = (),
) -> VolumeSpec:
    """Find out what a volume is, from its metadata alone.

    Query strings, ``user:password@`` and credential members are taken out before anything is
    opened, so what works here works on a worker.

    Args:
        volume: Path, URL, TensorStore URL, inline JSON spec or ``@file.json``; see ``naming``.
        kind: What the voxels must be: an image is uint8, a segmentation of any integer type. None
            takes voxels of any type; the kind is then what the volume states, or a segmentation
            where voxels are uint32, uint64 or int64, and an image otherwise.
        scale: Voxel size in nm, XYZ, of the level to take; needed where there are several.
        voxel_size_nm: Voxel size, XYZ, where the format states none.
        origin_vx: Frame voxel of the first voxel, XYZ, where the format states none.
        axes: Stored order of the dimensions (``zyx``), where the format states none.
        allow_functions: Packages whose functions a view may run.

    Raises:
        RequestError: It is no volume, cannot be opened, or does not fit what was asked.
    """
    name = redacted_source(volume)
    flags = Flags(voxel_size_nm, origin_vx, None if axes is None else asked_axes(axes))
    try:
        if view_in(volume) is not None:
            view = _view(volume, name, kind, allow_functions)
            _agrees(view, scale, flags)
            return view
        located = locate(volume, name, flags)
        level, size = choose(located, scale)
        return _described(located, level, size, kind)
    except RequestError as e:
        if not _hides(volume, name):
            raise
        raise RequestError(
            f"{e} (query strings, user:password@ and credential members were removed from what was "
            "given: this process's own credentials are used, as a worker's will be)"
        ) from e


def resolve_levels(
    volume: str, *, kind: Kind | None, allow_functions: Sequence[str] = ()
) -> tuple[VolumeSpec, ...]:
    """Find out what each level of a volume is, from its metadata alone.

    Args:
        volume: As for ``resolve_volume``.
        kind: As for ``resolve_volume``.
        allow_functions: As for ``resolve_volume``.

    Returns:
        The levels, in the order in which the format lists them; a view has one.

    Raises:
        RequestError: It is no volume, or a level cannot be opened or has no voxel size.
    """
    name = redacted_source(volume)
    if view_in(volume) is not None:
        return (_view(volume, name, kind, allow_functions),)
    located = locate(volume, name, Flags(None, None, None))
    found = []
    for level in located.levels:
        alone = dataclasses.replace(located, levels=(level,))
        _, size = choose(alone, None)
        found.append(_described(alone, level, size, kind))
    return tuple(found)


def _view(volume: str, name: str, kind: Kind | None, allow_functions: Sequence[str]) -> VolumeSpec:
    """What a view is."""
    node = Documents(resolve_leaf, allow_functions).read(volume, name)
    return view_spec(node, name, kind)


def view_spec(node: Chain, name: str, kind: Kind | None) -> VolumeSpec:
    """A view as a volume, checked as any other.

    Args:
        node: The view.
        name: What the user gave, for messages.
        kind: As for ``resolve_volume``.

    Raises:
        RequestError: It is no volume of that kind.
    """
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    try:
        spec = spec_of(node, name, kind)
    except RequestError as e:
        raise RequestError(f"{shown}: {e}") from e
    if kind is not None:
        _check_dtype(spec.dtype, kind, shown)
    return spec


def _agrees(spec: VolumeSpec, scale: Vec3 | None, flags: Flags) -> None:
    """Refuse flags that contradict a view, which states everything."""
    size, origin = spec.voxel_size_nm, spec.origin_vx
    for flag, given in (("--scale", scale), ("--voxel-size", flags.voxel_size_nm)):
        if given is not None and not same_voxel_size(given, size):
            raise RequestError(
                f"the view has voxels of {numbers(size)} nm and {flag} gives {numbers(given)}; "
                "leave the flag out, or state it in the view"
            )
    if flags.origin_vx is not None and flags.origin_vx != origin:
        raise RequestError(
            f"the view begins at voxel {numbers(origin)} and --origin gives "
            f"{numbers(flags.origin_vx)}; leave the flag out, or translate in the view"
        )
    if flags.axes not in (None, SPATIAL):
        raise RequestError(
            f"the view has the axes x,y,z and {','.join(flags.axes or ())} are given; leave them "
            "out, or transpose in the view"
        )


def resolve_leaf(volume: str, stated: Stated) -> Leaf:
    """Find out what a volume of a view is: as anywhere else, or with axes of any number.

    Raises:
        RequestError: It is no volume, or does not fit what the view states of it.
    """
    name = redacted_source(volume)
    located = locate(volume, name, Flags(stated.voxel_size_nm, stated.origin_vx, None))
    flags = dataclasses.replace(located.flags, axes=stated.axes or located.flags.axes)
    located = dataclasses.replace(located, flags=flags)
    level = located.levels[0]
    axes = level.axes if level.axes is not None else flags.axes or SPATIAL
    if not set(SPATIAL) <= set(axes):
        return _raw(located, level, axes, stated.kind)
    level, size = choose(located, stated.scale)
    shape = opened(json.loads(level.tensorstore), name).shape
    others = [n for a, n in zip(axes, shape, strict=False) if a not in SPATIAL]
    if len(shape) == len(axes) and any(n != 1 for n in others):
        return _raw(located, level, axes, stated.kind)
    spec = _described(located, level, size, None)
    return Plain(
        dataclasses.replace(spec, kind=_stated_kind(stated.kind, spec.dtype, name) or spec.kind)
    )


def _stated_kind(kind: Kind | None, dtype: str, name: str) -> Kind | None:
    """The kind that a view states; an image may be of any type there, before it is cast."""
    if kind == "segmentation":
        _check_dtype(dtype, kind, name)
    return kind


def _raw(located: Located, level: Level, axes: tuple[str, ...], kind: Kind | None) -> Raw:
    """An array that has other axes than x, y and z, or not all of these."""
    name, flags = located.name, located.flags
    if flags.axes not in (None, axes):
        raise RequestError(
            f"{name} states its axes as {','.join(axes)} and the axes given are "
            f"{','.join(flags.axes or ())}; leave them out, or correct the volume's metadata"
        )
    document = json.loads(level.tensorstore)
    version = pinning.newest(document, name)
    stored = opened(pinning.pinned(document, version), name)
    if stored.rank != len(axes) or len(set(axes)) != len(axes):
        raise RequestError(
            f"{name} has {stored.rank} dimensions, taken as {said(axes)}; state the stored order "
            'of all of them, each by its name: {"volume": ..., "axes": ["y", "x", "channel"]}'
        )
    if not all(d.finite and d.size > 0 for d in stored.domain):
        raise RequestError(f"{name} has the domain {stored.domain}; a bounded one is needed")
    sizes = _by_name(level.voxel_size_nm, flags.voxel_size_nm, axes)
    starts = _by_name(level.origin_vx, flags.origin_vx, axes)
    chunks = stored.chunk_layout.read_chunk.shape or (None,) * stored.rank
    if not all(v is None or (math.isfinite(v) and v > 0) for v in sizes.values()) or not all(
        abs(v - round(v)) <= _INTEGRAL for v in starts.values() if v is not None
    ):
        raise RequestError(
            f"{name} states voxels of {sizes} nm from voxel {starts} on; lengths above 0 and whole "
            "voxels are needed: correct its metadata"
        )
    made = []
    for axis, extent, chunk in zip(axes, stored.shape, chunks, strict=True):
        start = round(starts.get(axis) or 0)
        read = chunk or min(_NO_CHUNK, extent)
        made.append(Axis(axis, start, start + extent, read, start, sizes.get(axis)))
    dtype = stored.dtype.name
    return Raw(
        source=name,
        tensorstore=level.tensorstore,
        format=level.format,
        pinned=version,
        first=tuple(stored.domain.inclusive_min),
        array=Array(tuple(made), dtype, _stated_kind(kind, dtype, name) or kind_of(level, dtype)),
    )


def _by_name(
    stated: Sequence[float | None] | None, flags: Sequence[float] | None, axes: tuple[str, ...]
) -> dict[str, float | None]:
    """Values of x, y and z by name, as far as the format states them, else as given."""
    found: dict[str, float | None] = dict(zip(SPATIAL, flags or (), strict=False))
    spatial = [a for a in axes if a in SPATIAL]
    for names in (list(axes), spatial):
        if stated is not None and len(stated) == len(names):
            ours = {n: v for n, v in zip(names, stated, strict=True) if n in SPATIAL}
            return found | {n: v for n, v in ours.items() if v is not None}
    return found


def _hides(volume: str, name: str) -> bool:
    """Whether something was taken out of what the user gave."""
    if not volume.lstrip().startswith("{"):
        return volume != name
    try:
        return canonical(json.loads(volume)) != name
    except (ValueError, RecursionError):
        return False


def _described(located: Located, level: Level, size: Vec3, kind: Kind | None) -> VolumeSpec:
    """Open a level and put down what it is."""
    name = located.name
    document = json.loads(level.tensorstore)
    version = pinning.newest(document, name)
    stored = opened(pinning.pinned(document, version), name)
    axes = axes_of(level, located.flags, name)
    _check_shape(stored, axes, name)
    if kind is None:
        kind = kind_of(level, stored.dtype.name)
    else:
        _check_dtype(stored.dtype.name, kind, name)
    origin = origin_of(level, axes, located)
    store = framed(stored, axes, origin)
    layout = store.chunk_layout
    domain = box_in(store)
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


def _chunk(shape: Sequence[int | None] | None, domain: Box) -> Vec:
    """A chunk's shape, with a stand-in where the driver names none."""
    return vec(
        n or min(_NO_CHUNK, extent)
        for n, extent in zip(shape or (None,) * 3, domain.shape, strict=True)
    )
