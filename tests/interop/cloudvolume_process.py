"""The process that uses CloudVolume: ``write|read SCRATCH``, what is asked as JSON on stdin.

See ``cloudvolume_side``, which starts it.
"""

import itertools
import json
import pathlib
import sys
from typing import Any

import numpy as np
from cloudvolume import Bbox, CloudVolume
from cloudvolume.datasource.precomputed.sharding import ShardingSpecification


def main(what: str, scratch: str) -> None:
    asked = json.load(sys.stdin)
    if what == "write":
        for volume in asked:
            _write(volume)
        print("[]")
    else:
        told = [_read(volume["folder"], f"{scratch}/{i}") for i, volume in enumerate(asked)]
        print(json.dumps(told))


def _open(folder: str, mip: int = 0, compress: str = "", info: Any = None) -> Any:
    return CloudVolume(
        f"file://{folder}",
        mip=mip,
        info=info,
        compress=compress or False,
        progress=False,
        parallel=1,
        cache=False,
        fill_missing=False,
    )


def _write(how: dict[str, Any]) -> None:
    arrays = [np.load(path) for path in how["levels"]]
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type=how["kind"],
        data_type=arrays[0].dtype.name,
        encoding=how["encoding"],
        resolution=how["resolution"],
        voxel_offset=how["offset"],
        chunk_size=how["chunk"],
        volume_size=arrays[0].shape,
    )
    volume = _open(how["folder"], info=info)
    for level in range(1, len(arrays)):
        volume.add_scale([f**level for f in how["factor"]])
    for scale, array in zip(volume.info["scales"], arrays, strict=True):
        assert list(scale["size"]) == list(array.shape)
        if how["sharded"]:
            scale["sharding"] = _sharding(array.shape, how["chunk"])
    volume.commit_info()
    volume.commit_provenance()
    for level, array in enumerate(arrays):
        opened = _open(how["folder"], level, how["compress"])
        if how["sharded"]:
            _write_shards(opened, array)
        else:
            opened[opened.bounds] = array


def _sharding(shape: Any, chunk: Any) -> dict[str, Any]:
    """Shards of up to eight chunks in two minishards; the rest of the Morton code names them."""
    counts = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    bits = sum((n - 1).bit_length() for n in counts)
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": 2,
        "hash": "identity",
        "minishard_bits": 1,
        "shard_bits": max(0, bits - 3),
        "minishard_index_encoding": "gzip",
        "data_encoding": "gzip",
    }


def _write_shards(volume: Any, array: Any) -> None:
    spec = ShardingSpecification.from_dict(volume.scale["sharding"])
    shape = [int(n) for n in volume.image.shard_shape(volume.mip)]
    start = [int(n) for n in volume.bounds.minpt]
    axes = [range(0, n, s) for n, s in zip(array.shape, shape, strict=True)]
    for low in itertools.product(*axes):
        high = [min(a + s, n) for a, s, n in zip(low, shape, array.shape, strict=True)]
        part = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        box = Bbox(np.add(low, start), np.add(high, start))
        name, shard = volume.image.make_shard(part[..., np.newaxis], box, volume.mip, spec)
        file = pathlib.Path(volume.cloudpath.removeprefix("file://"), volume.key, name)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(shard)


def _read(folder: str, prefix: str) -> list[dict[str, Any]]:
    told = []
    for level in range(len(list(_open(folder).available_mips))):
        volume = _open(folder, level)
        name = f"{prefix}-{level}.npy"
        np.save(name, np.asarray(volume[volume.bounds])[..., 0])
        told.append(
            {
                "array": name,
                "resolution": [float(v) for v in volume.resolution],
                "offset": [int(v) for v in volume.voxel_offset],
                "kind": volume.layer_type,
                "encoding": volume.encoding,
                "sharded": volume.scale.get("sharding") is not None,
            }
        )
    return told


if __name__ == "__main__":
    main(*sys.argv[1:])
