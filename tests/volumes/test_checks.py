"""What a check of a unit tells: against records made by hand, and by the job."""

import json
import pathlib
import pickle

import pytest

from pipelines import convert, writing
from pipelines.convert import ConvertConfig
from tests.pipelines.volume_case import checks, converted, faults, noise, volume, work
from volumes.checks import CheckJob, Fault, check_metadata, check_unit
from volumes.errors import RunError
from volumes.geometry import Box
from volumes.units import WriteJob, bytes_digest, read_record

_FIELDS = {"format": "zarr3", "chunk": (8, 8, 8), "shard": (16, 8, 8), "axes": "xyz"}


@pytest.fixture
def job(tmp_path: pathlib.Path) -> WriteJob:
    """A conversion that was done, in one unit."""
    volume(tmp_path / "em", noise((40, 8, 8)))
    plan = convert.plan(ConvertConfig(str(tmp_path / "em"), str(tmp_path / "out"), **_FIELDS))
    writing.prepare(plan, "test")
    work(plan)
    return plan.last


def test_a_unit_that_is_whole(job):
    found = check_unit(CheckJob.of(job), 0)
    record = read_record(job, 0)
    assert record is not None
    assert (found.objects, found.bytes, found.faults) == (3, record.stored_bytes, ())
    assert [key for _, key, _, _ in record.stored] == ["c/0/0/0", "c/1/0/0", "c/2/0/0"]


def test_every_fault_of_a_unit_is_told_with_its_box_and_nothing_else(job, tmp_path):
    first, last = (tmp_path / f"out/c/{i}/0/0" for i in (0, 2))
    first.unlink()
    last.write_bytes(last.read_bytes()[::-1])
    gone, damaged = check_unit(CheckJob.of(job), 0).faults
    assert (gone.kind, gone.key) == ("missing", "c/0/0/0")
    assert gone.box == Box((3, 5, -7), (19, 13, 1))
    assert (damaged.kind, damaged.key) == ("damaged", "c/2/0/0")
    assert damaged.box == Box((35, 5, -7), (43, 13, 1))
    assert damaged.line() == (
        f"damaged: voxels [35:43, 5:13, -7:1) of {tmp_path}/out (c/2/0/0): its bytes are not those "
        "written"
    )
    (tmp_path / "out/zarr.json").write_text("{")
    lines = [f.line() for f in check_unit(CheckJob.of(job), 0).faults]
    assert [line.partition(" of ")[0] for line in lines] == [
        "missing: voxels not known",
        "damaged: voxels not known",
    ]


def test_another_whole_shard_in_the_place_of_one(job, tmp_path):
    # Noise is stored raw, so that shards have equal lengths; each has right checksums of its own.
    first, other = (tmp_path / f"out/c/{i}/0/0" for i in (0, 1))
    assert len(first.read_bytes()) == len(other.read_bytes())
    first.write_bytes(other.read_bytes())
    (fault,) = check_unit(CheckJob.of(job), 0).faults
    assert (fault.kind, fault.key) == ("damaged", "c/0/0/0")


def test_faults_and_jobs_travel(job, tmp_path):
    check = CheckJob.of(job)
    assert pickle.loads(pickle.dumps(check)) == check
    document = json.loads(json.dumps(check.to_json()))
    assert CheckJob.from_json(document, str(tmp_path / "out")) == check
    assert str(tmp_path / "out") not in json.dumps(document["below"])
    (tmp_path / "out/c/0/0/0").unlink()
    for box in (Box((1, 2, 3), (4, 5, 6)), None):
        (found,) = check_unit(check, 0).faults
        fault = Fault(found.kind, found.volume, found.key, box, found.says)
        assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault


def test_a_moved_job_looks_where_the_volume_is_now(job, tmp_path):
    document = CheckJob.of(job).to_json()
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = CheckJob.from_json(document, str(tmp_path / "moved"))
    assert check_unit(moved, 0).faults == ()
    assert check_metadata(str(tmp_path / "moved"), [moved]) == ()
    assert moved.targets[0].source == str(tmp_path / "moved")


def test_metadata_of_another_volume(job, tmp_path):
    other = tmp_path / "other"
    converted(tmp_path / "em", other, **_FIELDS, origin_vx=(0, 0, 0))
    (tmp_path / "out/zarr.json").write_bytes((other / "zarr.json").read_bytes())
    (fault,) = check_metadata(str(tmp_path / "out"), [CheckJob.of(job)])
    assert (fault.kind, fault.box) == ("metadata", Box((3, 5, -7), (43, 13, 1)))
    assert fault.says == "no uint8 voxels of 4,4,40 nm are told of there"
    assert check_unit(CheckJob.of(job), 0).faults == ()


def test_the_list_of_units_that_is_gone(tmp_path):
    volume(tmp_path / "em", noise((40, 8, 8)))
    converted(tmp_path / "em", tmp_path / "out", **_FIELDS, missing="keep")
    assert faults(tmp_path / "out") == []
    (check,) = checks(tmp_path / "out")
    assert check.listed is not None
    pathlib.Path(check.listed).unlink()
    with pytest.raises(RunError, match=r"convert-units\.json was removed while it was needed"):
        list(check.units())


def test_digests_tell_bytes_apart_that_end_with_their_own_checksum():
    assert bytes_digest(b"") != bytes_digest(b"\0")
    assert bytes_digest(b"ab") != bytes_digest(b"ba")
