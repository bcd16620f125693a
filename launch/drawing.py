"""A graph as SVG: boxes in rows, from top to bottom, and lines from who gives to who reads.

A box may hold boxes. Each frame is laid out by itself: a box stands a row below the lowest box that
it reads from; a line that crosses rows passes each at a place of its own; what comes from outside
enters by the frame's upper edge, and what leaves it goes by the lower one, so that no line crosses
a box. Boxes of a row are ordered by where their lines come from and go to, and pushed towards them.

The picture is the same for the same graph: there is no chance in it.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal
from xml.sax.saxutils import escape

Kind = Literal["start", "work", "shuffle", "flatten", "other"]
"""What a box does: starts from nothing, works on elements, has a shuffle in it, joins, or other."""

_COLOURS: dict[Kind, tuple[str, str]] = {
    "start": ("#e3f1e3", "a start"),
    "work": ("#ffffff", "work on elements"),
    "shuffle": ("#fde3c8", "with a shuffle in it"),
    "flatten": ("#e9e6f5", "collections joined"),
    "other": ("#eeeeee", "another of Beam's"),
}

_FONT = 13
_CHARACTER = 7.4
_BOX_HEIGHT = 30.0
_BOX_PAD = 14.0
_GAP_X = 26.0
_GAP_Y = 42.0
_FRAME_PAD = 22.0
_TITLE = 24.0
_SWEEPS = 8
_LEAST_WIDTH = 760.0


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Use:
    """A collection as it is read.

    Attributes:
        collection: Which one.
        side: Whether as a side input: whole, before the first element of the main input.
    """

    collection: str
    side: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """What one box is of.

    Attributes:
        name: Its name.
        kind: What it does.
        parts: What lies in it, in the order of building.
        reads: What it reads from outside.
        gives: What it gives that others read.
    """

    name: str
    kind: Kind
    parts: tuple["Item", ...] = ()
    reads: tuple[Use, ...] = ()
    gives: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True, eq=False)
class _Spot:
    """A place in a row: a box, or where a line passes.

    Attributes:
        width: Width.
        height: Height.
        box: What is drawn there; None for a line that passes.
        x: Left edge in its frame.
        y: Upper edge in its frame.
        floor: Lower edge of its row, to which a line goes straight down.
        above: Spots in the row above that a line comes from.
        below: Spots in the row below that a line goes to.
        route: The line that passes.
    """

    width: float
    height: float
    box: "_Frame | None" = None
    x: float = 0.0
    y: float = 0.0
    floor: float = 0.0
    above: list["_Spot"] = dataclasses.field(default_factory=list)
    below: list["_Spot"] = dataclasses.field(default_factory=list)
    route: Use | None = None

    @property
    def middle(self) -> float:
        """Its middle in x."""
        return self.x + self.width / 2


@dataclasses.dataclass(slots=True, eq=False)
class _Frame:
    """A box with all that lies in it, laid out.

    Attributes:
        item: What it is of; None for the whole picture.
        width: Width.
        height: Height.
        rows: What lies in it, row by row.
        enters: Where each use enters at its upper edge, from its left edge.
        leaves: Where each collection leaves at its lower edge, from its left edge.
    """

    item: Item | None
    width: float
    height: float
    rows: list[list[_Spot]] = dataclasses.field(default_factory=list)
    enters: dict[Use, float] = dataclasses.field(default_factory=dict)
    leaves: dict[str, float] = dataclasses.field(default_factory=dict)


def svg(title: str, items: Sequence[Item], names: Mapping[str, str]) -> str:
    """A graph as an SVG document.

    Args:
        title: Stands above it.
        items: The outermost boxes, in the order of building.
        names: What a collection is called where a line leaves a box; empty for no name.
    """
    whole = _laid_out(None, items, (), ())
    legend = _legend(title)
    width = max(whole.width, _LEAST_WIDTH)
    height = whole.height + 76
    parts: list[str] = []
    _drawn(whole, (width - whole.width) / 2, 64.0, names, parts)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" '
            f'font-size="{_FONT}">',
            f"<title>{escape(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *legend,
            *parts,
            "</svg>\n",
        ]
    )


def _legend(title: str) -> list[str]:
    found = [f'<text x="16" y="24" font-weight="bold">{escape(title)}</text>']
    x = 16.0
    for colour, meaning in _COLOURS.values():
        found.append(
            f'<rect x="{x:.1f}" y="38" width="14" height="14" rx="3" fill="{colour}" '
            'stroke="#555555"/>'
        )
        found.append(f'<text x="{x + 20:.1f}" y="50" font-size="11">{meaning}</text>')
        x += 36 + 6 * len(meaning)
    found.append(_curve((x, 45.0), (x + 34, 45.0), True))
    found.append(f'<text x="{x + 40:.1f}" y="50" font-size="11">side input</text>')
    return found


def _laid_out(
    item: Item | None, parts: Sequence[Item], reads: Sequence[Use], gives: Sequence[str]
) -> _Frame:
    """A frame around boxes.

    Args:
        item: What it is of.
        parts: What lies in it.
        reads: What comes from outside.
        gives: What leaves it.
    """
    frames = [_boxed(part) for part in parts]
    rows = _rows(parts, frames, reads, gives)
    _ordered(rows)
    _placed(rows)
    top = 0.0 if item is None else _TITLE
    y = top
    for row in rows:
        tall = max((spot.height for spot in row), default=0.0)
        for spot in row:
            if spot.box is None:  # a line passes the whole row upright, beside its boxes
                spot.height = tall
            spot.y, spot.floor = y, y + tall
        y += tall + _GAP_Y
    right = max((s.x + s.width for row in rows for s in row), default=0.0)
    least = 0.0 if item is None else _CHARACTER * len(item.name) + 2 * _BOX_PAD
    shift = _FRAME_PAD + max(0.0, least - right - 2 * _FRAME_PAD) / 2
    for row in rows:
        for spot in row:
            spot.x += shift
    frame = _Frame(item, max(right + 2 * _FRAME_PAD, least), y - _GAP_Y, rows)
    frame.height += 0.0 if gives else _FRAME_PAD
    for spot in rows[0] if reads else ():
        if spot.route is not None:
            frame.enters[spot.route] = spot.middle
    for spot in rows[-1] if gives else ():
        if spot.route is not None:
            frame.leaves[spot.route.collection] = spot.middle
    return frame


def _boxed(item: Item) -> _Frame:
    """The box of an item: a frame where it has parts to show."""
    if item.parts:
        return _laid_out(item, item.parts, item.reads, item.gives)
    width = _CHARACTER * len(item.name) + 2 * _BOX_PAD
    frame = _Frame(item, width, _BOX_HEIGHT)
    for i, use in enumerate(item.reads):
        frame.enters[use] = width * (i + 1) / (len(item.reads) + 1)
    for i, collection in enumerate(item.gives):
        frame.leaves[collection] = width * (i + 1) / (len(item.gives) + 1)
    return frame


def _rows(
    parts: Sequence[Item], frames: Sequence[_Frame], reads: Sequence[Use], gives: Sequence[str]
) -> list[list[_Spot]]:
    """Boxes by rows, and where lines pass rows without ending there, all joined."""
    maker = {c: i for i, part in enumerate(parts) for c in part.gives}
    level: list[int] = []
    for part in parts:  # what is read was built before
        made = [level[maker[u.collection]] for u in part.reads if u.collection in maker]
        level.append(max(made, default=0 if reads else -1) + 1)
    count = max(level, default=0) + 1 + bool(gives)
    rows: list[list[_Spot]] = [[] for _ in range(count)]
    boxes = [_Spot(f.width, f.height, f) for f in frames]
    for spot, row in zip(boxes, level, strict=True):
        rows[row].append(spot)
    passing: dict[tuple[Use, int], _Spot] = {}

    def line(use: Use, start: int, stop: int) -> _Spot:
        """The spot that a line to a row comes from, made with all before it."""
        row = stop - 1
        if row == start and use.collection in maker:
            return boxes[maker[use.collection]]
        known = passing.get((use, row))
        if known is None:
            known = passing[use, row] = _Spot(10.0, 0.0, route=use)
            rows[row].append(known)
            if row > start:
                _join(line(use, start, row), known)
        return known

    for part, spot, row in zip(parts, boxes, level, strict=True):
        for use in part.reads:
            start = level[maker[use.collection]] if use.collection in maker else 0
            _join(line(use, start, row), spot)
    for collection in gives:
        use = Use(collection, False)
        start = level[maker[collection]] if collection in maker else 0
        end = _Spot(10.0, 0.0, route=use)
        rows[-1].append(end)
        _join(line(use, start, count - 1), end)
    return rows


def _join(above: _Spot, below: _Spot) -> None:
    above.below.append(below)
    below.above.append(above)


def _ordered(rows: list[list[_Spot]]) -> None:
    """Order each row by the mean place of what its spots are joined to, down and up in turn."""
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows[1:] if down else rows[-2::-1]:
            place = {id(spot): i for other in rows for i, spot in enumerate(other)}
            wishes = []
            for i, spot in enumerate(row):
                near = spot.above if down else spot.below
                mean = sum(place[id(s)] for s in near) / len(near) if near else float(i)
                wishes.append((mean, i))
            row[:] = [row[i] for _, i in sorted(wishes)]


def _placed(rows: list[list[_Spot]]) -> None:
    """Give each spot its x: packed, then pushed towards what it is joined to."""
    for row in rows:
        x = 0.0
        for spot in row:
            spot.x = x
            x += spot.width + _GAP_X
    widest = max((row[-1].x + row[-1].width for row in rows if row), default=0.0)
    for row in rows:
        spare = (widest - row[-1].x - row[-1].width) / 2 if row else 0.0
        for spot in row:
            spot.x += spare
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            _pushed(row, down)
    left = min((spot.x for row in rows for spot in row), default=0.0)
    for row in rows:
        for spot in row:
            spot.x -= left


def _pushed(row: list[_Spot], down: bool) -> None:
    """Move the spots of a row to the mean of their neighbours, as far as there is room."""
    wishes = []
    for spot in row:
        near = (spot.above if down else spot.below) or spot.below or spot.above
        middle = sum(s.middle for s in near) / len(near) if near else spot.middle
        wishes.append(middle - spot.width / 2)
    # Each from the left as far right as it must be, and from the right; the mean keeps the gaps.
    lefts, rights = [], []
    edge = float("-inf")
    for spot, x in zip(row, wishes, strict=True):
        lefts.append(max(x, edge))
        edge = lefts[-1] + spot.width + _GAP_X
    edge = float("inf")
    for spot, x in zip(row[::-1], wishes[::-1], strict=True):
        rights.append(min(x, edge - spot.width - _GAP_X))
        edge = rights[-1]
    for spot, a, b in zip(row, lefts, rights[::-1], strict=True):
        spot.x = (a + b) / 2


def _drawn(frame: _Frame, x: float, y: float, names: Mapping[str, str], parts: list[str]) -> None:
    """Draw what lies in a frame whose corner is at (x, y): lines, then boxes."""
    for row in frame.rows:
        for spot in row:
            for use, start, stop in _lines(spot):
                a = (x + start[0], y + start[1])
                b = (x + stop[0], y + stop[1])
                parts.append(_curve(a, b, use.side))
    for row in frame.rows:
        for spot in row:
            if spot.box is not None:
                _box(spot.box, x + spot.x, y + spot.y, names, parts)
            elif spot.route is not None:
                top = (x + spot.middle, y + spot.y)
                parts.append(_curve(top, (top[0], top[1] + spot.height), spot.route.side))


def _lines(spot: _Spot) -> Iterable[tuple[Use, tuple[float, float], tuple[float, float]]]:
    """The lines that end at a spot."""
    for above in spot.above:
        for use in _uses(above, spot):
            out = _outlet(above, use)
            start = (out[0], above.floor)
            if out != start:
                yield use, out, start
            stop = (spot.middle, spot.y)
            if spot.box is not None:
                stop = (spot.x + spot.box.enters[use], spot.y)
            yield use, start, stop


def _uses(above: _Spot, below: _Spot) -> list[Use]:
    """What goes from one spot to another."""
    if below.route is not None:
        return [below.route]
    if above.route is not None:
        return [above.route]
    if above.box is None or below.box is None:
        return []
    return [use for use in below.box.enters if use.collection in above.box.leaves]


def _outlet(spot: _Spot, use: Use) -> tuple[float, float]:
    """Where a line begins at a spot."""
    if spot.box is None:
        return spot.middle, spot.y + spot.height
    return spot.x + spot.box.leaves[use.collection], spot.y + spot.height


def _box(frame: _Frame, x: float, y: float, names: Mapping[str, str], parts: list[str]) -> None:
    item = frame.item
    if item is None:
        return
    inner = bool(frame.rows)
    fill = "#f6f8fb" if inner else _COLOURS[item.kind][0]
    stroke = "#8aa0bb" if inner else "#555555"
    parts.append(
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{frame.width:.1f}" height="{frame.height:.1f}" '
        f'rx="5" fill="{fill}" stroke="{stroke}"/>'
    )
    name = escape(item.name)
    if inner:
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 17:.1f}" font-weight="bold">{name}</text>')
        _drawn(frame, x, y, names, parts)
        return
    parts.append(
        f'<text x="{x + frame.width / 2:.1f}" y="{y + 20:.1f}" text-anchor="middle">{name}</text>'
    )
    for i, (collection, at) in enumerate(frame.leaves.items()):
        if names.get(collection):
            below = y + frame.height + 11 + 10 * (i % 3)
            parts.append(
                f'<text x="{x + at + 4:.1f}" y="{below:.1f}" font-size="10" '
                f'fill="#666666">{escape(names[collection])}</text>'
            )


def _curve(a: tuple[float, float], b: tuple[float, float], side: bool) -> str:
    bend = (b[1] - a[1]) / 2
    dashes = ' stroke-dasharray="5 4"' if side else ""
    return (
        f'<path d="M {a[0]:.1f} {a[1]:.1f} C {a[0]:.1f} {a[1] + bend:.1f} '
        f'{b[0]:.1f} {b[1] - bend:.1f} {b[0]:.1f} {b[1]:.1f}" fill="none" '
        f'stroke="#44576d"{dashes}/>'
    )
