import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation import Outcome, Scene, simulate
from pipelines.embed.blocks import partitions_needed

QUIET = Scene(
    workers=1,
    partitions=1,
    ranges=3,
    range_boxes=20,
    box_seconds=1.0,
    spread=0.0,
    commit_seconds=4.5,
    commit_boxes=64,
    writes_a_second=1.0,
    lead_s=0.3,
    window_s=0.3,
)
CROWD = dataclasses.replace(QUIET, workers=40, ranges=80, spread=0.5)


def boxes_committed(outcome: Outcome) -> list[int]:
    spans = [range(c.first, c.first + c.boxes) for c in outcome.commits]
    return sorted(itertools.chain.from_iterable(spans))


def shortest_interval(outcome: Outcome) -> float:
    """Time between two commits of one database."""
    times: dict[int, list[float]] = {}
    for c in outcome.commits:
        times.setdefault(c.partition, []).append(c.time)
    pairs = itertools.chain.from_iterable(itertools.pairwise(t) for t in times.values())
    return min((b - a for a, b in pairs), default=float("inf"))


scenes = st.builds(
    Scene,
    workers=st.integers(1, 12),
    partitions=st.integers(1, 6),
    ranges=st.integers(1, 15),
    range_boxes=st.integers(1, 9),
    box_seconds=st.floats(0.01, 8),
    spread=st.floats(0, 0.9),
    commit_seconds=st.floats(0, 10),
    commit_boxes=st.integers(1, 8),
    writes_a_second=st.floats(0.2, 20),
    lead_s=st.floats(0, 1),
    window_s=st.floats(0, 1),
    plans=st.booleans(),
    seed=st.integers(0, 5),
)


@settings(max_examples=150, deadline=None)
@given(scenes)
def test_each_box_is_committed_once_and_no_faster_than_a_database_takes(scene: Scene) -> None:
    outcome = simulate(scene)
    boxes = scene.ranges * scene.range_boxes
    assert boxes_committed(outcome) == list(range(boxes))
    assert max(c.boxes for c in outcome.commits) <= scene.commit_boxes
    assert sum(c.boxes == 0 for c in outcome.commits) == (boxes if scene.plans else 0)
    assert shortest_interval(outcome) >= (1 - 1e-9) / scene.writes_a_second
    per_commit = scene.lead_s + scene.window_s
    assert outcome.committing_s == pytest.approx(len(outcome.commits) * per_commit)
    assert outcome.worked_s / boxes == pytest.approx(scene.box_seconds, rel=scene.spread + 1e-9)


def test_a_worker_alone_waits_for_nobody() -> None:
    outcome = simulate(QUIET)
    assert (outcome.waited_s, outcome.conflicts, outcome.refusals) == (0, 0, 0)
    assert outcome.lost == 0
    # Five boxes a commit, four commits a range.
    assert [c.boxes for c in outcome.commits] == [5] * 12
    first = outcome.commits[0].time
    assert [c.time - first for c in outcome.commits] == pytest.approx([5.6 * i for i in range(12)])
    assert outcome.throughput == pytest.approx(60 / (60 + 12 * 0.6))


def test_a_worker_alone_waits_where_it_commits_more_often_than_the_database_takes() -> None:
    often = dataclasses.replace(QUIET, box_seconds=0.1, commit_seconds=0.0)
    outcome = simulate(often)
    assert outcome.refusals > 0
    assert outcome.conflicts == 0
    assert outcome.commits[-1].time - outcome.commits[0].time >= 59


def test_boxes_share_a_commit_up_to_a_number() -> None:
    outcome = simulate(dataclasses.replace(QUIET, commit_seconds=1e6, commit_boxes=8))
    assert [c.boxes for c in outcome.commits] == [8, 8, 4] * 3


def test_two_that_commit_at_once_meet_in_a_conflict() -> None:
    pair = dataclasses.replace(QUIET, workers=2, ranges=2, window_s=4.0, lead_s=0.0)
    outcome = simulate(pair)
    assert outcome.conflicts > 0
    assert outcome.waited_s >= outcome.conflicts * 4.0
    assert boxes_committed(outcome) == list(range(40))


def test_the_same_scene_has_the_same_outcome_and_another_seed_another() -> None:
    assert simulate(CROWD) == simulate(CROWD)
    assert simulate(CROWD) != simulate(dataclasses.replace(CROWD, seed=1))


@pytest.mark.parametrize("box_seconds", [1.0, 20.0])
def test_the_rule_for_partitions_keeps_the_loss_small(box_seconds: float) -> None:
    needed = partitions_needed(200, box_seconds, 1.0)
    scene = dataclasses.replace(
        CROWD,
        workers=200,
        ranges=400,
        partitions=needed,
        range_boxes=32,
        box_seconds=box_seconds,
        commit_seconds=5.0,
    )
    by_rule = simulate(scene)
    fewer = simulate(dataclasses.replace(scene, partitions=needed // 4))
    assert by_rule.lost < 0.05
    assert fewer.lost > 3 * by_rule.lost
    assert fewer.throughput < by_rule.throughput
