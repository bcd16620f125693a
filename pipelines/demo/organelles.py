"""What lies in the cytoplasm: mitochondria, vesicles, microtubules and granules.

Each is drawn into an array of grey levels, float32, XYZ, that is changed in place: mitochondria
into the image itself, the others into ``ink``, which is later taken from the image.
"""

import numpy as np

from pipelines.demo.canvas import F32, F64, I64, Canvas, claim
from pipelines.demo.kinds import AXON, DENDRITE, GLIA
from pipelines.demo.lines import Lines, resampled, unit


def draw_mitochondria(canvas: Canvas, lines: Lines, kind: I64, image: F32) -> None:
    """Dark capsules with darker rims and stripes across, inside axons and dendrites."""
    rng = canvas.rng("mitochondria")
    depth = np.ones(image.shape, dtype=np.float32)
    sample = np.zeros(image.shape, dtype=np.int32)
    made, tubes = 0, [np.empty(0, np.int64)]
    for tube in np.flatnonzero(kind != GLIA):
        part = lines.of(int(tube))
        fill, aside = (0.7, 0.05) if kind[tube] == AXON else (0.46, 0.3)
        start = part.start + int(rng.integers(0, 14))
        while start + 4 < part.stop:
            stop = min(part.stop, start + int(rng.integers(5, 12)))
            points, radius = resampled(lines, slice(start, stop), 16.0)
            across, _ = _frames(points, rng)
            points = points + aside * radius[:, None] * across
            for i, (point, r) in enumerate(zip(points, radius, strict=True)):
                size = fill * float(r)
                claim(canvas, depth, sample, made + i, point, size, 1 / size**2)
            tubes.append(np.full(len(points), tube))
            made += len(points)
            start = stop + int(rng.integers(10, 30))
    at = np.flatnonzero(depth.ravel() < 1)
    where = sample.ravel()[at]
    at, where = (v[np.concatenate(tubes)[where] == canvas.owner.ravel()[at]] for v in (at, where))
    deep = np.sqrt(depth.ravel()[at])
    stripe = np.abs((where % 5).astype(np.float32) - 2) - 1
    grey = np.where(deep > 0.8, np.float32(78), 102 + 17 * stripe)
    image.ravel()[at] = grey + np.float32(0.3) * (image.ravel()[at] - 150)


def draw_vesicles(canvas: Canvas, lines: Lines, ink: F32) -> None:
    """Clusters of dark rings in boutons."""
    rng = canvas.rng("vesicles")
    points, tubes = [np.empty((0, 3))], [np.empty(0, np.int64)]
    for bouton in lines.boutons:
        count = int(rng.integers(70, 170))
        spread = 1.1 * lines.radius[bouton] * rng.uniform(-1, 1, (count, 3))
        points.append(lines.points[bouton] + spread)
        tubes.append(np.full(count, lines.tube[bouton]))
    ring = np.array([0.0, 58.0, 0.0])
    _stamp(canvas, ink, np.concatenate(points), np.concatenate(tubes), [0, 18, 36], ring)


def draw_microtubules(canvas: Canvas, lines: Lines, kind: I64, ink: F32) -> None:
    """Thin dark lines along dendrites."""
    rng = canvas.rng("microtubules")
    points, tubes = [np.empty((0, 3))], [np.empty(0, np.int64)]
    for tube in np.flatnonzero(kind == DENDRITE):
        line, radius = resampled(lines, lines.of(int(tube)), 16.0)
        across, upward = _frames(line, rng)
        for u, v in rng.uniform(-0.6, 0.6, (int(rng.integers(12, 18)), 2)):
            points.append(line + radius[:, None] * (u * across + v * upward))
            tubes.append(np.full(len(line), tube))
    dot = np.array([58.0, 0.0])
    _stamp(canvas, ink, np.concatenate(points), np.concatenate(tubes), [0, 25], dot)


def draw_granules(canvas: Canvas, kind: I64, coarse: F32, ink: F32) -> None:
    """Dark dots in the denser patches of glia."""
    rng = canvas.rng("granules")
    size = np.array(canvas.voxel_size_nm)
    volume = float(np.prod(np.array(canvas.shape) * size))
    points = rng.random((int(volume / 66.0**3), 3)) * np.array(canvas.shape) * size
    voxel = tuple(np.minimum(points / size, np.array(coarse.shape) - 1).astype(np.int64).T)
    owner = canvas.owner[voxel]
    keep = (owner >= 0) & (kind[owner] == GLIA) & (coarse[voxel] < 0.1)
    dot = np.array([62.0, 54.0, 0.0])
    _stamp(canvas, ink, points[keep], owner[keep].astype(np.int64), [0, 14, 30], dot)


def _frames(points: F64, rng: np.random.Generator) -> tuple[F64, F64]:
    """Two unit vectors across a line at each of its points, turning as little as the line does."""
    ahead = np.concatenate([points[1:2], points[2:], points[-1:]])
    behind = np.concatenate([points[:1], points[:-2], points[-2:-1]])
    tangent = unit(ahead - behind)
    start = np.broadcast_to(unit(rng.standard_normal(3)), points.shape)
    along = np.sum(start * tangent, axis=1)[:, None]
    across = unit(start - along * tangent)
    return across, np.cross(tangent, across)


def _stamp(
    canvas: Canvas,
    ink: F32,
    points: F64,
    tubes: I64,
    distance_nm: list[float],
    dark: F64,
) -> None:
    """Raise ``ink`` around points to a profile of the distance, inside each point's neurite."""
    size, shape = np.array(canvas.voxel_size_nm), np.array(ink.shape)
    inside = np.all((points > -0.5 * size) & (points < (shape - 0.5) * size), axis=1)
    points, tubes = points[inside], tubes[inside]
    centre = np.rint(points / size).astype(np.int64)
    owner, target, reach = canvas.owner.ravel(), ink.ravel(), distance_nm[-1]
    half = np.ceil(reach / size - 0.5).astype(np.int64)
    for offset in np.ndindex(*(2 * half + 1)):
        voxel = centre + (np.array(offset) - half)
        gap = voxel * size - points
        away = np.sqrt(gap[:, 0] ** 2 + gap[:, 1] ** 2 + gap[:, 2] ** 2)
        near = np.flatnonzero((away < reach) & np.all((voxel >= 0) & (voxel < shape), axis=1))
        flat = np.ravel_multi_index(tuple(voxel[near].T), ink.shape)
        mine = owner[flat] == tubes[near]
        value = np.interp(away[near][mine], distance_nm, dark).astype(np.float32)
        np.maximum.at(target, flat[mine], value)
