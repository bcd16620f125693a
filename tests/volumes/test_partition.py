import dataclasses
import multiprocessing
import pathlib

import numpy as np
import pytest
import tensorstore as ts

from volumes import commits, objects, partition
from volumes.commits import OPEN, Change, Fence, FencedError, standing_digest
from volumes.context import process_context
from volumes.errors import RunError
from volumes.geometry import Box
from volumes.partition import Partition
from volumes.receipts import BoxPlan, Failure, Receipt, Rows

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
        computed=len(rows),
        rejected=(("duplicate", 0),),
        identities=f"identities of {len(rows)}",
        content=f"content of {len(rows)}",
        rows_digest=rows.digest(),
        inputs="where",
        image_digest="i",
        labels_digest="l",
        image_stamp="s",
        labels_stamp=None,
        agglomeration=None,
        run="r",
    )


def commit(part: Partition, local: int, rows, receipt: Receipt, fence: Fence = OPEN, **more):
    change = Change(local, receipt.box, receipt, rows, **more)
    return commits.commit_boxes(part, [change], fence)[0]


@pytest.fixture
def part(tmp_path: pathlib.Path) -> Partition:
    return Partition(str(tmp_path / "0_0_0"), boxes=64, width=4)


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 2000])
def test_rows_and_receipt_come_back_bit_for_bit(part: Partition, n: int) -> None:
    rows = make_rows(n)
    assert commits.plan_boxes(part, [plan_of("1_0_0", n)]) == 1
    receipt = receipt_of("1_0_0", rows)
    assert commit(part, 1, rows, receipt) is receipt
    back = partition.read_rows(part, 1)
    assert back.digest() == rows.digest()
    assert [a.dtype for a in back.arrays().values()] == [a.dtype for a in rows.arrays().values()]
    assert partition.read_receipt(part, "1_0_0") == receipt
    assert partition.read_plan(part, "1_0_0") == plan_of("1_0_0", n)
    assert partition.read_ids(part, 1).tolist() == rows.segment_id.tolist()
    assert partition.listed(part, "receipts") == partition.listed(part, "plan") == ["1_0_0"]


def test_a_commit_is_one_version_of_the_database(part: Partition) -> None:
    commits.plan_boxes(part, [plan_of("0_0_0", 700), plan_of("1_0_0", 0)])
    before = partition.newest_version(part)
    rows = make_rows(700)
    commit(part, 0, rows, receipt_of("0_0_0", rows))
    assert partition.newest_version(part) == before + 1
    # A pinned reader does not see it.
    assert partition.read_receipt(part, "0_0_0", before) is None
    assert len(partition.read_rows(part, 0, before)) == 0
    assert len(partition.read_rows(part, 0, before + 1)) == 700


def test_no_database_has_version_0(part: Partition) -> None:
    assert partition.newest_version(part) == 0


def test_the_second_of_two_equal_commits_reads_the_receipt(part: Partition) -> None:
    rows = make_rows(3)
    commits.plan_boxes(part, [plan_of("0_0_0", 3)])
    first = commit(part, 0, rows, receipt_of("0_0_0", rows))
    version = partition.newest_version(part)
    second = dataclasses.replace(first, run="another")
    assert commit(part, 0, make_rows(3, seed=1), second).run == "r"
    assert partition.newest_version(part) == version
    assert partition.read_rows(part, 0).digest() == rows.digest()


def test_a_box_of_another_fingerprint_is_left_as_it_is(part: Partition) -> None:
    rows = make_rows(3)
    commits.plan_boxes(part, [plan_of("0_0_0", 3)])
    commit(part, 0, rows, receipt_of("0_0_0", rows, "one"))
    with pytest.raises(RunError, match=r"box 0_0_0 .* committed with fingerprint one.* has two"):
        commit(part, 0, rows, receipt_of("0_0_0", rows, "two"))
    assert partition.read_rows(part, 0).digest() == rows.digest()


def test_rows_without_a_plan_and_with_another_are_refused(part: Partition) -> None:
    commits.plan_boxes(part, [plan_of("0_0_0", 3)])
    rows = make_rows(2)
    with pytest.raises(RunError, match="box 5_0_0 has no plan"):
        commit(part, 5, rows, receipt_of("5_0_0", rows))
    with pytest.raises(RunError, match=r"owes 3 nodes \(content of 3\), and 2 .* arrived"):
        commit(part, 0, rows, receipt_of("0_0_0", rows))
    assert partition.listed(part, "receipts") == []


def test_a_plan_is_committed_once_and_another_is_refused(part: Partition) -> None:
    plans = [plan_of("0_0_0", 3), plan_of("1_0_0", 4)]
    assert commits.plan_boxes(part, plans) == 2
    version = partition.newest_version(part)
    assert commits.plan_boxes(part, plans) == 0
    assert partition.newest_version(part) == version
    with pytest.raises(RunError, match=r"box 1_0_0 .* owes 4 nodes .* and 5 .* now"):
        commits.plan_boxes(part, [plan_of("1_0_0", 5)])


def test_a_lost_chunk_is_an_error_not_zeros(part: Partition) -> None:
    rows = make_rows(3)
    commits.plan_boxes(part, [plan_of("0_0_0", 3)])
    commit(part, 0, rows, receipt_of("0_0_0", rows))
    spec = {"driver": "ocdbt", "base": objects.kvstore(part.url)}
    keys = ts.KvStore.open(spec, context=process_context()).result()
    chunk = [k for k in keys.list().result() if k.startswith(b"embedding/c/0/0")]
    keys.delete_range(ts.KvStore.KeyRange(chunk[0], chunk[0] + b"\0")).result()
    with pytest.raises(RunError, match="is missing"):
        partition.read_rows(part, 0)


def _commit_boxes(part: Partition, boxes: range) -> None:
    for i in boxes:
        rows = make_rows(20, seed=i)
        commits.plan_boxes(part, [plan_of(f"{i}_0_0", 20)])
        commit(part, i, rows, receipt_of(f"{i}_0_0", rows))


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


def _share_commits(parts: list[Partition], first: int) -> None:
    """Plan and commit 24 boxes of each partition, four a commit, beginning somewhere else."""
    for i in range(0, 24, 4):
        boxes = [(first + i + k) % 24 for k in range(4)]
        for part in parts if first % 2 else parts[::-1]:
            commits.plan_boxes(part, [plan_of(f"{b}_0_0", 20) for b in boxes])
            rows = {b: make_rows(20, seed=b) for b in boxes}
            changes = [Change(b, f"{b}_0_0", receipt_of(f"{b}_0_0", r), r) for b, r in rows.items()]
            stands = commits.commit_boxes(part, changes)
            assert [s.box for s in stands if s is not None] == [c.box for c in changes]


def test_four_processes_on_two_partitions_share_commits_and_lose_nothing(
    tmp_path: pathlib.Path,
) -> None:
    parts = [Partition(str(tmp_path / name), boxes=64, width=4) for name in ("0_0_0", "1_0_0")]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_share_commits, args=(parts, f)) for f in (0, 1, 2, 7)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(120)
    assert [w.exitcode for w in workers] == [0] * 4
    for part in parts:
        assert len(partition.listed(part, "receipts")) == 24
        for i in range(24):
            assert partition.read_rows(part, i).digest() == make_rows(20, seed=i).digest()


def test_a_store_that_cannot_be_written_says_where(tmp_path: pathlib.Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(RunError, match="file/0_0_0"):
        commits.plan_boxes(Partition(str(blocked / "0_0_0"), 8, 4), [plan_of("0_0_0", 1)])


def test_a_zombie_of_an_older_epoch_writes_nothing(part: Partition) -> None:
    old, beside, alone = Fence(0), Fence(1), Fence(1, alone=True)
    commits.shut_out(part, alone)  # there is nothing to shut anyone out of
    assert commits.plan_boxes(part, [plan_of(f"{i}_0_0", 3) for i in range(4)], old) == 4
    rows = make_rows(3)
    commit(part, 0, rows, receipt_of("0_0_0", rows), old)
    commit(part, 1, rows, receipt_of("1_0_0", rows), beside)
    # A run that does not work alone shuts nobody out, though its epoch is newer.
    commit(part, 2, rows, receipt_of("2_0_0", rows), old)
    commits.shut_out(part, beside)
    commits.shut_out(part, alone)
    version = partition.newest_version(part)
    for write in (
        lambda: commit(part, 3, rows, receipt_of("3_0_0", rows), old),
        lambda: commits.plan_boxes(part, [plan_of("4_0_0", 3)], old),
        lambda: commits.reopen_boxes(part, [(0, "0_0_0")], old),
        lambda: commits.shut_out(part, Fence(0, alone=True)),
    ):
        with pytest.raises(
            FencedError, match=r"newer run \(epoch 1, this run has 0\).*nothing more"
        ):
            write()
    assert partition.newest_version(part) == version
    commit(part, 3, rows, receipt_of("3_0_0", rows), beside)
    assert len(partition.listed(part, "receipts")) == 4


def test_a_fence_that_is_raised_under_a_commit_stops_it(part: Partition, monkeypatch) -> None:
    commits.plan_boxes(part, [plan_of("0_0_0", 3)])
    rows, real = make_rows(3), commits._fenced

    def raised_meanwhile(partition, fence, staged):
        future = real(partition, fence, staged)
        monkeypatch.setattr(commits, "_fenced", real)
        commits.shut_out(part, Fence(7, alone=True))
        return future

    monkeypatch.setattr(commits, "_fenced", raised_meanwhile)
    with pytest.raises(FencedError, match="epoch 7, this run has 0"):
        commit(part, 0, rows, receipt_of("0_0_0", rows))
    assert partition.read_receipt(part, "0_0_0") is None
    assert partition.read_key(part, "epoch") == b"7"


def test_boxes_of_one_commit_stand_or_fall_together(part: Partition) -> None:
    sizes = {0: 3, 1: 0, 2: 600}
    commits.plan_boxes(part, [plan_of(f"{i}_0_0", n) for i, n in sizes.items()])
    before = partition.newest_version(part)
    rows = {i: make_rows(n, i) for i, n in sizes.items()}
    changes = [Change(i, f"{i}_0_0", receipt_of(f"{i}_0_0", r), r) for i, r in rows.items()]
    alien = Change(5, "5_0_0", receipt_of("5_0_0", rows[0]), rows[0])
    with pytest.raises(RunError, match="5_0_0 has no plan"):
        commits.commit_boxes(part, [*changes, alien])
    assert partition.newest_version(part) == before
    commit(part, 0, rows[0], receipt_of("0_0_0", rows[0]))
    stands = commits.commit_boxes(part, changes)
    assert [s is c.ours for s, c in zip(stands, changes, strict=True)] == [False, True, True]
    assert partition.newest_version(part) == before + 2
    assert all(partition.read_rows(part, i).digest() == r.digest() for i, r in rows.items())


def test_a_box_is_replaced_only_by_who_names_what_stands(part: Partition) -> None:
    commits.plan_boxes(part, [plan_of("0_0_0", 1300)])
    old = make_rows(1300)
    first = commit(part, 0, old, receipt_of("0_0_0", old))
    commits.plan_boxes(part, [plan_of("0_0_0", 40)], replace=True)
    new = make_rows(40, seed=1)
    second = dataclasses.replace(receipt_of("0_0_0", new, "f2"), run="r2")
    with pytest.raises(RunError, match="committed with fingerprint f, and this run has f2"):
        commit(part, 0, new, second)
    replaces = standing_digest(first)
    assert commit(part, 0, new, second, replaces=replaces) is second
    assert partition.read_rows(part, 0).digest() == new.digest()
    # The chunks that the fewer rows do not need are gone.
    chunks = [k for k in partition.keys(part).list().result() if k.startswith(b"node_id/c/")]
    assert chunks == [b"node_id/c/0/0"]
    # A second attempt of the same change finds it done; another run's does not.
    assert commit(part, 0, new, second, replaces=replaces) == second
    other = dataclasses.replace(second, run="r3", fingerprint="f3")
    with pytest.raises(RunError, match="another run's rows stand there"):
        commit(part, 0, new, other, replaces=replaces)
    # A receipt alone is replaced too, and the rows stay.
    later = dataclasses.replace(second, image_stamp="t", run="r4")
    assert commit(part, 0, None, later, replaces=standing_digest(second)) is later
    assert partition.read_rows(part, 0).digest() == new.digest()


def test_a_box_is_set_aside_done_again_reopened_and_removed(part: Partition) -> None:
    commits.plan_boxes(part, [plan_of("0_0_0", 3)])
    failure = Failure("0_0_0", "f", 3, "a chunk is corrupt", 3, "r")
    assert commits.commit_boxes(part, [Change(0, "0_0_0", failure=failure)]) == [failure]
    assert partition.read_failure(part, "0_0_0") == failure
    assert partition.listed(part, "failed") == ["0_0_0"]
    rows = make_rows(3)
    receipt = commit(part, 0, rows, receipt_of("0_0_0", rows), supervoxels=b"ids")
    assert partition.read_failure(part, "0_0_0") is None
    assert partition.read_key(part, "supervoxels/0_0_0") == b"ids"
    # Somebody else's failure does not undo it.
    assert commits.commit_boxes(part, [Change(0, "0_0_0", failure=failure)]) == [receipt]
    commits.reopen_boxes(part, [(0, "0_0_0")], OPEN)
    assert partition.read_receipt(part, "0_0_0") is None
    assert partition.read_plan(part, "0_0_0") == plan_of("0_0_0", 3)
    assert len(partition.read_rows(part, 0)) == 0
    receipt = commit(part, 0, rows, receipt_of("0_0_0", rows))
    removal = Change(0, "0_0_0", replaces=standing_digest(receipt))
    assert commits.commit_boxes(part, [removal]) == [None]
    left = [k.decode() for k in partition.keys(part).list().result()]
    assert sorted(k for k in left if "/c/" in k or "0_0_0" in k) == []
    assert commits.commit_boxes(part, [removal]) == [None]
