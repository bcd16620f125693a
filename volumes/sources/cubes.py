"""Several datasets of an HDF5 file as one source: cubes that state where they lie.

The source is the hull of its cubes. What belongs to none is 0 and counted as absent; where cubes
overlap they must agree, or reading is an error, so that no voxel of any is lost.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec, Vec3, same_voxel_size, vec
from volumes.sources.base import Stamp, file_stamp
from volumes.sources.hdf5 import (
    Hdf5Reader,
    Hdf5Source,
    describe_dataset,
    listing,
    opened,
    states_place,
)
from volumes.spec import Kind, numbers


@dataclasses.dataclass(frozen=True, slots=True)
class CubesSource:
    """Cubes of one file.

    Attributes:
        url: Absolute path of the file.
        cubes: The datasets, each with its voxel size and origin.
        dtype: Name of the dtype in native byte order.
        voxel_size_nm: The voxel size of all, XYZ.
        hull: The frame voxels from the first of any to the last of any.
    """

    url: str
    cubes: tuple[Hdf5Source, ...]
    dtype: str
    voxel_size_nm: Vec3
    hull: Box

    @property
    def shape(self) -> Vec:
        """Voxels, XYZ."""
        return self.hull.shape

    @property
    def origin_vx(self) -> Vec:
        """Where the hull begins in the frame."""
        return self.hull.start

    @property
    def piece(self) -> Vec:
        """The HDF5 chunk, where all cubes have one and it tiles the hull; a voxel otherwise."""
        piece = self.cubes[0].piece
        within = [self.within(c).start for c in self.cubes]
        tiled = all(a % p == 0 for start in within for a, p in zip(start, piece, strict=True))
        return piece if tiled and all(c.piece == piece for c in self.cubes) else (1, 1, 1)

    @property
    def scratch_bytes(self) -> int:
        """That of the cube that takes most."""
        return max(c.scratch_bytes for c in self.cubes)

    def within(self, cube: Hdf5Source) -> Box:
        """A cube's voxels, counted from the first of the hull."""
        start = cube.origin_vx or (0, 0, 0)
        return Box.of(start, cube.shape).translated(vec(-o for o in self.hull.start))

    @property
    def empty_voxels(self) -> int:
        """Voxels of the hull that belong to no cube."""
        whole = Box((0, 0, 0), self.shape)
        return whole.size - covered(whole, [self.within(c) for c in self.cubes])

    def open(self) -> "CubesReader":
        """Open nothing yet; a cube is opened when it is read."""
        return CubesReader(self)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "type": "hdf5-cubes",
            "url": self.url,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "origin_vx": list(self.origin_vx),
            "cubes": [c.to_json() | {"origin_vx": list(c.origin_vx or ())} for c in self.cubes],
            "empty_voxels": self.empty_voxels,
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        empty = self.empty_voxels
        gaps = f"; {empty:,} voxels of it belong to none and are filled with zeros" if empty else ""
        first = f"HDF5 file {self.url}, {len(self.cubes)} cubes in {self.hull} (x, y, z){gaps}"
        return (first, *(f"cube {c.dataset}, axes {c.axes.names}{c.stated()}" for c in self.cubes))


class CubesReader:
    """The cubes of a source, open as far as they were needed."""

    def __init__(self, source: CubesSource) -> None:
        """Open nothing yet."""
        self._source = source
        self._readers: dict[int, Hdf5Reader] = {}
        self._absent = 0

    @property
    def absent(self) -> int:
        """Voxels of the last box read that belong to no cube."""
        return self._absent

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        source = self._source
        out = np.zeros(box.shape, source.dtype, order="F")
        filled: list[Box] = []
        for number, cube in enumerate(source.cubes):
            place = source.within(cube)
            part = place.intersection(box)
            if part.size == 0:
                continue
            voxels = self._reader(number).read(part.translated(vec(-a for a in place.start)))
            for other in filled:
                self._check_same(other.intersection(part), out, box, voxels, part, cube)
            out[part.slices(box)] = voxels
            filled.append(part)
        self._absent = box.size - covered(box, filled)
        return out

    def _check_same(
        self,
        both: Box,
        out: npt.NDArray[Any],
        box: Box,
        voxels: npt.NDArray[Any],
        part: Box,
        cube: Hdf5Source,
    ) -> None:
        """Refuse a cube that differs from those before it where they overlap."""
        before, now = out[both.slices(box)], voxels[both.slices(part)]
        differ = np.argwhere(before != now)
        if len(differ):
            at = tuple(int(i) for i in differ[0])
            voxel = vec(a + i + o for a, i, o in zip(
                both.start, at, self._source.hull.start, strict=True
            ))  # fmt: skip
            raise RunError(
                f"{self._source.url}: cube {cube.dataset} holds {now[at]} at frame voxel {voxel} "
                f"(x, y, z), where a cube before it holds {before[at]}; voxels of one would be "
                "lost: give cubes that agree where they overlap, or fewer of them"
            )

    def _reader(self, number: int) -> Hdf5Reader:
        if number not in self._readers:
            self._readers[number] = self._source.cubes[number].open()
        return self._readers[number]

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamp of the file."""
        return (file_stamp(self._source.url),)

    def close(self) -> None:
        """Close what is open."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}


def covered(within: Box, boxes: Sequence[Box]) -> int:
    """Voxels of a box that lie in any of the others, which may overlap."""
    parts = [b for b in (box.intersection(within) for box in boxes) if b.size]
    if not parts:
        return 0
    edges = [sorted({e for b in parts for e in (b.start[a], b.stop[a])}) for a in range(3)]
    cells = np.zeros([len(e) - 1 for e in edges], bool)
    for box in parts:
        spans = [(e.index(box.start[a]), e.index(box.stop[a])) for a, e in enumerate(edges)]
        cells[tuple(slice(*span) for span in spans)] = True
    x, y, z = (np.diff(np.array(e, np.int64)) for e in edges)
    depth = (cells @ z).astype(object)
    return int(x.astype(object) @ depth @ y.astype(object))


def resolve_hdf5(
    path: str, dataset: str | None, axes: str | None, kind: Kind, asked: str | None = None
) -> Hdf5Source | CubesSource:
    """Describe a dataset of a file, or several, given its absolute path, from its metadata.

    Args:
        path: Absolute path of the file.
        dataset: A dataset, several between commas, or a group of datasets that state their place.
        axes: Names of the stored axes.
        kind: What the volume is to hold.
        asked: The dtype that the volume is to have; None for the datasets' own.

    Raises:
        RequestError: The file or a dataset cannot be read, or holds what no volume is made of; or
            several do not make one volume.
    """
    try:
        file = opened(path)
    except OSError as e:
        raise RequestError(f"{path} is not an HDF5 file that can be read: {e}") from e
    with contextlib.closing(file):
        nodes = _found(file, path, dataset)
        if len(nodes) > 1 or isinstance(file.get(dataset), h5py.Group):
            _check_placed(nodes, path)
        found = tuple(describe_dataset(node, path, axes, kind, asked) for node in nodes)
    return found[0] if len(found) == 1 else _joined(path, found)


def _found(file: Any, path: str, dataset: str | None) -> list[Any]:
    """The datasets asked for, or an error that lists those there are."""
    if dataset is None:
        raise RequestError(
            f"{path} is an HDF5 file and no dataset was named; give --dataset, one of: "
            f"{listing(file)}"
        )
    whole = _node(file, dataset)
    if isinstance(whole, h5py.Dataset):
        return [whole]
    if isinstance(whole, h5py.Group):
        cubes = [n for n in whole.values() if isinstance(n, h5py.Dataset)]
        if any(states_place(n) for n in cubes):
            return cubes
    names = [dataset] if whole is not None else [n for n in dataset.split(",") if n] or [dataset]
    nodes = {name: _node(file, name) for name in names}
    for name, node in nodes.items():
        if not isinstance(node, h5py.Dataset):
            wrong = "is not in the file" if node is None else "is a group, not a dataset"
            raise RequestError(
                f"{path}: --dataset {name} {wrong}; give --dataset, one of: {listing(file)}"
            )
    return list(nodes.values())


def _node(file: Any, name: str) -> Any:
    try:
        return file[name]
    except (KeyError, ValueError):
        return None


def _check_placed(nodes: Sequence[Any], path: str) -> None:
    for node in nodes:
        if not states_place(node):
            raise RequestError(
                f"{path}: dataset {node.name} has no attributes resolution and offset (three "
                "numbers each, in nm, in stored order); without them the cubes of a volume have no "
                "place: write them, or give --dataset a single one"
            )


def _joined(path: str, cubes: tuple[Hdf5Source, ...]) -> CubesSource:
    """Cubes as one source."""
    first = cubes[0]
    size = first.voxel_size_nm or (0.0, 0.0, 0.0)
    for cube in cubes[1:]:
        if not same_voxel_size(cube.voxel_size_nm or size, size):
            raise RequestError(
                f"{path}: dataset {cube.dataset} has voxels of "
                f"{numbers(cube.voxel_size_nm or size)} nm and {first.dataset} of {numbers(size)} "
                "(x, y, z); a volume has one voxel size: ingest them one by one"
            )
        if cube.dtype != first.dtype:
            raise RequestError(
                f"{path}: dataset {cube.dataset} has dtype {cube.dtype} and {first.dataset} has "
                f"{first.dtype}; a volume has one dtype: ingest them one by one, or write them in "
                "one dtype"
            )
    hull = Box.of(first.origin_vx or (0, 0, 0), first.shape)
    for cube in cubes[1:]:
        hull = hull.hull(Box.of(cube.origin_vx or (0, 0, 0), cube.shape))
    return CubesSource(path, cubes, first.dtype, size, hull)
