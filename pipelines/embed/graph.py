"""The embed graph, and what is written before and looked at after it; it never sees a runner."""

import dataclasses
from typing import Any

import apache_beam as beam

from pipelines.embed.plan import EmbedPlan
from transforms.accounts import CloseTheRun
from transforms.boxes import EmbedBoxes
from transforms.nodes import GroupNodes
from transforms.owing import OweBoxes
from transforms.standing import StandingBoxes
from transforms.walk import SampleNodes
from volumes import agglomeration, seals, store
from volumes.errors import RunError
from volumes.generation import Generation


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a run did, from the documents it left.

    Attributes:
        version: The published version.
        boxes: Boxes committed now.
        boxes_skipped: Boxes found committed.
        boxes_removed: Boxes removed now, since their nodes have vanished.
        embeddings: Vectors computed now.
        embeddings_total: Rows of the version.
        nodes: Nodes of the boxes, and those without a box.
        rejected: (reason, count) pairs, sorted.
        failed: (box, error) of boxes that are set aside, the first hundred.
        failed_boxes: How many those are.
        bytes_read: Decoded bytes read for the boxes that were looked at.
    """

    version: int
    boxes: int
    boxes_skipped: int
    boxes_removed: int
    embeddings: int
    embeddings_total: int
    nodes: int
    rejected: tuple[tuple[str, int], ...]
    failed: tuple[tuple[str, str], ...]
    failed_boxes: int
    bytes_read: int


def prepare(plan: EmbedPlan, command: str) -> None:
    """Write the store's documents, before the first box.

    Args:
        plan: The plan.
        command: The command line, for the record.
    """
    generation = plan.work.generation
    manifest = plan.manifest(command)
    store.prepare(generation, manifest, replace=plan.replaces)
    if plan.table is not None:
        agglomeration.keep(generation.store, plan.table)
    store.write_run(generation.store, plan.work.run, "manifest", manifest)


def build(root: beam.Pipeline, plan: EmbedPlan) -> beam.PCollection:
    """The graph of a run; its one element is the run's Outcome."""
    work = plan.work
    standing = root | "Standing" >> StandingBoxes(work) if work.renew else None
    if plan.source is not None:
        also = None if standing is None else standing["boxes"]
        nodes = root | "Nodes" >> GroupNodes(work, plan.source, also)
        partitions = nodes["boxes"] | "Owe" >> OweBoxes(work)
        done = nodes["boxes"] | "Embed" >> EmbedBoxes(work, after=(partitions,))
        counted = {"unplaced": nodes["unplaced"]}
    else:
        walk = root | "Walk" >> SampleNodes(work)
        partitions = walk["partitions"]
        embedded = walk["boxes"] | "Embed" >> EmbedBoxes(work)
        done = (embedded, walk["done"]) | "AllBoxes" >> beam.Flatten()
        counted = {"walked": walk["walked"]}
    if standing is not None:
        done = (done, standing["done"]) | "AllDone" >> beam.Flatten()
        partitions = (partitions, standing["partitions"]) | "AllPartitions" >> beam.Flatten()
    return partitions | "Close" >> CloseTheRun(work, done, **counted)


def finish(plan: EmbedPlan) -> Result:
    """Read how the run ended.

    Raises:
        RunError: It left boxes undone, or its accounting does not add up; the message names them
            and says how to go on.
    """
    generation, run = plan.work.generation, plan.work.run
    outcome = store.read_run(generation.store, run, "summary")
    if outcome is None:
        raise RunError(
            f"the run {run} left no summary in {generation.store}: it did not come to its end; run "
            "the same command again, which goes on from what is committed"
        )
    if outcome["undone_boxes"] or outcome["faults"]:
        raise RunError(_undone(outcome, generation))
    tally = outcome["tally"]
    unplaced = {k: n for k, n in outcome["unplaced"].items() if k != "rows"}
    return Result(
        version=outcome["version"],
        boxes=tally["boxes"],
        boxes_skipped=tally["boxes_skipped"],
        boxes_removed=tally["boxes_removed"],
        embeddings=tally["embeddings"],
        embeddings_total=outcome["embeddings_total"],
        nodes=tally["nodes"] + sum(unplaced.values()),
        rejected=seals.added([tuple(tally["rejected"].items()), tuple(unplaced.items())]),
        failed=tuple((box, error) for box, error in outcome["failed"]),
        failed_boxes=outcome["failed_boxes"],
        bytes_read=tally["bytes_read"],
    )


def found_complete(plan: EmbedPlan) -> Result:
    """The result of a run that had nothing to do."""
    if plan.complete is None:
        raise ValueError("the store is not complete")
    number, document = plan.complete
    unplaced = {k: n for k, n in document["unplaced"].items() if k != "rows"}
    return Result(
        version=number,
        boxes=0,
        boxes_skipped=document["boxes"],
        boxes_removed=0,
        embeddings=0,
        embeddings_total=document["rows"],
        nodes=document["nodes"] + sum(unplaced.values()),
        rejected=(),
        failed=tuple((box, error) for box, error in document["failed"]),
        failed_boxes=document["failed_boxes"],
        bytes_read=0,
    )


def _undone(outcome: dict[str, Any], generation: Generation) -> str:
    named = ", ".join(outcome["undone"])
    more = outcome["undone_boxes"] - len(outcome["undone"])
    parts = []
    if outcome["undone_boxes"]:
        parts.append(
            f"{outcome['undone_boxes']} planned boxes were not committed: {named}"
            + (f" and {more} more" if more else "")
        )
    parts.extend(outcome["faults"])
    return (
        f"{generation.store}: {'; '.join(parts)}. No version was published; run the same command "
        "again, which does what is missing"
    )
