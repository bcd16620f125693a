"""A source in another dtype: every voxel keeps its value, or reading it is an error."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.errors import RunError
from volumes.geometry import Box, Vec, Vec3
from volumes.sources.base import Reader, Source, Stamp, aligned, whole_units

CAST_DTYPES = ("uint8", "uint16", "uint32", "uint64")
"""What a volume's dtype may be asked to be."""

READ_BYTES = 64 * 2**20
"""Bytes that are read and cast at a time, unless a single piece of the source is larger."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastSource:
    """A source whose voxels are given another dtype.

    Attributes:
        source: Where they come from.
        dtype: One of ``CAST_DTYPES``.
    """

    source: Source
    dtype: str

    @property
    def url(self) -> str:
        """Where the source is."""
        return self.source.url

    @property
    def shape(self) -> Vec:
        """Voxels, XYZ."""
        return self.source.shape

    @property
    def piece(self) -> Vec:
        """The source's."""
        return self.source.piece

    @property
    def scratch_bytes(self) -> int:
        """The source's, what is read of it at a time, and what checking that takes."""
        piece = np.prod([float(n) for n in self.piece]) * np.dtype(self.source.dtype).itemsize
        return self.source.scratch_bytes + 3 * max(READ_BYTES, int(piece))

    @property
    def voxel_size_nm(self) -> Vec3 | None:
        """The source's."""
        return self.source.voxel_size_nm

    @property
    def origin_vx(self) -> Vec | None:
        """The source's."""
        return self.source.origin_vx

    def open(self) -> "CastReader":
        """Open the source."""
        return CastReader(self, self.source.open())

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return self.source.to_json() | {"dtype": self.dtype, "stored_dtype": self.source.dtype}

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        given = self.source.dtype
        cast = f"{given} voxels become {self.dtype}; one whose value that does not hold is an error"
        return (*self.source.lines(), cast)


class CastReader:
    """An open source, with the dtype its voxels are given."""

    def __init__(self, source: CastSource, reader: Reader) -> None:
        """Keep both."""
        self._source = source
        self._reader = reader
        self._absent = 0

    @property
    def absent(self) -> int:
        """Voxels of the last box read that were made up."""
        return self._absent

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        source = self._source
        out = np.empty(box.shape, source.dtype, order="F")
        limit = READ_BYTES // np.dtype(source.source.dtype).itemsize
        step = whole_units(box.shape, source.piece, limit, (2, 1, 0))
        self._absent = 0
        for part in aligned(box, step):
            voxels = self._reader.read(part)
            self._absent += self._reader.absent
            out[part.slices(box)] = cast(voxels, source.dtype, part, source.url)
        return out

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The source's stamps."""
        return self._reader.stamps(box)

    def close(self) -> None:
        """Close the source."""
        self._reader.close()


def cast(voxels: npt.NDArray[Any], dtype: str, box: Box, where: str) -> npt.NDArray[Any]:
    """The same values in an unsigned dtype.

    Args:
        voxels: ``[x, y, z]``, integers or floats.
        dtype: One of ``CAST_DTYPES``.
        box: Which voxels of the source they are.
        where: What they were read from.

    Raises:
        RunError: The dtype does not hold a value; it is named with its voxel.
    """
    limit = int(np.iinfo(dtype).max)
    if voxels.dtype.kind == "f":
        # A float is never rounded by the comparison with a power of two.
        with np.errstate(invalid="ignore", over="ignore"):
            fits = (voxels >= 0) & (voxels < float(limit + 1)) & (voxels == np.floor(voxels))
        whole = bool(fits.all())
    else:
        held = np.iinfo(voxels.dtype)
        whole = (held.min >= 0 or int(voxels.min()) >= 0) and (
            held.max <= limit or int(voxels.max()) <= limit
        )
        fits = np.ones(0, bool) if whole else _within(voxels, limit)
    if whole:
        return voxels.astype(dtype)
    at = tuple(int(i) for i in np.argwhere(~fits)[0])
    place = tuple(a + i for a, i in zip(box.start, at, strict=True))
    raise RunError(
        f"{where} holds {voxels[at]} at voxel {place} (x, y, z), in {box}; {dtype} holds whole "
        f"numbers from 0 to {limit}, and no value is rounded or cut: give a wider --dtype, or "
        "replace the value, and start again"
    )


def _within(voxels: npt.NDArray[Any], limit: int) -> npt.NDArray[np.bool_]:
    """Where integers lie in ``[0, limit]``, compared without a conversion that wraps."""
    held = np.iinfo(voxels.dtype)
    inside = np.ones(voxels.shape, bool)
    if held.min < 0:
        inside &= voxels >= 0
    if held.max > limit:
        inside &= voxels <= limit
    return inside
