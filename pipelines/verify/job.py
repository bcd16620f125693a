"""The check of an embedding store: what is asked, what will run, the graph, what it found."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from pipelines.request import refuse_empty
from transforms.findings import VerifyWork
from transforms.verify import VerifyStore
from volumes import objects, provenance, store
from volumes.embeddings import EmbeddingStore
from volumes.errors import RequestError, RunError

# How each kind of fault that no repair mends is mended, in the order in which it is said.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("failed",),
        "boxes that are set aside are done again by the same embed command with --retry-failed, "
        "when the cause is mended",
    ),
    (
        ("duplicate",),
        "a node that has rows in several boxes stands several times in the nodes table: correct it "
        "and run reprocess",
    ),
    (
        ("stale", "unplanned", "totals"),
        "boxes whose plan is gone or is another's, and nodes that were lost on the way, are put "
        "right by reprocess",
    ),
    (
        ("unfinished",),
        "a run that did not come to its end goes on when its command is given again",
    ),
    (
        ("version", "database", "misplaced", "plan"),
        "what is gone or damaged beyond a box cannot be computed again in its place: restore the "
        "store's files from a copy, or embed into a new store",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True)
class VerifyConfig:
    """The request.

    Attributes:
        store: An embedding store; None for a volume.
        volume: A volume that this package wrote; None for a store.
        version: A published version's number; None for what is committed now.
        repair: Whether damaged boxes are put back in the queue.
    """

    store: str | None = None
    version: int | None = None
    repair: bool = False
    volume: str | None = None

    def __post_init__(self) -> None:
        """Refuse what names nothing or two things, and the repair of what is published."""
        refuse_empty(store=self.store, volume=self.volume)
        if (self.store is None) == (self.volume is None):
            raise RequestError(
                "verify checks one thing: give --store URL for an embedding store, or --volume URL "
                "for a volume that ingest, convert or downsample wrote"
            )
        if self.volume is not None and self.version is not None:
            raise RequestError(
                f"--version {self.version} was given with --volume {self.volume}: volumes have no "
                "versions; leave it out"
            )
        if self.repair and self.version is not None:
            raise RequestError(
                f"--repair was given with --version {self.version}: a published version never "
                "changes, or its readers would see rows come and go; leave --version out to repair "
                "what is committed now"
            )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class VerifyPlan:
    """What will run.

    Attributes:
        store: The store, open for reading.
        work: All that a worker needs to know.
    """

    store: EmbeddingStore
    work: VerifyWork

    @property
    def url(self) -> str:
        """Location of the store."""
        return self.work.generation.store

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "job": "verify",
            "store": self.url,
            "version": self.work.version,
            "generation": self.work.generation.name,
            "partitions": len(self.store.partitions),
            "repair": self.work.repair,
        }

    def lines(self) -> list[str]:
        """The plan for people, a line each."""
        version = self.work.version
        what = "what is committed now" if version is None else f"version {version}"
        return [
            f"store: {self.url}, generation {self.work.generation.name}, {what}",
            f"to check: {len(self.store.partitions):,} partitions, every row of them",
            "repair: "
            + ("damaged boxes are put back in the queue" if self.work.repair else "no, only look"),
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a check found, from the document it left.

    Attributes:
        version: The version checked; None for what is committed now.
        boxes: Committed boxes.
        nodes: Planned nodes.
        rows: Rows that receipts record.
        failed: Boxes that are set aside.
        undone: Planned boxes without rows; after a repair those put back in the queue among them.
        repaired: Boxes put back in the queue, or whose rows without a receipt were taken away.
        faults: (kind, count) pairs of what was found, sorted.
        left: The same, without what was mended and what is merely undone.
        mendable: How many of those left a repair mends.
        named: (what it is about, kind, sentence) of the first hundred faults.
        published: The version that a repair published; None for none.
        recorded: Whether embed knows of the undone boxes.
    """

    version: int | None
    boxes: int
    nodes: int
    rows: int
    failed: int
    undone: int
    repaired: int
    faults: tuple[tuple[str, int], ...]
    left: tuple[tuple[str, int], ...]
    mendable: int
    named: tuple[tuple[str, str, str], ...]
    published: int | None
    recorded: bool

    @property
    def clean(self) -> bool:
        """Whether nothing is left to do."""
        return not self.left and not self.undone

    def lines(self) -> list[str]:
        """What was found, a line each; one line where all is well."""
        rows = f"{boxes_text(self.boxes)}, {self.rows:,} {'row' if self.rows == 1 else 'rows'}"
        lines = []
        if self.faults:
            named = [f"  {where} ({kind}): {says}" for where, kind, says in self.named]
            more = sum(n for _, n in self.faults) - len(named)
            lines = [f"{rows}; found:", *named, *([f"  and {more:,} more"] if more else [])]
        if self.repaired:
            again = (
                ""
                if self.published is None
                else f"; version {self.published} records what is undone"
            )
            lines.append(f"{boxes_text(self.repaired)} repaired{again}")
        if self.clean:
            lines.append(f"{rows}: every row is what its receipt says")
        return lines

    def remedies(self) -> Iterator[str]:
        """How to go on, a sentence each."""
        left = dict(self.left)
        if self.version is not None:
            yield "run verify without --version, which tells whether the same is so of what is now"
            return
        stale = left.get("stale", 0)
        if self.mendable:
            yield "verify --repair puts the damaged boxes back in the queue"
        elif self.undone and not self.recorded and not stale:
            yield "verify --repair records the undone boxes, so that embed knows of them"
        if self.undone > stale or self.mendable:
            yield "the same embed command computes the boxes that are undone"
        for kinds, sentence in _REMEDIES:
            if any(left.get(kind, 0) for kind in kinds):
                yield sentence


def boxes_text(count: int) -> str:
    """A number of boxes for people."""
    return f"{count:,} {'box' if count == 1 else 'boxes'}"


def plan(config: VerifyConfig) -> VerifyPlan:
    """Open the store; nothing is written, and no row is read.

    Raises:
        RequestError: There is no store, or no such version.
        RunError: The generation's manifest is gone or damaged.
    """
    if config.store is None:
        raise ValueError("a volume is planned by plan_volume")
    url = objects.absolute(config.store)
    if config.version is None:
        store.refuse_headless(url)
    opened = EmbeddingStore.open(url, "live" if config.version is None else config.version)
    work = VerifyWork(
        generation=opened.generation,
        version=config.version,
        run=store.new_run(),
        repair=config.repair,
    )
    return VerifyPlan(opened, work)


def prepare(plan: VerifyPlan, command: str) -> None:
    """Write that the check begins, before it takes its time; all else it writes is the outcome.

    Args:
        plan: The plan.
        command: The command line, for the record.
    """
    begun = {"command": command, "software": provenance.software(), "begun": provenance.now()}
    store.write_run(plan.url, plan.work.run, "verify", plan.to_json() | begun)


def build(root: beam.Pipeline, plan: VerifyPlan) -> beam.PCollection:
    """The graph of a check; it never sees a runner."""
    return root | "Verify" >> VerifyStore(plan.work)


def finish(plan: VerifyPlan) -> Result:
    """Read what was found.

    Raises:
        RunError: The check did not come to its end.
    """
    outcome = store.read_run(plan.url, plan.work.run, "verified")
    if outcome is None:
        raise RunError(
            f"the check {plan.work.run} left no outcome in {plan.url}: it did not come to its end; "
            "run the same command again"
        )
    return Result(
        version=outcome["version"],
        boxes=outcome["boxes"],
        nodes=outcome["nodes"],
        rows=outcome["rows"],
        failed=outcome["failed"],
        undone=outcome["undone"],
        repaired=outcome["repaired"],
        faults=tuple(sorted(outcome["faults"].items())),
        left=tuple(sorted(outcome["left"].items())),
        mendable=outcome["mendable"],
        named=tuple((f["where"], f["kind"], f["says"]) for f in outcome["named"]),
        published=outcome["published"],
        recorded=outcome["recorded"],
    )
