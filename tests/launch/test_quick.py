"""What help and a plan load, in a process of their own."""

import importlib.metadata
import json
import pathlib
import subprocess
import sys

import pytest

from launch.cli import main
from launch.flags import JOBS
from tests.launch import place

PROBE = """
import json, sys
from launch.cli import main
status = [main(words) for words in json.loads(sys.argv[1])]
heavy = ("apache_beam", "tensorstore", "tensorflow", "keras", "numpy", "matplotlib")
print(json.dumps([status, [m for m in heavy if m in sys.modules]]))
"""


def probed(*commands: list[str]) -> tuple[str, list[int], list[str]]:
    """Run commands in one process; what they said, their statuses and what was loaded."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        env=place.environment(),
    )
    assert done.stderr == ""
    *said, last = done.stdout.splitlines()
    status, loaded = json.loads(last)
    return "\n".join(said), status, loaded


def test_help_loads_nothing_heavy() -> None:
    helps = [[job, "--help"] for job in JOBS]
    out, status, loaded = probed(["--help"], ["-h"], *helps, ["embed", "--image=x", "-h"])
    assert set(status) == {0}
    assert loaded == []
    assert "usage: segclr-beam export --store URL --output URL [flags]" in out
    for job in JOBS.values():
        assert f"usage: segclr-beam {job.name} " in out
        assert job.line in out
        assert job.example in out


def test_a_plan_with_given_nodes_loads_no_tensorflow(home: pathlib.Path) -> None:
    out, status, loaded = probed([*place.EMBED, "--output=store", "--dry-run"])
    assert status == [0]
    assert "dry run: nothing was written" in out
    assert "apache_beam" in loaded
    assert not {"tensorflow", "keras", "matplotlib"} & set(loaded)


def test_the_module_and_the_command_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=place.environment(),
    )
    assert "usage: segclr-beam JOB [flags]" in done.stdout
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="segclr-beam")
    assert entry.value == "launch.cli:main"


def test_no_job_at_all_is_wrong_and_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(f"  {job} " in err for job in JOBS)


def test_a_reader_that_goes_away_is_no_error(home: pathlib.Path) -> None:
    words = [*place.EMBED, "--output=store", "--dry-run"]
    running = subprocess.Popen(
        [sys.executable, "-m", "launch", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=place.environment(),
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    err = running.stderr.read()
    running.stderr.close()
    assert running.wait() == 1
    assert err == ""
