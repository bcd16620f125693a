"""From flags to a Beam pipeline that has run, on whatever engine (``launch.engines``)."""

import contextlib
import difflib
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from launch.engines import Asked, beam_options, engine_of
from launch.engines.base import unusable
from launch.graphs import GraphFiles
from launch.parsers import Parser, UsageError
from volumes.errors import RequestError, RunError

# The step that Beam appends to the message of an exception.
_STEP = re.compile(r" \[while running '[^']*'\]")

# A worker process reports an exception as the text of its traceback: the last of ours in it counts.
_OURS = re.compile(r"^(?:[\w.]+\.)?(?:RunError|RequestError): ", re.MULTILINE)
_NEXT = re.compile(r"\n\n(?:During handling of|The above exception was)")

# Beam's thread that waits for a worker process, and what it raises when the process dies.
_WAITING = "run_worker"
_DIED = re.compile(r"Worker subprocess exited with return code (-?\d+)")

# A worker that the user's own interrupt ended, by itself or through its shell.
_INTERRUPTED = (-2, 130)

# A run that a worker's death does not hinder (it was done) has this long to end.
_GRACE_S = 10.0


class Counts(dict[str, int]):
    """Beam's counters of a run by name, summed over steps; distributions as ``name_sum``.

    Attributes:
        sets: Beam's sets of texts, by name.
    """

    def __init__(self) -> None:
        """No counter yet."""
        super().__init__()
        self.sets: dict[str, frozenset[str]] = {}


class _WorkerDied(BaseException):
    """A worker process died and the run waits for it; like an interrupt, not for Beam to catch."""


class UnforeseenError(RunError):
    """A run failed in a way that this package has no message for; what libraries say may help."""


def split_beam_flags(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Check that Beam knows the flags that a job does not.

    Args:
        words: What the job's parser left over.
        known: The job's own flags, to suggest one for a misspelt flag.

    Returns:
        The words, for ``PipelineOptions``.

    Raises:
        UsageError: Beam does not know one of them, or not its value; the message says which, and
            the nearest name.
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
    near = difflib.get_close_matches(name, [*known, *theirs], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown flag {name}{hint} (neither this job nor Beam has it)"


def ready(asked: Asked) -> beam.Pipeline:
    """An empty pipeline, so that wrong options are refused before anything is written.

    Args:
        asked: What is asked of the engine.

    Raises:
        UsageError: There is no such runner, or it lacks something.
    """
    words = engine_of(asked.runner).words(asked)
    try:
        return beam.Pipeline(options=beam_options(words, asked.runner))
    except (ValueError, ImportError, AttributeError, TypeError) as e:
        raise unusable(asked.runner, e) from e


def built(
    build: Callable[[beam.Pipeline], Any], asked: Asked, graph: GraphFiles | None = None
) -> beam.Pipeline:
    """A pipeline with a job's graph, which is written where that was asked for; see ``run``."""
    pipeline = ready(asked)
    build(pipeline)
    if graph is not None:
        graph.write(pipeline)
    return pipeline


def run(
    build: Callable[[beam.Pipeline], Any], asked: Asked, graph: GraphFiles | None = None
) -> Counts:
    """Build a pipeline and run it to its end.

    Args:
        build: Puts the job's graph into a pipeline.
        asked: What is asked of the engine.
        graph: Where the graph is written before it runs.

    Returns:
        Beam's counters by name, summed over steps; distributions as ``name_sum``.

    Raises:
        RunError: The run failed; the message is that of the step that failed.
        KeyboardInterrupt: The user stopped it.
    """
    pipeline = built(build, asked, graph)
    deaths: list[int] = []
    try:
        with _watched(deaths):
            result = pipeline.run()
            result.wait_until_finish()
    except (RunError, RequestError) as e:
        raise RunError(_going_on(_STEP.sub("", str(e)))) from e
    except RuntimeError as e:
        if deaths:
            raise UnforeseenError(_killed(deaths)) from e
        raise reported(str(e)) from e
    except _WorkerDied as e:
        raise UnforeseenError(_killed(deaths)) from e
    return counted(result)


def reported(text: str) -> BaseException:
    """The error that a worker's traceback tells of.

    Args:
        text: Beam's message: a traceback, or for an interrupt in this process its name alone.
    """
    text = _STEP.sub("", text).rstrip()
    ours = list(_OURS.finditer(text))
    if ours:
        return RunError(_going_on(_NEXT.split(text[ours[-1].end() :])[0].strip()))
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    if last == ["KeyboardInterrupt"]:
        return KeyboardInterrupt()
    return UnforeseenError(
        _going_on(f"a worker failed: {''.join(last) or 'without a word'}; --verbose shows where")
    )


def _going_on(message: str) -> str:
    """The message with what to do after it, unless it says so itself."""
    if "same command" in message:
        return message
    return f"{message}. What is committed stays: the same command goes on from there"


def _killed(deaths: list[int]) -> str:
    code = deaths[0]
    how = f"signal {code - 128 if code > 128 else -code}" if code > 128 or code < 0 else f"{code}"
    return _going_on(
        f"a worker process ended by itself ({how}); signal 9 is mostly the system's answer to too "
        "little memory: take fewer --workers or a smaller --box"
    )


@contextlib.contextmanager
def _watched(deaths: list[int]) -> Iterator[None]:
    """End the run where a worker process dies: Beam alone would wait for it for ever.

    Args:
        deaths: Gets the return code of each process that died.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signals here
        return
    hook_before = threading.excepthook

    def hook(failure: Any) -> None:
        died = _DIED.match(str(failure.exc_value))
        if failure.thread is None or failure.thread.name != _WAITING or not died:
            hook_before(failure)
        elif int(died.group(1)) not in _INTERRUPTED:
            deaths.append(int(died.group(1)))
            signal.setitimer(signal.ITIMER_REAL, _GRACE_S)

    def ring(number: int, frame: Any) -> NoReturn:
        raise _WorkerDied

    handler_before = signal.signal(signal.SIGALRM, ring)
    threading.excepthook = hook
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)
        threading.excepthook = hook_before


class _BeamParser(Parser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (a flag of Beam's)")


def _beam_parser() -> Parser:
    """A parser of every flag that Beam has."""
    parser = _BeamParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in _subclasses(PipelineOptions):
        options._add_argparse_args(parser)
    return parser


def _subclasses(cls: Any) -> Iterator[Any]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def counted(result: Any) -> Counts:
    """Beam's counters of a run that has ended, by name; distributions as ``name_sum``."""
    found = Counts()
    metrics = result.metrics().query()
    for counter in metrics["counters"]:
        name = counter.key.metric.name
        found[name] = found.get(name, 0) + int(counter.committed)
    for distribution in metrics["distributions"]:
        name = f"{distribution.key.metric.name}_sum"
        found[name] = found.get(name, 0) + int(distribution.committed.sum)
    for texts in metrics.get("string_sets", ()):
        name = texts.key.metric.name
        found.sets[name] = found.sets.get(name, frozenset()) | frozenset(texts.committed)
    return found
