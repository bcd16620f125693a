"""The fused chain of a box: is it settled, read, encode, commit.

    BoxNodes -> ReviewBox -> ReadBox -> EncodeBox -> CommitBoxes -> Done

Voxels, crops and vectors pass from step to step inside one process and never cross a shuffle; what
a step emits is dropped as soon as the next has taken it. A step that settles a box emits its
``BoxOutput``, which the steps after it pass on.

Within a bundle the next boxes are read while one is encoded, and a commit is under way while the
next boxes are: up to ``EmbedWork.read_ahead`` boxes and one commit, in threads. Boxes keep their
order; a box comes out as done when its commit is durable, and what a thread raises is raised here
when its box is at its turn. A bundle that fails leaves reads that nobody looks at, and at most a
commit whose answer nobody heard, which its receipts tell to the next attempt.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from segclr.encoder import Encoder, shared_encoder
from segclr.errors import ModelError
from segclr.nodes import Nodes
from transforms.counting import count, count_io, note, timed
from transforms.embedding import embed_box
from transforms.prefetch import ReadAhead, Timed, timing
from transforms.reading import Inputs, is_current, read_input, sample_box
from transforms.work import (
    BoxInput,
    BoxNodes,
    BoxOutput,
    Done,
    EmbedWork,
    fingerprint_of,
    plan_of,
)
from volumes import commits, partition
from volumes.caching import metrics
from volumes.commits import Change, standing_digest
from volumes.errors import DataError, RunError
from volumes.generation import coordinate_of
from volumes.receipts import BoxPlan, Failure, Receipt, Rows

_T = TypeVar("_T")

# A box that fails for a reason of its own is tried this often before it is set aside.
ATTEMPTS = 3

# Between two attempts: who writes the volume, or mends it, gets a moment.
_PAUSE_S = 0.2

# Boxes share a commit up to these bounds and ``EmbedWork.commit_seconds``; a box that took longer
# is committed as soon as it is encoded. So a kill costs the box in flight and at most that much.
COMMIT_BYTES = 16 << 20
COMMIT_BOXES = 64


def settled(
    work: EmbedWork, inputs: Inputs, index: int, plan: BoxPlan | None
) -> Done | Receipt | None:
    """What stands for a box and settles it, or what there is to compare, or None: all is to do.

    Args:
        work: The run.
        inputs: The volumes, to be looked at where the run renews what is committed.
        index: The box.
        plan: What the box owes; None to take the plan that an earlier attempt committed, which is
            right where the nodes follow from the segmentation.

    Returns:
        Done where nothing is to be done; the receipt where the box is committed and what it read
        may have changed; None otherwise.

    Raises:
        RunError: A receipt of another fingerprint stands there, and this run does not renew.
    """
    where, _ = work.generation.place(work.grid.coordinate(index))
    box = work.key(index)
    receipt = partition.read_receipt(where, box)
    if receipt is None:
        failure = None if work.renew or work.retry_failed else partition.read_failure(where, box)
        return None if failure is None else Done(box, failure, found=True)
    plan = plan or partition.read_plan(where, box)
    same = plan is not None and receipt.fingerprint == fingerprint_of(work, plan)
    if work.renew:
        if same and is_current(work, inputs, index, receipt):
            return Done(box, receipt, found=True)
        return receipt
    if same and receipt.inputs != work.inputs:
        raise RunError(
            f"{work.describe(index)} is committed from other inputs: a reprocess of this store did "
            "not come to its end, and its rows were left as they are; finish it with segclr-beam "
            f"reprocess --store {work.generation.store}"
        )
    if not same:
        raise RunError(
            f"{work.describe(index)} is committed with fingerprint {receipt.fingerprint[:12]}, "
            "which is not this run's: another run's rows stand there and were left as they are"
        )
    return Done(box, receipt, found=True)


def removal(work: EmbedWork, index: int, prior: Receipt | None) -> BoxOutput:
    """A box whose nodes have all vanished leaves the store."""
    _, local = work.generation.place(work.grid.coordinate(index))
    replaces = None if prior is None else standing_digest(prior)
    return BoxOutput(index, Change(local, work.key(index), replaces=replaces))


def set_aside(work: EmbedWork, box: BoxNodes, error: DataError) -> BoxOutput:
    """A box that failed for a reason of its own, as often as it is tried."""
    plan = plan_of(work, box.index, box.nodes)
    failure = Failure(
        plan.box, fingerprint_of(work, plan), plan.nodes, str(error), ATTEMPTS, work.run
    )
    _, local = work.generation.place(work.grid.coordinate(box.index))
    replaces = None if box.prior is None else standing_digest(box.prior)
    return BoxOutput(box.index, Change(local, plan.box, failure=failure, replaces=replaces))


def read_or_set_aside(work: EmbedWork, inputs: Inputs, box: BoxNodes) -> BoxInput | BoxOutput:
    """Read a box, again where it fails for a reason of its own, and set it aside in the end."""
    return _tried(lambda: read_input(work, inputs, box), lambda e: set_aside(work, box, e))


def sampled_or_set_aside(
    work: EmbedWork, inputs: Inputs, index: int, prior: Receipt | None
) -> BoxNodes | BoxOutput:
    """Sample a box, again where it fails for a reason of its own, and set it aside in the end."""
    owing_nothing = BoxNodes(index, Nodes.empty(), prior)

    def sample() -> BoxNodes:
        return dataclasses.replace(sample_box(work, inputs, index), prior=prior)

    return _tried(sample, lambda e: set_aside(work, owing_nothing, e))


def _tried(do: Callable[[], _T], give_up: Callable[[DataError], BoxOutput]) -> _T | BoxOutput:
    for _ in range(1, ATTEMPTS):
        try:
            return do()
        except DataError:
            time.sleep(_PAUSE_S)
    try:
        return do()
    except DataError as e:
        return give_up(e)


def commit_outputs(work: EmbedWork, outputs: list[BoxOutput]) -> Iterator[Done]:
    """Commit boxes of one partition together; yields what stands for each."""
    where, _ = work.generation.place(work.grid.coordinate(outputs[0].index))
    stands = commits.commit_boxes(where, [o.change for o in outputs], work.fence)
    for output, standing in zip(outputs, stands, strict=True):
        found = standing is not output.change.ours
        yield Done(output.change.box, standing, found, output.bytes_read)


class WithInputs(beam.DoFn):
    """A step that looks at the volumes."""

    def __init__(self, work: EmbedWork) -> None:
        """Works on boxes of ``work``."""
        self._work = work
        self._inputs: Inputs | None = None

    def setup(self) -> None:
        """Open both volumes."""
        self._inputs = Inputs.opened(self._work)

    def inputs(self) -> Inputs:
        """The open volumes; a method, since Beam reads every property of a DoFn before setup."""
        if self._inputs is None:
            raise RuntimeError("setup has not run")
        return self._inputs


class ReviewBox(WithInputs):
    """Passes on the boxes that have work to do; the others go out as done.

    A box of a walk was looked at when its range was sampled, and is looked at again: an equal run
    at its side may have done it since.
    """

    DONE = "done"

    def process(self, box: BoxNodes | BoxOutput, *barriers: Any) -> Iterator[Any]:
        """Yield the box, or what settles it; ``barriers`` are side inputs that must come first."""
        if isinstance(box, BoxOutput):
            yield box
            return
        work = self._work
        stands = settled(work, self.inputs(), box.index, plan_of(work, box.index, box.nodes))
        if isinstance(stands, Done):
            count("boxes_skipped")
            yield beam.pvalue.TaggedOutput(self.DONE, stands)
        elif work.renew and len(box.nodes) == 0:
            yield removal(work, box.index, stands)
        else:
            yield dataclasses.replace(box, prior=stands)


class ReadBox(WithInputs):
    """BoxNodes -> BoxInput, or BoxOutput where the box is to be set aside.

    A box is read from when it comes in, and passed on once so many others have come in after it, or
    at the end of the bundle.
    """

    def __init__(self, work: EmbedWork) -> None:
        """Reads boxes of ``work``."""
        super().__init__(work)
        self._ahead: ReadAhead[Timed[BoxInput | BoxOutput]] | None = None

    def start_bundle(self) -> None:
        """Begin with an empty line."""
        metrics.PROCESS.open(self._work.run)
        self._ahead = ReadAhead(self._work.read_ahead)

    def process(self, box: BoxNodes | BoxOutput) -> Iterator[BoxInput | BoxOutput]:
        """Begin to read one box, and yield those whose turn it is."""
        work, inputs = self._work, self.inputs()

        def read() -> BoxInput | BoxOutput:
            return box if isinstance(box, BoxOutput) else read_or_set_aside(work, inputs, box)

        ahead = self._line()
        waited = ahead.waited_s
        ready = ahead.put(lambda: timing(read))
        note("wait_ms", round(1000 * (ahead.waited_s - waited)))
        while ready:
            yield self._passed_on(ready.pop())

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Yield what is left."""
        ahead = self._line()
        waited = ahead.waited_s
        for ready in ahead.rest():
            note("wait_ms", round(1000 * (ahead.waited_s - waited)))
            yield _windowed(self._passed_on(ready))
            del ready
            waited = ahead.waited_s

    def teardown(self) -> None:
        """Forget what a bundle that failed has left."""
        if self._ahead is not None:
            self._ahead.drop()

    def _line(self) -> "ReadAhead[Timed[BoxInput | BoxOutput]]":
        if self._ahead is None:
            raise RuntimeError("the bundle has not begun")
        return self._ahead

    def _passed_on(self, read: Timed[BoxInput | BoxOutput]) -> BoxInput | BoxOutput:
        """The box, once it is counted."""
        if isinstance(read.result, BoxInput):
            note("read_ms", read.ms)
            count("bytes_read", read.result.subvolume.bytes_decoded)
        count_io()
        return read.result


class EncodeBox(beam.DoFn):
    """BoxInput -> BoxOutput; the model is loaded when the first crop needs it, once a process."""

    def __init__(self, work: EmbedWork) -> None:
        """Encodes boxes of ``work``."""
        self._work = work

    def process(self, box: BoxInput | BoxOutput) -> Iterator[BoxOutput]:
        """Encode one box."""
        if isinstance(box, BoxOutput):
            yield box
            return
        with timed("encode_ms"):
            output = embed_box(self._work, self._load, box, lambda: self._prior_rows(box))
        receipt = output.change.receipt
        assert receipt is not None  # a box that was read has one
        count("embeddings", receipt.computed)
        for reason, n in receipt.rejected:
            count(f"rejected_{reason}", n)
        yield output

    def _load(self) -> Encoder:
        try:
            return shared_encoder(self._work.model)
        except ModelError as e:
            raise RunError(str(e)) from e

    def _prior_rows(self, box: BoxInput) -> Rows | None:
        if box.prior is None:
            return None
        where, local = self._work.generation.place(self._work.grid.coordinate(box.index))
        return partition.read_rows(where, local)


class CommitBoxes(beam.DoFn):
    """BoxOutput -> Done, once it is durable; consecutive boxes of a partition share a commit."""

    def __init__(self, work: EmbedWork) -> None:
        """Commits boxes of ``work``."""
        self._work = work
        self._held: list[BoxOutput] = []
        self._bytes = 0
        self._since = 0.0
        self._behind: ReadAhead[Timed[list[Done]]] | None = None

    def start_bundle(self) -> None:
        """Begin to count the time."""
        self._held, self._bytes = [], 0
        self._since = time.monotonic()
        self._behind = ReadAhead(min(1, self._work.read_ahead))

    def process(self, box: BoxOutput) -> Iterator[Done]:
        """Hold the box, and begin to commit what is held when it is enough."""
        for ended in self._line().ended():
            yield from self._settled(ended)
        if any(not self._may_share(h, box) for h in self._held):
            yield from self._commit()
        self._held.append(box)
        rows = box.change.rows
        self._bytes += 0 if rows is None else sum(a.nbytes for a in rows.arrays().values())
        if (
            self._bytes >= COMMIT_BYTES
            or len(self._held) >= COMMIT_BOXES
            or time.monotonic() - self._since >= self._work.commit_seconds
        ):
            yield from self._commit()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Commit what is left."""
        for done in self._commit():
            yield _windowed(done)
        for ended in self._line().rest():
            for done in self._settled(ended):
                yield _windowed(done)
        count_io()

    def teardown(self) -> None:
        """Forget what a bundle that failed has left."""
        self._held = []
        if self._behind is not None:
            self._behind.drop()

    def _line(self) -> "ReadAhead[Timed[list[Done]]]":
        if self._behind is None:
            raise RuntimeError("the bundle has not begun")
        return self._behind

    def _may_share(self, one: BoxOutput, other: BoxOutput) -> bool:
        """Whether two boxes may stand in one commit: of one partition, and not the same twice."""
        name = self._work.generation.partition_name
        a, b = (coordinate_of(o.change.box) for o in (one, other))
        return a != b and name(a) == name(b)

    def _commit(self) -> Iterator[Done]:
        """Begin to commit what is held; yields what the commit before it has settled."""
        work, held = self._work, self._held
        if not held:
            return
        self._held, self._bytes = [], 0
        self._since = time.monotonic()
        for ended in self._line().put(lambda: timing(lambda: list(commit_outputs(work, held)))):
            yield from self._settled(ended)

    def _settled(self, ended: Timed[list[Done]]) -> Iterator[Done]:
        note("commit_ms", ended.ms)
        note("boxes_a_commit", len(ended.result))
        for done in ended.result:
            count(_counter(done))
            yield done


def _windowed(element: Any) -> WindowedValue:
    """An element as ``finish_bundle`` yields it."""
    window = GlobalWindow()
    return WindowedValue(element, window.max_timestamp(), [window])


def _counter(done: Done) -> str:
    """The counter of a box that came to its commit."""
    if done.found:
        return "boxes_skipped"
    if done.stands is None:
        return "boxes_removed"
    return "boxes_failed" if isinstance(done.stands, Failure) else "boxes"


@dataclasses.dataclass(eq=False)
class EmbedBoxes(beam.PTransform):
    """The fused chain of a box: BoxNodes, or BoxOutput where it is settled already -> Done.

    Attributes:
        work: The run.
        after: Collections that must be complete before the first box is looked at.
    """

    work: EmbedWork
    after: tuple[beam.PCollection, ...] = ()

    def expand(self, boxes: beam.PCollection) -> beam.PCollection:
        """Wire the steps."""
        barriers = [beam.pvalue.AsIter(c) for c in self.after]
        looked = boxes | "ReviewBox" >> beam.ParDo(ReviewBox(self.work), *barriers).with_outputs(
            ReviewBox.DONE, main="owed"
        )
        done = (
            looked.owed
            | "ReadBox" >> beam.ParDo(ReadBox(self.work))
            | "EncodeBox" >> beam.ParDo(EncodeBox(self.work))
            | "CommitBoxes" >> beam.ParDo(CommitBoxes(self.work))
        )
        return (done, looked[ReviewBox.DONE]) | "AllDone" >> beam.Flatten()
