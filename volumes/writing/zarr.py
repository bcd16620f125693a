"""The metadata of zarr3 and zarr2 arrays.

zarr3 chunks are ``bytes`` (little endian), the codec and ``crc32c``: without the checksum a flipped
bit is a wrong voxel that nobody notices. Attributes give what Zarr has no place for:
``dimension_units`` the voxel size, ``voxel_offset`` where the first voxel lies in the frame,
``segclr_beam`` kind and provenance. zarr2 arrays, which have no checksum, get the attributes that
funlib and xarray read: ``resolution``, ``units``, ``voxel_offset``, ``_ARRAY_DIMENSIONS``.
"""

from typing import Any

import numpy as np

from volumes.redaction import redacted
from volumes.writing.codecs import zarr2_compressor, zarr3_codecs
from volumes.writing.layout import VolumeLayout

_Json = dict[str, Any]

_CRC = {"name": "crc32c"}


def zarr3_metadata(layout: VolumeLayout, provenance: _Json) -> _Json:
    """The metadata document of a zarr3 array, secrets removed from the provenance."""
    little: _Json = {"name": "bytes"}
    if layout.itemsize > 1:
        little |= {"configuration": {"endian": "little"}}
    chain = [little, *zarr3_codecs(layout.compression, layout.itemsize), _CRC]
    if layout.shard is not None:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, _CRC]
        sharding = {
            "chunk_shape": layout.stored(layout.chunk),
            "codecs": chain,
            "index_codecs": index,
            "index_location": "end",
        }
        chain = [{"name": "sharding_indexed", "configuration": sharding}]
    grid = {"chunk_shape": layout.stored(layout.write_chunk)}
    return {
        "shape": layout.stored(layout.shape),
        "data_type": layout.dtype,
        "fill_value": 0,
        "dimension_names": list(layout.axes),
        "chunk_grid": {"name": "regular", "configuration": grid},
        "chunk_key_encoding": {"name": "default"},
        "codecs": chain,
        "attributes": {
            "dimension_units": [f"{decimal(v)} nm" for v in _sizes(layout)],
            "voxel_offset": layout.stored(layout.origin_vx),
            "segclr_beam": {"kind": layout.kind, "provenance": redacted(provenance)},
        },
    }


def zarr2_metadata(layout: VolumeLayout) -> _Json:
    """The ``.zarray`` of a zarr2 array."""
    return {
        "shape": layout.stored(layout.shape),
        "chunks": layout.stored(layout.chunk),
        "dtype": np.dtype(layout.dtype).newbyteorder("<").str,
        "compressor": zarr2_compressor(layout.compression),
        "fill_value": 0,
        "order": "C",
        "dimension_separator": "/",
        "filters": None,
    }


def zarr2_attributes(layout: VolumeLayout, provenance: _Json) -> _Json:
    """The ``.zattrs`` of a zarr2 array."""
    return {
        "_ARRAY_DIMENSIONS": list(layout.axes),
        "resolution": _sizes(layout),
        "units": ["nm"] * 3,
        "dimension_units": [f"{decimal(v)} nm" for v in _sizes(layout)],
        "voxel_offset": layout.stored(layout.origin_vx),
        "segclr_beam": {"kind": layout.kind, "provenance": redacted(provenance)},
    }


def decimal(value: float) -> str:
    """A number without an exponent."""
    return np.format_float_positional(value, trim="-")


def _sizes(layout: VolumeLayout) -> list[float]:
    return [layout.voxel_size_nm["xyz".index(a)] for a in layout.axes]
