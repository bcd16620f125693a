"""What commits cost: beside computing, with several writers, and with thousands of them.

    python -m benchmarks.commit                        all parts; some minutes on two cores
    python -m benchmarks.commit --parts simulation     one or more of share, table, simulation
    python -m benchmarks.commit --quick                few of all: does it run; no figures to quote

How it measures:

- *share*: the rows of a box, of random numbers, and its plan are committed through
  ``volumes.commits``, alone and sixteen boxes at a time, in turn with encoding batches of ready
  crops, all in one process. Models are loaded, compiled and warm before. Figures are medians.
- *table*: writer processes commit the same number of boxes in each cell, in databases made for the
  cell, with plans committed before; TensorStore and the databases are open before a common start.
  A writer's commits go round the databases, each writer beginning at another one. The time is from
  the start to the last writer's last commit. Live bytes are those of the newest version.
- *simulation*: no storage is touched; see ``benchmarks.simulation``. A commit's length follows from
  the latencies that are given and the requests of a local commit of one box, as TensorStore counts
  them: one after the other, which is an upper bound. What further boxes of a commit add is asked
  for at the same time as the first box's, and adds nothing.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import multiprocessing
import multiprocessing.pool
import pathlib
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np
import tensorstore as ts

from benchmarks.embed import NARROW, bare
from benchmarks.machine import describe, met, table
from benchmarks.simulation import Outcome, Scene, simulate
from pipelines.embed.blocks import OBJECT_WRITES, partitions_needed
from segclr.encoder import shared_encoder
from segclr.model import resolve_model
from transforms.boxes import COMMIT_BOXES
from transforms.work import COMMIT_SECONDS
from volumes import commits, objects, partition
from volumes.commits import Change
from volumes.context import process_context
from volumes.geometry import Box
from volumes.partition import Partition
from volumes.receipts import DIGEST_BYTES, BoxPlan, Receipt, Rows, sha256

FULL = "untrained:width=64,input=129,embedding=64"

_PARTS = ("share", "table", "simulation")
_SHARED_COMMIT = 16
_PLANS_A_COMMIT = 256

# As ``transforms.ranges`` makes them for a large grid.
_RANGE_BOXES = 64

# Of the reads of a commit, those that come after the look at the manifest that counts: the
# manifest itself, and the root of the tree.
_READS_AGAIN = 2

_LOST = 0.05

# What it would cost to plan each sampled box by itself, and not a range at a time.
_PLANS = "rule, and a commit a plan"


@functools.lru_cache(maxsize=1)
def some_rows(count: int, width: int) -> Rows:
    """Rows of random numbers."""
    rng = np.random.default_rng(0)
    return Rows(
        segment_id=np.sort(rng.integers(1, 2**63, count, dtype=np.uint64)),
        node_id=np.arange(count, dtype=np.uint64),
        position_nm=rng.random((count, 3)) * 1e6,
        embedding=rng.random((count, width), dtype=np.float32),
        mask_voxels=rng.integers(1, 2**21, count, dtype=np.uint32),
        crop_digest=rng.integers(0, 256, (count, DIGEST_BYTES), dtype=np.uint8),
    )


def plan_of(local: int, rows: Rows) -> BoxPlan:
    """What a box of these rows owes."""
    return BoxPlan(f"{local}_0_0", len(rows), sha256(b"identities"), sha256(b"content"))


def change_of(local: int, rows: Rows) -> Change:
    """The commit of a box of these rows."""
    plan = plan_of(local, rows)
    core = Box((128 * local, 0, 0), (128 * local + 128, 128, 128))
    receipt = Receipt(
        box=plan.box,
        core=core,
        read_box=core.grown((64, 64, 64)),
        fingerprint=sha256(b"fingerprint"),
        planned=plan.nodes,
        committed=plan.nodes,
        computed=plan.nodes,
        rejected=(),
        identities=plan.identities,
        content=plan.content,
        rows_digest=sha256(b"rows"),
        inputs=sha256(b"inputs"),
        image_digest=sha256(b"image"),
        labels_digest=sha256(b"labels"),
        image_stamp=sha256(b"image stamp"),
        labels_stamp=sha256(b"labels stamp"),
        agglomeration=None,
        run="a-benchmark",
    )
    return Change(local, plan.box, receipt, rows)


def seconds_of(do: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def share(given: argparse.Namespace, folder: pathlib.Path) -> None:
    """Print which share of a box's time its commit takes."""
    rows = some_rows(given.nodes, given.width)
    part = Partition(str(folder / "share"), 1024, given.width)
    local = itertools.count()
    models = {"full size": given.model, "narrow": NARROW}
    encoders = {name: shared_encoder(resolve_model(model)) for name, model in models.items()}
    crop_s: dict[str, list[float]] = {name: [] for name in encoders}
    plan_s: list[float] = []
    alone_s: list[float] = []
    shared_s: list[float] = []
    for encoder in encoders.values():
        bare(encoder, 1)
    _commit_one(part, next(local), rows, [], [])
    for _ in range(given.rounds):
        for name, encoder in encoders.items():
            crop_s[name].append(bare(encoder, given.batches) / given.batches / encoder.batch)
        for _ in range(given.batches):
            _commit_one(part, next(local), rows, plan_s, alone_s)
        some = [next(local) for _ in range(_SHARED_COMMIT)]
        commits.plan_boxes(part, [plan_of(i, rows) for i in some])
        changes = [change_of(i, rows) for i in some]
        taken = seconds_of(functools.partial(commits.commit_boxes, part, changes))
        shared_s.append(taken / _SHARED_COMMIT)
    printed = []
    for name, crops in crop_s.items():
        crop = statistics.median(crops)
        for label, parts in (
            ("plan and rows, a box a commit", (plan_s, alone_s)),
            ("rows, a box a commit", (alone_s,)),
            (f"rows, {_SHARED_COMMIT} boxes a commit", (shared_s,)),
        ):
            commit = sum(statistics.median(p) for p in parts)
            spent = commit / (given.nodes * crop + commit)
            goal = met(spent < 0.01) if name == "full size" else "-"
            each = f"{1000 * commit:.2f}"
            printed.append([name, f"{1000 * crop:.1f}", label, each, f"{100 * spent:.3f} %", goal])
    title = f"a box of {given.nodes} nodes, D = {given.width}: its commit and its computing"
    header = ["network", "ms a crop", "commit", "ms a box", "share", "goal < 1 %"]
    table(title, header, printed)


def _commit_one(
    part: Partition, local: int, rows: Rows, plan_s: list[float], alone_s: list[float]
) -> None:
    plans, changes = [plan_of(local, rows)], [change_of(local, rows)]
    plan_s.append(seconds_of(lambda: commits.plan_boxes(part, plans)))
    alone_s.append(seconds_of(lambda: commits.commit_boxes(part, changes)))


@dataclasses.dataclass(frozen=True, slots=True)
class Duty:
    """What one writer does in a cell.

    Attributes:
        parts: The databases.
        writer: Its number.
        writers: How many writers there are.
        commits: (index in ``parts``, boxes) of each commit, in order.
        nodes: Rows of a box.
    """

    parts: tuple[Partition, ...]
    writer: int
    writers: int
    commits: tuple[tuple[int, range], ...]
    nodes: int


class _Starts:
    """The common start of a cell's writers; set once in each writer process."""

    barriers: dict[int, threading.Barrier] = {}


def _get_ready(barriers: dict[int, threading.Barrier]) -> None:
    _Starts.barriers = barriers


def write(duty: Duty) -> tuple[float, float]:
    """Do a writer's commits; from when to when, on the clock that all processes share."""
    rows = some_rows(duty.nodes, duty.parts[0].width)
    made = [[change_of(i, rows) for i in boxes] for _, boxes in duty.commits]
    for part in duty.parts:
        partition.read_rows(part, 0)  # opens the keys and each array
    _Starts.barriers[duty.writers].wait(timeout=300)
    begun = time.perf_counter()
    for (where, _), changes in zip(duty.commits, made, strict=True):
        commits.commit_boxes(duty.parts[where], changes)
    return begun, time.perf_counter()


def duties(
    parts: tuple[Partition, ...], writers: int, boxes: int, per_commit: int, nodes: int
) -> list[Duty]:
    """Boxes shared out to writers: commit ``j`` of writer ``w`` goes to database ``w + j``."""
    given: list[list[tuple[int, range]]] = [[] for _ in range(writers)]
    next_box = [0] * len(parts)
    for number in range(boxes // per_commit):
        writer = number % writers
        where = (writer + number // writers) % len(parts)
        given[writer].append((where, range(next_box[where], next_box[where] + per_commit)))
        next_box[where] += per_commit
    return [Duty(parts, w, writers, tuple(c), nodes) for w, c in enumerate(given)]


def writing(given: argparse.Namespace, folder: pathlib.Path) -> None:
    """Print commits and boxes a second, and what is left on disk."""
    context = multiprocessing.get_context("spawn")
    barriers = {n: context.Barrier(n) for n in given.writers}
    printed = []
    with context.Pool(max(given.writers), _get_ready, (barriers,)) as pool:
        for cell in itertools.product(given.boxes_a_commit, given.databases, given.writers):
            printed.append(_cell(given, folder, pool, *cell))
    title = f"commits of boxes of {given.nodes} rows, D = {given.width}, {given.boxes} boxes a cell"
    header = ["boxes a commit", "databases", "writers", "commits", "commits /s", "boxes /s"]
    table(title, [*header, "files", "MB", "live MB", "times live"], printed)


def _cell(
    given: argparse.Namespace,
    folder: pathlib.Path,
    pool: multiprocessing.pool.Pool,
    per_commit: int,
    databases: int,
    writers: int,
) -> list[str]:
    urls = [folder / f"cell-{i}" for i in range(databases)]
    # The box axis is one longer for a box that is never committed.
    parts = tuple(Partition(str(url), given.boxes + 1, given.width) for url in urls)
    work = duties(parts, writers, given.boxes, per_commit, given.nodes)
    rows = some_rows(given.nodes, given.width)
    for where, part in enumerate(parts):
        owed = [i for d in work for p, boxes in d.commits if p == where for i in boxes]
        plans = [plan_of(i, rows) for i in [*sorted(owed), given.boxes]]
        for start in range(0, len(plans), _PLANS_A_COMMIT):
            commits.plan_boxes(part, plans[start : start + _PLANS_A_COMMIT])
    times = pool.map(write, work, chunksize=1)
    seconds = max(ended for _, ended in times) - min(begun for begun, _ in times)
    count = sum(len(d.commits) for d in work)
    files = [f for url in urls for f in url.rglob("*") if f.is_file()]
    stored, live = sum(f.stat().st_size for f in files), sum(live_bytes(p) for p in parts)
    for url in urls:
        shutil.rmtree(url)
    return [
        *(str(n) for n in (per_commit, databases, writers, count)),
        f"{count / seconds:.0f}",
        f"{count * per_commit / seconds:.0f}",
        str(len(files)),
        f"{stored / 1e6:.1f}",
        f"{live / 1e6:.1f}",
        f"{stored / live:.2f}",
    ]


def live_bytes(part: Partition) -> int:
    """Bytes that the newest version of a database needs: its values and its tree."""
    base = ts.KvStore.open(objects.kvstore(part.url), context=process_context()).result()
    newest = ts.ocdbt.dump(base).result()["versions"][-1]["root"]["statistics"]
    return int(newest["num_indirect_value_bytes"]) + int(newest["num_tree_bytes"])


def requests_of_a_commit(given: argparse.Namespace, folder: pathlib.Path) -> tuple[int, int]:
    """Reads and writes of storage that a commit of one box makes, in a database of some boxes."""
    rows = some_rows(given.nodes, given.width)
    part = Partition(str(folder / "requests"), 1024, given.width)
    commits.plan_boxes(part, [plan_of(i, rows) for i in range(200)])
    commits.commit_boxes(part, [change_of(i, rows) for i in range(100)])
    counted = []
    for local in range(100, 105):
        before = _requests()
        commits.commit_boxes(part, [change_of(local, rows)])
        counted.append([b - a for a, b in zip(before, _requests(), strict=True)])
    reads, writes = (round(statistics.median(c)) for c in zip(*counted, strict=True))
    return reads, writes


def _requests() -> tuple[int, int]:
    prefix = "/tensorstore/kvstore/file/"
    found = ts.experimental_collect_matching_metrics(prefix, include_zero_metrics=True)
    totals = {m["name"]: sum(v.get("value", 0) for v in m["values"]) for m in found}
    return totals[f"{prefix}read"], totals[f"{prefix}write"]


def simulation(given: argparse.Namespace, folder: pathlib.Path) -> None:
    """Print what the rule of ``pipelines.embed.blocks`` keeps the loss at, and other numbers."""
    reads, writes = requests_of_a_commit(given, folder)
    read_s, write_s = given.read_ms / 1000, given.write_ms / 1000
    window_s = min(reads, _READS_AGAIN) * read_s + writes * write_s
    lead_s = max(0, reads - _READS_AGAIN) * read_s
    print(
        f"\na local commit of one box: {reads} reads and {writes} writes; at "
        f"{given.read_ms:g} and {given.write_ms:g} ms each a commit takes "
        f"{lead_s + window_s:.2f} s, {window_s:.2f} s of it after its look at the manifest"
    )
    printed = []
    for workers, box_seconds in itertools.product(given.workers, given.box_seconds):
        needed = partitions_needed(workers, box_seconds, given.writes_a_second)
        for label, partitions in (
            ("rule / 4", max(1, needed // 4)),
            ("rule / 2", max(1, needed // 2)),
            ("rule", needed),
            ("rule x 2", 2 * needed),
            (_PLANS, needed),
        ):
            if label == _PLANS and workers > min(given.workers):
                continue  # many more commits, and the same share
            scene = Scene(
                workers=workers,
                partitions=partitions,
                ranges=workers * given.ranges,
                range_boxes=_RANGE_BOXES,
                box_seconds=box_seconds,
                spread=0.5,
                commit_seconds=COMMIT_SECONDS,
                commit_boxes=COMMIT_BOXES,
                writes_a_second=given.writes_a_second,
                lead_s=lead_s,
                window_s=window_s,
                plans=label == _PLANS,
                seed=given.seed,
            )
            printed.append(_simulated(scene, label))
    title = (
        f"simulated: databases of {given.writes_a_second:g} commits a second, boxes gather for "
        f"{COMMIT_SECONDS:g} s; lost: workers' time in waiting for others' commits"
    )
    header = ["workers", "s a box", "databases", "", "commits", "conflicts", "refused", "gave up"]
    goal = f"goal < {100 * _LOST:g} %"
    table(title, [*header, "lost", "of the ideal", goal], printed)


def _simulated(scene: Scene, label: str) -> list[str]:
    outcome: Outcome = simulate(scene)
    return [
        f"{scene.workers:,}",
        f"{scene.box_seconds:g}",
        f"{scene.partitions:,}",
        label,
        f"{len(outcome.commits):,}",
        f"{outcome.conflicts:,}",
        f"{outcome.refusals:,}",
        f"{outcome.given_up:,}",
        f"{100 * outcome.lost:.1f} %",
        f"{outcome.throughput:.3f}",
        met(outcome.lost < _LOST) if label in ("rule", _PLANS) else "-",
    ]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(_PARTS), help="share, table, simulation")
    parser.add_argument("--quick", action="store_true", help="does it run: few of all, no figures")
    parser.add_argument("--nodes", type=int, default=300, help="rows of a box")
    parser.add_argument("--width", type=int, default=64, help="components of an embedding")
    parser.add_argument("--model", default=FULL, help="the full-size model")
    parser.add_argument("--batches", type=int, default=4, help="batches and commits a round")
    parser.add_argument("--rounds", type=int, default=5, help="encoding and committing take turns")
    parser.add_argument("--boxes", type=int, default=1024, help="boxes of a cell of the table")
    parser.add_argument("--boxes-a-commit", type=_numbers, default=(1, 4, 16, 64))
    parser.add_argument("--databases", type=_numbers, default=(1, 2, 4))
    parser.add_argument("--writers", type=_numbers, default=(1, 2, 4))
    parser.add_argument("--workers", type=_numbers, default=(1000, 10000), help="simulated")
    parser.add_argument("--box-seconds", type=_seconds, default=(1.0, 20.0), help="simulated")
    parser.add_argument("--ranges", type=int, default=1, help="simulated work ranges a worker")
    parser.add_argument("--read-ms", type=float, default=50.0, help="simulated latency of a read")
    parser.add_argument(
        "--write-ms", type=float, default=100.0, help="simulated latency of a write"
    )
    parser.add_argument("--writes-a-second", type=float, default=OBJECT_WRITES, help="simulated")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    return parser


def main() -> None:
    """Run the parts that were asked for."""
    parser = _parser()
    given = parser.parse_args()
    parts = given.parts.split(",")
    if unknown := set(parts) - set(_PARTS):
        parser.error(f"there is no part {min(unknown)!r}; give {', '.join(_PARTS)}")
    if given.quick:
        given.model, given.batches, given.rounds, given.workers = NARROW, 1, 1, (20,)
        given.boxes, given.boxes_a_commit = 8, (1, 4)
        given.databases = given.writers = (1, 2)
    if given.boxes < math.lcm(*given.boxes_a_commit) * max(given.writers):
        parser.error(
            f"--boxes {given.boxes} is not a commit of each size for each of {max(given.writers)} "
            "writers; give more"
        )
    print(describe())
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        for part in parts:
            {"share": share, "table": writing, "simulation": simulation}[part](given, folder)


if __name__ == "__main__":
    main()
