"""The fused chain of a box: is it done, read, encode, commit.

    BoxNodes -> SkipCommitted -> ReadBox -> EncodeBox -> CommitBox -> Done

Voxels, crops and vectors pass from step to step inside one process and never cross a shuffle; what
a step emits is dropped as soon as the next has taken it.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from segclr.encoder import shared_encoder
from segclr.errors import ModelError
from transforms.counting import count, timed
from transforms.work import (
    BoxInput,
    BoxNodes,
    BoxOutput,
    Done,
    EmbedWork,
    check_labels,
    embed_box,
    fingerprint_of,
    plan_of,
)
from volumes import partition
from volumes.errors import RunError
from volumes.opening import Volume, open_volume
from volumes.reading import Part, Request, Subvolume, read_boxes
from volumes.receipts import BoxPlan
from volumes.store import coordinate_of

# Plans of one partition are few and small, but a commit of all of a partition's is still bounded.
_PLANS_A_COMMIT = 256


def box_done(work: EmbedWork, index: int, plan: BoxPlan | None) -> Done | None:
    """The committed state of a box, or None where there is work to do.

    Args:
        work: The run.
        index: The box.
        plan: What the box owes; None to take the plan that an earlier attempt committed, which is
            right where the run's identity fixes the nodes.

    Raises:
        RunError: A receipt of another fingerprint stands there.
    """
    where, _ = work.generation.place(work.grid.coordinate(index))
    receipt = partition.read_receipt(where, work.key(index))
    if receipt is None:
        return None
    plan = plan or partition.read_plan(where, work.key(index))
    if plan is None or receipt.fingerprint != fingerprint_of(work, plan):
        raise RunError(
            f"{work.describe(index)} is committed with fingerprint {receipt.fingerprint[:12]}, "
            "which is not this run's: another run's rows stand there and were left as they are"
        )
    return Done(receipt, skipped=True, bytes_read=0)


def commit_plans(work: EmbedWork, plans: list[tuple[int, BoxPlan]]) -> int:
    """Commit plans of boxes of one partition; returns how many were new."""
    where, _ = work.generation.place(work.grid.coordinate(plans[0][0]))
    new = 0
    for start in range(0, len(plans), _PLANS_A_COMMIT):
        part = [plan for _, plan in plans[start : start + _PLANS_A_COMMIT]]
        new += partition.plan_boxes(where, part)
    return new


def read_input(work: EmbedWork, image: Volume, segmentation: Volume, box: BoxNodes) -> BoxInput:
    """Read what a box's crops need, many futures in one batch.

    Raises:
        RunError: Storage fails or the policy for missing segmentation refuses; the box is named.
    """
    read_box, labels_box = work.read_box(box.index), work.labels_box(box.index)
    requests = [Request(image, read_box)]
    if box.labels is None:
        requests.append(Request(segmentation, labels_box))
    try:
        parts = read_boxes(requests, bytes_in_flight=work.bytes_in_flight)
    except RunError as e:
        raise RunError(f"{work.describe(box.index)}: {e}") from e
    labels: Part = parts[1] if box.labels is None else box.labels
    check_labels(work, box.index, labels)
    subvolume = Subvolume(
        box=read_box,
        image=parts[0].array,
        labels_box=labels_box,
        labels=labels.array,
        missing_image=parts[0].missing,
        missing_labels=labels.missing,
        bytes_decoded=parts[0].bytes_decoded + labels.bytes_decoded,
    )
    return BoxInput(box.index, box.nodes, subvolume)


class PlanBox(beam.DoFn):
    """BoxNodes -> (partition name, (box index, plan))."""

    def __init__(self, work: EmbedWork) -> None:
        """Plans boxes of ``work``."""
        self._work = work

    def process(self, box: BoxNodes) -> Iterator[tuple[str, tuple[int, BoxPlan]]]:
        """Yield what one box owes."""
        name = self._work.generation.partition_name(self._work.grid.coordinate(box.index))
        yield name, (box.index, plan_of(self._work, box.index, box.nodes))


class CommitPlans(beam.DoFn):
    """(partition name, its boxes' plans) -> the name, once the plans are durable."""

    def __init__(self, work: EmbedWork) -> None:
        """Commits plans of ``work``."""
        self._work = work

    def process(self, owed: tuple[str, Iterable[tuple[int, BoxPlan]]]) -> Iterator[str]:
        """Commit the plans of one partition."""
        name, plans = owed
        count("plans", commit_plans(self._work, sorted(plans, key=lambda p: p[0])))
        yield name


class SkipCommitted(beam.DoFn):
    """Passes on the boxes that still have work to do; the others go out as done."""

    DONE = "done"

    def __init__(self, work: EmbedWork) -> None:
        """Checks boxes of ``work``."""
        self._work = work

    def process(self, box: BoxNodes, *barriers: Any) -> Iterator[Any]:
        """Yield the box, or its receipt; ``barriers`` are side inputs that must come first."""
        done = box_done(self._work, box.index, plan_of(self._work, box.index, box.nodes))
        if done is None:
            yield box
        else:
            count("boxes_skipped")
            yield beam.pvalue.TaggedOutput(self.DONE, done)


class ReadBox(beam.DoFn):
    """BoxNodes -> BoxInput."""

    def __init__(self, work: EmbedWork) -> None:
        """Reads boxes of ``work``."""
        self._work = work
        self._volumes: tuple[Volume, Volume] | None = None

    def setup(self) -> None:
        """Open both volumes."""
        self._volumes = (open_volume(self._work.image), open_volume(self._work.segmentation))

    def process(self, box: BoxNodes) -> Iterator[BoxInput]:
        """Read one box."""
        if self._volumes is None:
            raise RuntimeError("setup has not run")
        with timed("read_ms"):
            read = read_input(self._work, *self._volumes, box)
        count("bytes_read", read.subvolume.bytes_decoded)
        yield read


class EncodeBox(beam.DoFn):
    """BoxInput -> BoxOutput; the model is loaded when the first box needs it, once a process."""

    def __init__(self, work: EmbedWork) -> None:
        """Encodes boxes of ``work``."""
        self._work = work

    def process(self, box: BoxInput) -> Iterator[BoxOutput]:
        """Encode one box."""
        try:
            encoder = shared_encoder(self._work.model)
        except ModelError as e:
            raise RunError(str(e)) from e
        with timed("encode_ms"):
            output = embed_box(self._work, encoder, box)
        count("embeddings", len(output.rows))
        for reason, n in output.receipt.rejected:
            count(f"rejected_{reason}", n)
        yield output


class CommitBox(beam.DoFn):
    """BoxOutput -> Done, once rows and receipt are durable."""

    def __init__(self, work: EmbedWork) -> None:
        """Commits boxes of ``work``."""
        self._work = work

    def process(self, box: BoxOutput) -> Iterator[Done]:
        """Commit one box."""
        where, local = self._work.generation.place(coordinate_of(box.receipt.box))
        with timed("commit_ms"):
            stands = partition.commit_box(where, local, box.rows, box.receipt)
        skipped = stands is not box.receipt
        count("boxes_skipped" if skipped else "boxes")
        yield Done(stands, skipped, box.bytes_read)


@dataclasses.dataclass(eq=False)
class OweBoxes(beam.PTransform):
    """Commits what is owed: BoxNodes -> names of the partitions, once their plans are durable."""

    work: EmbedWork

    def expand(self, boxes: beam.PCollection) -> beam.PCollection:
        """Wire the steps."""
        return (
            boxes
            | "PlanBox"
            >> beam.ParDo(PlanBox(self.work)).with_output_types(tuple[str, tuple[int, BoxPlan]])
            | "GroupByPartition" >> beam.GroupByKey()
            | "CommitPlans" >> beam.ParDo(CommitPlans(self.work))
        )


@dataclasses.dataclass(eq=False)
class EmbedBoxes(beam.PTransform):
    """The fused chain of a box: BoxNodes -> Done.

    Attributes:
        work: The run.
        after: Collections that must be complete before the first box is looked at.
    """

    work: EmbedWork
    after: tuple[beam.PCollection, ...] = ()

    def expand(self, boxes: beam.PCollection) -> beam.PCollection:
        """Wire the steps."""
        barriers = [beam.pvalue.AsIter(c) for c in self.after]
        looked = boxes | "SkipCommitted" >> beam.ParDo(
            SkipCommitted(self.work), *barriers
        ).with_outputs(SkipCommitted.DONE, main="owed")
        done = (
            looked.owed
            | "ReadBox" >> beam.ParDo(ReadBox(self.work))
            | "EncodeBox" >> beam.ParDo(EncodeBox(self.work))
            | "CommitBox" >> beam.ParDo(CommitBox(self.work))
        )
        return (done, looked[SkipCommitted.DONE]) | "AllDone" >> beam.Flatten()
