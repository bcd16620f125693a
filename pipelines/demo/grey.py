"""Grey levels of the sample volume: tissue, and what the microscope makes of it."""

import numpy as np
import numpy.typing as npt

from pipelines.demo.canvas import F32, I64, Canvas, random_field
from pipelines.demo.kinds import KINDS
from pipelines.demo.lines import Lines
from pipelines.demo.organelles import (
    draw_granules,
    draw_microtubules,
    draw_mitochondria,
    draw_vesicles,
)

_MEMBRANE_GREY = 62.0


def tissue(canvas: Canvas, lines: Lines, kind: I64) -> F32:
    """Grey levels before the microscope, float32, XYZ."""
    rng = canvas.rng("grey")
    spread = rng.standard_normal(len(kind))
    means = np.array([k.mean_grey for k in KINDS])[kind] + 6.0 * spread
    coarse = random_field(canvas, "coarse", 110.0)
    image = _cytoplasm(canvas, kind, coarse)
    ink = np.zeros(image.shape, dtype=np.float32)
    draw_vesicles(canvas, lines, ink)
    draw_microtubules(canvas, lines, kind, ink)
    draw_granules(canvas, kind, coarse, ink)
    image -= ink
    del ink, coarse
    draw_mitochondria(canvas, lines, kind, image)
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


def _cytoplasm(canvas: Canvas, kind: I64, coarse: F32) -> F32:
    """A grey level, and random fields of amplitudes that depend on the kind."""
    owner = canvas.owner + np.int16(1)
    table = np.array([(0.0, 0.0)] + [(KINDS[k].fine, KINDS[k].coarse) for k in kind], np.float32)
    image = random_field(canvas, "fine", 26.0)
    image *= np.float32(2.5) * table[owner, 0]
    image += np.float32(2.0) * table[owner, 1] * coarse
    image += np.where(owner > 0, np.float32(150), np.float32(165))
    return image


def _membranes(canvas: Canvas) -> F32:
    """How much of a voxel is membrane, 0 to 1: near a change of label, softened."""
    owner = canvas.owner
    band = np.zeros(owner.shape, dtype=bool)
    for axis, size in enumerate(canvas.voxel_size_nm):
        label, edge = np.moveaxis(owner, axis, 0), np.moveaxis(band, axis, 0)
        for step in range(1, max(1, round(16 / size)) + 1):
            change = label[step:] != label[:-step]
            edge[step:] |= change
            edge[:-step] |= change
    return _blurred(band.astype(np.float32), 0.2)


def microscope(canvas: Canvas, grey: F32) -> npt.NDArray[np.uint8]:
    """What the microscope makes of the grey levels: blur, drift, noise; uint8, XYZ."""
    rng = canvas.rng("noise")
    image = _blurred(grey, 0.14)
    image += rng.standard_normal(image.shape[2], dtype=np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.sqrt(np.float32(12) + np.float32(0.1) * np.maximum(image, 0))
    image += noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _blurred(values: F32, side: float) -> F32:
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
