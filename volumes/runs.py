"""Who works on a store: every run registers, some work alone, and one that died is noticed.

    STORE/runs/RUN/run.json         who the run is: job, command, host, process, start, epoch
    STORE/runs/RUN/heartbeat.json   when it was last heard of, rewritten every ten seconds
    STORE/runs/RUN/ended.json       when it ended and how; absent after a kill
    STORE/epochs/N.json             the run that may work alone; created only where there is none

A run that works alone creates the next epoch, and the number is its own: what it writes carries it
as a fence, so that an older run that was taken for dead and wakes up again does no harm. Every run
registers first and looks for others then, so of two that start at once at least one sees the other:
both may be refused, but never do both go on. Of two that would work alone, the one that creates the
epoch goes on. The clocks of hosts are taken to agree within some tens of seconds.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import getpass
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from volumes import documents, objects, provenance
from volumes.errors import RunError
from volumes.store import read_run, write_run

HEARTBEAT_S = 10.0
"""Seconds between two heartbeats of a run."""

DEAD_AFTER_S = 60.0
"""Age of a heartbeat in seconds from which a run on another host counts as dead."""

_EPOCH = ("segclr-epoch", 1)

# Runs that are looked at side by side: on an object store a look is a request or two a run.
_LOOKS = 16

# How long the end of a run waits for a heartbeat that is being written.
_MOMENT_S = 1.0

# Linux gives the first process namespace, which is that of no container, this number.
_NO_CONTAINER = "pid:[4026531836]"


@dataclasses.dataclass(frozen=True, slots=True)
class Seat:
    """Where a process id means something; each is empty where the system does not tell.

    Attributes:
        host: The host's name.
        boot: Linux's id of the boot; every boot has another.
        namespace: Linux's name of the process namespace; every container has another.
    """

    host: str
    boot: str
    namespace: str


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run as it registered.

    Attributes:
        name: The run's name, of ``store.new_run``.
        job: What it does, as on the command line.
        exclusive: Whether it works alone.
        epoch: Its own epoch where it works alone; else the highest that it found, or 0.
        seat: Where its launcher runs.
        pid: Process id of its launcher.
        pid_started: Start time of that process in the system's own count; empty where not told.
        user: Who started it.
        started: When, UTC, ISO 8601.
    """

    name: str
    job: str
    exclusive: bool
    epoch: int
    seat: Seat
    pid: int
    pid_started: str
    user: str
    started: str

    def describe(self) -> str:
        """Who this is, for messages."""
        return (
            f"{self.job} run {self.name}, pid {self.pid} on host {self.seat.host}, "
            f"since {self.started}"
        )

    def to_json(self) -> dict[str, Any]:
        """The run as JSON, without its name; the seat's members stand beside the others."""
        body = dataclasses.asdict(self)
        del body["name"]
        seat: dict[str, str] = body.pop("seat")
        return body | seat

    @classmethod
    def from_json(cls, name: str, document: dict[str, Any]) -> "Run":
        """The run that ``to_json`` wrote; what a document does not tell is empty."""
        told = document.get
        return cls(
            name=name,
            job=str(told("job", "")),
            exclusive=bool(told("exclusive", False)),
            epoch=int(told("epoch", 0)),
            seat=Seat(str(told("host", "")), str(told("boot", "")), str(told("namespace", ""))),
            pid=int(told("pid", 0)),
            pid_started=str(told("pid_started", "")),
            user=str(told("user", "")),
            started=str(told("started", "")),
        )


class StoreBusyError(RunError):
    """A living run forbids this one.

    Attributes:
        other: The run that lives.
    """

    def __init__(self, message: str, other: Run) -> None:
        """Keep the run beside the message."""
        super().__init__(message)
        self.other = other


def living(store: str, *, besides: str = "") -> list[Run]:
    """The runs that registered, did not end and were not found dead, by name.

    A process of this host is looked up, so that its death is noticed at once. A run on another
    host, or in another container, lives while its heartbeat is younger than ``DEAD_AFTER_S``.

    Args:
        store: Location of the store; it need not exist.
        besides: Name of a run to leave out.

    Raises:
        RunError: The store cannot be read, or a run's document is damaged or of newer software.
    """
    found = objects.names(objects.join(store, "runs"))
    names = [n[:-1] for n in found if n.endswith("/") and n[:-1] != besides]
    with concurrent.futures.ThreadPoolExecutor(_LOOKS) as pool:
        looked = pool.map(functools.partial(_if_living, store), names)
        return [run for run in looked if run is not None]


@contextlib.contextmanager
def registered(
    store: str, run: str, *, job: str, exclusive: bool, command: str, identity: str
) -> Iterator[Run]:
    """Work on a store as a registered run; the end is recorded, also that by an exception.

    Args:
        store: Location of the store.
        run: The run's name, of ``store.new_run``.
        job: What it does, as on the command line.
        exclusive: Whether it works alone; else it works beside others that do not.
        command: The command line, for the record.
        identity: What makes a run the same run, for the record.

    Yields:
        The run with its epoch.

    Raises:
        StoreBusyError: A living run forbids this one: any, where this one works alone; else one
            that works alone.
        RunError: The store cannot be read or written.
    """
    me = _myself(run, job, exclusive, highest_epoch(store))
    _refuse_beside(store, me)
    record = {"command": command, "identity": identity, "software": provenance.software()}
    with contextlib.ExitStack() as stack:
        stack.push(lambda kind, error, trace: _end(store, run, error))
        stack.enter_context(_heartbeat(store, run))
        yield _alone(store, me, record) if exclusive else _beside_others(store, me, record)


def highest_epoch(store: str) -> int:
    """The number of the newest epoch; 0 where no run ever worked alone."""
    found = objects.names(objects.join(store, "epochs"))
    numbers = [n[:-5] for n in found if n.endswith(".json")]
    return max((int(n) for n in numbers if n.isdigit()), default=0)


def _alone(store: str, me: Run, record: dict[str, Any]) -> Run:
    """Register, take the epoch after the highest, then look; ``me`` has the highest."""
    while True:
        me = dataclasses.replace(me, epoch=me.epoch + 1)
        write_run(store, me.name, "run", record | me.to_json())
        body = {"run": me.name, "job": me.job, "at": _now()}
        if objects.create(_epoch_url(store, me.epoch), documents.dump(*_EPOCH, body)):
            _refuse_beside(store, me)
            return me
        # Another was first. It is refused beside now, unless it has come to its end meanwhile.
        me = dataclasses.replace(me, epoch=highest_epoch(store))
        _refuse_beside(store, me)


def _beside_others(store: str, me: Run, record: dict[str, Any]) -> Run:
    """Register, then look; an epoch that came and went before the look is taken over."""
    write_run(store, me.name, "run", record | me.to_json())
    _refuse_beside(store, me)
    epoch = highest_epoch(store)
    if epoch != me.epoch:
        me = dataclasses.replace(me, epoch=epoch)
        write_run(store, me.name, "run", record | me.to_json())
    return me


def _refuse_beside(store: str, me: Run) -> None:
    """Refuse to go on beside a living run, where one of the two works alone.

    A run that would work alone and has no epoch is none to mind: it looks after it has one.
    """
    for other in living(store, besides=me.name):
        if _has_epoch(store, other) if other.exclusive else me.exclusive:
            beat = _heard_s(store, other.name)
            heard = "no heartbeat yet" if beat is None else f"last heartbeat {beat:.0f} s ago"
            job = me.job if me.exclusive else other.job
            raise StoreBusyError(
                f"{objects.redacted(store)} is in use by the {other.describe()} ({heard}). A store "
                f"is {job}'s alone while {job} works, so that no two runs write the same rows: "
                "wait for the other's end, or stop it; that a run died is noticed at once on its "
                f"own host and after {DEAD_AFTER_S:.0f} s on another",
                other,
            )


def _has_epoch(store: str, run: Run) -> bool:
    where = _epoch_url(store, run.epoch)
    data = objects.read(where)
    return data is not None and documents.load(data, *_EPOCH, where).get("run") == run.name


def _epoch_url(store: str, number: int) -> str:
    return objects.join(store, "epochs", f"{number}.json")


def _if_living(store: str, name: str) -> Run | None:
    if objects.exists(objects.join(store, "runs", name, "ended.json")):
        return None
    document = read_run(store, name, "run")
    if document is None:
        return None
    run = Run.from_json(name, document)
    return run if _lives(store, run) else None


def _lives(store: str, run: Run) -> bool:
    """Whether a run that has not ended lives; see ``living``."""
    here = _seat()
    if run.seat == here:
        started = _process_started(run.pid)
        if started is None:
            return False
        if started and run.pid_started:
            return started == run.pid_started
    elif run.seat.host == here.host and run.seat.namespace == here.namespace == _NO_CONTAINER:
        return False  # the host has booted since
    heard = _heard_s(store, run.name)
    return heard is not None and heard < DEAD_AFTER_S


def _process_started(pid: int) -> str | None:
    """When a living process started: None where there is none, empty where it is not told."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        # No /proc, or one that hides the processes of other users.
        return "" if _exists(pid) else None
    # The second field is a name in parentheses, which may hold any character.
    state, *fields = stat.rpartition(b")")[2].split()
    return None if state in (b"Z", b"X") else fields[18].decode()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _seat() -> Seat:
    """This process's seat."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = ""
    return Seat(socket.gethostname(), boot, namespace)


def _myself(name: str, job: str, exclusive: bool, epoch: int) -> Run:
    pid = os.getpid()
    return Run(
        name=name,
        job=job,
        exclusive=exclusive,
        epoch=epoch,
        seat=_seat(),
        pid=pid,
        pid_started=_process_started(pid) or "",
        user=_user(),
        started=provenance.now(),
    )


def _user() -> str:
    """Who runs this; a number where the user has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@contextlib.contextmanager
def _heartbeat(store: str, run: str) -> Iterator[None]:
    """Heartbeats by a thread; the first is written before anything else of the run."""
    _beat(store, run)
    stop = threading.Event()
    thread = threading.Thread(
        target=_beat_until, args=(store, run, stop), name=f"heartbeat of {run}", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_MOMENT_S)


def _beat_until(store: str, run: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        # A full disk or a lost network is no reason to end a run: it is tried again next time.
        with contextlib.suppress(RunError):
            _beat(store, run)


def _beat(store: str, run: str) -> None:
    write_run(store, run, "heartbeat", {"at": _now()})


def _heard_s(store: str, run: str) -> float | None:
    """Seconds since a run was heard of, at least 0; None where it never was."""
    document = read_run(store, run, "heartbeat")
    return None if document is None else max(0.0, _now() - float(document["at"]))


def _end(store: str, run: str, error: BaseException | None) -> None:
    """Record the end; where that cannot be written, the process's own end is noticed."""
    how = "done" if error is None else f"{type(error).__name__}: {error}"
    with contextlib.suppress(RunError):
        write_run(store, run, "ended", {"at": _now(), "how": how})


def _now() -> float:
    """Unix time in seconds."""
    return time.time()
