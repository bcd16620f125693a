"""SWC skeletons: parsing a file into arrays, with every defect named by its line.

A line is ``sample type x y z radius parent``, positions in nm; ``#`` begins a comment; parent -1
marks a root, of which a file may hold several. The file's name is its segment: ``<id>.swc``.
"""

import io
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError

_MAX_ID = 2**64 - 1
_FIELDS = "sample type x y z radius parent"


class RawSkeleton(NamedTuple):
    """The samples of one file, in the order of its lines.

    Attributes:
        segment_id: The segment that the file is named for.
        sample: uint64 ``[n]``, the sample numbers.
        position_nm: float64 ``[n, 3]``, XYZ in nm, finite.
        parent: int64 ``[n]``, the index of each sample's parent, -1 for a root; free of circles.
    """

    segment_id: int
    sample: npt.NDArray[np.uint64]
    position_nm: npt.NDArray[np.float64]
    parent: npt.NDArray[np.int64]


def segment_of(name: str, where: str) -> int:
    """The segment that a file name stands for: ``17.swc`` is 17.

    Args:
        name: The file's name.
        where: The file as messages name it.

    Raises:
        RequestError: The stem is not an unsigned 64-bit integer.
    """
    segment_id = _unsigned(name[: -len(".swc")])
    if segment_id is None:
        raise RequestError(
            f"{where}: an SWC file is named for its segment, <segment_id>.swc with an unsigned"
            " 64-bit integer, since nothing in the file says whose skeleton it is; rename it"
        )
    return segment_id


def parse(data: bytes, segment_id: int, where: str) -> RawSkeleton:
    """The skeleton in the bytes of one file.

    Args:
        data: The file, UTF-8 (in comments other bytes are let pass).
        segment_id: The segment that the file is named for.
        where: The file as messages name it.

    Raises:
        RequestError: A line is malformed, a sample number is repeated, a parent does not exist, or
            the parents run in a circle; the message names the line.
    """
    index: dict[int, int] = {}
    lines: list[int] = []
    positions: list[tuple[float, float, float]] = []
    parents: list[int] = []
    text = io.StringIO(data.decode("utf-8-sig", errors="replace"), newline=None)
    for number, line in enumerate(text, start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        sample, position, parent = _sample(fields, f"{where}:{number}")
        if sample in index:
            raise RequestError(
                f"{where}:{number}: sample {sample} stands in line {lines[index[sample]]} already;"
                " a sample number is a node's id and may occur once"
            )
        index[sample] = len(lines)
        lines.append(number)
        positions.append(position)
        parents.append(parent)
    parent_index = _parent_index(parents, index, lines, where)
    return RawSkeleton(
        segment_id,
        np.array(list(index), np.uint64),
        np.array(positions, np.float64).reshape(-1, 3),
        parent_index,
    )


def _sample(fields: list[str], where: str) -> tuple[int, tuple[float, float, float], int]:
    """Number, position and parent of one line."""
    if len(fields) != 7:
        raise RequestError(f"{where}: a line has 7 fields, {_FIELDS}, this one has {len(fields)}")
    sample = _unsigned(fields[0])
    if sample is None:
        raise RequestError(
            f"{where}: the sample number {fields[0]!r} is not an unsigned 64-bit integer"
        )
    x, y, z = (_finite(v) for v in fields[2:5])
    if x is None or y is None or z is None:
        raise RequestError(
            f"{where}: the position {' '.join(fields[2:5])!r} is not three finite numbers (nm)"
        )
    parent = -1 if fields[6] == "-1" else _unsigned(fields[6])
    if parent is None:
        raise RequestError(
            f"{where}: the parent {fields[6]!r} is neither a sample number nor -1, a root's"
        )
    return sample, (x, y, z), parent


def _parent_index(
    parents: list[int], index: dict[int, int], lines: list[int], where: str
) -> npt.NDArray[np.int64]:
    """Each sample's parent as an index, after a check that every walk upwards ends at a root."""
    out = np.empty(len(parents), np.int64)
    for i, parent in enumerate(parents):
        at = -1 if parent == -1 else index.get(parent)
        if at is None:
            raise RequestError(
                f"{where}:{lines[i]}: the parent {parent} does not exist: no line has that sample"
                " number; the file may be cut short"
            )
        out[i] = at
    up = out
    for _ in range(len(out).bit_length()):
        up = np.where(up >= 0, up[up], -1)
    if (up >= 0).any():
        line = lines[int(np.argmax(up >= 0))]
        raise RequestError(
            f"{where}:{line}: the parents lead round in a circle (a cycle), so that no path to a"
            " root exists; a skeleton must be a tree or several"
        )
    return out


def _unsigned(text: str) -> int | None:
    """An unsigned 64-bit integer of ASCII digits, or None."""
    if not (text.isascii() and text.isdigit()):
        return None
    value = int(text) if len(text) <= 40 else _MAX_ID + 1
    return value if value <= _MAX_ID else None


def _finite(text: str) -> float | None:
    """A finite decimal number, or None."""
    if "_" in text:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
