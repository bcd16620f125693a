"""Labels of the sample volume: which neurite holds a voxel, and its identity."""

import math

import numpy as np
import numpy.typing as npt

from pipelines.demo.canvas import F64, I64, Canvas, claim, random_field
from pipelines.demo.kinds import DENDRITE, GLIA, KINDS
from pipelines.demo.lines import Lines, resampled, unit

_COST_LIMIT = 1.7


def identities(rng: np.random.Generator, count: int) -> npt.NDArray[np.uint64]:
    """Distinct random identities; a third of them are above 2**53, in pairs that differ by 1."""
    large = max(2, count // 3) // 2 * 2
    steps = rng.choice(2**31 - 2**21, size=large // 2, replace=False).astype(np.uint64)
    pairs = np.uint64(2**53) + (steps + np.uint64(1)) * np.uint64(2**33)
    small = rng.choice(2**44, size=count - large, replace=False, shuffle=False)
    ids = np.concatenate([small.astype(np.uint64) + np.uint64(1), pairs, pairs + np.uint64(1)])
    return rng.permutation(ids)


def assign(canvas: Canvas, lines: Lines, kind: I64) -> None:
    """Fill ``canvas.owner``: the neurite of least cost for each voxel, less what hangs loose."""
    cost = np.full(canvas.shape, _COST_LIMIT, dtype=np.float32)
    ragged = np.float32(0.9) * random_field(canvas, "ragged", 130.0)
    ragged += np.float32(0.5)
    rng = canvas.rng("spines")
    centres = []
    for tube, which in enumerate(kind):
        part = lines.of(tube)
        spacing = (0.85 if which == GLIA else 0.45) * float(lines.radius[part].min())
        points, radius = resampled(lines, part, spacing)
        centres.append(points)
        if which == DENDRITE:
            extra = _spines(rng, lines, part)
            points, radius = np.concatenate([points, extra[0]]), np.concatenate([radius, extra[1]])
        rough = ragged if which == GLIA else None
        far = math.sqrt(_COST_LIMIT / KINDS[which].slope)
        for point, r in zip(points, radius, strict=True):
            scale = KINDS[which].slope / float(r * r)
            claim(canvas, cost, canvas.owner, tube, point, far * float(r), scale, rough)
    _keep_connected(canvas, centres)


def _spines(rng: np.random.Generator, lines: Lines, part: slice) -> tuple[F64, F64]:
    """Samples of the spines of a dendrite: thin necks that end in heads."""
    points, radius = [np.empty((0, 3))], [np.empty(0)]
    for base in range(part.start + int(rng.integers(2, 8)), part.stop, 6):
        root = lines.points[base]
        tip = unit(rng.standard_normal(3)) * (lines.radius[base] + rng.uniform(150, 330))
        along = np.linspace(0.5, 1.0, 16)
        points.append(root + along[:, None] * tip)
        radius.append(np.interp(along, [0.5, 0.85, 1.0], [42.0, 46.0, 90.0]))
    return np.concatenate(points), np.concatenate(radius)


def _keep_connected(canvas: Canvas, centres: list[F64]) -> None:
    """Clear what is not connected, by faces, to the longest whole stretch of its centre line."""
    owner = canvas.owner
    kept = np.zeros(owner.shape, dtype=bool)
    for tube, points in enumerate(centres):
        voxels = np.rint(points / np.array(canvas.voxel_size_nm)).astype(np.int64)
        voxels = voxels[np.all((voxels >= 0) & (voxels < owner.shape), axis=1)]
        own = owner[tuple(voxels.T)] == tube
        runs = np.split(np.arange(len(own)), np.flatnonzero(np.diff(own)) + 1)
        longest = max(runs, key=lambda run: len(run) if len(run) and own[run[0]] else 0)
        if len(longest) and own[longest[0]]:
            kept[tuple(voxels[longest].T)] = True
    change = np.ones(owner.shape, dtype=bool)
    change[:, :, 1:] = owner[:, :, 1:] != owner[:, :, :-1]
    starts = np.flatnonzero(change)
    lengths = np.diff(starts, append=owner.size)
    reached = -1
    while (now := int(np.count_nonzero(kept))) > reached:
        reached = now
        _sweep(owner, kept)
        _sweep(owner.swapaxes(0, 1), kept.swapaxes(0, 1))
        kept.ravel()[:] = np.repeat(np.logical_or.reduceat(kept.ravel(), starts), lengths)
    owner[~kept] = -1


def _sweep(owner: npt.NDArray[np.int16], kept: npt.NDArray[np.bool_]) -> None:
    """Carry ``kept`` along the first axis, up and down, within equal owners."""
    for i in range(1, len(kept)):
        kept[i] |= kept[i - 1] & (owner[i] == owner[i - 1])
    for i in range(len(kept) - 2, -1, -1):
        kept[i] |= kept[i + 1] & (owner[i] == owner[i + 1])
