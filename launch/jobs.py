"""The main jobs as the command line runs them: config, plan, graph, summary."""

import argparse
import contextlib
import dataclasses
import shlex
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam

from launch import console, progress, runner
from launch.cli import DONE, FAILED, WRONG
from launch.console import Console
from launch.engines import Asked, engine_of
from launch.graphs import GraphFiles, graph_files
from pipelines import convert, downsample, embed, export, ingest, reprocess, writing
from pipelines.io import io_line, io_summary
from volumes import objects, partition, runs, store
from volumes.commits import Fence
from volumes.errors import RequestError, RunError
from volumes.runs import StoreBusyError
from volumes.spec import redacted_source

Summary = dict[str, Any]


class GivenWayError(Exception):
    """A scheduled run found another one at work; that counts as done."""


class UndoneError(RunError):
    """A run came to its end and left boxes undone; its summary is shown with the message."""

    def __init__(self, message: str, summary: Summary) -> None:
        """What is undone, and all that was done."""
        super().__init__(message)
        self.summary = summary


@dataclasses.dataclass(frozen=True, slots=True)
class Watch:
    """How a job's progress is seen: what counts the units that are done, of how many."""

    look: Callable[[], int]
    total: int
    unit: str


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """How a job is run, whatever the job.

    Attributes:
        asked: What is asked of the engine.
        dry_run: Print the plan and stop.
        command: The whole command line without secrets, for the record.
        out: Where to say what happens.
        graph: Where the job's graph is written; None where nobody asked.
    """

    asked: Asked
    dry_run: bool
    command: str
    out: Console
    graph: GraphFiles | None = None

    def pipeline(self, build: Callable[[beam.Pipeline], Any], watch: Watch | None) -> runner.Counts:
        """Build a job's graph and run it, showing progress; gives Beam's counters.

        Args:
            build: Puts the graph into a pipeline.
            watch: How progress is seen; None where storage does not tell it.
        """
        if watch is None:
            return runner.run(build, self.asked, self.graph)
        with progress.shown(watch.look, watch.total, watch.unit, self.out):
            return runner.run(build, self.asked, self.graph)

    @contextlib.contextmanager
    def registered(
        self,
        url: str,
        run: str,
        job: str,
        identity: str = "",
        *,
        scheduled: bool = False,
        exclusive: bool = False,
    ) -> Iterator[Fence]:
        """Register a run in its store while the body runs; gives the run's fence.

        Args:
            url: The store.
            run: The run's name.
            job: The job.
            identity: What makes a run the same run.
            scheduled: Whether it gives way to a living run.
            exclusive: Whether it works alone; a scheduled one does.

        Raises:
            GivenWayError: Another run lives, and this one is scheduled.
            StoreBusyError: Another run lives, which this one may not work beside.
        """
        registering = runs.registered(
            url,
            run,
            job=job,
            exclusive=exclusive or scheduled,
            command=self.command,
            identity=identity,
        )
        try:
            with registering as known:
                yield Fence(known.epoch, known.exclusive)
        except StoreBusyError as e:
            if not scheduled:
                raise
            raise GivenWayError(
                f"nothing done: {url} is being worked on by {e.other.describe()}; a scheduled "
                "start gives way"
            ) from e

    def planned(
        self, lines: Sequence[str], build: Callable[[beam.Pipeline], Any] | None = None
    ) -> bool:
        """Show a plan; whether to stop there.

        Args:
            lines: The plan.
            build: Puts the job's graph into a pipeline; None where the job has none.
        """
        indented = [f"  {line}" for line in lines]
        if self.dry_run:
            if build is not None and self.graph is not None:
                runner.built(build, self.asked, self.graph)
            self.out.say("plan:", *indented, "dry run: nothing was written")
        else:
            self.out.tell(*indented)
        return self.dry_run


def beam_words(left_over: Sequence[str], known: Sequence[str]) -> list[str]:
    """The words that go to Beam; see ``runner.split_beam_flags``."""
    return runner.split_beam_flags(left_over, known)


def without_secrets(text: str) -> str:
    """The text as it may be printed."""
    return objects.redacted(text)


Entry = tuple[Any, Callable[[Any, Running], Summary]]
"""How a job is run: the class of its config, and what takes one."""


def run_job(
    name: str, entry: Entry, parsed: argparse.Namespace, words: list[str], typed: Sequence[str]
) -> tuple[int, str, Summary]:
    """Run a job.

    Args:
        name: The job.
        entry: How it is run.
        parsed: Its flags.
        words: Flags for Beam.
        typed: The command line, for the record.

    Returns:
        Exit status; a message, empty where all went well; the summary, without secrets.

    Raises:
        UsageError: There is no such runner, or it lacks something.
        KeyboardInterrupt: The user stopped it.
    """
    started = time.monotonic()
    asked = Asked(parsed.runner, parsed.workers, tuple(words), _places(parsed))
    runner.ready(asked)
    config, run = entry
    with console.opened(parsed.quiet, parsed.verbose) as out:
        running = Running(asked, parsed.dry_run, recorded(typed), out)
        try:
            if getattr(parsed, "graph", None) is not None:
                running = dataclasses.replace(running, graph=graph_files(name, parsed.graph))
            for warning in engine_of(asked.runner).check(asked):
                out.say(f"warning: {warning}")
            summary = run(_config(config, parsed), running)
            if running.graph is not None:
                summary["graph"] = running.graph.told(out.say)
        except GivenWayError as e:
            out.say(str(e))
            summary = {"gave_way": True}
        except (RequestError, RunError) as e:
            if parsed.verbose:
                out.complain(*traceback.format_exception(e))
            elif isinstance(e, runner.UnforeseenError):
                out.complain(*out.overheard())
            left = _summed(name, e.summary, started) if isinstance(e, UndoneError) else {}
            return (WRONG if isinstance(e, RequestError) else FAILED), str(e), left
    return DONE, "", _summed(name, summary, started)


def _summed(name: str, summary: Summary, started: float) -> Summary:
    seconds = round(time.monotonic() - started, 3)
    summed: Summary = objects.redacted({"job": name, **summary, "seconds": seconds})
    return summed


def recorded(typed: Sequence[str]) -> str:
    """A command line as it may be written down: without secrets, to be typed again."""
    words: list[str] = []
    before = ""
    for word in typed:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        # A flag whose name tells of a secret loses its value, also where that is the next word.
        secret = not objects.redacted({(flag if equals else before): ""})
        words.append(flag + equals + ("REMOVED" if secret and value else redacted_source(value)))
        before = flag
    return shlex.join(["segclr-beam", *words])


# The flags that say what is read and written.
_PLACES = (
    *("source", "input", "volume", "image", "segmentation", "agglomeration", "nodes", "model"),
    *("store", "output"),
)


def _places(parsed: argparse.Namespace) -> tuple[str, ...]:
    given = (getattr(parsed, name, None) for name in _PLACES)
    return tuple(place for place in given if isinstance(place, str))


def _config(cls: Any, parsed: argparse.Namespace) -> Any:
    """A config from the flags that carry its fields' names; other fields keep their own."""
    given = vars(parsed)
    return cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given})


def run_ingest(config: ingest.IngestConfig, running: Running) -> Summary:
    """Make a volume."""
    return write_volume(ingest.plan(config), running)


def run_convert(config: convert.ConvertConfig, running: Running) -> Summary:
    """Make a volume of a volume."""
    return write_volume(convert.plan(config), running)


def run_downsample(config: downsample.DownsampleConfig, running: Running) -> Summary:
    """Make coarser levels of a volume."""
    return write_volume(downsample.plan(config), running)


def write_volume(plan: writing.WritePlan, running: Running) -> Summary:
    """Run a job that writes a volume."""
    if running.planned(plan.lines(), lambda root: writing.build(root, plan)):
        return {"dry_run": True, "plan": plan.to_json()}
    prepared = writing.prepare(plan, running.command)
    counts = runner.Counts()
    if prepared.pending:
        watch = Watch(lambda: writing.units_done(plan), prepared.units, "units")
        counts = running.pipeline(lambda root: writing.build(root, plan), watch)
    else:
        running.out.say(prepared.line())
    done = writing.finish(plan)
    ratio = done["bytes_raw"] / max(1, done["bytes_stored"])
    running.out.say(
        f"{plan.output}: {done['voxels']:,} voxels in {done['units']:,} units, "
        f"{counts.get('units', 0):,} written now; {done['bytes_stored']:,} bytes stored, "
        f"{ratio:.2f} times fewer than raw",
        *(f"warning: {w}" for w in plan.warnings),
    )
    return {
        **done,
        "units_written": counts.get("units", 0),
        "units_skipped": counts.get("units_skipped", 0) if prepared.pending else done["units"],
        "bytes_read": counts.get("bytes_read", 0),
        "warnings": list(plan.warnings),
    }


def run_embed(config: embed.EmbedConfig, running: Running) -> Summary:
    """Embed nodes into a store."""
    plan = embed.plan(config)
    if running.planned(plan.lines(), lambda root: embed.build(root, plan)):
        return {"dry_run": True, "plan": plan.to_json()}
    url = plan.work.generation.store
    counts = runner.Counts()
    if plan.complete is not None:
        result = embed.found_complete(plan)
        running.out.say(
            f"nothing to do: {url} has all of this run as version {result.version}. Inputs are "
            "not looked at again; reprocess does that"
        )
    else:
        embed.prepare(plan, running.command)
        with _registered(plan, config.scheduled, running) as plan:
            watch = Watch(lambda: _boxes_committed(plan), plan.estimate.boxes, "boxes")
            counts = running.pipeline(lambda root: embed.build(root, plan), watch)
            result = embed.finish(plan)
    return embedded(plan, result, counts, running)


def run_reprocess(config: reprocess.ReprocessConfig, running: Running) -> Summary:
    """Bring a store up to date."""
    plan = reprocess.plan(config)
    if running.planned(plan.lines(), lambda root: embed.build(root, plan)):
        return {"dry_run": True, "plan": plan.to_json()}
    with _registered(plan, config.scheduled, running) as plan:
        embed.prepare(plan, running.command)
        watch = None  # boxes that are looked at and found as they were leave no trace
        if not plan.work.renew:
            watch = Watch(lambda: _boxes_committed(plan), plan.estimate.boxes, "boxes")
        counts = running.pipeline(lambda root: embed.build(root, plan), watch)
        result = embed.finish(plan)
    return embedded(plan, result, counts, running)


@contextlib.contextmanager
def _registered(
    plan: embed.EmbedPlan, scheduled: bool, running: Running
) -> Iterator[embed.EmbedPlan]:
    """Register a run that embeds while the body runs; gives the plan with the run's fence."""
    work = plan.work
    registering = running.registered(
        work.generation.store,
        work.run,
        plan.job,
        work.identity,
        scheduled=scheduled,
        exclusive=plan.job != "embed",
    )
    with registering as fence:
        yield dataclasses.replace(plan, work=dataclasses.replace(work, fence=fence))


def embedded(
    plan: embed.EmbedPlan, result: embed.Result, counts: runner.Counts, running: Running
) -> Summary:
    """Say and sum up what a run that embeds has done.

    Raises:
        UndoneError: Boxes are set aside.
    """
    url = plan.work.generation.store
    rejected = ", ".join(f"{n:,} {reason}" for reason, n in result.rejected) or "none"
    removed = f", {result.boxes_removed:,} boxes removed" if result.boxes_removed else ""
    running.out.say(
        f"{url}: version {result.version}, {result.embeddings_total:,} embeddings; "
        f"{result.embeddings:,} computed now in {result.boxes:,} boxes, "
        f"{result.boxes_skipped:,} boxes found committed{removed}; rejected now: {rejected}",
        f"model: {plan.work.model.title}",
        *([io_line(counts)] if counts else []),
        *(f"warning: {w}" for w in plan.warnings),
    )
    summary = {
        "store": url,
        "version": result.version,
        "boxes": result.boxes,
        "boxes_skipped": result.boxes_skipped,
        "boxes_removed": result.boxes_removed,
        "nodes": result.nodes,
        "embeddings": result.embeddings,
        "embeddings_total": result.embeddings_total,
        "rejected": dict(result.rejected),
        "failed": result.failed_boxes,
        "bytes_read": result.bytes_read,
        "io": io_summary(counts),
        "model": plan.work.model.title,
        "warnings": list(plan.warnings),
    }
    if result.failed_boxes:
        raise UndoneError(_set_aside(result, plan.job), summary)
    return summary


def _set_aside(result: embed.Result, job: str) -> str:
    again = "the same command with --retry-failed" if job == "embed" else "the same command again"
    plural = " is" if result.failed_boxes == 1 else "es are"
    named = "; ".join(error for _, error in result.failed)
    more = result.failed_boxes - len(result.failed)
    return (
        f"{result.failed_boxes:,} box{plural} set aside: {named}"
        + (f"; and {more:,} more" if more else "")
        + f". Version {result.version} has all the others; when the cause is mended, run {again}"
    )


def _boxes_committed(plan: embed.EmbedPlan) -> int:
    generation = plan.work.generation
    return sum(
        len(partition.listed(generation.partition(name), "receipts"))
        for name in store.partitions_present(generation)
    )


def run_export(config: export.ExportConfig, running: Running) -> Summary:
    """Write a version of a store as tables."""
    plan = export.plan(config)
    if running.planned(plan.lines(), lambda root: export.build(root, plan)):
        return {"dry_run": True, "plan": plan.to_json()}
    counts = runner.Counts()
    if plan.complete:
        running.out.say(f"nothing to do: {plan.output} has version {plan.version} already")
    else:
        watch = Watch(lambda: len(objects.names(plan.output)), len(plan.partitions), "files")
        counts = running.pipeline(lambda root: export.build(root, plan), watch)
    result = export.finish(plan)
    running.out.say(f"{plan.output}: {result['rows']:,} rows in {len(result['files']):,} files")
    boxes = int(plan.store.document["boxes"])
    return {
        "store": plan.work.store,
        "version": plan.version,
        "output": plan.output,
        "files": len(result["files"]),
        "boxes": 0 if plan.complete else boxes,
        "boxes_skipped": boxes if plan.complete else 0,
        "nodes": int(plan.store.document["nodes"]),
        "embeddings": 0,
        "embeddings_total": result["rows"],
        "rejected": {},
        "failed": 0,
        "bytes_read": counts.get("rows", 0) * plan.row_bytes,
    }


JOBS: dict[str, Entry] = {
    "ingest": (ingest.IngestConfig, run_ingest),
    "convert": (convert.ConvertConfig, run_convert),
    "downsample": (downsample.DownsampleConfig, run_downsample),
    "embed": (embed.EmbedConfig, run_embed),
    "reprocess": (reprocess.ReprocessConfig, run_reprocess),
    "export": (export.ExportConfig, run_export),
}
"""The jobs of this module."""
