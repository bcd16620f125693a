import dataclasses
import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volumes import objects, slabs
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, ChunkGrid, vec
from volumes.slabs import (
    SlabJob,
    SlabRecord,
    current_record,
    ingest_slab,
    peak_bytes,
    read_record,
    slab_shape,
    voxels_decoded,
    voxels_digest,
)
from volumes.sources import resolve_source
from volumes.sources_base import decoded_bytes, stored_dtype
from volumes.writing import VolumeLayout, create_volume, open_for_writing, write_shards


def _layout(shape, dtype="uint64", shard=(4, 4, 2)):
    return VolumeLayout(shape, dtype, "segmentation", (1.0, 1.0, 1.0), (0, 0, 0), (2, 2, 2), shard)


def _job(tmp_path, voxels, slab=(8, 4, 2)):
    np.save(tmp_path / "ids.npy", voxels)
    source = resolve_source(str(tmp_path / "ids.npy"), None, "xyz", "segmentation")
    layout = _layout(source.shape, stored_dtype(source.dtype, "segmentation"))
    output = str(tmp_path / "out")
    create_volume(output, layout, {})
    return SlabJob(source, output, layout, ChunkGrid(layout.domain, slab))


def _ids(shape=(9, 7, 5), dtype=np.uint64):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


_shapes = st.tuples(*[st.integers(1, 40)] * 3)


@given(shape=_shapes, slab=_shapes, piece=_shapes)
def test_voxels_decoded_is_the_sum_over_all_slabs(shape, slab, piece):
    @dataclasses.dataclass
    class Pieced:
        shape: tuple
        piece: tuple
        dtype: str = "uint8"

    grid = ChunkGrid(Box((0, 0, 0), shape), slab)
    if grid.size > 500:
        slab = vec(max(8, s) for s in slab)
        grid = ChunkGrid(Box((0, 0, 0), shape), slab)
    summed = sum(decoded_bytes(Pieced(shape, piece), grid.box(i)) for i in range(grid.size))
    assert voxels_decoded(shape, slab, piece) == summed
    assert summed >= np.prod(shape)


def test_voxels_decoded_of_a_huge_volume_lists_nothing():
    n = 10**9
    assert voxels_decoded((n, n, n), (n, 256, 256), (n, n, 1)) == n**3 * -(-n // 256)


@given(shape=_shapes, budget=st.integers(200, 100_000), scratch=st.integers(0, 1000))
def test_a_slab_is_whole_shards_within_the_budget(shape, budget, scratch):
    layout = _layout(shape)
    least = 5 * layout.shard_bytes + scratch
    if budget < least:
        with pytest.raises(RequestError, match="does not hold one shard of"):
            slab_shape(layout, scratch, budget)
        return
    slab = slab_shape(layout, scratch, budget)
    assert all(s % k == 0 for s, k in zip(slab, layout.shard, strict=True))
    assert slab[2] == layout.shard[2]
    assert peak_bytes(layout, slab, scratch) <= budget
    if slab[0] < shape[0]:  # split in x only once y is at one shard
        assert slab[1] == layout.shard[1]


def test_the_refusal_of_a_shard_has_the_figures():
    layout = _layout((1000, 1000, 1000), shard=(100, 100, 100))
    with pytest.raises(
        RequestError,
        match=r"budget of 39 MB does not hold one shard of \(100, 100, 100\) in work, which takes "
        r"40 MB \(0 of them to decode the source\); give --memory-mb 40 or more, or a smaller --sh",
    ):
        slab_shape(layout, 0, 39 * 10**6)
    assert slab_shape(layout, 0, 40 * 10**6) == (100, 100, 100)
    assert slab_shape(layout, 0, 48 * 10**6) == (200, 100, 100)
    assert slab_shape(layout, 0, 32 * 10**6 + 16 * 10**7) == (1000, 200, 100)


def test_every_slab_once_makes_the_volume_and_again_makes_nothing(tmp_path):
    ids = _ids()
    job = _job(tmp_path, ids)
    reader, store = job.source.open(), open_for_writing(job.output)
    outcomes = [ingest_slab(job, reader, store, i) for i in range(job.grid.size)]
    assert not any(o.skipped for o in outcomes)
    np.testing.assert_array_equal(store.read().result(), ids)
    for i, outcome in enumerate(outcomes):
        record = outcome.record
        assert record.name == job.grid.name(i)
        part = ids[record.box.slices(job.layout.domain)]
        assert record.digest == voxels_digest(part)
        assert record == read_record(job, i)
    again = [ingest_slab(job, reader, store, i) for i in range(job.grid.size)]
    assert all(o.skipped for o in again)
    assert [o.record for o in again] == [o.record for o in outcomes]


def test_a_record_is_written_after_the_shards_and_not_when_they_fail(tmp_path, monkeypatch):
    job = _job(tmp_path, _ids())
    reader, store = job.source.open(), open_for_writing(job.output)

    def fails(store, box, voxels):
        assert read_record(job, 0) is None
        raise RunError("disk full")

    monkeypatch.setattr(slabs, "write_shards", fails)
    with pytest.raises(RunError, match="disk full"):
        ingest_slab(job, reader, store, 0)
    assert read_record(job, 0) is None


def test_a_changed_source_is_done_again(tmp_path):
    job = _job(tmp_path, _ids())
    reader, store = job.source.open(), open_for_writing(job.output)
    first = ingest_slab(job, reader, store, 0).record
    np.save(tmp_path / "ids.npy", _ids() + np.uint64(7))
    reader = job.source.open()
    assert current_record(job, reader, 0) is None
    assert read_record(job, 0) == first
    second = ingest_slab(job, reader, store, 0)
    assert not second.skipped
    assert second.record.digest != first.digest
    assert int(store[0, 0, 0].read().result()) == 7


def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    job = _job(tmp_path, _ids())
    reader, store = job.source.open(), open_for_writing(job.output)
    stamps = iter([(("ids.npy", "1:1"),), (("ids.npy", "1:2"),)])
    monkeypatch.setattr(reader, "stamps", lambda box: next(stamps))
    with pytest.raises(RunError, match=r"ids\.npy changed while \[0:8, 0:4, 0:2\) was read"):
        ingest_slab(job, reader, store, 0)
    assert read_record(job, 0) is None


def test_negative_ids_are_refused_and_others_lose_their_sign_only(tmp_path):
    ids = _ids(dtype=np.int64)
    ids[0, 0, 0] = 2**62 + 1
    ids[8, 6, 4] = -3
    job = _job(tmp_path, ids)
    assert job.layout.dtype == "uint64"
    reader, store = job.source.open(), open_for_writing(job.output)
    ingest_slab(job, reader, store, 0)
    assert int(store[0, 0, 0].read().result()) == 2**62 + 1
    last = job.grid.size - 1
    with pytest.raises(RunError, match=r"holds the id -3 in \[8:9, 4:7, 4:5\) .* never negative"):
        ingest_slab(job, reader, store, last)
    assert read_record(job, last) is None


def test_the_record_of_another_lattice_is_none(tmp_path):
    job = _job(tmp_path, _ids())
    ingest_slab(job, job.source.open(), open_for_writing(job.output), 0)
    other = dataclasses.replace(job, grid=ChunkGrid(job.layout.domain, (4, 4, 2)))
    assert read_record(other, 0) is None
    assert read_record(job, 0) is not None


def test_a_damaged_record_is_an_error_that_names_it(tmp_path):
    job = _job(tmp_path, _ids())
    objects.write(slabs.record_url(job, 0), b"{")
    with pytest.raises(RunError, match=r"slabs/0_0_0\.json is not a JSON document"):
        read_record(job, 0)


def test_records_and_jobs_travel(tmp_path):
    job = _job(tmp_path, _ids())
    assert pickle.loads(pickle.dumps(job)) == job
    record = SlabRecord("0_0_0", Box((0, 0, 0), (1, 2, 3)), "ab", (("a.png", "1:2"),))
    assert SlabRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert pickle.loads(pickle.dumps(record)) == record


def test_the_digest_is_of_little_endian_voxels_x_fastest():
    voxels = _ids((3, 2, 2), np.uint16)
    expected = hashlib.blake2b(
        b"".join(int(voxels[x, y, z]).to_bytes(2, "little")
                 for z in range(2) for y in range(2) for x in range(3)),
        digest_size=16,
    ).hexdigest()  # fmt: skip
    for given_voxels in (voxels, np.asfortranarray(voxels), voxels.astype(">u2")):
        assert voxels_digest(given_voxels) == expected


def test_two_attempts_at_once_leave_the_same(tmp_path):
    ids = _ids()
    job = _job(tmp_path, ids)
    first, second = open_for_writing(job.output), open_for_writing(job.output)
    box = job.grid.box(0)
    write_shards(first, box, ids[box.slices(job.layout.domain)])  # a worker that died here
    a = ingest_slab(job, job.source.open(), second, 0)
    b = ingest_slab(job, job.source.open(), first, 0)
    assert (a.skipped, b.skipped) == (False, True)
    assert a.record == b.record
