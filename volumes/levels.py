"""One level of a volume as its format states it, and the units and axis names formats use.

Everything here is in the order of the stored dimensions, as metadata gives it; ``volumes.opening``
turns it to XYZ once it knows the axes.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from volumes.errors import RequestError
from volumes.spec import Kind

SPATIAL = ("x", "y", "z")

INTEGRAL = 1 / 64
"""How far from a whole number of voxels an origin may be stated and still be one."""

_NM = {
    "fm": 1e-6,
    "pm": 1e-3,
    "Å": 0.1,
    "A": 0.1,
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,  # U+00B5, the micro sign
    "μm": 1e3,  # U+03BC, the Greek letter
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
}
_PREFIXES = {
    "femto": 1e-6,
    "pico": 1e-3,
    "nano": 1.0,
    "micro": 1e3,
    "milli": 1e6,
    "centi": 1e7,
    "": 1e9,
}
_NM |= {
    prefix + word: factor
    for prefix, factor in _PREFIXES.items()
    for word in ("meter", "metre", "meters", "metres")
}
_NM |= dict.fromkeys(("angstrom", "angstroms", "ångström"), 0.1)
_NM |= dict.fromkeys(("micron", "microns"), 1e3)

_QUANTITY = re.compile(r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)?\s*(.*?)\s*")
_OTHER_AXES = {"c": "channel", "c^": "channel", "channel": "channel", "t": "time", "time": "time"}


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """One array of a volume, and what its format states about it.

    A value per dimension is given for all stored dimensions, or for the spatial ones alone.

    Attributes:
        tensorstore: TensorStore spec, canonical JSON text.
        format: Name of the format.
        axes: Name of each stored dimension, or None where the format states none.
        voxel_size_nm: Voxel size in nm by dimension, or None where the format states none; None as
            one of the values where that dimension has no unit.
        origin_vx: Frame voxel of the first voxel by dimension, not rounded, or None where the
            format states none.
        kind: ``image`` or ``segmentation``, or None where the format states neither.
    """

    tensorstore: str
    format: str
    axes: tuple[str, ...] | None
    voxel_size_nm: tuple[float | None, ...] | None
    origin_vx: tuple[float, ...] | None
    kind: Kind | None = None


def tidy(value: float) -> float:
    """The value without the last digits that a change of unit disturbs (12 are kept)."""
    return float(f"{value:.12g}")


def nm_per(unit: str, name: str) -> float:
    """Length of a unit in nm.

    Raises:
        RequestError: No unit of length has that name; ``name`` says which volume states it.
    """
    unit = unit.strip()
    factor = _NM.get(unit if len(unit) <= 2 else unit.lower())
    if factor is None:
        raise RequestError(
            f"{name} states its voxel size in {unit!r}, which is no unit of length known here "
            "(nm, um, mm, cm, m, pm, fm, angstrom or their names); correct its metadata"
        )
    return factor


def quantity_nm(value: Any, name: str) -> float | None:
    """A length in nm from ``"8 nm"``, ``"nm"`` or ``[8, "nm"]``; None where no unit is stated."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        number, unit = str(value[0]), str(value[1])
    elif isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        number, unit = (match.group(1) or "1", match.group(2)) if match else ("", value)
    else:
        return None
    if not unit:
        return None
    try:
        return tidy(float(number) * nm_per(unit, name))
    except ValueError as e:
        if isinstance(e, RequestError):
            raise
        raise RequestError(f"{name} states the length {value!r}, which is no number") from e


def named_axes(names: Sequence[Any] | None) -> tuple[str, ...] | None:
    """Names of dimensions as this project writes them, or None where they say nothing.

    ``x``, ``y`` and ``z`` of any case; ``c`` and ``t`` become ``channel`` and ``time``. Names of
    which none is known (``dim_0``) count as not stated; unknown ones among known are kept.
    """
    if not names:
        return None
    lowered = [str(n).lower() if n else "" for n in names]
    known = [n if n in SPATIAL else _OTHER_AXES.get(n) for n in lowered]
    if not any(known):
        return None
    return tuple(k or n or "?" for k, n in zip(known, lowered, strict=True))


def asked_axes(axes: str) -> tuple[str, ...]:
    """The axes a user gives, as ``zyx`` or ``z,y,x,channel``.

    Raises:
        RequestError: They do not name x, y and z once each, besides channel and time.
    """
    parts = axes.split(",") if "," in axes else list(axes)
    named = tuple(_OTHER_AXES.get(p.strip().lower(), p.strip().lower()) for p in parts)
    known = set(SPATIAL) | set(_OTHER_AXES.values())
    if len(set(named)) != len(named) or not set(SPATIAL) <= set(named) <= known:
        raise RequestError(
            f"axes {axes!r} do not name x, y and z once each, besides channel (c) and time (t); "
            "give the stored order of the dimensions, slowest first for Zarr, as in --axes zyx"
        )
    return named


def floats(value: Any) -> tuple[float, ...] | None:
    """A list of numbers as floats, or None for whatever else."""
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in value):
        return None
    return tuple(float(v) for v in value)


def by_axis(
    values: Sequence[float | None], axes: tuple[str, ...], name: str
) -> tuple[float | None, ...]:
    """Values by dimension (all, or the spatial ones alone) as values of x, y and z.

    Raises:
        RequestError: There are neither as many values as dimensions nor three.
    """
    spatial = [a for a in axes if a in SPATIAL]
    if len(values) == len(axes):
        values = [v for v, a in zip(values, axes, strict=True) if a in SPATIAL]
    if len(values) != len(spatial):
        raise RequestError(
            f"{name} states {len(values)} values {tuple(values)} for its dimensions "
            f"({', '.join(axes)}), where one a dimension is needed; correct its metadata, or state "
            "the stored order of all dimensions with axes, as in zyxc"
        )
    return tuple(values[spatial.index(a)] for a in SPATIAL)
