"""Compaction of an embedding store: what is asked, what goes and what stays, the graph."""

import dataclasses
from typing import Any

import apache_beam as beam

from pipelines.request import refuse_empty, store_url
from pipelines.text import bytes_text
from transforms.compact import OUTCOME, CompactStore, CompactWork
from volumes import partition, store
from volumes.errors import RequestError, RunError
from volumes.generation import Generation

# Versions that go are named in a plan up to this number, then counted.
_NAMED = 20


@dataclasses.dataclass(frozen=True, slots=True)
class CompactConfig:
    """The request.

    Attributes:
        store: The embedding store.
        keep: So many of the newest versions stay, at least 1.
        scheduled: Whether the run gives way, and counts as done, while another one lives.
    """

    store: str
    keep: int = 2
    scheduled: bool = False

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        refuse_empty(store=self.store)
        if self.keep < 1:
            raise RequestError(
                f"--keep {self.keep}: at least 1 version stays, the newest, since version numbers "
                "go on from it and its readers come back to it; give 1 or more"
            )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class CompactPlan:
    """What will run.

    Attributes:
        work: All that a worker needs to know.
        partitions: Partitions that stay and are compacted.
    """

    work: CompactWork
    partitions: int

    @property
    def url(self) -> str:
        """Location of the store."""
        return self.work.store

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        work = self.work
        return {
            "job": "compact",
            "store": work.store,
            "versions_kept": list(work.kept),
            "versions_removed": list(work.removed),
            "generations_kept": [g.name for g in work.generations],
            "generations_removed": list(work.dropped),
            "partitions": self.partitions,
        }

    def lines(self) -> list[str]:
        """The plan for people, a line each."""
        work = self.work
        dropped = [f"generations to remove: {', '.join(work.dropped)}"] if work.dropped else []
        return [
            f"store: {work.store}",
            f"versions to keep: {_named(work.kept)}, and work under way",
            f"versions to remove: {_named(work.removed)}",
            *dropped,
            f"partitions to compact: {self.partitions:,}",
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a compaction did.

    Attributes:
        versions_kept: Numbers of the versions that stay.
        versions_removed: Numbers of those that went.
        generations_removed: Names of the generations that went.
        partitions: Partitions compacted.
        files_removed: Files deleted in these, and files that killed writers left.
        bytes_before: Bytes of the partitions before; None where the storage gives no sizes.
        bytes_after: Bytes of the partitions after; None where the storage gives no sizes.
    """

    versions_kept: tuple[int, ...]
    versions_removed: tuple[int, ...]
    generations_removed: tuple[str, ...]
    partitions: int
    files_removed: int
    bytes_before: int | None
    bytes_after: int | None

    def lines(self) -> list[str]:
        """What was done, for people."""
        sizes = ""
        if self.bytes_before is not None and self.bytes_after is not None:
            before, after = bytes_text(self.bytes_before), bytes_text(self.bytes_after)
            sizes = f", {before} before and {after} now"
        lines = [
            f"versions kept: {_named(self.versions_kept)}; removed: {_named(self.versions_removed)}"
        ]
        if self.generations_removed:
            lines.append(f"generations removed: {', '.join(self.generations_removed)}")
        lines.append(
            f"{self.partitions:,} partitions compacted, {self.files_removed:,} files "
            f"removed{sizes}; what readers of the kept versions may still have open goes with the "
            "next compact"
        )
        return lines


def plan(config: CompactConfig) -> CompactPlan:
    """Look at the store's documents and decide what goes; nothing is written.

    Raises:
        RequestError: There is no such store.
        RunError: A document of what is to be kept is gone or damaged.
    """
    url = store_url(config.store)
    numbers = store.version_numbers(url)
    kept, removed = numbers[-config.keep :], numbers[: -config.keep]
    generations = _referred(url, kept)
    names = store.generation_directories(url)
    current, manifest = store.current(url)
    store.refuse_headless(url)
    dropped: list[str] = []
    if manifest is not None:
        body = manifest["generation"]
        generations[current] = Generation.from_json(body | {"store": url})
        dropped = [n for n in names if int(n) < int(current) and n not in generations]
    work = CompactWork(
        store=url,
        run=store.new_run(),
        kept=tuple(kept),
        removed=tuple(removed),
        generations=tuple(generations[n] for n in sorted(generations, key=int)),
        dropped=tuple(dropped),
    )
    present = sum(len(list(store.partitions_present(g))) for g in work.generations)
    return CompactPlan(work, present)


def _referred(url: str, kept: list[int]) -> dict[str, Generation]:
    """The generations that the kept versions are of."""
    found = {}
    for number in kept:
        document = store.read_version(url, number)
        if document is not None:
            generation = Generation.from_json(document["generation"] | {"store": url})
            found[generation.name] = generation
    return found


def build(root: beam.Pipeline, plan: CompactPlan) -> beam.PCollection:
    """The graph of a compaction; it never sees a runner."""
    return root | "Compact" >> CompactStore(plan.work)


def done(plan: CompactPlan) -> int:
    """How many partitions this run has taken over so far: a look at its progress."""
    epoch = str(plan.work.fence.epoch).encode()
    return sum(
        partition.read_key(generation.partition(name), "epoch") == epoch
        for generation in plan.work.generations
        for name in store.partitions_present(generation)
    )


def finish(plan: CompactPlan) -> Result:
    """Read how the compaction ended.

    Raises:
        RunError: It did not come to its end.
    """
    outcome = store.read_run(plan.url, plan.work.run, OUTCOME)
    if outcome is None:
        raise RunError(
            f"the run {plan.work.run} left no outcome in {plan.url}: it did not come to its end; "
            "every version that is kept is as it was: run the same command again"
        )
    return Result(
        versions_kept=tuple(outcome["versions_kept"]),
        versions_removed=tuple(outcome["versions_removed"]),
        generations_removed=tuple(outcome["generations_removed"]),
        partitions=outcome["partitions"],
        files_removed=outcome["files_removed"],
        bytes_before=outcome["bytes_before"],
        bytes_after=outcome["bytes_after"],
    )


def _named(values: tuple[int, ...]) -> str:
    if not values:
        return "none"
    named = ", ".join(map(str, values[-_NAMED:]))
    more = len(values) - _NAMED
    return f"{named} and {more:,} older" if more > 0 else named
