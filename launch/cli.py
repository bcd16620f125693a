"""The command line: words to a job's flags, errors to messages and exit statuses.

Importing this is quick; what a job needs (Beam, TensorStore, the pipelines) is loaded through one
door, ``_jobs``, when a job is about to be planned. TensorFlow waits still longer, behind
``segclr.runtime``.
"""

import difflib
import importlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from launch import flags
from launch.flags import UsageError

DONE, FAILED, WRONG = 0, 1, 2
"""Exit statuses: done; the run failed or left work undone; the request is wrong."""

_INTERRUPTED = 130


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        flags.top_parser().print_help()
        return DONE if words else WRONG
    asked_json = "--json" in words
    try:
        return _run(words)
    except UsageError as e:
        return _refused(WRONG, str(e), asked_json)
    except SystemExit as e:  # argparse's own --help
        return int(e.code or 0)
    except KeyboardInterrupt:
        return _refused(
            _INTERRUPTED, "interrupted; the same command goes on from what is committed", asked_json
        )


def _run(words: list[str]) -> int:
    job = flags.JOBS.get(words[0])
    if job is None:
        near = difflib.get_close_matches(words[0], flags.JOBS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"there is no job {words[0]!r}{hint} (jobs: {', '.join(flags.JOBS)})")
    parser = flags.job_parser(job)
    given = _with_config(words[1:])
    parsed, left_over = parser.parse_known_args(given)
    door: Any = _jobs()
    beam_words = door.beam_words(left_over, flags.flag_names(parser))
    missing = flags.missing_flags(job, parser, parsed)
    if missing:
        raise UsageError(f"{job.name} needs {', '.join(missing)}; for example:\n  {job.example}")
    command = f"segclr-beam {' '.join(words)}"
    status, message, summary = door.run_job(job.name, parsed, beam_words, command)
    if message:
        return _refused(status, message, parsed.json)
    if parsed.json:
        print(json.dumps(summary), flush=True)
    return DONE


def _jobs() -> Any:
    """The door to everything heavy."""
    return importlib.import_module("launch.jobs")


def _refused(status: int, message: str, as_json: bool) -> int:
    print(f"segclr-beam: {message}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"status": status, "error": message}), flush=True)
    return status


def _with_config(words: list[str]) -> list[str]:
    """The words with the flags of ``--config FILE`` before them, so that the words win."""
    names = [i for i, w in enumerate(words) if w == "--config" or w.startswith("--config=")]
    if not names:
        return words
    last = words[names[-1]]
    if last == "--config" and names[-1] + 1 >= len(words):
        raise UsageError("--config needs a file")
    path = last.partition("=")[2] if "=" in last else words[names[-1] + 1]
    return _config_words(path) + words


def _config_words(path: str) -> list[str]:
    try:
        document = yaml.safe_load(pathlib.Path(path).read_text())
    except OSError as e:
        raise UsageError(f"--config {path}: cannot be read ({e.strerror})") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UsageError(f"--config {path}: not YAML or JSON ({e})") from e
    if not isinstance(document, dict):
        raise UsageError(
            f"--config {path}: must map flags to values, as in `box: [128, 128, 128]`; it holds "
            f"a {type(document).__name__}"
        )
    words = []
    for name, value in document.items():
        flag = "--" + str(name).removeprefix("--").replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            listed = value if isinstance(value, list) else [value]
            words.append(f"{flag}={','.join(str(v) for v in listed)}")
    return words
