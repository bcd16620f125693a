"""What the user asks of an ingest: typed, frozen, checked without looking at any storage."""

import dataclasses
import math

from pipelines.request import refuse_secrets
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3
from volumes.spec import Kind

CHUNK: Vec = (64, 64, 64)
"""Voxels of a chunk, unless the user says otherwise."""

MEMORY_MB = 1024
"""Memory of a worker's slab in MB, unless the user says otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class IngestConfig:
    """The request.

    Attributes:
        source: A directory of PNG sections, an HDF5 file or an NPY file.
        output: Directory of the volume: a local path or a URL.
        kind: ``image`` or ``segmentation``.
        voxel_size_nm: Voxel size in nm, XYZ.
        origin_vx: Frame coordinate of the first voxel, XYZ.
        dataset: Path of the dataset in an HDF5 file.
        axes: Stored axes of an HDF5 or NPY array, slowest first.
        chunk: Voxels of a chunk, XYZ.
        shard: Voxels of a shard, XYZ, a multiple of the chunk; None to let the plan choose.
        memory_mb: What a worker may take for a slab, in units of 10**6 bytes, besides Python and
            its libraries.
    """

    source: str
    output: str
    kind: Kind
    voxel_size_nm: Vec3
    origin_vx: Vec = (0, 0, 0)
    dataset: str | None = None
    axes: str | None = None
    chunk: Vec = CHUNK
    shard: Vec | None = None
    memory_mb: int = MEMORY_MB

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.kind not in ("image", "segmentation"):
            raise RequestError(
                f"--kind {self.kind} is neither image nor segmentation; the kind decides which "
                "dtypes are taken and how voxels are compressed: give one of the two"
            )
        if not all(math.isfinite(v) and v > 0 for v in self.voxel_size_nm):
            raise RequestError(
                f"--voxel-size {_listed(self.voxel_size_nm)} is not a size in nm; every position "
                "is computed from it: give three positive numbers X,Y,Z"
            )
        for flag, value in (("--chunk", self.chunk), ("--shard", self.shard)):
            if value is not None and min(value) < 1:
                raise RequestError(
                    f"{flag} {_listed(value)} has an axis without a voxel; give three integers "
                    "X,Y,Z of at least 1"
                )
        if self.memory_mb < 1:
            raise RequestError(f"--memory-mb {self.memory_mb} is less than 1; give MB of memory")
        if not self.source or not self.output:
            raise RequestError("--source and --output are needed; give a path or URL for each")
        refuse_secrets("into manifests", output=self.output)


def _listed(values: Vec | Vec3) -> str:
    return ",".join(f"{v:g}" for v in values)
