"""Voxel size and origin: what the source states and what the user gives must not differ."""

from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3, same_voxel_size
from volumes.sources.base import Source
from volumes.spec import numbers


def agreed_voxel_size(source: Source, given: Vec3 | None) -> Vec3:
    """The voxel size in nm, XYZ: the given one, or else the one that the source states.

    Raises:
        RequestError: There is neither, or they differ.
    """
    stated = source.voxel_size_nm
    if given is None and stated is None:
        raise RequestError(
            f"{source.url} states no voxel size and none was given; every position is computed "
            "from it: give --voxel-size X,Y,Z in nm"
        )
    if given is None or stated is None:
        return given or stated or (0.0, 0.0, 0.0)
    if not same_voxel_size(given, stated):
        raise RequestError(
            f"--voxel-size {numbers(given)} was given, but {source.url} states "
            f"{numbers(stated)} nm (x, y, z); one of them would put every position wrong: leave "
            "--voxel-size out, or correct the file"
        )
    return given


def agreed_origin(source: Source, given: Vec | None) -> Vec:
    """The frame voxel of the first voxel, XYZ: as given, else as stated, else voxel 0.

    Raises:
        RequestError: The given and the stated one differ.
    """
    stated = source.origin_vx
    if given is not None and stated is not None and given != stated:
        raise RequestError(
            f"--origin {numbers(given)} was given, but {source.url} states {numbers(stated)} "
            "(x, y, z, in voxels); one of them would put every position wrong: leave --origin out, "
            "or correct the file"
        )
    return given or stated or (0, 0, 0)
