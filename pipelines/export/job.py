"""Export of a published version of an embedding store: what is asked, what will run, the graph."""

import dataclasses
from typing import Any

import apache_beam as beam

from pipelines.request import refuse_empty, refuse_secrets, refuse_unwritable
from pipelines.text import bytes_text
from transforms.export import FORMAT, MANIFEST, ExportParquet, ExportWork, file_name
from volumes import documents, objects
from volumes.embeddings import EmbeddingStore
from volumes.errors import RequestError, RunError
from volumes.receipts import DIGEST_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class ExportConfig:
    """The request.

    Attributes:
        store: The embedding store.
        output: A new or empty directory, or one that holds the same export.
        format: ``parquet``.
        version: A published version's number; None for the latest.
    """

    store: str
    output: str
    format: str = "parquet"
    version: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, and a format that is not written."""
        refuse_empty(store=self.store, output=self.output)
        if self.format != "parquet":
            raise RequestError(f"--format {self.format}: only parquet is written so far")
        refuse_secrets("into manifests", store=self.store, output=self.output)
        refuse_unwritable(output=self.output)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ExportPlan:
    """What will run.

    Attributes:
        store: The version, open for reading.
        work: All that a worker needs to know.
        complete: Whether the output holds this export already.
    """

    store: EmbeddingStore
    work: ExportWork
    complete: bool

    @property
    def output(self) -> str:
        """Directory of the files."""
        return self.work.output

    @property
    def version(self) -> int:
        """The version's number."""
        return self.work.version

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of a row: two ids, a position, the embedding, mask and crop digest."""
        return 16 + 24 + 4 * self.work.width + 4 + DIGEST_BYTES

    @property
    def partitions(self) -> tuple[str, ...]:
        """Partitions of the version: one file each."""
        return tuple(name for name, _ in self.store.partitions)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "job": "export",
            "store": self.work.store,
            "version": self.version,
            "output": self.output,
            "complete": self.complete,
            "rows": len(self.store),
            "files": len(self.partitions),
        }

    def lines(self) -> list[str]:
        """The plan for people, a line each."""
        return [
            f"store: {self.work.store}, version {self.version}, "
            f"{len(self.store):,} rows of width {self.work.width}",
            f"to read: {bytes_text(len(self.store) * self.row_bytes)} decoded",
            f"output: {self.output}, {len(self.partitions):,} Parquet files and {MANIFEST}"
            + (", all there already: nothing to do" if self.complete else ""),
        ]


def plan(config: ExportConfig) -> ExportPlan:
    """Open the version and look at the output; nothing is written.

    Raises:
        RequestError: There is no such version, or the output holds something else.
    """
    store = EmbeddingStore.open(objects.absolute(config.store), config.version)
    number = store.version
    if number is None:
        raise RequestError("an export is of a published version")
    work = ExportWork(
        store=store.generation.store,
        version=number,
        digest=store.document["digest"],
        width=store.width,
        output=objects.absolute(config.output),
    )
    return ExportPlan(store, work, _looked(work, store))


def build(root: beam.Pipeline, plan: ExportPlan) -> beam.PCollection:
    """The graph of an export; it never sees a runner."""
    return root | "Parquet" >> ExportParquet(plan.work)


def finish(plan: ExportPlan) -> dict[str, Any]:
    """The published manifest.

    Raises:
        RunError: There is none, or a file that it names is not there.
    """
    where = objects.join(plan.output, MANIFEST)
    data = objects.read(where)
    if data is None:
        raise RunError(f"{where} was not published; run the same command again")
    body = documents.load(data, *FORMAT, where)
    there = set(objects.names(plan.output))
    lost = [f["name"] for f in body["files"] if f["name"] not in there]
    if lost:
        raise RunError(
            f"{plan.output} lacks {', '.join(lost[:5])}, which {MANIFEST} names; run the same "
            "command again, which writes what is missing"
        )
    return body


def _looked(work: ExportWork, store: EmbeddingStore) -> bool:
    """Whether the output holds this export already; refuses one that holds something else."""
    path = objects.local_path(work.output)
    if path is not None and path.exists() and not path.is_dir():
        raise RequestError(
            f"--output {work.output} is a file; an export is a directory: name a new or empty one"
        )
    names = set(objects.names(work.output))
    published = _published(work) if MANIFEST in names else None
    if published is not None:
        return names.issuperset(f["name"] for f in published["files"])
    partitions = store.document["partitions"]
    expected = {file_name(name, entry["digest"]) for name, entry in partitions.items()}
    foreign = sorted(n for n in names - expected if not _left_over(n, {*expected, MANIFEST}))
    if foreign:
        raise RequestError(
            f"--output {work.output} is not empty (it has {', '.join(foreign[:3])}); nothing of it "
            "was touched: name a new or empty directory"
        )
    return False


def _published(work: ExportWork) -> dict[str, Any] | None:
    """The manifest in the output if it is this export's; None where it is no export's."""
    where = objects.join(work.output, MANIFEST)
    try:
        body = documents.load(objects.read(where) or b"", *FORMAT, where)
    except RunError:
        return None
    if (body["digest"], body["width"]) == (work.digest, work.width):
        return body
    raise RequestError(
        f"--output {work.output} holds the export of version {body['version']} of "
        f"{body['store']}, which has another content; exports are not mixed: name a new or "
        "empty directory"
    )


def _left_over(name: str, expected: set[str]) -> bool:
    """Whether a name is that of a file that a killed writer left beside the one it was making."""
    return name.endswith(".tmp") and any(name.startswith(f".{e}.") for e in expected)
