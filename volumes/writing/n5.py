"""The metadata of N5 datasets, whose dimensions are listed fastest first."""

from typing import Any

from volumes.redaction import redacted
from volumes.writing.codecs import n5_compression
from volumes.writing.layout import VolumeLayout

_Json = dict[str, Any]


def n5_metadata(layout: VolumeLayout, provenance: _Json) -> _Json:
    """The ``attributes.json`` of an N5 dataset: Janelia's members, ours beside them."""
    sizes = layout.stored(layout.voxel_size_nm)
    origins = layout.stored(layout.origin_vx)
    ordered = zip(sizes, origins, strict=True)
    return {
        "dimensions": layout.stored(layout.shape),
        "blockSize": layout.stored(layout.chunk),
        "dataType": layout.dtype,
        "compression": n5_compression(layout.compression),
        "axes": list(layout.axes),
        "resolution": sizes,
        "units": ["nm"] * 3,
        "offset": [size * origin for size, origin in ordered],
        "segclr_beam": {"kind": layout.kind, "provenance": redacted(provenance)},
    }
