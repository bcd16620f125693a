"""The end of a check: the accounting of the whole store, and what is published after a repair."""

from collections.abc import Iterator
from typing import Any

from transforms.audits import FAILED, STALE, Fault
from transforms.findings import Finding, VerifyWork
from volumes import provenance, store
from volumes.errors import DataError
from volumes.generation import Generation
from volumes.geometry import ChunkGrid
from volumes.receipts import json_digest
from volumes.seals import Seal


def total_faults(
    work: VerifyWork, document: dict[str, Any] | None, planned: int
) -> Iterator[Fault]:
    """The nodes planned, against those that the run of a version read or sampled."""
    if document is None:
        yield Fault("unfinished", "store", _unfinished(work))
        return
    url, run = work.generation.store, document["run"]
    unplaced = document["unplaced"]
    if "rows" in unplaced:
        away = sum(n for name, n in unplaced.items() if name != "rows")
        if unplaced["rows"] != planned + away:
            yield Fault(
                "totals",
                "store",
                f"run {run} read {unplaced['rows']} nodes, {planned} are planned and {away} belong "
                "to no box",
            )
        return
    walked, manifest = store.read_run(url, run, "walked"), store.read_run(url, run, "manifest")
    if walked is None or manifest is None:
        yield Fault("totals", "store", f"run {run} left no record of what it walked")
        return
    grid = ChunkGrid.from_json(manifest["grid"])
    if walked["boxes"] != grid.size or not _covered(work.generation, grid, walked["ranges"]):
        says = f"run {run} walked {walked['boxes']} boxes, and its grid has {grid.size}"
        yield Fault("totals", "store", says)
    if walked["nodes"] != planned:
        says = f"run {run} sampled {walked['nodes']} sites, and {planned} are planned"
        yield Fault("totals", "store", says)


def standing_version(work: VerifyWork) -> dict[str, Any] | None:
    """The document of the version that is checked, or that what stands now was published as.

    None where the store was begun with other inputs, nodes or parameters since, or never published.
    """
    generation = work.generation
    if work.version is not None:
        return store.read_version(generation.store, work.version)
    latest = store.latest_version(generation.store)
    manifest = store.read_manifest(generation.store, generation.name)
    if latest is None or manifest is None:
        return None
    same = latest[1]["generation"]["name"] == generation.name and latest[1][
        "identity"
    ] == json_digest(manifest["identity"])
    return latest[1] if same else None


def _unfinished(work: VerifyWork) -> str:
    numbers = store.version_numbers(work.generation.store)
    if not numbers:
        return "nothing is published yet: the run did not come to its end"
    return (
        f"a run with other inputs, nodes or parameters than those of version {numbers[-1]} has "
        "begun and did not come to its end"
    )


def _covered(generation: Generation, grid: ChunkGrid, ranges: list[list[int]]) -> bool:
    """Whether ranges, joined where they meet, hold each place of each partition once."""
    whole = generation.partition("0_0_0").boxes
    return len(ranges) == generation.blocks(grid).size and all(
        tuple(span) == (block, 0, whole) for block, span in enumerate(ranges)
    )


def publish(
    work: VerifyWork, document: dict[str, Any] | None, found: Finding, seals: list[Seal]
) -> int | None:
    """Publish a version that records undone boxes, so that embed knows of them; its number.

    Nothing is published where no box is undone, and where a run goes on anyway: one that was never
    published, or that changes what is committed. Nor where a partition cannot be accounted for.
    """
    stale = dict(found.left).get(STALE, 0)
    if document is None or not found.undone or stale or found.unsealed:
        return None
    body = {key: document[key] for key in ("run", "identity", "unplaced")}
    return store.publish(
        work.generation, seals, body | {"published": provenance.now(), "repaired_by": work.run}
    )


def close(work: VerifyWork, found: Finding, seals: list[Seal]) -> dict[str, Any]:
    """Add the accounting of the whole store, publish after a repair, and write the outcome."""
    document = None
    try:
        document = standing_version(work)
        faults = list(total_faults(work, document, found.nodes))
    except DataError as e:
        faults = [Fault("totals", "store", f"the nodes that were read cannot be told: {e}")]
    found = Finding.total([found, Finding.of(faults)])
    published = publish(work, document, found, seals) if work.repair else None
    known = document is None or published is not None or document["undone_boxes"] > 0
    outcome = {
        "version": work.version,
        "boxes": found.boxes,
        "nodes": found.nodes,
        "rows": found.rows,
        "failed": dict(found.faults).get(FAILED, 0),
        "undone": found.undone,
        "repaired": found.repaired,
        "faults": dict(found.faults),
        "left": dict(found.left),
        "mendable": found.mendable,
        "named": [{"where": f.where, "kind": f.kind, "says": f.says} for f in found.named],
        "published": published,
        "recorded": known,
    }
    store.write_run(work.generation.store, work.run, "verified", outcome)
    return outcome
