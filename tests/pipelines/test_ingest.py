import dataclasses
import json
import pathlib
import pickle
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zlib

import apache_beam as beam
import h5py
import numpy as np
import pytest
from PIL import Image

from pipelines.ingest import IngestConfig, plan
from pipelines.writing import build, finish
from pipelines.writing import prepare as prepare_plan
from tests.support import shared
from tests.volumes.section_files import cut, write_section, write_sections
from transforms.counting import NAMESPACE
from volumes.errors import RequestError, RunError
from volumes.geometry import ChunkGrid
from volumes.opening import open_volume
from volumes.reading import read_box
from volumes.resolving import resolve_volume
from volumes.shapes import times_read
from volumes.units import read_record
from volumes.writing.codecs import FORMATS, SHARDED

_SHAPE = (11, 9, 8)
_ROOT = pathlib.Path(__file__).resolve().parents[2]


# Voxels of units of two sections, where a plan would take them all at once.
_UNIT = 16 * 12 * 2


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr("pipelines.writing.plan.TARGET_BYTES", _UNIT)


def prepare(made):
    return prepare_plan(made, "segclr-beam ingest")


def _config(tmp_path, **changes):
    fields = {
        "source": str(tmp_path / "em"),
        "output": str(tmp_path / "out"),
        "kind": "image",
        "voxel_size_nm": (10.0, 10.0, 30.0),
        "chunk": (4, 4, 2),
        "shard": (8, 4, 2),
    }
    return IngestConfig(**{**fields, **changes})


def _voxels(shape=_SHAPE, dtype=np.uint8):
    return np.random.default_rng(11).integers(1, 255, shape, dtype)


def _run(made):
    """Run a prepared plan; gives its counters."""
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, made)
    return {
        m.key.metric.name: m.committed
        for m in pipeline.run().metrics().query()["counters"]
        if m.key.metric.namespace == NAMESPACE
    }


def _ingest(config):
    made = plan(config)
    prepare(made)
    counters = _run(made)
    return counters, finish(made)


def _with_units(made, unit):
    (stage,) = made.stages
    source = stage.job.source
    grid = ChunkGrid(stage.job.grid.domain, unit, stage.job.origin_vx)
    changed = dataclasses.replace(
        stage,
        job=dataclasses.replace(stage.job, grid=grid),
        times_read=times_read(source.shape, unit, source.piece),
    )
    return dataclasses.replace(made, stages=(changed,))


def _read(output, kind="image"):
    spec = resolve_volume(str(output), kind=kind)
    return read_box(open_volume(spec), spec.domain, missing="error").array


def _tree(path):
    return {
        str(p.relative_to(path)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in path.rglob("*")
        if p.is_file()
    }


def _complete(tmp_path):
    return tmp_path / "out/segclr-beam/ingest-complete.json"


# The real sample


def test_the_real_sections(tmp_path):
    em = shared("data", "fib25", "em")
    config = IngestConfig(
        str(em), str(tmp_path / "em"), "image", (10.0, 10.0, 10.0), (5, 6, 7), memory_mb=12
    )
    made = plan(config)
    units = made.last.grid.size
    assert made.stages[0].unit[:2] == (256, 256)
    assert made.stages[0].bytes_to_read == made.stages[0].source_bytes == 250**3
    assert prepare(made).line() == f"{units} of {units} units to do"
    counters = _run(made)
    done = finish(made)
    records = [read_record(made.last, i) for i in range(units)]
    assert counters == {
        "units": units,
        "voxels": sum(r.box.size for r in records),
        "bytes_read": 250**3,
        "bytes_written": 250**3,
        "bytes_stored": sum(r.stored_bytes for r in records),
        "voxels_missing": 0,
    }
    assert done["units"] == units > 1
    assert done["voxels"] == counters["voxels"] == 250**3
    sections = [np.asarray(Image.open(p)) for p in sorted(em.glob("*.png"))]
    np.testing.assert_array_equal(_read(tmp_path / "em"), np.stack(sections).T)
    spec = resolve_volume(str(tmp_path / "em"), kind="image")
    assert spec.origin_vx == (5, 6, 7)
    assert spec.voxel_size_nm == (10.0, 10.0, 10.0)


def test_the_real_segmentation(tmp_path):
    path = shared("data", "fib25", "groundtruth.h5")
    config = IngestConfig(
        str(path),
        str(tmp_path / "seg"),
        "segmentation",
        (10.0, 10.0, 10.0),
        dataset="stack",
        axes="zyx",
        shard=(128, 128, 128),
    )
    counters, done = _ingest(config)
    assert counters["units"] == done["units"] == 8
    with h5py.File(path) as file:
        np.testing.assert_array_equal(_read(tmp_path / "seg", "segmentation"), file["stack"][:].T)


# What comes out


@pytest.mark.parametrize("memory_mb", [1, 1000])
def test_ids_beyond_doubles_in_shards_that_stick_out(tmp_path, memory_mb):
    ids = np.uint64(2**63 + 1) + np.arange(33 * 50 * 29, dtype=np.uint64).reshape(33, 50, 29)
    np.save(tmp_path / "ids.npy", ids)
    config = _config(
        tmp_path,
        source=str(tmp_path / "ids.npy"),
        kind="segmentation",
        axes="xyz",
        origin_vx=(-3, 0, 10**6),
        chunk=(8, 8, 8),
        shard=(16, 16, 8),
        memory_mb=memory_mb,
    )
    _ingest(config)
    np.testing.assert_array_equal(_read(tmp_path / "out", "segmentation"), ids)
    spec = resolve_volume(str(tmp_path / "out"), kind="segmentation")
    assert spec.domain.start == (-3, 0, 10**6)


def test_units_split_in_y_and_x_read_sections_again_and_the_plan_says_how_often(tmp_path):
    voxels = _voxels((90, 70, 4), np.uint16)
    write_sections(tmp_path / "em", voxels)
    config = _config(tmp_path, chunk=(16, 16, 2), shard=(16, 16, 4), memory_mb=1)
    made = _with_units(plan(config), (32, 16, 4))
    prepare(made)
    counters = _run(made)
    finish(made)
    spec = resolve_volume(str(tmp_path / "out"), kind="segmentation")
    found = read_box(open_volume(spec), spec.domain, missing="error").array
    np.testing.assert_array_equal(found, voxels)
    assert counters["units"] == 15
    assert (
        counters["bytes_read"] == made.stages[0].bytes_to_read == 15 * made.stages[0].source_bytes
    )
    lines = "\n".join(made.lines())
    assert "to read: 756 kB decoded, each byte of the source 15 times" in lines
    assert "warning: the image is uint16 and is stored so; embed takes uint8" in lines


def test_the_plan_warns_of_sections_that_are_read_again_and_again(tmp_path):
    (tmp_path / "em").mkdir()
    for z in range(1, 65):
        (tmp_path / "em" / f"{z}.png").write_bytes(_header(4000, 3000))
    fields = {"chunk": (64, 64, 64), "shard": (64, 64, 64)}
    told = "a section or chunk of the source is decoded for each unit it meets; more --memory-mb"
    made = plan(_config(tmp_path, **fields, memory_mb=260))
    assert made.stages[0].times_read > 2
    (line,) = [w for w in made.lines() if told in w]
    assert line.startswith("warning: ")
    often = f"each byte of the source {made.stages[0].times_read:.3g} times"
    assert often in "\n".join(made.lines())
    assert made.peak_bytes <= 260 * 10**6
    roomy = plan(_config(tmp_path, **fields, memory_mb=2048))
    assert roomy.stages[0].times_read == 1
    assert not any(told in line for line in roomy.lines())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shard", [None, "none"])
def test_every_format_of_output_and_again(tmp_path, form, shard):
    ids = np.uint64(2**63 + 1) + np.arange(11 * 9 * 8, dtype=np.uint64).reshape(_SHAPE)
    np.save(tmp_path / "ids.npy", ids)
    config = _config(
        tmp_path,
        source=str(tmp_path / "ids.npy"),
        kind="segmentation",
        axes="xyz",
        origin_vx=(-3, 0, 10**6),
        format=form,
        shard=shard,
    )
    counters, done = _ingest(config)
    assert counters["units"] == done["units"]
    assert (done["units"] > 1) == (shard == "none" or form not in SHARDED)
    np.testing.assert_array_equal(_read(tmp_path / "out", "segmentation"), ids)
    spec = resolve_volume(str(tmp_path / "out"), kind="segmentation")
    assert spec.domain.start == (-3, 0, 10**6)
    assert spec.voxel_size_nm == (10.0, 10.0, 30.0)
    records = sorted((tmp_path / "out/segclr-beam/ingest").iterdir())
    boxes = [json.loads(p.read_text())["box"] for p in records]
    assert [min(b["start"][axis] for b in boxes) for axis in range(3)] == [-3, 0, 10**6]
    assert [max(b["stop"][axis] for b in boxes) for axis in range(3)] == [8, 9, 10**6 + 8]
    before = _tree(tmp_path)
    again = plan(config)
    assert prepare(again).pending == 0
    assert finish(again) == done
    assert _tree(tmp_path) == before


def test_a_codec_chosen_from_a_sample_stays(tmp_path, monkeypatch):
    write_sections(tmp_path / "em", np.repeat(_voxels(), 3, axis=0))
    config = _config(tmp_path, codec="auto")
    first = plan(config)
    codec = first.identity()["codec"]
    assert any(line.startswith(f"codec: {codec}, the smallest") for line in first.lines())
    assert not (tmp_path / "out").exists()
    prepare(first)
    monkeypatch.setattr("volumes.writing.choosing.READ_MB_S", 1e9)  # as on another machine
    again = plan(config)
    assert again.identity() == first.identity()
    assert f"codec: {codec}, as chosen when this job began" in again.lines()


def test_what_lies_in_the_output(tmp_path):
    write_sections(tmp_path / "em", _voxels())
    _, done = _ingest(_config(tmp_path))
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["c", "segclr-beam", "zarr.json"]
    state = out / "segclr-beam"
    assert sorted(p.name for p in state.iterdir()) == [
        "ingest",
        "ingest-complete.json",
        "ingest.json",
    ]
    assert sorted(p.name for p in (state / "ingest").iterdir()) == [
        f"0_0_{z}.json" for z in range(4)
    ]
    record = json.loads((state / "ingest/0_0_1.json").read_text())
    assert record["format"] == "segclr-beam-unit"
    assert record["format_version"] == 1
    assert [name for name, _ in record["stamps"]] == ["em.3.png", "em.4.png"]
    assert record["box"] == {"start": [0, 0, 2], "stop": [11, 9, 4]}
    complete = json.loads(_complete(tmp_path).read_text())
    assert {k: complete.get(k, done["output"]) for k in done} == done
    shards = [p for p in (out / "c").rglob("*") if p.is_file()]
    assert done["bytes_stored"] == sum(p.stat().st_size for p in shards)
    assert [key for _, key, *_ in record["stored"]] == sorted(
        str(p.relative_to(out)) for p in (out / "c/1").rglob("*") if p.is_file()
    )
    assert done["voxels"] == 11 * 9 * 8
    provenance = json.loads((out / "zarr.json").read_text())["attributes"]["segclr_beam"]
    manifest = json.loads((state / "ingest.json").read_text())
    assert provenance["kind"] == "image"
    assert provenance["provenance"]["source"] == str(tmp_path / "em")
    assert provenance["provenance"]["time"] == manifest["time"]
    assert provenance["provenance"]["version"] == manifest["software"]["segclr-beam"]
    assert provenance["provenance"]["parameters"]["voxel_size_nm"] == [10.0, 10.0, 30.0]


def test_a_plan_changes_nothing_reads_no_voxel_and_travels(tmp_path):
    write_sections(tmp_path / "em", _voxels((11, 9, 8)))
    for path in (tmp_path / "em").iterdir():
        cut(path, 40)  # the headers remain
    made = plan(_config(tmp_path))
    assert not (tmp_path / "out").exists()
    assert pickle.loads(pickle.dumps(made)) == made
    document = json.loads(json.dumps(made.to_json()))
    assert document["stages"][0]["units"] == 4
    assert document["stages"][0]["bytes_to_read"] == 11 * 9 * 8
    assert made.lines() == [
        f"8 PNG sections 1 to 8 in {tmp_path}/em",
        "volume: image, 11 x 9 x 8 voxels (x, y, z) of uint8; voxel size 10, 10, 30 nm; first "
        "voxel at (0, 0, 0)",
        f"output: {tmp_path}/out, zarr3, chunks of 4 x 4 x 2 in shards of 8 x 4 x 2, "
        "zstd:1, stored z,y,x",
        "work: units of 16 x 12 x 2 voxels, 4 in all (1 x 1 x 4 along x, y, z)",
        "to read: 792 B decoded, each byte of the source 1 times",
        "to write: 792 B before compression",
        "memory: at most about 2.04 kB a worker besides Python and its libraries, of 1.02 GB "
        "allowed",
    ]


@pytest.mark.parametrize(
    ("shape", "memory_mb", "shard"),
    [
        ((100, 300, 1000), 1024, (128, 256, 256)),  # four chunks, no more than cover the volume
        ((4000, 3000, 600), 1024, (256, 256, 64)),  # less deep, so that whole sections fit
        ((4000, 3000, 600), 4096, (256, 256, 256)),
        ((8000, 8000, 600), 1024, (256, 256, 64)),  # never fit whole: least often decoded
    ],
)
def test_the_default_shard(tmp_path, shape, memory_mb, shard):
    # A header is all that a plan reads, so one suffices for any size.
    for z in range(1, shape[2] + 1):
        (tmp_path / "em").mkdir(exist_ok=True)
        (tmp_path / "em" / f"{z}.png").write_bytes(_header(*shape[:2]))
    made = plan(_config(tmp_path, chunk=(64, 64, 64), shard=None, memory_mb=memory_mb))
    assert made.last.targets[0].layout.shard == shard
    assert made.peak_bytes <= memory_mb * 10**6


def _header(width, height):
    """The beginning of a grey PNG file of any size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "picture"}, "--kind picture is neither image nor segmentation"),
        ({"voxel_size_nm": (10.0, 0.0, 30.0)}, "--voxel-size 10,0,30 is not a size in nm"),
        ({"voxel_size_nm": (10.0, float("nan"), 3.0)}, "--voxel-size 10,nan,3 is not a size"),
        ({"chunk": (64, 0, 64)}, "--chunk 64,0,64 has an axis without a voxel"),
        ({"shard": (64, -64, 64)}, "--shard 64,-64,64 has an axis without a voxel"),
        ({"shard": "all"}, "--shard all is neither X,Y,Z nor none; give one of them"),
        ({"format": "zarr"}, "--format zarr is not written here; give one of zarr2, zarr3, ome-"),
        ({"format": "n5"}, "--shard 8,4,2: n5 has no shards; leave it out, or give --format zarr3"),
        ({"codec": "lzma"}, "--codec lzma is no codec known here; give one of raw, zstd, "),
        ({"codec": "zstd:99"}, "--codec zstd:99: the level of zstd is a number from 1 to 22"),
        ({"memory_mb": 0}, "--memory-mb 0 is less than 1"),
        ({"source": ""}, "--source and --output are needed"),
        ({"output": "s3://me:pw@b/x"}, "--output s3://b/x was given with a password"),
    ],
)
def test_requests_that_mean_nothing(tmp_path, changes, message):
    with pytest.raises(RequestError, match=message):
        _config(tmp_path, **changes)


def test_wrong_input_leaves_no_output(tmp_path):
    paths, wide = write_sections(tmp_path / "em", _voxels()), tmp_path / "wide"
    write_sections(wide / "em", np.zeros((200, 400, 20), np.uint8))
    with pytest.raises(RequestError, match=r"shard \(8, 4, 3\) is not a multiple of chunk"):
        plan(_config(tmp_path, shard=(8, 4, 3)))
    with pytest.raises(RequestError, match="a memory budget of 1 MB does not hold one shard"):
        plan(_config(wide, shard=(80, 400, 20), memory_mb=1))
    with pytest.raises(RequestError, match="a memory budget of 1 MB does not hold one shard"):
        plan(_config(wide, chunk=(80, 400, 20), shard=None, memory_mb=1))
    with pytest.raises(RequestError, match="em is the source; give another directory"):
        plan(_config(tmp_path, output=str(tmp_path / "em")))
    paths[3].unlink()
    with pytest.raises(RequestError, match="section 4 is missing"):
        plan(_config(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["em", "wide"]
    assert [p.name for p in wide.iterdir()] == ["em"]


def test_an_output_with_other_things_is_refused_and_left_alone(tmp_path):
    write_sections(tmp_path / "em", _voxels())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    before = _tree(tmp_path)
    with pytest.raises(RequestError, match=r"is not empty and no ingest .*it holds thesis\.tex\)"):
        plan(_config(tmp_path))
    with pytest.raises(RequestError, match=r"thesis\.tex is a file; a volume is a directory"):
        plan(_config(tmp_path, output=str(tmp_path / "out/thesis.tex")))
    assert _tree(tmp_path) == before


def test_another_ingest_into_the_same_output_is_refused_field_by_field(tmp_path):
    write_sections(tmp_path / "em", _voxels())
    _ingest(_config(tmp_path))
    before = _tree(tmp_path)
    with pytest.raises(RequestError) as caught:
        plan(_config(tmp_path, voxel_size_nm=(8.0, 10.0, 30.0), origin_vx=(1, 0, 0)))
    assert "voxel_size_nm: [10.0, 10.0, 30.0] there, [8.0, 10.0, 30.0] asked" in str(caught.value)
    assert "origin_vx: [0, 0, 0] there, [1, 0, 0] asked" in str(caught.value)
    assert "chunk" not in str(caught.value)
    changes = {"format": "precomputed", "shard": "none", "codec": "raw", "chunk": (8, 4, 2)}
    with pytest.raises(RequestError) as caught:
        plan(_config(tmp_path, **changes))
    for told in (
        "format: zarr3 there, precomputed asked",
        "chunk: [4, 4, 2] there, [8, 4, 2] asked",
        "shard: [8, 4, 2] there, None asked",
        "codec: zstd:1 there, raw asked",
    ):
        assert told in str(caught.value)
    assert _tree(tmp_path) == before


# Again, and after failures


def test_the_same_command_again_has_nothing_to_do(tmp_path, monkeypatch):
    write_sections(tmp_path / "em", _voxels())
    config = _config(tmp_path)
    _ingest(config)
    before = _tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    again = plan(_config(tmp_path, source="em/", output="out/"))
    assert prepare(again).line().startswith("nothing to do: all 4 units are written")
    assert _run(again) == {"units_skipped": 4}
    finish(again)
    assert _tree(tmp_path) == before


def test_a_section_that_breaks_stops_its_unit_only_and_its_repair_completes(tmp_path):
    voxels = _voxels((40, 30, 8))
    paths = write_sections(tmp_path / "em", voxels)
    made = plan(_config(tmp_path))
    whole = cut(paths[5], 300)
    prepare(made)
    with pytest.raises(RunError, match=r"em\.6\.png is cut short: it ends at byte 300"):
        _run(made)
    written = [i for i in range(4) if read_record(made.last, i) is not None]
    assert 2 not in written
    with pytest.raises(
        RunError, match=r"units of .*out are not written: .*0_0_2 \[0:40, 0:30, 4:6"
    ):
        finish(made)
    assert not _complete(tmp_path).exists()
    paths[5].write_bytes(whole)
    again = plan(_config(tmp_path))
    assert prepare(again).pending == 4 - len(written)
    counters = _run(again)
    assert counters["units"] == 4 - len(written)
    assert counters.get("units_skipped", 0) == len(written)
    finish(again)
    np.testing.assert_array_equal(_read(tmp_path / "out"), voxels)


def test_only_the_missing_unit_is_done_again(tmp_path):
    write_sections(tmp_path / "em", _voxels())
    _ingest(_config(tmp_path))
    # Killed between the shards and the record, with a shard torn by a failing disk.
    (tmp_path / "out/segclr-beam/ingest/0_0_3.json").unlink()
    _complete(tmp_path).unlink()
    (tmp_path / "out/c/3/2/1").write_bytes(b"torn")
    (tmp_path / "out/segclr-beam/ingest/.0_0_3.json.abc.tmp").write_bytes(b"{")
    counters, _ = _ingest(_config(tmp_path))
    assert counters == {
        "units": 1,
        "units_skipped": 3,
        "voxels": 11 * 9 * 2,
        "bytes_read": 11 * 9 * 2,
        "bytes_written": 11 * 9 * 2,
        "bytes_stored": counters["bytes_stored"],
        "voxels_missing": 0,
    }
    assert counters["bytes_stored"] > 0
    np.testing.assert_array_equal(_read(tmp_path / "out"), _voxels())
    assert _complete(tmp_path).exists()


def test_units_of_sections_that_changed_are_done_again(tmp_path):
    voxels = _voxels()
    paths = write_sections(tmp_path / "em", voxels)
    _ingest(_config(tmp_path))
    first = _complete(tmp_path).read_bytes()
    voxels[3, 4, 5] += 1
    write_section(paths[5], voxels[:, :, 5])
    made = plan(_config(tmp_path))
    assert prepare(made).pending == 1
    assert not _complete(tmp_path).exists()
    counters = _run(made)
    assert (counters["units"], counters["units_skipped"]) == (1, 3)
    finish(made)
    np.testing.assert_array_equal(_read(tmp_path / "out"), voxels)
    assert json.loads(_complete(tmp_path).read_text())["digest"] != json.loads(first)["digest"]


def test_other_units_by_another_budget_make_the_same_volume(tmp_path):
    voxels = _voxels()
    write_sections(tmp_path / "em", voxels)
    first = plan(_config(tmp_path))
    second = _with_units(first, (8, 8, 2))
    prepare(first)
    _run(first)
    prepare(second)
    manifest = json.loads((tmp_path / "out/segclr-beam/ingest.json").read_text())
    assert [s["unit"] for s in manifest["stages"]] == [[8, 8, 2]]
    counters = _run(second)
    # Unit 0_0_K is another box now, so that its record is none.
    assert counters == {
        "units": 16,
        "voxels": 11 * 9 * 8,
        "bytes_read": second.stages[0].bytes_to_read,
        "bytes_written": 11 * 9 * 8,
        "bytes_stored": counters["bytes_stored"],
        "voxels_missing": 0,
    }
    finish(second)
    np.testing.assert_array_equal(_read(tmp_path / "out"), voxels)


@pytest.mark.parametrize("stage", ["temporary", "manifest", "metadata"])
def test_killed_while_preparing(tmp_path, stage):
    write_sections(tmp_path / "em", _voxels())
    made = plan(_config(tmp_path))
    prepare(made)
    state = tmp_path / "out/segclr-beam"
    if stage != "metadata":
        (tmp_path / "out/zarr.json").unlink()
    if stage == "temporary":
        (state / "ingest.json").rename(state / ".ingest.json.abc.tmp")
    _, done = _ingest(_config(tmp_path))
    assert done["units"] == 4
    np.testing.assert_array_equal(_read(tmp_path / "out"), _voxels())


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_completes(tmp_path):
    voxels = _voxels((64, 64, 64))
    write_sections(tmp_path / "em", voxels)
    script = textwrap.dedent(
        f"""
        import apache_beam as beam
        from pipelines.ingest import IngestConfig, plan
        from pipelines.writing import build, plan as writing_plan, prepare
        writing_plan.TARGET_BYTES = 64
        made = plan(IngestConfig({str(tmp_path / "em")!r}, {str(tmp_path / "out")!r}, "image",
                                 (10.0, 10.0, 30.0), chunk=(4, 4, 1), shard=(8, 8, 1)))
        prepare(made, "")
        pipeline = beam.Pipeline(runner="FnApiRunner")
        build(pipeline, made)
        pipeline.run()
        """
    )
    records = tmp_path / "out/segclr-beam/ingest"
    for wanted in (1, 9):
        worker = subprocess.Popen([sys.executable, "-c", script], cwd=_ROOT)
        until = time.monotonic() + 60
        while len(list(records.glob("[0-9]*.json"))) < wanted and time.monotonic() < until:
            time.sleep(0.005)
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
    config = _config(tmp_path, chunk=(4, 4, 1), shard=(8, 8, 1))
    kept = len(list(records.glob("[0-9]*.json")))
    assert 9 <= kept < 64
    counters, _ = _ingest(config)
    assert counters["units"] + counters["units_skipped"] == 64
    assert counters["units_skipped"] == kept
    np.testing.assert_array_equal(_read(tmp_path / "out"), voxels)


def test_a_full_disk_is_an_error_with_the_reason_and_room_completes(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 255, (64, 64, 32), np.uint8)
    write_sections(tmp_path / "em", voxels)
    config = _config(tmp_path, chunk=(32, 32, 32), shard=(64, 64, 32))
    made = plan(config)
    prepare(made)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write voxels .*c/0/0/0.*File too large"):
            _run(made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_record(made.last, 0) is None
    _ingest(config)
    np.testing.assert_array_equal(_read(tmp_path / "out"), voxels)


def test_an_output_that_cannot_be_made_is_an_error_with_the_reason(tmp_path):
    write_sections(tmp_path / "em", _voxels())
    (tmp_path / "file").write_text("x")
    made = plan(_config(tmp_path, output=str(tmp_path / "file/out")))
    with pytest.raises(RunError, match=r"cannot create .*ingest\.json: .*Not a directory"):
        prepare(made)


def test_two_runs_at_once_make_one_volume(tmp_path):
    voxels = _voxels()
    write_sections(tmp_path / "em", voxels)
    first, second = plan(_config(tmp_path)), plan(_config(tmp_path))
    assert prepare(first).pending == prepare(second).pending == 4
    _run(first)
    assert _run(second) == {"units_skipped": 4}
    assert finish(first) == finish(second)
    np.testing.assert_array_equal(_read(tmp_path / "out"), voxels)


def test_two_ingests_racing_for_one_output(tmp_path):
    write_sections(tmp_path / "em", _voxels())
    first = plan(_config(tmp_path))
    second = plan(_config(tmp_path, origin_vx=(1, 1, 1)))
    prepare(first)
    with pytest.raises(RequestError, match=r"origin_vx: \[0, 0, 0\] there, \[1, 1, 1\] asked"):
        prepare(second)


def test_finishing_names_what_is_missing(tmp_path):
    write_sections(tmp_path / "em", _voxels((11, 9, 40)))
    made = plan(_config(tmp_path))
    prepare(made)
    with pytest.raises(
        RunError,
        match=r"20 of 20 units of .* are not written: 0_0_0 \[0:11, 0:9, 0:2\), .* and 10 more;",
    ):
        finish(made)
