"""A partition of an embedding store: one OCDBT database that owns a block of boxes.

In it stand sparse zarr3 arrays, one box a chunk of the box axis, and keys by box:

    embedding   float32 [box, row, D]      plan/<box>      the nodes the box owes
    segment_id  uint64  [box, row]         receipts/<box>  the record that its rows are committed
    node_id     uint64  [box, row]         epoch           0; for runs that shut others out
    position_nm float64 [box, row, 3]
    mask_voxels uint32  [box, row]
    crop_digest uint8   [box, row, 16]
    count       uint32  [box]

The row axis is nominally unbounded: chunks that no node needs do not exist. The arrays are made in
the transaction of the first commit. Rows and receipt of a box go into one atomic transaction, so a
reader sees both or neither, and a second writer of the same box finds the receipt.

A transaction here reads nothing: what it depends on is read before it, and stands in it as the
condition of a write (``if_equal``), which fails the whole commit. The reason is a trap, measured
with TensorStore 0.1.86: a key that an atomic repeatable-read transaction only *reads* is
overwritten with an empty value when the commit meets another writer's.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes import objects
from volumes.context import ocdbt, process_context
from volumes.errors import RunError
from volumes.receipts import DIGEST_BYTES, BoxPlan, Receipt, Rows

_T = TypeVar("_T")

# Rows of one chunk: a box of the usual few hundred nodes is one chunk an array.
_ROWS_A_CHUNK = 512

# The nominal length of the row axis.
_ROWS = 2**40

# TensorStore's word for "the key must not exist yet".
_ABSENT = b"\x02"

# A conflict is another writer's progress, so this many in a row mean something else is wrong.
_ATTEMPTS = 64

# Another writer changed a key first, or made the arrays first.
_CONFLICT = re.compile("^ABORTED.*Generation mismatch|^ALREADY_EXISTS", re.DOTALL)

_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "segment_id": ("uint64", ()),
    "node_id": ("uint64", ()),
    "position_nm": ("float64", (3,)),
    "mask_voxels": ("uint32", ()),
    "crop_digest": ("uint8", (DIGEST_BYTES,)),
}


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


def plan_boxes(partition: Partition, plans: list[BoxPlan]) -> int:
    """Commit what the boxes owe, in one transaction; makes the partition at its first commit.

    Returns:
        How many plans were new. A box that has the same plan already is left as it is.

    Raises:
        RunError: A box has another plan: the store belongs to other nodes.
    """
    return _retried(partition, functools.partial(_plan_once, partition, plans))


def _plan_once(partition: Partition, plans: list[BoxPlan], transaction: ts.Transaction) -> int:
    keys = _keys(partition)
    found = [keys.read(f"plan/{p.box}") for p in plans]
    new = []
    for plan, future in zip(plans, found, strict=True):
        result = _result(partition, future)
        if result.state != "value":
            new.append(plan)
            continue
        known = BoxPlan.from_bytes(result.value, f"{partition} plan/{plan.box}")
        if known != plan:
            raise RunError(
                f"box {plan.box} of {partition} owes {known.nodes} nodes ({known.content[:12]})"
                f" from an earlier run and {plan.nodes} ({plan.content[:12]}) now: the nodes "
                "changed under an unfinished run; embed into a new store"
            )
    if not new:
        return 0
    staged = keys.with_transaction(transaction)
    writes = [staged.write(f"plan/{p.box}", p.to_bytes(), if_equal=_ABSENT) for p in new]
    if _result(partition, keys.read("count/zarr.json")).state != "value":
        for array in [_opened(partition, name, transaction) for name in _names()]:
            _result(partition, array)
        writes.append(staged.write("epoch", b"0", if_equal=_ABSENT))
    for write in writes:
        _result(partition, write)
    _commit(partition, transaction)
    return len(new)


def read_plan(partition: Partition, box: str, version: int | None = None) -> BoxPlan | None:
    """The plan of a box, or None where none is committed."""
    result = _result(partition, _keys(partition, version).read(f"plan/{box}"))
    if result.state != "value":
        return None
    return BoxPlan.from_bytes(result.value, f"{partition} plan/{box}")


def read_receipt(partition: Partition, box: str, version: int | None = None) -> Receipt | None:
    """The receipt of a box, or None where it is not committed."""
    result = _result(partition, _keys(partition, version).read(f"receipts/{box}"))
    if result.state != "value":
        return None
    return Receipt.from_bytes(result.value, f"{partition} receipts/{box}")


def commit_box(partition: Partition, local: int, rows: Rows, receipt: Receipt) -> Receipt:
    """Commit a box's rows and its receipt, all or nothing.

    Args:
        partition: The partition that owns the box.
        local: The box's index on the box axis.
        rows: The rows, at most 2**32 - 1.
        receipt: The receipt for exactly these rows.

    Returns:
        The receipt that stands: the one given, or that of an earlier commit of the same box and
        fingerprint, in which case nothing was written.

    Raises:
        RunError: The box owes other nodes than these, another fingerprint is committed, or the
            store does not answer.
    """
    return _retried(partition, functools.partial(_commit_once, partition, local, rows, receipt))


def _commit_once(
    partition: Partition, local: int, rows: Rows, receipt: Receipt, transaction: ts.Transaction
) -> Receipt:
    keys = _keys(partition)
    earlier = _result(partition, keys.read(f"receipts/{receipt.box}"))
    if earlier.state == "value":
        known = Receipt.from_bytes(earlier.value, f"{partition} receipts/{receipt.box}")
        if known.fingerprint != receipt.fingerprint:
            raise RunError(
                f"box {receipt.box} of {partition} is committed with fingerprint "
                f"{known.fingerprint[:12]}, and this run has {receipt.fingerprint[:12]}: "
                "another run's rows stand there and were left as they are"
            )
        return known
    owed = _result(partition, keys.read(f"plan/{receipt.box}"))
    if owed.state != "value":
        raise RunError(
            f"box {receipt.box} has no plan in {partition}: rows are committed only for what was "
            "planned, or a lost box could not be told from an empty one"
        )
    plan = BoxPlan.from_bytes(owed.value, f"{partition} plan/{receipt.box}")
    if (plan.nodes, plan.identities) != (receipt.planned, receipt.identities):
        raise RunError(
            f"box {receipt.box} of {partition} owes {plan.nodes} nodes ({plan.identities[:12]}), "
            f"and {receipt.planned} ({receipt.identities[:12]}) arrived: nodes were lost or added "
            "on the way, and nothing was written for this box; run the same command again"
        )
    futures: list[Any] = []
    if len(rows):
        for name, values in rows.arrays().items():
            array = _array(partition, name).with_transaction(transaction)
            futures.append(array[local, : len(rows)].write(values).copy)
    count = _array(partition, "count").with_transaction(transaction)
    futures.append(count[local].write(np.uint32(len(rows))).copy)
    staged = keys.with_transaction(transaction)
    futures.append(staged.write(f"receipts/{receipt.box}", receipt.to_bytes(), if_equal=_ABSENT))
    for future in futures:
        _result(partition, future)
    _commit(partition, transaction)
    return receipt


def read_rows(partition: Partition, local: int, version: int | None = None) -> Rows:
    """The committed rows of a box; no rows where the box is not committed.

    Raises:
        RunError: A chunk is missing or damaged.
    """
    counts = _array(partition, "count", version)
    try:
        count = int(_result(partition, counts[local].read()))
    except _MissingError:
        count = 0
    with ts.Batch() as batch:
        futures = {
            name: _array(partition, name, version)[local, :count].read(batch=batch)
            for name in _names()
            if name != "count"
        }
    return Rows(**{name: _result(partition, future) for name, future in futures.items()})


def read_ids(
    partition: Partition, local: int, version: int | None = None
) -> npt.NDArray[np.uint64]:
    """The segment ids (uint64 ``[n]``) of a box's rows, without the rows."""
    try:
        count = int(_result(partition, _array(partition, "count", version)[local].read()))
    except _MissingError:
        count = 0
    ids = _array(partition, "segment_id", version)[local, :count].read()
    return np.asarray(_result(partition, ids), dtype=np.uint64)


def listed(partition: Partition, what: str, version: int | None = None) -> list[str]:
    """Sorted boxes that have a key under ``plan`` or ``receipts``."""
    begin, end = f"{what}/", f"{what}0"  # "0" is the character after "/"
    keys = _result(partition, _keys(partition, version).list(ts.KvStore.KeyRange(begin, end)))
    return sorted(k.decode().removeprefix(begin) for k in keys)


def newest_version(partition: Partition) -> int:
    """The generation number of the database's newest commit; 0 where there is no database."""
    base = ts.KvStore.open(objects.kvstore(partition.url), context=process_context()).result()
    try:
        manifest = ts.ocdbt.dump(base).result()
    except ValueError as e:
        if "NOT_FOUND" in str(e):
            return 0
        raise RunError(f"cannot read {partition}: {objects.redacted(str(e))}") from e
    return int(manifest["versions"][-1]["generation_number"])


class _ConflictError(Exception):
    """Another writer changed what this transaction read; the caller looks again."""


class _MissingError(RunError):
    """A chunk that was never written."""


def _names() -> tuple[str, ...]:
    return ("embedding", *_ARRAYS, "count")


def _spec(partition: Partition, name: str, version: int | None) -> dict[str, Any]:
    if name == "count":
        dtype, shape, chunk = "uint32", [partition.boxes], [1]
    else:
        dtype, inner = ("float32", (partition.width,)) if name == "embedding" else _ARRAYS[name]
        shape = [partition.boxes, _ROWS, *inner]
        chunk = [1, _ROWS_A_CHUNK, *inner]
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


def _opened(
    partition: Partition, name: str, transaction: ts.Transaction | None, version: int | None = None
) -> Any:
    creating = transaction is not None
    return ts.open(
        _spec(partition, name, version),
        open=True,
        create=creating,
        transaction=transaction,
        context=process_context(),
    )


@functools.lru_cache(maxsize=256)
def _array(partition: Partition, name: str, version: int | None = None) -> ts.TensorStore:
    opened: ts.TensorStore = _result(partition, _opened(partition, name, None, version))
    return opened


@functools.lru_cache(maxsize=256)
def _keys(partition: Partition, version: int | None = None) -> ts.KvStore:
    spec = ocdbt(objects.kvstore(partition.url), version=version)
    keys: ts.KvStore = _result(partition, ts.KvStore.open(spec, context=process_context()))
    return keys


def _result(partition: Partition, future: Any) -> Any:
    """The future's value; what TensorStore raises becomes a ``RunError`` that says where."""
    try:
        return future.result()
    except ValueError as e:
        message = str(e)
        if _CONFLICT.search(message):
            raise _ConflictError(message) from e
        kind = _MissingError if "is missing" in message else RunError
        raise kind(f"{partition}: {objects.redacted(message)}") from e


def _commit(partition: Partition, transaction: ts.Transaction) -> None:
    try:
        transaction.commit_sync()
    except ValueError as e:
        if _CONFLICT.search(str(e)):
            raise _ConflictError(str(e)) from e
        raise RunError(f"cannot commit to {partition}: {objects.redacted(str(e))}") from e


def _retried(partition: Partition, attempt: Callable[[ts.Transaction], _T]) -> _T:
    """Run an attempt in a transaction of its own until no other writer comes between."""
    for _ in range(_ATTEMPTS):
        transaction = ts.Transaction(atomic=True)
        try:
            return attempt(transaction)
        except _ConflictError:
            continue
        finally:
            if transaction.open:
                transaction.abort()
    raise RunError(
        f"{partition}: {_ATTEMPTS} commits in a row met another writer's; nothing was written for "
        "this box: run the same command again, with fewer workers if this repeats"
    )
