"""The job ``info``: what a volume, a model or an embedding store is."""

from pipelines.info.job import InfoConfig, look
from pipelines.info.report import Report

__all__ = ["InfoConfig", "Report", "look"]
