import contextlib
import dataclasses
import json
import multiprocessing
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volumes import objects, runs
from volumes.errors import RunError
from volumes.runs import Run, Seat, StoreBusyError
from volumes.store import new_run, read_run, write_run

NOW = 1_800_000_000.0
BARE = runs._NO_CONTAINER
HERE = Seat("atlas", "boot-1", BARE)
BOXED = Seat("atlas", "boot-1", "pid:[7]")
TOLD_NOTHING = Seat("atlas", "", "")


@pytest.fixture
def url(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "store")


def enter(url: str, job: str, name: str = "") -> contextlib.AbstractContextManager[Run]:
    exclusive = job == "reprocess"
    return runs.registered(
        url, name or new_run(), job=job, exclusive=exclusive, command=f"x {job}", identity="i"
    )


def run_of(seat: Seat, pid: int, pid_started: str, **changes) -> Run:
    since = "2027-01-15T08:00:00+00:00"
    run = Run("r", "reprocess", True, 3, seat, pid, pid_started, "ada", since)
    return dataclasses.replace(run, **changes)


def leave(url: str, run: Run, age: float | None, ended: bool = False) -> None:
    """The documents of a run that was heard of some seconds ago."""
    if age is not None:
        write_run(url, run.name, "heartbeat", {"at": NOW - age})
    write_run(url, run.name, "run", run.to_json())
    if ended:
        write_run(url, run.name, "ended", {"at": NOW, "how": "done"})


# Where we are, where the run was, what the system says of its pid, the age of its heartbeat, and
# whether it lives. The run's process started at "77".
CASES = {
    "its process lives": (HERE, HERE, "77", 0, True),
    "its process lives, and the host was suspended": (HERE, HERE, "77", 9999, True),
    "no such process": (HERE, HERE, None, 0, False),
    "another process has its pid": (HERE, HERE, "78", 0, False),
    "the host has booted since": (HERE, Seat("atlas", "boot-0", BARE), "77", 0, False),
    "another host, fresh": (HERE, Seat("hera", "boot-1", BARE), None, 59, True),
    "another host, stale": (HERE, Seat("hera", "boot-1", BARE), "77", 60, False),
    "another host, never heard of": (HERE, Seat("hera", "boot-1", BARE), "77", None, False),
    "another host, whose clock is ahead": (HERE, Seat("hera", "b", BARE), None, -30, True),
    "the same container": (BOXED, BOXED, None, 0, False),
    "another container of the host, fresh": (HERE, BOXED, None, 59, True),
    "another container of the host, stale": (HERE, BOXED, "77", 61, False),
    "a container of that name elsewhere": (BOXED, Seat("atlas", "b", "pid:[7]"), None, 5, True),
    "a process that is hidden, fresh": (HERE, HERE, "", 5, True),
    "a process that is hidden, stale": (HERE, HERE, "", 61, False),
    "a system that tells nothing, fresh": (TOLD_NOTHING, TOLD_NOTHING, "", 5, True),
    "a system that tells nothing, no process": (TOLD_NOTHING, TOLD_NOTHING, None, 5, False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_who_lives(url: str, monkeypatch: pytest.MonkeyPatch, case: tuple) -> None:
    here, there, process, age, expected = case
    monkeypatch.setattr(runs, "_now", lambda: NOW)
    monkeypatch.setattr(runs, "_seat", lambda: here)
    monkeypatch.setattr(runs, "_process_started", lambda pid: process if pid == 123 else "no")
    run = run_of(there, 123, "77" if there.boot else "")
    leave(url, run, age)
    assert runs.living(url) == ([run] if expected else [])
    assert runs.living(url, besides="r") == []
    leave(url, run, age, ended=True)
    assert runs.living(url) == []


def test_what_is_no_run_is_none(url: str) -> None:
    assert runs.living(url) == []
    write_run(url, "not-yet", "heartbeat", {"at": time.time()})
    # Nor is one of software that did not register.
    write_run(url, "early", "run", {"job": "embed", "host": runs._seat().host, "pid": 1})
    objects.write(objects.join(url, "runs", "notes.txt"), b"mine")
    assert runs.living(url) == []


def test_processes_are_looked_up() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        started = runs._process_started(process.pid)
        assert started == runs._process_started(process.pid)
        assert started is not None
        if sys.platform == "linux":
            assert started.isdigit()
        process.kill()
        # It is not waited for yet: a zombie is dead.
        deadline = time.monotonic() + 10
        while sys.platform == "linux" and runs._process_started(process.pid) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert runs._process_started(process.pid) is None
    assert runs._exists(1)


def test_a_hidden_process_is_there_and_tells_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(path: pathlib.Path) -> bytes:
        raise FileNotFoundError(path)

    def refused(pid: int, number: int) -> None:
        raise PermissionError(pid)

    monkeypatch.setattr(pathlib.Path, "read_bytes", hidden)
    monkeypatch.setattr("os.kill", refused)
    assert runs._process_started(123) == ""


def test_a_command_name_with_parentheses_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = b"9 (a) S (b c) R " + b" ".join(b"%d" % n for n in range(4, 53))
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda path: stat)
    assert runs._process_started(9) == "22"


texts = st.text(max_size=8)


@given(st.builds(Run, texts, texts, st.booleans(), st.integers(0), st.builds(Seat, texts, texts,
    texts), st.integers(1), texts, texts, texts))  # fmt: skip
def test_a_run_is_json(run: Run) -> None:
    assert Run.from_json(run.name, json.loads(json.dumps(run.to_json()))) == run


def test_a_run_leaves_who_it_is_and_how_it_ended(url: str) -> None:
    with enter(url, "embed", "mine") as run:
        assert (run.name, run.job, run.exclusive, run.epoch) == ("mine", "embed", False, 0)
        assert runs.living(url) == [run]
        document = read_run(url, "mine", "run")
        assert document is not None
        assert Run.from_json("mine", document) == run
        assert {"command", "identity", "host", "boot", "pid", "user", "software"} <= set(document)
        assert (document["command"], document["identity"]) == ("x embed", "i")
        assert read_run(url, "mine", "ended") is None
    ended = read_run(url, "mine", "ended")
    assert ended is not None
    assert (ended["how"], abs(ended["at"] - time.time()) < 60) == ("done", True)
    assert runs.living(url) == []
    assert runs.highest_epoch(url) == 0


@pytest.mark.parametrize("job", ["embed", "reprocess"])
def test_a_run_that_fails_ends_and_writes_no_secret(
    url: str, tmp_path: pathlib.Path, job: str
) -> None:
    def fail() -> None:
        with runs.registered(
            url,
            "mine",
            job=job,
            exclusive=job == "reprocess",
            command="x --image=https://me:TOKEN@host/a?key=TOKEN",
            identity="gs://b/x?token=TOKEN",
        ):
            raise KeyError("https://host/a?key=TOKEN")

    with pytest.raises(KeyError):
        fail()
    ended = read_run(url, "mine", "ended")
    assert ended is not None
    assert ended["how"] == "KeyError: 'https://host/a'"
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == {"embed": 3, "reprocess": 4}[job]
    assert [p for p in files if b"TOKEN" in p.read_bytes()] == []
    assert runs.living(url) == []


def test_a_run_is_heard_of_before_it_is_seen(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else another host that looks in between would take it for dead.
    write, written = objects.write, []

    def note(where: str, data: bytes) -> None:
        written.append(where.rpartition("/")[2])
        write(where, data)

    monkeypatch.setattr(objects, "write", note)
    with enter(url, "reprocess"):
        pass
    assert written == ["heartbeat.json", "run.json", "ended.json"]


def test_equal_runs_work_side_by_side(url: str) -> None:
    with enter(url, "embed") as one, enter(url, "embed") as two:
        assert {r.name for r in runs.living(url)} == {one.name, two.name}


@pytest.mark.parametrize(
    ("first", "second"),
    [("reprocess", "reprocess"), ("reprocess", "embed"), ("embed", "reprocess")],
)
def test_a_run_that_works_alone_does(url: str, first: str, second: str) -> None:
    with enter(url, first) as run:
        message = (
            rf"store is in use by the {first} run {run.name}, pid {run.pid} on host "
            rf"{run.seat.host}, since \S+ \(last heartbeat \d s ago\)\. A store is reprocess's "
            r"alone while reprocess works, .*wait for .*, or stop it; .* after 60 s on another"
        )
        with pytest.raises(StoreBusyError, match=message) as told, enter(url, second):
            pytest.fail("it went on")
        assert told.value.other == run
        # Who is refused leaves nothing and takes no epoch.
        assert objects.names(objects.join(url, "runs")) == [f"{run.name}/"]
        assert runs.highest_epoch(url) == run.epoch
    with enter(url, second) as after:
        assert after.epoch == [first, second].count("reprocess")


def test_an_epoch_is_taken_over_from_the_ended_and_from_the_dead(url: str) -> None:
    with enter(url, "reprocess") as first:
        assert first.epoch == 1
    dead = run_of(runs._seat(), first.pid, "1", name="dead", epoch=2)
    leave(url, dead, 0)
    body = runs.documents.dump(*runs._EPOCH, {"run": "dead", "job": "reprocess", "at": NOW})
    assert objects.create(runs._epoch_url(url, 2), body)
    with enter(url, "embed") as beside:
        assert beside.epoch == 2
    with enter(url, "reprocess") as second:
        assert second.epoch == 3
    assert objects.names(objects.join(url, "epochs")) == ["1.json", "2.json", "3.json"]
    epoch = objects.read(runs._epoch_url(url, 3))
    assert epoch is not None
    told = runs.documents.load(epoch, *runs._EPOCH, "3.json")
    assert (told["run"], told["job"]) == (second.name, "reprocess")


HOLD = """
import sys
from volumes import runs
with runs.registered(sys.argv[1], "held", job="reprocess", exclusive=True, command="", identity=""):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_killed_run_is_noticed_at_once(url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        with pytest.raises(StoreBusyError, match=f"held, pid {process.pid} "), enter(url, "embed"):
            pytest.fail("it went on")
        process.kill()
        process.wait()
        assert read_run(url, "held", "ended") is None
        with enter(url, "reprocess") as run:
            assert run.epoch == 2


def wait_for(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def heard(url: str) -> float:
    document = read_run(url, "mine", "heartbeat")
    assert document is not None
    return float(document["at"])


def beating() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "heartbeat of mine"]


def test_the_heart_beats_until_the_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.01)
    with enter(url, "embed", "mine"):
        first = heard(url)
        wait_for(lambda: heard(url) > first)
        second = heard(url)
        wait_for(lambda: heard(url) > second)
        assert beating()
    last = heard(url)
    assert not beating()
    time.sleep(0.05)
    assert heard(url) == last


def test_a_heartbeat_that_cannot_be_written_is_tried_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.01)
    write = objects.write
    failed: list[str] = []

    def full(where: str, data: bytes) -> None:
        failed.append(where)
        raise RunError("cannot write: no space left on device")

    with enter(url, "embed", "mine"):
        monkeypatch.setattr(objects, "write", full)
        wait_for(lambda: len(failed) >= 3)
        before = heard(url)
        monkeypatch.setattr(objects, "write", write)
        wait_for(lambda: heard(url) > before)
        monkeypatch.setattr(objects, "write", full)
    # The end could not be written either, which is no reason to fail.
    assert read_run(url, "mine", "ended") is None


def test_the_end_does_not_wait_for_a_heartbeat_that_hangs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(runs, "_MOMENT_S", 0.05)
    hangs, go_on = threading.Event(), threading.Event()
    beat = runs._beat

    def hang(store: str, run: str) -> None:
        hangs.set()
        assert go_on.wait(20)

    with enter(url, "embed", "mine"):
        monkeypatch.setattr(runs, "_beat", hang)
        assert hangs.wait(20)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert read_run(url, "mine", "ended") is not None
    monkeypatch.setattr(runs, "_beat", beat)
    go_on.set()
    wait_for(lambda: not beating())


class Stage:
    """Runs in threads of which one at a time goes on, by one operation on storage a turn."""

    def __init__(self) -> None:
        self.things: dict[str, bytes] = {}
        self.mine = threading.local()
        self.inside: list[str] = []
        self.clashes: list[list[str]] = []
        self.late: list[Run] = []
        self.went_in: list[Run] = []

    def play(self, jobs: list[str], order: list[int]) -> None:
        turns = [threading.Semaphore(0) for _ in jobs]
        arrived = [threading.Semaphore(0) for _ in jobs]
        left = set(range(len(jobs)))

        def act(i: int) -> None:
            self.mine.turn = (arrived[i], turns[i])
            self.turn()
            with contextlib.suppress(StoreBusyError), enter("memory", jobs[i], str(i)) as run:
                self.come_in(run)
                for _ in range(3):
                    self.turn()
                self.inside.remove(jobs[i])
            left.discard(i)
            arrived[i].release()

        threads = [threading.Thread(target=act, args=(i,)) for i in range(len(jobs))]
        for thread, here in zip(threads, arrived, strict=True):
            thread.start()
            assert here.acquire(timeout=20)
        choices = iter(order)
        while left:
            i = sorted(left)[next(choices, 0) % len(left)]
            turns[i].release()
            assert arrived[i].acquire(timeout=20)
        for thread in threads:
            thread.join(20)

    def come_in(self, run: Run) -> None:
        self.inside.append(run.job)
        if "reprocess" in self.inside and len(self.inside) > 1:
            self.clashes.append(list(self.inside))
        if run.epoch < max((r.epoch + run.exclusive for r in self.went_in), default=0):
            self.late.append(run)
        self.went_in.append(run)

    def turn(self) -> None:
        arrived, turn = self.mine.turn
        arrived.release()
        assert turn.acquire(timeout=20)

    def read(self, where: str) -> bytes | None:
        self.turn()
        return self.things.get(where)

    def write(self, where: str, data: bytes) -> None:
        self.turn()
        self.things[where] = data

    def create(self, where: str, data: bytes) -> bool:
        self.turn()
        return self.things.setdefault(where, data) is data

    def exists(self, where: str) -> bool:
        return self.read(where) is not None

    def names(self, where: str) -> list[str]:
        self.turn()
        below = [k[len(where) + 1 :] for k in self.things if k.startswith(where + "/")]
        return sorted({k.split("/")[0] + ("/" if "/" in k else "") for k in below})


class InPlace:
    """A pool that works in the thread that asks."""

    def __init__(self, workers: int) -> None:
        self.map = map

    def __enter__(self) -> "InPlace":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    stage = Stage()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("read", "write", "create", "exists", "names"):
            patch.setattr(objects, name, getattr(stage, name))
        patch.setattr("concurrent.futures.ThreadPoolExecutor", InPlace)
        patch.setattr("volumes.provenance.software", dict)
        # This very process: nobody is ever found dead.
        patch.setattr(runs, "_lives", lambda store, run: True)
        yield stage


def check(jobs: list[str], order: list[int]) -> None:
    with staged() as stage:
        stage.play(jobs, order)
    assert stage.clashes == []
    assert stage.late == []
    # Of equal runs somebody always goes on; and who is refused by its like takes no epoch.
    if set(jobs) == {"embed"}:
        assert len(stage.went_in) == len(jobs)
    if set(jobs) == {"reprocess"}:
        epochs = [where for where in stage.things if "/epochs/" in where]
        assert len(epochs) == len(stage.went_in) >= 1


@pytest.mark.parametrize("jobs", [("embed", "reprocess"), ("reprocess", "embed")])
def test_who_works_alone_is_alone_wherever_one_start_breaks_into_another(jobs: tuple) -> None:
    for before in range(1, 9):
        for within in range(1, 15):
            check(list(jobs), [0] * before + [1] * within + [0] * 99)


def test_who_has_created_the_epoch_is_not_stopped_by_who_was_too_late() -> None:
    # The second looks, then the first does, creates and looks again while the second registers.
    for looked in range(3, 5):
        for created in range(3, 10):
            for late in range(1, 5):
                order = [1] * looked + [0] * created + [1] * late + [0] * 99
                check(["reprocess", "reprocess"], order)


# Many turns at a time, since most of what can go wrong needs one to be held up for long.
orders = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), max_size=25).map(
    lambda spans: [who for who, turns in spans for _ in range(turns)]
)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(st.sampled_from(["embed", "reprocess"]), min_size=2, max_size=3), orders)
def test_however_starts_interleave_who_works_alone_is_alone(
    jobs: list[str], order: list[int]
) -> None:
    check(jobs, order)


def compete(url: str, me: int, rounds: int, gate: "multiprocessing.synchronize.Barrier") -> None:
    for i in range(rounds):
        gate.wait(120)
        with contextlib.suppress(StoreBusyError), enter(f"{url}-{i}", "reprocess"):
            began = time.monotonic()
            time.sleep(0.5)
            pathlib.Path(f"{url}-{i}.{me}").write_text(f"{began} {time.monotonic()}")


@pytest.mark.slow
def test_of_processes_that_start_at_once_one_works_alone(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    rounds, gate = 3, spawn.Barrier(8)
    processes = [spawn.Process(target=compete, args=(url, i, rounds, gate)) for i in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0] * 8
    for i in range(rounds):
        base = pathlib.Path(f"{url}-{i}")
        spans = sorted(
            tuple(float(t) for t in path.read_text().split())
            for path in base.parent.glob(f"{base.name}.*")
        )
        assert spans
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        assert runs.highest_epoch(str(base)) == len(spans)
        assert runs.living(str(base)) == []
