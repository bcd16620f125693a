"""The jobs ``versions``, ``diff`` and ``compact`` as the command line runs them."""

import contextlib
import dataclasses
import pathlib
import tempfile

from launch import runner
from launch.engines import engine_of
from launch.jobs import Entry, Running, Summary, Watch
from pipelines import compact, diff, versions
from pipelines.request import store_url
from volumes import objects
from volumes.errors import RequestError


def run_versions(config: versions.VersionsConfig, running: Running) -> Summary:
    """List the versions of a store."""
    url = store_url(config.store)
    if running.planned([f"store: {url}, its documents are read and nothing is written"]):
        return {"dry_run": True, "plan": {"job": "versions", "store": url}}
    found = versions.listed(config)
    if found:
        running.out.say(*versions.table(found))
    else:
        running.out.say(f"{url} has no published version yet")
    return {"store": url, "versions": [v.to_json() for v in found]}


def run_diff(config: diff.DiffConfig, running: Running) -> Summary:
    """Compare two versions of a store.

    Raises:
        RequestError: The workers are elsewhere, and there is no place for the result.
    """
    plan = diff.plan(config)
    if config.output is None and not engine_of(running.asked.runner).local:
        raise RequestError(
            f"--runner {running.asked.runner} needs --output here: its workers are on other "
            "machines, and hand back what they find as a file; name one that they and this machine "
            "reach"
        )
    shown = plan if config.output is not None else plan.into("diff.csv")
    if running.planned(plan.lines(), lambda root: diff.build(root, shown)):
        return {"dry_run": True, "plan": plan.to_json()}
    with contextlib.ExitStack() as stack:
        if config.output is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            plan = plan.into(str(pathlib.Path(folder) / "diff.csv"))
        counts = runner.Counts()
        if plan.complete is not None:
            running.out.say(f"nothing to do: {plan.work.output} has all of this diff already")
        else:
            diff.prepare(plan)
            watch = Watch(lambda: sum(map(objects.exists, plan.files())), plan.work.parts, "files")
            counts = running.pipeline(lambda root: diff.build(root, plan), watch)
        result = diff.finish(plan)
    work = plan.work
    running.out.say(
        f"{work.store}: from version {work.before} to version {work.after} {result.added:,} nodes "
        f"added, {result.removed:,} removed, {result.changed:,} changed, of "
        f"{result.segments:,} segments",
        *result.table(),
    )
    return {
        "store": work.store,
        "from": work.before,
        "to": work.after,
        "added": result.added,
        "removed": result.removed,
        "changed": result.changed,
        "segments": result.segments,
        "largest": [
            {"segment_id": s, "added": a, "removed": r, "changed": c}
            for s, a, r, c in result.largest
        ],
        "files": [] if config.output is None else list(result.files),
        "partitions_compared": counts.get("partitions_compared", 0),
        "boxes_compared": counts.get("boxes_compared", 0),
        "rows_read": counts.get("rows_read", 0),
    }


def run_compact(config: compact.CompactConfig, running: Running) -> Summary:
    """Remove from a store what its newest versions do not need."""
    plan = compact.plan(config)
    if running.planned(plan.lines(), lambda root: compact.build(root, plan)):
        return {"dry_run": True, "plan": plan.to_json()}
    alone = running.registered(
        plan.url, plan.work.run, "compact", scheduled=config.scheduled, exclusive=True
    )
    with alone as fence:
        # What is there now that nobody else works on it.
        now = compact.plan(config)
        work = dataclasses.replace(now.work, run=plan.work.run, fence=fence)
        plan = dataclasses.replace(now, work=work)
        watch = Watch(lambda: compact.done(plan), plan.partitions, "partitions")
        running.pipeline(lambda root: compact.build(root, plan), watch)
        result = compact.finish(plan)
    running.out.say(*(f"{plan.url}: {line}" for line in result.lines()))
    return {"store": plan.url, **dataclasses.asdict(result)}


JOBS: dict[str, Entry] = {
    "versions": (versions.VersionsConfig, run_versions),
    "diff": (diff.DiffConfig, run_diff),
    "compact": (compact.CompactConfig, run_compact),
}
"""The jobs of this module."""
