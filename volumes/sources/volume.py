"""A volume as a source: what ``convert`` and ``downsample`` read."""

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.errors import DataError
from volumes.geometry import Box, Vec, Vec3, vec
from volumes.opening import Volume, open_volume
from volumes.reading import MissingChunks, read_box, read_whole
from volumes.sources.base import Stamp
from volumes.spec import VIEW, VolumeSpec
from volumes.stamps import stamp
from volumes.views.tree import read_per_voxel

IN_FLIGHT = 64 << 20
"""Decoded bytes of the chunks that are read at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeSource:
    """A volume, or a part of it, as a source.

    Attributes:
        spec: The volume that is read.
        box: Which frame voxels of it are the source.
        missing: What a chunk that is not stored is.
        stamped: The volume by whose stamps a change is told, where it is another one, of which the
            first is a passing copy.
    """

    spec: VolumeSpec
    box: Box
    missing: MissingChunks = "error"
    stamped: VolumeSpec | None = None

    @property
    def url(self) -> str:
        """Where it is, as the user gave it."""
        return self.spec.source

    @property
    def shape(self) -> Vec:
        """Voxels, XYZ."""
        return self.box.shape

    @property
    def dtype(self) -> str:
        """Name of the stored type."""
        return self.spec.dtype

    @property
    def piece(self) -> Vec:
        """The volume's read chunk."""
        return self.spec.read_chunk

    @property
    def offset(self) -> Vec:
        """A voxel of the source at which a read chunk begins."""
        grid = self.spec.read_grid
        return vec(a - o for a, o in zip(grid.anchor, self.box.start, strict=True))

    @property
    def scratch_bytes(self) -> int:
        """The chunks that are decoded at once."""
        itemsize = self.spec.itemsize
        chunk = int(np.prod([float(n) for n in self.spec.read_chunk])) * itemsize
        more = read_per_voxel(self.spec) if self.spec.format == VIEW else 1.0
        return round(more * max(chunk, min(IN_FLIGHT, self.box.size * itemsize)))

    @property
    def voxel_size_nm(self) -> Vec3:
        """The volume's voxel size."""
        return self.spec.voxel_size_nm

    @property
    def origin_vx(self) -> Vec:
        """Where the part begins in the frame."""
        return self.box.start

    def open(self) -> "VolumeReader":
        """Open nothing yet; what is read is opened when it is read."""
        return VolumeReader(self)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "type": "volume",
            "volume": self.spec.to_json(),
            "box": self.box.to_json(),
            "missing": self.missing,
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        chunks = ",".join(map(str, self.spec.read_chunk))
        part = "" if self.box == self.spec.domain else f", of which {self.box}"
        return (
            f"{self.spec.kind} {self.spec.source}: {self.spec.format}, {self.spec.dtype} over "
            f"{self.spec.domain}{part}, read in chunks of {chunks}",
        )


class VolumeReader:
    """A volume as a source, open as far as it was needed."""

    def __init__(self, source: VolumeSource) -> None:
        """Open nothing yet."""
        self._source = source
        self._absent = 0

    @functools.cached_property
    def _volume(self) -> Volume:
        return open_volume(self._source.spec)

    @functools.cached_property
    def _stamped(self) -> Volume:
        other = self._source.stamped
        return self._volume if other is None else open_volume(other)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        wanted = box.translated(self._source.box.start)
        self._absent = 0
        is_view = self._volume.spec.format == VIEW  # which bounds what it reads by its pieces
        whole = None if is_view else read_whole(self._volume, wanted)
        if whole is not None:
            return whole
        try:
            part = read_box(
                self._volume,
                wanted,
                missing=self._source.missing,
                order="F",
                bytes_in_flight=IN_FLIGHT,
            )
        except DataError as e:
            raise DataError(
                f"{e}. With --missing zero, chunks that are not stored are taken as zeros"
            ) from e
        self._absent = sum(b.size for b in part.missing)
        return part.array

    @property
    def absent(self) -> int:
        """Voxels of the last box read that were not stored and taken as zeros."""
        return self._absent

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamp of the chunks under a box."""
        found = stamp(self._stamped, box.translated(self._source.box.start))
        return (("chunks", "none" if found is None else found),)

    def close(self) -> None:
        """Nothing is held open."""
