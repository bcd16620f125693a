"""Agglomeration: which body each supervoxel of a segmentation belongs to.

Representation: a ``Table`` holds the pairs (supervoxel, body) of the ids that another id stands
for, sorted by supervoxel. An id that is not listed is its own body, and 0 is background. The
mapping is applied once: a body that is also listed as a supervoxel is not looked up again.

A table is named by an ``Agglomeration``, which travels to workers; the store keeps the table itself
at ``STORE/agglomerations/<digest>.parquet``, so that a later one can be compared with it. The
digest is over the pairs, not over the file: equal mappings have equal digests, whatever the format,
the order of the rows, repeated rows, or rows that map an id to itself.

``pack_ids`` and ``unpack_ids`` are the bytes of a set of ids, such as the supervoxels of a box.
"""

import dataclasses
import io
import threading
import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from volumes import objects, receipts, table_files
from volumes.errors import RequestError, RunError
from volumes.redaction import redacted_text
from volumes.table_files import File

Ids = npt.NDArray[np.uint64]
"""Ids of supervoxels or bodies."""

_Kind = Literal["csv", "parquet"]

_COLUMNS = ("supervoxel", "body")
_BLOCK_VOXELS = 1 << 16
_ID_BYTES = 8
_PACKED_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Agglomeration:
    """The name of a table that a store keeps.

    Attributes:
        url: Where it is kept, ``STORE/agglomerations/<digest>.parquet``.
        digest: Hex SHA-256 over the sorted pairs.
        pairs: Number of supervoxels that it maps to another id.
    """

    url: str
    digest: str
    pairs: int

    def to_json(self) -> dict[str, Any]:
        """The name as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Agglomeration":
        """The name that ``to_json`` wrote."""
        return cls(**{f.name: document[f.name] for f in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A mapping of supervoxels to bodies, in memory and read-only: 16 bytes a pair.

    Attributes:
        supervoxel: uint64 ``[n]``, ascending, each once.
        body: uint64 ``[n]``, never the supervoxel itself; 0 removes the supervoxel.
    """

    supervoxel: Ids
    body: Ids

    def __post_init__(self) -> None:
        """Takes read-only views; ``of_pairs`` makes such arrays of any others."""
        ids, body = self.supervoxel, self.body
        if ids.dtype != np.uint64 or body.dtype != np.uint64 or ids.shape != body.shape:
            raise ValueError(f"{ids.dtype} {ids.shape} and {body.dtype} {body.shape} are no pairs")
        if not _ascending(ids) or (ids == body).any() or not ids.all():
            raise ValueError("supervoxels must be sorted, each once, none 0 or its own body")
        for name, array in (("supervoxel", ids), ("body", body)):
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        """Number of supervoxels that are mapped to another id."""
        return len(self.supervoxel)

    @classmethod
    def of_pairs(cls, supervoxel: Ids, body: Ids, where: str) -> "Table":
        """The table of pairs in any order, with repeated ones and ids mapped to themselves.

        Args:
            supervoxel: uint64 ``[n]``.
            body: uint64 ``[n]``.
            where: The table as messages name it.

        Raises:
            RequestError: A supervoxel has two bodies, or 0 has another body than 0.
        """
        order = np.argsort(supervoxel, kind="stable")
        supervoxel, body = supervoxel[order], body[order]
        again = supervoxel[1:] == supervoxel[:-1]
        twice = again & (body[1:] != body[:-1])
        if twice.any():
            at = int(np.argmax(twice))
            raise RequestError(
                f"{where}: supervoxel {supervoxel[at]} is listed with body {body[at]} and with"
                f" body {body[at + 1]}, and a voxel is part of one body only; remove one of the"
                " rows"
            )
        if supervoxel.size and supervoxel[0] == 0 and body[0] != 0:
            raise RequestError(
                f"{where}: supervoxel 0 is listed with body {body[0]}, but 0 is background, which"
                " belongs to no body; remove the row"
            )
        kept = supervoxel != body
        kept[1:] &= ~again
        return cls(supervoxel[kept], body[kept])

    def digest(self) -> str:
        """Hex SHA-256 over the pairs: equal if and only if the mappings are."""
        return receipts.json_digest({c: receipts.array_digest(getattr(self, c)) for c in _COLUMNS})

    def bodies_of(self, ids: Ids) -> Ids:
        """The body of each id, uint64 ``[n]`` for uint64 ``[n]``.

        Raises:
            ValueError: The ids are of another type, which a comparison would round.
        """
        if ids.dtype != np.uint64:
            raise ValueError(f"ids must be uint64, not {ids.dtype}")
        if not len(self):
            return ids.copy()
        at = np.searchsorted(self.supervoxel, ids)
        np.minimum(at, len(self) - 1, out=at)
        return np.where(self.supervoxel[at] == ids, self.body[at], ids)

    def apply(self, labels: npt.NDArray[Any]) -> Ids:
        """The labels with every supervoxel replaced by its body.

        Runs of equal labels are looked up once, a block at a time. Beside the result, 8 bytes a
        voxel, this takes at most 8 MiB.

        Args:
            labels: Array of any shape and integer type.

        Returns:
            New uint64 array of the same shape in C order.

        Raises:
            ValueError: The labels are no integers, or one is negative and so no id.
        """
        if labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be integers, not {labels.dtype}")
        if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
            raise ValueError(f"the labels hold {labels.min()}; an id is never negative")
        bodies = np.array(labels, np.uint64, order="C")
        flat = bodies.reshape(-1)
        for start in range(0, flat.size if len(self) else 0, _BLOCK_VOXELS):
            block = flat[start : start + _BLOCK_VOXELS]
            first = np.concatenate([[0], np.flatnonzero(block[1:] != block[:-1]) + 1])
            ids, which = np.unique(block[first], return_inverse=True)
            lengths = np.diff(first, append=block.size)
            block[:] = np.repeat(self.bodies_of(ids)[which], lengths)
        return bodies


def read_table(path_or_url: str) -> Table:
    """The table that ``--agglomeration`` names; a query string in a URL is not used.

    A remote file is read whole into memory, a local one in blocks; the pairs take about 60 bytes
    each while they are sorted.

    Args:
        path_or_url: A file ``*.csv`` (with a header) or ``*.parquet`` with the columns
            ``supervoxel`` and ``body``; others are not read. An empty table maps every id to
            itself.

    Raises:
        RequestError: There is no such file, it cannot be read exactly, or it is no mapping; see
            ``Table.of_pairs``.
        RunError: A remote store does not answer.
    """
    where = objects.absolute(objects.redacted(path_or_url))
    kind: _Kind
    if where.lower().endswith(".parquet"):
        kind = "parquet"
    elif where.lower().endswith(".csv"):
        kind = "csv"
    else:
        raise RequestError(
            f"--agglomeration {where}: a table is one .csv or .parquet file, told apart by its"
            " name; give such a file with the columns supervoxel and body"
        )
    with _opened(where) as file:
        return _read(file, where, kind)


def named(store_url: str, table: Table) -> Agglomeration:
    """The name that a store gives to a table, whether it has it yet or not."""
    return dataclasses.replace(kept(store_url, table.digest()), pairs=len(table))


def kept(store_url: str, digest: str) -> Agglomeration:
    """The name of the table of a digest, of which no more is known."""
    directory = objects.absolute(objects.redacted(store_url))
    return Agglomeration(objects.join(directory, "agglomerations", f"{digest}.parquet"), digest, 0)


def keep(store_url: str, table: Table) -> Agglomeration:
    """Write a table into a store, unless the store has it, and return its name.

    Raises:
        RunError: The store does not take it.
    """
    name = named(store_url, table)
    if not objects.exists(name.url):
        data = io.BytesIO()
        columns = pa.table({"supervoxel": table.supervoxel, "body": table.body})
        pq.write_table(columns, data, compression="zstd")
        objects.create(name.url, data.getvalue())
    return name


def load(ref: Agglomeration) -> Table:
    """The table of a name; the latest one of a process stays in memory, for all its threads.

    Raises:
        RunError: It is missing, or it is not what the name says.
    """
    return _cache.table(ref)


def moved(old: Table | None, new: Table | None) -> Ids:
    """The supervoxels whose body differs between two mappings, None being no agglomeration.

    Returns:
        uint64 ``[n]``, ascending, each once.
    """
    none = np.empty(0, np.uint64)
    listed = _union(*(none if t is None else t.supervoxel for t in (old, new)))
    differs: Ids = listed[_bodies(old, listed) != _bodies(new, listed)]
    return differs


def affected(old: Table | None, new: Table | None) -> Ids:
    """The bodies, of either mapping, that lose or gain a supervoxel; background is no body.

    Returns:
        uint64 ``[n]``, ascending, each once.
    """
    ids = moved(old, new)
    bodies = _union(_bodies(old, ids), _bodies(new, ids))
    return bodies[1:] if bodies.size and bodies[0] == 0 else bodies


def distinct(labels: npt.NDArray[Any]) -> Ids:
    """The ids that occur in an array of labels, ascending, each once.

    Only where a run of equal labels begins is looked at, along the last axis and around its ends.
    """
    flat = np.ascontiguousarray(labels).reshape(-1)
    if not len(flat):
        return np.empty(0, np.uint64)
    heads = flat[np.flatnonzero(flat[1:] != flat[:-1]) + 1]
    ids = np.sort(np.append(heads, flat[0]))
    first = np.ones(len(ids), np.bool_)
    first[1:] = ids[1:] != ids[:-1]
    found: Ids = ids[first].astype(np.uint64)
    return found


def pack_ids(ids: Ids) -> bytes:
    """A set of ids as few bytes: a format version, then the differences, deflated.

    All lowest bytes of the differences come first, then the next ones: the high ones are mostly 0.

    Args:
        ids: uint64 ``[n]``, ascending, each once.

    Raises:
        ValueError: They are not such ids.
    """
    if ids.dtype != np.uint64 or ids.ndim != 1 or not _ascending(ids):
        raise ValueError(f"{ids.dtype} {ids.shape}: ids must be uint64 [n], ascending, each once")
    steps = np.diff(ids, prepend=np.uint64(0)).astype("<u8")
    planes = steps.view(np.uint8).reshape(-1, _ID_BYTES).T
    return bytes([_PACKED_VERSION]) + zlib.compress(planes.tobytes())


def unpack_ids(data: bytes, where: str) -> Ids:
    """The ids that ``pack_ids`` packed, uint64 ``[n]``, ascending.

    Args:
        data: The bytes.
        where: What they are, as messages name it.

    Raises:
        RunError: They are damaged, or written by newer software.
    """
    where = redacted_text(where)
    if data and data[0] > _PACKED_VERSION:
        raise RunError(
            f"{where} is a set of ids of version {data[0]}, written by newer software or damaged;"
            f" this one reads up to version {_PACKED_VERSION}: upgrade segclr-beam to read it"
        )
    damaged = f"{where} is damaged: its {len(data)} bytes are no set of ids"
    if not data or data[0] != _PACKED_VERSION:
        raise RunError(damaged)
    inflate = zlib.decompressobj()
    try:
        planes = inflate.decompress(data[1:])
    except zlib.error as e:
        raise RunError(f"{damaged} ({e})") from e
    if not inflate.eof or inflate.unused_data or len(planes) % _ID_BYTES:
        raise RunError(damaged)
    steps = np.frombuffer(planes, np.uint8).reshape(_ID_BYTES, -1).T
    ids = np.cumsum(np.ascontiguousarray(steps).view("<u8").reshape(-1), dtype=np.uint64)
    if not _ascending(ids):
        raise RunError(damaged)
    return ids


class _Cache:
    """The table loaded last, loaded once however many threads ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: tuple[Agglomeration, Table] | None = None

    def table(self, ref: Agglomeration) -> Table:
        with self._lock:
            if self._latest is None or self._latest[0] != ref:
                self._latest = None  # two tables at a time might not fit
                self._latest = ref, _kept(ref)
            return self._latest[1]


_cache = _Cache()


def _kept(ref: Agglomeration) -> Table:
    """A table from its store, checked."""
    remedy = "start the job again with the same --agglomeration FILE, from which it is written anew"
    url = redacted_text(ref.url)
    data = objects.read(ref.url)
    if data is None:
        raise RunError(
            f"{url} is missing, and without it supervoxels cannot be told to bodies; {remedy}"
        )
    try:
        table = _read(io.BytesIO(data), url, "parquet")
    except RequestError as e:
        raise RunError(f"{url} is damaged ({e}); remove it, then {remedy}") from e
    if table.digest() != ref.digest:
        raise RunError(
            f"{url} is damaged: its pairs have the digest {table.digest()}, not {ref.digest};"
            f" remove it, then {remedy}"
        )
    return table


def _opened(where: str) -> File:
    """A local file, or the bytes of a remote one."""
    path = objects.local_path(where)
    try:
        if path is not None:
            return path.open("rb")
    except OSError as e:
        raise RequestError(
            f"--agglomeration {where} cannot be read: {e.strerror}; give a .csv or .parquet file"
            " with the columns supervoxel and body"
        ) from e
    data = objects.read(where)
    if data is None:
        raise RequestError(
            f"--agglomeration {where}: no such file; give a .csv or .parquet file with the columns"
            " supervoxel and body"
        )
    return io.BytesIO(data)


def _read(file: File, where: str, kind: _Kind) -> Table:
    """The table in an open file."""
    return Table.of_pairs(*_columns(file, where, kind), where)


def _columns(file: File, where: str, kind: _Kind) -> tuple[Ids, Ids]:
    """Every row of a file, in order."""
    none = np.empty(0, np.uint64)
    parts = [(none, none), *table_files.read_ids(file, where, _COLUMNS, kind)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _bodies(table: Table | None, ids: Ids) -> Ids:
    return ids if table is None else table.bodies_of(ids)


def _union(some: Ids, others: Ids) -> Ids:
    """Sorted ids of either, each once; numpy's own hashes millions of ids far slower than this."""
    ids = np.sort(np.concatenate([some, others]))
    first = np.ones(ids.shape, np.bool_)
    first[1:] = ids[1:] != ids[:-1]
    union: Ids = ids[first]
    return union


def _ascending(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())
