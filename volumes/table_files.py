"""CSV and Parquet tables of nodes or of other ids, one open file at a time.

Ids are uint64 from the file to the array: a type that may have rounded them is refused, as is a row
in which they do not parse exactly. Columns other than ``segment_id``, ``node_id``, ``x_nm``,
``y_nm`` and ``z_nm`` are not read. Rows are counted from 0, without the header; that number is the
node_id of a table without the column.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as pa_csv

from volumes.errors import RequestError

BATCH_ROWS = 65_536
"""A batch holds at most this many rows."""

File = io.BufferedReader | io.BytesIO
"""An open file, local or held in memory."""

POSITIONS = ("x_nm", "y_nm", "z_nm")
"""The columns of a position."""

_IDS = ("segment_id", "node_id")
_NEEDED = ("segment_id", *POSITIONS)
_CSV_BLOCK_BYTES = 4 << 20


class RawNodes(NamedTuple):
    """A batch of rows as read, nothing rejected.

    Attributes:
        segment_id: uint64 ``[n]``.
        node_id: uint64 ``[n]``.
        position_nm: float64 ``[n, 3]``, XYZ in nm; NaN where a table has no value.
    """

    segment_id: npt.NDArray[np.uint64]
    node_id: npt.NDArray[np.uint64]
    position_nm: npt.NDArray[np.float64]


def inspect_csv(file: File, where: str, node_id_needed: bool) -> bool:
    """Check the header of a CSV table.

    Args:
        file: The file, at its beginning.
        where: The file as messages name it.
        node_id_needed: Whether a table without node_id is refused.

    Returns:
        Whether there is any row below the header.

    Raises:
        RequestError: A column is missing or is there twice.
    """
    rows = _csv_rows(file, where)
    _check_columns(rows[0] if rows else [], where, node_id_needed)
    return len(rows) > 1


def inspect_parquet(file: File, where: str, node_id_needed: bool) -> int:
    """Check the schema of a Parquet table, as ``inspect_csv`` does, and return its rows.

    Raises:
        RequestError: A column is missing, is there twice, or is of a type that ids do not survive.
    """
    table = _parquet(file, where)
    _check_columns(table.schema_arrow.names, where, node_id_needed)
    _check_types(table.schema_arrow, where)
    return int(table.metadata.num_rows)


def row_groups(file: File, where: str) -> list[tuple[int, npt.NDArray[np.float64] | None]]:
    """Rows and position bounds of each row group of a Parquet file, from its metadata alone.

    Returns:
        Rows, and float64 ``[2, 3]``: minimum and maximum of x_nm, y_nm, z_nm; None where the file
        does not tell.
    """
    metadata = _parquet(file, where).metadata
    out = []
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        chunks = {c.path_in_schema: c for c in map(group.column, range(group.num_columns))}
        out.append((int(group.num_rows), _bounds([chunks[c].statistics for c in POSITIONS])))
    return out


def read_csv(file: File, where: str) -> Iterator[RawNodes]:
    """The rows of a CSV table in order, at most ``BATCH_ROWS`` a batch.

    Args:
        file: The file, at its beginning.
        where: The file as messages name it.

    Raises:
        RequestError: A row cannot be read exactly; the message names file and row.
    """
    rows = _csv_rows(file, where)
    if len(rows) < 2:
        return
    columns = [c for c in (*_IDS, *POSITIONS) if c in rows[0]]
    types = {c: pa.uint64() if c in _IDS else pa.float64() for c in columns}
    try:
        yield from _packed(_csv_batches(file, types), where, 0)
    except pa.ArrowException as e:
        raise RequestError(
            f"{where}: {e} (rows counted from 1, the header). An id is an unsigned 64-bit integer"
            " written in digits, a position a number of nm; correct the row"
        ) from e


def read_parquet(
    file: File, where: str, row_group: int | None, first_row: int
) -> Iterator[RawNodes]:
    """The rows of one row group in order, or of the whole file; see ``read_csv``.

    Args:
        file: The file.
        where: The file as messages name it.
        row_group: The row group, None for all of them.
        first_row: Number of the first of these rows in the file.
    """
    table = _parquet(file, where)
    columns = [c for c in (*_IDS, *POSITIONS) if c in table.schema_arrow.names]
    groups = None if row_group is None else [row_group]
    try:
        batches = table.iter_batches(BATCH_ROWS, groups, columns, use_threads=False)
        yield from _packed(batches, where, first_row)
    except (pa.ArrowException, OSError) as e:
        raise RequestError(f"{where}: the Parquet file cannot be read: {e}") from e


def read_ids(
    file: File, where: str, names: tuple[str, ...], kind: Literal["csv", "parquet"]
) -> Iterator[tuple[npt.NDArray[np.uint64], ...]]:
    """The named columns of a table of any ids, in order, exact; other columns are not read.

    Args:
        file: The file, at its beginning.
        where: The file as messages name it.
        names: The columns.
        kind: How the table is stored.

    Yields:
        uint64 ``[n]`` a column.

    Raises:
        RequestError: It is no such table, a column is missing, is there twice or is of a type that
            ids do not survive, or a row cannot be read exactly.
    """
    table = _parquet(file, where) if kind == "parquet" else None
    rows = _csv_rows(file, where) if table is None else [table.schema_arrow.names]
    found = rows[0] if rows else []
    if any(found.count(c) != 1 for c in names):
        raise RequestError(
            f"{where}: found the columns {', '.join(found) or 'none'}, needed are"
            f" {', '.join(names)}, each once"
        )
    if table is not None:
        for c in names:
            _check_id_type(c, table.schema_arrow.field(c).type, where)
    elif len(rows) < 2:
        return
    first = 0
    try:
        if table is None:
            batches = _csv_batches(file, dict.fromkeys(names, pa.uint64()))
        else:
            batches = table.iter_batches(BATCH_ROWS, columns=list(names), use_threads=False)
        for batch in batches:
            yield tuple(_ids(batch.column(c), c, where, first) for c in names)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as e:
        rule = (
            "rows are counted from 1, the header, and an id is an unsigned 64-bit integer written"
            " in digits; correct the row"
            if table is None
            else "the Parquet file cannot be read whole; write it anew"
        )
        raise RequestError(f"{where}: {e} ({rule})") from e


def _csv_batches(file: File, types: dict[str, Any]) -> Any:
    """A reader of record batches: the columns of ``types``, in its order, as these types."""
    file.seek(0)
    return pa_csv.open_csv(
        file,
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(column_types=types, include_columns=list(types)),
    )


def _packed(batches: Iterable[Any], where: str, first_row: int) -> Iterator[RawNodes]:
    """Record batches as packed arrays, cut to ``BATCH_ROWS``."""
    row = first_row
    for batch in batches:
        for offset in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(offset, BATCH_ROWS)
            yield _raw(part, where, row)
            row += part.num_rows


def _csv_rows(file: File, where: str) -> list[list[str]]:
    """The header and the first row that is not blank, as far as there are such."""
    text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
    rows: list[list[str]] = []
    try:
        for row in csv.reader(text):
            if row:
                rows.append(row)
            if len(rows) == 2:
                break
    except csv.Error as e:
        raise RequestError(f"{where}: this is no CSV table: {e}") from e
    finally:
        text.detach()
    return rows


def _check_columns(found: list[str], where: str, node_id_needed: bool) -> None:
    """Refuse a table that lacks a column or has one twice."""
    listed = ", ".join(found) or "none"
    missing = [c for c in _NEEDED if c not in found]
    if missing:
        bare = {"x", "y", "z"} <= set(found)
        raise RequestError(
            f"{where}: found the columns {listed}, needed are {', '.join(_NEEDED)} (node_id is"
            f" optional); {', '.join(missing)} is missing"
            + ("; positions must be in nm and named x_nm, y_nm, z_nm" if bare else "")
        )
    twice = [c for c in (*_NEEDED, "node_id") if found.count(c) > 1]
    if twice:
        raise RequestError(f"{where}: the column {twice[0]} is there twice; found {listed}")
    if node_id_needed and "node_id" not in found:
        raise RequestError(
            f"{where}: a directory of tables needs the column node_id, since a row number is unique"
            f" only within one file; found the columns {listed}"
        )


def _check_types(schema: Any, where: str) -> None:
    """Refuse Parquet columns that are not integers (ids) or numbers (positions)."""
    for name in (c for c in (*_IDS, *POSITIONS) if c in schema.names):
        kind = schema.field(name).type
        if name in _IDS:
            _check_id_type(name, kind, where)
        elif not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
            raise RequestError(
                f"{where}: the column {name} is {kind}, a position is a number of nm; write the"
                " column as float64"
            )


def _check_id_type(name: str, kind: Any, where: str) -> None:
    if not pa.types.is_integer(kind):
        raise RequestError(
            f"{where}: the column {name} is {kind}, ids must be integers: above 2**53 a float"
            " no longer tells neighbouring ids apart, and a text is not converted; write the"
            " column as uint64 from where the ids are still exact"
        )


def _parquet(file: File, where: str) -> Any:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as e:
        raise RequestError(f"{where}: this is no whole Parquet file: {e}") from e


def _raw(batch: Any, where: str, first_row: int) -> RawNodes:
    """A record batch as packed arrays; its first row has the number ``first_row``."""
    n = batch.num_rows
    segment_id = _ids(batch.column("segment_id"), "segment_id", where, first_row)
    if "node_id" in batch.schema.names:
        node_id = _ids(batch.column("node_id"), "node_id", where, first_row)
    else:
        node_id = np.arange(first_row, first_row + n, dtype=np.uint64)
    position_nm = np.empty((n, 3), np.float64)
    for axis, name in enumerate(POSITIONS):
        try:
            values = batch.column(name).cast(pa.float64())
        except pa.ArrowException as e:
            raise RequestError(
                f"{where}: {name} is not a position in nm, in rows {first_row} to"
                f" {first_row + n - 1}: {e}"
            ) from e
        position_nm[:, axis] = values.to_numpy(zero_copy_only=False)
    return RawNodes(segment_id, node_id, position_nm)


def _ids(column: Any, name: str, where: str, first_row: int) -> npt.NDArray[np.uint64]:
    """An integer column as uint64, without a detour through floats."""
    if column.null_count:
        row = first_row + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise RequestError(
            f"{where}: row {row} (counted from 0, without the header) has no {name}, and a row"
            " is of no use without it; fill it in or remove the row"
        )
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        at = int(np.argmax(values < 0))
        raise RequestError(
            f"{where}: row {first_row + at} (counted from 0, without the header) has the {name}"
            f" {values[at]}; ids are unsigned 64-bit integers, correct the row"
        )
    return np.asarray(values.astype(np.uint64))


def _bounds(statistics: list[Any]) -> npt.NDArray[np.float64] | None:
    """Bounds from the statistics of three columns; None where one has none that is finite."""
    if any(s is None or not s.has_min_max for s in statistics):
        return None
    if not all(isinstance(v, int | float) for s in statistics for v in (s.min, s.max)):
        return None  # float16 bounds come as bytes
    bounds = np.array([[s.min for s in statistics], [s.max for s in statistics]], np.float64)
    return bounds if np.isfinite(bounds).all() else None
