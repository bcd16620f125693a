"""What the command line says: results to stdout; plans, progress and messages to stderr.

Libraries write to stderr as they like: TensorFlow and CUDA before any log level can be set, Beam's
worker processes a traceback for each error that becomes one message here. So while a job runs, file
descriptor 2 is a temporary file, which worker processes inherit, and what this package says goes to
the stderr that it was given. What libraries wrote is shown where a run fails in a way that was not
foreseen, and with ``--verbose`` as it comes.

Whatever passes through here is cleaned of secrets.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, TextIO

from volumes.redaction import redacted_text

_STDERR = 2
_OVERHEARD_BYTES = 4000


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Console:
    """Where a job's words go.

    Attributes:
        err: The user's stderr.
        quiet: Whether plans and progress are left out.
        held: What libraries wrote to stderr; None where they write to the user's.
    """

    err: TextIO
    quiet: bool = False
    held: IO[bytes] | None = None

    def say(self, *lines: str) -> None:
        """Print results to stdout."""
        for line in lines:
            print(redacted_text(line), flush=True)

    def tell(self, *lines: str) -> None:
        """Print what goes on to stderr, unless quiet."""
        if not self.quiet:
            self.complain(*lines)

    def complain(self, *lines: str) -> None:
        """Print what went wrong to stderr."""
        for line in lines:
            print(redacted_text(line), file=self.err, flush=True)

    def overheard(self) -> list[str]:
        """The last lines that libraries wrote to stderr while the job ran."""
        if self.held is None:
            return []
        size = self.held.seek(0, os.SEEK_END)
        self.held.seek(max(0, size - _OVERHEARD_BYTES))
        return self.held.read().decode(errors="replace").splitlines()


@contextlib.contextmanager
def opened(quiet: bool, verbose: bool) -> Iterator[Console]:
    """A console for a job; descriptor 2 is held until the end, unless verbose.

    Args:
        quiet: Leave out plans and progress.
        verbose: Let libraries write to the user's stderr, TensorFlow all that it has to say.
    """
    if verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0")
        yield Console(sys.stderr, quiet)
        return
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            kept = os.dup(_STDERR)
        except OSError:  # no room for temporary files, or stderr is closed: hold nothing
            yield Console(sys.stderr, quiet)
            return
        stack.callback(os.close, kept)
        stack.callback(_restore, kept)
        err = stack.enter_context(_stream(kept))
        sys.stderr.flush()
        os.dup2(held.fileno(), _STDERR)
        yield Console(err, quiet, held)


def _restore(kept: int) -> None:
    sys.stderr.flush()
    os.dup2(kept, _STDERR)


@contextlib.contextmanager
def _stream(kept: int) -> Iterator[TextIO]:
    """The user's stderr: ``sys.stderr``, or a stream of its own where that is descriptor 2."""
    try:
        same = sys.stderr.fileno() == _STDERR
    except (OSError, ValueError):  # replaced by a stream in memory
        same = False
    if not same:
        yield sys.stderr
        return
    with open(os.dup(kept), "w", encoding=sys.stderr.encoding, errors="backslashreplace") as err:
        yield err
