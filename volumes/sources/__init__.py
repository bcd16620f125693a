"""What a volume is ingested from: sections in a directory, TIFF stacks, HDF5, NPY, MRC, NIfTI."""

from volumes.sources.base import Reader, Source, Stamp, decoded_bytes, stored_dtype
from volumes.sources.casting import CAST_DTYPES
from volumes.sources.numbering import MISSING_SECTIONS, MissingSections
from volumes.sources.resolving import resolve_source
from volumes.sources.stated import agreed_origin, agreed_voxel_size

__all__ = [
    "CAST_DTYPES",
    "MISSING_SECTIONS",
    "MissingSections",
    "Reader",
    "Source",
    "Stamp",
    "agreed_origin",
    "agreed_voxel_size",
    "decoded_bytes",
    "resolve_source",
    "stored_dtype",
]
