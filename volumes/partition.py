"""A partition of an embedding store: one OCDBT database that owns a block of boxes.

In it stand sparse zarr3 arrays, one box a chunk of the box axis, and keys by box:

    embedding   float32 [box, row, D]      plan/<box>         the nodes the box owes
    segment_id  uint64  [box, row]         receipts/<box>     the record that its rows are committed
    node_id     uint64  [box, row]         failed/<box>       in its place: the box is set aside
    position_nm float64 [box, row, 3]      supervoxels/<box>  ids read, where a table maps them
    mask_voxels uint32  [box, row]         epoch              which runs may write
    crop_digest uint8   [box, row, 16]
    count       uint32  [box]

The row axis is nominally unbounded: chunks that no node needs do not exist. This module names and
reads; ``volumes.commits`` writes.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes import objects
from volumes.context import ocdbt, process_context
from volumes.errors import DataError, RunError
from volumes.receipts import DIGEST_BYTES, BoxPlan, Failure, Receipt, Rows

_T = TypeVar("_T")

ROWS_A_CHUNK = 512
"""Rows of one chunk: a box of the usual few hundred nodes is one chunk an array."""

# The nominal length of the row axis.
_ROWS = 2**40

# Another writer changed a key first, or made the arrays first.
_CONFLICT = re.compile("^ABORTED.*Generation mismatch|^ALREADY_EXISTS", re.DOTALL)

_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "segment_id": ("uint64", ()),
    "node_id": ("uint64", ()),
    "position_nm": ("float64", (3,)),
    "mask_voxels": ("uint32", ()),
    "crop_digest": ("uint8", (DIGEST_BYTES,)),
}

# What TensorStore says of bytes that are lost or are not what was written; a network or a disk that
# fails says otherwise.
_DAMAGED = re.compile("^DATA_LOSS|^NOT_FOUND|decoding|decompress|uncompressed|CRC-32C|magic")

ARRAYS = ("embedding", *_ARRAYS, "count")
"""Names of a partition's arrays."""


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """Names a partition; JSON-able, picklable, opens nothing.

    Attributes:
        url: Directory of the OCDBT database.
        boxes: Boxes of its block: the length of the box axis.
        width: D, the length of an embedding.
    """

    url: str
    boxes: int
    width: int

    def __str__(self) -> str:
        """The location, for messages."""
        return str(objects.redacted(self.url))

    def chunks(self, local: int, count: int) -> list[str]:
        """Keys of the chunks that hold ``count`` rows of a box, and their number."""
        rows = range(math.ceil(count / ROWS_A_CHUNK))
        inner = {"embedding": "/0", **{n: "/0" * len(s) for n, (_, s) in _ARRAYS.items()}}
        keys = [f"{name}/c/{local}/{k}{tail}" for name, tail in inner.items() for k in rows]
        return [*keys, f"count/c/{local}"]


def read_plan(partition: Partition, box: str, version: int | None = None) -> BoxPlan | None:
    """The plan of a box, or None where none is committed."""
    data = read_key(partition, f"plan/{box}", version)
    return None if data is None else BoxPlan.from_bytes(data, f"{partition} plan/{box}")


def read_receipt(partition: Partition, box: str, version: int | None = None) -> Receipt | None:
    """The receipt of a box, or None where it is not committed."""
    data = read_key(partition, f"receipts/{box}", version)
    return None if data is None else Receipt.from_bytes(data, f"{partition} receipts/{box}")


def read_failure(partition: Partition, box: str, version: int | None = None) -> Failure | None:
    """Why a box is set aside, or None where it is not."""
    data = read_key(partition, f"failed/{box}", version)
    return None if data is None else Failure.from_bytes(data, f"{partition} failed/{box}")


def read_all(
    partition: Partition,
    what: str,
    load: Callable[[bytes, str], _T],
    version: int | None = None,
) -> dict[str, _T]:
    """The documents under ``plan``, ``receipts`` or ``failed``, by box.

    Raises:
        DataError: One is lost or damaged.
    """
    found = {}
    for box, future in read_each(partition, what, version):
        where = f"{partition} {what}/{box}"
        read = result(partition, future)
        if read.state != "value":
            raise DataError(f"{where} is listed and is not there: it is lost, or was taken away")
        found[box] = load(read.value, where)
    return found


def read_each(
    partition: Partition, what: str, version: int | None = None
) -> Iterator[tuple[str, Any]]:
    """Each box that has a key under ``what``, and the future of its bytes, read in one batch."""
    boxes = listed(partition, what, version)
    with ts.Batch() as batch:
        stored = keys(partition, version)
        futures = [stored.read(f"{what}/{box}", batch=batch) for box in boxes]
    yield from zip(boxes, futures, strict=True)


def read_key(partition: Partition, key: str, version: int | None = None) -> bytes | None:
    """The bytes of a key, or None where there is none."""
    found = result(partition, keys(partition, version).read(key))
    return bytes(found.value) if found.state == "value" else None


def read_rows(partition: Partition, local: int, version: int | None = None) -> Rows:
    """The committed rows of a box; no rows where the box is not committed.

    Raises:
        RunError: A chunk is missing or damaged.
    """
    counts = array(partition, "count", version)
    try:
        count = int(result(partition, counts[local].read()))
    except MissingError:
        count = 0
    with ts.Batch() as batch:
        futures = {
            name: array(partition, name, version)[local, :count].read(batch=batch)
            for name in ARRAYS
            if name != "count"
        }
    return Rows(**{name: result(partition, future) for name, future in futures.items()})


def read_ids(
    partition: Partition, local: int, version: int | None = None
) -> npt.NDArray[np.uint64]:
    """The segment ids (uint64 ``[n]``) of a box's rows, without the rows."""
    try:
        count = int(result(partition, array(partition, "count", version)[local].read()))
    except MissingError:
        count = 0
    ids = array(partition, "segment_id", version)[local, :count].read()
    return np.asarray(result(partition, ids), dtype=np.uint64)


def listed(partition: Partition, what: str, version: int | None = None) -> list[str]:
    """Sorted boxes that have a key under ``plan``, ``receipts`` or ``failed``."""
    begin, end = f"{what}/", f"{what}0"  # "0" is the character after "/"
    found = result(partition, keys(partition, version).list(ts.KvStore.KeyRange(begin, end)))
    return sorted(k.decode().removeprefix(begin) for k in found)


def newest_version(partition: Partition) -> int:
    """The generation number of the database's newest commit; 0 where there is no database."""
    base = ts.KvStore.open(objects.kvstore(partition.url), context=process_context()).result()
    try:
        manifest = ts.ocdbt.dump(base).result()
    except ValueError as e:
        if "NOT_FOUND" in str(e):
            return 0
        kind = DataError if _DAMAGED.search(str(e)) else RunError
        raise kind(f"cannot read {partition}: {objects.redacted(str(e))}") from e
    return int(manifest["versions"][-1]["generation_number"])


class ConflictError(Exception):
    """Another writer changed what this transaction read; the caller looks again."""


def refuse_conflict(error: ValueError) -> None:
    """Raise a ``ConflictError`` where TensorStore's error is another writer's progress."""
    if _CONFLICT.search(str(error)):
        raise ConflictError(str(error)) from error


class MissingError(DataError):
    """A chunk that was never written, or that is lost."""


def _spec(partition: Partition, name: str, version: int | None) -> dict[str, Any]:
    if name == "count":
        dtype, shape, chunk = "uint32", [partition.boxes], [1]
    else:
        dtype, inner = ("float32", (partition.width,)) if name == "embedding" else _ARRAYS[name]
        shape = [partition.boxes, _ROWS, *inner]
        chunk = [1, ROWS_A_CHUNK, *inner]
    return {
        "driver": "zarr3",
        "kvstore": ocdbt(objects.kvstore(partition.url), f"{name}/", version),
        "metadata": {
            "data_type": dtype,
            "shape": shape,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1}},
                {"name": "crc32c"},
            ],
        },
        # A lost chunk is an error, never zeros.
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }


def opened(
    partition: Partition, name: str, transaction: ts.Transaction | None, version: int | None = None
) -> Any:
    """The future of an opened array; made where there is none if a transaction is given."""
    creating = transaction is not None
    return ts.open(
        _spec(partition, name, version),
        open=True,
        create=creating,
        transaction=transaction,
        context=process_context(),
    )


@functools.lru_cache(maxsize=256)
def array(partition: Partition, name: str, version: int | None = None) -> ts.TensorStore:
    """An opened array."""
    found: ts.TensorStore = result(partition, opened(partition, name, None, version))
    return found


@functools.lru_cache(maxsize=256)
def keys(partition: Partition, version: int | None = None) -> ts.KvStore:
    """The opened keys."""
    spec = ocdbt(objects.kvstore(partition.url), version=version)
    found: ts.KvStore = result(partition, ts.KvStore.open(spec, context=process_context()))
    return found


def forget() -> None:
    """Open databases again where they are asked for: one may have been made anew in its place."""
    array.cache_clear()
    keys.cache_clear()


def result(partition: Partition, future: Any) -> Any:
    """The future's value; what TensorStore raises becomes a ``RunError`` that says where.

    Raises:
        ConflictError: Another writer came first.
        DataError: What is stored is missing or damaged.
        RunError: The storage fails.
    """
    try:
        return future.result()
    except ValueError as e:
        message = str(e)
        refuse_conflict(e)
        kind = DataError if _DAMAGED.search(message) else RunError
        if "is missing" in message:
            kind = MissingError
        raise kind(f"{partition}: {objects.redacted(message)}") from e
