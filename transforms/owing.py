"""What is owed: the plans of boxes, committed before the first of them is worked on.

BoxNodes -> PlanBox ── by partition ──> CommitPlans -> names of partitions
"""

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam

from transforms.counting import count
from transforms.work import BoxNodes, EmbedWork, plan_of
from volumes import commits
from volumes.receipts import BoxPlan

# Plans of one partition are few and small, but a commit of all of a partition's is still bounded.
_PLANS_A_COMMIT = 256


def commit_plans(work: EmbedWork, plans: list[tuple[int, BoxPlan]]) -> int:
    """Commit plans of boxes of one partition; returns how many were new."""
    where, _ = work.generation.place(work.grid.coordinate(plans[0][0]))
    replace = work.renew or work.retry_failed
    new = 0
    for start in range(0, len(plans), _PLANS_A_COMMIT):
        part = [plan for _, plan in plans[start : start + _PLANS_A_COMMIT]]
        new += commits.plan_boxes(where, part, work.fence, replace=replace)
    return new


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
        commits.shut_out(self._work.generation.partition(name), self._work.fence)
        count("plans", commit_plans(self._work, sorted(plans, key=lambda p: p[0])))
        yield name


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
