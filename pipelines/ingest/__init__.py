"""The job ``ingest``: image sections, HDF5 or NPY to a zarr3 volume.

``plan`` looks at metadata and refuses what cannot work; ``prepare`` writes what is written once and
says how much is left; ``build`` makes the graph; ``finish`` does the accounting from storage.
"""

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.graph import build
from pipelines.ingest.plan import IngestPlan, plan
from pipelines.ingest.state import Prepared, finish, prepare

__all__ = ["IngestConfig", "IngestPlan", "Prepared", "build", "finish", "plan", "prepare"]
