"""What the user asks of an ingest: typed, frozen, checked without looking at any storage."""

import dataclasses
import math

from pipelines.request import refuse_secrets, refuse_unwritable
from pipelines.writing.layout import CHUNK, check_stored
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3
from volumes.sources import MissingSections
from volumes.sources.resolving import check_asked
from volumes.spec import Kind

MEMORY_MB = 1024
"""Memory of a worker's unit in MB, unless the user says otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class IngestConfig:
    """The request.

    Attributes:
        source: A directory of sections (PNG, JPEG, TIFF), or a file: HDF5, NPY, TIFF, MRC, NIfTI.
        output: Directory of the volume: a local path or a URL.
        kind: ``image`` or ``segmentation``.
        voxel_size_nm: Voxel size in nm, XYZ; None for the one that the source states.
        origin_vx: Frame coordinate of the first voxel, XYZ; None for the one that the source
            states, or voxel 0.
        dataset: Path of the dataset in an HDF5 file, several between commas, or a group of them.
        axes: Stored axes of an array, slowest first; None where the source states them.
        chunk: Voxels of a chunk, XYZ.
        shard: Voxels of a shard, XYZ, a multiple of the chunk; ``none`` for none; None to let the
            plan choose.
        format: ``zarr2``, ``zarr3``, ``ome-zarr``, ``n5`` or ``precomputed``.
        codec: ``NAME`` or ``NAME:LEVEL``; ``auto`` to choose from a sample; None for the default.
        memory_mb: What a worker may take for a unit, in units of 10**6 bytes, besides Python and
            its libraries.
        dtype: Dtype of the volume; None for the source's.
        missing_sections: What a missing section is: ``refuse``, ``blank`` or ``nearest``.
    """

    source: str
    output: str
    kind: Kind
    voxel_size_nm: Vec3 | None = None
    origin_vx: Vec | None = None
    dataset: str | None = None
    axes: str | None = None
    chunk: Vec = CHUNK
    shard: Vec | str | None = None
    format: str = "zarr3"
    codec: str | None = None
    memory_mb: int = MEMORY_MB
    dtype: str | None = None
    missing_sections: MissingSections = "refuse"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.kind not in ("image", "segmentation"):
            raise RequestError(
                f"--kind {self.kind} is neither image nor segmentation; the kind decides which "
                "dtypes are taken and how voxels are compressed: give one of the two"
            )
        size = self.voxel_size_nm
        if size is not None and not all(math.isfinite(v) and v > 0 for v in size):
            raise RequestError(
                f"--voxel-size {_listed(size)} is not a size in nm; every position "
                "is computed from it: give three positive numbers X,Y,Z"
            )
        check_asked(self.kind, self.dtype, self.missing_sections)
        check_stored(self.format, self.chunk, self.shard, self.codec)
        if self.memory_mb < 1:
            raise RequestError(f"--memory-mb {self.memory_mb} is less than 1; give MB of memory")
        if not self.source or not self.output:
            raise RequestError("--source and --output are needed; give a path or URL for each")
        refuse_secrets("into manifests", output=self.output)
        refuse_unwritable(output=self.output)


def _listed(values: Vec | Vec3) -> str:
    return ",".join(f"{v:g}" for v in values)
