"""Stores of several published versions, made by hand from the rows that each is to have."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from tests.volumes.test_partition import plan_of, receipt_of
from volumes import commits, partition, runs, seals, store
from volumes.commits import Change, Fence
from volumes.embeddings import EmbeddingStore
from volumes.generation import Generation, coordinate_of
from volumes.receipts import Rows

WIDTH = 4
LATTICE = (8, 8, 8)
BLOCK = (2, 2, 2)

Node = tuple[int, int, int]
"""Segment, node, and a number that all else of its row is made from."""

Boxes = Mapping[str, list[Node]]
"""The nodes of each box."""


def rows_of(nodes: list[Node], width: int = WIDTH) -> Rows:
    ordered = sorted(nodes)
    seeds = np.array([seed for _, _, seed in ordered], np.uint32)
    n = len(ordered)
    return Rows(
        segment_id=np.array([segment for segment, _, _ in ordered], np.uint64),
        node_id=np.array([node for _, node, _ in ordered], np.uint64),
        position_nm=np.tile(seeds[:, None], (1, 3)).astype(np.float64).reshape(n, 3),
        embedding=np.tile(seeds[:, None], (1, width)).astype(np.float32).reshape(n, width),
        mask_voxels=seeds,
        crop_digest=np.tile(seeds[:, None], (1, 16)).astype(np.uint8).reshape(n, 16),
    )


def generation_of(
    folder: pathlib.Path, name: str = "1", width: int = WIDTH, lattice=LATTICE
) -> Generation:
    generation = Generation(str(folder / "store"), name, width, lattice, BLOCK)
    manifest = {
        "identity": {"model": f"of {name}"},
        "generation": generation.to_json() | {"store": ""},
        "job": "embed" if name == "1" else "reprocess",
    }
    store.prepare(generation, manifest)
    return generation


def commit(generation: Generation, boxes: Boxes) -> None:
    """Bring the newest state of a generation to these boxes and no others."""
    fence = Fence(runs.highest_epoch(generation.store))
    standing = {
        (name, box): receipt
        for name in store.partitions_present(generation)
        for box, receipt in seals.contents(generation, name).receipts.items()
    }
    wanted = {(generation.partition_name(coordinate_of(b)), b): n for b, n in boxes.items()}
    for name, box in sorted(standing.keys() | wanted.keys()):
        part, local = generation.place(coordinate_of(box))
        known, nodes = standing.get((name, box)), wanted.get((name, box))
        replaces = None if known is None else commits.standing_digest(known)
        if nodes is None:
            change = Change(local, box, replaces=replaces)
        else:
            rows = rows_of(nodes, generation.width)
            if known is not None and known.rows_digest == rows.digest():
                continue
            commits.plan_boxes(part, [plan_of(box, len(rows))], fence, replace=True)
            receipt = dataclasses.replace(receipt_of(box, rows), run=store.new_run())
            change = Change(local, box, receipt, rows, replaces=replaces)
        commits.commit_boxes(part, [change], fence)


def publish(generation: Generation, boxes: Boxes, run: str = "r") -> int:
    """Publish a version of exactly these boxes; its number."""
    commit(generation, boxes)
    names = sorted(store.partitions_present(generation))
    sealed = [seals.seal(generation, name) for name in names]
    return store.publish(generation, sealed, {"run": run, "published": "2027-01-15T08:00:00+00:00"})


def read(url: str, number: int) -> dict[str, str]:
    """The digest of each box's rows of a version, all of them read."""
    version = EmbeddingStore.open(url, number)
    return {box: version.by_box(box).digest() for box in version.boxes()}


def newest(generation: Generation) -> dict[str, int]:
    """The database version of each partition."""
    return {
        name: partition.newest_version(generation.partition(name))
        for name in sorted(store.partitions_present(generation))
    }
