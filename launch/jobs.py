"""The jobs as the command line runs them: config, plan, graph, summary."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from launch import progress, runner
from launch.cli import DONE, FAILED, WRONG
from pipelines import embed, export, ingest
from volumes import objects, partition, store
from volumes.errors import RequestError, RunError

Summary = dict[str, Any]

Ended = tuple[int, str, Summary]
"""Exit status, message (empty where all went well), summary."""


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
    run: Callable[..., Summary] = {"ingest": _ingest, "embed": _embed, "export": _export}[name]
    try:
        summary = run(parsed, words, objects.redacted(command))
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
    """A config from the flags that carry its fields' names."""
    return cls(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(cls)})


def _planned(lines: list[str], parsed: argparse.Namespace) -> bool:
    """Show a plan; whether to stop there."""
    if parsed.dry_run:
        _say("plan:", *(f"  {line}" for line in lines), "dry run: nothing was written")
        return True
    print(*(f"  {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)
    return False


def _ingest(parsed: argparse.Namespace, words: list[str], command: str) -> Summary:
    plan = ingest.plan(_config(ingest.IngestConfig, parsed))
    if _planned(plan.lines(), parsed):
        return {"dry_run": True, "plan": plan.to_json()}
    prepared = ingest.prepare(plan)
    counts: runner.Counts = {}
    if prepared.pending:
        where = objects.join(plan.job.output, "segclr-beam", "slabs")
        with progress.shown(
            lambda: len(objects.names(where)), prepared.slabs, "slabs", parsed.quiet
        ):
            counts = runner.run(
                lambda root: ingest.build(root, plan), parsed.runner, parsed.workers, words
            )
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


def _embed(parsed: argparse.Namespace, words: list[str], command: str) -> Summary:
    plan = embed.plan(_config(embed.EmbedConfig, parsed))
    if _planned(plan.lines(), parsed):
        return {"dry_run": True, "plan": plan.to_json()}
    url = plan.work.generation.store
    if plan.complete is not None:
        result = embed.found_complete(plan)
        _say(
            f"nothing to do: {objects.redacted(url)} has all of this run as version "
            f"{result.version}. Inputs are not looked at again; reprocess does that"
        )
    else:
        embed.prepare(plan, command)
        with progress.shown(
            lambda: _boxes_committed(plan), plan.estimate.boxes, "boxes", parsed.quiet
        ):
            runner.run(lambda root: embed.build(root, plan), parsed.runner, parsed.workers, words)
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


def _export(parsed: argparse.Namespace, words: list[str], command: str) -> Summary:
    plan = export.plan(_config(export.ExportConfig, parsed))
    if _planned(plan.lines(), parsed):
        return {"dry_run": True, "plan": plan.to_json()}
    if plan.complete:
        _say(f"nothing to do: {plan.output} has version {plan.version} already")
    else:
        with progress.shown(
            lambda: len(objects.names(plan.output)), len(plan.partitions), "files", parsed.quiet
        ):
            runner.run(lambda root: export.build(root, plan), parsed.runner, parsed.workers, words)
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
