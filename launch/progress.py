"""Progress on stderr, told from storage: a bar on a terminal, plain lines otherwise."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

Look = Callable[[], int]
"""Counts the units of work that are done now."""

_FIRST_S = 2.0
_LINE_EVERY_S = 10.0

# A look may take at most this share of the time between two.
_SHARE = 0.02


@contextlib.contextmanager
def shown(look: Look, total: int, unit: str, quiet: bool) -> Iterator[None]:
    """Show progress while the body runs.

    Args:
        look: Counts what is done; called from another thread.
        total: How much there is.
        unit: Its name, in the plural.
        quiet: Show nothing.
    """
    if quiet:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(look, total, unit, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _follow(look: Look, total: int, unit: str, stop: threading.Event) -> None:
    stream = sys.stderr
    started = time.monotonic()
    first = look()
    if stream.isatty():
        _bar(look, total, unit, first, stop, stream)
        return
    pause = _FIRST_S
    while not stop.wait(pause):
        before = time.monotonic()
        done = look()
        now = time.monotonic()
        print(line(first, done, total, unit, now - started), file=stream, flush=True)
        pause = max(_LINE_EVERY_S, (now - before) / _SHARE)


def _bar(
    look: Look, total: int, unit: str, first: int, stop: threading.Event, stream: TextIO
) -> None:
    with tqdm(total=total, initial=first, unit=f" {unit}", file=stream) as bar:
        pause = _FIRST_S
        while not stop.wait(pause):
            before = time.monotonic()
            bar.update(max(0, look() - bar.n))
            pause = max(_FIRST_S, (time.monotonic() - before) / _SHARE)
        bar.update(max(0, look() - bar.n))


def line(first: int, done: int, total: int, unit: str, seconds: float) -> str:
    """A line of progress: how much is done, how quick, how long it will take."""
    new = done - first
    text = f"{done:,} of {total:,} {unit}, {tqdm.format_interval(seconds)} gone"
    if new < 1 or seconds <= 0:
        return text
    rate = new / seconds
    left = tqdm.format_interval(max(0, total - done) / rate)
    return f"{text}, {rate:.3g} {unit}/s, {left} left"
