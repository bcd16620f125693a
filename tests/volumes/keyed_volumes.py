"""The same voxels in every format, spread over keys in every way, with the key of each chunk."""

import dataclasses
import json

import tensorstore as ts

from tests.volumes import sample_volumes as made
from volumes.geometry import Box
from volumes.opening import Volume, open_volume, resolve_volume

SIZE = (8.0, 8.0, 40.0)
SHAPE = (20, 15, 10)
CHUNK = (8, 8, 4)
SHARD = (16, 16, 8)
ORIGIN = (5, -6, 7)
DOMAIN = Box.of(ORIGIN, SHAPE)
DATA = made.noise(SHAPE)
FIRST = Box.of(ORIGIN, CHUNK)
LAST = Box((21, 2, 15), (25, 9, 17))
OUTSIDE = Box((-30, -30, -30), (5, 30, 30))
METADATA = {".zarray", ".zattrs", "zarr.json", "attributes.json", "info"}
UNITS = {"dimension_units": ["8 nm", "8 nm", "40 nm"], "voxel_offset": list(ORIGIN)}


def opened(given, kind="image", **stated) -> Volume:
    return open_volume(resolve_volume(str(given), kind=kind, **stated))


def zarr2(path, separator, order):
    """The data in an order of axes such as ``tczyx``, its keys written with a separator."""
    axes = [a for a in order if a in "xyz"]
    data = DATA.transpose(["xyz".index(a) for a in axes])
    data = data.reshape([SHAPE["xyz".index(a)] if a in "xyz" else 1 for a in order])
    metadata = {
        "shape": list(data.shape),
        "chunks": [CHUNK["xyz".index(a)] if a in "xyz" else 1 for a in order],
        "dtype": "|u1",
        "compressor": None,
        "dimension_separator": separator,
    }
    made.create(path, {"driver": "zarr", "metadata": metadata})[...] = data
    stated = {
        "resolution": [dict(zip("xyz", SIZE, strict=True)).get(a, 1) for a in order],
        "offset": [dict(x=40, y=-48, z=280).get(a, 0) for a in order],
        "axis_names": list(order),
    }
    (path / ".zattrs").write_text(json.dumps(stated))
    return path


def zarr3_keys(path, encoding, separator):
    """A Zarr 3 array whose keys are encoded in another way."""
    metadata = {
        "shape": list(SHAPE),
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(CHUNK)}},
        "chunk_key_encoding": {"name": encoding, "configuration": {"separator": separator}},
        "attributes": UNITS,
    }
    made.create(path, {"driver": "zarr3", "metadata": metadata})[...] = DATA
    return path


def sharding(preshift, minishards, shards, hashed):
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": preshift,
        "minishard_bits": minishards,
        "shard_bits": shards,
        "hash": hashed,
    }


def precomputed(place, shape, chunk, sharded, offset=ORIGIN, key=None):
    """A precomputed scale with absent chunks, open to be written."""
    scale = {"size": shape, "chunk_size": chunk, "resolution": SIZE, "voxel_offset": offset}
    scale |= {"encoding": "raw"} | ({"sharding": sharded} if sharded else {})
    kind = {"data_type": "uint8", "num_channels": 1, "type": "image"}
    spec = {"driver": "neuroglancer_precomputed", "multiscale_metadata": kind}
    spec["scale_metadata"] = scale | ({"key": key} if key else {})
    return made.create(place, json.loads(json.dumps(spec)))


def spread(path, *bits):
    precomputed(path, SHAPE, CHUNK, sharding(*bits))[...] = DATA[..., None]
    return path


def in_ocdbt(path, shard=None, version=None):
    """A JSON spec of a Zarr 3 array inside an OCDBT database, made unless it is there."""
    kvstore = {"driver": "ocdbt", "base": f"file://{path}/", "path": "a/"}
    if not path.exists():
        inner = {"chunk_shape": list(CHUNK)}
        metadata = {
            "shape": list(SHAPE),
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard or CHUNK}},
            "attributes": UNITS,
        }
        if shard:
            metadata["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]
        spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
        ts.open(json.loads(json.dumps(spec))).result()[...] = DATA
    pinned = {} if version is None else {"version": version}
    return json.dumps({"driver": "zarr3", "kvstore": kvstore | pinned})


MAKERS = {
    "zarr2 zyx": lambda path: zarr2(path, ".", "zyx"),
    "zarr2 tczyx": lambda path: zarr2(path, "/", "tczyx"),
    "zarr2 xyzc": lambda path: zarr2(path, ".", "xyzc"),
    "zarr3": lambda path: made.zarr3(path, DATA, CHUNK, attributes=UNITS),
    "zarr3 dots": lambda path: zarr3_keys(path, "default", "."),
    "zarr3 v2": lambda path: zarr3_keys(path, "v2", "/"),
    "zarr3 sharded": lambda path: made.zarr3(path, DATA, CHUNK, shard=SHARD, attributes=UNITS),
    "n5": lambda path: made.n5(path, DATA, CHUNK, {"resolution": SIZE, "offset": [40, -48, 280]}),
    "n5 c": lambda path: made.n5(
        path,
        DATA[..., None],
        (*CHUNK, 1),
        {"resolution": [*SIZE, 1], "offset": [40, -48, 280, 0], "axes": list("xyzc")},
    ),
    "precomputed": lambda path: made.precomputed(path, DATA, CHUNK, resolution=SIZE, offset=ORIGIN),
    "precomputed two shards": lambda path: spread(path, 1, 1, 1, "identity"),
    "precomputed one shard": lambda path: spread(path, 2, 3, 0, "identity"),
    "precomputed murmur": lambda path: spread(path, 0, 2, 5, "murmurhash3_x86_128"),
    "precomputed murmur 64": lambda path: spread(path, 1, 0, 64, "murmurhash3_x86_128"),
    "ocdbt": in_ocdbt,
    "ocdbt sharded": lambda path: in_ocdbt(path, SHARD),
}


@dataclasses.dataclass
class Case:
    """A volume, a way to write it, and the key that each of its chunks was seen to lie in."""

    volume: Volume
    writer: ts.TensorStore
    owner: dict[int, str]

    def keys(self, box):
        return {self.owner[i] for i in self.volume.spec.read_grid.meeting(box)}

    def cells(self):
        grid = self.volume.spec.read_grid
        return [grid.box(i) for i in range(grid.size)]


def unpinned(given):
    """The volume as it is at each moment, also inside a database."""
    return open_volume(dataclasses.replace(opened(given).spec, pinned=None))


def writable(volume):
    """The volume in its frame, written through another context than it is read with."""
    stored = ts.open(json.loads(volume.spec.tensorstore), open=True).result()
    return stored[volume.store.spec().transform]


def touch(writer, voxel):
    """Give one voxel another value, not 0."""
    writer[voxel] = int(writer[voxel].read().result()) % 249 + 1


def stored(writer):
    """Generation of each stored key, metadata left out."""
    keys = [k.decode() for k in writer.kvstore.list().result()]
    reads = {k: writer.kvstore.read(k).result() for k in keys if k not in METADATA}
    return {k: (r.stamp.generation, r.value) for k, r in reads.items()}


def case(name, path):
    volume = unpinned(MAKERS[name](path))
    writer = writable(volume)
    grid, owner = volume.spec.read_grid, {}
    for i in range(grid.size):
        before = stored(writer)
        touch(writer, grid.box(i).start)
        after = stored(writer)
        (owner[i],) = {k for k in after if after[k] != before.get(k)}
    return Case(volume, writer, owner)
