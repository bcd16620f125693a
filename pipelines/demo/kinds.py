"""The three kinds of neurites in the sample volume, and what sets each apart.

A *tube* is the index of a neurite; arrays called ``kind`` hold, for each tube, an index into
``KINDS``.
"""

import dataclasses

import numpy as np

from pipelines.demo.canvas import I64


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What sets a kind of neurite apart; lengths in nm, amplitudes in grey levels."""

    name: str
    share: float
    radius_nm: tuple[float, float]
    slope: float
    fine: float
    coarse: float
    mean_grey: float


AXON, DENDRITE, GLIA = range(3)
KINDS = (
    Kind("axon", 0.56, (68.0, 110.0), 1.0, 13.0, 6.0, 131.0),
    Kind("dendrite", 0.18, (150.0, 240.0), 1.0, 6.0, 4.0, 135.0),
    Kind("glia", 0.26, (100.0, 160.0), 0.22, 10.0, 30.0, 133.0),
)


def kinds_of_tubes(neurites: int) -> I64:
    """Kind of each neurite, an index into ``KINDS``: by the shares, at least one of each kind."""
    dendrites = max(1, round(KINDS[DENDRITE].share * neurites))
    glia = max(1, round(KINDS[GLIA].share * neurites))
    return np.repeat([AXON, DENDRITE, GLIA], [neurites - dendrites - glia, dendrites, glia])
