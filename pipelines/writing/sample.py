"""A sample of a volume, on which codecs are tried."""

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.geometry import Box, vec
from volumes.sources import Source
from volumes.units import to_stored
from volumes.writing import VolumeLayout

_BLOCKS = 4
_SIDE = 128
_TRIES = 16


def samples(source: Source, layout: VolumeLayout) -> list[npt.NDArray[Any]]:
    """Blocks of voxels along the diagonal of a source, as they would be stored.

    Blocks are about 128 voxels a side, made of whole chunks of the output, at most four, and such
    that hold something where any of those looked at does.

    Raises:
        RunError: They cannot be read.
    """
    shape = vec(
        min(n, max(1, round(_SIDE / c)) * c)
        for n, c in zip(source.shape, layout.chunk, strict=True)
    )
    found: list[npt.NDArray[Any]] = []
    empty: list[npt.NDArray[Any]] = []
    with contextlib.closing(source.open()) as reader:
        for place in dict.fromkeys(_places(Box((0, 0, 0), source.shape), shape)):
            box = Box.of(place, shape)
            stored = to_stored(reader.read(box), layout.dtype, f"{source.url} in {box}")
            (found if stored.any() else empty).append(stored)
            if len(found) == _BLOCKS:
                break
    return found or empty[:1]


def _places(box: Box, shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Starts of blocks along the diagonal, the middle first."""
    shares = sorted(np.linspace(0, 1, _TRIES + 1), key=lambda share: abs(share - 0.5))
    return [
        vec(a + int(share * (n - s)) for a, n, s in zip(box.start, box.shape, shape, strict=True))
        for share in shares
    ]
