"""Volumes that this package writes: zarr3, stored x, y, z, in shards of chunks.

Layout: inner chunks are ``bytes`` (little endian), ``zstd`` and ``crc32c``; without the checksum a
flipped bit is a wrong voxel that nobody notices. Zeros are stored like any other voxels, so that a
chunk that is absent was lost or never written. Images take zstd level 1: on real EM, level 3 wrote
at less than half the speed and saved nothing. Segmentations take level 3, which is as fast there as
level 1 and a tenth smaller.

Stored voxels count from (0, 0, 0). The attributes give the rest: ``dimension_units`` the voxel
size, ``voxel_offset`` where the first voxel lies in the frame, ``segclr_beam`` kind and provenance.

The metadata are written once, by ``create_volume``; workers only open. A shard is written in a
transaction of its own, whole, so it is there or it is not.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes import objects
from volumes.context import process_context
from volumes.errors import RequestError, RunError
from volumes.formats import TS_ERRORS, told
from volumes.geometry import Box, ChunkGrid, Vec, Vec3, vec
from volumes.redaction import redacted, redacted_text
from volumes.spec import Kind

SHARDS_IN_FLIGHT = 2
"""Shards that a worker encodes and stores at a time."""

_ZSTD_LEVEL: dict[Kind, int] = {"image": 1, "segmentation": 3}


OpenArray = ts.TensorStore
"""A volume open for writing."""


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeLayout:
    """What a volume is made like.

    Attributes:
        shape: Voxels, XYZ.
        dtype: Name of an unsigned integer dtype.
        kind: What the voxels mean.
        voxel_size_nm: Voxel size in nm, XYZ.
        origin_vx: Frame coordinate of the first voxel, XYZ.
        chunk: Voxels of a chunk, the unit of reading.
        shard: Voxels of a shard, the unit of writing: a multiple of the chunk on each axis.
    """

    shape: Vec
    dtype: str
    kind: Kind
    voxel_size_nm: Vec3
    origin_vx: Vec
    chunk: Vec
    shard: Vec

    def __post_init__(self) -> None:
        """Refuse shards that are not whole chunks."""
        if any(s < c or s % c for s, c in zip(self.shard, self.chunk, strict=True)):
            raise RequestError(
                f"shard {self.shard} is not a multiple of chunk {self.chunk} on each axis (x, y, "
                "z); a shard is made of whole chunks: give a --shard that is"
            )

    @property
    def domain(self) -> Box:
        """The stored voxels, from (0, 0, 0)."""
        return Box((0, 0, 0), self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a voxel."""
        return np.dtype(self.dtype).itemsize

    @property
    def shard_bytes(self) -> int:
        """Bytes of a shard before compression."""
        return math.prod(self.shard) * self.itemsize

    def metadata(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """The zarr3 metadata document, secrets removed from the provenance."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        zstd = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL[self.kind]}}
        sharding = {
            "chunk_shape": list(self.chunk),
            "codecs": [little, zstd, {"name": "crc32c"}],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "fill_value": 0,
            "dimension_names": ["x", "y", "z"],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.shard)}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {
                "dimension_units": [f"{_decimal(v)} nm" for v in self.voxel_size_nm],
                "voxel_offset": list(self.origin_vx),
                "segclr_beam": {"kind": self.kind, "provenance": redacted(provenance)},
            },
        }


def create_volume(url: str, layout: VolumeLayout, provenance: dict[str, Any]) -> None:
    """Write a volume's metadata; where exactly these are there already, nothing is changed.

    Args:
        url: The volume's directory.
        layout: What it is made like.
        provenance: JSON, for the attributes: ``source``, ``time``, ``version``, ``parameters``.

    Raises:
        RunError: The store refuses, or holds a volume with other metadata.
    """
    with storage_errors(f"create the volume {url}"):
        ts.open(
            _spec(url) | {"metadata": layout.metadata(provenance)},
            open=True,
            create=True,
            context=process_context(),
        ).result()


def open_for_writing(url: str) -> ts.TensorStore:
    """Open a volume that ``create_volume`` made, for writing; its voxels count from (0, 0, 0).

    Raises:
        RunError: It is not there or cannot be opened.
    """
    with storage_errors(f"open the volume {url}"):
        return ts.open(_spec(url), open=True, context=process_context()).result()


def write_shards(store: ts.TensorStore, box: Box, voxels: npt.NDArray[Any]) -> None:
    """Write a box of whole shards; when this returns, every voxel of it is committed.

    A shard that is damaged on disk is replaced.

    Args:
        store: What ``open_for_writing`` returned.
        box: The box, in stored voxels: on each axis it begins at a shard and ends at one or at the
            end of the volume.
        voxels: Its voxels, ``[x, y, z]``, of the volume's dtype.

    Raises:
        RequestError: The box is not made of whole shards.
        RunError: The store refuses a shard, which is named. Other shards of the box may be written.
    """
    shard, domain = shard_shape(store), Box((0, 0, 0), vec(store.shape))
    check_whole_shards(box, domain, shard)
    if voxels.shape != box.shape or voxels.dtype != store.dtype.numpy_dtype:
        raise RunError(
            f"{voxels.dtype} voxels of shape {voxels.shape} do not fill {box} of a "
            f"{store.dtype.name} volume"
        )
    pending: collections.deque[_Write] = collections.deque()
    grid = ChunkGrid(box, shard)
    try:
        for index in range(grid.size):
            part = grid.box(index)
            pending.append(_Write(store, part, voxels[part.slices(box)]))
            if len(pending) == SHARDS_IN_FLIGHT:
                pending.popleft().finish()
        while pending:
            pending.popleft().finish()
    finally:
        for write in pending:
            write.settle()


def check_whole_shards(box: Box, domain: Box, shard: Vec) -> None:
    """Refuse a box that does not begin and end at shards or at the end of the domain.

    Raises:
        RequestError: It does not, so that two workers could write one shard.
    """
    whole = all(
        a % s == 0 and (b % s == 0 or b == end)
        for a, b, s, end in zip(box.start, box.stop, shard, domain.stop, strict=True)
    )
    if box.size == 0 or not domain.encloses(box) or not whole:
        raise RequestError(
            f"box {box} is not made of whole shards of {shard} in the volume {domain}; two workers "
            "would write one shard: give a multiple of the shard on each axis"
        )


def shard_shape(store: ts.TensorStore) -> Vec:
    """Voxels of a volume's shard, XYZ."""
    return vec(store.chunk_layout.write_chunk.shape)


def remove(url: str, name: str) -> None:
    """Remove an object from a directory; one that is absent is no error.

    Raises:
        RunError: The store refuses.
    """
    with storage_errors(f"remove {objects.join(url, name)}"):
        store = ts.KvStore.open(objects.kvstore(url), context=process_context()).result()
        store.write(name, None).result()


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turns what TensorStore raises into a ``RunError`` that says what was being done."""
    try:
        yield
    except (RequestError, RunError):
        raise
    except TS_ERRORS as e:
        raise RunError(f"cannot {redacted_text(doing)}: {told(e)}") from e


class _Write:
    """One shard on its way: its transaction, with every future held until it is committed.

    A write whose future is dropped is lost without a word, also in a transaction that commits.
    """

    def __init__(self, store: ts.TensorStore, box: Box, voxels: npt.NDArray[Any]) -> None:
        self._store, self._box, self._voxels = store, box, voxels
        self._begin()

    def _begin(self) -> None:
        with storage_errors(self._doing()):
            transaction = ts.Transaction()
            target = self._store.with_transaction(transaction)[self._index()]
            self._written = target.write(self._voxels)
            self._written.copy.result()
            self._commit = transaction.commit_async()

    def finish(self) -> None:
        """Wait until the shard is committed; replace a damaged one."""
        try:
            self._wait()
        except ValueError as e:
            with storage_errors(self._doing()):
                if not str(e).startswith("DATA_LOSS"):
                    raise
                self._clear()
            self._begin()
            with storage_errors(self._doing()):
                self._wait()

    def settle(self) -> None:
        """Wait until nothing is under way any more, whatever comes of it."""
        with contextlib.suppress(*TS_ERRORS):
            self._wait()

    def _wait(self) -> None:
        self._commit.result()
        self._written.result()

    def _clear(self) -> None:
        """Remove the damaged shard, unless another worker has replaced it since."""
        key = self._key()
        directory = _directory(self._store)
        found = directory.read(key, byte_range=slice(0, 0)).result()
        directory.write(key, None, if_equal=found.stamp.generation).result()

    def _index(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self._box.start, self._box.stop, strict=True))

    def _key(self) -> str:
        shard = shard_shape(self._store)
        place = (str(a // s) for a, s in zip(self._box.start, shard, strict=True))
        return "/".join(["c", *place])

    def _doing(self) -> str:
        return f"write shard {self._key()}, voxels {self._box}, of {_directory(self._store).url}"


def _spec(url: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": objects.kvstore(url),
        "store_data_equal_to_fill_value": True,
    }


def _directory(store: ts.TensorStore) -> ts.KvStore:
    if store.kvstore is None:
        raise RunError(f"a {store.spec().to_json()['driver']} volume lies in no key-value store")
    return store.kvstore


def _decimal(value: float) -> str:
    return np.format_float_positional(value, trim="-")
