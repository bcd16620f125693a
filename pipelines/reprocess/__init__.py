"""The job ``reprocess``: brings a store up to date with what has changed since it was embedded.

``plan`` finds out what the store is to be brought to; the graph, and what is written before and
looked at after it, are those of ``pipelines.embed``.
"""

from pipelines.reprocess.config import ReprocessConfig
from pipelines.reprocess.plan import plan

__all__ = ["ReprocessConfig", "plan"]
