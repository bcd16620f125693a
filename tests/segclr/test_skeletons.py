import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from segclr.skeletons import skeleton_nodes, thin
from tests.support import shared
from volumes import swc

BIG = 2**64 - 1


def path(n, step=10.0):
    position_nm = np.zeros((n, 3))
    position_nm[:, 2] = step * np.arange(n)
    return position_nm, np.arange(-1, n - 1)


def by_recursion(position_nm, parent, spacing_nm):
    """The rule as it is worded, one sample at a time."""
    kept = {}

    def keep(i):
        if i not in kept:
            length, at = 0.0, i
            while parent[at] >= 0:
                length += float(np.linalg.norm(position_nm[at] - position_nm[parent[at]]))
                at = int(parent[at])
                if keep(at):
                    break
            kept[i] = parent[i] < 0 or length >= spacing_nm
        return kept[i]

    return np.array([keep(i) for i in range(len(parent))], bool)


@st.composite
def forests(draw):
    n = draw(st.integers(1, 25))
    parent = np.array([draw(st.integers(-1, i - 1)) for i in range(n)])
    corner = st.integers(0, 20)
    # Steps along one axis have whole lengths, so that no sum depends on the order of its terms.
    position_nm = np.zeros((n, 3))
    position_nm[:, draw(st.integers(0, 2))] = [draw(corner) for _ in range(n)]
    return position_nm, parent


@hypothesis.settings(deadline=None)
@hypothesis.given(forests(), st.integers(1, 60), st.randoms(use_true_random=False))
def test_thinning_follows_the_rule_in_any_order_of_samples(forest, spacing_nm, random):
    position_nm, parent = forest
    kept = thin(position_nm, parent, spacing_nm)
    assert kept.tolist() == by_recursion(position_nm, parent, spacing_nm).tolist()
    order = list(range(len(parent)))
    random.shuffle(order)
    rank = np.argsort(order)
    moved = np.where(parent[order] >= 0, rank[parent[order]], -1)
    assert thin(position_nm[order], moved, spacing_nm).tolist() == kept[order].tolist()


def test_a_sample_that_reaches_the_spacing_is_kept():
    position_nm, parent = path(10)
    assert np.flatnonzero(thin(position_nm, parent, 30.0)).tolist() == [0, 3, 6, 9]
    assert np.flatnonzero(thin(position_nm, parent, 30.1)).tolist() == [0, 4, 8]
    assert thin(position_nm, parent, 10.0).all()
    assert np.flatnonzero(thin(position_nm, parent, 1e6)).tolist() == [0]


def test_the_length_is_walked_along_the_path_and_not_as_the_crow_flies():
    position_nm = np.array([[0, 0, 0], [30, 40, 0], [0, 0, 0], [0, 5, 0]], np.float64)
    assert thin(position_nm, np.array([-1, 0, 1, 2]), 100.0).tolist() == [True, False, True, False]


def test_branches_count_from_their_nearest_kept_ancestor():
    # 0 - 1 - 2 (kept at 20), and from 1 a branch 3 - 4 that counts on from the root.
    position_nm = np.array([[0, 0, 0], [10, 0, 0], [20, 0, 0], [10, 5, 0], [10, 10, 0]], float)
    kept = thin(position_nm, np.array([-1, 0, 1, 1, 3]), 20.0)
    assert kept.tolist() == [True, False, True, False, True]


def test_a_long_path_is_walked_without_recursion():
    position_nm, parent = path(50_000)
    assert int(thin(position_nm, parent, 500.0).sum()) == 1000


@pytest.mark.parametrize("spacing_nm", [0.0, -5.0, float("nan")])
def test_a_spacing_that_is_no_length_is_refused(spacing_nm):
    with pytest.raises(ValueError, match=f"above 0 nm, got {spacing_nm}"):
        thin(*path(3), spacing_nm)


def test_circles_and_positions_that_are_not_finite_are_refused():
    position_nm, _ = path(3)
    with pytest.raises(ValueError, match="the parent of sample 1 leads round in a circle"):
        thin(position_nm, np.array([-1, 2, 1]), 10.0)
    position_nm[1, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        thin(position_nm, np.array([-1, 0, 1]), 10.0)


def test_nodes_carry_segment_and_sample_numbers_exactly():
    position_nm, parent = path(4)
    sample = np.array([BIG, 2**53 + 1, 7, 1], np.uint64)
    every = skeleton_nodes(BIG, sample, position_nm, parent, None)
    assert every.segment_id.tolist() == [BIG] * 4
    assert every.node_id.tolist() == [BIG, 2**53 + 1, 7, 1]
    thinned = skeleton_nodes(BIG, sample, position_nm, parent, 20.0)
    assert thinned == every.take(np.array([0, 2]))
    nothing = skeleton_nodes(1, sample[:0], position_nm[:0], parent[:0], 20.0)
    assert len(nothing) == 0


def test_real_skeletons_thin_to_fewer_nodes_at_each_spacing():
    files = sorted(shared("data", "fib25", "skeletons").glob("*.swc"))[::8]
    left = dict.fromkeys((None, 100.0, 300.0, 1000.0), 0)
    roots = 0
    for file in files:
        skeleton = swc.parse(file.read_bytes(), int(file.stem), file.name)
        roots += int((skeleton.parent < 0).sum())
        for spacing_nm in left:
            left[spacing_nm] += len(skeleton_nodes(*skeleton, spacing_nm))
    assert left[None] > 5 * left[100.0] > 5 * left[300.0] > 5 * left[1000.0] >= 5 * roots > 0
