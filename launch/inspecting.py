"""The job ``info`` as the command line runs it."""

from launch.jobs import Entry, Running, Summary
from pipelines import info
from volumes import objects


def run_info(config: info.InfoConfig, running: Running) -> Summary:
    """Tell what lies at a path."""
    path = objects.redacted(config.path)
    if running.dry_run:
        running.planned([f"{path}: metadata is read and storage is listed"])
        return {"dry_run": True, "plan": {"job": "info", "path": path}}
    report = info.look(config)
    running.out.say(*report.lines)
    return {"is": report.what, **report.body}


JOBS: dict[str, Entry] = {"info": (info.InfoConfig, run_info)}
"""The jobs of this module."""
