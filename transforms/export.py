"""Export of a published version to Parquet: one file a partition, then a manifest of all of them.

A file holds the rows of its partition by (box, row) and is named for the partition and its
content, so that equal exports are equal files.
"""

import dataclasses
import hashlib
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.counting import count, timed
from volumes import documents, objects
from volumes.embeddings import EmbeddingStore
from volumes.errors import RunError
from volumes.receipts import Rows

MANIFEST = "_manifest.json"
"""Name of the file that is published last."""

FORMAT = ("segclr-export", 1)
"""Format and version of the manifest."""

_ROWS_A_GROUP = 65_536


@dataclasses.dataclass(frozen=True, slots=True)
class ExportWork:
    """An export; picklable, opens nothing.

    Attributes:
        store: Location of the embedding store.
        version: Number of the version.
        digest: Digest of the version's content.
        width: D, the length of an embedding.
        output: Directory of the files.
    """

    store: str
    version: int
    digest: str
    width: int
    output: str


@dataclasses.dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file that was written: its name, rows, bytes and the SHA-256 of its bytes."""

    name: str
    rows: int
    bytes: int
    sha256: str


def schema(width: int) -> pa.Schema:
    """The columns of an export: ids uint64, positions in nm, the embedding of ``width`` floats."""
    return pa.schema(
        [
            pa.field("segment_id", pa.uint64(), nullable=False),
            pa.field("node_id", pa.uint64(), nullable=False),
            *(pa.field(f"{axis}_nm", pa.float64(), nullable=False) for axis in "xyz"),
            pa.field("embedding", pa.list_(pa.float32(), width), nullable=False),
            pa.field("mask_voxels", pa.uint32(), nullable=False),
        ]
    )


def table_of(rows: Rows) -> pa.Table:
    """Rows as a table of ``schema``."""
    width = rows.embedding.shape[1]
    flat = pa.array(np.ascontiguousarray(rows.embedding).reshape(-1))
    columns = [
        pa.array(rows.segment_id),
        pa.array(rows.node_id),
        *(pa.array(np.ascontiguousarray(rows.position_nm[:, i])) for i in range(3)),
        pa.FixedSizeListArray.from_arrays(flat, width),
        pa.array(rows.mask_voxels),
    ]
    return pa.Table.from_arrays(columns, schema=schema(width))


def file_name(partition: str, digest: str) -> str:
    """Name of a partition's file, for its content."""
    return f"{partition}.{digest[:16]}.parquet"


def grouped(parts: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Rows of consecutive boxes joined to at least ``size`` rows, but for the last."""
    held: list[Rows] = []
    count_held = 0
    for rows in parts:
        if len(rows) == 0:
            continue
        held.append(rows)
        count_held += len(rows)
        if count_held >= size:
            yield Rows.concatenated(held)
            held, count_held = [], 0
    if held:
        yield Rows.concatenated(held)


def export_partition(work: ExportWork, name: str) -> ExportedFile:
    """Write the file of one partition, whole or not at all."""
    store = EmbeddingStore.open(work.store, work.version)
    entry = store.document["partitions"][name]
    target = file_name(name, entry["digest"])
    written = 0
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / target
        try:
            with pq.ParquetWriter(path, schema(work.width), compression="zstd") as writer:
                for rows in grouped(store.rows_of(name, entry["version"]), _ROWS_A_GROUP):
                    writer.write_table(table_of(rows))
                    written += len(rows)
            digest = _sha256(path)
            size = path.stat().st_size
        except OSError as e:
            raise RunError(f"cannot write {target} to {scratch}: {e}") from e
        if written != entry["rows"]:
            raise RunError(
                f"partition {name} of {objects.redacted(work.store)} has {written} rows and "
                f"version {work.version} recorded {entry['rows']}; nothing was exported of it"
            )
        objects.upload(path, objects.join(work.output, target))
    return ExportedFile(target, written, size, digest)


def publish(work: ExportWork, files: Iterable[ExportedFile]) -> dict[str, Any]:
    """Write the manifest, unless there is one; the one that stands is returned."""
    ordered = sorted(files, key=lambda f: f.name)
    body = {
        "store": work.store,
        "version": work.version,
        "digest": work.digest,
        "rows": sum(f.rows for f in ordered),
        "width": work.width,
        "files": [dataclasses.asdict(f) for f in ordered],
    }
    where = objects.join(work.output, MANIFEST)
    data = documents.dump(*FORMAT, body)
    if not objects.create(where, data) and objects.read(where) != data:
        raise RunError(f"{where} was published by another export meanwhile; it was left as it is")
    return body


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ListPartitions(beam.DoFn):
    """An export -> the partitions of its version, listed by a worker."""

    def process(self, work: ExportWork) -> Iterator[str]:
        """Yield each partition's name."""
        for name, _ in EmbeddingStore.open(work.store, work.version).partitions:
            yield name


class ExportPartition(beam.DoFn):
    """A partition's name -> the file written."""

    def __init__(self, work: ExportWork) -> None:
        """Exports partitions of ``work``."""
        self._work = work

    def process(self, name: str) -> Iterator[ExportedFile]:
        """Write one file."""
        with timed("export_ms"):
            written = export_partition(self._work, name)
        count("rows", written.rows)
        yield written


class PublishExport(beam.DoFn):
    """Writes the manifest when every file is there."""

    def __init__(self, work: ExportWork) -> None:
        """Publishes the export of ``work``."""
        self._work = work

    def process(self, _: None, files: list[ExportedFile]) -> Iterator[dict[str, Any]]:
        """Publish."""
        yield publish(self._work, files)


@dataclasses.dataclass(eq=False)
class ExportParquet(beam.PTransform):
    """Exports a version; the one element of the result is the manifest's body."""

    work: ExportWork

    def expand(self, root: beam.Pipeline) -> beam.PCollection:
        """Wire the steps."""
        files = (
            root
            | "Export" >> beam.Create([self.work], reshuffle=False)
            | "ListPartitions" >> beam.ParDo(ListPartitions())
            | "SpreadPartitions" >> beam.Reshuffle()
            | "ExportPartition" >> beam.ParDo(ExportPartition(self.work))
        )
        return (
            root
            | "Once" >> beam.Create([None], reshuffle=False)
            | "Publish" >> beam.ParDo(PublishExport(self.work), beam.pvalue.AsList(files))
        )
