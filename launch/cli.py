"""The command line: words to a job's flags, errors to messages and exit statuses.

Importing this is quick; what a job needs (Beam, TensorStore, the pipelines) is loaded through one
door, ``_door``, when a job is about to be planned. So nothing of ``volumes`` is imported here, nor
in ``flags`` and ``config_file``. TensorFlow waits still longer, behind ``segclr.runtime``.
"""

import difflib
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from launch import flags, parsers
from launch.allocator import keep_freed_memory
from launch.config_file import config_words
from launch.parsers import Job, Parser, UsageError

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; the run failed or left work undone; the request is wrong; stopped."""

# Jobs whose units are as large as memory allows.
_WRITERS = ("ingest", "convert", "downsample")

_STOPPED = (
    "interrupted; what is committed stays: run the same command again, which does what is missing"
)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    typed = list(sys.argv[1:] if words is None else words)
    if not typed or typed[0] in ("-h", "--help"):
        flags.top_parser().print_help(sys.stdout if typed else sys.stderr)
        return DONE if typed else WRONG
    given = typed[1:]
    try:
        job = _job(typed[0])
        parser = parsers.job_parser(job)
        if "-h" in given or "--help" in given:
            parser.print_help()
            return DONE
        given = _with_config(parser, parsers.spelled(given, parsers.flag_names(parser)))
        return _run(job, parser, given, typed)
    except BrokenPipeError:  # who read stdout has gone, so nobody is there to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as e:
        return _ended(WRONG, str(e), given)
    except (OSError, MemoryError) as e:
        return _ended(FAILED, f"{type(e).__name__}: {e}", given)
    except KeyboardInterrupt:
        return _ended(INTERRUPTED, _STOPPED, given)


def _run(job: Job, parser: Parser, given: list[str], typed: list[str]) -> int:
    parsed, left_over = parser.parse_known_args(given)
    beam_words = _for_beam(parser, left_over)
    missing = parsers.missing_flags(job, parser, parsed)
    if missing:
        raise UsageError(f"{job.name} needs {', '.join(missing)}; for example:\n  {job.example}")
    if job.name in _WRITERS:
        keep_freed_memory()
    entry = _door(job.module).JOBS[job.name]
    status, message, summary = _door().run_job(job.name, entry, parsed, beam_words, typed)
    if status != DONE:
        return _ended(status, message, given, summary)
    if parsed.json:
        print(json.dumps(summary), flush=True)
    return DONE


def _job(name: str) -> Job:
    job = flags.JOBS.get(name)
    if job is not None:
        return job
    if name.startswith("-"):
        raise UsageError(f"the job comes first, then its flags (jobs: {', '.join(flags.JOBS)})")
    near = difflib.get_close_matches(name, flags.JOBS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"there is no job {name!r}{hint} (jobs: {', '.join(flags.JOBS)})")


def _door(module: str = "launch.jobs") -> Any:
    """The door to everything heavy."""
    collecting = gc.isenabled()
    gc.disable()  # which would walk all modules again and again while they load, and free nothing
    try:
        return importlib.import_module(module)
    finally:
        if collecting:
            gc.enable()


def _for_beam(parser: Parser, left_over: list[str]) -> list[str]:
    """The words that the job's parser left over, which must be Beam's."""
    if not left_over:
        return []
    words: list[str] = _door().beam_words(left_over, parsers.flag_names(parser))
    return words


def _with_config(parser: Parser, words: list[str]) -> list[str]:
    """The words with those of every ``--config FILE`` before them, so that the words win."""
    found: list[str] = []
    for i, word in enumerate(words):
        flag, equals, path = word.partition("=")
        if flag != "--config":
            continue
        if not equals:
            path = (words[i + 1 :] or ["--"])[0]
        if not path or path.startswith("--"):
            raise UsageError("--config needs a file; give a YAML or JSON file of flags")
        from_file = parsers.spelled(config_words(path), parsers.flag_names(parser))
        try:
            _for_beam(parser, parser.parse_known_args(from_file)[1])
        except UsageError as e:
            raise UsageError(f"--config {path}: {e}") from e
        found += from_file
    return found + words


def _ended(
    status: int, message: str, given: list[str], summary: dict[str, Any] | None = None
) -> int:
    """Report an end that is not the wanted one; returns its status."""
    if "://" in message:  # what knows about secrets in URLs is behind the door
        message = _door().without_secrets(message)
    if "--verbose" in given and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"segclr-beam: {message}", file=sys.stderr, flush=True)
    if "--json" in given:
        print(json.dumps({**(summary or {}), "status": status, "error": message}), flush=True)
    return status
