"""MRC files (also MAP, REC and ST): what their headers say, read by mrcfile."""

import math
import warnings
from typing import Any

import mrcfile
import numpy as np

from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3, vec
from volumes.sources.base import stated_size
from volumes.sources.flat import FlatArray, check_whole

HEADER_BYTES = 1024
"""Bytes from the start of an MRC file that hold its header."""

_MAGIC = slice(208, 212)
_STACK_OF_VOLUMES = 401
_IMOD_STAMP = 1146047817
_IMOD_WORDS = slice(40, 48)
_SIGNED_BYTES = 1
_ANGSTROM_NM = 0.1
_NOISE = 1e-3


def is_mrc(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an MRC file of the year 2000 or later."""
    return head[_MAGIC] in (b"MAP ", b"MAP\0")


def describe_mrc(path: str) -> FlatArray:
    """The array of an MRC file, given its absolute path.

    Bytes (mode 0) are signed, as the format says, but for files of IMOD that say otherwise. The
    voxel size is given in angstrom; 1 angstrom on each axis is what programs write that know none,
    and states none. ``nxstart`` and its like, where one is not 0, are the origin; the origin in
    angstrom counts where they are 0 and it is whole voxels.

    Raises:
        RequestError: The file is no MRC file, is cut short, or holds several volumes or no numbers.
    """
    header = _header(path)
    if int(header.ispg) >= _STACK_OF_VOLUMES:
        raise RequestError(
            f"{path} is a stack of volumes (space group {int(header.ispg)}); a volume is one of "
            "them: write that to a file of its own"
        )
    try:
        dtype = mrcfile.utils.data_dtype_from_header(header)
    except ValueError as e:
        raise RequestError(f"{path} has a mode that is not read: {e}") from e
    if int(header.mode) == 0 and _unsigned_bytes(header):
        dtype = np.dtype(np.uint8)
    offset = HEADER_BYTES + int(header.nsymbt)
    stored = (int(header.nz), int(header.ny), int(header.nx))
    if min(stored) < 0 or int(header.nsymbt) < 0:
        raise RequestError(f"{path} has a damaged header: shape {stored}; supply the file again")
    axes = _axes(header, path)
    size = _voxel_size(header, path)
    origin, notes = _origin(header, size, axes)
    return check_whole(path, FlatArray(offset, dtype.str, stored, "C", axes, size, origin, notes))


def _header(path: str) -> Any:
    """The header, read strictly."""
    try:
        with warnings.catch_warnings():
            # Of extended headers of other programs, which are not looked at.
            warnings.simplefilter("ignore", RuntimeWarning)
            with mrcfile.mrcfile.MrcFile(path, "r", header_only=True) as file:
                return file.header
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror or e}") from e
    except ValueError as e:
        raise RequestError(f"{path} has a damaged MRC header: {e}; supply the file again") from e


def _unsigned_bytes(header: Any) -> bool:
    """Whether the bytes of mode 0 are unsigned: IMOD says so in two words of its own."""
    extra = bytes(header.extra2)
    order = header.mode.dtype.byteorder
    stamp, flags = np.frombuffer(
        extra[_IMOD_WORDS], np.dtype(np.int32).newbyteorder(order)
    ).tolist()
    return bool(stamp == _IMOD_STAMP and not flags & _SIGNED_BYTES)


def _axes(header: Any, path: str) -> str:
    """Names of the stored axes, slowest first."""
    numbers = [int(header.maps), int(header.mapr), int(header.mapc)]
    if numbers == [0, 0, 0]:
        return "zyx"
    if sorted(numbers) != [1, 2, 3]:
        raise RequestError(
            f"{path} has a damaged MRC header: its columns, rows and sections are the axes "
            f"{numbers[::-1]}, not each of 1, 2, 3 once; correct the header"
        )
    return "".join("xyz"[n - 1] for n in numbers)


def _voxel_size(header: Any, path: str) -> Vec3 | None:
    """The voxel size in nm, XYZ; None where the header has none."""
    cells = (header.cella.x, header.cella.y, header.cella.z)
    counts = (int(header.mx), int(header.my), int(header.mz))
    if not all(float(c) for c in cells) or not all(counts):
        return None
    size = [float(c) / n for c, n in zip(cells, counts, strict=True)]
    if all(abs(v - 1) < _NOISE for v in size):
        return None
    return stated_size([v * _ANGSTROM_NM for v in size], path)


def _origin(header: Any, size: Vec3 | None, axes: str) -> tuple[Vec | None, tuple[str, ...]]:
    """The origin in voxels, XYZ, and what to say where it is left out."""
    stored = dict(zip(axes, (header.nzstart, header.nystart, header.nxstart), strict=True))
    start = vec(int(stored[a]) for a in "xyz")
    if any(start):
        return start, ()
    given = [float(v) for v in (header.origin.x, header.origin.y, header.origin.z)]
    if not any(given) or not all(map(math.isfinite, given)):
        return None, ()
    if size is not None:
        voxels = [v * _ANGSTROM_NM / s for v, s in zip(given, size, strict=True)]
        if all(abs(v - round(v)) < _NOISE for v in voxels):
            return vec(round(v) for v in voxels), ()
    told = ", ".join(f"{v:g}" for v in given)
    return None, (f"its origin of {told} angstrom (x, y, z) is not whole voxels and is left out",)
