"""A dataset of a local HDF5 file as a source.

Reads go in pieces that are bounded in bytes and made of whole HDF5 chunks, so that a chunk is
decompressed once a read and the dataset is never held whole.
"""

import contextlib
import dataclasses
import math
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec
from volumes.sources_base import (
    Axes,
    Stamp,
    aligned,
    check_dtype,
    file_stamp,
    parse_axes,
    whole_units,
)
from volumes.spec import Kind

READ_BYTES = 64 * 2**20
"""Bytes of one read, unless a single HDF5 chunk is larger."""

_LISTED = 30


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
    """

    url: str
    dataset: str
    axes: Axes
    shape: Vec
    dtype: str
    chunk: Vec | None

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
        return (f"{where}, {kept}",)


class Hdf5Reader:
    """An open HDF5 dataset."""

    def __init__(self, source: Hdf5Source) -> None:
        """Open the dataset of a source, and check that it still is what was planned."""
        self._source = source
        try:
            self._file = _opened(source.url)
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


def resolve_hdf5(path: str, dataset: str | None, axes: str | None, kind: Kind) -> Hdf5Source:
    """Describe a dataset of a file, given its absolute path, from the file's metadata.

    Raises:
        RequestError: The file or the dataset cannot be read, or holds what no volume is made of.
    """
    try:
        file = _opened(path)
    except OSError as e:
        raise RequestError(f"{path} is not an HDF5 file that can be read: {e}") from e
    with contextlib.closing(file):
        node = _found(file, path, dataset)
        where = f"{path}: dataset {node.name}"
        _check_stored_here(node, where)
        dtype = check_dtype(node.dtype, kind, where)
        parsed = parse_axes(axes, node.shape, where)
        chunk = parsed.shape(node.chunks) if node.chunks else None
        name = node.name.strip("/")
        return Hdf5Source(path, name, parsed, parsed.shape(node.shape), dtype, chunk)


def _opened(path: str) -> Any:
    # Readers need no lock, and file systems without locks would refuse one.
    return h5py.File(path, "r", locking="best-effort")


def _found(file: Any, path: str, dataset: str | None) -> Any:
    """The dataset asked for, or an error that lists those there are."""
    if dataset is None:
        raise RequestError(
            f"{path} is an HDF5 file and no dataset was named; give --dataset, one of: "
            f"{_listing(file)}"
        )
    try:
        node = file[dataset]
    except (KeyError, ValueError):
        node = None
    if node is None or isinstance(node, h5py.Group):
        wrong = "is not in the file" if node is None else "is a group, not a dataset"
        raise RequestError(
            f"{path}: --dataset {dataset} {wrong}; give --dataset, one of: {_listing(file)}"
        )
    return node


def _listing(file: Any) -> str:
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
