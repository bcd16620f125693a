"""What a volume that this package writes is made like."""

import dataclasses
import math
from typing import TypeVar

import numpy as np

from volumes.errors import RequestError
from volumes.geometry import Box, ChunkGrid, Vec, Vec3
from volumes.levels import SPATIAL
from volumes.spec import Kind, numbers
from volumes.writing.codecs import FORMATS, SHARDED, Codec, check_codec, default_codec
from volumes.writing.morton import shard_bits

_T = TypeVar("_T")

_ANY_ORDER = ("zarr2", "zarr3", "ome-zarr", "n5")

PRECOMPUTED_DTYPES = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32"),
)
"""What voxels of precomputed volumes can be."""

_listed = ", ".join(PRECOMPUTED_DTYPES)


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeLayout:
    """One level of a volume: its voxels, and how they are stored.

    Attributes:
        shape: Voxels, XYZ.
        dtype: NumPy name of the stored type.
        kind: What the voxels mean.
        voxel_size_nm: Voxel size in nm, XYZ.
        origin_vx: Frame coordinate of the first voxel, XYZ.
        chunk: Voxels of a chunk, the unit of reading.
        shard: Voxels of a shard, the unit of writing: a multiple of the chunk on each axis; None
            where chunks are stored one by one.
        format: ``zarr2``, ``zarr3``, ``ome-zarr``, ``n5`` or ``precomputed``.
        codec: How chunks are compressed; None for the format's default.
        axes: The stored order of the dimensions; precomputed has x, y, z alone.
    """

    shape: Vec
    dtype: str
    kind: Kind
    voxel_size_nm: Vec3
    origin_vx: Vec
    chunk: Vec
    shard: Vec | None
    format: str = "zarr3"
    codec: Codec | None = None
    axes: tuple[str, ...] = SPATIAL

    def __post_init__(self) -> None:
        """Refuse what no volume of the format can be."""
        if self.format not in FORMATS:
            raise RequestError(
                f"--format {self.format} is not written here; give one of {', '.join(FORMATS)}"
            )
        if sorted(self.axes) != sorted(SPATIAL):
            raise RequestError(
                f"the axes {''.join(self.axes)} are no order of x, y and z; a volume has each once"
            )
        if self.format not in _ANY_ORDER and self.axes != SPATIAL:
            raise RequestError(
                f"--axes {''.join(self.axes)}: {self.format} stores x, y, z and no other order; "
                "leave it out"
            )
        if self.format == "precomputed" and self.dtype not in PRECOMPUTED_DTYPES:
            raise RequestError(
                f"--format precomputed has no voxels of {self.dtype}, only {_listed}; give --dtype "
                "with one of them, which every voxel must fit into, or another format"
            )
        if self.shard is not None:
            self._check_shard(self.shard)
        if self.codec is None:
            codec = default_codec(self.format, self.kind, self.dtype, sharded=bool(self.shard))
            object.__setattr__(self, "codec", codec)
        check_codec(self.compression, self.format, self.dtype, sharded=bool(self.shard))

    def _check_shard(self, shard: Vec) -> None:
        if self.format not in SHARDED:
            raise RequestError(
                f"--shard {numbers(shard)}: {self.format} has no shards; leave it out, or give "
                f"--format {' or '.join(SHARDED)}"
            )
        if any(s < c or s % c for s, c in zip(shard, self.chunk, strict=True)):
            raise RequestError(
                f"shard {shard} is not a multiple of chunk {self.chunk} on each axis (x, y, "
                "z); a shard is made of whole chunks: give a --shard that is"
            )
        if self.format == "precomputed":
            shard_bits(self.shape, self.chunk, shard)

    @property
    def compression(self) -> Codec:
        """The codec, the default where none was named."""
        if self.codec is None:
            raise ValueError("a layout gets its codec when it is made")
        return self.codec

    @property
    def domain(self) -> Box:
        """The voxels, in the frame."""
        return Box.of(self.origin_vx, self.shape)

    @property
    def write_chunk(self) -> Vec:
        """What is written at once: the shard, or the chunk where there are none."""
        return self.shard or self.chunk

    @property
    def write_grid(self) -> ChunkGrid:
        """The lattice of what is written at once; formats begin it at the first voxel."""
        return ChunkGrid(self.domain, self.write_chunk, self.origin_vx)

    @property
    def itemsize(self) -> int:
        """Bytes of a voxel."""
        return int(np.dtype(self.dtype).itemsize)

    @property
    def write_bytes(self) -> int:
        """Bytes of what is written at once, before compression."""
        return math.prod(self.write_chunk) * self.itemsize

    def stored(self, values: tuple[_T, ...]) -> list[_T]:
        """Values by x, y, z in the stored order of the dimensions."""
        return [values[SPATIAL.index(a)] for a in self.axes]
