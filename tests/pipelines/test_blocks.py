"""The shape of partitions, from expected commits, workers and what the storage takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.embed import blocks
from pipelines.embed.blocks import block_for, partitions_needed, writes_a_second
from transforms.work import COMMIT_SECONDS
from volumes.geometry import Box, ChunkGrid

LOCAL, REMOTE = "/data/store", "gs://bucket/store"


def grid(*counts: int) -> ChunkGrid:
    return ChunkGrid(Box((0, 0, 0), tuple(16 * n for n in counts)), (16, 16, 16))


def fullest(over: ChunkGrid, occupied: np.ndarray, block: tuple[int, int, int]) -> tuple[int, int]:
    """Occupied boxes of the fullest partition, and the number of partitions, counted one by one."""
    found: dict[tuple[int, ...], int] = {}
    for index in occupied.tolist():
        where = tuple(c // b for c, b in zip(over.coordinate(index), block, strict=True))
        found[where] = found.get(where, 0) + 1
    return max(found.values()), len(found)


def test_partitions_needed_follow_from_workers_commits_and_writes() -> None:
    # One worker that commits every 5 s asks 0.2 of 1 write a second, of which 0.25 are planned.
    assert partitions_needed(1, 0.1, 1.0) == math.ceil(1 / (COMMIT_SECONDS * 0.25))
    # Slow boxes are committed one by one: 1,000 workers of 100 s a box need 40.
    assert partitions_needed(1000, 100.0, 1.0) == 40
    assert partitions_needed(10_000, 100.0, 1.0) == 400
    assert partitions_needed(8, 0.1, blocks.FILE_WRITES) == 1
    assert (writes_a_second(LOCAL), writes_a_second(REMOTE)) == (100.0, 1.0)
    assert writes_a_second("file:///data/store") == 100.0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((3, 3, 3), (8, 8, 8)),
        ((8, 8, 8), (8, 8, 8)),
        ((64, 64, 64), (16, 8, 8)),
        ((1000, 1000, 1000), (16, 8, 8)),
    ],
)
def test_a_dense_grid_on_a_file_system_gets_full_blocks(
    counts: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    found = block_for(grid(*counts), None, store=LOCAL, workers=2, box_seconds=100.0)
    assert found == expected
    assert math.prod(found) <= blocks.COMMITS


def test_an_object_store_gets_enough_partitions_for_its_workers() -> None:
    over = grid(32, 32, 32)
    found = block_for(over, None, store=REMOTE, workers=1, box_seconds=100.0)
    assert ChunkGrid(over.lattice_domain, found).size >= 40
    quick = block_for(over, None, store=REMOTE, workers=1, box_seconds=1.0)
    assert ChunkGrid(over.lattice_domain, quick).size >= 800
    assert math.prod(quick) < math.prod(found)


def test_sparse_nodes_get_large_blocks_and_clustered_ones_small() -> None:
    over = grid(256, 256, 256)
    rng = np.random.default_rng(0)
    sparse = np.sort(rng.choice(over.size, 3000, replace=False))
    found = block_for(over, sparse, store=LOCAL, workers=2, box_seconds=10.0)
    assert math.prod(found) == 64**3
    corner = np.array(
        [over.index((x, y, z)) for x in range(24) for y in range(24) for z in range(24)]
    )
    clustered = block_for(over, corner, store=LOCAL, workers=2, box_seconds=10.0)
    assert math.prod(clustered) == 1024


@given(
    st.tuples(*(st.integers(1, 20) for _ in range(3))),
    st.integers(0, 2**32),
    st.floats(0.001, 1),
    st.sampled_from([LOCAL, REMOTE]),
    st.floats(0.01, 500),
)
def test_no_partition_sees_too_many_commits(
    counts: tuple[int, int, int], seed: int, share: float, store: str, seconds: float
) -> None:
    over = grid(*counts)
    rng = np.random.default_rng(seed)
    occupied = np.flatnonzero(rng.random(over.size) < share)
    found = block_for(over, occupied, store=store, workers=4, box_seconds=seconds)
    if not len(occupied):
        return
    most, partitions = fullest(over, occupied, found)
    assert most <= blocks.COMMITS
    workers = 4 if store == LOCAL else 1000
    needed = partitions_needed(workers, seconds, writes_a_second(store))
    assert found == (1, 1, 1) or partitions >= needed
