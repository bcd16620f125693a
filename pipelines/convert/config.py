"""What the user asks of a conversion: typed, frozen, checked without looking at any storage."""

import dataclasses
from typing import Literal

import numpy as np

from pipelines.request import refuse_empty, refuse_secrets, refuse_unwritable
from pipelines.writing.layout import CHUNK, check_stored
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3
from volumes.levels import SPATIAL
from volumes.spec import Kind, numbers

Missing = Literal["error", "zero", "keep"]
"""What a chunk that is not stored is: an error, zeros, or not stored in the output either."""

Rechunk = Literal["auto", "direct", "staged"]
"""Whether voxels pass through a copy with chunks between those of source and output."""

MEMORY_MB = 2048
"""Memory of a worker in MB, unless the user says otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConvertConfig:
    """The request.

    Attributes:
        input: A VOLUME.
        output: Directory of the volume: a local path or a URL.
        format: ``zarr2``, ``zarr3``, ``ome-zarr``, ``n5`` or ``precomputed``.
        chunk: Voxels of a chunk, XYZ.
        shard: Voxels of a shard, XYZ; ``none`` for none; None to let the plan choose.
        codec: ``NAME`` or ``NAME:LEVEL``; ``auto`` to choose from a sample; None for the default.
        dtype: The type to store; None for the input's own.
        crop: Frame voxels to convert, as start and stop, XYZ; None for all.
        origin_vx: Frame voxel at which the output's first voxel is to lie; None where it lies.
        axes: The stored order of the dimensions; None for the format's usual one.
        kind: What the voxels mean, where the volume does not say.
        scale: Voxel size in nm, XYZ, of the level to take.
        voxel_size_nm: Voxel size, XYZ, where the volume states none.
        missing: What a chunk of the input that is not stored is; None for an error in images and
            zeros in segmentations.
        rechunk: Whether voxels pass through a copy.
        staging: Directory of that copy; None for one below the output.
        memory_mb: What a worker may take, in units of 10**6 bytes, besides Python and its
            libraries.
        allow_functions: Packages whose functions a view may run.
    """

    input: str
    output: str
    format: str = "zarr3"
    chunk: Vec = CHUNK
    shard: Vec | str | None = None
    codec: str | None = None
    dtype: str | None = None
    crop: tuple[Vec, Vec] | None = None
    origin_vx: Vec | None = None
    axes: str | None = None
    kind: Kind | None = None
    scale: Vec3 | None = None
    voxel_size_nm: Vec3 | None = None
    missing: Missing | None = None
    rechunk: Rechunk = "auto"
    staging: str | None = None
    memory_mb: int = MEMORY_MB
    allow_functions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        refuse_empty(input=self.input, output=self.output, staging=self.staging)
        refuse_secrets("into manifests", output=self.output, staging=self.staging)
        refuse_unwritable(output=self.output, staging=self.staging)
        check_stored(self.format, self.chunk, self.shard, self.codec)
        self._check_dtype()
        start, stop = self.crop or ((0, 0, 0), (1, 1, 1))
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            raise RequestError(
                f"--crop {','.join(f'{a}:{b}' for a, b in zip(start, stop, strict=True))} has no "
                "voxel; on each axis the second number is larger than the first"
            )
        if max(map(abs, self.origin_vx or (0,))) > _FARTHEST:
            raise RequestError(
                f"--origin {numbers(self.origin_vx or ())} is farther than {_FARTHEST:,} voxels "
                "from the frame's first, where no format counts; give a nearer one"
            )
        if self.axes is not None and sorted(self.axes) != sorted(SPATIAL):
            raise RequestError(
                f"--axes {self.axes} is no order of x, y and z; name each once, as in zyx"
            )
        if self.memory_mb < 1:
            raise RequestError(f"--memory-mb {self.memory_mb} is less than 1; give MB of memory")

    def _check_dtype(self) -> None:
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise RequestError(
                f"--dtype {self.dtype} is no type of voxels; give one of {', '.join(_DTYPES)}"
            )


_FARTHEST = 10**18

_DTYPES = tuple(
    np.dtype(t).name for t in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8")
)
