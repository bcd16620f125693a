"""The check of a store of a few boxes, damaged in every way; no Beam but what names the types."""

import dataclasses
import json
import pathlib
import pickle
import random
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from segclr.nodes import Nodes
from tests.volumes.test_partition import make_rows, receipt_of
from transforms import verdict, verify
from transforms.audits import IDS, Fault
from transforms.findings import Finding, Part, VerifyWork, finding_of
from volumes import commits, compaction, objects, partition, seals, store
from volumes.commits import Change, Fence
from volumes.errors import RunError
from volumes.generation import Generation, coordinate_of
from volumes.geometry import Box, ChunkGrid
from volumes.receipts import BoxPlan, Failure, Receipt, Rows, json_digest

IDENTITY = {"image": "a", "nodes": "n"}

# Two partitions, one with negative coordinates; a box of two chunks, one without a row.
BOXES = {"0_0_0": 3, "1_1_1": 0, "1_0_0": 600, "-1_0_2": 5, "-2_1_3": 40}
LEFT, RIGHT = "-1_0_1", "0_0_0"
NODES = 649

Found = list[tuple[str, str]]


def rows_of(n: int, seed: int) -> Rows:
    """Rows in their order, of nodes that no other seed gives."""
    first = np.uint64(2**63 + 1000 * seed)
    return dataclasses.replace(make_rows(n, seed), node_id=np.arange(n, dtype=np.uint64) + first)


def plan_of(box: str, rows: Rows, rejected: int = 0) -> BoxPlan:
    nodes = Nodes(rows.segment_id, rows.node_id, rows.position_nm)
    more = Nodes(
        np.zeros(rejected, np.uint64), np.arange(rejected, dtype=np.uint64), np.zeros((rejected, 3))
    )
    owed = Nodes.concat([nodes, more])
    return BoxPlan(box, len(owed), owed.identity_digest(), owed.digest())


def receipt(plan: BoxPlan, rows: Rows) -> Receipt:
    rejected = plan.nodes - len(rows)
    return dataclasses.replace(
        receipt_of(plan.box, rows),
        planned=plan.nodes,
        rejected=(("background", rejected),) if rejected else (),
        identities=plan.identities,
        content=plan.content,
    )


def commit(generation: Generation, box: str, rows: Rows, rejected: int = 0) -> None:
    part, local = generation.place(coordinate_of(box))
    plan = plan_of(box, rows, rejected)
    commits.plan_boxes(part, [plan])
    commits.commit_boxes(part, [Change(local, box, receipt(plan, rows), rows)])


def all_sealed(generation: Generation) -> list[seals.Seal]:
    return [seals.seal(generation, name) for name in sorted(store.partitions_present(generation))]


def publish(generation: Generation) -> int:
    body = {"run": "r", "identity": json_digest(IDENTITY)}
    unplaced = {"rows": NODES + 2, "outside": 2}
    return store.publish(generation, all_sealed(generation), body | {"unplaced": unplaced})


def make_store(url: str) -> Generation:
    generation = Generation(url, "1", 4, (8, 8, 8), (2, 2, 2))
    manifest = {"identity": IDENTITY, "generation": generation.to_json() | {"store": ""}}
    store.prepare(generation, manifest)
    for seed, (box, n) in enumerate(BOXES.items()):
        commit(generation, box, rows_of(n, seed), rejected=1 if n == 0 else 0)
    publish(generation)
    return generation


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    return make_store(str(tmp_path_factory.mktemp("verify") / "store"))


@pytest.fixture
def generation(whole: Generation, tmp_path: pathlib.Path) -> Generation:
    """A copy, to be damaged."""
    shutil.copytree(whole.store, tmp_path / "store")
    return dataclasses.replace(whole, store=str(tmp_path / "store"))


def all_faults(generation: Generation, version: int | None = None) -> list[Fault]:
    """What the graph finds, without a graph."""
    work = VerifyWork(generation, version, "run")
    faults, packed, planned = [], [], 0
    for part in verify.parts(work):
        if isinstance(part, Fault):
            faults.append(part)
            continue
        faults.extend(verify.pin_faults(part))
        if part.boxes:
            audit = verify.check_boxes(part)
            faults.extend(audit.faults)
            packed.extend(verify.by_hash(part.name, audit.ids))
            planned += sum(p.nodes for p in audit.plans.values())
    for shard in sorted({s for s, _ in packed}):
        faults.extend(verify.repeated(generation, [p for s, p in packed if s == shard]))
    try:
        faults.extend(verdict.total_faults(work, verdict.standing_version(work), planned))
    except RunError as e:
        faults.append(Fault("totals", "store", str(e)))
    return faults


def found(generation: Generation, version: int | None = None) -> Found:
    return sorted((f.kind, f.where) for f in all_faults(generation, version))


def place(generation: Generation, box: str) -> tuple[partition.Partition, int]:
    return generation.place(coordinate_of(box))


def put(generation: Generation, box: str, key: str, value: bytes | None) -> None:
    """Write or delete a key of the database that has a box; ``L`` in it is the box's place."""
    part, local = place(generation, box)
    name = key.replace("L", str(local)).replace("BOX", box)
    keys = partition.keys(part)
    transaction = ts.Transaction(atomic=True)
    keys.with_transaction(transaction).write(name, value).result()
    transaction.commit_sync()


def get(generation: Generation, box: str, key: str) -> bytes:
    part, local = place(generation, box)
    data = partition.read_key(part, key.replace("L", str(local)).replace("BOX", box))
    assert data is not None
    return data


def rewrite(generation: Generation, where: str, what: str, **values: object) -> None:
    """Change members of a document, its bytes as whole as before."""
    document = json.loads(get(generation, where, f"{what}/BOX"))
    assert values.keys() <= document.keys()
    put(generation, where, f"{what}/BOX", json.dumps(document | values).encode())


def set_value(generation: Generation, box: str, name: str, row: int, value: float) -> None:
    """Change a row through TensorStore, checksums and all."""
    part, local = place(generation, box)
    partition.array(part, name)[local, row].write(value).result()


def replace_rows(generation: Generation, box: str, order: list[int]) -> None:
    """Other rows, for which the receipt is right."""
    part, local = place(generation, box)
    rows = partition.read_rows(part, local).take(np.array(order))
    standing = partition.read_receipt(part, box)
    assert standing is not None
    new = dataclasses.replace(standing, rows_digest=rows.digest(), run="other")
    change = Change(local, box, new, rows, replaces=commits.standing_digest(standing))
    commits.commit_boxes(part, [change])


def forget(generation: Generation, box: str) -> None:
    part, local = place(generation, box)
    commits.reopen_boxes(part, [(local, box)], commits.OPEN)


def stray(generation: Generation) -> None:
    chunk = get(generation, "0_0_0", "node_id/c/L/0")
    put(generation, "0_1_0", "node_id/c/L/0", chunk)


def set_aside(generation: Generation, planned: int) -> None:
    forget(generation, "-1_0_2")
    part, local = place(generation, "-1_0_2")
    failure = Failure("-1_0_2", "f", planned, "a chunk is corrupt", 3, "r")
    commits.commit_boxes(part, [Change(local, "-1_0_2", failure=failure)])


def other_identities(generation: Generation) -> None:
    for what in ("plan", "receipts"):
        rewrite(generation, "0_0_0", what, identities="of others")


def edit_version(generation: Generation, edit: Callable[[dict], None]) -> None:
    path = pathlib.Path(generation.store, "versions", "1.json")
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def drop_pinned(generation: Generation) -> None:
    part = generation.partition(RIGHT)
    commits.shut_out(part, Fence(5, alone=True))
    compaction.compact(part, [], readers=False)


def tear_database(generation: Generation) -> None:
    path = pathlib.Path(generation.partition(LEFT).url, "manifest.ocdbt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


TOTALS = ("totals", "store")

DAMAGES: dict[str, tuple[Callable[[Generation], object], Found]] = {
    "a chunk's bytes": (
        lambda g: put(g, "1_0_0", "embedding/c/L/1/0", b"?" * 400),
        [("damaged", "1_0_0")],
    ),
    "a chunk is lost": (lambda g: put(g, "1_0_0", "node_id/c/L/1", None), [("lost", "1_0_0")]),
    "a value": (lambda g: set_value(g, "-1_0_2", "mask_voxels", 4, 7), [("rows", "-1_0_2")]),
    "an id": (lambda g: set_value(g, "1_0_0", "segment_id", 599, 1), [("rows", "1_0_0")]),
    "a receipt is lost": (
        lambda g: put(g, "1_0_0", "receipts/BOX", None),
        [("stray", "1_0_0"), ("undone", "1_0_0")],
    ),
    "a box is undone": (lambda g: forget(g, "1_1_1"), [("undone", "1_1_1")]),
    "a plan is lost": (
        lambda g: put(g, "0_0_0", "plan/BOX", None),
        [TOTALS, ("unplanned", "0_0_0")],
    ),
    "rows without a receipt": (stray, [("stray", "0_1_0")]),
    "rows beyond the axis": (
        lambda g: put(g, "0_0_0", "count/c/8", b"?"),
        [("misplaced", "partition 0_0_0")],
    ),
    "a chunk too many": (
        lambda g: put(g, "0_0_0", "node_id/c/L/1", b"?"),
        [("stray", "0_0_0")],
    ),
    "a count is wrong": (
        lambda g: put(g, "0_0_0", "count/c/L", get(g, "1_0_0", "count/c/L")),
        [("count", "0_0_0")],
    ),
    "a count is lost": (lambda g: put(g, "1_1_1", "count/c/L", None), [("count", "1_1_1")]),
    "a count is damaged": (lambda g: put(g, "1_1_1", "count/c/L", b"?"), [("damaged", "1_1_1")]),
    "a receipt for others": (
        lambda g: rewrite(g, "0_0_0", "receipts", content="of others"),
        [("stale", "0_0_0")],
    ),
    "a receipt that does not add up": (
        lambda g: rewrite(g, "0_0_0", "receipts", rejected={"nan": 1}),
        [("accounting", "0_0_0")],
    ),
    "a receipt of far too many rows": (
        lambda g: rewrite(g, "0_0_0", "receipts", committed=2**50),
        [("accounting", "0_0_0"), ("lost", "0_0_0")],
    ),
    "a receipt of another box": (
        lambda g: rewrite(g, "0_0_0", "receipts", box="1_0_0"),
        [("accounting", "0_0_0")],
    ),
    "a receipt is damaged": (
        lambda g: put(g, "0_0_0", "receipts/BOX", b""),
        [("damaged", "0_0_0")],
    ),
    "a plan is damaged": (lambda g: put(g, "0_0_0", "plan/BOX", b"{"), [("plan", "0_0_0"), TOTALS]),
    "rows out of order": (
        lambda g: replace_rows(g, "0_0_0", [1, 0, 2]),
        [("order", "0_0_0")],
    ),
    "a node twice in a box": (
        lambda g: replace_rows(g, "0_0_0", [0, 1, 1]),
        [("duplicate", "0_0_0"), ("identity", "0_0_0")],
    ),
    "rows of other nodes": (other_identities, [("identity", "0_0_0")]),
    "a key of another partition": (
        lambda g: put(g, "0_0_0", "receipts/2_0_0", get(g, "1_0_0", "receipts/BOX")),
        [("misplaced", "2_0_0")],
    ),
    "a key that is none": (
        lambda g: put(g, "0_0_0", "plan/0_00_0", get(g, "0_0_0", "plan/BOX")),
        [("misplaced", "0_00_0")],
    ),
    "a box is set aside": (lambda g: set_aside(g, 5), [("failed", "-1_0_2")]),
    "set aside with other nodes": (
        lambda g: set_aside(g, 4),
        [("accounting", "-1_0_2"), ("failed", "-1_0_2")],
    ),
    "a receipt and a failure": (
        lambda g: put(g, "0_0_0", "failed/BOX", Failure("0_0_0", "f", 3, "e", 3, "r").to_bytes()),
        [("accounting", "0_0_0")],
    ),
    "nodes of two boxes": (
        lambda g: commit(g, "0_1_0", rows_of(5, 3).take(np.array([1, 4]))),
        [("duplicate", "-1_0_2"), ("duplicate", "-1_0_2"), TOTALS],
    ),
    "a pinned version is gone": (drop_pinned, [("version", "version 1")]),
    "a version's digest": (
        lambda g: edit_version(g, lambda d: d["partitions"][LEFT].update(digest="d")),
        [("version", "version 1")],
    ),
    "a version's nodes": (
        lambda g: edit_version(g, lambda d: d["unplaced"].update(rows=1)),
        [TOTALS],
    ),
    "a version is damaged": (
        lambda g: pathlib.Path(g.store, "versions", "1.json").write_text("{"),
        [TOTALS, ("version", "version 1")],
    ),
    "the database is torn": (
        tear_database,
        [("database", f"partition {LEFT}"), TOTALS, ("version", "version 1")],
    ),
    "a partition is lost": (
        lambda g: shutil.rmtree(g.partition(LEFT).url),
        [TOTALS, ("version", "version 1")],
    ),
    "nothing was published": (
        lambda g: pathlib.Path(g.store, "versions", "1.json").unlink(),
        [("unfinished", "store")],
    ),
    "another run has begun": (
        lambda g: store.prepare(
            g, {"identity": {"image": "b"}, "generation": g.to_json() | {"store": ""}}, replace=True
        ),
        [("unfinished", "store")],
    ),
}


def test_a_whole_store_has_no_fault(whole: Generation) -> None:
    assert found(whole) == found(whole, 1) == []
    # The case is not trivial.
    assert sum(BOXES.values()) + 1 == NODES
    assert sorted(store.partitions_present(whole)) == [LEFT, RIGHT]


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_found_and_nothing_else(generation: Generation, damage: str) -> None:
    do, expected = DAMAGES[damage]
    do(generation)
    assert found(generation) == sorted(expected)


@pytest.mark.parametrize("damage", ["a chunk's bytes", "a receipt is lost", "nodes of two boxes"])
def test_a_published_version_is_checked_as_it_was_published(
    generation: Generation, damage: str
) -> None:
    DAMAGES[damage][0](generation)
    assert found(generation, 1) == []


def test_sentences_say_what_is_there_and_what_should_be(generation: Generation) -> None:
    put(generation, "1_0_0", "node_id/c/L/1", None)
    put(generation, "0_0_0", "count/c/L", get(generation, "1_0_0", "count/c/L"))
    commit(generation, "0_1_0", rows_of(5, 3).take(np.array([4])))
    says = {(f.kind, f.where): f.says for f in all_faults(generation)}
    assert says["lost", "1_0_0"] == "1 of 13 chunks are not there: node_id/c/1/1"
    assert says["count", "0_0_0"] == "the count stored is 600, and its receipt says 3 rows"
    twice = rows_of(5, 3)
    assert says["duplicate", "-1_0_2"] == (
        f"node {2**63 + 3004} of segment {twice.segment_id[4]} has a row in it, and in 0_1_0"
    )
    assert says["totals", "store"] == (
        "run r read 651 nodes, 650 are planned and 2 belong to no box"
    )


def test_documents_of_newer_software_are_no_damage(generation: Generation) -> None:
    rewrite(generation, "0_0_0", "receipts", format_version=2)
    with pytest.raises(RunError, match="segclr-receipt version 2, written by newer software"):
        found(generation)


def test_storage_that_fails_is_no_damage(generation: Generation, monkeypatch) -> None:
    def unavailable(*a: object) -> None:
        raise RunError("UNAVAILABLE: the network is down")

    monkeypatch.setattr(partition, "newest_version", unavailable)
    with pytest.raises(RunError, match="the network is down"):
        found(generation)


# -- sampled nodes --


@pytest.fixture
def sampled(generation: Generation) -> Generation:
    grid = ChunkGrid(Box((-16, 0, 0), (16, 16, 32)), (8, 8, 8))
    manifest = {"grid": grid.to_json()}
    ranges = [[b, 0, 8] for b in range(4)]
    walked = {"ranges": ranges, "boxes": grid.size, "empty": 27, "nodes": NODES}
    store.write_run(generation.store, "r", "manifest", manifest)
    store.write_run(generation.store, "r", "walked", walked)
    edit_version(generation, lambda d: d.update(unplaced={}))
    return generation


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, []),
        ({"boxes": 31}, ["run r walked 31 boxes, and its grid has 32"]),
        ({"ranges": [[0, 0, 8], [1, 0, 8], [3, 0, 8]]}, ["run r walked 32 boxes, and its grid"]),
        ({"ranges": [[0, 0, 8], [1, 0, 7], [2, 0, 8], [3, 0, 8]]}, ["run r walked 32 boxes"]),
        ({"nodes": 650}, ["run r sampled 650 sites, and 649 are planned"]),
    ],
)
def test_a_walk_covers_its_grid(sampled: Generation, change: dict, says: list[str]) -> None:
    walked = store.read_run(sampled.store, "r", "walked")
    assert walked is not None
    store.write_run(sampled.store, "r", "walked", walked | change)
    faults = all_faults(sampled)
    assert {(f.kind, f.where) for f in faults} == ({TOTALS} if says else set())
    assert [f.says.startswith(s) for f, s in zip(faults, says, strict=True)] == [True] * len(says)


def test_a_walk_without_a_record_is_told(sampled: Generation) -> None:
    pathlib.Path(sampled.store, "runs", "r", "walked.json").unlink()
    (fault,) = all_faults(sampled)
    assert fault.says == "run r left no record of what it walked"


# -- repair --


def mended(generation: Generation, fence: Fence) -> Finding:
    work = VerifyWork(generation, None, "run", repair=True, fence=fence)
    parts = []
    for part in verify.parts(work):
        assert isinstance(part, Part)
        audit = verify.check_boxes(part)
        parts.append(finding_of(*verify.mend(work, part, audit)))
    return Finding.total(parts)


ALONE = Fence(3, alone=True)


@pytest.mark.parametrize(
    ("damage", "undone"),
    [
        ("a chunk's bytes", ["1_0_0"]),
        ("a chunk is lost", ["1_0_0"]),
        ("a value", ["-1_0_2"]),
        ("a receipt is lost", ["1_0_0"]),
        ("rows without a receipt", []),
        ("a chunk too many", ["0_0_0"]),
        ("a count is lost", ["1_1_1"]),
        ("a receipt is damaged", ["0_0_0"]),
        ("a receipt of far too many rows", ["0_0_0"]),
        ("a node twice in a box", ["0_0_0"]),
    ],
)
def test_a_repair_puts_exactly_the_damaged_boxes_back(
    generation: Generation, damage: str, undone: list[str]
) -> None:
    DAMAGES[damage][0](generation)
    finding = mended(generation, ALONE)
    assert (finding.repaired, finding.undone) == (1, len(undone))
    assert finding.left == ()
    assert found(generation) == [("undone", box) for box in undone]
    assert finding.rows == sum(n for box, n in BOXES.items() if box not in undone)
    part, _ = place(generation, undone[0] if undone else "0_0_0")
    assert partition.read_key(part, "epoch") == b"3"


@pytest.mark.parametrize(
    "damage",
    ["a plan is lost", "a plan is damaged", "nodes of two boxes", "a key of another partition"],
)
def test_a_repair_leaves_what_it_cannot_mend(generation: Generation, damage: str) -> None:
    DAMAGES[damage][0](generation)
    before = {n: partition.newest_version(generation.partition(n)) for n in (LEFT, RIGHT)}
    wrong = found(generation)
    finding = mended(generation, ALONE)
    assert finding.repaired == finding.undone == 0
    assert found(generation) == wrong
    assert {n: partition.newest_version(generation.partition(n)) for n in before} == before


def test_a_box_without_a_plan_keeps_its_damaged_rows(generation: Generation) -> None:
    put(generation, "0_0_0", "plan/BOX", None)
    set_value(generation, "0_0_0", "mask_voxels", 0, 7)
    wrong = found(generation)
    assert wrong == [("rows", "0_0_0"), TOTALS, ("unplanned", "0_0_0")]
    assert mended(generation, ALONE).repaired == 0
    assert found(generation) == wrong


def test_older_runs_are_shut_out_before_a_box_is_looked_at_again(
    generation: Generation, monkeypatch
) -> None:
    set_value(generation, "0_0_0", "mask_voxels", 0, 7)
    set_value(generation, "1_0_0", "mask_voxels", 0, 7)
    rows = rows_of(3, 0)
    real = commits.shut_out

    def just_in_time(where: partition.Partition, fence: Fence) -> None:
        # An older run does one of the boxes again, before it is shut out.
        standing = partition.read_receipt(where, "0_0_0")
        assert standing is not None
        new = dataclasses.replace(standing, run="late")
        replaces = commits.standing_digest(standing)
        commits.commit_boxes(where, [Change(0, "0_0_0", new, rows, replaces=replaces)])
        real(where, fence)

    monkeypatch.setattr(commits, "shut_out", just_in_time)
    assert mended(generation, ALONE).repaired == 1
    assert found(generation) == [("undone", "1_0_0")]


# -- ids, findings, and what travels --


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 7)), max_size=40))
def test_a_node_of_two_boxes_is_found_whatever_the_partition(rows) -> None:
    generation = Generation("s", "1", 4, (8, 8, 8), (2, 2, 1))
    # The last of the three is a box: two partitions of four.
    by_name: dict[str, list[tuple[int, int, int]]] = {}
    for segment, node, box in rows:
        by_name.setdefault(f"{box // 4}_0_0", []).append((2**64 - 1 - segment, node, box % 4))
    packed = [
        pair
        for name, ids in by_name.items()
        for pair in verify.by_hash(name, np.array(ids, dtype=IDS))
    ]
    random.Random(0).shuffle(packed)
    faults = [
        f
        for shard in {s for s, _ in packed}
        for f in verify.repeated(generation, [p for s, p in packed if s == shard])
    ]
    homes: dict[tuple[int, int], set[int]] = {}
    for segment, node, box in rows:
        homes.setdefault((segment, node), set()).add(box)
    assert len(faults) == sum(len(b) > 1 for b in homes.values())
    assert sum(len(p.ids) for _, p in packed) == IDS.itemsize * len(rows)


def test_keys_are_those_of_the_places() -> None:
    generation = Generation("s", "1", 4, (8, 8, 8), (3, 2, 2))
    for box in ("0_0_0", "-1_5_7", "-7_-1_2"):
        coordinate = coordinate_of(box)
        name, local = generation.partition_name(coordinate), generation.local(coordinate)
        assert generation.box_at(coordinate_of(name), local) == coordinate


def test_findings_add_up_in_any_order_and_name_the_first_boxes() -> None:
    faults = [Fault("rows", f"{i}_0_0", "it is", mends=True) for i in range(-80, 80)]
    faults += [Fault("undone", "5_0_0", "it is"), Fault("version", "version 1", "it is")]
    shuffled = random.Random(1).sample(faults, len(faults))
    parts = [Finding.of([f]) for f in shuffled]
    total = Finding.total([Finding.total(parts[:50]), *parts[50:]])
    assert total == Finding.of(faults)
    assert total.faults == (("rows", 160), ("undone", 1), ("version", 1))
    assert total.left == (("rows", 160), ("version", 1))
    assert total.mendable == 160
    assert [f.where for f in total.named] == [f"{i}_0_0" for i in sorted([*range(-80, 19), 5])]


def test_what_travels_survives(whole: Generation) -> None:
    work = VerifyWork(whole, None, "run", repair=True, fence=ALONE)
    assert pickle.loads(pickle.dumps(work)) == work
    for part in verify.parts(work):
        assert pickle.loads(pickle.dumps(part)) == part
    finding = Finding.of([Fault("rows", "0_0_0", "it is")])
    assert pickle.loads(pickle.dumps(finding)) == finding
    assert objects.exists(whole.url)
