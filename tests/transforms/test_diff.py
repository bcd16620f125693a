import collections
import pathlib
import pickle
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipelines import versioned
from transforms import diff, records
from transforms.records import COUNTS, RECORD
from volumes import store
from volumes.errors import DataError

HUGE = 2**64 - 1

SEGMENTS = st.sampled_from([1, 2, 2**53 + 1, HUGE])
NODES = st.integers(0, 3)


def by_segment(counts: np.ndarray) -> dict[int, tuple[int, int, int]]:
    return {s: (a, r, c) for s, a, r, c in counts.tolist()}


def brute_force(before: list, after: list) -> dict[int, tuple[int, int, int]]:
    """The same by one look at every node: (segment, node, all else) of each row."""
    total = collections.defaultdict(lambda: [0, 0, 0])
    for segment, node in {row[:2] for row in (*before, *after)}:
        mine = [
            collections.Counter(r[2:] for r in rows if r[:2] == (segment, node))
            for rows in (before, after)
        ]
        gone, come = (mine[0] - mine[1]).total(), (mine[1] - mine[0]).total()
        both = min(gone, come)
        for i, n in enumerate((come - both, gone - both, both)):
            total[segment][i] += n
    return {s: tuple(n) for s, n in total.items() if any(n)}


def made(rows: list, net: int) -> np.ndarray:
    return np.array([(*row, 0, net) for row in rows], RECORD)


@given(st.data())
def test_counts_equal_a_look_at_every_row_also_where_rows_repeat(data) -> None:
    row = st.tuples(SEGMENTS, NODES, st.integers(0, 2))
    before, after = (data.draw(st.lists(row, max_size=30)) for _ in range(2))
    both = np.concatenate([made(before, -1), made(after, 1)])
    shuffled = both[data.draw(st.permutations(range(len(both))))]
    assert by_segment(records.counted(shuffled)) == brute_force(before, after)
    # However rows meet on the way, the result is the same.
    middle = len(shuffled) // 2
    met = np.concatenate([records.settled(shuffled[:middle]), records.settled(shuffled[middle:])])
    assert by_segment(records.counted(met)) == brute_force(before, after)


@given(st.lists(st.tuples(SEGMENTS, NODES), max_size=40), st.integers(1, 7), st.integers(0, 2**32))
def test_values_are_spread_without_loss_and_equal_keys_together(keys, over, salt) -> None:
    found = np.array([(*key, salt, i, 1) for i, key in enumerate(keys)], RECORD)
    shards = records.spread((found["segment"], found["node"]), over)
    assert ((shards >= 0) & (shards < over)).all()
    back = [np.frombuffer(b, RECORD) for _, b in records.packed(found, shards)]
    assert sorted(r for b in back for r in b.tolist()) == sorted(found.tolist())
    assert len({(key, int(shard)) for key, shard in zip(keys, shards, strict=True)}) == len(
        set(keys)
    )


def test_the_spread_is_even() -> None:
    ids = np.arange(100_000, dtype=np.uint64)
    sizes = np.bincount(records.spread((ids, ids * np.uint64(0)), 16), minlength=16)
    assert sizes.min() > 0.95 * sizes.mean()
    assert sizes.max() < 1.05 * sizes.mean()


def test_counts_add_up_by_segment() -> None:
    parts = np.array([(HUGE, 1, 0, 2), (1, 5, 0, 0), (HUGE, 1, 3, 0)], COUNTS)
    assert records.summed(parts).tolist() == [(1, 5, 0, 0), (HUGE, 2, 3, 2)]
    assert diff.table_of(records.summed(parts)) == (
        b"segment_id,added,removed,changed\n1,5,0,0\n18446744073709551615,2,3,2\n"
    )


@pytest.mark.parametrize(
    ("output", "parts", "expected"),
    [
        ("/a/b.csv", 1, "/a/b.csv"),
        ("/a/b.csv", 12, "/a/b-00003-of-00012.csv"),
        ("/a.d/b", 12, "/a.d/b-00003-of-00012"),
        ("gs://x/b.tar.csv", 4, "gs://x/b.tar-00003-of-00004.csv"),
    ],
)
def test_a_table_in_parts_has_numbered_names(output: str, parts: int, expected: str) -> None:
    assert diff.part_url(output, 3 if parts > 1 else 0, parts) == expected


def changed(url: str, before: int, after: int) -> dict[int, tuple[int, int, int]]:
    documents = [diff.read_document(url, n) for n in (before, after)]
    found = [r for pair in diff.pairs(*documents, url) for r in diff.compared(pair)]
    return by_segment(records.counted(np.concatenate([np.zeros(0, RECORD), *found])))


BOX = st.sampled_from(["0_0_0", "1_0_0", "2_0_0", "-1_3_0"])
PLACED = st.dictionaries(st.tuples(SEGMENTS, NODES), st.tuples(BOX, st.integers(0, 2)), max_size=10)


def boxes_of(placed: dict) -> dict[str, list]:
    boxes = collections.defaultdict(list)
    for (segment, node), (box, seed) in placed.items():
        boxes[box].append((segment, node, seed))
    return boxes


@settings(max_examples=15)
@given(
    PLACED.filter(bool), st.lists(st.tuples(SEGMENTS, NODES, BOX, st.integers(0, 3)), max_size=6)
)
def test_random_edits_equal_brute_force_from_storage(first: dict, edits: list) -> None:
    second = dict(first)
    for segment, node, box, seed in edits:
        second[segment, node] = (box, seed)
        if seed == 3:
            del second[segment, node]
    with tempfile.TemporaryDirectory() as folder:
        generation = versioned.generation_of(pathlib.Path(folder))
        numbers = [versioned.publish(generation, boxes_of(p)) for p in (first, second)]
        found = changed(generation.store, *numbers)
        back = changed(generation.store, *reversed(numbers))
    rows = [[(*key, *value) for key, value in placed.items()] for placed in (first, second)]
    assert found == brute_force(*rows)
    assert back == brute_force(*reversed(rows))


def test_a_moved_node_is_changed_wherever_it_went(tmp_path: pathlib.Path) -> None:
    generation = versioned.generation_of(tmp_path)
    stays = [(5, 1, 1), (5, 2, 2)]
    # The row is the same, and only its box is another one: of the same and of another partition.
    for box in ("1_0_0", "9_0_0"):
        one = versioned.publish(generation, {"0_0_0": [*stays, (7, 3, 3)]})
        two = versioned.publish(generation, {"0_0_0": stays, box: [(7, 3, 3)]})
        assert changed(generation.store, one, two) == {7: (0, 0, 1)}


@pytest.mark.parametrize("field", ["position_nm", "embedding", "mask_voxels", "crop_digest"])
def test_anything_of_a_row_counts(field: str) -> None:
    rows = versioned.rows_of([(1, 1, 1), (1, 2, 2)])
    before = records.records_of(rows, "0_0_0", -1)
    array = getattr(rows, field).copy()
    array[1] += 1
    after = records.records_of(type(rows)(**(rows.arrays() | {field: array})), "0_0_0", 1)
    assert records.counted(np.concatenate([before, after])).tolist() == [(1, 0, 0, 1)]


def test_two_generations_are_compared_whole(tmp_path: pathlib.Path) -> None:
    boxes = {"0_0_0": [(1, 1, 1), (2, 2, 2)], "3_0_0": [(1, 3, 3)]}
    first = versioned.generation_of(tmp_path)
    one = versioned.publish(first, boxes)
    wider = versioned.generation_of(tmp_path, "2", width=5)
    two = versioned.publish(wider, {"0_0_0": [(1, 1, 1)], "3_0_0": [(1, 3, 3), (9, 9, 9)]})
    assert changed(first.store, one, two) == {1: (0, 0, 2), 2: (0, 1, 0), 9: (1, 0, 0)}
    # Boxes of another lattice say nothing of a node, so a row that is the same is the same.
    again = versioned.generation_of(tmp_path, "3", lattice=(4, 4, 4))
    three = versioned.publish(again, {"7_7_7": [(1, 1, 1), (2, 2, 2)], "0_0_1": [(1, 3, 3)]})
    assert changed(first.store, one, three) == {}


def test_what_is_recorded_as_equal_is_not_read(tmp_path: pathlib.Path, monkeypatch) -> None:
    generation = versioned.generation_of(tmp_path)
    boxes = {"0_0_0": [(1, 1, 1)], "1_0_0": [(2, 2, 2)], "9_0_0": [(3, 3, 3)]}
    one = versioned.publish(generation, boxes)
    two = versioned.publish(generation, boxes | {"1_0_0": [(2, 2, 5)]})
    documents = [diff.read_document(generation.store, n) for n in (one, two)]
    (pair,) = diff.pairs(*documents, generation.store)
    assert (pair.before.name, pair.after.name) == ("0_0_0", "0_0_0")
    read = []
    rows_of = diff.partition.read_rows
    monkeypatch.setattr(
        diff.partition,
        "read_rows",
        lambda part, local, at: read.append((local, at)) or rows_of(part, local, at),
    )
    found = list(diff.compared(pair))
    assert [f.tolist()[0][:2] for f in found] == [(2, 2)]
    assert read == [(1, pair.before.at), (1, pair.after.at)]
    assert pickle.loads(pickle.dumps(pair)) == pair


def test_rows_that_are_lost_are_told_and_not_counted_as_removed(
    tmp_path: pathlib.Path, monkeypatch
) -> None:
    generation = versioned.generation_of(tmp_path)
    one = versioned.publish(generation, {"0_0_0": [(1, 1, 1)]})
    two = versioned.publish(generation, {"0_0_0": [(1, 1, 2)]})
    monkeypatch.setattr(diff.partition, "read_rows", lambda part, local, at: versioned.rows_of([]))
    with pytest.raises(DataError, match="box 0_0_0 of .* has 0 rows .* receipt says 1: the store"):
        changed(generation.store, one, two)
    with pytest.raises(DataError, match="version 9 of .* was removed while it was compared"):
        diff.read_document(generation.store, 9)
    assert store.version_numbers(generation.store) == [one, two]
