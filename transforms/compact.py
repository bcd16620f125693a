"""Compaction of a store: what no kept version needs is removed, in an order that is safe to kill.

    partitions ─ CheckPins ─> RemoveVersions ─┬─ CompactPartition ──┬─> CloseCompaction
                                              └─ RemoveGeneration ──┘

1. Every database version that a kept version names is looked up. Where one is lost, all ends here
   and nothing is changed: the versions that are about to go may be all that is left.
2. The documents of the versions that go are removed, oldest first, so that what is left after a
   kill is always the newest ones. From then on nobody can open them. The newest is never removed,
   so numbers go on from it and none is given twice.
3. Partition by partition, writers of earlier epochs are shut out, and then the database is
   compacted. Generations that nothing refers to are removed, the manifest first, so that what a
   kill leaves of one does not look like a generation; it is older than the current one, so nobody
   takes it for that, and the next compaction removes the rest.
4. Files that killed writers left are removed, and the outcome is written.

Each step can be done again. The database version that was the newest when the writers were shut out
is kept as well until the next compaction: a reader of work under way may be at it, and so may a
version that a writer taken for dead publishes when it wakes up.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from transforms.counting import count, timed
from volumes import audits, commits, compaction, objects, partition, removal, store
from volumes.commits import OPEN, Fence
from volumes.errors import RunError
from volumes.generation import Generation, coordinate_of

STALE_S = 86_400.0
"""Age in seconds from which a file without its final name is a killed writer's."""

OUTCOME = "compacted"
"""Name of the document that tells of the end, among those of the run."""


@dataclasses.dataclass(frozen=True, slots=True)
class CompactWork:
    """A compaction; picklable, opens nothing.

    Attributes:
        store: Location of the store.
        run: The run's name.
        kept: Numbers of the versions that stay, ascending.
        removed: Numbers of the versions that go, ascending.
        generations: The generations that stay.
        dropped: Names of the generations that go.
        fence: By which writers of earlier epochs are shut out.
    """

    store: str
    run: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    generations: tuple[Generation, ...]
    dropped: tuple[str, ...]
    fence: Fence = OPEN


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A partition that stays.

    Attributes:
        generation: Its generation.
        name: Its name.
        pins: Database versions that kept versions name, ascending.
    """

    generation: Generation
    name: str
    pins: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Freed:
    """What came of partitions; parts are added up.

    Attributes:
        partitions: Partitions compacted.
        files_removed: Files deleted.
        bytes_before: Their bytes before; None where the storage gives no sizes.
        bytes_after: Their bytes after; None where the storage gives no sizes.
    """

    partitions: int = 0
    files_removed: int = 0
    bytes_before: int | None = 0
    bytes_after: int | None = 0

    @classmethod
    def total(cls, parts: Iterable["Freed"]) -> "Freed":
        """The sum; bytes are None where those of a part are."""
        held = list(parts)
        return cls(
            sum(p.partitions for p in held),
            sum(p.files_removed for p in held),
            _sum(p.bytes_before for p in held),
            _sum(p.bytes_after for p in held),
        )


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def parts(work: CompactWork) -> Iterator[Part]:
    """The partitions of the generations that stay, with what kept versions name of them."""
    pins: dict[tuple[str, str], set[int]] = {}
    for number in work.kept:
        document = store.read_version(work.store, number)
        if document is None:
            raise RunError(
                f"version {number} of {objects.redacted(work.store)} was removed while compact "
                "looked at it; run the same command again"
            )
        for name, entry in document["partitions"].items():
            key = (document["generation"]["name"], name)
            pins.setdefault(key, set()).add(int(entry["version"]))
    for generation in work.generations:
        named = {name for of, name in pins if of == generation.name}
        for name in sorted({*store.partitions_present(generation), *named}, key=coordinate_of):
            yield Part(generation, name, tuple(sorted(pins.get((generation.name, name), ()))))


def lost(part: Part) -> list[str]:
    """What of a partition kept versions need and is not there, in words."""
    database = part.generation.partition(part.name)
    newest = partition.newest_version(database)
    absent = [v for v in part.pins if v > newest or not audits.has_version(database, v)]
    return [f"version {v} of {database}" for v in absent]


def remove_versions(work: CompactWork, absent: list[str]) -> int:
    """Remove the documents of the versions that go, oldest first.

    Raises:
        RunError: What kept versions need is lost; nothing was removed.
    """
    if absent:
        raise RunError(
            f"{objects.redacted(work.store)}: versions {', '.join(map(str, work.kept))} are to be "
            f"kept and need {', '.join(sorted(absent)[:5])}, which cannot be read, so older "
            "versions may be all that is left of it; nothing was changed: run segclr-beam verify, "
            "and restore the files from a copy"
        )
    for number in sorted(work.removed):
        removal.remove(objects.join(work.store, "versions", f"{number}.json"))
    return len(work.removed)


def compact_part(work: CompactWork, part: Part) -> Freed:
    """Shut earlier writers out of a partition, and compact it."""
    database = part.generation.partition(part.name)
    before = partition.newest_version(database)
    if before == 0:  # what a writer left that was killed before its first commit
        return Freed()
    commits.shut_out(database, work.fence)
    after = partition.newest_version(database)
    # What stood when the others were shut out, also where one of them came in just before.
    stood = after - 1 if after > before else before
    done = compaction.compact(database, {*part.pins, stood})
    return Freed(1, done.files_removed, done.bytes_before, done.bytes_after)


def remove_generation(work: CompactWork, name: str) -> None:
    """Remove a generation that nothing refers to, its manifest first."""
    url = objects.join(work.store, "generations", name)
    removal.remove(objects.join(url, "manifest.json"))
    removal.remove_tree(url)


def close(work: CompactWork, freed: Freed) -> dict[str, Any]:
    """Remove what killed writers left beside the documents, and write the outcome."""
    stale = removal.stale_temporaries(work.store, STALE_S)
    for path in stale:
        removal.remove(path)
    total = dataclasses.replace(freed, files_removed=freed.files_removed + len(stale))
    outcome = {
        "versions_kept": list(work.kept),
        "versions_removed": list(work.removed),
        "generations_removed": list(work.dropped),
        **dataclasses.asdict(total),
    }
    store.write_run(work.store, work.run, OUTCOME, outcome)
    return outcome


class ListParts(beam.DoFn):
    """A compaction -> its Parts, listed by a worker."""

    def process(self, work: CompactWork) -> Iterator[Part]:
        """Yield each partition that stays."""
        yield from parts(work)


class CheckPins(beam.DoFn):
    """A Part -> what kept versions need of it and is lost, in words."""

    def process(self, part: Part) -> Iterator[str]:
        """Check one partition."""
        yield from lost(part)


class RemoveVersions(beam.DoFn):
    """A compaction -> the number of versions removed, once all partitions are checked."""

    def process(self, work: CompactWork, absent: list[str]) -> Iterator[int]:
        """Remove the documents."""
        yield remove_versions(work, absent)


class CompactPartition(beam.DoFn):
    """A Part -> what was Freed, after everything in ``barriers``."""

    def __init__(self, work: CompactWork) -> None:
        """Compacts for ``work``."""
        self._work = work

    def process(self, part: Part, *barriers: Any) -> Iterator[Freed]:
        """Compact one partition."""
        with timed("compact_ms"):
            freed = compact_part(self._work, part)
        count("partitions", freed.partitions)
        count("files_removed", freed.files_removed)
        yield freed


class RemoveGeneration(beam.DoFn):
    """A generation's name -> the same, when it is removed, after everything in ``barriers``."""

    def __init__(self, work: CompactWork) -> None:
        """Removes generations for ``work``."""
        self._work = work

    def process(self, name: str, *barriers: Any) -> Iterator[str]:
        """Remove one generation."""
        remove_generation(self._work, name)
        yield name


class CloseCompaction(beam.DoFn):
    """Writes the outcome when all is done; emits it."""

    def process(
        self, work: CompactWork, freed: list[Freed], generations: list[str]
    ) -> Iterator[dict[str, Any]]:
        """Close."""
        yield close(work, Freed.total(freed))


@dataclasses.dataclass(eq=False)
class CompactStore(beam.PTransform):
    """Compacts a store; the one element of the result is the outcome."""

    work: CompactWork

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        """Wire the steps."""
        begun = root | "Compaction" >> beam.Create([self.work], reshuffle=False)
        spread = begun | "ListParts" >> beam.ParDo(ListParts()) | "SpreadParts" >> beam.Reshuffle()
        absent = spread | "CheckPins" >> beam.ParDo(CheckPins())
        removed = begun | "RemoveVersions" >> beam.ParDo(
            RemoveVersions(), beam.pvalue.AsList(absent)
        )
        barrier = beam.pvalue.AsSingleton(removed)
        freed = spread | "CompactPartition" >> beam.ParDo(CompactPartition(self.work), barrier)
        generations = (
            root
            | "Dropped" >> beam.Create(self.work.dropped)
            | "RemoveGeneration" >> beam.ParDo(RemoveGeneration(self.work), barrier)
        )
        return begun | "CloseCompaction" >> beam.ParDo(
            CloseCompaction(), beam.pvalue.AsList(freed), beam.pvalue.AsList(generations)
        )
