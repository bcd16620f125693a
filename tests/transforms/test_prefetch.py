"""Calls that run ahead: in order, bounded, and each failure at its own turn."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.prefetch import ReadAhead


def through(depth: int, calls) -> list:
    """All results, as a DoFn takes them."""
    line: ReadAhead = ReadAhead(depth)
    found = []
    for call in calls:
        found += line.put(call)
    return [*found, *line.rest()]


@settings(max_examples=25, deadline=None)
@given(depth=st.integers(0, 4), naps=st.lists(st.sampled_from([0.0, 0.001, 0.004]), max_size=8))
def test_results_come_out_in_the_order_they_went_in(depth: int, naps: list[float]) -> None:
    def call(i: int):
        def run() -> int:
            time.sleep(naps[i])
            return i

        return run

    assert through(depth, [call(i) for i in range(len(naps))]) == list(range(len(naps)))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_so_many_run_at_once_and_no_more(depth: int) -> None:
    lock, running, most = threading.Lock(), [], []

    def call() -> None:
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.02)
        with lock:
            running.pop()

    through(depth, [call] * 6)
    assert max(most) == max(1, depth)


def test_the_next_begin_before_the_first_is_used() -> None:
    line: ReadAhead[str] = ReadAhead(2)
    begun = {name: threading.Event() for name in "abc"}

    def call(name: str):
        def run() -> str:
            begun[name].set()
            return name

        return run

    assert line.put(call("a")) == []
    assert line.put(call("b")) == []
    assert begun["b"].wait(5)
    assert line.put(call("c")) == ["a"]
    # It is at work while "a" is in the caller's hands.
    assert begun["c"].wait(5)
    assert list(line.rest()) == ["b", "c"]


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_failure_is_raised_at_its_turn_and_the_rest_is_dropped(depth: int) -> None:
    line: ReadAhead[int] = ReadAhead(depth)
    found = []

    def fail() -> int:
        raise ValueError("third")

    def use() -> None:
        for call in [lambda: 1, lambda: 2, fail, lambda: 4, lambda: 5]:
            found.extend(line.put(call))
        found.extend(line.rest())

    with pytest.raises(ValueError, match="third"):
        use()
    assert found == [1, 2][: len(found)]
    assert list(line.rest()) == []
    # It can be used again.
    assert through(depth, [lambda: 6]) == [6]


def test_what_has_ended_need_not_be_waited_for() -> None:
    line: ReadAhead[int] = ReadAhead(2)
    go = threading.Event()
    line.put(lambda: 1)
    line.put(lambda: 2 if go.wait(5) else 0)
    deadline = time.monotonic() + 5
    found: list[int] = []
    while not found and time.monotonic() < deadline:
        found += line.ended()
    assert found == [1]
    assert list(line.ended()) == []
    waited = line.waited_s
    go.set()
    assert list(line.rest()) == [2]
    assert line.waited_s > waited


def test_nothing_of_a_result_is_kept() -> None:
    class Voxels:
        alive = 0

        def __init__(self) -> None:
            Voxels.alive += 1

        def __del__(self) -> None:
            Voxels.alive -= 1

    line: ReadAhead[Voxels] = ReadAhead(2)
    most = 0
    for _ in range(6):
        ready = line.put(Voxels)
        while ready:
            ready.pop()
            most = max(most, Voxels.alive)
    assert most <= 2
    for voxels in line.rest():
        del voxels
    assert Voxels.alive == 0


def test_what_is_dropped_does_not_hold_the_caller_up() -> None:
    line: ReadAhead[bool] = ReadAhead(1)
    go = threading.Event()
    line.put(lambda: go.wait(30))
    began = time.monotonic()
    line.drop()
    assert list(line.rest()) == []
    assert time.monotonic() - began < 1
    go.set()
