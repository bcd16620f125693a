"""Small volumes in every format, written with TensorStore itself."""

import json
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

Array = npt.NDArray[Any]
_ZSTD = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1}}]


def noise(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> Array:
    """Voxels of which none is 0, so that a voxel that was not read is told."""
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def create(path: pathlib.Path, spec: dict[str, Any]) -> ts.TensorStore:
    """A new array with absent chunks."""
    return ts.open(spec | {"kvstore": f"file://{path}/", "create": True}).result()


def zarr2(
    path: pathlib.Path,
    data: Array,
    chunk: tuple[int, ...],
    attributes: dict[str, Any] | None = None,
    fill: int | None = None,
) -> pathlib.Path:
    """A Zarr 2 array of data in stored order."""
    metadata = {
        "shape": list(data.shape),
        "chunks": list(chunk),
        "dtype": data.dtype.str,
        "fill_value": fill,
        "compressor": None,
    }
    create(path, {"driver": "zarr", "metadata": metadata})[...] = data
    if attributes is not None:
        (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def zarr3(
    path: pathlib.Path,
    data: Array,
    chunk: tuple[int, ...],
    *,
    shard: tuple[int, ...] | None = None,
    names: tuple[str, ...] | None = None,
    attributes: dict[str, Any] | None = None,
) -> pathlib.Path:
    """A Zarr 3 array of data in stored order, sharded if asked."""
    inner = {"chunk_shape": list(chunk), "codecs": _ZSTD}
    metadata: dict[str, Any] = {
        "shape": list(data.shape),
        "data_type": data.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard or chunk)}},
        "codecs": [{"name": "sharding_indexed", "configuration": inner}] if shard else _ZSTD,
        "attributes": attributes or {},
    }
    if names is not None:
        metadata["dimension_names"] = list(names)
    create(path, {"driver": "zarr3", "metadata": metadata})[...] = data
    return path


def n5(
    path: pathlib.Path, data: Array, chunk: tuple[int, ...], attributes: dict[str, Any]
) -> pathlib.Path:
    """An N5 dataset; its attributes are written by hand, as other tools do."""
    metadata = {
        "dimensions": list(data.shape),
        "blockSize": list(chunk),
        "dataType": data.dtype.name,
        "compression": {"type": "gzip"},
    }
    create(path, {"driver": "n5", "metadata": metadata})[...] = data
    file = path / "attributes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | attributes))
    return path


def precomputed(
    path: pathlib.Path,
    data: Array,
    chunk: tuple[int, ...],
    *,
    resolution: tuple[float, ...] = (8, 8, 8),
    offset: tuple[int, ...] = (0, 0, 0),
    sharded: bool = False,
) -> pathlib.Path:
    """One more scale of a precomputed volume, raw."""
    scale: dict[str, Any] = {
        "size": list(data.shape),
        "chunk_size": list(chunk),
        "resolution": list(resolution),
        "voxel_offset": list(offset),
        "encoding": "raw",
    }
    if sharded:
        scale["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1",
            "preshift_bits": 1,
            "hash": "identity",
            "minishard_bits": 1,
            "shard_bits": 1,
        }
    kind = {"data_type": data.dtype.name, "num_channels": 1, "type": "image"}
    spec = {
        "driver": "neuroglancer_precomputed",
        "multiscale_metadata": kind,
        "scale_metadata": scale,
    }
    create(path, spec)[...] = data[..., None]
    return path


OME_AXES = [
    {"name": "z", "type": "space", "unit": "micrometer"},
    {"name": "y", "type": "space", "unit": "nanometer"},
    {"name": "x", "type": "space", "unit": "nanometer"},
]


def multiscale(
    scales: list[list[float]],
    translations: list[list[float] | None],
    axes: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """OME-Zarr metadata of one image whose levels lie at ``s0``, ``s1``, ..."""
    datasets = []
    for i, (scale, translation) in enumerate(zip(scales, translations, strict=True)):
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if translation is not None:
            steps.append({"type": "translation", "translation": translation})
        datasets.append({"path": f"s{i}", "coordinateTransformations": steps})
    return {"version": "0.4", "axes": axes or OME_AXES, "datasets": datasets}


def ome_group(path: pathlib.Path, image: dict[str, Any], version: str) -> pathlib.Path:
    """The group of an OME-Zarr image, without its arrays."""
    path.mkdir(exist_ok=True)
    if version == "0.4":
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    else:
        attributes = {"ome": {"version": version, "multiscales": [image]}}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (path / "zarr.json").write_text(json.dumps(group))
    return path
