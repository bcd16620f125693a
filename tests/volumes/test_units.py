"""Units of work: what they own and read, what their records hold, and that all can be repeated."""

import dataclasses
import hashlib
import json
import math
import pathlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes.writing.layouts import layout_of
from volumes import objects, units
from volumes.downsampling import reduced
from volumes.errors import RunError
from volumes.geometry import Box, ChunkGrid, vec
from volumes.keys import keys_under
from volumes.opening import open_volume
from volumes.reading import read_box
from volumes.sources.base import stored_dtype
from volumes.sources.resolving import resolve_source
from volumes.units import (
    UnitRecord,
    WriteJob,
    current_record,
    listed_units,
    load_record,
    open_targets,
    parts,
    read_record,
    record_url,
    scaled,
    to_stored,
    write_list,
    write_unit,
)
from volumes.writing import Target, VolumeLayout, create_levels, write_box
from volumes.writing.codecs import FORMATS

_ORIGIN = (-3, 0, 10)
_ONE = (1, 1, 1)


def _ids(shape=(9, 7, 5), dtype=np.uint64):
    return np.arange(1, np.prod(shape) + 1, dtype=dtype).reshape(shape)


def _saved(tmp_path, voxels):
    np.save(tmp_path / "ids.npy", voxels)
    return resolve_source(str(tmp_path / "ids.npy"), None, "xyz", "segmentation")


def _job(tmp_path, voxels, unit=(8, 4, 2), form="zarr3", shard=(4, 4, 2)):
    source = _saved(tmp_path, voxels)
    layout = VolumeLayout(
        shape=source.shape,
        dtype=stored_dtype(source.dtype, "segmentation"),
        kind="segmentation",
        voxel_size_nm=(1.0, 1.0, 1.0),
        origin_vx=_ORIGIN,
        chunk=(2, 2, 2) if shard else (4, 4, 2),
        shard=shard,
        format=form,
    )
    output = str(tmp_path / "out")
    target = Target(output, layout)
    create_levels([target], {})
    grid = ChunkGrid(layout.domain, unit, _ORIGIN)
    return WriteJob("ingest", source, _ORIGIN, output, (target,), (_ONE,), grid)


def _done(job, indices=None):
    """Do units, one by one; gives their outcomes."""
    reader, volumes = job.source.open(), open_targets(job)
    chosen = job.units() if indices is None else indices
    found = [write_unit(job, reader, volumes, i) for i in chosen]
    reader.close()
    return found


def _read(job, which=0):
    return open_targets(job)[which].store.read().result()


def _digest(data):
    return hashlib.sha256(data).hexdigest()[:32]


# What units own


def _coarser(layout, factor):
    """The level whose voxel k covers voxels [k f, (k + 1) f), as a layout of its own."""
    start = [a // f for a, f in zip(layout.domain.start, factor, strict=True)]
    stop = [-(-b // f) for b, f in zip(layout.domain.stop, factor, strict=True)]
    shape = vec(b - a for a, b in zip(start, stop, strict=True))
    return dataclasses.replace(layout, shape=shape, origin_vx=vec(start))


@st.composite
def _pyramids(draw):
    """A job of several levels, whose chunks and origins have nothing to do with its units."""
    small = st.integers(1, 4)
    base = layout_of(
        format="ome-zarr",
        shape=draw(st.tuples(*[st.integers(1, 24)] * 3)),
        origin_vx=draw(st.tuples(*[st.integers(-30, 30)] * 3)),
        chunk=(1, 1, 1),
        shard=None,
    )
    factors, before = [], _ONE
    if draw(st.booleans()):
        factors.append(_ONE)
    for _ in range(draw(st.integers(1 - len(factors), 2))):
        before = vec(f * draw(st.integers(1, 3)) for f in before)
        factors.append(before)
    targets = []
    for level, factor in enumerate(factors):
        chunk = draw(st.tuples(small, small, small))
        layout = dataclasses.replace(_coarser(base, factor), chunk=chunk)
        targets.append(Target("out", layout, level))
    unit = draw(st.tuples(*[st.integers(1, 16)] * 3))
    while ChunkGrid(base.domain, unit).size > 200:
        unit = vec(2 * n for n in unit)
    grid = ChunkGrid(base.domain, unit, base.origin_vx)

    @dataclasses.dataclass(frozen=True)
    class Described:
        shape: tuple
        url: str = "em"

    source = Described(base.shape)
    origin = base.origin_vx
    return WriteJob("j", source, origin, "out", tuple(targets), tuple(factors), grid, method="mode")


@settings(max_examples=150, deadline=None)
@given(_pyramids())
def test_what_units_own_is_disjoint_and_covers_every_target(job):
    for which, target in enumerate(job.targets):
        layout = target.layout
        times = np.zeros(layout.shape, int)
        for index in job.units():
            owned = job.owned(index, which)
            assert layout.domain.encloses(owned) or owned.size == 0
            if owned.size == 0:
                continue
            times[owned.slices(layout.domain)] += 1
            for a, b, o, c, end in zip(
                owned.start,
                owned.stop,
                layout.origin_vx,
                layout.chunk,
                layout.domain.stop,
                strict=True,
            ):
                assert (a - o) % c == 0
                assert (b - o) % c == 0 or b == end
        assert (times == 1).all()


@settings(max_examples=150, deadline=None)
@given(_pyramids())
def test_what_a_unit_reads_covers_all_that_it_owns(job):
    domain = job.grid.domain
    for index in job.units():
        box = job.read_box(index)
        owned = [job.owned(index, which) for which in range(len(job.targets))]
        assert domain.encloses(box) or box.size == 0
        needed = [
            scaled(o, f).intersection(domain)
            for o, f in zip(owned, job.factors, strict=True)
            if o.size
        ]
        assert all(box.encloses(n) for n in needed)
        if not needed:
            assert box.size == 0
            continue
        hull = needed[0]
        for n in needed[1:]:
            hull = hull.hull(n)
        assert box == hull
        within = job.within(box)
        assert within.shape == box.shape
        assert Box((0, 0, 0), job.source.shape).encloses(within)


@settings(max_examples=40, deadline=None)
@given(_pyramids(), st.integers(0, 5))
def test_parts_of_units_make_the_levels_of_the_whole(job, seed):
    rng = np.random.default_rng(seed)
    domain = job.grid.domain
    whole = rng.integers(0, 4, domain.shape).astype(np.uint8)
    levels, before, start = [], _ONE, domain.start
    level = whole
    for factors in job.factors:
        step = vec(f // b for f, b in zip(factors, before, strict=True))
        level, start = reduced(level, start, step, job.method)
        before = factors
        levels.append(level)
    made = [np.full(t.layout.shape, 99, np.uint8) for t in job.targets]
    for index in job.units():
        box = job.read_box(index)
        if box.size == 0:
            assert not any(job.owned(index, w).size for w in range(len(made)))
            continue
        found = list(parts(job, index, box, whole[box.slices(domain)]))
        some = [which for which in range(len(made)) if job.owned(index, which).size]
        for which, (owned, part) in zip(some, found, strict=True):
            assert owned == job.owned(index, which)
            assert part.shape == owned.shape
            made[which][owned.slices(job.targets[which].layout.domain)] = part
    for found, wanted in zip(made, levels, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_levels_need_a_method():
    layout = layout_of(shape=(8, 8, 8), chunk=(2, 2, 2), shard=None, origin_vx=(0, 0, 0))
    coarse = _coarser(layout, (2, 2, 2))
    grid = ChunkGrid(layout.domain, (8, 8, 8))
    job = WriteJob("j", None, (0, 0, 0), "out", (Target("out", coarse),), ((2, 2, 2),), grid)
    with pytest.raises(ValueError, match="needs a method"):
        list(parts(job, 0, layout.domain, np.zeros((8, 8, 8), np.uint8)))


# Units one by one


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("sharded", [True, False])
def test_every_unit_once_makes_the_volume_and_again_makes_nothing(tmp_path, form, sharded):
    if sharded and form in ("zarr2", "n5"):
        return
    ids = _ids()
    job = _job(tmp_path, ids, form=form, shard=(4, 4, 2) if sharded else None)
    outcomes = _done(job)
    assert len(outcomes) == 12
    assert not any(o.skipped for o in outcomes)
    np.testing.assert_array_equal(_read(job), ids)
    spec = job.targets[0].spec()
    found = read_box(open_volume(spec), spec.domain, missing="error")
    np.testing.assert_array_equal(found.array, ids)
    for i, outcome in enumerate(outcomes):
        record = outcome.record
        assert record.name == job.grid.name(i)
        assert record.box == job.grid.box(i)
        assert record.missing == 0
        assert record == read_record(job, i)
        assert (outcome.voxels, outcome.raw_bytes) == (record.box.size, 8 * record.box.size)
    again = _done(job)
    assert all(o.skipped for o in again)
    assert {(o.read_ms, o.write_ms, o.voxels, o.raw_bytes) for o in again} == {(0, 0, 0, 0)}
    assert [o.record for o in again] == [o.record for o in outcomes]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("sharded", [True, False])
def test_records_list_what_is_on_disk_with_its_length_and_digest(tmp_path, form, sharded):
    if sharded and form in ("zarr2", "n5"):
        return
    job = _job(tmp_path, _ids(), form=form, shard=(4, 4, 2) if sharded else None)
    meta = {p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    records = [o.record for o in _done(job)]
    (volume,) = open_targets(job)
    base = pathlib.Path(volume.store.kvstore.spec().to_json()["path"])
    on_disk = {
        str(p.relative_to(base)): (p.stat().st_size, _digest(p.read_bytes()))
        for p in (tmp_path / "out").rglob("*")
        if p.is_file() and p not in meta and "segclr-beam" not in p.parts
    }
    listed = [entry for r in records for entry in r.stored]
    assert {key: (size, digest) for _, key, size, digest in listed} == on_disk
    assert len(listed) == len(on_disk)
    assert {which for which, *_ in listed} == {0}
    assert sum(r.stored_bytes for r in records) == sum(size for size, _ in on_disk.values())
    for record in records:
        assert [k for _, k, *_ in record.stored] == list(keys_under(volume, record.box))
        assert len(record.digest) == 32
    assert len({r.digest for r in records}) == len(records)


def test_records_of_several_levels_say_which(tmp_path):
    ids = _ids((8, 8, 4)) % np.uint64(3)
    source = _saved(tmp_path, ids)
    base = layout_of(
        shape=(8, 8, 4),
        dtype="uint64",
        kind="segmentation",
        format="ome-zarr",
        origin_vx=(0, 0, 0),
        chunk=(2, 2, 2),
        shard=None,
    )
    layouts = [base, _coarser(base, (2, 2, 1))]
    output = str(tmp_path / "out")
    targets = tuple(Target(output, layout, level) for level, layout in enumerate(layouts))
    create_levels(targets, {}, name="ids", method="mode")
    grid = ChunkGrid(base.domain, (4, 8, 4))
    factors = (_ONE, (2, 2, 1))
    job = WriteJob("j", source, (0, 0, 0), output, targets, factors, grid, "mode")
    for outcome in _done(job):
        found = [(which, key) for which, key, *_ in outcome.record.stored]
        assert [w for w, _ in found] == [0] * 16 + [1] * 4
        for which, key in found:
            assert (tmp_path / "out" / str(which) / key).is_file()
        assert outcome.voxels == 4 * 8 * 4 + 2 * 4 * 4
    coarse, _ = reduced(ids, (0, 0, 0), (2, 2, 1), "mode")
    np.testing.assert_array_equal(_read(job, 1), coarse)
    np.testing.assert_array_equal(_read(job, 0), ids)


def test_precomputed_shards_of_zeros_are_not_listed(tmp_path):
    ids = _ids((8, 4, 4))
    ids[4:] = 0
    job = _job(tmp_path, ids, unit=(8, 4, 4), form="precomputed", shard=(4, 4, 4))
    (outcome,) = _done(job)
    assert len(outcome.record.stored) == 1
    np.testing.assert_array_equal(_read(job), ids)


def test_an_object_that_vanishes_while_it_is_listed_is_an_error(tmp_path, monkeypatch):
    job = _job(tmp_path, _ids())
    written = units.write_box

    def writes_and_loses(volume, box, voxels):
        written(volume, box, voxels)
        (tmp_path / "out/c/0/0/0").unlink()

    monkeypatch.setattr(units, "write_box", writes_and_loses)
    with pytest.raises(RunError, match=r"c/0/0/0 of .*out was written and is not there; something"):
        _done(job, [0])
    assert read_record(job, 0) is None


def test_a_record_is_written_after_the_chunks_and_not_when_they_fail(tmp_path, monkeypatch):
    job = _job(tmp_path, _ids())

    def fails(volume, box, voxels):
        assert read_record(job, 0) is None
        raise RunError("disk full")

    monkeypatch.setattr(units, "write_box", fails)
    with pytest.raises(RunError, match="disk full"):
        _done(job, [0])
    assert read_record(job, 0) is None


def test_a_changed_source_is_done_again(tmp_path):
    job = _job(tmp_path, _ids())
    first = _done(job, [0])[0].record
    _saved(tmp_path, _ids() + np.uint64(7))
    reader = job.source.open()
    assert current_record(job, reader, 0) is None
    assert read_record(job, 0) == first
    (second,) = _done(job, [0])
    assert not second.skipped
    assert second.record.digest != first.digest
    assert int(_read(job)[0, 0, 0]) == 1 + 7


def test_a_source_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    job = _job(tmp_path, _ids())
    reader, volumes = job.source.open(), open_targets(job)
    stamps = iter([(("ids.npy", "1:1"),), (("ids.npy", "1:2"),)])
    monkeypatch.setattr(reader, "stamps", lambda box: next(stamps))
    with pytest.raises(RunError, match=r"ids\.npy changed while \[-3:5, 0:4, 10:12\) was read"):
        write_unit(job, reader, volumes, 0)
    assert read_record(job, 0) is None


def test_negative_ids_are_refused_and_others_lose_their_sign_only(tmp_path):
    ids = _ids(dtype=np.int64)
    ids[0, 0, 0] = 2**62 + 1
    ids[8, 6, 4] = -3
    job = _job(tmp_path, ids)
    assert job.targets[0].layout.dtype == "uint64"
    _done(job, [0])
    assert int(_read(job)[0, 0, 0]) == 2**62 + 1
    last = job.grid.size - 1
    told = r"ids\.npy in \[5:6, 4:7, 14:15\) \(x, y, z\) holds the id -3; ids are never negative"
    with pytest.raises(RunError, match=told):
        _done(job, [last])
    assert read_record(job, last) is None


def test_the_record_of_another_lattice_is_none(tmp_path):
    job = _job(tmp_path, _ids())
    _done(job, [0])
    domain = job.targets[0].layout.domain
    other = dataclasses.replace(job, grid=ChunkGrid(domain, (4, 4, 2), _ORIGIN))
    assert read_record(other, 0) is None
    assert read_record(job, 0) is not None
    assert read_record(dataclasses.replace(job, name="convert"), 0) is None


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{", r"ingest/0_0_0\.json is not a JSON document"),
        (b'{"format": "x"}', r"has format 'x' where 'segclr-beam-unit' was expected"),
        (
            b'{"format": "segclr-beam-unit", "format_version": 2}',
            "version 2, written by newer software",
        ),
    ],
)
def test_a_damaged_record_is_an_error_that_names_it(tmp_path, data, told):
    job = _job(tmp_path, _ids())
    objects.write(record_url(job, 0), data)
    with pytest.raises(RunError, match=told):
        read_record(job, 0)


def test_records_and_jobs_travel(tmp_path):
    job = _job(tmp_path, _ids())
    assert pickle.loads(pickle.dumps(job)) == job
    stored = ((0, "c/0/0/0", 12, _digest(b"a")), (1, "c/0/0/0", 2**40, _digest(b"b")))
    box = Box((-1, 0, 0), (1, 2, 3))
    record = UnitRecord("-1_0_0", box, "ab", (("a.png", "1:2"),), stored, 7)
    assert UnitRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert pickle.loads(pickle.dumps(record)) == record
    assert record.stored_bytes == 12 + 2**40
    _done(job, [0])
    data = objects.read(record_url(job, 0))
    assert load_record(data, "here") == read_record(job, 0)


def test_two_attempts_at_once_leave_the_same(tmp_path):
    ids = _ids()
    job = _job(tmp_path, ids)
    (first,), (second,) = open_targets(job), open_targets(job)
    box = job.grid.box(0)
    write_box(first, box, ids[box.slices(job.grid.domain)])  # a worker that died here
    a = write_unit(job, job.source.open(), (second,), 0)
    b = write_unit(job, job.source.open(), (first,), 0)
    assert (a.skipped, b.skipped) == (False, True)
    assert a.record == b.record
    # An attempt that did not see the record writes the same once more.
    before = pathlib.Path(record_url(job, 0)).read_bytes()
    pathlib.Path(record_url(job, 0)).unlink()
    c = write_unit(job, job.source.open(), (first,), 0)
    assert not c.skipped
    assert pathlib.Path(record_url(job, 0)).read_bytes() == before


# A copy of another job's


def test_a_copy_of_what_has_changed_since_is_not_taken_for_read(tmp_path):
    ids = _ids((8, 4, 4))
    first = _job(tmp_path, ids)
    _done(first)
    copy = dataclasses.replace(
        first,
        name="convert",
        output=str(tmp_path / "second"),
        targets=(Target(str(tmp_path / "second"), first.targets[0].layout),),
        copied=first,
    )
    create_levels(copy.targets, {})
    _done(copy, [0])
    _saved(tmp_path, ids + np.uint64(1))
    with pytest.raises(RunError, match=r"ids\.npy changed while \[-3:5, 0:4, 12:14\) was read"):
        _done(copy, [1])
    assert read_record(copy, 1) is None
    _done(first)
    _done(copy)
    np.testing.assert_array_equal(_read(copy), ids + np.uint64(1))


# Lists of units


def test_the_list_of_units(tmp_path):
    job = _job(tmp_path, _ids())
    assert list(job.units()) == list(range(12))
    assert job.count() == 12
    where = str(tmp_path / "units.json")
    some = dataclasses.replace(job, listed=where)
    with pytest.raises(RunError, match=r"units\.json was removed while it was needed; start again"):
        list(some.units())
    write_list(where, job.grid, (0, 3, 11))
    assert list(some.units()) == list(listed_units(job.grid, where)) == [0, 3, 11]
    assert some.count() == 3
    write_list(where, job.grid, ())
    assert (list(some.units()), some.count()) == ([], 0)
    (tmp_path / "units.json").write_text("[")
    with pytest.raises(RunError, match=r"units\.json is not a JSON document"):
        list(some.units())


@given(
    st.tuples(*[st.integers(-50, 50)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sets(st.integers(0, 10**9), max_size=9),
)
def test_a_list_of_units_of_any_lattice_comes_back(tmp_path_factory, anchor, chunk, chosen):
    grid = ChunkGrid(Box.of(anchor, (10**6, 10**6, 10**6)), chunk, (0, 0, 0))
    where = str(tmp_path_factory.getbasetemp() / "any-units.json")
    some = sorted(i % grid.size for i in chosen)
    write_list(where, grid, some)
    assert list(listed_units(grid, where)) == some


# Types


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from(["uint64", "uint32", "uint8"]))
def test_an_id_is_stored_exactly_or_refused(value, dtype):
    ids = np.full((1, 1, 2), value, np.int64)
    holds = 0 <= value < 2 ** (8 * np.dtype(dtype).itemsize)
    if holds:
        stored = to_stored(ids, dtype, "ids")
        assert stored.dtype == dtype
        assert int(stored[0, 0, 1]) == value
        return
    with pytest.raises(RunError, match=f"holds the id {value};|holds {value}, which {dtype} does"):
        to_stored(ids, dtype, "ids")


def test_a_box_of_coarser_voxels_has_whole_finer_ones():
    assert scaled(Box((-1, 0, 2), (1, 1, 3)), (2, 3, 1)) == Box((-2, 0, 2), (2, 3, 3))
    assert math.prod(scaled(Box((0, 0, 0), (2, 2, 2)), (4, 4, 4)).shape) == 8 * 64
