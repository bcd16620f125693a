"""From flags to a Beam pipeline that has run: the only place that sees a runner."""

import argparse
import difflib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from launch.flags import UsageError
from volumes.errors import RequestError, RunError

# Beam's ``DirectRunner`` would look for, and download, another engine; ours is the one in process.
_IN_PROCESS = "FnApiRunner"
_LOCAL = ("DirectRunner", _IN_PROCESS)

# A worker process reports an exception as the text of its traceback.
_REPORTED = re.compile(r"(?:RunError|RequestError): (.*?)(?: \[while running .*?\])?$", re.DOTALL)
_RUNNING = re.compile(r" \[while running '[^']*'\]")

Counts = dict[str, int]


def split_beam_flags(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Check that Beam knows the flags that a job does not.

    Args:
        words: What the job's parser left over.
        known: The job's own flags, to suggest one for a misspelt flag.

    Returns:
        The words, for ``PipelineOptions``.

    Raises:
        UsageError: Beam does not know one of them; ``unknown`` says which and what is nearest.
    """
    parser = _beam_parser()
    _, unknown = parser.parse_known_args(list(words))
    if unknown:
        theirs = [s for a in parser._actions for s in a.option_strings if s.startswith("--")]
        raise UsageError(unknown_flag(unknown[0], known, theirs))
    return list(words)


def unknown_flag(word: str, known: Sequence[str], theirs: Sequence[str]) -> str:
    """The message for a word of the command line that nobody knows."""
    name = word.split("=", 1)[0]
    if not name.startswith("-"):
        return f"{word!r} is not a flag; every value follows its flag, as in --output PATH"
    near = nearest(name, known) or nearest(name, theirs)
    hint = f"; did you mean {near}?" if near else ""
    return f"unknown flag {name}{hint} (neither this job nor Beam has it)"


def run(
    build: Callable[[beam.Pipeline], Any], runner: str, workers: int, words: list[str]
) -> Counts:
    """Build a pipeline and run it to its end.

    Args:
        build: Puts the job's graph into a pipeline.
        runner: Beam runner; ``DirectRunner`` is Beam's in-process Python runner.
        workers: Local processes.
        words: Flags for Beam.

    Returns:
        Beam's counters by name, summed over steps; distributions as ``name_sum``.

    Raises:
        RunError: The run failed; the message is that of the step that failed.
    """
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    pipeline = beam.Pipeline(options=_options(runner, workers, words))
    build(pipeline)
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except (RunError, RequestError) as e:
        raise RunError(_RUNNING.sub("", str(e))) from e
    except RuntimeError as e:
        raise RunError(reported(str(e))) from e
    return _counts(result)


def reported(text: str) -> str:
    """The message of the error in a worker's traceback."""
    found = _REPORTED.search(text.rstrip())
    if found:
        return _RUNNING.sub("", found.group(1)).strip()
    last = [line for line in text.splitlines() if line.strip()]
    return f"a worker failed: {last[-1].strip() if last else 'without a word'}"


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The name most like a misspelt one, or None where none is like it."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def _options(runner: str, workers: int, words: list[str]) -> PipelineOptions:
    if runner not in _LOCAL:
        return PipelineOptions([f"--runner={runner}", *words])
    mode = "in_memory" if workers == 1 else "multi_processing"
    return PipelineOptions(
        [
            f"--runner={_IN_PROCESS}",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={workers}",
            *words,
        ]
    )


def _beam_parser() -> argparse.ArgumentParser:
    """A parser of every flag that Beam has."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in _subclasses(PipelineOptions):
        options._add_argparse_args(parser)
    return parser


def _subclasses(cls: Any) -> Iterator[Any]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _counts(result: Any) -> Counts:
    found: Counts = {}
    metrics = result.metrics().query()
    for counter in metrics["counters"]:
        name = counter.key.metric.name
        found[name] = found.get(name, 0) + int(counter.committed)
    for distribution in metrics["distributions"]:
        name = f"{distribution.key.metric.name}_sum"
        found[name] = found.get(name, 0) + int(distribution.committed.sum)
    return found
