"""What the user asks of a pyramid: typed, frozen, checked without looking at any storage."""

import dataclasses
import math

from pipelines.request import refuse_empty, refuse_secrets, refuse_unwritable
from pipelines.writing.layout import UNSHARDED
from volumes.cells import CELL_LIMIT
from volumes.downsampling import Method
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3
from volumes.reading import MissingChunks
from volumes.spec import Kind, numbers
from volumes.writing import Codec

MEMORY_MB = 2048
"""Memory of a worker in MB, unless the user says otherwise."""

MOST_LEVELS = 30
"""More levels than that no volume has: a voxel of the last would be a billion wide."""


@dataclasses.dataclass(frozen=True, slots=True)
class DownsampleConfig:
    """The request.

    Attributes:
        volume: A VOLUME; without ``output`` an OME-Zarr 0.5 group or a precomputed volume.
        levels: How many levels to make; None for as many as it takes to fit into a chunk.
        factors: For each step how many voxels of the level before make one, XYZ; the last repeats;
            None for a ladder that makes voxels more alike on all axes.
        method: ``mean``, ``mode`` or ``sparse-mode``; None for mean in images, mode in
            segmentations.
        output: Directory of a new volume, which gets the input's level too; None to add the levels
            to the volume itself.
        format: Of a new volume: ``ome-zarr`` (None, too) or ``precomputed``.
        chunk: Voxels of a chunk, XYZ; None for the input's own.
        shard: ``none`` to store chunks one by one; None for shards where the format has them.
        codec: ``NAME`` or ``NAME:LEVEL``; None for the input's own where the format has it.
        kind: What the voxels mean, where the volume does not say.
        scale: Voxel size in nm, XYZ, of the level to begin with; None for the coarsest there is.
        voxel_size_nm: Voxel size, XYZ, where the volume states none.
        missing: What a chunk that is not stored is; None for an error in images and zeros in
            segmentations.
        memory_mb: What a worker may take, in units of 10**6 bytes, besides Python and its
            libraries.
        allow_functions: Packages whose functions a view may run.
    """

    volume: str
    levels: int | None = None
    factors: tuple[Vec, ...] | None = None
    method: Method | None = None
    output: str | None = None
    format: str | None = None
    chunk: Vec | None = None
    shard: str | None = None
    codec: str | None = None
    kind: Kind | None = None
    scale: Vec3 | None = None
    voxel_size_nm: Vec3 | None = None
    missing: MissingChunks | None = None
    memory_mb: int = MEMORY_MB
    allow_functions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        refuse_empty(volume=self.volume, output=self.output)
        refuse_secrets("into manifests", output=self.output)
        refuse_unwritable(output=self.output)
        if self.levels is not None and not 1 <= self.levels <= MOST_LEVELS:
            raise RequestError(
                f"--levels {self.levels} is no number of levels to make; give 1 to {MOST_LEVELS}"
            )
        if self.output is None:
            self._check_in_place()
        for factor in self.factors or ():
            if min(factor) < 1 or max(factor) < 2:
                raise RequestError(
                    f"--factors {numbers(factor)} makes nothing coarser; give integers X,Y,Z of at "
                    "least 1, one of them 2 or more"
                )
            if math.prod(factor) >= CELL_LIMIT:
                raise RequestError(
                    f"--factors {numbers(factor)} makes one voxel of {math.prod(factor):,}, and a "
                    f"step takes fewer than {CELL_LIMIT:,}; give several steps, as in 8,8,8/8,8,8"
                )
        if self.chunk is not None and min(self.chunk) < 1:
            raise RequestError(
                f"--chunk {numbers(self.chunk)} has an axis without a voxel; give three integers "
                "X,Y,Z of at least 1"
            )
        if self.shard not in (None, UNSHARDED):
            raise RequestError(
                f"--shard {self.shard}: shards follow from the levels made in one pass; give "
                f"{UNSHARDED} to store chunks one by one, or leave it out"
            )
        if self.codec is not None:
            Codec.parse(self.codec)
        if self.memory_mb < 1:
            raise RequestError(f"--memory-mb {self.memory_mb} is less than 1; give MB of memory")

    def _check_in_place(self) -> None:
        """Refuse what is said by the volume that gets the levels."""
        given = {
            "--format": self.format,
            "--scale": self.scale,
            "--voxel-size": self.voxel_size_nm,
        }
        for flag, value in given.items():
            if value is not None:
                told = value if isinstance(value, str) else numbers(value)
                raise RequestError(
                    f"{flag} {told}: levels are added to --volume as it is, below its coarsest "
                    "one; leave it out, or give --output for a new volume"
                )
