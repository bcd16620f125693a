"""Nodes that the user gives: CSV and Parquet tables, and SWC skeletons.

Representation: a source is resolved once, on the launcher, into a ``NodeSource``, a small document
with a digest of every file; it is cut into ``Piece``s that are read independently, on workers, as
batches of packed arrays. Ids are uint64 from the file to the array: a type that may have rounded
them is refused, as is a file in which they do not parse exactly.

Rows are counted from 0, without the header; that number is the node_id of a table without the
column.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import math
import os
import urllib.parse
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volumes import objects, swc, table_files
from volumes.errors import RequestError, RunError
from volumes.table_files import File, RawNodes

Kind = Literal["csv", "parquet", "swc"]
"""How nodes are stored; also the suffix of the files."""

_KINDS: tuple[Kind, ...] = ("csv", "parquet", "swc")
_SWC_FILES_A_PIECE = 64
_THREADS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class NodeSource:
    """Where nodes come from and what the files held when the run was planned.

    Attributes:
        kind: How they are stored.
        location: Absolute path or URL of the file or directory, without secrets.
        directory: Whether it is a directory of such files.
        files: Number of files.
        rows: Number of rows, None where only reading everything would tell.
        digest: Hex SHA-256 over each file's name and content.
        spacing_nm: Path length to which skeletons are thinned, None for all samples.
    """

    kind: Kind
    location: str
    directory: bool
    files: int
    rows: int | None
    digest: str
    spacing_nm: float | None

    def to_json(self) -> dict[str, Any]:
        """The source as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "NodeSource":
        """The source that ``to_json`` wrote."""
        return cls(**{f.name: document[f.name] for f in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A part of a source that is read on its own.

    Attributes:
        names: The files, as named in their directory: one of a table, up to 64 SWC files.
        row_group: The Parquet row group, None for whole files.
        first_row: Row number of the first row in its file.
    """

    names: tuple[str, ...]
    row_group: int | None = None
    first_row: int = 0


def resolve_nodes(nodes: str, spacing_nm: float | None) -> NodeSource:
    """Look at what ``--nodes`` names: every file is hashed, tables are checked by their header.

    A query string or password in a URL is not used, since it may not be stored: credentials come
    from the environment. A remote file is read whole into memory, a local one in blocks.

    Args:
        nodes: A file ``*.csv``, ``*.parquet`` or ``<segment_id>.swc``, or a directory of one kind
            of them; a path or a URL.
        spacing_nm: Path length to which SWC skeletons are thinned; None keeps all samples.

    Raises:
        RequestError: There is nothing at the location, it is of no kind or of several, a column is
            missing or of a type that ids do not survive, a table has no row, a file name is no
            segment, or the spacing is not a positive number or given for a table.
    """
    location = _location(nodes)
    path = objects.local_path(location)
    suffix = _suffix(location)
    directory = path.is_dir() if path is not None else not (suffix and objects.exists(location))
    kind = _kind_in(location) if directory else suffix
    if kind is None or not (directory or objects.exists(location)):
        raise RequestError(
            f"--nodes {objects.redacted(nodes)}: no such file or directory of nodes; give a .csv,"
            " .parquet or .swc file, a directory of one kind of them, or auto[:spacing_nm]"
        )
    _check_spacing(spacing_nm, kind, location)
    names = _names(location, kind, directory)
    source = NodeSource(kind, location, directory, len(names), None, "", spacing_nm)
    if kind == "swc":
        _check_segments(source, names)
    found = _inspect_all(source, names)
    rows = [r for _, r in found]
    total = None if kind != "parquet" else sum(r or 0 for r in rows)
    if kind != "swc" and all(r == 0 for r in rows):
        raise RequestError(f"{location}: the table has no rows; there is nothing to do")
    whole = hashlib.sha256()
    for name, (digest, _) in zip(names, found, strict=True):
        whole.update(json.dumps([name, digest]).encode())
    return dataclasses.replace(source, rows=total, digest=whole.hexdigest())


def pieces(source: NodeSource) -> Iterator[Piece]:
    """The pieces of a source, in a fixed order; together they hold every row once.

    A piece is a CSV file, a row group of a local Parquet file, a whole remote Parquet file (it is
    read whole in any case), or up to 64 SWC files.

    Raises:
        RunError: The number of files is no longer what it was when the source was resolved.
    """
    names = _names(source.location, source.kind, source.directory)
    if len(names) != source.files:
        raise RunError(
            f"{source.location} holds {len(names)} .{source.kind} files, but {source.files} when"
            " the run was planned; leave the nodes as they are while a run goes on, and start anew"
        )
    if source.kind == "swc":
        for i in range(0, len(names), _SWC_FILES_A_PIECE):
            yield Piece(tuple(names[i : i + _SWC_FILES_A_PIECE]))
        return
    local = objects.local_path(source.location) is not None
    for name in names:
        if source.kind == "csv" or not local:
            yield Piece((name,))
            continue
        first = 0
        where = _url(source, name)
        with _open(where) as file:
            groups = table_files.row_groups(file, where)
        for group, (rows, _) in enumerate(groups):
            if rows:
                yield Piece((name,), group, first)
            first += rows


def read_piece(source: NodeSource, piece: Piece) -> Iterator[RawNodes]:
    """The rows of a piece of a table, in order, at most ``table_files.BATCH_ROWS`` a batch.

    Raises:
        RequestError: A row cannot be read exactly; the message names file and row.
        ValueError: The source holds skeletons, see ``read_skeletons``.
    """
    if source.kind == "swc":
        raise ValueError("a skeleton is no table: read_skeletons reads it")
    for name in piece.names:
        where = _url(source, name)
        with _open(where) as file:
            if source.kind == "csv":
                yield from table_files.read_csv(file, where)
            else:
                yield from table_files.read_parquet(file, where, piece.row_group, piece.first_row)


def read_skeletons(source: NodeSource, piece: Piece) -> Iterator[swc.RawSkeleton]:
    """The skeletons of a piece, not thinned, one a file.

    Raises:
        RequestError: A file is not a skeleton; the message names file and line.
        ValueError: The source holds a table, see ``read_piece``.
    """
    if source.kind != "swc":
        raise ValueError("a table holds no skeletons: read_piece reads it")
    for name in piece.names:
        where = _url(source, name)
        with _open(where) as file:
            yield swc.parse(file.read(), swc.segment_of(name, where), where)


def row_group_bounds(
    source: NodeSource,
) -> Iterator[tuple[int, npt.NDArray[np.float64] | None]]:
    """Rows and position bounds of each row group, from a Parquet source's metadata alone.

    Yields:
        Rows, and float64 ``[2, 3]``: minimum and maximum of x_nm, y_nm, z_nm; None where the file
        does not tell.
    """
    for name in _names(source.location, source.kind, source.directory):
        where = _url(source, name)
        with _open(where) as file:
            yield from table_files.row_groups(file, where)


def _location(nodes: str) -> str:
    """The location as it is stored: absolute, without secrets or a trailing slash."""
    path = objects.local_path(nodes)
    location = objects.redacted(nodes) if path is None else os.path.abspath(path)
    return location.rstrip("/") or "/"


def _suffix(name: str) -> Kind | None:
    for kind in _KINDS:
        if name.lower().endswith(f".{kind}"):
            return kind
    return None


def _kind_in(location: str) -> Kind | None:
    """The one kind of node files in a directory; None where there is nothing at all."""
    found = objects.names(location)
    kinds = sorted({kind for name in found if (kind := _suffix(name)) is not None})
    if len(kinds) == 1:
        return kinds[0]
    if not found and objects.local_path(location) is None:
        return None
    raise RequestError(
        f"{location} holds {' and '.join(f'.{k}' for k in kinds) or 'no nodes'}: a directory of"
        " nodes holds .csv, .parquet or .swc files of one kind, so that each node is read once;"
        f" it holds {_some(found)}"
    )


def _some(names: list[str]) -> str:
    """A few names, for a message."""
    shown = ", ".join(names[:5]) or "nothing"
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names)} names)"


def _check_spacing(spacing_nm: float | None, kind: Kind, location: str) -> None:
    if spacing_nm is None:
        return
    if not 0 < spacing_nm < math.inf:
        raise RequestError(
            f"--spacing-nm {spacing_nm}: nodes are thinned to a path length above 0 nm; give a"
            " positive number, or leave it out to keep every sample"
        )
    if kind != "swc":
        raise RequestError(
            f"--spacing-nm {spacing_nm:g}: {location} is a {kind} table, whose rows have no paths"
            " to thin along; thin the table yourself, or give SWC skeletons"
        )


def _names(location: str, kind: Kind, directory: bool) -> list[str]:
    """Names of the files, sorted; subdirectories and files of other kinds are no part of it."""
    if not directory:
        return [urllib.parse.unquote(location.rpartition("/")[2])]
    return [n for n in objects.names(location) if _suffix(n) == kind]


def _url(source: NodeSource, name: str) -> str:
    if not source.directory:
        return source.location
    if objects.local_path(source.location) is None:
        return objects.join(source.location, urllib.parse.quote(name))
    return os.path.join(source.location, name)


def _open(url: str) -> File:
    """A local file, or the bytes of a remote one."""
    path = objects.local_path(url)
    if path is None:
        data = objects.read(url)
        if data is None:
            raise RunError(f"cannot read {url}: it is no longer there")
        return io.BytesIO(data)
    try:
        return path.open("rb")
    except OSError as e:
        raise RunError(f"cannot read {url}: {e.strerror}") from e


def _check_segments(source: NodeSource, names: list[str]) -> None:
    """Refuse names that are no segment, and two names of one segment."""
    seen: dict[int, str] = {}
    for name in names:
        segment_id = swc.segment_of(name, _url(source, name))
        if segment_id in seen:
            raise RequestError(
                f"{source.location}: {seen[segment_id]} and {name} are both segment {segment_id};"
                " a segment has one file, since sample numbers are unique only within a file"
            )
        seen[segment_id] = name


def _inspect_all(source: NodeSource, names: list[str]) -> list[tuple[str, int | None]]:
    """Digest and rows of each file; many small files are looked at side by side."""
    if source.kind != "swc":
        return [_inspect(source, name) for name in names]
    out: list[tuple[str, int | None]] = []
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for i in range(0, len(names), 1024):
            out.extend(pool.map(lambda name: _inspect(source, name), names[i : i + 1024]))
    return out


def _inspect(source: NodeSource, name: str) -> tuple[str, int | None]:
    """Hex SHA-256 of a file and its rows: exact for Parquet, 0 or None (some) for CSV."""
    url = _url(source, name)
    with _open(url) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        if source.kind == "swc":
            return digest, None
        if source.kind == "parquet":
            return digest, table_files.inspect_parquet(file, url, source.directory)
        some = table_files.inspect_csv(file, url, source.directory)
        return digest, None if some else 0
