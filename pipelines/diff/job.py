"""Two versions of an embedding store compared: what is asked, what will run, the graph.

The result is a table of the segments that differ, a row each, in files of CSV. Beside it stands
``OUTPUT.json``, which says what it is of from before the first file on, and at the end what was
found: so a table is completed by the same command and by no other.
"""

import dataclasses
import math
from typing import Any

import apache_beam as beam

from pipelines.request import refuse_empty, refuse_secrets
from transforms.diff import FORMAT, DiffVersions, DiffWork, Pair, pairs, part_url
from volumes import documents, objects, store
from volumes.embeddings import EmbeddingStore
from volumes.errors import RequestError, RunError

# Rows that one worker holds at a time, of 36 bytes each.
_ROWS_A_SHARD = 250_000

# Nodes that differ, and so at most segments, of one file: some ten megabytes.
_NODES_A_PART = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class DiffConfig:
    """The request.

    Attributes:
        store: The embedding store.
        from_version: Number of the version that is compared from; None for the one before the
            other.
        to_version: Number of the version that is compared to; None for the latest. It may be
            older than the other: then the difference is that of the way back.
        output: Location of the table; None to have only the result.
    """

    store: str
    from_version: int | None = None
    to_version: int | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        refuse_empty(store=self.store, output=self.output)
        refuse_secrets("beside the table", store=self.store, output=self.output)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DiffPlan:
    """What will run.

    Attributes:
        work: All that a worker needs to know.
        diff: What the comparison is of, as the document beside the table says it.
        pairs: Partitions that are compared.
        equal: Partitions that are not opened, since both versions record the same of them.
        rows: Rows of the compared partitions, in both versions together: at most so many are read.
        generations: Whether the versions are of two generations, so that all is compared.
        complete: The result, where the output holds this table already.
    """

    work: DiffWork
    diff: dict[str, Any]
    pairs: int
    equal: int
    rows: int
    generations: bool
    complete: dict[str, Any] | None

    def into(self, output: str) -> "DiffPlan":
        """The same, with its table at a new place."""
        work = dataclasses.replace(self.work, output=objects.absolute(output))
        return dataclasses.replace(self, work=work, complete=None)

    def files(self) -> list[str]:
        """Locations of the table's files."""
        work = self.work
        return [part_url(work.output, i, work.parts) for i in range(work.parts)]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "job": "diff",
            "store": self.work.store,
            "from": self.work.before,
            "to": self.work.after,
            "output": self.work.output or None,
            "partitions": self.pairs,
            "partitions_equal": self.equal,
            "rows": self.rows,
            "complete": self.complete is not None,
        }

    def lines(self) -> list[str]:
        """The plan for people, a line each."""
        work = self.work
        of = "two generations, so all rows are compared" if self.generations else "one generation"
        lines = [
            f"store: {work.store}, from version {work.before} to version {work.after}, of {of}",
            f"to compare: {self.pairs:,} partitions with {self.rows:,} rows; {self.equal:,} "
            "partitions are recorded as equal",
        ]
        if work.output:
            files = "1 file" if work.parts == 1 else f"{work.parts:,} files"
            there = ", all there already: nothing to do" if self.complete else ""
            lines.append(f"output: {work.output}, a table in {files}{there}")
        return lines


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What was found.

    Attributes:
        added: Nodes that only the later version has.
        removed: Nodes that only the earlier version has.
        changed: Nodes that both have, with another row.
        segments: Segments of all these.
        largest: (segment, added, removed, changed) of the segments with the most.
        files: Locations of the table's files.
    """

    added: int
    removed: int
    changed: int
    segments: int
    largest: tuple[tuple[str, int, int, int], ...]
    files: tuple[str, ...]

    def table(self) -> list[str]:
        """The segments with the most, for people: a header and a line each, none where none is."""
        if not self.largest:
            return []
        rows = [("segment", "added", "removed", "changed")]
        rows += [(s, f"{a:,}", f"{r:,}", f"{c:,}") for s, a, r, c in self.largest]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        more = self.segments - len(self.largest)
        return [*lines, f"and {more:,} segments more"] if more else lines


def plan(config: DiffConfig) -> DiffPlan:
    """Look at both versions and at the output; nothing is written, no partition is opened.

    Raises:
        RequestError: There is no such version, or the output holds something else.
    """
    url = objects.absolute(config.store)
    after = EmbeddingStore.open(url, config.to_version)
    before = EmbeddingStore.open(url, _from(url, config, after))
    if before.version is None or after.version is None:
        raise RequestError("a diff is of published versions")
    compared = list(pairs(before.document, after.document, url))
    rows = sum(_rows(pair, before, after) for pair in compared)
    parts = max(1, math.ceil(rows / _NODES_A_PART))
    work = DiffWork(
        store=url,
        before=before.version,
        after=after.version,
        shards=max(1, math.ceil(rows / _ROWS_A_SHARD)),
        parts=parts,
        output="" if config.output is None else objects.absolute(config.output),
    )
    diff = {
        "store": url,
        "from": {"version": before.version, "digest": before.document["digest"]},
        "to": {"version": after.version, "digest": after.document["digest"]},
        "parts": parts,
    }
    both = {n for n, _ in before.partitions} & {n for n, _ in after.partitions}
    same = before.generation == after.generation
    made = DiffPlan(
        work=work,
        diff=diff,
        pairs=len(compared),
        equal=len(both) - sum(bool(p.before and p.after) for p in compared) if same else 0,
        rows=rows,
        generations=not same,
        complete=None,
    )
    return dataclasses.replace(made, complete=_looked(made)) if work.output else made


def _from(url: str, config: DiffConfig, after: EmbeddingStore) -> int:
    """Number of the version to compare from."""
    if config.from_version is not None:
        return config.from_version
    numbers = store.version_numbers(url)
    earlier = [n for n in numbers if after.version is not None and n < after.version]
    if not earlier:
        raise RequestError(
            f"--store {objects.redacted(url)} has no version before {after.version} (it has "
            f"{', '.join(map(str, numbers))}), and a diff is of two: give --from, or come back "
            "when a reprocess has published another one"
        )
    return earlier[-1]


def _rows(pair: Pair, before: EmbeddingStore, after: EmbeddingStore) -> int:
    sides = ((pair.before, before), (pair.after, after))
    return sum(int(v.document["partitions"][s.name]["rows"]) for s, v in sides if s is not None)


def prepare(plan: DiffPlan) -> None:
    """Write beside the table what it is of.

    Raises:
        RunError: Another diff began there meanwhile.
    """
    begun = documents.dump(*FORMAT, {"diff": plan.diff, "result": None})
    where = plan.work.document
    if not objects.create(where, begun) and _standing(plan) is None:
        raise RunError(f"{where} was written by another run meanwhile; it was left as it is")


def build(root: beam.Pipeline, plan: DiffPlan) -> beam.PCollection:
    """The graph of a diff; it never sees a runner."""
    return root | "Compare" >> DiffVersions(plan.work, plan.diff)


def finish(plan: DiffPlan) -> Result:
    """What was found.

    Raises:
        RunError: The graph did not come to its end.
    """
    found = plan.complete
    if found is None:
        found = (_standing(plan) or {}).get("result")
    if found is None:
        raise RunError(
            f"{plan.work.document} has no result: the comparison did not come to its end; run the "
            "same command again"
        )
    return Result(
        added=found["added"],
        removed=found["removed"],
        changed=found["changed"],
        segments=found["segments"],
        largest=tuple((str(s), int(a), int(r), int(c)) for s, a, r, c in found["largest"]),
        files=tuple(plan.files()),
    )


def _looked(plan: DiffPlan) -> dict[str, Any] | None:
    """The result where the output has all of it; refuses an output that is something else."""
    work = plan.work
    path = objects.local_path(work.output)
    if path is not None and path.is_dir():
        raise RequestError(f"--output {work.output} is a directory; name the table, a .csv file")
    directory = work.document.rpartition("/")[0]
    there = set(objects.names(directory))
    mine = [url.rpartition("/")[2] for url in plan.files()]
    standing = _standing(plan)
    if standing is not None:
        whole = standing["result"] is not None and there.issuperset(mine)
        return dict(standing["result"]) if whole else None
    beside = work.document.rpartition("/")[2]
    foreign = [name for name in (beside, *mine) if name in there]
    if foreign:
        raise RequestError(
            f"--output {work.output} is not free: {foreign[0]} is there and is not of the diff "
            f"from version {work.before} to version {work.after} of {work.store}; nothing of it "
            "was touched: name another one"
        )
    return None


def _standing(plan: DiffPlan) -> dict[str, Any] | None:
    """The document beside the table, if it is of this diff."""
    where = plan.work.document
    data = objects.read(where)
    if data is None:
        return None
    try:
        body = documents.load(data, *FORMAT, where)
    except RunError:
        return None
    return body if body.get("diff") == plan.diff else None
