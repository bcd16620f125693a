"""The writing of volumes as a transform: what is counted, what is tried again, what travels."""

import dataclasses
import pickle

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from transforms.counting import NAMESPACE
from transforms.write import COUNTERS, DISTRIBUTIONS, ListUnits, WriteUnit, WriteUnits
from volumes.errors import RunError
from volumes.geometry import Box, ChunkGrid
from volumes.sources.base import decoded_bytes
from volumes.sources.resolving import resolve_source
from volumes.units import WriteJob, open_targets, read_record, write_list
from volumes.writing import Target, VolumeLayout, create_levels

_SHAPE = (9, 7, 5)
_ORIGIN = (-3, 0, 10)


def _job(tmp_path, unit=(12, 4, 2)):
    ids = np.arange(1, np.prod(_SHAPE) + 1, dtype=np.uint64).reshape(_SHAPE)
    np.save(tmp_path / "ids.npy", ids)
    source = resolve_source(str(tmp_path / "ids.npy"), None, "xyz", "segmentation")
    size = (8.0, 8.0, 30.0)
    layout = VolumeLayout(_SHAPE, "uint64", "segmentation", size, _ORIGIN, (2, 2, 2), (4, 4, 2))
    output = str(tmp_path / "out")
    target = Target(output, layout)
    create_levels([target], {})
    grid = ChunkGrid(layout.domain, unit, _ORIGIN)
    return WriteJob("ingest", source, _ORIGIN, output, (target,), ((1, 1, 1),), grid), ids


def _written(job):
    (volume,) = open_targets(job)
    return volume.store.read().result()


def _metrics(result, kind="counters"):
    return {
        m.key.metric.name: m.committed
        for m in result.metrics().query()[kind]
        if m.key.metric.namespace == NAMESPACE
    }


def _run(job, check=None):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    records = pipeline | "Ingest" >> WriteUnits(job)
    if check is not None:
        assert_that(records, check)
    return pipeline.run()


def _check(names):
    def check(records):
        equal_to(names)([r.name for r in records])

    return check


def test_every_unit_is_written_and_its_record_emitted_and_counted(tmp_path):
    job, ids = _job(tmp_path)
    check = _check([job.grid.name(i) for i in range(job.grid.size)])
    result = _run(job, check)
    np.testing.assert_array_equal(_written(job), ids)
    records = [read_record(job, i) for i in range(job.grid.size)]
    assert len(records) > 2
    assert _metrics(result) == {
        "units": len(records),
        "voxels": sum(r.box.size for r in records),
        "bytes_read": sum(decoded_bytes(job.source, job.within(r.box)) for r in records),
        "bytes_written": ids.nbytes,
        "bytes_stored": sum(r.stored_bytes for r in records),
        "voxels_missing": 0,
    }
    chunks = (p for p in (tmp_path / "out/c").rglob("*") if p.is_file())
    assert sum(r.stored_bytes for r in records) == sum(p.stat().st_size for p in chunks)
    times = _metrics(result, "distributions")
    assert set(times) == set(DISTRIBUTIONS)
    assert all(t.count == len(records) for t in times.values())
    # Again: the records are there, so nothing is written, and they are emitted all the same.
    assert _metrics(_run(job, check)) == {"units_skipped": len(records)}


def test_the_counters_are_those_announced(tmp_path):
    job, _ = _job(tmp_path)
    assert COUNTERS == (
        *("units", "units_skipped", "voxels", "bytes_read", "bytes_written", "bytes_stored"),
        "voxels_missing",
    )
    assert {*_metrics(_run(job)), *_metrics(_run(job))} == set(COUNTERS)


def test_units_that_are_listed_are_done_and_no_others(tmp_path):
    job, ids = _job(tmp_path)
    some = (1, job.grid.size - 1)
    listed = str(tmp_path / "out/segclr-beam/units.json")
    write_list(listed, job.grid, some)
    job = dataclasses.replace(job, listed=listed)
    result = _run(job, _check([job.grid.name(i) for i in some]))
    assert _metrics(result)["units"] == 2
    written = _written(job)
    for index in range(job.grid.size):
        part = job.grid.box(index).slices(job.grid.domain)
        wanted = ids[part] if index in some else np.zeros_like(ids[part])
        np.testing.assert_array_equal(written[part], wanted)


def test_nothing_is_begun_before_what_it_waits_for_is_complete(tmp_path):
    job, _ = _job(tmp_path)
    # What comes before makes the source, which is read when the first unit is begun.
    whole = (tmp_path / "ids.npy").read_bytes()
    (tmp_path / "ids.npy").unlink()

    def restore(element):
        (tmp_path / "ids.npy").write_bytes(whole)
        return element

    pipeline = beam.Pipeline(runner="FnApiRunner")
    before = pipeline | beam.Create([0]) | beam.Map(restore)
    records = pipeline | WriteUnits(job, (before,))
    steps = pipeline.to_runner_api().components.transforms.values()
    (listing,) = [t for t in steps if t.unique_name.endswith("/ListUnits")]
    assert len(listing.inputs) == 2  # the seed, and what it waits for
    assert_that(records, _check([job.grid.name(i) for i in range(job.grid.size)]))
    assert _metrics(pipeline.run())["units"] == job.grid.size


def test_the_graph_is_the_same_for_one_unit_and_for_a_million(tmp_path):
    one, _ = _job(tmp_path, unit=(12, 8, 6))
    assert one.grid.size == 1
    million = dataclasses.replace(one, grid=ChunkGrid(Box((0, 0, 0), (400, 400, 200)), (4, 4, 2)))
    assert million.grid.size == 10**6

    def graph(job):
        pipeline = beam.Pipeline(runner="FnApiRunner")
        pipeline | WriteUnits(job)
        proto = pipeline.to_runner_api()
        names = sorted(t.unique_name for t in proto.components.transforms.values())
        return names, proto.ByteSize()

    small, large = graph(one), graph(million)
    assert small[0] == large[0]
    assert abs(small[1] - large[1]) < 100
    assert {n.split("/")[1] for n in small[0] if "/" in n} == {
        "Seed",
        "ListUnits",
        "Reshuffle",
        "WriteUnit",
    }


def test_indices_are_listed_by_the_worker(tmp_path):
    job, _ = _job(tmp_path)
    grid = ChunkGrid(Box((0, 0, 0), (10, 1, 1)), (3, 1, 1))
    listing = pickle.loads(pickle.dumps(ListUnits(dataclasses.replace(job, grid=grid))))
    assert list(listing.process(0)) == [0, 1, 2, 3]


def test_the_work_travels_and_opens_nothing_before_its_first_unit(tmp_path):
    job, _ = _job(tmp_path)
    gone = dataclasses.replace(job, output=str(tmp_path / "none"))
    (tmp_path / "ids.npy").unlink()
    work = pickle.loads(pickle.dumps(WriteUnit(gone)))
    work.setup()
    assert not (tmp_path / "none").exists()
    with pytest.raises(RunError, match=r"ids\.npy cannot be read any more"):
        list(work.process(0))
    work.teardown()


def test_a_worker_opens_once_and_closes_its_source(tmp_path):
    job, _ = _job(tmp_path)
    work = WriteUnit(job)
    list(work.process(0))
    reader, volumes = work._reader, work._volumes
    list(work.process(1))
    assert work._reader is reader
    assert work._volumes is volumes
    work.teardown()
    with pytest.raises(RunError, match="is closed"):
        reader.read(Box((0, 0, 0), (1, 1, 1)))
    work.teardown()


def test_a_runner_that_tries_again_leaves_one_record_a_unit(tmp_path):
    # This runner attempts a failed bundle four times; the third attempt meets a whole source.
    job, ids = _job(tmp_path)
    attempts = tmp_path / "attempts"
    pipeline = beam.Pipeline(runner="BundleBasedDirectRunner")
    names = (
        pipeline
        | beam.Create([0])
        | beam.ParDo(ListUnits(job))
        | beam.ParDo(_Failing(job, str(attempts)))
        | beam.Map(lambda record: record.name)
    )
    assert_that(names, equal_to([job.grid.name(i) for i in range(job.grid.size)]))
    pipeline.run().wait_until_finish()
    assert len(attempts.read_text()) == 3
    np.testing.assert_array_equal(_written(job), ids)


class _Failing(WriteUnit):
    """Fails on unit 3 in its first two attempts, after the unit was written."""

    def __init__(self, job, attempts):
        super().__init__(job)
        self._attempts = attempts

    def process(self, element):
        yield from super().process(element)
        if element == 3:
            with open(self._attempts, "a+") as file:
                file.write("x")
                file.seek(0)
                if len(file.read()) < 3:
                    raise RuntimeError("injected")
