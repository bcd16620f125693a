import dataclasses
import multiprocessing
import pathlib

import numpy as np
import pytest
import tensorstore as ts

from volumes import objects, partition
from volumes.context import process_context
from volumes.errors import RunError
from volumes.geometry import Box
from volumes.partition import Partition
from volumes.receipts import BoxPlan, Receipt, Rows

BOX = Box((0, 0, 0), (8, 8, 8))


def make_rows(n: int, seed: int = 0, width: int = 4) -> Rows:
    rng = np.random.default_rng(seed)
    return Rows(
        segment_id=np.sort(rng.integers(2**53, 2**64, n, dtype=np.uint64)),
        node_id=np.arange(n, dtype=np.uint64) + np.uint64(2**63),
        position_nm=rng.random((n, 3)) * 1000,
        embedding=rng.random((n, width), dtype=np.float32),
        mask_voxels=rng.integers(0, 2**31, n, dtype=np.uint32),
        crop_digest=rng.integers(0, 256, (n, 16), dtype=np.uint8),
    )


def plan_of(box: str, n: int) -> BoxPlan:
    return BoxPlan(box, n, f"identities of {n}", f"content of {n}")


def receipt_of(box: str, rows: Rows, fingerprint: str = "f") -> Receipt:
    return Receipt(
        box=box,
        core=BOX,
        read_box=BOX.grown((4, 4, 4)),
        fingerprint=fingerprint,
        planned=len(rows),
        committed=len(rows),
        rejected=(("duplicate", 0),),
        identities=f"identities of {len(rows)}",
        rows_digest=rows.digest(),
        image_digest="i",
        labels_digest="l",
        run="r",
    )


@pytest.fixture
def part(tmp_path: pathlib.Path) -> Partition:
    return Partition(str(tmp_path / "0_0_0"), boxes=64, width=4)


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 2000])
def test_rows_and_receipt_come_back_bit_for_bit(part: Partition, n: int) -> None:
    rows = make_rows(n)
    assert partition.plan_boxes(part, [plan_of("1_0_0", n)]) == 1
    receipt = receipt_of("1_0_0", rows)
    assert partition.commit_box(part, 1, rows, receipt) is receipt
    back = partition.read_rows(part, 1)
    assert back.digest() == rows.digest()
    assert [a.dtype for a in back.arrays().values()] == [a.dtype for a in rows.arrays().values()]
    assert partition.read_receipt(part, "1_0_0") == receipt
    assert partition.read_plan(part, "1_0_0") == plan_of("1_0_0", n)
    assert partition.read_ids(part, 1).tolist() == rows.segment_id.tolist()
    assert partition.listed(part, "receipts") == partition.listed(part, "plan") == ["1_0_0"]


def test_a_commit_is_one_version_of_the_database(part: Partition) -> None:
    partition.plan_boxes(part, [plan_of("0_0_0", 700), plan_of("1_0_0", 0)])
    before = partition.newest_version(part)
    rows = make_rows(700)
    partition.commit_box(part, 0, rows, receipt_of("0_0_0", rows))
    assert partition.newest_version(part) == before + 1
    # A pinned reader does not see it.
    assert partition.read_receipt(part, "0_0_0", before) is None
    assert len(partition.read_rows(part, 0, before)) == 0
    assert len(partition.read_rows(part, 0, before + 1)) == 700


def test_no_database_has_version_0(part: Partition) -> None:
    assert partition.newest_version(part) == 0


def test_the_second_of_two_equal_commits_reads_the_receipt(part: Partition) -> None:
    rows = make_rows(3)
    partition.plan_boxes(part, [plan_of("0_0_0", 3)])
    first = partition.commit_box(part, 0, rows, receipt_of("0_0_0", rows))
    version = partition.newest_version(part)
    second = dataclasses.replace(first, run="another")
    assert partition.commit_box(part, 0, make_rows(3, seed=1), second).run == "r"
    assert partition.newest_version(part) == version
    assert partition.read_rows(part, 0).digest() == rows.digest()


def test_a_box_of_another_fingerprint_is_left_as_it_is(part: Partition) -> None:
    rows = make_rows(3)
    partition.plan_boxes(part, [plan_of("0_0_0", 3)])
    partition.commit_box(part, 0, rows, receipt_of("0_0_0", rows, "one"))
    with pytest.raises(RunError, match=r"box 0_0_0 .* committed with fingerprint one.* has two"):
        partition.commit_box(part, 0, rows, receipt_of("0_0_0", rows, "two"))
    assert partition.read_rows(part, 0).digest() == rows.digest()


def test_rows_without_a_plan_and_with_another_are_refused(part: Partition) -> None:
    partition.plan_boxes(part, [plan_of("0_0_0", 3)])
    rows = make_rows(2)
    with pytest.raises(RunError, match="box 5_0_0 has no plan"):
        partition.commit_box(part, 5, rows, receipt_of("5_0_0", rows))
    with pytest.raises(RunError, match=r"owes 3 nodes \(identities o\), and 2 .* arrived"):
        partition.commit_box(part, 0, rows, receipt_of("0_0_0", rows))
    assert partition.listed(part, "receipts") == []


def test_a_plan_is_committed_once_and_another_is_refused(part: Partition) -> None:
    plans = [plan_of("0_0_0", 3), plan_of("1_0_0", 4)]
    assert partition.plan_boxes(part, plans) == 2
    version = partition.newest_version(part)
    assert partition.plan_boxes(part, plans) == 0
    assert partition.newest_version(part) == version
    with pytest.raises(RunError, match=r"box 1_0_0 .* owes 4 nodes .* and 5 .* now"):
        partition.plan_boxes(part, [plan_of("1_0_0", 5)])


def test_a_lost_chunk_is_an_error_not_zeros(part: Partition) -> None:
    rows = make_rows(3)
    partition.plan_boxes(part, [plan_of("0_0_0", 3)])
    partition.commit_box(part, 0, rows, receipt_of("0_0_0", rows))
    spec = {"driver": "ocdbt", "base": objects.kvstore(part.url)}
    keys = ts.KvStore.open(spec, context=process_context()).result()
    chunk = [k for k in keys.list().result() if k.startswith(b"embedding/c/0/0")]
    keys.delete_range(ts.KvStore.KeyRange(chunk[0], chunk[0] + b"\0")).result()
    with pytest.raises(RunError, match="is missing"):
        partition.read_rows(part, 0)


def _commit_boxes(part: Partition, boxes: range) -> None:
    for i in boxes:
        rows = make_rows(20, seed=i)
        partition.plan_boxes(part, [plan_of(f"{i}_0_0", 20)])
        partition.commit_box(part, i, rows, receipt_of(f"{i}_0_0", rows))


def test_writers_in_several_processes_lose_nothing(part: Partition) -> None:
    context = multiprocessing.get_context("spawn")
    # Each box is written by two processes; every process also makes the partition.
    workers = [
        context.Process(target=_commit_boxes, args=(part, r))
        for r in (range(0, 8), range(4, 12), range(8, 16), range(0, 16))
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert [w.exitcode for w in workers] == [0] * 4
    for i in range(16):
        assert partition.read_rows(part, i).digest() == make_rows(20, seed=i).digest()
    assert len(partition.listed(part, "receipts")) == 16


def test_a_store_that_cannot_be_written_says_where(tmp_path: pathlib.Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(RunError, match="file/0_0_0"):
        partition.plan_boxes(Partition(str(blocked / "0_0_0"), 8, 4), [plan_of("0_0_0", 1)])
