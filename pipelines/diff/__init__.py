"""The job ``diff``: what differs between two published versions of an embedding store."""

from pipelines.diff.job import DiffConfig, DiffPlan, Result, build, finish, plan, prepare

__all__ = ["DiffConfig", "DiffPlan", "Result", "build", "finish", "plan", "prepare"]
