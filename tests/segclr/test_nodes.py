import hashlib
import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from segclr.nodes import Nodes, reject_in_box, reject_unplaced
from volumes.geometry import Box

BIG = 2**63 + 2**53 + 1  # a float64 holds neither this nor its neighbours


def nodes_of(rows):
    ids = [(r[0], r[1]) for r in rows]
    return Nodes(
        np.array([i for i, _ in ids], np.uint64),
        np.array([i for _, i in ids], np.uint64),
        np.array([r[2:] for r in rows], np.float64).reshape(-1, 3),
    )


ids = st.sampled_from([0, 1, 2, 2**53 + 1, BIG, BIG + 1, 2**64 - 1])
coordinates = st.sampled_from([0.0, -0.0, 1.5, -3.0, np.nan, np.inf, 1e300])
tables = st.lists(st.tuples(ids, ids, coordinates, coordinates, coordinates), max_size=12)


@hypothesis.settings(deadline=None)
@hypothesis.given(tables, st.randoms(use_true_random=False))
def test_order_digests_and_rejections_do_not_depend_on_arrival(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = nodes_of(rows), nodes_of(shuffled)
    assert one.sorted() == other.sorted()
    assert one.identity_digest() == other.identity_digest()
    assert one.digest() == other.digest()
    kept, counts = reject_in_box(one)
    assert (kept, counts) == reject_in_box(other)
    assert len(kept) + sum(counts.values()) == len(rows)
    identities = list(zip(kept.segment_id.tolist(), kept.node_id.tolist(), strict=True))
    assert identities == sorted({(s, n) for s, n, *_ in rows if s != 0})


@hypothesis.settings(deadline=None)
@hypothesis.given(tables)
def test_a_pickle_holds_the_same_bits(rows):
    nodes = nodes_of(rows)
    again = pickle.loads(pickle.dumps(nodes))
    assert again == nodes
    assert again.position_nm.tobytes() == nodes.position_nm.tobytes()


def test_a_pickle_takes_40_bytes_a_node_also_of_a_view():
    many = nodes_of([(BIG, n, n, 0, 0) for n in range(10_000)])
    few = many.take(slice(0, 100))
    assert len(pickle.dumps(few)) < 100 * 40 + 100
    assert pickle.dumps(few) == pickle.dumps(pickle.loads(pickle.dumps(few)))


def test_digests_are_what_they_are_said_to_be():
    nodes = nodes_of([(BIG, 7, 1.0, 2.0, 3.0), (5, BIG, 4.0, 5.0, 6.0)])
    little = (5).to_bytes(8, "little") + BIG.to_bytes(8, "little")
    little += BIG.to_bytes(8, "little") + (7).to_bytes(8, "little")
    assert nodes.identity_digest() == hashlib.sha256(little).hexdigest()
    moved = nodes_of([(BIG, 7, 1.0, 2.0, 3.5), (5, BIG, 4.0, 5.0, 6.0)])
    assert moved.identity_digest() == nodes.identity_digest()
    assert moved.digest() != nodes.digest()
    neighbour = nodes_of([(BIG + 1, 7, 1.0, 2.0, 3.0), (5, BIG, 4.0, 5.0, 6.0)])
    assert neighbour.identity_digest() != nodes.identity_digest()


def test_signs_of_zero_and_nan_do_not_reach_the_digest():
    one = nodes_of([(1, 1, 0.0, np.nan, 0.0), (1, 1, -0.0, np.nan, 1.0)])
    other = nodes_of([(1, 1, 0.0, -np.nan, 1.0), (1, 1, -0.0, np.nan, -0.0)])
    assert one.digest() == other.digest()


def test_concat_take_and_empty():
    nodes = nodes_of([(BIG, 1, 1, 2, 3), (2, 2, 4, 5, 6), (3, 3, 7, 8, 9)])
    assert len(Nodes.empty()) == 0
    assert Nodes.concat([]) == Nodes.empty()
    assert Nodes.concat([nodes.take(slice(0, 1)), Nodes.empty(), nodes.take(slice(1, 3))]) == nodes
    assert nodes.take(np.array([2, 0])).segment_id.tolist() == [3, BIG]
    assert nodes != nodes.take(np.array([0, 2, 1]))
    assert nodes != "nodes"


def test_arrays_are_read_only_and_the_callers_stays_writable():
    ids_given = np.array([1], np.uint64)
    nodes = Nodes(ids_given, ids_given, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="read-only"):
        nodes.segment_id[0] = 2
    ids_given[0] = 2


@pytest.mark.parametrize(
    ("segment_id", "position_nm", "message"),
    [
        (np.zeros(2, np.int64), np.zeros((2, 3)), "segment_id must be uint64 .* got int64"),
        (np.zeros(2, np.float64), np.zeros((2, 3)), "segment_id must be uint64 .* got float64"),
        (np.zeros(2, np.uint64), np.zeros((2, 3), np.float32), "position_nm .* got float32"),
        (np.zeros(2, np.uint64), np.zeros((3, 3)), r"shape \(2, 3\), got float64 of \(3, 3\)"),
        (np.zeros((2, 1), np.uint64), np.zeros((2, 3)), r"shape \(2,\), got uint64 of \(2, 1\)"),
    ],
)
def test_nothing_is_converted(segment_id, position_nm, message):
    with pytest.raises(ValueError, match=message):
        Nodes(segment_id, np.zeros(2, np.uint64), position_nm)


def test_unplaced_nodes_are_counted_by_reason():
    rows = [
        (BIG, 1, 25.0, 25.0, 25.0),
        (BIG, 2, np.nan, 25.0, 25.0),
        (BIG, 3, np.inf, np.nan, 25.0),
        (BIG, 4, np.inf, 25.0, 25.0),
        (BIG, 5, -np.inf, 25.0, 25.0),
        (BIG, 6, 1e300, 25.0, 25.0),
        (0, 7, 10.0, 10.0, 10.0),
        (BIG, 8, 50.0, 25.0, 25.0),
        (BIG, 9, 49.99, 25.0, 49.8),
        (BIG, 10, 9.9, 25.0, 25.0),
        (BIG, 11, 9.8, 25.0, 25.0),
    ]
    placed, voxels, counts = reject_unplaced(
        nodes_of(rows), Box((1, 1, 1), (5, 5, 5)), (10.0, 10.0, 10.0)
    )
    # 49.99 nm is voxel 5 by the rule (within 1/64 of it); 9.9 nm is voxel 1, 9.8 nm voxel 0.
    assert placed.node_id.tolist() == [1, 7, 10]
    assert voxels.tolist() == [[2, 2, 2], [1, 1, 1], [1, 2, 2]]
    assert voxels.dtype == np.int64
    assert counts == {"nan": 2, "outside": 6}


def test_the_domain_may_begin_below_zero_and_rows_keep_their_order():
    rows = [(9, 1, -0.1, 0.0, 0.0), (3, 2, -20.0, 0.0, 0.0), (5, 3, -20.2, 0.0, 0.0)]
    placed, voxels, counts = reject_unplaced(
        nodes_of(rows), Box((-2, 0, 0), (0, 1, 1)), (10.0, 10.0, 10.0)
    )
    # -0.1 nm is voxel 0 by the rule, outside; -20.2 nm is voxel -3.
    assert placed.node_id.tolist() == [2]
    assert voxels.tolist() == [[-2, 0, 0]]
    assert counts == {"nan": 0, "outside": 2}


def test_background_and_duplicates_are_counted_in_the_box():
    rows = [
        (BIG, 1, 5.0, 0.0, 0.0),
        (0, 1, 1.0, 0.0, 0.0),
        (BIG, 1, 4.0, 9.0, 0.0),
        (BIG + 1, 1, 3.0, 0.0, 0.0),
        (0, 1, 1.0, 0.0, 0.0),
        (BIG, 1, 4.0, 8.0, 7.0),
    ]
    kept, counts = reject_in_box(nodes_of(rows))
    assert counts == {"background": 2, "duplicate": 2}
    assert kept == nodes_of([rows[5], rows[3]])
    assert reject_in_box(Nodes.empty()) == (Nodes.empty(), {"background": 0, "duplicate": 0})
