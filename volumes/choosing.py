"""Which level of a volume is meant, and what its format and the user together state of it."""

import dataclasses
import json
import math
from collections.abc import Sequence

from volumes.errors import RequestError
from volumes.formats import TS_ERRORS, open_array, told
from volumes.geometry import Vec, Vec3, same_voxel_size, vec
from volumes.levels import INTEGRAL, SPATIAL, Level, by_axis
from volumes.naming import Flags, Located
from volumes.spec import Kind, numbers

_MOSTLY_IDS = ("uint32", "uint64", "int64")


def choose(located: Located, scale: Vec3 | None) -> tuple[Level, Vec3]:
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
        stated = by_axis(level.voxel_size_nm, axes_of(level, flags, name), name)
    size = flags.voxel_size_nm if None in stated else tuple(v for v in stated if v is not None)
    if size is None:
        return None
    if not all(math.isfinite(v) and v > 0 for v in size):
        raise RequestError(
            f"{name} has a voxel size of {numbers(size)} nm; three positive lengths are needed: "
            "correct its metadata or --voxel-size"
        )
    return (float(size[0]), float(size[1]), float(size[2]))


def axes_of(level: Level, flags: Flags, name: str) -> tuple[str, ...]:
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


def origin_of(level: Level, axes: tuple[str, ...], located: Located) -> Vec:
    """The frame voxel of the first voxel, XYZ: the format's, the flag's, or voxel 0."""
    name, flag = located.name, located.flags.origin_vx
    if level.origin_vx is None:
        return flag or (0, 0, 0)
    stated = [float(v or 0.0) for v in by_axis(level.origin_vx, axes, name)]
    if not all(math.isfinite(v) and abs(v - round(v)) <= INTEGRAL for v in stated):
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


def _extent(level: Level, located: Located) -> str:
    """Shape of a level for a list of levels."""
    try:
        stored = open_array(json.loads(level.tensorstore))
    except TS_ERRORS as e:
        return f"cannot be opened: {told(e)}"
    axes = axes_of(level, located.flags, located.name)
    shape = by_axis(tuple(stored.domain.shape), axes, located.name)
    return " x ".join(f"{n}" for n in shape) + " voxels"


def kind_of(level: Level, dtype: str) -> Kind:
    """What the format says that voxels are, or what those of their type mostly are."""
    return level.kind or ("segmentation" if dtype in _MOSTLY_IDS else "image")
