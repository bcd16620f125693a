"""Progress on stderr, told from storage: a bar on a terminal, plain lines otherwise.

Progress is a courtesy. A look that storage answers with an error ends it with a line that says so;
the run goes on, and fails by itself if storage fails it too.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from launch.console import Console

Look = Callable[[], int]
"""Counts the units of work that are done now."""

_FIRST_S = 2.0
_LINE_EVERY_S = 10.0

# A look may take at most this share of the time between two.
_SHARE = 0.02

# At the end a look under way is waited for no longer than this.
_LAST_S = 5.0

# What storage raises; its own errors are a RuntimeError and a ValueError.
_TROUBLE = (OSError, RuntimeError, ValueError)


@contextlib.contextmanager
def shown(look: Look, total: int, unit: str, out: Console) -> Iterator[None]:
    """Show progress while the body runs.

    Args:
        look: Counts what is done; called from another thread.
        total: How much there is.
        unit: Its name, in the plural.
        out: Where to show it; a quiet console shows nothing.
    """
    if out.quiet:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(look, total, unit, stop, out), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=_LAST_S)


def _follow(look: Look, total: int, unit: str, stop: threading.Event, out: Console) -> None:
    try:
        if out.err.isatty():
            _bar(look, total, unit, stop, out)
        else:
            _lines(look, total, unit, stop, out)
    except _TROUBLE as e:
        if not stop.is_set():
            out.tell(f"progress is not shown any more: {e}")


def _lines(look: Look, total: int, unit: str, stop: threading.Event, out: Console) -> None:
    started = time.monotonic()
    first = look()
    pause = _FIRST_S
    while not stop.wait(pause):
        before = time.monotonic()
        done = look()
        now = time.monotonic()
        out.tell(line(first, done, total, unit, now - started))
        pause = max(_LINE_EVERY_S, (now - before) / _SHARE)


def _bar(look: Look, total: int, unit: str, stop: threading.Event, out: Console) -> None:
    with tqdm(total=total, initial=look(), unit=f" {unit}", file=out.err) as bar:
        pause = _FIRST_S
        while not stop.wait(pause):
            before = time.monotonic()
            bar.update(max(0, look() - bar.n))
            pause = max(_FIRST_S, (time.monotonic() - before) / _SHARE)
        bar.update(max(0, look() - bar.n))


def line(first: int, done: int, total: int, unit: str, seconds: float) -> str:
    """A line of progress: how much is done, how quick, how long it will take.

    Args:
        first: Units that were done when the watch began.
        done: Units that are done now.
        total: All units.
        unit: Their name, in the plural.
        seconds: Time since the watch began.
    """
    new = done - first
    text = f"{done:,} of {total:,} {unit}, {tqdm.format_interval(seconds)} gone"
    if new < 1 or seconds <= 0:
        return text
    rate = new / seconds
    left = tqdm.format_interval(max(0, total - done) / rate)
    return f"{text}, {rate:.3g} {unit}/s, {left} left"
