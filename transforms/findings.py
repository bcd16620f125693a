"""What a check of a store is made of: the request, a partition to be looked at, what was found."""

import dataclasses
from collections.abc import Iterable

from transforms.audits import UNDONE, Audit, Fault
from transforms.nodes import Counts
from volumes import seals
from volumes.commits import OPEN, Fence
from volumes.generation import Generation

NAMED = 100
"""So many faults are named; the rest are counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerifyWork:
    """A check; picklable, opens nothing.

    Attributes:
        generation: The generation whose boxes are checked.
        version: The published version, at whose database versions they are; None for what is
            committed now.
        run: The check's name among the store's runs.
        repair: Whether damaged boxes are put back in the queue.
        fence: By which what a repair writes is refused once a newer run has taken over.
    """

    generation: Generation
    version: int | None
    run: str
    repair: bool = False
    fence: Fence = OPEN


@dataclasses.dataclass(frozen=True, slots=True)
class Pin:
    """What a published version says of a partition.

    Attributes:
        number: The version's number.
        at: The database version.
        digest: What the partition is to be sealed with there; None to look only whether it can
            be read.
    """

    number: int
    at: int
    digest: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A partition to be checked.

    Attributes:
        generation: Its generation.
        name: Its name.
        boxes: Whether its boxes are checked.
        at: The database version at which they are; None for the newest.
        pins: What versions say of it.
    """

    generation: Generation
    name: str
    boxes: bool
    at: int | None
    pins: tuple[Pin, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What a part of the check found; parts are added up.

    Attributes:
        boxes: Committed boxes.
        nodes: Planned nodes.
        rows: Rows that receipts record.
        undone: Planned boxes that are not committed for their plan, nor set aside; with a repair,
            those put back in the queue among them.
        repaired: Boxes put back in the queue, or whose rows were taken away.
        faults: (kind, count) pairs of what was found, sorted.
        left: The same without what was mended, and without what the count ``undone`` has.
        mendable: Faults among ``left`` that a repair mends.
        unsealed: Partitions that cannot be accounted for.
        named: The first faults found.
    """

    boxes: int = 0
    nodes: int = 0
    rows: int = 0
    undone: int = 0
    repaired: int = 0
    faults: Counts = ()
    left: Counts = ()
    mendable: int = 0
    unsealed: int = 0
    named: tuple[Fault, ...] = ()

    @classmethod
    def of(cls, faults: Iterable[Fault], *, unsealed: int = 0) -> "Finding":
        """The finding of faults that nothing was done about."""
        given = sorted(faults, key=lambda f: f.order)
        left = [f for f in given if f.kind != UNDONE]
        return cls(
            faults=_counted(given),
            left=_counted(left),
            mendable=sum(f.mends for f in left),
            unsealed=unsealed,
            named=tuple(given[:NAMED]),
        )

    @classmethod
    def total(cls, parts: Iterable["Finding"]) -> "Finding":
        """The sum, with the first of the faults named."""
        held = list(parts)
        names = ("boxes", "nodes", "rows", "undone", "repaired", "mendable", "unsealed")
        named = sorted((f for p in held for f in p.named), key=lambda f: f.order)
        return cls(
            faults=seals.added(p.faults for p in held),
            left=seals.added(p.left for p in held),
            named=tuple(named[:NAMED]),
            **{n: sum(getattr(p, n) for p in held) for n in names},
        )


def _counted(faults: Iterable[Fault]) -> Counts:
    return seals.added(((f.kind, 1),) for f in faults)


def finding_of(audit: Audit, reopened: frozenset[str] = frozenset()) -> Finding:
    """The finding of a partition, of which the boxes ``reopened`` were mended after the check."""
    kept = [r for box, r in audit.receipts.items() if box not in reopened]
    undone = audit.undone() | {box for box in reopened if box in audit.plans}
    found = Finding.of(f for f in audit.faults if f.where not in reopened)
    return dataclasses.replace(
        found,
        boxes=len(kept),
        nodes=sum(p.nodes for p in audit.plans.values()),
        rows=sum(r.committed for r in kept),
        undone=len(undone),
        repaired=len(reopened),
        faults=_counted(audit.faults),
        named=audit.faults[:NAMED],
    )
