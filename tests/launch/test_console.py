import io
import os
import subprocess

import pytest

from launch import console
from launch.cli import main
from launch.console import Console


def test_what_libraries_write_to_descriptor_2_is_held(capfd: pytest.CaptureFixture[str]) -> None:
    with console.opened(quiet=False, verbose=False) as out:
        os.write(2, b"W0000 a library in C++\n")
        subprocess.run(["sh", "-c", "echo a process >&2"], check=True)
        out.tell("ours")
        assert out.overheard() == ["W0000 a library in C++", "a process"]
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "ours\nafterwards\n"


@pytest.fixture
def no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's level unset, and put back at the end."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "any")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")


def test_verbose_lets_it_through(no_level: None, capfd: pytest.CaptureFixture[str]) -> None:
    with console.opened(quiet=False, verbose=True) as out:
        os.write(2, b"W0000 a library in C++\n")
        assert out.overheard() == []
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert "W0000 a library" in capfd.readouterr().err


def interrupted() -> None:
    with console.opened(quiet=False, verbose=False):
        os.write(2, b"held")
        raise KeyboardInterrupt


def test_descriptor_2_is_given_back_when_the_job_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    os.write(2, b"free")
    assert capfd.readouterr().err == "free"


def test_only_the_end_of_a_long_tale_is_kept() -> None:
    with console.opened(quiet=False, verbose=False) as out:
        for i in range(2000):
            os.write(2, f"line {i}\n".encode())
        heard = out.overheard()
    assert heard[-1] == "line 1999"
    assert 100 < len(heard) < 1000


def test_without_temporary_files_nothing_is_held(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(console.tempfile, "TemporaryFile", refuse)
    with console.opened(quiet=False, verbose=False) as out:
        os.write(2, b"through\n")
        out.tell("ours")
    assert capfd.readouterr().err == "through\nours\n"


def test_secrets_are_taken_out_and_quiet_leaves_out_what_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    err = io.StringIO()
    out = Console(err, quiet=True)
    out.say("http://u:p@h/x?token=t")
    out.tell("a plan")
    out.complain("of http://u:p@h/x?token=t")
    assert capsys.readouterr().out == "http://h/x\n"
    assert err.getvalue() == "of http://h/x\n"


def test_verbose_shows_where_an_error_was_raised(
    no_level: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--store=lost", "--output=new"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["export", "--store=lost", "--output=new", "--verbose"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("segclr-beam: ")
