"""The picture of the demo, and the two figures that go with it.

``draw_demo`` takes plain arrays and writes one PNG: sections of the volume on the left, the vectors
in two dimensions on the right. ``project_2d`` and ``knn_accuracy`` are pure and look at vectors
that are standardised first: each component to mean 0 and standard deviation 1 over the vectors
given, a component that never changes to 0.
"""

import dataclasses
import os
import pathlib
import tempfile
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from volumes.geometry import Vec3

_COLOURS = ("#d55e00", "#0072b2", "#00a878", "#cc79a7", "#e6a700", "#56b4e9", "#444444")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK = "#222222"
_OVERLAY = 0.22
_BAR_NM = 1000.0
_ROWS_AT_ONCE = 512


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Section:
    """A plane of the volume; the first array axis runs to the right, the second down.

    Attributes:
        name: What is shown, such as ``x-y, z = 96``.
        image: uint8 ``[a, b]``.
        labels: Integer ``[a, b]``: the segment of each pixel, 0 for background.
        pixel_nm: Size of a pixel in nm, right and down.
        sites_vx: float ``[m, 2]``: sites in this plane, in pixels; pixel 0 has its centre at 0.
        kinds: The kind of each site.
    """

    name: str
    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint64]
    pixel_nm: tuple[float, float]
    sites_vx: npt.NDArray[np.float64]
    kinds: tuple[str, ...]


def cut_section(
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint64],
    voxel_size_nm: Vec3,
    sites_vx: npt.NDArray[np.float64],
    kinds: Sequence[str],
    axis: int,
    index: int,
    reach_vx: float = 0.5,
) -> Section:
    """One plane of a volume with the sites in or near it.

    Args:
        image: uint8, XYZ.
        labels: uint64, XYZ, of the same shape.
        voxel_size_nm: Voxel size in nm, XYZ.
        sites_vx: float ``[n, 3]``: positions in voxels of the arrays, XYZ.
        kinds: The kind of each site.
        axis: The axis that the plane is perpendicular to: 0, 1 or 2.
        index: Where on that axis, a voxel of the arrays.
        reach_vx: How far from the plane a site may lie to be shown.

    Returns:
        The section; of the two axes left, the first runs to the right and the second down.
    """
    across, down = (a for a in range(3) if a != axis)
    near = np.flatnonzero(np.abs(sites_vx[:, axis] - index) <= reach_vx)
    names = "xyz"
    return Section(
        name=f"{names[across]}-{names[down]} section at {names[axis]} = {index}",
        image=np.take(image, index, axis=axis),
        labels=np.take(labels, index, axis=axis),
        pixel_nm=(voxel_size_nm[across], voxel_size_nm[down]),
        sites_vx=np.asarray(sites_vx[near][:, [across, down]], dtype=np.float64),
        kinds=tuple(kinds[int(i)] for i in near),
    )


def project_2d(
    vectors: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The first two principal components of standardised vectors.

    The sign of a component is such that its loading of largest size (the first of them) is
    positive. A component that the vectors do not have is 0.

    Args:
        vectors: ``[n, D]``, finite, n and D at least 1.

    Returns:
        float64 ``[n, 2]``, and the share of the variance that each of the two explains, ``[2]``.
    """
    left, size, right = np.linalg.svd(_standardised(vectors), full_matrices=False)
    total = float(np.sum(size * size))
    points, explained = np.zeros((len(vectors), 2)), np.zeros(2)
    for i in range(min(2, len(size))):
        sign = 1.0 if right[i, np.argmax(np.abs(right[i]))] >= 0 else -1.0
        points[:, i] = sign * left[:, i] * size[i]
        explained[i] = size[i] * size[i] / total if total > 0 else 0.0
    return points, explained


def knn_accuracy(
    vectors: npt.NDArray[np.float32],
    kinds: Sequence[str],
    segments: npt.NDArray[np.uint64],
    k: int = 5,
) -> tuple[float, float]:
    """How often the nearest vectors of other segments are of a vector's own kind.

    Each vector takes the commonest kind of its ``k`` nearest (Euclidean, standardised) among the
    vectors of all segments but its own, so that no vector is recognised by its neighbours along
    the same neurite; of kinds equally common, the one with the nearer ranks.

    Args:
        vectors: ``[n, D]``, finite.
        kinds: The kind of each vector, n of them.
        segments: The segment of each vector, ``[n]``; at least two different ones.
        k: How many neighbours vote, at least 1; all there are where there are fewer.

    Returns:
        The share of vectors whose kind is met, and the share that the commonest kind of all would
        meet: what guessing gives.
    """
    if not len(vectors) == len(kinds) == len(segments):
        raise ValueError(
            f"{len(vectors)} vectors, {len(kinds)} kinds and {len(segments)} segments do not "
            "belong together: each vector needs one of either."
        )
    _, segment = np.unique(np.asarray(segments), return_inverse=True)
    if k < 1 or segment.size == 0 or segment.max() == 0:
        raise ValueError(
            f"{k} neighbours among other segments cannot be asked of {len(vectors)} vectors of "
            f"{len(np.unique(segment))} segment(s): give at least 1 neighbour and 2 segments."
        )
    names, kind = np.unique(np.asarray(kinds), return_inverse=True)
    points = _standardised(vectors)
    square = np.sum(points * points, axis=1)
    met = 0
    for start in range(0, len(points), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distance = square[None, :] - 2 * (points[rows] @ points.T)
        distance[segment[rows, None] == segment[None, :]] = np.inf
        votes = _votes(distance, kind, len(names), min(k, len(points) - 1))
        met += int(np.count_nonzero(np.argmax(votes, axis=1) == kind[rows]))
    return met / len(points), float(np.bincount(kind).max() / len(points))


def _votes(
    distance: npt.NDArray[np.float64], kind: npt.NDArray[np.int64], kinds: int, k: int
) -> npt.NDArray[np.float64]:
    """Votes ``[rows, kinds]`` of the k nearest of each row; a nearer one counts a trifle more."""
    rows = np.arange(len(distance))[:, None]
    near = np.argpartition(distance, k - 1, axis=1)[:, :k]
    near = near[rows, np.argsort(distance[rows, near], axis=1, kind="stable")]
    weight = 1 + (k - np.arange(k)) / (k * (k + 1) + 1)
    counted = np.where(np.isfinite(distance[rows, near]), weight, 0.0)
    votes = np.zeros((len(distance), kinds))
    np.add.at(votes, (np.broadcast_to(rows, near.shape), kind[near]), counted)
    return votes


def _standardised(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Vectors with each component at mean 0 and standard deviation 1; a constant one at 0."""
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"vectors of shape {values.shape} cannot be compared: they must be finite, one a row, "
            "at least one row and one column."
        )
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    constant = spread <= 1e-12 * np.abs(values).max(axis=0)
    out: npt.NDArray[np.float64] = np.where(constant, 0.0, centred / np.where(constant, 1, spread))
    return out


def draw_demo(
    path: str | os.PathLike[str],
    title: str,
    caption: str,
    sections: Sequence[Section],
    vectors: npt.NDArray[np.float32],
    kinds: Sequence[str],
) -> None:
    """Write the picture of the demo, 1800 x 1200 pixels.

    The file appears whole or not at all.

    Args:
        path: The PNG file; replaced if it exists.
        title: What was run; must name the network, so that nobody takes it for another.
        caption: A sentence or two below the picture.
        sections: One or two sections, drawn from top to bottom.
        vectors: float32 ``[n, D]``.
        kinds: The kind of each vector.
    """
    names = sorted(set(kinds).union(*(section.kinds for section in sections)))
    style = {
        name: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, name in enumerate(names)
    }
    figure = Figure(figsize=(12, 8), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.5, 0.965, textwrap.fill(title, 105), ha="center", va="center", size=14, color=_INK
    )
    figure.text(
        0.5, 0.03, textwrap.fill(caption, 165), ha="center", va="center", size=9, color=_INK
    )
    heights = [section.image.shape[1] * section.pixel_nm[1] for section in sections]
    left = figure.add_gridspec(
        len(sections),
        1,
        height_ratios=heights,
        left=0.02,
        right=0.34,
        top=0.905,
        bottom=0.07,
        hspace=0.08,
    )
    for i, section in enumerate(sections):
        _draw_section(figure.add_subplot(left[i, 0]), section, style)
    right = figure.add_gridspec(1, 1, left=0.405, right=0.98, top=0.905, bottom=0.135)
    _draw_vectors(figure.add_subplot(right[0, 0]), vectors, kinds, style)
    _save(figure, pathlib.Path(path))


def _draw_section(axes: Axes, section: Section, style: dict[str, tuple[str, str]]) -> None:
    """The image, the segments as translucent colours, the sites, and a scale bar."""
    grey = np.repeat(section.image[..., None] / 255.0, 3, axis=2)
    colour = _segment_colours(section.labels)
    part = np.where(section.labels == 0, 0.0, _OVERLAY)[..., None]
    mixed = np.clip(grey * (1 - part) + colour * part, 0, 1)
    width, height = (n * s for n, s in zip(section.image.shape, section.pixel_nm, strict=True))
    axes.imshow(mixed.transpose(1, 0, 2), extent=(0, width, height, 0), interpolation="nearest")
    place = (section.sites_vx + 0.5) * np.array(section.pixel_nm)
    for name, (face, marker) in style.items():
        mine = np.array([kind == name for kind in section.kinds], dtype=bool)
        axes.scatter(
            place[mine, 0],
            place[mine, 1],
            s=30,
            c=face,
            marker=marker,
            edgecolors="white",
            linewidths=0.8,
        )
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(section.name, size=10, color=_INK, loc="left", pad=4)
    bar = _BAR_NM if width > 2 * _BAR_NM else _BAR_NM / 10
    axes.set_title(f"bar: {bar:,.0f} nm", size=9, color=_INK, loc="right", pad=4)
    x, y = 0.97 * width - bar, height - 0.03 * width
    axes.plot([x, x + bar], [y, y], color="black", linewidth=5, solid_capstyle="butt")
    axes.plot([x, x + bar], [y, y], color="white", linewidth=3, solid_capstyle="butt")


def _segment_colours(labels: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """A colour ``[..., 3]`` for each segment, the same wherever it appears."""
    mixed = labels.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    hue = (mixed >> np.uint64(40)).astype(np.float64) / 2**24
    glow = 0.65 + 0.35 * ((mixed >> np.uint64(20)) & np.uint64(0xFF)).astype(np.float64) / 255
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full(hue.shape, 0.75), glow], axis=-1)))


def _draw_vectors(
    axes: Axes,
    vectors: npt.NDArray[np.float32],
    kinds: Sequence[str],
    style: dict[str, tuple[str, str]],
) -> None:
    """The vectors in two dimensions, by kind."""
    points, explained = project_2d(vectors)
    size = float(np.clip(12000 / len(points), 6, 40))
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(points))
    for start in range(0, len(order), max(1, len(order) // 8)):
        some = order[start : start + max(1, len(order) // 8)]
        for name, (face, marker) in style.items():
            mine = some[[kinds[i] == name for i in some]]
            axes.scatter(
                points[mine, 0],
                points[mine, 1],
                s=size,
                c=face,
                marker=marker,
                alpha=0.75,
                edgecolors="white",
                linewidths=0.3,
            )
    for name, (face, marker) in style.items():
        count = sum(kind == name for kind in kinds)
        axes.scatter([], [], s=40, c=face, marker=marker, label=f"{name} ({count:,})")
    axes.legend(title="kind (sites)", loc="best", frameon=True, framealpha=0.9, fontsize=10)
    axes.set_title(
        f"{len(points):,} embeddings of {vectors.shape[1]} components, in two dimensions",
        size=10,
        color=_INK,
        loc="left",
        pad=4,
    )
    axes.set_xlabel(f"principal component 1 ({explained[0]:.0%} of the variance)", size=10)
    axes.set_ylabel(f"principal component 2 ({explained[1]:.0%} of the variance)", size=10)
    axes.tick_params(labelsize=9)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure beside its place and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        figure.savefig(name, format="png", metadata={"Software": None})
        os.replace(name, path)
    finally:
        pathlib.Path(name).unlink(missing_ok=True)
