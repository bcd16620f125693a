import dataclasses
import json

import pytest

from pipelines.embed.estimate import estimate
from pipelines.embed.memory import peak_bytes
from segclr.model import resolve_model
from tests.transforms.test_work import volume
from transforms.work import EmbedWork
from volumes.agglomeration import Agglomeration
from volumes.generation import Generation
from volumes.geometry import Box, ChunkGrid

VOLUMES = ("image", "segmentation")


def make(side: int, box: int = 32, spacing_nm: float | None = 320.0, **changes) -> EmbedWork:
    domain = Box((0, 0, 0), (side, side, side))
    image, labels = (
        dataclasses.replace(volume(n, k, t), domain=domain)
        for n, k, t in (("em", "image", "uint8"), ("seg", "segmentation", "uint64"))
    )
    shape = (box, box, box)
    return EmbedWork(
        image=image,
        segmentation=labels,
        grid=ChunkGrid(domain, shape),
        generation=Generation("store", "1", 4, shape, (2, 2, 2)),
        model=resolve_model(changes.pop("model", "untrained:width=2,input=17,embedding=4")),
        identity="",
        inputs="",
        recipe="",
        run="",
        halo=(8, 8, 8),
        missing_image="error",
        missing_segmentation="background",
        spacing_nm=spacing_nm,
        bytes_in_flight=changes.pop("bytes_in_flight", 10**8),
    )


def test_reads_of_chunks_are_those_of_a_count_by_hand() -> None:
    work = make(96)
    found = estimate(work, None)
    reads: dict[tuple[str, int], int] = {}
    decoded = 0
    for i in range(work.grid.size):
        for spec, box in ((work.image, work.read_box(i)), (work.segmentation, work.labels_box(i))):
            for chunk in spec.read_grid.meeting(box):
                reads[spec.kind, chunk] = reads.get((spec.kind, chunk), 0) + 1
                # The segmentation is read once to sample a box, and once with its image.
                times = 2 if spec.kind == "segmentation" else 1
                decoded += times * spec.read_grid.box(chunk).size * spec.itemsize
    assert found.bytes_to_read == decoded
    assert found.chunk_reads == pytest.approx(sum(reads.values()) / len(reads))
    assert found.boxes == 27


def test_a_large_grid_is_estimated_from_an_inner_box() -> None:
    # Cells of the sampler as large as boxes, so that every inner box reads the same.
    aligned = {"spacing_nm": 256.0}
    small, large = (estimate(make(s, **aligned), None) for s in (5 * 32, 320_000))
    assert large.boxes == 10**12
    assert large.chunk_reads == pytest.approx(small.chunk_reads, rel=0.3)
    assert large.bytes_to_read / large.boxes == pytest.approx(
        small.bytes_to_read / small.boxes, rel=0.7
    )
    assert large.peak_bytes >= small.peak_bytes


def test_memory_grows_with_each_of_its_parts() -> None:
    base = make(96, spacing_nm=None)

    def peak(work: EmbedWork) -> int:
        return peak_bytes(work, None, 27)

    assert peak(make(96, box=96, spacing_nm=None)) > peak(base)
    assert peak(make(96)) > peak(base)
    # Unsharded volumes are held whole by their transaction; of sharded ones so much is in flight.
    shards = {n: dataclasses.replace(getattr(base, n), write_chunk=(16, 16, 16)) for n in VOLUMES}
    sharded = dataclasses.replace(base, **shards)
    assert peak(sharded) == peak(base)
    assert peak(dataclasses.replace(sharded, bytes_in_flight=1)) < peak(sharded)
    assert peak(make(96, spacing_nm=None, bytes_in_flight=1)) == peak(base)
    table = Agglomeration("u", "d", 10**6)
    assert peak(dataclasses.replace(base, agglomeration=table)) >= peak(base) + 60 * 10**6
    wide = make(96, spacing_nm=None, model="untrained:width=4,input=17,embedding=4")
    assert peak(wide) > peak(base)
    batch = dataclasses.replace(base, model=dataclasses.replace(base.model, batch=8))
    assert peak(batch) > peak(base)
    assert peak_bytes(base, [0], 1) < peak_bytes(base, [0], 2)


def test_an_estimate_is_json() -> None:
    found = dataclasses.asdict(estimate(make(96), None))
    assert json.loads(json.dumps(found)) == found
