"""An array turned into the frame: dimensions x, y and z, its first voxel where it lies."""

import tensorstore as ts

from volumes.geometry import Box, Vec, vec
from volumes.levels import SPATIAL


def framed(store: ts.TensorStore, axes: tuple[str, ...], origin: Vec) -> ts.TensorStore:
    """The array with dimensions x, y, z alone, its first voxel at ``origin``."""
    for i in reversed(range(len(axes))):
        if axes[i] not in SPATIAL:
            store = store[ts.d[i][store.domain[i].inclusive_min]]
    spatial = [a for a in axes if a in SPATIAL]
    turned = store.transpose([spatial.index(a) for a in SPATIAL])
    return turned[ts.d[0, 1, 2].translate_to[list(origin)].label[list(SPATIAL)]]


def box_in(store: ts.TensorStore) -> Box:
    """The domain of a framed array."""
    return Box(vec(store.domain.inclusive_min), vec(store.domain.exclusive_max))
