"""Centre lines of neurites: bent, thick, and pushed apart until they pack."""

import dataclasses

import numpy as np

from pipelines.demo.canvas import F64, I64, Canvas
from pipelines.demo.kinds import AXON, GLIA, KINDS

_MARGIN_NM = 400.0
_STEP_NM = 96.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Samples of centre lines, ``_STEP_NM`` apart, in the order of neurites and along each.

    Attributes:
        points: float64 ``[n, 3]``, nm.
        radius: float64 ``[n]``, nm.
        tube: int64 ``[n]``, index of the neurite.
        boutons: int64 ``[m]``, samples at the middle of a bouton.
    """

    points: F64
    radius: F64
    tube: I64
    boutons: I64

    def of(self, tube: int) -> slice:
        """The samples of one neurite."""
        first, last = np.searchsorted(self.tube, [tube, tube + 1])
        return slice(int(first), int(last))


def centre_lines(canvas: Canvas, kind: I64) -> Lines:
    """Bent lines through uniform points of the volume in uniform directions."""
    rng = canvas.rng("lines")
    extent = np.array(canvas.shape) * np.array(canvas.voxel_size_nm)
    points, radius, tube, boutons, made = [], [], [], [], 0
    for index, which in enumerate(kind):
        through, direction = rng.uniform(0.04, 0.96, 3) * extent, unit(rng.standard_normal(3))
        with np.errstate(divide="ignore"):
            ends = np.stack([-_MARGIN_NM - through, extent + _MARGIN_NM - through]) / direction
        first, last = ends.min(axis=0).max(), ends.max(axis=0).min()
        count = max(8, int((last - first) // _STEP_NM))
        along = np.linspace(first, last, count)
        line = through + along[:, None] * direction + _bends(rng, count, 900.0, 240.0)
        thick, middle = _thickness(rng, int(which), count)
        points.append(line)
        radius.append(thick)
        tube.append(np.full(count, index))
        boutons.append(middle + made)
        made += count
    return Lines(
        np.concatenate(points),
        np.concatenate(radius),
        np.concatenate(tube),
        np.concatenate(boutons),
    )


def _bends(rng: np.random.Generator, count: int, knot_nm: float, size: float) -> F64:
    """Offsets ``[count, 3]`` along a line: uniform at knots, linear between them."""
    knots = int(count * _STEP_NM / knot_nm) + 2
    values = rng.uniform(-size, size, (knots, 3))
    at = np.arange(count) * (_STEP_NM / knot_nm)
    return np.stack([np.interp(at, np.arange(knots), values[:, a]) for a in range(3)], axis=1)


def _thickness(rng: np.random.Generator, kind: int, count: int) -> tuple[F64, I64]:
    """Radius in nm along a line, and the samples at the middle of its boutons."""
    base = rng.uniform(*KINDS[kind].radius_nm)
    uneven = 0.45 if kind == GLIA else 0.12
    radius = base * (1 + _bends(rng, count, 500.0, uneven)[:, 0])
    if kind != AXON:
        return radius, np.empty(0, np.int64)
    middle = np.cumsum(rng.integers(10, 23, size=count // 10 + 1)) - rng.integers(0, 12)
    middle = middle[(middle >= 0) & (middle < count)].astype(np.int64)
    swell = rng.uniform(0.5, 1.1, len(middle))
    for m, s in zip(middle, swell, strict=True):
        u = np.clip((np.arange(count) - m) / 4.5, -1, 1)
        radius = np.maximum(radius, base * (1 + s * (1 - u * u) ** 2))
    return radius, middle


def relaxed(lines: Lines, canvas: Canvas) -> Lines:
    """The lines, pushed apart until they pack."""
    points, smooth = lines.points.copy(), np.zeros(len(lines.points), bool)
    smooth[1:-1] = (lines.tube[:-2] == lines.tube[1:-1]) & (lines.tube[2:] == lines.tube[1:-1])
    inner = np.flatnonzero(smooth)
    top = np.array(canvas.shape) * np.array(canvas.voxel_size_nm) + _MARGIN_NM
    for turn in range(60):
        if turn % 20 == 0:
            a, b = _close_pairs(points, lines)
        gap = points[a] - points[b]
        distance = np.sqrt(gap[:, 0] ** 2 + gap[:, 1] ** 2 + gap[:, 2] ** 2) + 1e-6
        reach = lines.radius[a] + lines.radius[b]
        push = gap * (0.3 * np.maximum(0, reach - distance) / (distance * reach))[:, None]
        give, take = push * lines.radius[b][:, None], push * lines.radius[a][:, None]
        for axis in range(3):
            move = np.bincount(a, give[:, axis], len(points))
            move -= np.bincount(b, take[:, axis], len(points))
            points[:, axis] += np.clip(move, -24, 24)
        bend = points[inner - 1] + points[inner + 1] - 2 * points[inner]
        points[inner] += 0.25 * bend
        points = np.clip(points, -_MARGIN_NM, top)
    return dataclasses.replace(lines, points=points)


def _close_pairs(points: F64, lines: Lines) -> tuple[I64, I64]:
    """Samples of different neurites that are, or may soon be, closer than their radii."""
    order = np.argsort(points[:, 0], kind="stable")
    place, thick, tube = points[order], lines.radius[order], lines.tube[order]
    far = 2 * thick.max() + 150
    stop = np.searchsorted(place[:, 0], place[:, 0] + far)
    first, second = [], []
    for start in range(0, len(place), 256):
        here = slice(start, min(start + 256, len(place)))
        there = slice(start, int(stop[here].max()))
        reach = thick[here, None] + (thick[None, there] + 150)
        square = -reach * reach
        for axis in range(3):
            gap = place[here, axis, None] - place[None, there, axis]
            square += gap * gap
        i, j = np.nonzero((square < 0) & (tube[here, None] != tube[None, there]))
        i, j = i + start, j + start
        first.append(order[i[i < j]])
        second.append(order[j[i < j]])
    return np.concatenate(first), np.concatenate(second)


def unit(vectors: F64) -> F64:
    """Vectors ``[..., 3]`` scaled to length 1."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    out: F64 = vectors / np.sqrt(x * x + y * y + z * z + 1e-12)[..., None]
    return out


def resampled(lines: Lines, part: slice, spacing: float) -> tuple[F64, F64]:
    """Points ``[n, 3]`` and radii ``[n]`` of a piece of a line, ``spacing`` nm apart."""
    points, radius = lines.points[part], lines.radius[part]
    leap = np.diff(points, axis=0)
    length = np.sqrt(leap[:, 0] ** 2 + leap[:, 1] ** 2 + leap[:, 2] ** 2)
    at = np.concatenate([np.zeros(1), np.cumsum(length)])
    wanted = np.arange(0, at[-1], spacing)
    fine = np.stack([np.interp(wanted, at, points[:, a]) for a in range(3)], axis=1)
    return fine, np.interp(wanted, at, radius)
