"""The graph of an ingest; it never sees a runner."""

import apache_beam as beam
from apache_beam.pvalue import PCollection

from pipelines.ingest.plan import IngestPlan
from transforms.ingest import IngestSlabs
from volumes.slabs import SlabRecord


def build(root: beam.Pipeline, plan: IngestPlan) -> PCollection[SlabRecord]:
    """Put the ingest of a prepared plan into a pipeline; gives the record of every slab."""
    records: PCollection[SlabRecord] = root | "Ingest" >> IngestSlabs(plan.job)
    return records
