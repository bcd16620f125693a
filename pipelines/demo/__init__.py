"""The job ``demo``: a synthetic volume made on the spot, ingested, embedded, exported, pictured."""

from pipelines.demo.job import DemoConfig, account, make_sample, plan_lines

__all__ = ["DemoConfig", "account", "make_sample", "plan_lines"]
