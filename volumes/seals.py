"""The accounting of a partition: what its boxes owe, and what has become of it."""

import dataclasses
from collections.abc import Iterable

from volumes import partition
from volumes.generation import Generation, coordinate_of
from volumes.receipts import BoxPlan, Failure, Receipt, json_digest

NAMED = 100
"""Boxes that are undone or set aside are named up to this number; the rest are counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seal:
    """The accounting of one partition at one version of its database, from storage alone.

    Attributes:
        partition: The partition's name.
        version: The database's generation number.
        boxes: Boxes with a receipt.
        nodes: Nodes that plans owe.
        rows: Rows that receipts record.
        rejected: (reason, count) pairs that receipts record, sorted.
        digest: Digest of the boxes' row digests.
        inputs: Digest of the boxes' image and segmentation digests: what was read.
        identities: Digest of the boxes' node identities.
        failed: (box, error) of the boxes that are set aside, the first hundred.
        failed_boxes: How many those are.
        failed_nodes: Nodes that they owe.
        undone: Boxes whose plan has neither a receipt nor a failure, the first hundred.
        undone_boxes: How many those are.
        undone_nodes: Nodes that they owe.
        unplanned_boxes: Boxes with a receipt and no plan.
    """

    partition: str
    version: int
    boxes: int
    nodes: int
    rows: int
    rejected: tuple[tuple[str, int], ...]
    digest: str
    inputs: str
    identities: str
    failed: tuple[tuple[str, str], ...]
    failed_boxes: int
    failed_nodes: int
    undone: tuple[str, ...]
    undone_boxes: int
    undone_nodes: int
    unplanned_boxes: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What a partition says of its boxes at one version of its database.

    Attributes:
        version: The database's generation number; 0 where there is none.
        plans: What boxes owe, by key.
        receipts: What is committed, by key.
        failures: What is set aside, by key.
    """

    version: int
    plans: dict[str, BoxPlan]
    receipts: dict[str, Receipt]
    failures: dict[str, Failure]

    def undone(self) -> list[str]:
        """Planned boxes that have neither a receipt for this plan nor a failure, in order."""
        left = (b for b, plan in self.plans.items() if not self._settled(b, plan))
        return sorted(left, key=coordinate_of)

    def _settled(self, box: str, plan: BoxPlan) -> bool:
        receipt = self.receipts.get(box)
        if receipt is not None:
            return receipt.content == plan.content
        return box in self.failures


def contents(generation: Generation, name: str, version: int | None = None) -> Contents:
    """Read what a partition says of its boxes, at its newest version unless told otherwise.

    Raises:
        RunError: A document is listed and cannot be read.
    """
    part = generation.partition(name)
    version = partition.newest_version(part) if version is None else version
    if version == 0:
        return Contents(0, {}, {}, {})
    plans = partition.read_all(part, "plan", BoxPlan.from_bytes, version)
    receipts = partition.read_all(part, "receipts", Receipt.from_bytes, version)
    failures = partition.read_all(part, "failed", Failure.from_bytes, version)
    return Contents(version, plans, receipts, failures)


def seal(generation: Generation, name: str, version: int | None = None) -> Seal:
    """Account for a partition: planned against committed, read from storage alone."""
    found = contents(generation, name, version)
    plans = found.plans
    receipts = [found.receipts[b] for b in sorted(found.receipts, key=coordinate_of)]
    failed = sorted(found.failures.keys() - found.receipts.keys(), key=coordinate_of)
    undone = found.undone()
    return Seal(
        partition=name,
        version=found.version,
        boxes=len(receipts),
        nodes=sum(p.nodes for p in plans.values()),
        rows=sum(r.committed for r in receipts),
        rejected=added(r.rejected for r in receipts),
        digest=json_digest([[r.box, r.rows_digest] for r in receipts]),
        inputs=json_digest([[r.box, r.image_digest, r.labels_digest] for r in receipts]),
        identities=json_digest([[r.box, r.identities] for r in receipts]),
        failed=tuple((b, found.failures[b].error) for b in failed[:NAMED]),
        failed_boxes=len(failed),
        failed_nodes=sum(plans[b].nodes for b in failed if b in plans),
        undone=tuple(undone[:NAMED]),
        undone_boxes=len(undone),
        undone_nodes=sum(plans[b].nodes for b in undone),
        unplanned_boxes=len((found.receipts.keys() | found.failures.keys()) - plans.keys()),
    )


def added(counts: Iterable[Iterable[tuple[str, int]]]) -> tuple[tuple[str, int], ...]:
    """The sum of several (reason, count) collections, sorted, zeros left out."""
    total: dict[str, int] = {}
    for pairs in counts:
        for reason, n in pairs:
            total[reason] = total.get(reason, 0) + n
    return tuple(sorted((reason, n) for reason, n in total.items() if n))
