"""Arrays that lie in a local file in one run: mapped into memory, never loaded whole.

NPY, MRC, NIfTI and plain TIFF stacks differ in their headers alone. A format is a function that
describes a file; the reader calls it again, so that a file that was replaced since is noticed.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec, Vec3
from volumes.sources.base import Axes, Stamp, check_dtype, file_stamp, parse_axes
from volumes.spec import Kind


@dataclasses.dataclass(frozen=True, slots=True)
class FlatArray:
    """Where an array lies in a file, and what the file says of it.

    Attributes:
        offset: Byte at which it begins.
        dtype: NumPy's text of its dtype, with the byte order.
        stored: Its shape, in the order of ``axes``.
        order: ``C`` where its last axis is the fastest, ``F`` where its first is.
        axes: Names of its axes; None where the file does not tell.
        voxel_size_nm: XYZ; None where the file states none.
        origin_vx: XYZ; None where the file states none.
        notes: What the user should know, a line each.
    """

    offset: int
    dtype: str
    stored: tuple[int, ...]
    order: Literal["C", "F"] = "C"
    axes: str | None = None
    voxel_size_nm: Vec3 | None = None
    origin_vx: Vec | None = None
    notes: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.offset + math.prod(self.stored) * np.dtype(self.dtype).itemsize


Describe = Callable[[str], FlatArray]
"""Describes a file, given its absolute path, from its header, or raises ``RequestError``."""


@dataclasses.dataclass(frozen=True, slots=True)
class FlatSource:
    """An array in a file.

    Attributes:
        format: ``NPY``, ``MRC``, ``NIfTI`` or ``TIFF``.
        url: Absolute path of the file.
        array: Where it lies.
        axes: Names of the stored axes.
        describe: What reads the header of this format.
    """

    format: str
    url: str
    array: FlatArray
    axes: Axes
    describe: Describe

    @property
    def shape(self) -> Vec:
        """Voxels, XYZ."""
        return self.axes.shape(self.array.stored)

    @property
    def dtype(self) -> str:
        """Name of the dtype in native byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=").name

    @property
    def piece(self) -> Vec:
        """A voxel: only what is asked for is touched."""
        return (1, 1, 1)

    @property
    def scratch_bytes(self) -> int:
        """Nothing: voxels go from the map into the result."""
        return 0

    @property
    def voxel_size_nm(self) -> Vec3 | None:
        """The voxel size that the file states, XYZ."""
        return self.array.voxel_size_nm

    @property
    def origin_vx(self) -> Vec | None:
        """The frame voxel that the file states for its first voxel, XYZ."""
        return self.array.origin_vx

    def open(self) -> "FlatReader":
        """Map the file."""
        return FlatReader(self)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "type": self.format.lower(),
            "url": self.url,
            "axes": self.axes.names,
            "shape": list(self.shape),
            "dtype": self.dtype,
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        return (f"{self.format} file {self.url}, axes {self.axes.names}", *self.array.notes)


class FlatReader:
    """A mapped file."""

    absent = 0

    def __init__(self, source: FlatSource) -> None:
        """Map the file of a source, and check that it still is what was planned."""
        self._source = source
        self._array: npt.NDArray[Any] | None = None
        array = described_again(source.url, source.describe, source.array)
        try:
            self._array = np.memmap(
                source.url, np.dtype(array.dtype), "r", array.offset, array.stored, array.order
            )
        except (OSError, ValueError) as e:
            raise RunError(f"{source.url} cannot be read any more: {e}") from e

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        if self._array is None:
            raise RunError(f"{self._source.url} is closed")
        axes = self._source.axes
        out = np.empty(box.shape, self._source.dtype, order="F")
        out[...] = axes.to_xyz(self._array[axes.index(box)])
        return out

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamp of the file."""
        return (file_stamp(self._source.url),)

    def close(self) -> None:
        """Drop the map."""
        self._array = None


def described_again(path: str, describe: Describe, planned: FlatArray) -> FlatArray:
    """What the header says now, which must be what it said when the job was planned.

    Raises:
        RunError: It is not, or cannot be read.
    """
    try:
        array = describe(path)
    except RequestError as e:
        raise RunError(f"{path} cannot be read any more: {e}") from e
    if array != planned:
        raise RunError(
            f"{path} now holds {np.dtype(array.dtype)} of shape {array.stored}, which is not what "
            "was planned; let nothing write to it and start again"
        )
    return array


def resolve_flat(
    file_format: str,
    path: str,
    describe: Describe,
    axes: str | None,
    kind: Kind,
    asked: str | None = None,
) -> FlatSource:
    """A source of a file, given its absolute path.

    Raises:
        RequestError: The file cannot be read, or holds what no volume is made of.
    """
    array = describe(path)
    check_dtype(np.dtype(array.dtype), kind, path, asked)
    return FlatSource(file_format, path, array, settled_axes(array, axes, path), describe)


def settled_axes(array: FlatArray, axes: str | None, path: str) -> Axes:
    """The axes that the user gave or the file states, which must not differ.

    Raises:
        RequestError: They differ, there are none, or they do not fit the array.
    """
    if axes is not None and array.axes is not None and axes != array.axes:
        raise RequestError(
            f"--axes {axes} was given, but the header of {path} says {array.axes}, slowest first; "
            "one of them would turn the volume: leave --axes out, or correct the header"
        )
    return parse_axes(axes or array.axes, array.stored, path)


def check_whole(path: str, array: FlatArray) -> FlatArray:
    """The array, if the file is as long as its header says.

    Raises:
        RequestError: It is cut short.
    """
    size = file_bytes(path)
    if size < array.end:
        raise RequestError(
            f"{path} is cut short: it has {size} bytes and its header tells of {array.end}; supply "
            "the whole file"
        )
    return array


def file_bytes(path: str) -> int:
    """Bytes of a file.

    Raises:
        RequestError: It cannot be looked at.
    """
    try:
        return os.path.getsize(path)
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror}") from e
