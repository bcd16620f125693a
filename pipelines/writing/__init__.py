"""What ingest, convert and downsample share: the plan of a job that writes volumes, and its end.

``stage`` decides the units of work; ``prepare`` writes what is written once and says how much is
left; ``build`` makes the graph; ``finish`` does the accounting from storage.
"""

from pipelines.writing.graph import build
from pipelines.writing.plan import Stage, WritePlan, stage
from pipelines.writing.state import Prepared, finish, prepare, units_done

__all__ = ["Prepared", "Stage", "WritePlan", "build", "finish", "prepare", "stage", "units_done"]
