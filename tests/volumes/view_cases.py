"""Views over small arrays whose frame and voxels are known, beside what NumPy makes of them."""

import json
from typing import Any

import numpy as np

from tests.volumes import sample_volumes as made
from volumes.geometry import Box, vec
from volumes.opening import open_volume, resolve_volume
from volumes.reading import Part, read_box

SIZE = (8.0, 8.0, 40.0)
SHAPE = (20, 15, 10)
ORIGIN = (5, -6, 7)
DOMAIN = Box.of(ORIGIN, SHAPE)
DATA = made.noise(SHAPE)
IDS = made.noise(SHAPE, "uint64", 1) << np.uint64(54)


def a_zarr(path, data=DATA, origin=ORIGIN, size=SIZE, chunk=(8, 8, 4), **more):
    stated = {"dimension_units": [f"{s} nm" for s in size], "voxel_offset": list(origin)}
    attributes = stated | more
    return made.zarr3(path, data, chunk, names=("x", "y", "z"), attributes=attributes)


def document(of: Any, *steps: dict[str, Any]) -> dict[str, Any]:
    """A view document, its volumes given as paths or JSON."""
    listed = of if isinstance(of, list) else [of]
    inner = [v if isinstance(v, (str, dict)) else str(v) for v in listed]
    return {
        "format": "segclr-beam-view",
        "format_version": 1,
        "of": inner if isinstance(of, list) else inner[0],
        "steps": list(steps),
    }


def view(of: Any, *steps: dict[str, Any]) -> str:
    """A view as a VOLUME."""
    return json.dumps(document(of, *steps))


def resolved(of: Any, *steps: dict[str, Any], kind=None, allow=()):
    return resolve_volume(view(of, *steps), kind=kind, allow_functions=allow)


def read(spec, box=None, **how) -> Part:
    """A box of a volume, all of it unless told otherwise."""
    return read_box(open_volume(spec), box or spec.domain, **{"missing": "error"} | how)


def made_of(of: Any, *steps: dict[str, Any], **how) -> Any:
    """The voxels of a view."""
    return read(resolved(of, *steps, **how)).array


def coarser(data, start, factors, reduce):
    """What a lattice anchored at voxel 0 makes of an array, cell by cell."""
    first = [a // f for a, f in zip(start, factors, strict=True)]
    stops = [a + n for a, n in zip(start, data.shape, strict=True)]
    last = [(b - 1) // f + 1 for b, f in zip(stops, factors, strict=True)]
    out = np.zeros([b - a for a, b in zip(first, last, strict=True)], data.dtype)
    for cell in np.ndindex(out.shape):
        low = [
            max((i + a) * f - o, 0) for i, a, f, o in zip(cell, first, factors, start, strict=True)
        ]
        high = [(i + a + 1) * f - o for i, a, f, o in zip(cell, first, factors, start, strict=True)]
        out[cell] = reduce(data[tuple(map(slice, low, high))])
    return out, vec(first)
