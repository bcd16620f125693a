import threading
import time

import pytest

from launch import runner
from launch.engines import Asked
from launch.parsers import UsageError
from volumes.errors import RunError

TRACEBACK = """Traceback (most recent call last):
  File "reading.py", line 294, in _read
ValueError: DATA_LOSS: Digest mismatch

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "boxes.py", line 86, in read_input
volumes.errors.RunError: voxels cannot be read

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "boxes.py", line 88, in read_input
    raise RunError(f"{work}: {e}") from e
volumes.errors.RunError: box 0_0_0: voxels cannot be read; restore them
  or give another box [while running 'Embed/ReadBox']
"""


def test_the_last_of_our_messages_in_a_traceback_is_the_runs() -> None:
    found = runner.reported(TRACEBACK)
    assert type(found) is RunError
    assert str(found) == (
        "box 0_0_0: voxels cannot be read; restore them\n  or give another box. What is committed "
        "stays: the same command goes on from there"
    )


def test_a_message_that_says_how_to_go_on_is_left_alone() -> None:
    found = runner.reported("volumes.errors.RequestError: gone; run the same command again\n")
    assert type(found) is RunError
    assert str(found) == "gone; run the same command again"


def test_an_error_of_another_kind_is_unforeseen_and_told_by_its_last_line() -> None:
    found = runner.reported("Traceback (most recent call last):\n  ...\nTypeError: no such thing\n")
    assert isinstance(found, runner.UnforeseenError)
    assert "a worker failed: TypeError: no such thing; --verbose shows where" in str(found)
    assert "without a word" in str(runner.reported(""))


@pytest.mark.parametrize(
    "text", ["KeyboardInterrupt [while running 'S']", "Trace\nKeyboardInterrupt"]
)
def test_an_interrupt_inside_a_step_is_an_interrupt(text: str) -> None:
    assert isinstance(runner.reported(text), KeyboardInterrupt)


def test_beam_gets_its_own_flags_and_nothing_else() -> None:
    words = ["--job_name=x", "--experiments=a,b", "--streaming"]
    assert runner.split_beam_flags(words, ["--image"]) == words
    with pytest.raises(UsageError, match=r"unknown flag --imag; did you mean --image\?"):
        runner.split_beam_flags([*words, "--imag=3"], ["--image"])


@pytest.mark.parametrize("name", ["DirectRunner", "FnApiRunner", "directrunner"])
@pytest.mark.parametrize(("workers", "mode"), [(1, "in_memory"), (3, "multi_processing")])
def test_direct_runner_means_the_one_in_process(name: str, workers: int, mode: str) -> None:
    options = runner.ready(Asked(name, workers, ("--job_name=x",))).options.get_all_options()
    assert options["runner"] == "FnApiRunner"
    assert options["direct_running_mode"] == mode
    assert options["direct_num_workers"] == workers
    assert options["job_name"] == "x"


def die(code: int) -> None:
    """What Beam's thread does that waits for a worker process."""
    raise RuntimeError(f"Worker subprocess exited with return code {code}")


def worker_dies(code: int) -> None:
    thread = threading.Thread(target=die, args=(code,), name="run_worker")
    thread.start()
    thread.join()


def test_a_dead_worker_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_GRACE_S", 0.05)

    def build(_: object) -> None:
        monkeypatch.setattr(runner.beam.Pipeline, "run", lambda self: waiting())

    def waiting() -> None:
        worker_dies(137)
        time.sleep(30)

    with pytest.raises(RunError, match=r"ended by itself \(signal 9\).*fewer --workers or a small"):
        runner.run(build, Asked("DirectRunner", 2, ()))


def test_a_worker_that_dies_when_all_is_done_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_GRACE_S", 0.2)
    deaths: list[int] = []
    before = threading.excepthook
    with runner._watched(deaths):
        worker_dies(-11)
    assert deaths == [-11]
    assert threading.excepthook is before
    time.sleep(0.4)


def test_a_worker_that_the_user_stopped_is_no_death() -> None:
    deaths: list[int] = []
    with runner._watched(deaths):
        worker_dies(-2)
        worker_dies(130)
    assert deaths == []
