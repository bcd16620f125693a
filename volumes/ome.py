"""Reads the ``multiscales`` metadata of OME-Zarr, 0.4 and 0.5.

A level's ``scale`` is its voxel size and its ``translation`` the centre of its first voxel, both in
the units of the axes. In the frame the first voxel of level 0 has its centre at 0 nm when the
translation is 0, and a coarser voxel covers whole finer ones, so its centre lies half the
difference of their sizes further: ``origin = (translation - (scale - scale_0) / 2) / scale``. Many
writers state no half-voxel shift: levels that all have the same translation, or none, are taken to
share their first corner, ``origin = translation / scale``, unless that lies between voxels and the
centres do not.
"""

from collections.abc import Callable
from typing import Any

from volumes.errors import RequestError
from volumes.levels import INTEGRAL, SPATIAL, Level, floats, named_axes, nm_per, tidy

_Json = dict[str, Any]
_Transform = tuple[tuple[float, ...], tuple[float, ...] | None]
_Stated = tuple[tuple[float, ...] | None, tuple[float, ...] | None]

_SAME = 1e-9


def image_levels(
    multiscale: _Json, name: str, format_name: str, spec_of: Callable[[str], str]
) -> tuple[Level, ...]:
    """The levels of one image of an OME-Zarr group.

    Args:
        multiscale: An element of ``multiscales``.
        name: The group, in messages.
        format_name: Format of the arrays.
        spec_of: TensorStore spec, canonical text, of the array at a path in the group.

    Raises:
        RequestError: The metadata is not that of OME-Zarr 0.4 or 0.5.
    """
    axes = multiscale.get("axes")
    datasets = multiscale.get("datasets")
    if not isinstance(axes, list) or not all(isinstance(a, dict) for a in axes):
        raise RequestError(
            f"{name} is OME-Zarr of version {multiscale.get('version')!r} whose axes have no types "
            "and units; 0.4 and 0.5 are read: give the array of one level in it, with --voxel-size"
        )
    if not isinstance(datasets, list) or not all(isinstance(d, dict) for d in datasets):
        datasets = []
    if not datasets:
        raise RequestError(f"{name} is OME-Zarr without datasets; it is incomplete")
    names = _axis_names(axes)
    whole = _transform(multiscale, len(axes), name)
    levels = [_combined(_transform(d, len(axes), name), whole, name) for d in datasets]
    return tuple(
        Level(
            tensorstore=spec_of(str(dataset.get("path", ""))),
            format=format_name,
            axes=names,
            voxel_size_nm=_voxel_size(level[0], axes, names, name),
            origin_vx=_origin(level, levels),
        )
        for dataset, level in zip(datasets, levels, strict=True)
    )


def _axis_names(axes: list[_Json]) -> tuple[str, ...]:
    """Names of the axes; the type decides for channel and time."""
    typed = [a["type"] if a.get("type") in ("channel", "time") else a.get("name") for a in axes]
    return named_axes(typed) or tuple(str(n) for n in typed)


def _voxel_size(
    scale: tuple[float, ...], axes: list[_Json], names: tuple[str, ...], name: str
) -> tuple[float | None, ...]:
    """Scale by dimension in nm; None for dimensions that are no length or have no unit."""
    return tuple(
        tidy(s * nm_per(str(a["unit"]), name)) if n in SPATIAL and a.get("unit") else None
        for s, a, n in zip(scale, axes, names, strict=True)
    )


def _transform(holder: Any, rank: int, name: str) -> _Stated:
    """Scale and translation that a dataset, or the whole image, states."""
    steps = holder.get("coordinateTransformations") if isinstance(holder, dict) else None
    stated: dict[str, tuple[float, ...]] = {}
    for step in steps if isinstance(steps, list) else ():
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "identity":
            continue
        known = kind in ("scale", "translation")
        values = floats(step.get(kind)) if known else None
        if kind is None or values is None or len(values) != rank:
            raise RequestError(
                f"{name} is OME-Zarr with the coordinate transformation {step}; only a scale and "
                f"a translation of {rank} numbers each, one an axis, are understood"
            )
        stated[kind] = values
    return stated.get("scale"), stated.get("translation")


def _combined(level: _Stated, whole: _Stated, name: str) -> _Transform:
    """A level's transformation followed by the whole image's."""
    if level[0] is None:
        raise RequestError(
            f"{name} is OME-Zarr with a level that states no scale; "
            "give the array of one level in it, with --voxel-size"
        )
    zero, one = (0.0,) * len(level[0]), (1.0,) * len(level[0])
    factor = whole[0] or one
    scale = tuple(a * b for a, b in zip(level[0], factor, strict=True))
    if level[1] is None and whole[1] is None:
        return scale, None
    moved = zip(level[1] or zero, factor, whole[1] or zero, strict=True)
    return scale, tuple(t * s + o for t, s, o in moved)


def _origin(transform: _Transform, levels: list[_Transform]) -> tuple[float, ...] | None:
    """Frame voxel, not rounded, of a level's first voxel; None where no level states one."""
    if all(t is None for _, t in levels):
        return None
    scale, own = transform
    zero = (0.0,) * len(scale)
    translation = own or zero
    aligned = all(
        abs(a - b) <= _SAME * max(abs(a), abs(b))
        for _, other in levels
        for a, b in zip(other or zero, translation, strict=True)
    )
    if not all(all(s) for s, _ in levels):
        return None
    if aligned and (all(_whole(t, t[0]) for t in levels) or not _centred(levels)):
        return _corner(transform, scale)
    return _corner(transform, levels[0][0])


def _corner(transform: _Transform, base: tuple[float, ...]) -> tuple[float, ...]:
    """A level's origin, in its voxels, where level 0 has voxels of size ``base``."""
    scale, translation = transform
    moved = translation or (0.0,) * len(scale)
    return tuple((t - (s - s0) / 2) / s for t, s, s0 in zip(moved, scale, base, strict=True))


def _whole(transform: _Transform, base: tuple[float, ...]) -> bool:
    """Whether an origin is a whole number of voxels on every axis."""
    return all(abs(v - round(v)) <= INTEGRAL for v in _corner(transform, base))


def _centred(levels: list[_Transform]) -> bool:
    """Whether every level begins at a whole voxel if translations are those of centres."""
    return all(_whole(t, levels[0][0]) for t in levels)
