"""The graph of a job that writes volumes; it never sees a runner."""

import apache_beam as beam
from apache_beam.pvalue import PCollection

from pipelines.writing.plan import WritePlan
from transforms.write import WriteUnits
from volumes.units import UnitRecord


def build(root: beam.Pipeline, plan: WritePlan) -> PCollection[UnitRecord]:
    """Put a prepared plan into a pipeline, pass after pass; gives the records of the last."""
    before: tuple[PCollection[UnitRecord], ...] = ()
    for stage in plan.stages:
        label = "".join(word.capitalize() for word in stage.job.name.split("-"))
        before = (root | label >> WriteUnits(stage.job, before),)
    return before[0]
