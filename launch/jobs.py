"""The jobs as the command line runs them: config, plan, graph, summary."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from launch import progress, runner
from launch.cli import DONE, FAILED, WRONG
from pipelines import demo, embed, export, ingest
from volumes import objects, partition, store
from volumes.errors import RequestError, RunError

Summary = dict[str, Any]

Ended = tuple[int, str, Summary]
"""Exit status, message (empty where all went well), summary."""


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """How a job is run, whatever the job.

    Attributes:
        engine: Beam runner.
        workers: Local processes.
        words: Flags for Beam.
        dry_run: Print the plan and stop.
        quiet: No plan and no progress on stderr.
        command: The whole command line without secrets, for the record.
    """

    engine: str
    workers: int
    words: tuple[str, ...]
    dry_run: bool
    quiet: bool
    command: str

    def pipeline(self, build: Callable[[Any], Any]) -> runner.Counts:
        """Build a job's graph and run it."""
        return runner.run(build, self.engine, self.workers, list(self.words))

    def planned(self, lines: list[str]) -> bool:
        """Show a plan; whether to stop there."""
        if self.dry_run:
            _say("plan:", *(f"  {line}" for line in lines), "dry run: nothing was written")
        elif not self.quiet:
            print(*(f"  {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)
        return self.dry_run


def beam_words(left_over: Sequence[str], known: Sequence[str]) -> list[str]:
    """The words that go to Beam; see ``runner.split_beam_flags``."""
    return runner.split_beam_flags(left_over, known) if left_over else []


def run_job(name: str, parsed: argparse.Namespace, words: list[str], command: str) -> Ended:
    """Run a job.

    Args:
        name: The job.
        parsed: Its flags.
        words: Flags for Beam.
        command: The whole command line, for the record.
    """
    started = time.monotonic()
    running = Running(
        engine=parsed.runner,
        workers=parsed.workers,
        words=tuple(words),
        dry_run=parsed.dry_run,
        quiet=parsed.quiet,
        command=objects.redacted(command),
    )
    try:
        config, run = _JOBS[name]
        summary = run(_config(config, parsed), running)
    except RequestError as e:
        return WRONG, str(e), {}
    except RunError as e:
        return FAILED, str(e), {}
    seconds = round(time.monotonic() - started, 3)
    return DONE, "", {"job": name, **summary, "seconds": seconds}


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def _config(cls: Any, parsed: argparse.Namespace) -> Any:
    """A config from the flags that carry its fields' names; other fields keep their own."""
    given = vars(parsed)
    return cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given})


def _ingest(config: ingest.IngestConfig, running: Running) -> Summary:
    plan = ingest.plan(config)
    if running.planned(plan.lines()):
        return {"dry_run": True, "plan": plan.to_json()}
    prepared = ingest.prepare(plan)
    counts: runner.Counts = {}
    if prepared.pending:
        where = objects.join(plan.job.output, "segclr-beam", "slabs")
        with progress.shown(
            lambda: len(objects.names(where)), prepared.slabs, "slabs", running.quiet
        ):
            counts = running.pipeline(lambda root: ingest.build(root, plan))
    else:
        _say(prepared.line())
    done = ingest.finish(plan)
    _say(
        f"{plan.job.output}: {done['voxels']:,} voxels in {done['slabs']:,} slabs, "
        f"{counts.get('slabs', 0):,} written now"
    )
    return {
        **done,
        "slabs_skipped": done["slabs"] - counts.get("slabs", 0),
        "bytes_read": counts.get("bytes_read", 0),
    }


def _embed(config: embed.EmbedConfig, running: Running) -> Summary:
    plan = embed.plan(config)
    if running.planned(plan.lines()):
        return {"dry_run": True, "plan": plan.to_json()}
    url = plan.work.generation.store
    if plan.complete is not None:
        result = embed.found_complete(plan)
        _say(
            f"nothing to do: {objects.redacted(url)} has all of this run as version "
            f"{result.version}. Inputs are not looked at again; reprocess does that"
        )
    else:
        embed.prepare(plan, running.command)
        with progress.shown(
            lambda: _boxes_committed(plan), plan.estimate.boxes, "boxes", running.quiet
        ):
            running.pipeline(lambda root: embed.build(root, plan))
        result = embed.finish(plan)
    rejected = dict(result.rejected)
    turned_away = ", ".join(f"{n:,} {reason}" for reason, n in rejected.items()) or "none"
    _say(
        f"{objects.redacted(url)}: version {result.version}, {result.embeddings_total:,} "
        f"embeddings; {result.embeddings:,} computed now in {result.boxes:,} boxes, "
        f"{result.boxes_skipped:,} boxes found committed; rejected: {turned_away}",
        f"model: {plan.work.model.title}",
        *(f"warning: {w}" for w in plan.warnings),
    )
    return {
        "store": objects.redacted(url),
        "version": result.version,
        "boxes": result.boxes,
        "boxes_skipped": result.boxes_skipped,
        "nodes": result.nodes,
        "embeddings": result.embeddings,
        "embeddings_total": result.embeddings_total,
        "rejected": rejected,
        "failed": 0,
        "bytes_read": result.bytes_read,
        "model": plan.work.model.title,
        "warnings": list(plan.warnings),
    }


def _boxes_committed(plan: embed.EmbedPlan) -> int:
    generation = plan.work.generation
    return sum(
        len(partition.listed(generation.partition(name), "receipts"))
        for name in store.partitions_present(generation)
    )


def _export(config: export.ExportConfig, running: Running) -> Summary:
    plan = export.plan(config)
    if running.planned(plan.lines()):
        return {"dry_run": True, "plan": plan.to_json()}
    if plan.complete:
        _say(f"nothing to do: {plan.output} has version {plan.version} already")
    else:
        with progress.shown(
            lambda: len(objects.names(plan.output)), len(plan.partitions), "files", running.quiet
        ):
            running.pipeline(lambda root: export.build(root, plan))
    result = export.finish(plan)
    _say(f"{plan.output}: {result['rows']:,} rows in {len(result['files']):,} files")
    return {
        "store": objects.redacted(plan.store.generation.store),
        "version": plan.version,
        "output": plan.output,
        "files": len(result["files"]),
        "boxes": int(plan.store.document["boxes"]),
        "boxes_skipped": 0,
        "nodes": int(plan.store.document["nodes"]),
        "embeddings": 0,
        "embeddings_total": result["rows"],
        "rejected": {},
        "failed": 0,
        "bytes_read": 0,
    }


def _demo(config: demo.DemoConfig, running: Running) -> Summary:
    if running.planned(demo.plan_lines(config)):
        return {"dry_run": True, "plan": {"job": "demo", "output": config.below()}}
    _say("sample: made" if demo.make_sample(config) else "sample: there already")
    for each in config.ingests():
        _ingest(each, running)
    summary = _embed(config.embed(running.workers), running)
    _export(config.export(), running)
    found = demo.account(config, f"segclr-beam demo: {summary['model']}")
    kinds = ", ".join(f"{n:,} {name}" for name, n in found["kinds"].items())
    _say(
        f"{found['embeddings']:,} embeddings of {found['segments']:,} segments: {kinds}",
        f"the five nearest of other segments agree on the kind for {found['knn']:.0%} (always "
        f"naming the commonest kind: {found['majority']:.0%}); the network is untrained, so expect "
        "little of it",
        f"picture: {found['picture']}",
    )
    return {**summary, "demo": found}


_JOBS: dict[str, tuple[Any, Callable[..., Summary]]] = {
    "ingest": (ingest.IngestConfig, _ingest),
    "embed": (embed.EmbedConfig, _embed),
    "export": (export.ExportConfig, _export),
    "demo": (demo.DemoConfig, _demo),
}
