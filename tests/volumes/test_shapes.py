"""Shapes of units: counted against brute force, within their limit, of whole write chunks."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volumes.errors import RequestError
from volumes.geometry import vec
from volumes.shapes import choose_unit, decoded_along, refuse_memory, times_read

_sides = st.integers(1, 40)
_shapes = st.tuples(_sides, _sides, _sides)


def _counted(extent, unit, piece, offset=0):
    """Voxels of all whole pieces, cut at the extent, that each unit meets: one by one."""
    voxels = range(extent)
    pieces = [(v - offset) // piece for v in voxels]
    total = 0
    for start in range(0, extent, unit):
        met = set(pieces[start : start + unit])
        total += sum(p in met for p in pieces)
    return total


@given(_sides, _sides, _sides, st.integers(-50, 50))
def test_voxels_decoded_are_those_counted_one_by_one(extent, unit, piece, offset):
    found = decoded_along(extent, unit, piece, offset)
    assert found == pytest.approx(_counted(extent, unit, piece, offset), rel=1e-12)
    assert found >= extent
    assert found == decoded_along(extent, unit, piece, offset + piece)


@given(_shapes, _shapes, _shapes, st.tuples(*[st.integers(-9, 9)] * 3))
def test_times_read_is_the_product_over_the_axes(shape, unit, piece, offset):
    axes = zip(shape, unit, piece, offset, strict=True)
    counted = math.prod(_counted(n, u, p, o) for n, u, p, o in axes)
    assert times_read(shape, unit, piece, offset) == pytest.approx(counted / math.prod(shape))


@given(_shapes, _shapes)
def test_units_of_whole_pieces_read_everything_once(shape, piece):
    assert times_read(shape, vec(2 * p for p in piece), piece) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("extent", "unit", "piece", "times"),
    [
        (10**9, 256, 10**9, -(-(10**9) // 256)),
        (10**12, 64, 64, 1.0),
        (10**12, 64, 96, 2.0),  # of three units the second lies across two pieces
        (10**15, 10**15, 7, 1.0),
    ],
)
def test_a_huge_extent_lists_nothing(extent, unit, piece, times):
    began = time.monotonic()
    found = decoded_along(extent, unit, piece)
    assert time.monotonic() - began < 1
    assert found / extent == pytest.approx(times, rel=1e-3)


def test_a_unit_of_a_huge_volume_is_chosen_at_once():
    n = 10**9
    began = time.monotonic()
    unit = choose_unit((n, n, n), (64, 64, 64), (128, 128, 128), 10**9, 64 << 20)
    assert time.monotonic() - began < 5
    assert times_read((n, n, n), unit, (128, 128, 128)) == pytest.approx(1.0, rel=1e-3)
    assert (64 << 20) / 4 <= math.prod(unit) <= 4 * (64 << 20)


@given(
    shape=_shapes,
    write=st.tuples(*[st.integers(1, 9)] * 3),
    piece=_shapes,
    limit=st.integers(1, 100_000),
    target=st.integers(1, 100_000),
    offset=st.tuples(*[st.integers(-9, 9)] * 3),
)
def test_a_unit_is_whole_write_chunks_within_the_limit(shape, write, piece, limit, target, offset):
    unit = choose_unit(shape, write, piece, limit, target, offset)
    assert all(u % w == 0 for u, w in zip(unit, write, strict=True))
    assert math.prod(unit) <= limit or unit == write
    covering = [-(-n // w) * w for n, w in zip(shape, write, strict=True)]
    assert all(u <= c for u, c in zip(unit, covering, strict=True))
    if math.prod(write) <= limit:  # no single chunk reads less often
        least = times_read(shape, write, piece, offset)
        assert times_read(shape, unit, piece, offset) <= 1.01 * least
    if math.prod(covering) <= limit:
        assert times_read(shape, unit, piece, offset) <= 1.01


@pytest.mark.parametrize(
    ("shape", "write", "piece", "limit", "target", "unit"),
    [
        # Sections: as wide as the volume, one shard deep, where that fits.
        ((500, 400, 90), (64, 64, 30), (500, 400, 1), 512 * 448 * 30, 1, (512, 448, 30)),
        # Where it does not, they are read again for each part of them, so parts are large.
        ((512, 512, 64), (64, 64, 64), (512, 512, 1), 512 * 256 * 64, 1, (512, 256, 64)),
        # Chunks that fit into one another: what is nearest to the target.
        ((512, 512, 512), (64, 64, 64), (64, 64, 64), 10**9, 128**3, (128, 128, 128)),
        # Chunks that do not: their common multiple reads each once.
        ((512, 512, 512), (64, 512, 512), (96, 512, 512), 10**9, 1, (192, 512, 512)),
        # Nothing fits.
        ((512, 512, 512), (64, 64, 64), (1, 1, 1), 10, 10, (64, 64, 64)),
    ],
)
def test_the_unit_that_is_chosen(shape, write, piece, limit, target, unit):
    found = choose_unit(shape, write, piece, limit, target)
    if math.prod(write) > limit:
        assert found == unit == write
        return
    assert times_read(shape, found, piece) == pytest.approx(times_read(shape, unit, piece))
    assert math.prod(found) == math.prod(unit)


def test_an_offset_of_the_pieces_moves_nothing_but_the_cost():
    shape, write, piece = (256, 1, 1), (32, 1, 1), (64, 1, 1)
    assert times_read(shape, (64, 1, 1), piece) == 1
    # Pieces begin at 32, so that each unit of 64 meets two of them.
    assert times_read(shape, (64, 1, 1), piece, (32, 0, 0)) == pytest.approx(448 / 256)
    assert choose_unit(shape, write, piece, 64, 64) == (64, 1, 1)


def test_the_refusal_of_a_budget_has_the_figures():
    with pytest.raises(
        RequestError,
        match=r"budget of 39 MB does not hold one shard of \(100, 100, 100\) in work, which takes "
        r"40 MB \(3 of them to decode the source\); give --memory-mb 40 or more, or a smaller --sh",
    ):
        refuse_memory(40 * 10**6, 39 * 10**6, 3 * 10**6, (100, 100, 100))
    refuse_memory(40 * 10**6, 40 * 10**6, 3 * 10**6, (100, 100, 100))
    with pytest.raises(RequestError, match="give --memory-mb 41 or more"):
        refuse_memory(40 * 10**6 + 1, 40 * 10**6, 0, (1, 1, 1))


def test_counting_does_not_round_large_numbers():
    extent = 2**60
    assert decoded_along(extent, extent, 3) == float(extent)
    assert np.isfinite(decoded_along(2**62, 64, 64))
