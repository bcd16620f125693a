"""The metadata of neuroglancer precomputed volumes: one ``info`` with a scale a level."""

from typing import Any

from volumes.redaction import redacted
from volumes.writing.codecs import precomputed_encoding, shard_encoding
from volumes.writing.layout import VolumeLayout
from volumes.writing.morton import sharding
from volumes.writing.zarr import decimal

_Json = dict[str, Any]


def multiscale_metadata(layout: VolumeLayout) -> _Json:
    """What all scales share, as TensorStore takes it."""
    return {"type": layout.kind, "data_type": layout.dtype, "num_channels": 1}


def scale_metadata(layout: VolumeLayout) -> _Json:
    """One scale, as TensorStore takes it."""
    scale: _Json = {
        "key": "_".join(decimal(v) for v in layout.voxel_size_nm),
        "size": list(layout.shape),
        "voxel_offset": list(layout.origin_vx),
        "resolution": list(layout.voxel_size_nm),
        "chunk_size": list(layout.chunk),
        **precomputed_encoding(layout.compression),
    }
    if layout.shard is not None:
        encoding = shard_encoding(layout.compression)
        scale["sharding"] = sharding(layout.shape, layout.chunk, layout.shard, encoding)
    return scale


def provenance_file(provenance: _Json) -> _Json:
    """The ``provenance`` file beside ``info``, as CloudVolume and igneous write it."""
    known: _Json = redacted(provenance)
    made = {"method": known, "by": "segclr-beam", "date": known.get("time", "")}
    return {
        "description": "",
        "owners": [],
        "sources": [str(known.get("source", ""))],
        "processing": [made],
    }
