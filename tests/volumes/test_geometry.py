import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volumes.geometry import Box, ChunkGrid, same_voxel_size, vec, voxels_at

small = st.integers(-12, 12)
corner = st.tuples(small, small, small)
shape = st.tuples(*[st.integers(0, 7)] * 3)
chunk = st.tuples(*[st.integers(1, 5)] * 3)
boxes = st.builds(Box.of, corner, shape)
grids = st.builds(ChunkGrid, boxes, chunk, corner)


def voxels_of(box: Box) -> set[tuple[int, int, int]]:
    return set(itertools.product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


@given(boxes, boxes)
def test_boxes_are_sets_of_voxels(a: Box, b: Box) -> None:
    assert a.size == len(voxels_of(a))
    assert voxels_of(a.intersection(b)) == voxels_of(a) & voxels_of(b)
    assert a.encloses(b) == (voxels_of(b) <= voxels_of(a)) or b.size == 0
    assert voxels_of(a) | voxels_of(b) <= voxels_of(a.hull(b))
    assert all(a.contains(v) for v in voxels_of(a))


@given(boxes, boxes, corner)
def test_slices_pick_a_box_out_of_an_array(a: Box, b: Box, offset) -> None:
    part = a.intersection(b)
    array = np.zeros(a.shape)
    if part.size:
        array[part.slices(a)] = 1
    assert array.sum() == part.size
    assert a.translated(offset).translated(vec(-o for o in offset)) == a


def test_grown_adds_on_each_side() -> None:
    assert Box((0, 0, 0), (2, 3, 4)).grown((1, 2, 3)) == Box((-1, -2, -3), (3, 5, 7))
    assert Box((0, 0, 0), (2, 2, 2)).grown((0, 0, 0), (5, 6, 7)).stop == (7, 8, 9)


@given(grids)
def test_cells_are_disjoint_cover_the_domain_and_lie_on_the_lattice(grid: ChunkGrid) -> None:
    seen: set[tuple[int, int, int]] = set()
    for i in range(grid.size):
        box = grid.box(i)
        assert box.size > 0
        assert not seen & voxels_of(box)
        seen |= voxels_of(box)
        assert grid.cell(grid.coordinate(i)).encloses(box)
        start = grid.cell(grid.coordinate(i)).start
        steps = zip(start, grid.anchor, grid.chunk, strict=True)
        assert all((s - a) % c == 0 for s, a, c in steps)
    assert seen == voxels_of(grid.domain)


@given(grids, boxes)
def test_an_index_round_trips_and_finds_what_meets_a_box(grid: ChunkGrid, other: Box) -> None:
    for i in range(grid.size):
        assert grid.index(grid.coordinate(i)) == i
        assert grid.index_at(grid.box(i).start) == i
    meeting = [i for i in range(grid.size) if grid.box(i).intersection(other).size]
    assert list(grid.meeting(other)) == meeting
    assert grid.count_meeting(other) == len(meeting)
    assert grid.lattice_domain.size == grid.size


@given(grids)
def test_many_voxels_find_their_cells_at_once(grid: ChunkGrid) -> None:
    voxels = sorted(voxels_of(grid.domain))
    if voxels:
        found = grid.indices_at(np.array(voxels, dtype=np.int64))
        assert found.tolist() == [grid.index_at(v) for v in voxels]


@given(grids, st.tuples(*[st.integers(0, 9)] * 3))
def test_a_growing_domain_renames_no_cell(grid: ChunkGrid, more) -> None:
    grown = ChunkGrid(grid.domain.grown((0, 0, 0), more), grid.chunk, grid.anchor)
    for i in range(grid.size):
        assert grown.name(grown.index(grid.coordinate(i))) == grid.name(i)


def test_a_huge_domain_costs_nothing() -> None:
    side = 10**15
    grid = ChunkGrid(Box((0, 0, 0), (side, side, side)), (128, 128, 128))
    last = grid.size - 1
    assert grid.size == (-(-side // 128)) ** 3
    assert grid.box(last).stop == (side, side, side)
    assert grid.index(grid.coordinate(last)) == last
    assert grid.count_meeting(Box((0, 0, 0), (side, 1, 1))) == -(-side // 128)
    with pytest.raises(OverflowError, match="no 64-bit index"):
        ChunkGrid(grid.domain, (1, 1, 1)).indices_at(np.zeros((1, 3), np.int64))


@given(grids)
def test_grids_and_boxes_travel(grid: ChunkGrid) -> None:
    assert ChunkGrid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert hash(Box.from_json(grid.domain.to_json())) == hash(grid.domain)


def test_what_is_no_box_or_grid_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"start <= stop on each axis, got \(1, 0, 0\), \(0, 1, 1\)"
    ):
        Box((1, 0, 0), (0, 1, 1))
    with pytest.raises(ValueError, match=r"at least one voxel on each axis, got \(1, 0, 1\)"):
        ChunkGrid(Box((0, 0, 0), (1, 1, 1)), (1, 0, 1))
    with pytest.raises(ValueError, match=r"three integers .* got \(1.5, 2, 3\)"):
        vec((1.5, 2, 3))
    grid = ChunkGrid(Box((0, 0, 0), (4, 4, 4)), (2, 2, 2))
    with pytest.raises(IndexError, match=r"cell 8 is not in range\(0, 8\)"):
        grid.coordinate(8)
    with pytest.raises(IndexError, match=r"voxel \(4, 0, 0\) is outside the domain"):
        grid.index_at((4, 0, 0))


@pytest.mark.parametrize(
    ("position", "voxel"),
    [
        (0.0, 0),
        (7.99, 1),  # 0.99875 voxels: within 1/64 of voxel 1
        (7.8, 0),
        (8.0, 1),
        (8.1, 1),
        (8.2, 1),
        (-0.1, 0),
        (-0.2, -1),
        (15.8, 1),
        (1e300, 2**62),
    ],
)
def test_a_position_falls_into_its_voxel(position: float, voxel: int) -> None:
    assert voxels_at(np.array([[position, 0, 0]]), (8.0, 8.0, 8.0))[0, 0] == voxel


@given(
    st.lists(st.integers(-(10**6), 10**6), min_size=3, max_size=3),
    st.sampled_from([0.1, 3.3, 4.0, 9.3, 32.0, 33.0, 1000 / 3]),
)
def test_a_voxels_own_coordinate_is_that_voxel(voxel: list[int], size: float) -> None:
    position = np.array([voxel], dtype=np.float64) * size
    assert voxels_at(position, (size, size, size)).tolist() == [voxel]


def test_voxel_sizes_are_equal_but_for_rounding() -> None:
    assert same_voxel_size((0.1 + 0.2, 8, 8), (0.3, 8, 8))
    assert not same_voxel_size((8, 8, 8), (8, 8, 8.001))
