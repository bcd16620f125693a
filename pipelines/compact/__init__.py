"""The job ``compact``: removes from an embedding store what its newest versions do not need."""

from pipelines.compact.job import CompactConfig, CompactPlan, Result, build, done, finish, plan

__all__ = ["CompactConfig", "CompactPlan", "Result", "build", "done", "finish", "plan"]
