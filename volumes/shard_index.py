"""Which chunks a shard holds, read from its index; no chunk is read.

An index has a place for each chunk that the shard can hold (Zarr 3), or for each minishard and each
chunk that is there (precomputed); ``places`` tells how many, so that callers can bound them.
"""

import concurrent.futures
import dataclasses
import gzip
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes.context import process_context
from volumes.errors import DataError
from volumes.formats import TS_ERRORS, told
from volumes.geometry import Box
from volumes.key_schemes import JoinedKeys, Keys, ShardedKeys
from volumes.sharding import cells_of, morton
from volumes.spec import canonical

_READERS = 16
_IN_FLIGHT = 64
_PLACE = 16  # bytes of a minishard's place in a shard's index: its start and its end
_ENTRY = 24  # bytes of a chunk in a minishard's index: its number, start and length

_Json = dict[str, Any]
Cells = npt.NDArray[np.int64]
"""Chunks by their index in stored order, ``[n, rank]``."""


class Shards(Protocol):
    """The shards of an array."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each dimension that is cut into chunks, in stored order."""

    @property
    def chunk(self) -> tuple[int, ...]:
        """Voxels of a chunk along these."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the array along these."""

    @property
    def places(self) -> int:
        """The most places that one shard's index has."""

    @property
    def count(self) -> int:
        """Chunks of the array."""

    def stored(self, store: ts.KvStore, key: str) -> Cells:
        """The chunks that a shard holds; those outside the array are left out."""

    def owned(self, keys: Iterable[str]) -> npt.NDArray[np.bool_]:
        """For every chunk of the grid, whether it belongs into one of these shards."""

    def capacity(self, key: str) -> int | None:
        """How many chunks of the grid belong into a shard; None where only hashing them tells."""

    def values(self, cells: Cells) -> int:
        """How many values chunks have, channels included."""

    def box(self, cell: Sequence[int]) -> Box | None:
        """The frame voxels of a chunk."""


@dataclasses.dataclass(frozen=True, slots=True)
class Zarr3Shards:
    """The shards of a Zarr 3 array.

    Attributes:
        keys: How they are named.
        chunk: Voxels of a chunk, in stored order.
        index: Members of the codec that say how the index is stored, as JSON text.
    """

    keys: JoinedKeys
    chunk: tuple[int, ...]
    index: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the array."""
        return self.keys.shape

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each dimension."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    @property
    def places(self) -> int:
        """Chunks of a shard."""
        return math.prod(self._ratio)

    @property
    def count(self) -> int:
        """Chunks of the array."""
        return math.prod(self.grid)

    def stored(self, store: ts.KvStore, key: str) -> Cells:
        """The chunks that a shard holds."""
        cell = self.keys.cell(key)
        if cell is None:
            raise ValueError(f"{key} is no shard's key")
        base = (store / key).spec().to_json()
        spec = {"driver": "zarr3_sharding_indexed", "base": base, "grid_shape": list(self._ratio)}
        opened = ts.KvStore.open(spec | json.loads(self.index), context=process_context()).result()
        found = np.frombuffer(b"".join(opened.list().result()), ">u4")
        cells = found.reshape(-1, len(cell)).astype(np.int64) + np.multiply(cell, self._ratio)
        inside: Cells = cells[(cells < self.grid).all(axis=1)]
        return inside

    def owned(self, keys: Iterable[str]) -> npt.NDArray[np.bool_]:
        """For every chunk, whether it belongs into one of these shards."""
        marked = np.zeros(self.keys.grid, bool)
        for key in keys:
            marked[self.keys.cell(key)] = True
        for axis, times in enumerate(self._ratio):
            marked = marked.repeat(times, axis)
        return marked[tuple(slice(n) for n in self.grid)]

    def capacity(self, key: str) -> int | None:
        """How many chunks of the grid belong into a shard."""
        cell = self.keys.cell(key)
        if cell is None:
            return 0
        sides = zip(cell, self._ratio, self.grid, strict=True)
        return math.prod(min(r, n - i * r) for i, r, n in sides)

    def values(self, cells: Cells) -> int:
        """How many values chunks have."""
        return _voxels(cells, self.chunk, self.shape)

    def box(self, cell: Sequence[int]) -> Box | None:
        """The frame voxels of a chunk."""
        sides = zip(cell, self.chunk, self.shape, strict=True)
        return self.keys.frame.box([(i * c, min((i + 1) * c, n)) for i, c, n in sides])

    @property
    def _ratio(self) -> tuple[int, ...]:
        return tuple(s // c for s, c in zip(self.keys.chunk, self.chunk, strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class PrecomputedShards:
    """The shards of a precomputed scale.

    Attributes:
        keys: How they are named.
        zipped: Whether the index of a minishard is compressed by gzip.
    """

    keys: ShardedKeys
    zipped: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the scale, XYZ."""
        return self.keys.scale.size

    @property
    def chunk(self) -> tuple[int, ...]:
        """Voxels of a chunk, XYZ."""
        return self.keys.scale.chunk

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks on each axis."""
        return self.keys.sharding.grid

    @property
    def places(self) -> int:
        """Minishards of a shard, and the chunks that it can hold."""
        sharding = self.keys.sharding
        chunks = math.prod(self.grid)
        if sharding.ordered:
            chunks = min(chunks, 1 << min(64, sharding.preshift_bits + sharding.minishard_bits))
        return (1 << sharding.minishard_bits) + chunks

    @property
    def count(self) -> int:
        """Chunks of the scale."""
        return math.prod(self.grid)

    def stored(self, store: ts.KvStore, key: str) -> Cells:
        """The chunks that a shard holds."""
        table = _PLACE << self.keys.sharding.minishard_bits
        head = store.read(key, byte_range=slice(0, table)).result().value
        if len(head) < table:
            raise ValueError(f"it has {len(head)} bytes, and its index alone has {table}")
        index = np.frombuffer(head, "<u8")
        places = index.reshape(-1, 2).astype(object) + table
        reads = [store.read(key, byte_range=slice(a, b)) for a, b in places if a < b]
        numbers = [np.zeros(0, np.uint64)]
        for read in reads:
            data = bytes(read.result().value)
            data = gzip.decompress(data) if self.zipped else data
            if len(data) % _ENTRY:
                raise ValueError(
                    f"the index of a minishard has {len(data)} bytes, no whole entries"
                )
            steps = np.frombuffer(data, "<u8").reshape(3, -1)[0]
            numbers.append(np.cumsum(steps, dtype=np.uint64))
        return cells_of(self.grid, np.concatenate(numbers))

    def owned(self, keys: Iterable[str]) -> npt.NDArray[np.bool_]:
        """For every chunk, whether it belongs into one of these shards."""
        xs, ys, zs = morton(self.grid, [range(n) for n in self.grid])
        shards = self.keys.sharding.shards_of(xs[:, None, None] | ys[:, None] | zs)
        wanted = np.array([self.keys.number(k) for k in keys], np.uint64)
        return np.isin(shards, wanted)

    def capacity(self, key: str) -> int | None:
        """How many chunks of the grid belong into a shard; None where they are hashed."""
        number, sharding = self.keys.number(key), self.keys.sharding
        if number is None or not sharding.ordered:
            return None
        cells = sharding.cells(number)
        return 0 if cells is None else math.prod(a.size for a in cells)

    def values(self, cells: Cells) -> int:
        """How many values chunks have, channels included."""
        return _voxels(cells, self.chunk, self.shape) * self.keys.scale.channels

    def box(self, cell: Sequence[int]) -> Box | None:
        """The frame voxels of a chunk."""
        scale = self.keys.scale
        return scale.frame.box(scale.extents([(i, i) for i in cell]))


def _voxels(cells: Cells, chunk: Sequence[int], shape: Sequence[int]) -> int:
    """Voxels of chunks, without what sticks out of the array."""
    sides = np.minimum((cells + 1) * chunk, shape) - cells * chunk
    return int(sides.prod(axis=1).sum())


def shards_in(store: ts.TensorStore, keys: Keys) -> Shards | None:
    """The shards of an array.

    Args:
        store: The array.
        keys: How its keys are named.

    Returns:
        None where it has none, or shards in a way that is not understood (inside another codec).
    """
    document: _Json = store.spec().to_json(include_defaults=True)
    if isinstance(keys, ShardedKeys):
        sharding = document["scale_metadata"]["sharding"]
        return PrecomputedShards(keys, sharding["minishard_index_encoding"] == "gzip")
    codecs = document.get("metadata", {}).get("codecs", ())
    if not isinstance(keys, JoinedKeys) or [c["name"] for c in codecs] != ["sharding_indexed"]:
        return None
    found = codecs[0]["configuration"]
    index = {k: v for k, v in found.items() if k in ("index_codecs", "index_location")}
    return Zarr3Shards(keys, tuple(found["chunk_shape"]), canonical(index))


def stored_chunks(
    shards: Shards, store: ts.KvStore, keys: Iterable[str]
) -> Iterator[Cells | DataError]:
    """The chunks that are stored, a shard at a time; an error where a shard's index is damaged."""

    def one(key: str) -> Cells | DataError:
        try:
            return shards.stored(store, key)
        except (*TS_ERRORS, EOFError, zlib.error) as e:
            return DataError(
                f"the shard {key} has a damaged index, so none of its chunks can be read: {told(e)}"
                "; write it again from its source, or restore it from a copy"
            )

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        wanted = iter(keys)
        while some := list(itertools.islice(wanted, _IN_FLIGHT)):
            yield from pool.map(one, some)
