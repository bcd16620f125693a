"""The job ``ingest``: image sections, HDF5, NPY and more to a volume.

``plan`` looks at metadata and refuses what cannot work; what follows is ``pipelines.writing``.
"""

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.plan import plan

__all__ = ["IngestConfig", "plan"]
