"""Counters and distributions under one namespace, and the clock that feeds them.

Beam's in-process runner drops what is counted in ``setup`` and ``teardown``; count elsewhere.
"""

import contextlib
import time
from collections.abc import Iterator

from apache_beam.metrics import Metrics

from volumes.caching import metrics

NAMESPACE = "segclr-beam"
"""The namespace of every counter and distribution."""


def count(name: str, n: int = 1) -> None:
    """Add to a counter."""
    Metrics.counter(NAMESPACE, name).inc(n)


def note(name: str, value: int) -> None:
    """Add a value to a distribution."""
    Metrics.distribution(NAMESPACE, name).update(value)


def count_io() -> None:
    """Count what this process has asked of its storage since anybody last did; it must be open.

    See ``volumes.caching.metrics`` for what that is, and for whose.
    """
    for name, n in metrics.PROCESS.take():
        count(name, n)


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the milliseconds that the body takes to a distribution."""
    started = time.monotonic()
    yield
    note(name, round(1000 * (time.monotonic() - started)))
