"""A local ``.npy`` file as a source: mapped into memory, never loaded whole, never unpickled."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec
from volumes.sources_base import (
    Axes,
    Stamp,
    check_dtype,
    file_stamp,
    parse_axes,
)
from volumes.spec import Kind

MAGIC = b"\x93NUMPY"
"""The first bytes of every ``.npy`` file."""


@dataclasses.dataclass(frozen=True, slots=True)
class NpySource:
    """An array in a ``.npy`` file.

    Attributes:
        url: Absolute path of the file.
        axes: Names of the stored axes.
        shape: Voxels, XYZ.
        dtype: Name of the dtype in native byte order.
    """

    url: str
    axes: Axes
    shape: Vec
    dtype: str

    @property
    def piece(self) -> Vec:
        """A voxel: only what is asked for is touched."""
        return (1, 1, 1)

    @property
    def scratch_bytes(self) -> int:
        """Nothing: voxels go from the map into the result."""
        return 0

    def open(self) -> "NpyReader":
        """Map the file."""
        return NpyReader(self)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "type": "npy",
            "url": self.url,
            "axes": self.axes.names,
            "shape": list(self.shape),
            "dtype": self.dtype,
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        return (f"NPY file {self.url}, axes {self.axes.names}",)


class NpyReader:
    """A mapped ``.npy`` file."""

    def __init__(self, source: NpySource) -> None:
        """Map the file of a source, and check that it still is what was planned."""
        self._source = source
        self._array: npt.NDArray[Any] | None = None
        try:
            array = _mapped(source.url)
        except (OSError, ValueError) as e:
            raise RunError(f"{source.url} cannot be read any more: {e}") from e
        if (
            array.ndim != len(source.axes.names)
            or source.axes.shape(array.shape) != source.shape
            or array.dtype.newbyteorder("=").name != source.dtype
        ):
            raise RunError(
                f"{source.url} now holds {array.dtype} of shape {array.shape}, which is not what "
                "was planned; let nothing write to it and start again"
            )
        self._array = array

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


def resolve_npy(path: str, axes: str | None, kind: Kind) -> NpySource:
    """Describe a ``.npy`` file, given its absolute path, from its header.

    Raises:
        RequestError: The file cannot be mapped, or holds what no volume is made of.
    """
    try:
        array = _mapped(path)
    except ValueError as e:
        if "Python objects" in str(e):
            check_dtype(np.dtype(object), kind, path)
        raise RequestError(f"{path} is not a whole NPY file: {e}") from e
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror or e}") from e
    dtype = check_dtype(array.dtype, kind, path)
    parsed = parse_axes(axes, array.shape, path)
    return NpySource(path, parsed, parsed.shape(array.shape), dtype)


def _mapped(path: str) -> npt.NDArray[Any]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of arrays")
    return array
