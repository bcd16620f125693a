"""What an engine is."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from apache_beam.options.pipeline_options import PipelineOptions

from launch.parsers import UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked of an engine.

    Attributes:
        runner: ``--runner`` as it was typed.
        workers: ``--workers``: processes on this machine.
        words: Flags for Beam, as they were typed.
        places: What the job reads and writes: paths, URLs and TensorStore specs, as typed.
    """

    runner: str
    workers: int
    words: tuple[str, ...]
    places: tuple[str, ...] = ()


class Engine(Protocol):
    """A way to run a graph; has no state."""

    @property
    def names(self) -> tuple[str, ...]:
        """What ``--runner`` calls it, in lower case."""

    @property
    def local(self) -> bool:
        """Whether its workers are processes of this machine that see the same files."""

    def words(self, asked: Asked) -> Sequence[str]:
        """All of Beam's flags, those that the user left to the engine included.

        Looks at nothing outside this process.

        Raises:
            UsageError: They do not go together, or lack something.
        """

    def check(self, asked: Asked) -> Sequence[str]:
        """Look at what the run needs of its environment, before anything is submitted.

        Returns:
            Warnings, a line each.

        Raises:
            RequestError: Something is missing or does not fit; the message says what to do.
        """


def beam_options(words: Sequence[str], runner: str) -> PipelineOptions:
    """Beam's options of words.

    Raises:
        UsageError: Beam has no such runner, or it lacks something.
    """
    try:
        return PipelineOptions(list(words))
    except (ValueError, ImportError, AttributeError, TypeError) as e:
        raise unusable(runner, e) from e


def unusable(runner: str, error: Exception) -> UsageError:
    """The error for a runner that Beam does not take."""
    reason = " ".join(str(error).split()).rstrip(".")
    return UsageError(
        f"--runner {runner} cannot be used: {reason}. Give what it asks for, or leave --runner "
        "out to run in this process"
    )


def refuse_workers(asked: Asked) -> None:
    """Refuse ``--workers`` where the workers are not processes that this one starts.

    Raises:
        UsageError: More than one is asked for.
    """
    if asked.workers != 1:
        raise UsageError(
            f"--workers {asked.workers} is a number of processes on this machine, and --runner "
            f"{asked.runner} runs elsewhere; leave it out, and give that runner's own flag "
            "(--num_workers)"
        )
