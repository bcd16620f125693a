"""Calls that run ahead of who needs their results: in threads, bounded, in order.

    put(a) put(b) ... ──> a, b, ... each at its turn: its result, or what it raised

A DoFn puts in what its elements ask for and takes out what is at its turn; what is left at the end
of a bundle is taken out in ``finish_bundle``. Threads are daemons: one that waits for a storage
that does not answer does not keep a process that is told to end. They count nothing, since Beam's
counters belong to the thread that runs the bundle.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Timed(Generic[_T]):
    """What a call gave, and the milliseconds that it took."""

    result: _T
    ms: int


def timing(call: Callable[[], _T]) -> Timed[_T]:
    """Run a call by the clock, in whatever thread."""
    started = time.monotonic()
    result = call()
    return Timed(result, round(1000 * (time.monotonic() - started)))


class Ahead(Generic[_T]):
    """A call that runs in a thread of its own, from now on.

    Args:
        call: What to do.
    """

    def __init__(self, call: Callable[[], _T]) -> None:
        """Begin."""
        self._call: Callable[[], _T] | None = call
        self._result: list[_T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        call, self._call = self._call, None
        assert call is not None
        try:
            self._result.append(call())
        except BaseException as e:  # noqa: BLE001 - it is raised again where it is waited for
            self._error = e

    def ended(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._thread.is_alive()

    def result(self) -> _T:
        """What the call gave, once; it is not kept here.

        Raises:
            BaseException: What the call raised.
        """
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._result.pop()


class ReadAhead(Generic[_T]):
    """A line of calls, of which so many run at once; results come out in the order they went in.

    Args:
        depth: Calls under way at once; 0 to run each where its result is taken.
    """

    def __init__(self, depth: int) -> None:
        """An empty line."""
        self._depth = depth
        self._line: collections.deque[Ahead[_T] | Callable[[], _T]] = collections.deque()
        self.waited_s = 0.0
        """Seconds that takers have waited so far."""

    def put(self, call: Callable[[], _T]) -> list[_T]:
        """Put a call at the end of the line; it begins now.

        Returns:
            The result that had to come out first, where the line was full; the call's own, where
            the depth is 0.

        Raises:
            BaseException: What the call whose turn it is raised; all others are dropped.
        """
        if not self._depth:
            self._line.append(call)
            return [self._next()]
        ready = [self._next()] if len(self._line) >= self._depth else []
        self._line.append(Ahead(call))
        return ready

    def ended(self) -> Iterator[_T]:
        """The results at the head of the line that need not be waited for.

        Raises:
            BaseException: What the call whose turn it is raised; all others are dropped.
        """
        while self._line:
            first = self._line[0]
            if isinstance(first, Ahead) and not first.ended():
                return
            yield self._next()

    def rest(self) -> Iterator[_T]:
        """The results of all that is in the line.

        Raises:
            BaseException: What the call whose turn it is raised; all others are dropped.
        """
        while self._line:
            yield self._next()

    def drop(self) -> None:
        """Forget all that is in the line; what is under way ends by itself, unseen."""
        self._line.clear()

    def _next(self) -> _T:
        first = self._line.popleft()
        began = time.monotonic()
        try:
            return first.result() if isinstance(first, Ahead) else first()
        except BaseException:
            self.drop()
            raise
        finally:
            self.waited_s += time.monotonic() - began
