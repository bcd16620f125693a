"""Volumes that a notebook makes and writes."""

import asyncio
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes import objects, provenance
from volumes.errors import RequestError
from volumes.geometry import Box, Vec, Vec3, vec
from volumes.lazy import LazyVolume, Voxels, absolute
from volumes.opening import Volume
from volumes.spec import Kind, VolumeSpec, canonical
from volumes.views.tree import Plain
from volumes.writing import (
    Codec,
    Target,
    VolumeLayout,
    as_type,
    create_levels,
    open_for_writing,
    storage_errors,
    write_box,
)

_CHUNK = (64, 64, 64)
_METADATA = ("zarr.json", ".zarray", ".zgroup", "attributes.json", "info")


@dataclasses.dataclass(frozen=True)
class StoredVolume(LazyVolume):
    """A volume that ``create`` made, which can be written.

    Attributes:
        target: What is written.
    """

    target: Target | None = None

    @functools.cached_property
    def _writing(self) -> Volume:
        assert self.target is not None  # create gives one
        return open_for_writing(self.target)

    async def write(self, box: Box, voxels: Voxels) -> None:
        """Write a box; when this returns, it is stored.

        Whole write chunks (see ``spec.write_grid``) are written as they are, others are merged with
        what is stored. Of overlapping boxes that are written at the same time any may win.

        Args:
            box: Frame voxels in the domain, XYZ.
            voxels: Of ``box.shape``; of the volume's type, or numbers that it holds exactly.

        Raises:
            RequestError: The box reaches outside, or the array does not fill it.
            RunError: A number does not fit, or the storage refuses.
        """
        await asyncio.to_thread(self.write_sync, box, voxels)

    def write_sync(self, box: Box, voxels: Voxels) -> None:
        """As ``write``."""
        spec, volume = self.spec, self._writing
        array = np.asarray(voxels)
        if not spec.domain.encloses(box) or box.size == 0 or array.shape != box.shape:
            raise RequestError(
                f"an array of shape {array.shape} is to fill {box} of {spec.source}, which has "
                f"{spec.domain}; give a box in it, and an array of its shape {box.shape}"
            )
        array = as_type(array, spec.dtype, f"the array for {box}")
        if _whole(box, volume.spec):
            write_box(volume, box, array)
        else:
            _merge(volume, box, array)


def create(
    url: str | os.PathLike[str],
    data: Voxels | Sequence[int],
    *,
    voxel_size_nm: Vec3,
    metadata: Mapping[str, Any] | None = None,
    dtype: npt.DTypeLike | None = None,
    kind: Kind | None = None,
    origin_vx: Vec = (0, 0, 0),
    chunk: Vec = _CHUNK,
    shard: Vec | None = None,
    format: str = "zarr3",
    codec: str | None = None,
) -> StoredVolume:
    """A new volume, empty or of an array's voxels.

    Args:
        url: Where; nothing may be there yet.
        data: The voxels ``[x, y, z]``, which are written, or their number on each axis.
        voxel_size_nm: Voxel size, XYZ.
        metadata: JSON that is kept with the volume, in its provenance.
        dtype: Type of a voxel; the array's own, or uint8.
        kind: What the voxels are; a segmentation where they are uint32 or uint64.
        origin_vx: Frame voxel of the first voxel, XYZ.
        chunk: Voxels of a chunk, XYZ.
        shard: Voxels of a shard, XYZ, a multiple of the chunk; none unless told.
        format: ``zarr3``, ``zarr2``, ``ome-zarr``, ``n5`` or ``precomputed``.
        codec: How chunks are compressed, as ``zstd:3``; the format's default unless told.

    Raises:
        RequestError: There is a volume already, or none can be made like that.
        RunError: The storage refuses.
    """
    where = absolute(os.fspath(url))
    array = data if isinstance(data, np.ndarray) else None
    shape = vec(data.shape if isinstance(data, np.ndarray) else data)
    name = np.dtype(dtype or (np.uint8 if array is None else array.dtype)).name
    usual: Kind = "segmentation" if name in ("uint32", "uint64") else "image"
    if any(objects.exists(objects.join(where, m)) for m in _METADATA):
        raise RequestError(
            f"{objects.redacted(where)} holds a volume already, which is not replaced; give "
            "another place, or remove it first"
        )
    layout = VolumeLayout(
        shape,
        name,
        kind or usual,
        (float(voxel_size_nm[0]), float(voxel_size_nm[1]), float(voxel_size_nm[2])),
        vec(origin_vx),
        vec(chunk),
        None if shard is None else vec(shard),
        format,
        None if codec is None else Codec.parse(codec),
    )
    made_by = {"time": provenance.now(), "software": provenance.software()}
    target = Target(where, layout)
    create_levels((target,), {**made_by, "metadata": dict(metadata or {})})
    spec = target.spec()
    document = canonical({"of": spec.source, "steps": []})
    created = StoredVolume(Plain(spec), document, (), target)
    if array is not None:
        created.write_sync(created.domain, array)
    return created


def _whole(box: Box, spec: VolumeSpec) -> bool:
    """Whether a box is made of whole write chunks."""
    grid = spec.write_grid
    first, last = grid.index_at(box.start), grid.index_at(vec(b - 1 for b in box.stop))
    return grid.box(first).hull(grid.box(last)) == box


def _merge(volume: Volume, box: Box, array: Voxels) -> None:
    """Write voxels beside those that their chunks hold."""
    with storage_errors(f"write voxels {box} of {volume.spec.source}"):
        index = tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
        written = volume.store[index].write(array)
        written.copy.result()
        written.result()
