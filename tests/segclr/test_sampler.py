import math
from fractions import Fraction

import h5py
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from segclr import sampler
from segclr.nodes import Nodes
from segclr.sampler import cell_range, cells_box, check_domain, sample_sites
from tests.support import shared
from volumes.geometry import Box, ChunkGrid, voxels_at

BIG = 2**63 + 2**53 + 1
IDS = [0, 1, 2**53, 2**53 + 1, BIG, BIG + 1, 2**64 - 1]


def sites_of_boxes(labels, domain, chunk, anchor, size_nm, spacing_nm):
    """The sites of every box of a grid, each from no more voxels than it needs."""
    grid = ChunkGrid(domain, chunk, anchor)
    parts = []
    for i in range(grid.size):
        core = grid.box(i)
        box = cells_box(core, domain, size_nm, spacing_nm)
        cut = labels[box.slices(domain)]
        sites = sample_sites(cut, box, core, domain, size_nm, spacing_nm)
        voxels = voxels_at(sites.position_nm, size_nm)
        assert all(core.contains(tuple(v)) for v in voxels.tolist())
        assert sites == sites.sorted()
        parts.append(sites)
    return Nodes.concat(parts).sorted()


def by_brute_force(labels, domain, size_nm, spacing_nm):
    """The rule as it is worded, in exact fractions, a voxel at a time: {identity: voxel}."""
    size = [Fraction(str(s)) for s in size_nm]
    spacing = Fraction(str(spacing_nm))
    members = {}
    for local in np.argwhere(labels != 0).tolist():
        voxel = tuple(v + o for v, o in zip(local, domain.start, strict=True))
        cell = tuple(math.floor(v * s / spacing) for v, s in zip(voxel, size, strict=True))
        members.setdefault((int(labels[tuple(local)]), cell), []).append(voxel)
    out = {}
    for (segment_id, cell), voxels in members.items():
        mean = [Fraction(sum(v[a] for v in voxels), len(voxels)) for a in range(3)]

        def rank(v, mean=mean):
            far = sum((s * (x - m)) ** 2 for s, x, m in zip(size, v, mean, strict=True))
            return (far, v[2], v[1], v[0])

        i, j, k = (c + 2**20 for c in cell)
        out[segment_id, i + j * 2**21 + k * 2**42] = min(voxels, key=rank)
    return out


@st.composite
def cases(draw):
    shape = tuple(draw(st.integers(1, 7)) for _ in range(3))
    start = tuple(draw(st.integers(-9, 5)) for _ in range(3))
    size_nm = draw(st.sampled_from([(1.0, 1.0, 1.0), (8.0, 8.0, 33.0), (0.1, 3.3, 0.7)]))
    spacing_nm = max(size_nm) * draw(st.sampled_from([1, 1.5, 2, 3.7, 20]))
    # Few ids in blocks, so that segments span cells, and ties are common.
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    coarse = rng.choice(np.array(IDS, np.uint64), tuple(-(-n // 2) for n in shape))
    labels = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[: shape[0], : shape[1], : shape[2]]
    noisy = rng.random(shape) < draw(st.sampled_from([0.0, 0.3]))
    labels = np.where(noisy, rng.choice(np.array(IDS, np.uint64), shape), labels)
    order = draw(st.sampled_from("CF"))
    return np.asarray(labels, order=order), Box.of(start, shape), size_nm, spacing_nm


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    cases(),
    st.tuples(*[st.integers(1, 8)] * 3),
    st.tuples(*[st.integers(-3, 3)] * 3),
)
def test_the_union_over_any_boxes_is_the_rule_as_worded(case, chunk, anchor):
    labels, domain, size_nm, spacing_nm = case
    expected = by_brute_force(labels, domain, size_nm, spacing_nm)
    sites = sites_of_boxes(labels, domain, chunk, anchor, size_nm, spacing_nm)
    identities = list(zip(sites.segment_id.tolist(), sites.node_id.tolist(), strict=True))
    voxels = [tuple(v) for v in voxels_at(sites.position_nm, size_nm).tolist()]
    assert identities == sorted(expected)
    assert voxels == [expected[i] for i in identities]
    for (segment_id, _), voxel in zip(identities, voxels, strict=True):
        local = tuple(v - o for v, o in zip(voxel, domain.start, strict=True))
        assert int(labels[local]) == segment_id != 0


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.tuples(*[st.integers(-(2**30), 2**30)] * 3),
    st.sampled_from([(0.1, 3.3, 33.0), (10.666666666666666, 8.0, 0.7), (4.01, 1e-3, 1e3)]),
)
def test_a_position_gives_its_voxel_again(voxel, size_nm):
    spacing_nm = 4 * max(size_nm)
    domain = Box.of(voxel, (1, 1, 1))
    hypothesis.assume(max(map(abs, cell_range(domain, size_nm, spacing_nm).start)) < 2**20)
    labels = np.full((1, 1, 1), BIG, np.uint64)
    sites = sample_sites(labels, domain, domain, domain, size_nm, spacing_nm)
    assert voxels_at(sites.position_nm, size_nm).tolist() == [list(voxel)]
    assert sites.position_nm.tolist() == [[v * s for v, s in zip(voxel, size_nm, strict=True)]]


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.integers(-200, 200),
    st.integers(1, 300),
    st.sampled_from([0.1, 0.7, 3.3, 10.0, 33.0]),
    st.sampled_from([1, 1.1, 3, 150]),
)
def test_cells_own_the_voxels_that_the_formula_gives_them(start, length, size, factor):
    spacing_nm = round(size * factor, 6)
    box = Box((start, 0, 0), (start + length, 1, 1))
    cells = cell_range(box, (size, size, size), spacing_nm)
    ratio = Fraction(str(size)) / Fraction(str(spacing_nm))
    assert cells.start[0] == math.floor(start * ratio)
    assert cells.stop[0] == math.floor((start + length - 1) * ratio) + 1
    hull = cells_box(box, box.grown((1000, 1000, 1000)), (size, size, size), spacing_nm)
    owners = [math.floor(v * ratio) for v in range(hull.start[0] - 1, hull.stop[0] + 1)]
    assert owners[0] < cells.start[0] == owners[1]
    assert owners[-2] == cells.stop[0] - 1 < owners[-1]


def test_an_exact_boundary_is_not_lost_to_rounding():
    # In floats 3 * 3.3 / 9.9 is 0.9999999999999998, which would be cell 0.
    assert cell_range(Box((3, 0, 0), (4, 1, 1)), (3.3, 3.3, 3.3), 9.9).start[0] == 1
    assert cell_range(Box((2, 0, 0), (3, 1, 1)), (3.3, 3.3, 3.3), 9.9).start[0] == 0
    hull = cells_box(Box((3, 0, 0), (4, 1, 1)), Box((0, 0, 0), (99, 9, 9)), (3.3, 3.3, 3.3), 9.9)
    assert hull == Box((3, 0, 0), (6, 3, 3))


def test_ties_go_to_the_smallest_z_then_y_then_x():
    domain = Box((0, 0, 0), (4, 4, 4))
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1:3, 1:3, 1:3] = 1
    labels[0, 3, 3] = labels[3, 0, 3] = 2
    labels[0, 0, 0] = labels[3, 0, 0] = 3
    sites = sample_sites(labels, domain, domain, domain, (1.0, 1.0, 1.0), 4.0)
    assert sites.position_nm.tolist() == [[1, 1, 1], [3, 0, 3], [0, 0, 0]]


def test_distance_is_measured_in_nm():
    # The mean is (1, 0, 2/3) voxels, nearer to (0, 0, 0) than to (1, 0, 2) unless x is stretched.
    labels = np.zeros((3, 1, 4), np.uint16)
    labels[0, 0, 0] = labels[2, 0, 0] = labels[1, 0, 2] = 7
    domain = Box((0, 0, 0), (3, 1, 4))
    isotropic = sample_sites(labels, domain, domain, domain, (1.0, 1.0, 1.0), 40.0)
    assert isotropic.position_nm.tolist() == [[0, 0, 0]]
    tall = sample_sites(labels, domain, domain, domain, (10.0, 1.0, 1.0), 40.0)
    assert tall.position_nm.tolist() == [[10, 0, 2]]


def test_a_hollow_segment_gets_a_site_in_its_wall():
    labels = np.ones((5, 5, 5), np.int64)
    labels[1:4, 1:4, 1:4] = 0
    domain = Box((0, 0, 0), (5, 5, 5))
    sites = sample_sites(labels, domain, domain, domain, (1.0, 1.0, 1.0), 5.0)
    assert sites.position_nm.tolist() == [[2, 2, 0]]


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
)
def test_every_integer_type_gives_the_same_sites(dtype):
    domain = Box((-2, 0, 3), (4, 5, 9))
    labels = np.random.default_rng(1).integers(0, 4, domain.shape)
    expected = sample_sites(labels, domain, domain, domain, (1.0, 1.0, 1.0), 3.0)
    got = sample_sites(labels.astype(dtype), domain, domain, domain, (1.0, 1.0, 1.0), 3.0)
    assert len(expected) > 20
    assert got == expected


def test_costs_beyond_64_bits_are_still_exact():
    domain = Box((0, 0, 0), (6, 6, 6))
    labels = np.random.default_rng(2).integers(0, 3, domain.shape).astype(np.uint64) + BIG
    size_nm = (10.666666666666666, 33.3, 4.000000000000001)
    expected = by_brute_force(labels, domain, size_nm, 100.0)
    sites = sites_of_boxes(labels, domain, (4, 4, 4), (0, 0, 0), size_nm, 100.0)
    voxels = [tuple(v) for v in voxels_at(sites.position_nm, size_nm).tolist()]
    assert voxels == [expected[i] for i in sorted(expected)]


def test_node_ids_number_the_cells_of_a_centred_frame():
    labels = np.full((2, 1, 1), 1, np.uint8)
    domain = Box((-1, 0, 5), (1, 1, 6))
    sites = sample_sites(labels, domain, domain, domain, (10.0, 10.0, 10.0), 10.0)
    base = 2**20 * 2**21 + (2**20 + 5) * 2**42
    assert sites.node_id.tolist() == [base + 2**20 - 1, base + 2**20]


def test_volumes_without_segments_have_no_sites():
    domain = Box((0, 0, 0), (4, 4, 4))
    labels = np.zeros(domain.shape, np.uint64)
    assert len(sample_sites(labels, domain, domain, domain, (1.0, 1.0, 1.0), 2.0)) == 0
    nothing = Box((2, 2, 2), (2, 2, 2))
    assert len(sample_sites(labels, domain, nothing, domain, (1.0, 1.0, 1.0), 2.0)) == 0


def test_labels_that_do_not_suit_are_refused():
    domain = Box((0, 0, 0), (9, 9, 9))
    core = Box((0, 0, 0), (4, 4, 4))
    size_nm = (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"labels of \[0:4, 0:4, 0:4\) do not cover \[0:6, 0:6,"):
        sample_sites(np.zeros((4, 4, 4), np.uint8), core, core, domain, size_nm, 3.0)
    with pytest.raises(ValueError, match=r"do not cover .* that touch \[0:4, 0:4, 0:4\) of \[1:9,"):
        sample_sites(
            np.zeros((9, 9, 9), np.uint8), domain, core, Box((1, 1, 1), (9, 9, 9)), size_nm, 3.0
        )
    with pytest.raises(ValueError, match="got float32"):
        sample_sites(np.zeros((9, 9, 9), np.float32), domain, core, domain, size_nm, 3.0)
    with pytest.raises(ValueError, match=r"of shape \(9, 9, 9\), got uint8 of \(9, 9, 8\)"):
        sample_sites(np.zeros((9, 9, 8), np.uint8), domain, core, domain, size_nm, 3.0)
    with pytest.raises(ValueError, match="the labels hold -4"):
        sample_sites(np.full((9, 9, 9), -4, np.int32), domain, core, domain, size_nm, 3.0)


def test_spacings_and_domains_that_cannot_be_sampled_are_refused():
    domain = Box((0, 0, 0), (100, 100, 100))
    check_domain(domain, (8.0, 8.0, 33.0), 33.0)
    with pytest.raises(ValueError, match=r"spacing of 32.5 nm is below the voxel size \(8.0, 8.0,"):
        check_domain(domain, (8.0, 8.0, 33.0), 32.5)
    for spacing_nm in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"a number of nm above 0, got {spacing_nm}"):
            check_domain(domain, (8.0, 8.0, 33.0), spacing_nm)
    check_domain(Box((-(2**20), 0, 0), (2**20, 1, 1)), (1.0, 1.0, 1.0), 1.0)
    for wide in (Box((0, 0, 0), (1, 2**20 + 1, 1)), Box((-(2**20) - 1, 0, 0), (0, 1, 1))):
        with pytest.raises(ValueError, match="cells from -1048576 to 1048575 an axis"):
            check_domain(wide, (1.0, 1.0, 1.0), 1.0)


def test_the_rule_has_a_name_a_version_and_a_default():
    assert (sampler.NAME, sampler.VERSION, sampler.DEFAULT_SPACING_NM) == ("cell-medoid", 1, 1500)


def test_real_tissue_has_the_same_sites_whatever_the_boxes():
    with h5py.File(shared("data", "fib25", "groundtruth.h5")) as file:
        labels = file["stack"][:].T
    domain = Box.of((0, 0, 0), labels.shape)
    size_nm = (10.0, 10.0, 10.0)
    whole = sample_sites(labels, domain, domain, domain, size_nm, 500.0)
    assert len(whole) > 1000
    for chunk in (64, 96, 128):
        got = sites_of_boxes(labels, domain, (chunk,) * 3, (0, 0, 0), size_nm, 500.0)
        assert got.digest() == whole.digest()
        assert got == whole
