"""The job ``export``: a published version of an embedding store to Parquet files."""

from pipelines.export.job import ExportConfig, ExportPlan, build, finish, plan

__all__ = ["ExportConfig", "ExportPlan", "build", "finish", "plan"]
