"""What all sources of an ingest share: the protocol, the axis names and the dtype rule.

Representation: a source is a picklable, frozen description that opens nothing; its reader holds
what is open. Boxes are XYZ in the source's own voxels, the first of which is (0, 0, 0); arrays come
back XYZ in Fortran order (x fastest), so that a section z = k is one contiguous run.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError, RunError
from volumes.geometry import Box, ChunkGrid, Vec, Vec3, vec
from volumes.spec import Kind, numbers

Stamp = tuple[str, str]
"""A file's name and what changes when the file does: ``SIZE:MTIME_NS`` or a store's generation."""


class Reader(Protocol):
    """An open source."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box: ``[x, y, z]``, native byte order, x fastest.

        Raises:
            RunError: The source is damaged, or is no longer what the plan saw.
        """
        ...

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamps, now, of the files that hold a box."""
        ...

    @property
    def absent(self) -> int:
        """Voxels of the last box read that the source does not have and that were made up."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Source(Protocol):
    """A described source; opens nothing until ``open``."""

    @property
    def url(self) -> str:
        """Where it is: an absolute path or a URL."""
        ...

    @property
    def shape(self) -> Vec:
        """Voxels, XYZ."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the numpy dtype in native byte order."""
        ...

    @property
    def piece(self) -> Vec:
        """The smallest box that is decoded at once, XYZ; pieces tile the source from voxel 0."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """Memory that reading takes besides the array it returns."""
        ...

    @property
    def voxel_size_nm(self) -> Vec3 | None:
        """The voxel size that it states, XYZ; None where it states none."""
        ...

    @property
    def origin_vx(self) -> Vec | None:
        """The frame voxel that it states for its first voxel, XYZ; None where it states none."""
        ...

    def open(self) -> Reader:
        """Open it for reading."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Its description, for manifests."""
        ...

    def lines(self) -> tuple[str, ...]:
        """Its description, for people: a line each."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Axes:
    """Where x, y and z lie in a stored array.

    Attributes:
        names: The name of each stored axis, slowest first: a permutation of ``xyz``, with a ``c``
            for a channel axis of length 1.
    """

    names: str

    def shape(self, stored: tuple[int, ...]) -> Vec:
        """XYZ shape of an array stored with this shape."""
        return vec(stored[self.names.index(a)] for a in "xyz")

    def index(self, box: Box) -> tuple[slice | int, ...]:
        """Index of a box in the stored array; the channel axis is dropped."""
        spans = dict(zip("xyz", zip(box.start, box.stop, strict=True), strict=True))
        return tuple(0 if a == "c" else slice(*spans[a]) for a in self.names)

    def to_xyz(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array read with ``index``, as a view with axes x, y, z."""
        left = self.names.replace("c", "")
        return array.transpose([left.index(a) for a in "xyz"])

    @property
    def slowest_first(self) -> tuple[int, ...]:
        """XYZ axis numbers in stored order, slowest first."""
        return tuple("xyz".index(a) for a in self.names if a != "c")


def parse_axes(axes: str | None, stored: tuple[int, ...], where: str) -> Axes:
    """The axes of a stored array as the user named them.

    Raises:
        RequestError: The rank is not 3, or 4 with a channel axis of length 1; the axes are missing,
            are no permutation or do not match the rank.
    """
    rank = len(stored)
    if rank not in (3, 4):
        raise RequestError(
            f"{where} has rank {rank} (shape {stored}); a volume has three axes, or four with a "
            "channel axis of length 1: give another array"
        )
    example = "zyx" if rank == 3 else "czyx"
    if axes is None:
        raise RequestError(
            f"{where} has shape {stored} and no axes were given; a wrong guess would turn the "
            f"volume unnoticed: give --axes in stored order, e.g. --axes {example}"
        )
    wanted = "xyz" if rank == 3 else "cxyz"
    if sorted(axes) != sorted(wanted):
        raise RequestError(
            f"--axes {axes} does not name the axes of {where} of rank {rank} (shape {stored}); "
            f"name each of {', '.join(wanted)} once, in stored order, e.g. --axes {example}"
        )
    if rank == 4 and stored[axes.index("c")] != 1:
        raise RequestError(
            f"{where} has {stored[axes.index('c')]} channels (shape {stored}, --axes {axes}); a "
            "volume holds one number a voxel: write the wanted channel to an array of its own"
        )
    return Axes(axes)


def stored_dtype(dtype: str, kind: Kind) -> str:
    """The dtype in which a source is stored: its own, ids without their sign.

    Ids are never negative, so a signed dtype becomes the unsigned one of the same width; a unit
    that holds a negative id is refused when it is read.
    """
    given = np.dtype(dtype)
    return f"uint{8 * given.itemsize}" if kind == "segmentation" else given.name


def check_dtype(dtype: np.dtype[Any], kind: Kind, where: str, asked: str | None = None) -> str:
    """The name, in native byte order, of a dtype that this kind of volume can be made from.

    Args:
        dtype: The stored dtype.
        kind: What the volume is to hold.
        where: What holds it, for messages.
        asked: The dtype that the volume is to have; None for the stored one. Every number is taken
            then, and checked when it is read.

    Raises:
        RequestError: An image that is not uint8 or uint16; ids that are not integers; no numbers.
    """
    if dtype.kind == "O":
        raise RequestError(
            f"{where} holds Python objects, which are not read since loading them can run code; "
            "save it as an array of integers"
        )
    name = dtype.newbyteorder("=").name
    if asked is not None and dtype.kind in "iuf" and dtype.itemsize <= 8:
        return name
    cast = "" if asked or dtype.kind not in "iuf" else ", or give --dtype if it holds whole numbers"
    if kind == "image" and name not in ("uint8", "uint16"):
        raise RequestError(
            f"{where} has dtype {name}; an image is uint8 or uint16, and any other scale of grey "
            f"is yours to choose: convert it{cast}, or say --kind segmentation if it holds ids"
        )
    if kind == "segmentation" and dtype.kind not in "iu":
        raise RequestError(
            f"{where} has dtype {name}; ids are integers, which {name} does not hold exactly or "
            f"not enough of: convert it to uint64{cast}, or say --kind image if it holds grey "
            "values"
        )
    return name


def stated_size(values: Sequence[float], where: str) -> Vec3:
    """A voxel size in nm as a file states it, XYZ, without the noise of its units.

    Files keep sizes as float32, as rationals or in other units, so it is rounded to 6 digits.

    Raises:
        RequestError: It is no size.
    """
    x, y, z = (float(f"{v:.6g}") for v in values)
    if not all(math.isfinite(v) and v > 0 for v in (x, y, z)):
        raise RequestError(
            f"{where} states a voxel size of {numbers((x, y, z))} nm (x, y, z), which is none; "
            "correct it in the file"
        )
    return (x, y, z)


def decoded_bytes(source: Source, box: Box) -> int:
    """Bytes that are decoded to read a box: its hull of whole pieces, clipped to the source."""
    voxels = math.prod(
        min(-(-b // p) * p, n) - a // p * p
        for a, b, p, n in zip(box.start, box.stop, source.piece, source.shape, strict=True)
    )
    return voxels * np.dtype(source.dtype).itemsize


def whole_units(extent: Vec, unit: Vec, limit: int, order: tuple[int, ...]) -> Vec:
    """The largest box of whole units within an extent that has at most ``limit`` voxels.

    The axes of ``order`` are shortened one after another, each only as far as needed and to no less
    than one unit; an axis that is not shortened keeps its extent, rounded up to whole units. One
    unit may exceed the limit: the caller checks.
    """
    shape = [-(-n // u) * u for n, u in zip(extent, unit, strict=True)]
    for axis in order:
        others = math.prod(shape) // shape[axis]
        units = max(1, limit // (others * unit[axis]))
        shape[axis] = min(shape[axis], units * unit[axis])
    return vec(shape)


def aligned(box: Box, shape: Vec) -> Iterator[Box]:
    """The parts of a box that a lattice of this shape, anchored at voxel 0, cuts it into."""
    grid = ChunkGrid(box, shape)
    for index in range(grid.size):
        yield grid.box(index)


def file_stamp(path: str) -> Stamp:
    """The stamp of a local file.

    Raises:
        RunError: It is gone.
    """
    try:
        found = os.stat(path)
    except OSError as e:
        raise RunError(f"{path} cannot be looked at any more: {e.strerror}") from e
    return (os.path.basename(path), f"{found.st_size}:{found.st_mtime_ns}")
