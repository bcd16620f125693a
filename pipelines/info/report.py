"""What ``info`` found, for people and as JSON."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What lies at a path.

    Attributes:
        what: ``volume``, ``model`` or ``store``.
        body: All that was found, JSON with the same keys for everything of a kind.
        lines: The same for people.
    """

    what: str
    body: dict[str, Any]
    lines: tuple[str, ...]


def facts(rows: Iterable[tuple[str, str | Sequence[str]]]) -> list[str]:
    """Lines of a name and what there is to say; rows with nothing to say are left out.

    Further lines of a row stand below its first.
    """
    said = [(name, [value] if isinstance(value, str) else list(value)) for name, value in rows]
    said = [(name, values) for name, values in said if values and values != [""]]
    width = max((len(name) for name, _ in said), default=0)
    return [
        f"  {name if i == 0 else '':{width}}  {value}".rstrip()
        for name, values in said
        for i, value in enumerate(values)
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines, a header first; columns in which no row has anything are left out."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    cells = [[row[i] for i in kept] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
