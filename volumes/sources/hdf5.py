"""A dataset of a local HDF5 file as a source.

Reads go in pieces that are bounded in bytes and made of whole HDF5 chunks, so that a chunk is
decompressed once a read and the dataset is never held whole.

A dataset may state where it lies, as those of CREMI do: attributes ``resolution`` and ``offset``,
both in nm and in the order of the stored axes. Below ``volumes/``, where CREMI keeps its own, a
dataset with a resolution is z, y, x unless the user says otherwise.
"""

import dataclasses
import math
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec, Vec3, vec
from volumes.sources.base import (
    Axes,
    Stamp,
    aligned,
    check_dtype,
    file_stamp,
    parse_axes,
    stated_size,
    whole_units,
)
from volumes.spec import Kind, numbers

READ_BYTES = 64 * 2**20
"""Bytes of one read, unless a single HDF5 chunk is larger."""

_LISTED = 30
_CREMI = "volumes/"
_NOISE = 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class Hdf5Source:
    """A dataset in an HDF5 file.

    Attributes:
        url: Absolute path of the file.
        dataset: Path of the dataset in the file.
        axes: Names of the stored axes.
        shape: Voxels, XYZ.
        dtype: Name of the dtype in native byte order.
        chunk: Shape XYZ of the HDF5 chunks; None where the dataset is stored in one run.
        voxel_size_nm: Its attribute ``resolution``, XYZ; None where it has none.
        origin_vx: Its attribute ``offset`` in voxels, XYZ; None where it has none.
    """

    url: str
    dataset: str
    axes: Axes
    shape: Vec
    dtype: str
    chunk: Vec | None
    voxel_size_nm: Vec3 | None = None
    origin_vx: Vec | None = None

    @property
    def piece(self) -> Vec:
        """An HDF5 chunk, or a voxel where there are none."""
        return self.chunk or (1, 1, 1)

    @property
    def scratch_bytes(self) -> int:
        """One read and, for HDF5's own buffers, as much again."""
        return 2 * max(READ_BYTES, math.prod(self.piece) * np.dtype(self.dtype).itemsize)

    def open(self) -> "Hdf5Reader":
        """Open the file."""
        return Hdf5Reader(self)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "type": "hdf5",
            "url": self.url,
            "dataset": self.dataset,
            "axes": self.axes.names,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "chunk": list(self.chunk) if self.chunk else None,
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        kept = f"HDF5 chunks of {self.chunk}" if self.chunk else "no HDF5 chunks"
        where = f"HDF5 file {self.url}, dataset {self.dataset}, axes {self.axes.names}"
        return (f"{where}, {kept}{self.stated()}",)

    def stated(self) -> str:
        """What it states of its place, for people; empty where it states nothing."""
        size = f"; it states {numbers(self.voxel_size_nm)} nm" if self.voxel_size_nm else ""
        return size + (f", first voxel at {self.origin_vx}" if self.origin_vx else "")


class Hdf5Reader:
    """An open HDF5 dataset."""

    absent = 0

    def __init__(self, source: Hdf5Source) -> None:
        """Open the dataset of a source, and check that it still is what was planned."""
        self._source = source
        try:
            self._file = opened(source.url)
        except OSError as e:
            raise RunError(f"{source.url} cannot be read any more: {e}") from e
        node = self._file.get(source.dataset)
        if (
            not isinstance(node, h5py.Dataset)
            or len(node.shape) != len(source.axes.names)
            or source.axes.shape(node.shape) != source.shape
            or node.dtype.newbyteorder("=").name != source.dtype
        ):
            self._file.close()
            raise RunError(
                f"{source.url}: dataset {source.dataset} is not what was planned any more; let "
                "nothing write to it and start again"
            )
        self._dataset = node

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        source = self._source
        out = np.empty(box.shape, source.dtype, order="F")
        limit = READ_BYTES // out.itemsize
        step = whole_units(box.shape, source.piece, limit, source.axes.slowest_first)
        for part in aligned(box, step):
            try:
                stored = self._dataset[source.axes.index(part)]
            except OSError as e:
                raise RunError(
                    f"{source.url}: dataset {source.dataset} cannot be read at {part} (x, y, z): "
                    f"{e}; repair or replace the file and run the same command again"
                ) from e
            out[part.slices(box)] = source.axes.to_xyz(stored)
        return out

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamp of the file."""
        return (file_stamp(self._source.url),)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def describe_dataset(
    node: Any, path: str, axes: str | None, kind: Kind, asked: str | None = None
) -> Hdf5Source:
    """Describe a dataset of an open file.

    Args:
        node: The dataset.
        path: Absolute path of the file.
        axes: Names of the stored axes; None for those that CREMI's layout means.
        kind: What the volume is to hold.
        asked: The dtype that the volume is to have; None for the dataset's own.

    Raises:
        RequestError: No volume is made of it, or what it states cannot be.
    """
    where = f"{path}: dataset {node.name}"
    name = node.name.strip("/")
    _check_stored_here(node, where)
    dtype = check_dtype(node.dtype, kind, where, asked)
    if axes is None and name.startswith(_CREMI) and _three(node, "resolution") is not None:
        axes = "zyx" if len(node.shape) == 3 else None
    parsed = parse_axes(axes, node.shape, where)
    chunk = parsed.shape(node.chunks) if node.chunks else None
    size, origin = _place(node, parsed, where)
    return Hdf5Source(path, name, parsed, parsed.shape(node.shape), dtype, chunk, size, origin)


def _place(node: Any, axes: Axes, where: str) -> tuple[Vec3 | None, Vec | None]:
    """The voxel size and the origin that a dataset's attributes state."""
    resolution, offset = _three(node, "resolution"), _three(node, "offset")
    if resolution is None:
        return None, None
    size = stated_size([resolution[axes.slowest_first.index(i)] for i in range(3)], where)
    if offset is None:
        return size, None
    given = [offset[axes.slowest_first.index(i)] for i in range(3)]
    voxels = [o / s for o, s in zip(given, size, strict=True)]
    if not all(math.isfinite(v) and abs(v - round(v)) < _NOISE for v in voxels):
        raise RequestError(
            f"{where} has an offset of {numbers(tuple(given))} nm (x, y, z), which is "
            f"{numbers(tuple(voxels))} voxels of {numbers(size)} nm; a volume begins at a whole "
            "voxel: resample it, or correct the attribute"
        )
    return size, vec(round(v) for v in voxels)


def _three(node: Any, name: str) -> list[float] | None:
    """An attribute of three numbers; None where there is none."""
    if name not in node.attrs:
        return None
    value = np.asarray(node.attrs[name])
    if value.shape != (3,) or value.dtype.kind not in "iuf":
        return None
    return [float(v) for v in value]


def states_place(node: Any) -> bool:
    """Whether a dataset states its voxel size and where it lies."""
    return _three(node, "resolution") is not None and _three(node, "offset") is not None


def opened(path: str) -> Any:
    """A file, open for reading.

    Raises:
        OSError: It is no HDF5 file that can be read.
    """
    # Readers need no lock, and file systems without locks would refuse one.
    return h5py.File(path, "r", locking="best-effort")


def listing(file: Any) -> str:
    """Every dataset of a file with shape and dtype, in one line."""
    found: list[str] = []

    def note(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found.append(f"{name} {node.shape} {node.dtype}")

    file.visititems(note)
    more = f", and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(found[:_LISTED]) + more if found else "(the file holds no dataset)"


def _check_stored_here(node: Any, where: str) -> None:
    """Refuse what the file's own stamp would not tell about, and filters that are not there."""
    if node.shape is None:
        raise RequestError(f"{where} holds nothing (an empty dataspace); give another dataset")
    if node.is_virtual or node.external:
        raise RequestError(
            f"{where} keeps its voxels in other files, whose changes would go unnoticed; copy it "
            "to a dataset of its own (h5repack) and give that"
        )
    properties = node.id.get_create_plist()
    for i in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(i)
        if not h5py.h5z.filter_avail(code):
            raise RequestError(
                f"{where} is compressed with filter {code} ({name.decode(errors='replace')}), "
                "which this h5py lacks; install the filter, or rewrite it with gzip (h5repack)"
            )
