import dataclasses
import pickle

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from transforms.counting import NAMESPACE
from transforms.ingest import COUNTERS, DISTRIBUTIONS, IngestSlab, IngestSlabs, ListSlabs
from volumes.errors import RunError
from volumes.geometry import Box, ChunkGrid, Vec
from volumes.slabs import SlabJob, read_record
from volumes.sources import resolve_source
from volumes.sources_base import decoded_bytes
from volumes.writing import VolumeLayout, create_volume, open_for_writing

_SHAPE = (9, 7, 5)


def _layout(shape: Vec) -> VolumeLayout:
    return VolumeLayout(
        shape, "uint64", "segmentation", (8.0, 8.0, 30.0), (0, 0, 0), (2, 2, 2), (4, 4, 2)
    )


def _job(tmp_path, slab=(12, 4, 2)):
    ids = np.arange(1, np.prod(_SHAPE) + 1, dtype=np.uint64).reshape(_SHAPE)
    np.save(tmp_path / "ids.npy", ids)
    source = resolve_source(str(tmp_path / "ids.npy"), None, "xyz", "segmentation")
    layout = _layout(_SHAPE)
    output = str(tmp_path / "out")
    create_volume(output, layout, {})
    return SlabJob(source, output, layout, ChunkGrid(layout.domain, slab)), ids


def _metrics(result, kind="counters"):
    return {
        m.key.metric.name: m.committed
        for m in result.metrics().query()[kind]
        if m.key.metric.namespace == NAMESPACE
    }


def _run(job, check=None):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    records = pipeline | "Ingest" >> IngestSlabs(job)
    if check is not None:
        assert_that(records, check)
    return pipeline.run()


def test_every_slab_is_written_and_its_record_emitted_and_counted(tmp_path):
    job, ids = _job(tmp_path)
    names = [job.grid.name(i) for i in range(job.grid.size)]

    def check(records):
        equal_to(names)([r.name for r in records])

    result = _run(job, check)
    np.testing.assert_array_equal(open_for_writing(job.output).read().result(), ids)
    records = [read_record(job, i) for i in range(job.grid.size)]
    assert _metrics(result) == {
        "slabs": len(records),
        "voxels": sum(r.box.size for r in records),
        "bytes_read": sum(decoded_bytes(job.source, r.box) for r in records),
        "bytes_written": ids.nbytes,
    }
    times = _metrics(result, "distributions")
    assert set(times) == set(DISTRIBUTIONS)
    assert all(t.count == len(records) for t in times.values())
    # Again: the records are there, so nothing is written, and they are emitted all the same.
    assert _metrics(_run(job, check)) == {"slabs_skipped": len(records)}


def test_the_counters_are_those_announced():
    assert COUNTERS == ("slabs", "slabs_skipped", "voxels", "bytes_read", "bytes_written")


def test_the_graph_is_the_same_for_one_slab_and_for_a_million(tmp_path):
    one, _ = _job(tmp_path, slab=(12, 8, 6))
    assert one.grid.size == 1
    shape = (400, 400, 200)
    million = dataclasses.replace(one, grid=ChunkGrid(Box((0, 0, 0), shape), (4, 4, 2)))
    assert million.grid.size == 10**6

    def graph(job):
        pipeline = beam.Pipeline(runner="FnApiRunner")
        pipeline | IngestSlabs(job)
        proto = pipeline.to_runner_api()
        names = sorted(t.unique_name for t in proto.components.transforms.values())
        return names, proto.ByteSize()

    small, large = graph(one), graph(million)
    assert small[0] == large[0]
    assert abs(small[1] - large[1]) < 100
    assert {n.split("/")[1] for n in small[0] if "/" in n} == {
        "Seed",
        "ListSlabs",
        "Reshuffle",
        "IngestSlab",
    }


def test_indices_are_listed_by_the_worker():
    grid = ChunkGrid(Box((0, 0, 0), (10, 1, 1)), (3, 1, 1))
    assert list(ListSlabs(grid).process(0)) == [0, 1, 2, 3]


def test_the_work_travels_and_opens_nothing_before_setup(tmp_path):
    job, _ = _job(tmp_path)
    gone = dataclasses.replace(job, output=str(tmp_path / "none"))
    (tmp_path / "ids.npy").unlink()
    work = pickle.loads(pickle.dumps(IngestSlab(gone)))
    assert not (tmp_path / "none").exists()
    with pytest.raises(RunError, match=r"ids\.npy cannot be read any more"):
        work.setup()
    work.teardown()


def test_a_worker_closes_its_source(tmp_path):
    job, _ = _job(tmp_path)
    work = IngestSlab(job)
    work.setup()
    reader = work._reader
    work.teardown()
    with pytest.raises(RunError, match="is closed"):
        reader.read(Box((0, 0, 0), (1, 1, 1)))


def test_a_runner_that_tries_again_leaves_one_record_a_slab(tmp_path):
    # This runner attempts a failed bundle four times; the third attempt meets a whole source.
    job, ids = _job(tmp_path)
    attempts = tmp_path / "attempts"
    pipeline = beam.Pipeline(runner="BundleBasedDirectRunner")
    names = (
        pipeline
        | beam.Create([0])
        | beam.ParDo(ListSlabs(job.grid))
        | beam.ParDo(_Failing(job, str(attempts)))
        | beam.Map(lambda record: record.name)
    )
    assert_that(names, equal_to([job.grid.name(i) for i in range(job.grid.size)]))
    pipeline.run().wait_until_finish()
    assert len(attempts.read_text()) == 3
    np.testing.assert_array_equal(open_for_writing(job.output).read().result(), ids)


class _Failing(IngestSlab):
    """Fails on slab 3 in its first two attempts, after the slab was written."""

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
