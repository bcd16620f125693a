"""The sample volume of the demo: synthetic electron microscopy of packed neurites of three kinds.

Representation: arrays are XYZ; voxel ``(i, j, k)`` has its centre at ``(i, j, k) * voxel size``.
Everything is drawn in nm, so that a config of another voxel size samples tissue of the same make.
The recipe is frozen, because networks are trained on its output: a test holds the digest of a small
volume.

Same config, same bits: each stage has its own PCG64 stream, seeded by ``(seed, name of the stage as
a little-endian integer)``. Floating point is used for elementwise ``+ - * /``, square roots,
comparisons, interpolation and sums in array order alone, so that neither the number of threads nor
the width of vector registers matters.

The recipe, with the numbers that shape it (lengths in nm):

1. *Kinds.* 18 % of the neurites are dendrites, 26 % glia, the rest axons.
2. *Centre lines.* A straight line through a uniform point of the inner 92 % of each axis, in a
   uniform direction, cut off 400 outside the volume, sampled every 96 and bent by uniform offsets
   up to 240 at knots 900 apart. The base radius is uniform in 68 to 110 (axon), 150 to 240
   (dendrite), 100 to 160 (glia), modulated by 12 % (glia: 45 %) at knots 500 apart; axons swell to
   1.5 to 2.1 times their radius in boutons 960 to 2,112 apart. 60 rounds of relaxation pack the
   lines: samples of different neurites closer than the sum of their radii push each other apart by
   0.3 of what is missing, the thinner giving way more; each line is smoothed by a quarter of its
   second difference; nothing leaves the cut.
3. *Labels.* A voxel belongs to the neurite of least cost: the squared distance to a sample of its
   centre line over the squared radius there. Dendrites have spines, a thin neck with a head, every
   576. Glia's cost grows only 0.22 times as fast but begins at 0.5, give or take a random field of
   grain 130: it fills what the tubes leave, in ragged sheets. Where no cost is below 1.7, and in
   whatever is not connected to the longest unbroken stretch of its own centre line, the label is
   0. Identities are random uint64; a third are above 2**53, in pairs that differ by 1 and that
   float64 therefore cannot tell apart.
4. *Cytoplasm.* Level 150 (background: 165), plus a fine (grain 26) and a coarse (grain 110) random
   field, each with an amplitude that depends on the kind: axons are grainy, dendrites smooth, glia
   is patchy. A field is a quadratic B-spline over uniform values at knots one grain apart.
5. *Organelles.* Mitochondria in axons and, larger, in dendrites: dark capsules 480 to 1,056 long
   beside the centre line, with a darker rim and stripes across every 80. Vesicles in the boutons of
   axons: 70 to 169 dark rings of radius 18. Microtubules in dendrites: 12 to 17 dark lines along
   the centre line. Granules in the darker patches of glia: dark dots of radius 30.
6. *Membranes.* Voxels within 16 of a change of label (at least one voxel), softened, at level 62.
7. *Mean grey.* The cytoplasm of each neurite is shifted until the neurite's mean grey is one drawn
   from a normal distribution of deviation 6 about 131 (axon), 135 (dendrite) or 133 (glia): the
   kinds overlap in it, and texture, organelles and shape tell them apart.
8. *Microscope.* A slight blur, an offset of deviation 1 per section, and normal noise of variance
   12 + 0.1 times the grey level; rounded to uint8.
"""

import csv
import dataclasses
import math
import os
import pathlib
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3

_F32 = npt.NDArray[np.float32]
_F64 = npt.NDArray[np.float64]
_I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """What sets a kind of neurite apart; lengths in nm, amplitudes in grey levels."""

    name: str
    share: float
    radius_nm: tuple[float, float]
    slope: float
    fine: float
    coarse: float
    mean_grey: float


_AXON, _DENDRITE, _GLIA = range(3)
_KINDS = (
    _Kind("axon", 0.56, (68.0, 110.0), 1.0, 13.0, 6.0, 131.0),
    _Kind("dendrite", 0.18, (150.0, 240.0), 1.0, 6.0, 4.0, 135.0),
    _Kind("glia", 0.26, (100.0, 160.0), 0.22, 10.0, 30.0, 133.0),
)
_COST_LIMIT = 1.7
_MARGIN_NM = 400.0
_STEP_NM = 96.0
_MEMBRANE_GREY = 62.0
_MOST_VOXELS = 2**26


@dataclasses.dataclass(frozen=True, slots=True)
class PhantomConfig:
    """What sample volume is asked for.

    Attributes:
        shape: Voxels, XYZ; at least 32 on each axis and at most 2**26 in all.
        voxel_size_nm: Voxel size in nm, XYZ; 4 to 40 on each axis.
        neurites: Number of neurites, 3 to 4,096. The default fills the default volume; one of twice
            its size on each axis wants four times as many.
        seed: Seed of every random stream, not negative.
    """

    shape: Vec = (256, 256, 192)
    voxel_size_nm: Vec3 = (16.0, 16.0, 16.0)
    neurites: int = 240
    seed: int = 7

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if min(self.shape) < 32 or math.prod(self.shape) > _MOST_VOXELS:
            raise RequestError(
                f"a sample volume of shape {self.shape} cannot be drawn: it needs at least 32 "
                f"voxels on each axis to hold a neurite and at most {_MOST_VOXELS} in all, "
                "because it is made in memory; ask for another shape."
            )
        if not all(4 <= s <= 40 for s in self.voxel_size_nm):
            raise RequestError(
                f"a sample volume with voxels of {self.voxel_size_nm} nm cannot be drawn: its "
                "finest structures are 36 nm wide, which wants voxels of 4 to 40 nm on each axis; "
                "give a size in that range."
            )
        if not 3 <= self.neurites <= 4096:
            raise RequestError(
                f"a sample volume of {self.neurites} neurites cannot be drawn: it takes 3, one of "
                "each kind, to 4096, the most that were tried; give a number in that range."
            )
        if self.seed < 0:
            raise RequestError(f"the seed {self.seed} is negative; give one of at least 0.")


SMALL = PhantomConfig(shape=(64, 64, 64), neurites=14)
"""A config for tests, made in well under a second. Its volume holds 13 of its 14 neurites."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A sample volume.

    Attributes:
        image: uint8, XYZ.
        labels: uint64, XYZ: the segment of each voxel, 0 for background.
        kinds: Every segment of ``labels`` with the name of its kind, ascending by segment. A
            neurite that was crowded out of the volume is not among them.
        config: What was asked.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint64]
    kinds: tuple[tuple[int, str], ...]
    config: PhantomConfig

    def kind_of(self, segment_id: int) -> str:
        """Name of a segment's kind; a segment that is not in the volume is a ``KeyError``."""
        return dict(self.kinds)[int(segment_id)]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Lines:
    """Samples of centre lines, ``_STEP_NM`` apart, in the order of neurites and along each.

    Attributes:
        points: float64 ``[n, 3]``, nm.
        radius: float64 ``[n]``, nm.
        tube: int64 ``[n]``, index of the neurite.
        boutons: int64 ``[m]``, samples at the middle of a bouton.
    """

    points: _F64
    radius: _F64
    tube: _I64
    boutons: _I64

    def of(self, tube: int) -> slice:
        """The samples of one neurite."""
        first, last = np.searchsorted(self.tube, [tube, tube + 1])
        return slice(int(first), int(last))


@dataclasses.dataclass(slots=True, eq=False)
class _Canvas:
    """The volume while it is drawn: a config, voxel coordinates in nm, and ``owner``.

    ``owner`` is int16, XYZ: index of the neurite that holds a voxel, -1 for none.
    """

    config: PhantomConfig
    axes: tuple[_F32, _F32, _F32]
    owner: npt.NDArray[np.int16]

    def rng(self, stage: str) -> np.random.Generator:
        """The stream of one stage."""
        key = int.from_bytes(stage.encode(), "little")
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.config.seed, key])))

    def window(self, centre: _F64, reach: float) -> tuple[slice, slice, slice]:
        """The voxels within ``reach`` nm of a point on each axis; may be empty."""
        first, second, third = (
            slice(max(0, math.ceil((c - reach) / s)), max(0, min(n, int((c + reach) // s) + 1)))
            for c, s, n in zip(centre, self.config.voxel_size_nm, self.config.shape, strict=True)
        )
        return first, second, third

    def square_distance(self, centre: _F64, window: tuple[slice, slice, slice]) -> _F32:
        """Squared distance in nm2 of each voxel of a window to a point."""
        x, y, z = (
            (axis[part] - np.float32(c)) ** 2
            for axis, part, c in zip(self.axes, window, centre, strict=True)
        )
        out: _F32 = (x[:, None] + y[None, :])[:, :, None] + z
        return out


def make_phantom(config: PhantomConfig) -> Phantom:
    """The sample volume of a config; see the module's text for the recipe."""
    axes = tuple(
        np.arange(n, dtype=np.float32) * np.float32(s)
        for n, s in zip(config.shape, config.voxel_size_nm, strict=True)
    )
    owner = np.full(config.shape, -1, dtype=np.int16)
    canvas = _Canvas(config, (axes[0], axes[1], axes[2]), owner)
    kind = _kinds_of_tubes(config.neurites)
    lines = _relaxed(_centre_lines(canvas, kind), config)
    _assign(canvas, lines, kind)
    image = _microscope(canvas, _tissue(canvas, lines, kind))
    ids = _identities(canvas.rng("ids"), config.neurites)
    present = np.flatnonzero(np.bincount(canvas.owner.ravel() + 1)[1:])
    return Phantom(
        image=image,
        labels=np.concatenate([np.zeros(1, np.uint64), ids])[canvas.owner + np.int16(1)],
        kinds=tuple(sorted((int(ids[t]), _KINDS[kind[t]].name) for t in present)),
        config=config,
    )


def _kinds_of_tubes(neurites: int) -> _I64:
    """Kind of each neurite: the shares of the kinds, at least one of each."""
    dendrites = max(1, round(_KINDS[_DENDRITE].share * neurites))
    glia = max(1, round(_KINDS[_GLIA].share * neurites))
    return np.repeat([_AXON, _DENDRITE, _GLIA], [neurites - dendrites - glia, dendrites, glia])


def _identities(rng: np.random.Generator, count: int) -> npt.NDArray[np.uint64]:
    """Distinct random identities; a third of them are above 2**53, in pairs that differ by 1."""
    large = max(2, count // 3) // 2 * 2
    steps = rng.choice(2**31 - 2**21, size=large // 2, replace=False).astype(np.uint64)
    pairs = np.uint64(2**53) + (steps + np.uint64(1)) * np.uint64(2**33)
    small = rng.choice(2**44, size=count - large, replace=False, shuffle=False)
    ids = np.concatenate([small.astype(np.uint64) + np.uint64(1), pairs, pairs + np.uint64(1)])
    return rng.permutation(ids)


# Centre lines.


def _centre_lines(canvas: _Canvas, kind: _I64) -> _Lines:
    """Bent lines through uniform points of the volume in uniform directions."""
    rng = canvas.rng("lines")
    extent = np.array(canvas.config.shape) * np.array(canvas.config.voxel_size_nm)
    points, radius, tube, boutons, made = [], [], [], [], 0
    for index, which in enumerate(kind):
        through, direction = rng.uniform(0.04, 0.96, 3) * extent, _unit(rng.standard_normal(3))
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
    return _Lines(
        np.concatenate(points),
        np.concatenate(radius),
        np.concatenate(tube),
        np.concatenate(boutons),
    )


def _unit(vectors: _F64) -> _F64:
    """Vectors ``[..., 3]`` scaled to length 1."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    out: _F64 = vectors / np.sqrt(x * x + y * y + z * z + 1e-12)[..., None]
    return out


def _bends(rng: np.random.Generator, count: int, knot_nm: float, size: float) -> _F64:
    """Offsets ``[count, 3]`` along a line: uniform at knots, linear between them."""
    knots = int(count * _STEP_NM / knot_nm) + 2
    values = rng.uniform(-size, size, (knots, 3))
    at = np.arange(count) * (_STEP_NM / knot_nm)
    return np.stack([np.interp(at, np.arange(knots), values[:, a]) for a in range(3)], axis=1)


def _thickness(rng: np.random.Generator, kind: int, count: int) -> tuple[_F64, _I64]:
    """Radius in nm along a line, and the samples at the middle of its boutons."""
    base = rng.uniform(*_KINDS[kind].radius_nm)
    uneven = 0.45 if kind == _GLIA else 0.12
    radius = base * (1 + _bends(rng, count, 500.0, uneven)[:, 0])
    if kind != _AXON:
        return radius, np.empty(0, np.int64)
    middle = np.cumsum(rng.integers(10, 23, size=count // 10 + 1)) - rng.integers(0, 12)
    middle = middle[(middle >= 0) & (middle < count)].astype(np.int64)
    swell = rng.uniform(0.5, 1.1, len(middle))
    for m, s in zip(middle, swell, strict=True):
        u = np.clip((np.arange(count) - m) / 4.5, -1, 1)
        radius = np.maximum(radius, base * (1 + s * (1 - u * u) ** 2))
    return radius, middle


def _relaxed(lines: _Lines, config: PhantomConfig) -> _Lines:
    """The lines, pushed apart until they pack."""
    points, smooth = lines.points.copy(), np.zeros(len(lines.points), bool)
    smooth[1:-1] = (lines.tube[:-2] == lines.tube[1:-1]) & (lines.tube[2:] == lines.tube[1:-1])
    inner = np.flatnonzero(smooth)
    top = np.array(config.shape) * np.array(config.voxel_size_nm) + _MARGIN_NM
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


def _close_pairs(points: _F64, lines: _Lines) -> tuple[_I64, _I64]:
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


# Labels.


def _resampled(lines: _Lines, part: slice, spacing: float) -> tuple[_F64, _F64]:
    """Points ``[n, 3]`` and radii ``[n]`` of a piece of a line, ``spacing`` nm apart."""
    points, radius = lines.points[part], lines.radius[part]
    leap = np.diff(points, axis=0)
    length = np.sqrt(leap[:, 0] ** 2 + leap[:, 1] ** 2 + leap[:, 2] ** 2)
    at = np.concatenate([np.zeros(1), np.cumsum(length)])
    wanted = np.arange(0, at[-1], spacing)
    fine = np.stack([np.interp(wanted, at, points[:, a]) for a in range(3)], axis=1)
    return fine, np.interp(wanted, at, radius)


def _spines(rng: np.random.Generator, lines: _Lines, part: slice) -> tuple[_F64, _F64]:
    """Samples of the spines of a dendrite: thin necks that end in heads."""
    points, radius = [np.empty((0, 3))], [np.empty(0)]
    for base in range(part.start + int(rng.integers(2, 8)), part.stop, 6):
        root = lines.points[base]
        tip = _unit(rng.standard_normal(3)) * (lines.radius[base] + rng.uniform(150, 330))
        along = np.linspace(0.5, 1.0, 16)
        points.append(root + along[:, None] * tip)
        radius.append(np.interp(along, [0.5, 0.85, 1.0], [42.0, 46.0, 90.0]))
    return np.concatenate(points), np.concatenate(radius)


def _assign(canvas: _Canvas, lines: _Lines, kind: _I64) -> None:
    """Give each voxel to the neurite of least cost, and cut off what hangs loose."""
    cost = np.full(canvas.config.shape, _COST_LIMIT, dtype=np.float32)
    ragged = np.float32(0.9) * _field(canvas, "ragged", 130.0)
    ragged += np.float32(0.5)
    rng = canvas.rng("spines")
    centres = []
    for tube, which in enumerate(kind):
        part = lines.of(tube)
        spacing = (0.85 if which == _GLIA else 0.45) * float(lines.radius[part].min())
        points, radius = _resampled(lines, part, spacing)
        centres.append(points)
        if which == _DENDRITE:
            extra = _spines(rng, lines, part)
            points, radius = np.concatenate([points, extra[0]]), np.concatenate([radius, extra[1]])
        rough = ragged if which == _GLIA else None
        far = math.sqrt(_COST_LIMIT / _KINDS[which].slope)
        for point, r in zip(points, radius, strict=True):
            scale = _KINDS[which].slope / float(r * r)
            _claim(canvas, cost, canvas.owner, tube, point, far * float(r), scale, rough)
    _keep_connected(canvas, centres)


def _claim(
    canvas: _Canvas,
    cost: _F32,
    holder: npt.NDArray[np.signedinteger[Any]],
    number: int,
    point: _F64,
    reach: float,
    scale: float,
    rough: _F32 | None = None,
) -> None:
    """Make ``number`` the holder of the voxels around a point for which it is cheapest so far.

    Args:
        canvas: The volume.
        cost: Least cost of each voxel so far; changed.
        holder: Who has it; changed.
        number: Who asks.
        point: Where, nm ``[3]``.
        reach: How far it can matter, nm.
        scale: Cost of a squared distance of 1 nm2.
        rough: What is added to the cost of each voxel.
    """
    window = canvas.window(point, reach)
    if any(part.start >= part.stop for part in window):
        return
    asked = canvas.square_distance(point, window)
    asked *= np.float32(scale)
    if rough is not None:
        asked += rough[window]
    best = cost[window]
    np.copyto(holder[window], holder.dtype.type(number), where=asked < best)
    np.minimum(best, asked, out=best)


def _keep_connected(canvas: _Canvas, centres: list[_F64]) -> None:
    """Clear what is not connected, by faces, to the longest whole stretch of its centre line."""
    owner = canvas.owner
    kept = np.zeros(owner.shape, dtype=bool)
    for tube, points in enumerate(centres):
        voxels = np.rint(points / np.array(canvas.config.voxel_size_nm)).astype(np.int64)
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


def _field(canvas: _Canvas, stage: str, cell_nm: float) -> _F32:
    """A smooth random field about 0, XYZ: a quadratic B-spline over uniform values at knots."""
    shape, size = canvas.config.shape, canvas.config.voxel_size_nm
    knots = [int(n * s / cell_nm) + 4 for n, s in zip(shape, size, strict=True)]
    out = canvas.rng(stage).uniform(-1, 1, knots).astype(np.float32)
    for axis in range(3):
        at = np.arange(shape[axis]) * (size[axis] / cell_nm)
        low = np.floor(at).astype(np.int64)
        t = (at - low).astype(np.float32)
        t = t.reshape([-1 if a == axis else 1 for a in range(3)])
        weights = (0.5 * (1 - t) ** 2, 0.5 + t * (1 - t), 0.5 * t * t)
        total = weights[0] * np.take(out, low, axis=axis)
        for step in (1, 2):
            total += weights[step] * np.take(out, low + step, axis=axis)
        out = total
    return np.asarray(out, dtype=np.float32)


# Grey levels.


def _tissue(canvas: _Canvas, lines: _Lines, kind: _I64) -> _F32:
    """Grey levels before the microscope, float32, XYZ."""
    rng = canvas.rng("grey")
    spread = rng.standard_normal(len(kind))
    means = np.array([k.mean_grey for k in _KINDS])[kind] + 6.0 * spread
    coarse = _field(canvas, "coarse", 110.0)
    image = _cytoplasm(canvas, kind, coarse)
    ink = np.zeros(image.shape, dtype=np.float32)
    _draw_vesicles(canvas, lines, ink)
    _draw_microtubules(canvas, lines, kind, ink)
    _draw_granules(canvas, kind, coarse, ink)
    image -= ink
    del ink, coarse
    _draw_mitochondria(canvas, lines, kind, image)
    membrane = _membranes(canvas)
    image += membrane * (_MEMBRANE_GREY - image)
    inside = 1 - membrane
    owner = canvas.owner.ravel() + np.int16(1)
    count = np.maximum(1, np.bincount(owner, minlength=len(kind) + 1))
    grey = np.bincount(owner, image.ravel(), len(kind) + 1) / count
    share = np.bincount(owner, inside.ravel(), len(kind) + 1) / count
    shift = np.concatenate([[0.0], means - grey[1:]]) / np.maximum(share, 0.2)
    inside *= np.clip(shift, -40, 40).astype(np.float32)[canvas.owner + np.int16(1)]
    image += inside
    return image


def _cytoplasm(canvas: _Canvas, kind: _I64, coarse: _F32) -> _F32:
    """A grey level, and random fields of amplitudes that depend on the kind."""
    owner = canvas.owner + np.int16(1)
    table = np.array([(0.0, 0.0)] + [(_KINDS[k].fine, _KINDS[k].coarse) for k in kind], np.float32)
    image = _field(canvas, "fine", 26.0)
    image *= np.float32(2.5) * table[owner, 0]
    image += np.float32(2.0) * table[owner, 1] * coarse
    image += np.where(owner > 0, np.float32(150), np.float32(165))
    return image


def _frames(points: _F64, rng: np.random.Generator) -> tuple[_F64, _F64]:
    """Two unit vectors across a line at each of its points, turning as little as the line does."""
    ahead = np.concatenate([points[1:2], points[2:], points[-1:]])
    behind = np.concatenate([points[:1], points[:-2], points[-2:-1]])
    tangent = _unit(ahead - behind)
    start = np.broadcast_to(_unit(rng.standard_normal(3)), points.shape)
    along = np.sum(start * tangent, axis=1)[:, None]
    across = _unit(start - along * tangent)
    return across, np.cross(tangent, across)


def _draw_mitochondria(canvas: _Canvas, lines: _Lines, kind: _I64, image: _F32) -> None:
    """Dark capsules with darker rims and stripes across, inside axons and dendrites."""
    rng = canvas.rng("mitochondria")
    depth = np.ones(image.shape, dtype=np.float32)
    sample = np.zeros(image.shape, dtype=np.int32)
    made, tubes = 0, [np.empty(0, np.int64)]
    for tube in np.flatnonzero(kind != _GLIA):
        part = lines.of(int(tube))
        fill, aside = (0.7, 0.05) if kind[tube] == _AXON else (0.46, 0.3)
        start = part.start + int(rng.integers(0, 14))
        while start + 4 < part.stop:
            stop = min(part.stop, start + int(rng.integers(5, 12)))
            points, radius = _resampled(lines, slice(start, stop), 16.0)
            across, _ = _frames(points, rng)
            points = points + aside * radius[:, None] * across
            for i, (point, r) in enumerate(zip(points, radius, strict=True)):
                size = fill * float(r)
                _claim(canvas, depth, sample, made + i, point, size, 1 / size**2)
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


def _draw_vesicles(canvas: _Canvas, lines: _Lines, ink: _F32) -> None:
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


def _draw_microtubules(canvas: _Canvas, lines: _Lines, kind: _I64, ink: _F32) -> None:
    """Thin dark lines along dendrites."""
    rng = canvas.rng("microtubules")
    points, tubes = [np.empty((0, 3))], [np.empty(0, np.int64)]
    for tube in np.flatnonzero(kind == _DENDRITE):
        line, radius = _resampled(lines, lines.of(int(tube)), 16.0)
        across, upward = _frames(line, rng)
        for u, v in rng.uniform(-0.6, 0.6, (int(rng.integers(12, 18)), 2)):
            points.append(line + radius[:, None] * (u * across + v * upward))
            tubes.append(np.full(len(line), tube))
    dot = np.array([58.0, 0.0])
    _stamp(canvas, ink, np.concatenate(points), np.concatenate(tubes), [0, 25], dot)


def _draw_granules(canvas: _Canvas, kind: _I64, coarse: _F32, ink: _F32) -> None:
    """Dark dots in the denser patches of glia."""
    rng = canvas.rng("granules")
    size = np.array(canvas.config.voxel_size_nm)
    volume = float(np.prod(np.array(canvas.config.shape) * size))
    points = rng.random((int(volume / 66.0**3), 3)) * np.array(canvas.config.shape) * size
    voxel = tuple(np.minimum(points / size, np.array(coarse.shape) - 1).astype(np.int64).T)
    owner = canvas.owner[voxel]
    keep = (owner >= 0) & (kind[owner] == _GLIA) & (coarse[voxel] < 0.1)
    dot = np.array([62.0, 54.0, 0.0])
    _stamp(canvas, ink, points[keep], owner[keep].astype(np.int64), [0, 14, 30], dot)


def _stamp(
    canvas: _Canvas,
    ink: _F32,
    points: _F64,
    tubes: _I64,
    distance_nm: list[float],
    dark: _F64,
) -> None:
    """Raise ``ink`` around points to a profile of the distance, inside each point's neurite."""
    size, shape = np.array(canvas.config.voxel_size_nm), np.array(ink.shape)
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


def _membranes(canvas: _Canvas) -> _F32:
    """How much of a voxel is membrane, 0 to 1: near a change of label, softened."""
    owner = canvas.owner
    band = np.zeros(owner.shape, dtype=bool)
    for axis, size in enumerate(canvas.config.voxel_size_nm):
        label, edge = np.moveaxis(owner, axis, 0), np.moveaxis(band, axis, 0)
        for step in range(1, max(1, round(16 / size)) + 1):
            change = label[step:] != label[:-step]
            edge[step:] |= change
            edge[:-step] |= change
    return _blurred(band.astype(np.float32), 0.2)


def _blurred(values: _F32, side: float) -> _F32:
    """Values, each mixed along every axis with ``side`` times both neighbours."""
    out = values
    for axis in range(3):
        source = np.moveaxis(out, axis, 0)
        mixed = np.empty_like(out)
        target = np.moveaxis(mixed, axis, 0)
        np.multiply(source, np.float32(1 - 2 * side), out=target)
        target[1:] += np.float32(side) * source[:-1]
        target[:-1] += np.float32(side) * source[1:]
        target[0] += np.float32(side) * source[0]
        target[-1] += np.float32(side) * source[-1]
        out = mixed
    return out


def _microscope(canvas: _Canvas, tissue: _F32) -> npt.NDArray[np.uint8]:
    """What the microscope makes of the grey levels: blur, drift, noise; uint8, XYZ."""
    rng = canvas.rng("noise")
    image = _blurred(tissue, 0.14)
    image += rng.standard_normal(image.shape[2], dtype=np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.sqrt(np.float32(12) + np.float32(0.1) * np.maximum(image, 0))
    image += noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# Files.


def write_sections(phantom: Phantom, directory: str | os.PathLike[str]) -> int:
    """Write the image as PNG sections ``section.NNNN.png``; row = y, column = x, number = z.

    Args:
        phantom: The sample volume.
        directory: Where to write; made if absent.

    Returns:
        Number of sections.
    """
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    depth = phantom.config.shape[2]
    for z in range(depth):
        rows = np.ascontiguousarray(phantom.image[:, :, z].T)
        Image.fromarray(rows).save(folder / f"section.{z:04d}.png", compress_level=1)
    return depth


def write_segmentation_h5(phantom: Phantom, path: str | os.PathLike[str]) -> None:
    """Write the labels as dataset ``stack`` (uint64, axes z, y, x, gzip) of a new HDF5 file."""
    shape = phantom.labels.shape[::-1]
    chunk = tuple(min(64, n) for n in shape)
    with h5py.File(path, "w") as file:
        stack = file.create_dataset(
            "stack", shape, np.uint64, chunks=chunk, compression="gzip", compression_opts=4
        )
        for z in range(0, shape[0], chunk[0]):
            stack[z : z + chunk[0]] = phantom.labels[:, :, z : z + chunk[0]].T


def write_kinds_csv(phantom: Phantom, path: str | os.PathLike[str]) -> None:
    """Write ``segment_id,kind``, a row a segment, ascending."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("segment_id", "kind"))
        table.writerows(phantom.kinds)
