import pytest

from launch import runner
from launch.engines import Asked, engine_of
from launch.parsers import UsageError


@pytest.mark.parametrize("name", ["DirectRunner", "FnApiRunner", "direct"])
def test_local_engine_by_its_names(name: str) -> None:
    assert engine_of(name).local


def test_a_runner_that_nobody_knows_is_refused_by_beam() -> None:
    asked = Asked("NoSuchRunner", 1, ())
    assert not engine_of("NoSuchRunner").local
    with pytest.raises(UsageError, match="--runner NoSuchRunner cannot be used: .*leave --runner"):
        runner.ready(asked)


def test_local_processes_of_an_engine_elsewhere_are_refused() -> None:
    with pytest.raises(UsageError, match="--workers 2 is a number of processes on this machine"):
        runner.ready(Asked("DataflowRunner", 2, ()))
