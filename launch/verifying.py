"""The job ``verify`` as the command line runs it."""

import contextlib
import dataclasses

from launch.jobs import Entry, Running, Summary, UndoneError
from pipelines import verify

# The message names so many boxes; the lines before it name a hundred.
_PLACES = 5
_LINES = 100


def run_verify(config: verify.VerifyConfig, running: Running) -> Summary:
    """Check a store.

    Raises:
        UndoneError: Something is not as it should be, or boxes are undone or set aside.
    """
    if config.volume is not None:
        return _run_volume(config.volume, config.repair, running)
    plan = verify.plan(config)
    if running.planned(plan.lines(), lambda root: verify.build(root, plan)):
        return {"dry_run": True, "plan": plan.to_json()}
    with contextlib.ExitStack() as stack:
        if config.repair:
            alone = running.registered(plan.url, plan.work.run, "verify", exclusive=True)
            fence = stack.enter_context(alone)
            plan = dataclasses.replace(plan, work=dataclasses.replace(plan.work, fence=fence))
        verify.prepare(plan, running.command)
        # No progress: what is checked leaves no trace in storage that could be counted.
        running.pipeline(lambda root: verify.build(root, plan), None)
        result = verify.finish(plan)
    running.out.say(
        *(f"{plan.url}: {line}" if not line.startswith(" ") else line for line in result.lines())
    )
    summary = {
        "store": plan.url,
        "version": result.version,
        "boxes": result.boxes,
        "nodes": result.nodes,
        "embeddings_total": result.rows,
        "failed": result.failed,
        "undone": result.undone,
        "faults": dict(result.faults),
        "faulty": [{"where": w, "kind": k, "says": s} for w, k, s in result.named],
        "repaired": result.repaired,
        "published": result.published,
    }
    if not result.clean:
        raise UndoneError(_left(plan, result), summary)
    return summary


def _run_volume(volume: str, repair: bool, running: Running) -> Summary:
    """Check a volume.

    Raises:
        UndoneError: Something is not as it was written.
    """
    plan = verify.plan_volume(volume, repair=repair)
    if running.planned(plan.lines(), lambda root: verify.build_volume(root, plan)):
        return {"dry_run": True, "plan": plan.to_json()}
    # No progress: what is checked leaves no trace in storage that could be counted.
    counts = running.pipeline(lambda root: verify.build_volume(root, plan), None)
    result = verify.finish_volume(plan, counts, counts.sets.get("faults", ()))
    running.out.say(
        f"{plan.volume}: {result.units:,} units, {result.objects:,} objects, "
        f"{result.bytes:,} bytes checked",
        *(f"  {fault.line()}" for fault in result.named[:_LINES]),
    )
    summary = {
        "volume": plan.volume,
        "units": result.units,
        "objects": result.objects,
        "bytes_read": result.bytes,
        "faults": dict(result.faults),
        "faulty": [fault.to_json() for fault in result.named],
        "repaired": result.repaired,
    }
    if result.faults:
        found = ", ".join(f"{n:,} {kind}" for kind, n in result.faults)
        jobs = " and ".join(name for name, _ in plan.jobs)
        how = "" if repair else "run verify again with --repair, then "
        raise UndoneError(
            f"{plan.volume}: {found}. To go on: {how}the same {jobs} command again, which does "
            "only what is not there",
            summary,
        )
    return summary


def _left(plan: verify.VerifyPlan, result: verify.Result) -> str:
    what = "" if result.version is None else f" version {result.version}"
    named = [f"{n:,} {kind}" for kind, n in result.left]
    if result.undone:
        named.append(f"{verify.boxes_text(result.undone)} undone")
    places = list(dict.fromkeys(where for where, _, _ in result.named))
    more = ", ..." if len(places) > _PLACES else ""
    return (
        f"{plan.url}{what}: {', '.join(named)} ({', '.join(places[:_PLACES])}{more}). To go on: "
        f"{'; '.join(result.remedies())}"
    )


JOBS: dict[str, Entry] = {"verify": (verify.VerifyConfig, run_verify)}
"""The jobs of this module."""
