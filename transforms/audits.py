"""The check of a partition: what each box has, against what its plan and its receipt say.

No Beam here; see ``transforms.verify``. Only storage is read: no volume, no nodes, no model.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segclr.nodes import Nodes
from volumes import audits, partition
from volumes.errors import DataError
from volumes.generation import Generation, coordinate_of, name_of
from volumes.geometry import Vec
from volumes.partition import Partition
from volumes.receipts import BoxPlan, Failure, Receipt, Rows

UNDONE, STALE, FAILED = "undone", "stale", "failed"
"""Kinds of faults that are no damage: work to be done, work to be done anew, boxes set aside."""

IDS = np.dtype([("segment_id", "<u8"), ("node_id", "<u8"), ("local", "<u4")])
"""A row's identity and the index of its box on the box axis, packed."""

_Ids = npt.NDArray[np.void]


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        kind: What it is, a word to count by.
        where: Key of the box, or what else it is about.
        says: A sentence about it.
        mends: Whether to compute the box again, or to take its rows away, mends it.
    """

    kind: str
    where: str
    says: str
    mends: bool = False

    @property
    def order(self) -> tuple[Any, ...]:
        """Boxes first, by coordinate; then the rest by name."""
        try:
            place: tuple[Any, ...] = (0, coordinate_of(self.where), "")
        except ValueError:
            place = (1, (), self.where)
        return (*place, self.kind, self.says)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """What was found in a partition at one version of its database.

    Attributes:
        plans: What boxes owe, by key.
        receipts: What is committed, by key; neither holds keys of other partitions.
        faults: What is wrong.
        ids: Packed identities of the rows that are what their receipt says.
    """

    plans: dict[str, BoxPlan]
    receipts: dict[str, Receipt]
    faults: tuple[Fault, ...]
    ids: _Ids

    def undone(self) -> set[str]:
        """Boxes that are planned, and neither committed for this plan nor set aside."""
        return {f.where for f in self.faults if f.kind in (UNDONE, STALE)}

    def mendable(self) -> list[str]:
        """Boxes with damage that computing them again mends, in order."""
        return sorted({f.where for f in self.faults if f.mends}, key=coordinate_of)


def audit(generation: Generation, name: str, version: int) -> Audit:
    """Check a partition at a version of its database.

    Raises:
        RunError: The storage fails, or the database's own tree cannot be read.
    """
    found = _Found.read(generation, name, version)
    faults = list(found.strangers())
    by_local = {generation.local(c): name_of(c) for c in found.coordinates()}
    for local in sorted(set(found.chunks) - set(by_local)):
        if 0 <= local < found.part.boxes:
            by_local[local] = name_of(generation.box_at(coordinate_of(name), local))
        else:
            says = f"there are rows at place {local} of {found.part.boxes}"
            faults.append(Fault("misplaced", f"partition {name}", says))
    for local, box in sorted(by_local.items()):
        faults.extend(found.document_faults(local, box))
    ids = []
    for box, more, mine in found.row_faults({box: local for local, box in by_local.items()}):
        faults.extend(Fault(kind, box, says, box in found.plans) for kind, says in more)
        ids.append(mine)
    ordered = tuple(sorted(faults, key=lambda f: f.order))
    return Audit(found.plans, found.receipts, ordered, np.concatenate([np.empty(0, IDS), *ids]))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What a partition holds, as it is read for a check."""

    generation: Generation
    name: str
    part: Partition
    version: int
    plans: dict[str, BoxPlan]
    receipts: dict[str, Receipt]
    failures: dict[str, Failure]
    damaged: dict[str, list[tuple[str, str]]]
    misplaced: dict[str, str]
    chunks: dict[int, set[str]]

    @classmethod
    def read(cls, generation: Generation, name: str, version: int) -> "_Found":
        part = generation.partition(name)
        misplaced: dict[str, str] = {}
        damaged: dict[str, list[tuple[str, str]]] = {}
        kept: dict[str, dict[str, Any]] = {}
        loads: dict[str, Any] = {
            "plan": BoxPlan.from_bytes,
            "receipts": Receipt.from_bytes,
            "failed": Failure.from_bytes,
        }
        for what, load in loads.items():
            good, bad = audits.read_documents(part, what, load, version)
            for box in [*good, *bad]:
                if not _belongs(generation, name, box):
                    misplaced[box] = what
            kept[what] = {b: d for b, d in good.items() if b not in misplaced}
            for box, why in bad.items():
                if box not in misplaced:
                    damaged.setdefault(box, []).append((what, why))
        chunks = audits.read_chunk_keys(part, version)
        docs = (kept["plan"], kept["receipts"], kept["failed"])
        return cls(generation, name, part, version, *docs, damaged, misplaced, chunks)

    def coordinates(self) -> list[Vec]:
        """Of all boxes that have a document here."""
        boxes = {*self.plans, *self.receipts, *self.failures, *self.damaged}
        return [coordinate_of(box) for box in boxes]

    def strangers(self) -> Iterator[Fault]:
        """Documents of boxes that another partition owns, and of none."""
        for box, what in sorted(self.misplaced.items()):
            says = f"partition {self.name} has {what}/{box}, and that box does not lie in it"
            yield Fault("misplaced", box, says)

    def document_faults(self, local: int, box: str) -> Iterator[Fault]:
        """What plan, receipt and failure of a box say, against each other."""
        plan, receipt = self.plans.get(box), self.receipts.get(box)
        failure = self.failures.get(box)
        planned = plan is not None
        for what, why in self.damaged.get(box, ()):
            if what == "plan":
                yield Fault("plan", box, why)
            else:
                yield Fault("damaged", box, why, mends=planned)
        if box in self.damaged:
            return
        if plan is None and (receipt is not None or failure is not None):
            standing = "has a receipt and" if receipt is not None else "is set aside and has"
            yield Fault("unplanned", box, f"it {standing} no plan")
        if receipt is None:
            if failure is not None:
                yield Fault(FAILED, box, f"it is set aside: {failure.error}")
            elif plan is not None:
                says = f"it owes {plan.nodes} nodes, and is neither committed nor set aside"
                yield Fault(UNDONE, box, says)
            if local in self.chunks:
                says = f"it has rows or a count ({len(self.chunks[local])} chunks) and no receipt"
                yield Fault("stray", box, says, mends=planned or failure is None)
        if plan is not None and receipt is not None and receipt.content != plan.content:
            says = (
                f"its receipt is for {receipt.planned} nodes ({receipt.content[:12]}), and "
                f"{plan.nodes} ({plan.content[:12]}) are planned now"
            )
            yield Fault(STALE, box, says)
        for says in self._contradictions(box, plan, receipt, failure):
            yield Fault("accounting", box, says, mends=planned)

    def _contradictions(
        self, box: str, plan: BoxPlan | None, receipt: Receipt | None, failure: Failure | None
    ) -> Iterator[str]:
        if receipt is not None and failure is not None:
            yield "it has a receipt and is set aside as well"
        documents = {"plan": plan, "receipt": receipt, "failure": failure}
        for what, document in documents.items():
            if document is not None and document.box != box:
                yield f"its {what} is that of box {document.box}"
        if receipt is None:
            if plan is not None and failure is not None and failure.planned != plan.nodes:
                yield f"{plan.nodes} nodes are planned, and it is set aside with {failure.planned}"
            return
        rejected = sum(n for _, n in receipt.rejected)
        if receipt.planned != receipt.committed + rejected:
            yield (
                f"its receipt says {receipt.planned} nodes planned, {receipt.committed} committed "
                f"and {rejected} rejected"
            )
        if plan is None or receipt.content != plan.content:
            return
        if (receipt.planned, receipt.identities) != (plan.nodes, plan.identities):
            yield (
                f"{plan.nodes} nodes ({plan.identities[:12]}) are planned, and its receipt is for "
                f"{receipt.planned} ({receipt.identities[:12]})"
            )

    def row_faults(
        self, places: dict[str, int]
    ) -> Iterator[tuple[str, list[tuple[str, str]], _Ids]]:
        """(box, (kind, sentence) of each fault of its rows, its identities) of committed boxes."""
        committed = {places[b]: b for b in sorted(self.receipts, key=places.__getitem__)}
        counted = [n for n in committed if f"count/c/{n}" in self.chunks.get(n, ())]
        counts = audits.read_counts(self.part, counted, self.version)
        sound = []
        for local, box in committed.items():
            faults = list(self._chunk_faults(local, box, counts.get(local)))
            if faults:
                yield box, faults, np.empty(0, IDS)
            else:
                sound.append((local, self.receipts[box].committed))
        for local, rows in audits.read_rows(self.part, sound, self.version):
            box = committed[local]
            if isinstance(rows, DataError):
                yield box, [("damaged", audits.reason(rows, self.part))], np.empty(0, IDS)
                continue
            faults = list(_row_faults(rows, self.receipts[box], self.plans.get(box)))
            yield box, faults, _packed(rows, local)

    def _chunk_faults(
        self, local: int, box: str, count: int | DataError | None
    ) -> Iterator[tuple[str, str]]:
        committed = self.receipts[box].committed
        have = self.chunks.get(local, set())
        counter = f"count/c/{local}"
        # A receipt whose number is damaged must not decide what is allocated.
        if committed > len(have) * partition.ROWS_A_CHUNK:
            yield "lost", f"its receipt says {committed} rows, and there are {len(have)} chunks"
            return
        needed = set(self.part.chunks(local, committed))
        lost = sorted(needed - have - {counter})
        if lost:
            yield "lost", f"{len(lost)} of {len(needed)} chunks are not there: {_first(lost)}"
        if isinstance(count, DataError):
            yield "damaged", audits.reason(count, self.part)
        elif count != committed:
            says = "no count is stored" if count is None else f"the count stored is {count}"
            yield "count", f"{says}, and its receipt says {committed} rows"
        extra = sorted(have - needed)
        if extra:
            yield "stray", f"{len(extra)} chunks are there that no row needs: {_first(extra)}"


def _belongs(generation: Generation, name: str, box: str) -> bool:
    """Whether a key is that of a box in a partition."""
    try:
        coordinate = coordinate_of(box)
    except ValueError:
        return False
    return name_of(coordinate) == box and generation.partition_name(coordinate) == name


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _row_faults(rows: Rows, receipt: Receipt, plan: BoxPlan | None) -> Iterator[tuple[str, str]]:
    digest = rows.digest()
    if digest != receipt.rows_digest:
        yield (
            "rows",
            f"its {len(rows)} rows have digest {digest[:12]}, and its receipt says "
            f"{receipt.rows_digest[:12]}",
        )
        return
    if not audits.is_ascending(rows):
        if audits.repeats(rows):
            yield "duplicate", "it has two rows of the same node"
        else:
            yield "order", "its rows are not in the order of (segment_id, node_id)"
    if plan is None or receipt.content != plan.content or len(rows) != plan.nodes:
        return
    if Nodes(rows.segment_id, rows.node_id, rows.position_nm).identity_digest() != plan.identities:
        yield "identity", f"its {len(rows)} rows are of other nodes than the {plan.nodes} planned"


def _packed(rows: Rows, local: int) -> _Ids:
    packed = np.empty(len(rows), IDS)
    packed["segment_id"], packed["node_id"] = rows.segment_id, rows.node_id
    packed["local"] = local
    return packed
