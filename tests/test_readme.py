"""The README's commands are commands that there are."""

import pathlib
import re
import shlex

import pytest

from launch import flags, parsers

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^segclr-beam .*$", README, re.MULTILINE)


def test_there_are_commands_for_the_whole_way() -> None:
    assert {c.split()[1] for c in COMMANDS} >= {"ingest", "embed", "export"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_job_and_its_flags(command: str) -> None:
    _, name, *words = shlex.split(command, comments=True)
    job = flags.JOBS[name]
    parser = parsers.job_parser(job)
    parsed, unknown = parser.parse_known_args(words)
    assert unknown == []
    assert list(parsers.missing_flags(job, parser, parsed)) == []


def test_every_example_of_the_command_line_is_complete() -> None:
    for job in flags.JOBS.values():
        _, name, *words = shlex.split(job.example)
        parser = parsers.job_parser(job)
        parsed, unknown = parser.parse_known_args(words)
        assert name == job.name
        assert unknown == []
        assert list(parsers.missing_flags(job, parser, parsed)) == []


def test_every_target_and_file_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"TESTS=\"?([\w/.]+)", README) + re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
