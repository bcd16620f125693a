"""The job ``downsample``: coarser levels of a volume, into it or into a new one.

``plan`` looks at metadata and refuses what cannot work; what follows is ``pipelines.writing``.
"""

from pipelines.downsample.config import DownsampleConfig
from pipelines.downsample.plan import plan

__all__ = ["DownsampleConfig", "plan"]
