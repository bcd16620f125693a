"""The job ``convert``: any volume to any volume of other format, chunks, shards, codec or extent.

``plan`` looks at metadata and refuses what cannot work; what follows is ``pipelines.writing``.
"""

from pipelines.convert.config import ConvertConfig
from pipelines.convert.plan import plan

__all__ = ["ConvertConfig", "plan"]
