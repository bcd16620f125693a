import io
import threading
import time

import pytest

from launch import progress
from launch.console import Console
from volumes.errors import RunError


@pytest.mark.parametrize(
    ("first", "done", "total", "seconds", "text"),
    [
        (0, 0, 12, 3.0, "0 of 12 boxes, 00:03 gone"),
        (0, 6, 12, 3.0, "6 of 12 boxes, 00:03 gone, 2 boxes/s, 00:03 left"),
        (4, 4, 12, 3.0, "4 of 12 boxes, 00:03 gone"),
        (4, 5, 1000, 10.0, "5 of 1,000 boxes, 00:10 gone, 0.1 boxes/s, 2:45:50 left"),
        (0, 12, 12, 6.0, "12 of 12 boxes, 00:06 gone, 2 boxes/s, 00:00 left"),
        # More than was foreseen, or less than before, makes no negative time.
        (0, 14, 12, 7.0, "14 of 12 boxes, 00:07 gone, 2 boxes/s, 00:00 left"),
        (4, 3, 12, 7.0, "3 of 12 boxes, 00:07 gone"),
        (0, 3, 12, 0.0, "3 of 12 boxes, 00:00 gone"),
    ],
)
def test_a_line_tells_rate_and_time_left(
    first: int, done: int, total: int, seconds: float, text: str
) -> None:
    assert progress.line(first, done, total, "boxes", seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_FIRST_S", 0.01)
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.01)


def wait_for(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about")


def test_lines_are_plain_where_there_is_no_terminal(quick: None) -> None:
    err = io.StringIO()
    looks = iter(range(1, 10_000))
    with progress.shown(lambda: next(looks), 12, "boxes", Console(err)):
        wait_for(lambda: err.getvalue().count("\n") >= 3)
    lines = err.getvalue().splitlines()
    assert lines[0].startswith("2 of 12 boxes, 00:00 gone, ")
    assert "\r" not in err.getvalue()


def test_a_terminal_gets_a_bar(quick: None) -> None:
    err = Terminal()
    with progress.shown(lambda: 3, 12, "boxes", Console(err)):
        wait_for(lambda: "3/12" in err.getvalue())
    assert " boxes/s" in err.getvalue()


def test_quiet_does_not_even_look(quick: None) -> None:
    err = io.StringIO()
    looks: list[int] = []
    with progress.shown(lambda: looks.append(1) or 0, 12, "boxes", Console(err, quiet=True)):
        time.sleep(0.05)
    assert looks == []
    assert err.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("error", [RunError("no list"), ValueError("closed"), OSError(5, "gone")])
def test_a_look_that_fails_ends_the_progress_with_a_line_and_not_the_run(
    quick: None, stream: type[io.StringIO], after: int, error: Exception
) -> None:
    err = stream()
    looks: list[int] = []

    def look() -> int:
        looks.append(1)
        if len(looks) > after:
            raise error
        return 0

    with progress.shown(look, 12, "boxes", Console(err)):
        wait_for(lambda: "progress is not shown" in err.getvalue())
        time.sleep(0.05)
    assert len(looks) == after + 1
    assert f"progress is not shown any more: {error}\n" in err.getvalue()
    assert err.getvalue().count("not shown") == 1


def test_a_look_that_fails_when_the_run_is_over_says_nothing(quick: None) -> None:
    err = io.StringIO()
    over = threading.Event()

    def look() -> int:
        over.wait(5)
        raise RunError("the store is gone")

    with progress.shown(look, 12, "boxes", Console(err)):
        threading.Timer(0.05, over.set).start()
    assert err.getvalue() == ""


def fails() -> None:
    with progress.shown(lambda: 0, 12, "boxes", Console(io.StringIO())):
        raise RunError("it failed")


def test_a_failing_run_passes_through(quick: None) -> None:
    with pytest.raises(RunError, match="it failed"):
        fails()


def test_a_look_that_hangs_does_not_hold_the_run_up(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LAST_S", 0.05)
    free = threading.Event()

    def look() -> int:
        free.wait(5)
        return 0

    started = time.monotonic()
    with progress.shown(look, 12, "boxes", Console(io.StringIO())):
        pass
    assert time.monotonic() - started < 2
    free.set()
