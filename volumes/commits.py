"""Writes to a partition: each an atomic transaction, all or nothing, fenced by the epoch.

A box goes through these states, and every arrow is one transaction:

    nothing ── plan_boxes ──> planned ── commit ──> committed ── commit that replaces ──> committed
                                 │                      │
                                 └── set aside ──> set aside ── commit ──> committed
    any ── removed ──> nothing          committed, set aside ── reopen ──> planned

A transaction here reads nothing: what it depends on is read before it, and stands in it as the
condition of a write (``if_equal``), which fails the whole commit; then it is tried again on what
stands now. The reason is a trap, measured with TensorStore 0.1.86: a key that an atomic
repeatable-read transaction only *reads* is overwritten with an empty value when the commit meets
another writer's. For the same reason rows are written as whole chunks, padded with zeros, since a
partly written chunk is read first.

The epoch of a partition is a number that only grows: a run that works alone raises it to its own
before it looks at the partition. Every commit of every run writes the epoch again, as it is, on the
condition that it is still the one that was read, and that was not above the run's own. So what a
run of an older epoch tries to write, however late, is refused as a whole.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorstore as ts

from volumes import objects
from volumes.errors import DataError, RunError
from volumes.partition import (
    ARRAYS,
    ROWS_A_CHUNK,
    ConflictError,
    Partition,
    array,
    keys,
    opened,
    refuse_conflict,
    result,
)
from volumes.receipts import BoxPlan, Failure, Receipt, Rows, sha256

_T = TypeVar("_T")

# TensorStore's word for "the key must not exist yet".
_ABSENT = b"\x02"

# A conflict is another writer's progress, so this many in a row mean something else is wrong.
_ATTEMPTS = 64


class FencedError(RunError):
    """A newer run has taken the partition over, and this one may not write there any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fence:
    """What a run brings along to be let into a partition.

    Attributes:
        epoch: The run's epoch.
        alone: Whether it works alone, and so shuts runs of older epochs out.
    """

    epoch: int = 0
    alone: bool = False


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What is to become of one box: committed, set aside, or (with neither) removed.

    Attributes:
        local: The box's index on the box axis.
        box: Its key.
        receipt: Its new receipt.
        rows: The rows that the receipt is for; None to keep those that stand.
        failure: Why it is set aside; it has no rows then.
        replaces: Digest of the receipt that stands, by ``standing_digest``; None where there is
            none, or where one of the same fingerprint is as good as this.
        supervoxels: What stands under ``supervoxels/<box>`` from then on; None for nothing.
    """

    local: int
    box: str
    receipt: Receipt | None = None
    rows: Rows | None = None
    failure: Failure | None = None
    replaces: str | None = None
    supervoxels: bytes | None = None

    @property
    def ours(self) -> Receipt | Failure | None:
        """What stands for the box once this is committed."""
        return self.receipt or self.failure


OPEN = Fence()
"""That of a run beside which no run ever worked alone."""

Stands = Receipt | Failure | None
"""What stands for a box; None where it is removed."""


def standing_digest(receipt: Receipt) -> str:
    """The digest by which a change names the receipt that it replaces."""
    return sha256(receipt.to_bytes())


def plan_boxes(
    partition: Partition, plans: Sequence[BoxPlan], fence: Fence = OPEN, *, replace: bool = False
) -> int:
    """Commit what the boxes owe, in one transaction; makes the partition at its first commit.

    Args:
        partition: The partition that owns the boxes.
        plans: What they owe. A box that has the same plan already is left as it is.
        fence: The run's fence.
        replace: Whether a box's other plan is replaced, as when nodes changed.

    Returns:
        How many plans were written.

    Raises:
        RunError: A box has another plan, which is not to be replaced: the store belongs to other
            nodes.
        FencedError: A newer run has taken over.
    """
    return _retried(partition, functools.partial(_plan_once, partition, plans, fence, replace))


def _plan_once(
    partition: Partition,
    plans: Sequence[BoxPlan],
    fence: Fence,
    replace: bool,
    transaction: ts.Transaction,
) -> int:
    stored = keys(partition)
    found = [stored.read(f"plan/{p.box}") for p in plans]
    new = []
    for plan, future in zip(plans, found, strict=True):
        read = result(partition, future)
        if read.state == "value":
            known = _known_plan(read.value, f"{partition} plan/{plan.box}", replace)
            if known == plan:
                continue
            if known is not None and not replace:
                raise RunError(
                    f"box {plan.box} of {partition} owes {known.nodes} nodes "
                    f"({known.content[:12]}) from an earlier run and {plan.nodes} "
                    f"({plan.content[:12]}) now: the nodes changed under an unfinished run; embed "
                    "into a new store"
                )
        new.append((plan, read.stamp.generation))
    if not new:
        return 0
    staged = stored.with_transaction(transaction)
    writes = [
        staged.write(f"plan/{plan.box}", plan.to_bytes(), if_equal=generation)
        for plan, generation in new
    ]
    if result(partition, stored.read("count/zarr.json")).state != "value":
        for made in [opened(partition, name, transaction) for name in ARRAYS]:
            result(partition, made)
    writes.append(_fenced(partition, fence, staged))
    for write in writes:
        result(partition, write)
    _commit(partition, transaction)
    return len(new)


def _known_plan(data: bytes, where: str, replace: bool) -> BoxPlan | None:
    """The plan that stands; None where it is damaged and may be replaced."""
    try:
        return BoxPlan.from_bytes(data, where)
    except DataError:
        if replace:
            return None
        raise


def commit_boxes(
    partition: Partition, changes: Sequence[Change], fence: Fence = OPEN
) -> list[Stands]:
    """Change boxes, all of them or none, in one transaction.

    Args:
        partition: The partition that owns the boxes.
        changes: At most one a box.
        fence: The run's fence.

    Returns:
        What stands for each box now: what the change brings, or the receipt of an equal commit
        that came first, in which case nothing was written for this box.

    Raises:
        RunError: A box owes other nodes than these, another fingerprint is committed, or the
            store does not answer. Nothing was written.
        FencedError: A newer run has taken over. Nothing was written.
    """
    return _retried(partition, functools.partial(_commit_once, partition, changes, fence))


def _commit_once(
    partition: Partition, changes: Sequence[Change], fence: Fence, transaction: ts.Transaction
) -> list[Stands]:
    stored = keys(partition)
    receipts = [stored.read(f"receipts/{c.box}") for c in changes]
    plans = [stored.read(f"plan/{c.box}") for c in changes]
    stands: list[Stands] = []
    futures: list[Any] = []
    for change, receipt, plan in zip(changes, receipts, plans, strict=True):
        earlier = result(partition, receipt)
        known = None
        if earlier.state == "value":
            known = Receipt.from_bytes(earlier.value, f"{partition} receipts/{change.box}")
        if known is not None and _stands(partition, change, known):
            stands.append(known)
            continue
        if change.receipt is not None:
            _check_plan(partition, change.receipt, result(partition, plan))
        staging = _staged(partition, change, known, earlier.stamp.generation, transaction)
        futures.extend(staging)
        stands.append(change.ours)
    if not futures:
        return stands
    futures.append(_fenced(partition, fence, stored.with_transaction(transaction)))
    for future in futures:
        result(partition, future)
    _commit(partition, transaction)
    return stands


def _stands(partition: Partition, change: Change, known: Receipt) -> bool:
    """Whether the receipt that stands does for the change; False where it is to be replaced."""
    if change.replaces is not None and change.replaces == standing_digest(known):
        return False
    ours = change.ours
    if ours is not None and known.fingerprint == ours.fingerprint:
        # The same run's: an earlier attempt of this very change came through.
        if change.replaces is None or known.run == ours.run:
            return True
    has = "none" if ours is None else ours.fingerprint[:12]
    raise RunError(
        f"box {change.box} of {partition} is committed with fingerprint "
        f"{known.fingerprint[:12]}, and this run has {has}: another run's rows stand there and "
        "were left as they are"
    )


def _check_plan(partition: Partition, receipt: Receipt, owed: Any) -> None:
    if owed.state != "value":
        raise RunError(
            f"box {receipt.box} has no plan in {partition}: rows are committed only for what was "
            "planned, or a lost box could not be told from an empty one"
        )
    plan = BoxPlan.from_bytes(owed.value, f"{partition} plan/{receipt.box}")
    if (plan.nodes, plan.content) != (receipt.planned, receipt.content):
        raise RunError(
            f"box {receipt.box} of {partition} owes {plan.nodes} nodes ({plan.content[:12]}), "
            f"and {receipt.planned} ({receipt.content[:12]}) arrived: nodes were lost or added "
            "on the way, and nothing was written for this box; run the same command again"
        )


def _staged(
    partition: Partition,
    change: Change,
    known: Receipt | None,
    generation: bytes,
    transaction: ts.Transaction,
) -> Iterator[Any]:
    """The futures of a box's writes; ``known`` and ``generation`` are of what stands there."""
    staged = keys(partition).with_transaction(transaction)
    box, receipt, failure = change.box, change.receipt, change.failure
    data = None if receipt is None else receipt.to_bytes()
    yield staged.write(f"receipts/{box}", data, if_equal=generation)
    yield staged.write(f"failed/{box}", None if failure is None else failure.to_bytes())
    if change.ours is None:
        yield staged.write(f"plan/{box}", None)
    yield staged.write(f"supervoxels/{box}", change.supervoxels)
    if receipt is not None and change.rows is None:
        return
    new = [] if receipt is None else partition.chunks(change.local, receipt.committed)
    old = [] if known is None else partition.chunks(change.local, known.committed)
    for key in sorted(set(old) - set(new)):
        yield staged.write(key, None)
    if change.rows is not None:
        yield from _rows_staged(partition, change.local, change.rows, transaction)


def _rows_staged(
    partition: Partition, local: int, rows: Rows, transaction: ts.Transaction
) -> Iterator[Any]:
    whole = math.ceil(len(rows) / ROWS_A_CHUNK) * ROWS_A_CHUNK
    if whole:
        for name, values in rows.arrays().items():
            padded = np.zeros((whole, *values.shape[1:]), values.dtype)
            padded[: len(rows)] = values
            into = array(partition, name).with_transaction(transaction)
            yield into[local, :whole].write(padded).copy
    count = array(partition, "count").with_transaction(transaction)
    yield count[local].write(np.uint32(len(rows))).copy


def reopen_boxes(partition: Partition, boxes: Sequence[tuple[int, str]], fence: Fence) -> None:
    """Take receipt, failure and rows of boxes away, whatever they are; their plans stay.

    Args:
        partition: The partition that owns the boxes.
        boxes: (index on the box axis, key) of each.
        fence: The run's fence.
    """
    _retried(partition, functools.partial(_reopen_once, partition, boxes, fence))


def _reopen_once(
    partition: Partition,
    boxes: Sequence[tuple[int, str]],
    fence: Fence,
    transaction: ts.Transaction,
) -> None:
    stored = keys(partition)
    staged = stored.with_transaction(transaction)
    futures: list[Any] = []
    for local, box in boxes:
        names = [f"{what}/{box}" for what in ("receipts", "failed", "supervoxels")]
        for name in ARRAYS:
            begin, end = f"{name}/c/{local}", f"{name}/c/{local}0"
            span = ts.KvStore.KeyRange(begin, end)
            found = [k.decode() for k in result(partition, stored.list(span))]
            names.extend(k for k in found if k == begin or k.startswith(f"{begin}/"))
        futures.extend(staged.write(name, None) for name in names)
    futures.append(_fenced(partition, fence, staged))
    for future in futures:
        result(partition, future)
    _commit(partition, transaction)


def shut_out(partition: Partition, fence: Fence) -> None:
    """Shut runs of older epochs out of a partition, where the run works alone.

    Does nothing where there is no partition yet.

    Raises:
        FencedError: A newer run has taken over.
    """
    if fence.alone:
        _retried(partition, functools.partial(_shut_once, partition, fence))


def refuse_fenced(partition: Partition, fence: Fence) -> None:
    """Refuse a run that a newer one has shut out of a partition.

    Raises:
        FencedError: It has.
    """
    standing = result(partition, keys(partition).read("epoch"))
    if standing.state == "value":
        _check_fence(partition, fence, standing)


def _shut_once(partition: Partition, fence: Fence, transaction: ts.Transaction) -> None:
    stored = keys(partition)
    standing = result(partition, stored.read("epoch"))
    if standing.state != "value" or int(standing.value) == fence.epoch:
        return
    _check_fence(partition, fence, standing)
    staged = stored.with_transaction(transaction)
    write = staged.write("epoch", _epoch(fence), if_equal=standing.stamp.generation)
    result(partition, write)
    _commit(partition, transaction)


def _fenced(partition: Partition, fence: Fence, staged: ts.KvStore) -> Any:
    """The write of the epoch as it stands, on the condition that it does.

    The value is small, so OCDBT keeps it in the tree and its generation is its content's: writers
    who find the same epoch do not disturb each other.
    """
    standing = result(partition, keys(partition).read("epoch"))
    value = _epoch(fence)
    if standing.state == "value":
        _check_fence(partition, fence, standing)
        value = standing.value
    return staged.write("epoch", value, if_equal=standing.stamp.generation)


def _epoch(fence: Fence) -> bytes:
    """The epoch that a run gives a partition."""
    return str(fence.epoch if fence.alone else 0).encode()


def _check_fence(partition: Partition, fence: Fence, standing: Any) -> None:
    if int(standing.value) > fence.epoch:
        raise FencedError(
            f"{partition} was taken over by a newer run (epoch {int(standing.value)}, this run has "
            f"{fence.epoch}): nothing more of this run is written; start it again when the other "
            "has ended"
        )


def _commit(partition: Partition, transaction: ts.Transaction) -> None:
    try:
        transaction.commit_sync()
    except ValueError as e:
        refuse_conflict(e)
        raise RunError(f"cannot commit to {partition}: {objects.redacted(str(e))}") from e


def _retried(partition: Partition, attempt: Callable[[ts.Transaction], _T]) -> _T:
    """Run an attempt in a transaction of its own until no other writer comes between."""
    for _ in range(_ATTEMPTS):
        transaction = ts.Transaction(atomic=True)
        try:
            return attempt(transaction)
        except ConflictError:
            continue
        finally:
            if transaction.open:
                transaction.abort()
    raise RunError(
        f"{partition}: {_ATTEMPTS} commits in a row met another writer's; nothing was written for "
        "this box: run the same command again, with fewer workers if this repeats"
    )
