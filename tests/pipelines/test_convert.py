"""``convert``: voxels, places, ways and what is left after failures, against NumPy."""

import dataclasses
import itertools
import os
import pathlib
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.cli import main
from pipelines import convert, writing
from pipelines.convert import ConvertConfig
from pipelines.writing import WritePlan
from tests.pipelines import volume_case
from tests.pipelines.volume_case import (
    ORIGIN,
    SIZE,
    converted,
    faults,
    manifest,
    noise,
    read,
    run,
    spec_of,
    stored,
    tree,
    volume,
    work,
)
from volumes.errors import DataError, RequestError, RunError
from volumes.units import objects_under
from volumes.writing.codecs import FORMATS, SHARDED
from volumes.writing.morton import legal_shards

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_BIG = np.uint64(2**63 + 5)


def _plan(source: pathlib.Path, output: pathlib.Path, **fields: Any) -> WritePlan:
    return convert.plan(ConvertConfig(str(source), str(output), **fields))


def _array(path: pathlib.Path) -> ts.TensorStore:
    """A zarr3 array, open for writing."""
    spec = {"driver": "zarr3", "kvstore": f"file://{path}/", "store_data_equal_to_fill_value": True}
    return ts.open(spec, open=True).result()


def _poke(path: pathlib.Path, x: int, y: int, z: int) -> None:
    """Change one voxel of a zarr3 volume, counted from its first."""
    store = _array(path)
    store[x, y, z] = store[x, y, z].read().result() ^ 1


def _files(path: pathlib.Path) -> list[str]:
    """What is stored, but for records."""
    return sorted(n for n in stored(path) if not n.startswith("segclr-beam/"))


# Every format to every format


@pytest.mark.parametrize("first", FORMATS)
def test_voxels_and_their_place_stay_from_any_format_to_any(tmp_path, first):
    ids = noise((37, 29, 23), "uint64") | _BIG
    ids[:16, :16, :16] = 0
    volume(tmp_path / "em", ids, kind="segmentation")
    converted(tmp_path / "em", tmp_path / "first", format=first, chunk=(8, 16, 8))
    for second in FORMATS:
        output = tmp_path / second
        assert converted(tmp_path / "first", output, format=second, chunk=(16, 8, 4)) == [1]
        spec = spec_of(output)
        assert (spec.kind, spec.dtype) == ("segmentation", "uint64")
        assert spec.voxel_size_nm == SIZE
        assert spec.domain.start == spec.origin_vx == ORIGIN
        assert spec.read_chunk == (16, 8, 4)
        np.testing.assert_array_equal(read(output, "zero"), ids)
        assert faults(output) == []


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "float32", "int64", "float64"])
def test_types_of_images(tmp_path, form, dtype):
    data = noise((20, 10, 7), dtype)
    volume(tmp_path / "em", data)
    if form == "precomputed" and dtype in ("int64", "float64"):
        with pytest.raises(RequestError, match=f"precomputed has no voxels of {dtype}, only uint8"):
            _plan(tmp_path / "em", tmp_path / "out", format=form)
        assert not (tmp_path / "out").exists()
        return
    converted(tmp_path / "em", tmp_path / "out", format=form, chunk=(8, 8, 8))
    assert spec_of(tmp_path / "out").kind == "image"
    np.testing.assert_array_equal(read(tmp_path / "out"), data)


@pytest.mark.parametrize("axes", ["".join(p) for p in itertools.permutations("xyz")])
@pytest.mark.parametrize("form", ["zarr2", "zarr3", "ome-zarr", "n5"])
def test_any_stored_order(tmp_path, axes, form):
    data = noise((9, 6, 5))
    volume(tmp_path / "em", data)
    converted(tmp_path / "em", tmp_path / "out", format=form, axes=axes, chunk=(4, 3, 2))
    spec = spec_of(tmp_path / "out")
    assert spec.axes == tuple(axes)
    assert (spec.domain.start, spec.read_chunk, spec.voxel_size_nm) == (ORIGIN, (4, 3, 2), SIZE)
    np.testing.assert_array_equal(read(tmp_path / "out"), data)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_crop_chunk_and_origin(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("property")
    shape = data.draw(st.tuples(*[st.integers(1, 20)] * 3), "shape")
    form = data.draw(st.sampled_from(FORMATS), "format")
    voxels = noise(shape, "uint32")
    volume(tmp_path / "em", voxels, chunk=data.draw(st.tuples(*[st.integers(1, 9)] * 3), "source"))
    low = [data.draw(st.integers(0, n - 1)) for n in shape]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, shape, strict=True)]
    crop = tuple(tuple(v + o for v, o in zip(end, ORIGIN, strict=True)) for end in (low, high))
    origin = data.draw(st.none() | st.tuples(*[st.integers(-100, 100)] * 3), "origin")
    chunk = data.draw(st.tuples(*[st.integers(1, 9)] * 3), "chunk")
    chunk = tuple(8 * c for c in chunk) if form == "precomputed" else chunk
    fields = {"format": form, "chunk": chunk, "crop": crop, "origin_vx": origin}
    converted(tmp_path / "em", tmp_path / "out", **fields, memory_mb=128)
    spec = spec_of(tmp_path / "out")
    assert spec.domain.start == (crop[0] if origin is None else origin)
    oracle = voxels[tuple(map(slice, low, high))]
    np.testing.assert_array_equal(read(tmp_path / "out"), oracle)
    assert converted(tmp_path / "em", tmp_path / "out", **fields, memory_mb=128) == [0]
    assert faults(tmp_path / "out") == []


def test_every_shard_that_precomputed_can_have(tmp_path):
    ids = noise((37, 50, 23), "uint64")
    volume(tmp_path / "seg", ids, kind="segmentation")
    shards = legal_shards(ids.shape, (8, 8, 8))
    assert len(shards) > 5
    for number, shard in enumerate(shards):
        output = tmp_path / str(number)
        converted(tmp_path / "seg", output, format="precomputed", chunk=(8, 8, 8), shard=shard)
        np.testing.assert_array_equal(read(output), ids)
        assert faults(output) == []
    wrong = r"--shard 8,8,16 is no shard of a precomputed volume .*give one of 16,8,8; 16,16,8"
    with pytest.raises(RequestError, match=wrong):
        _plan(
            tmp_path / "seg",
            tmp_path / "out",
            format="precomputed",
            chunk=(8, 8, 8),
            shard=(8, 8, 16),
        )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("sharded", [True, False])
def test_chunks_of_nothing_but_zeros_may_come_and_go(tmp_path, form, sharded):
    if sharded and form not in SHARDED:
        pytest.skip(f"{form} has no shards")
    ids = np.zeros((64, 32, 16), np.uint32)
    ids[:16] = 9
    volume(tmp_path / "seg", ids, kind="segmentation")
    output = tmp_path / "out"
    # A shard is two chunks; in precomputed also one, where a write is of several.
    shards = [(32, 16, 16), (16, 16, 16)] if sharded else ["none"] if form in SHARDED else [None]
    for number, shard in enumerate(shards):
        output = tmp_path / str(number)
        fields = {"format": form, "chunk": (16, 16, 16), "shard": shard}
        converted(tmp_path / "seg", output, **fields)
        for seed in range(4):
            on = np.random.default_rng(seed).integers(0, 2, (4, 2, 1), bool)
            ids[...] = np.kron(on, np.ones((16, 16, 16), bool)) * (seed + 1)
            _array(tmp_path / "seg")[...] = ids
            assert converted(tmp_path / "seg", output, **fields) == [1]
            np.testing.assert_array_equal(read(output, "zero"), ids)
            assert faults(output) == []


# Types


@pytest.mark.parametrize(
    ("value", "dtype", "to"),
    [
        (2**53, "uint64", "float64"),
        (2**24, "uint32", "float32"),
        (255, "uint16", "uint8"),
        (-128, "int32", "int8"),
        (3.0, "float32", "uint8"),
        (float("nan"), "float32", "float64"),
        (float("inf"), "float64", "float32"),
        (2**63 - 1, "uint64", "int64"),
        (2**63 - 1, "int64", "uint64"),
    ],
)
def test_a_type_that_holds_the_voxels(tmp_path, value, dtype, to):
    data = np.full((4, 3, 2), 1, dtype)
    data[3, 2, 1] = value
    volume(tmp_path / "em", data)
    converted(tmp_path / "em", tmp_path / "out", dtype=to, chunk=(4, 4, 4), kind="image")
    found = read(tmp_path / "out")
    assert found.dtype == to
    np.testing.assert_array_equal(found, data.astype(to))


@pytest.mark.parametrize(
    ("value", "dtype", "to", "told"),
    [
        (2**53 + 1, "uint64", "float64", "9007199254740993, which float64"),
        (2**64 - 1, "uint64", "float64", "18446744073709551615, which float64"),
        (2**63 - 1, "int64", "float64", "9223372036854775807, which float64"),
        (2**24 + 1, "uint32", "float32", "16777217, which float32"),
        (256, "uint16", "uint8", "256, which uint8"),
        (2**63, "uint64", "int64", "9223372036854775808, which int64"),
        (2.0**64, "float64", "uint64", r"1.8446744073709552e\+19, which uint64"),
        (2.0**63, "float64", "int64", r"9.223372036854776e\+18, which int64"),
        (0.5, "float32", "uint8", "0.5, which uint8"),
        (-1.0, "float64", "uint64", "-1.0, which uint64"),
        (float("nan"), "float32", "int32", "nan, which int32"),
        (1e300, "float64", "float32", r"1e\+300, which float32"),
        (-5, "int32", "uint8", "-5"),
        (-5, "int64", "uint64", "-5"),
    ],
)
def test_a_voxel_that_the_type_does_not_hold_is_named(tmp_path, value, dtype, to, told):
    data = np.full((4, 3, 2), 1, dtype)
    data[3, 2, 1] = value
    volume(tmp_path / "em", data)
    with pytest.raises(RunError, match=told):
        converted(tmp_path / "em", tmp_path / "out", dtype=to, chunk=(4, 4, 4), kind="image")
    assert not [n for n in _files(tmp_path / "out") if n.startswith("c/")]


# Chunks that are not stored


def _holed(path: pathlib.Path, kind: str = "image") -> np.ndarray:
    data = noise((48, 16, 16))
    volume(path, data, kind=kind)
    (path / "c/1/0/0").unlink()
    data[16:32] = 0
    return data


def test_a_chunk_that_is_not_stored_is_an_error_of_images(tmp_path):
    _holed(tmp_path / "em")
    told = r"\[19:35, 5:21, -7:9\).*--missing zero"
    with pytest.raises(DataError, match=told):
        converted(tmp_path / "em", tmp_path / "out", chunk=(16, 16, 16))
    with pytest.raises(DataError, match=told):
        converted(tmp_path / "em", tmp_path / "out", chunk=(16, 16, 16), missing="error")
    assert not (tmp_path / "out/segclr-beam/convert-complete.json").exists()


def test_a_chunk_that_is_not_stored_is_zeros_if_asked_and_of_ids(tmp_path):
    data = _holed(tmp_path / "em")
    plan = _plan(tmp_path / "em", tmp_path / "out", chunk=(16, 16, 16), missing="zero")
    writing.prepare(plan, "test")
    work(plan)
    assert writing.finish(plan)["voxels_missing"] == 16**3
    np.testing.assert_array_equal(read(tmp_path / "out"), data)
    _holed(tmp_path / "seg", "segmentation")
    converted(tmp_path / "seg", tmp_path / "ids", chunk=(16, 16, 16))
    np.testing.assert_array_equal(read(tmp_path / "ids"), data)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_not_stored_is_kept_so(tmp_path, form):
    data = _holed(tmp_path / "em")
    fields = {"format": form, "chunk": (8, 8, 8), "missing": "keep"}
    fields |= {"shard": "none"} if form in SHARDED else {}
    converted(tmp_path / "em", tmp_path / "out", **fields)
    assert faults(tmp_path / "out") == []
    np.testing.assert_array_equal(read(tmp_path / "out", "zero"), data)
    with pytest.raises(DataError):
        read(tmp_path / "out")
    again = tmp_path / "again"
    converted(tmp_path / "out", again, chunk=(4, 4, 4), shard="none", missing="keep")
    chunks = [n for n in _files(again) if n.startswith("c/")]
    assert len(chunks) == data.astype(bool).sum() / 4**3


def test_an_exabyte_of_which_a_dozen_chunks_are_stored(tmp_path):
    side = 10**6
    metadata = {
        "shape": [side] * 3,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64] * 3}},
        "dimension_names": ["x", "y", "z"],
        "attributes": {"dimension_units": ["8 nm"] * 3},
    }
    spec = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/em/", "metadata": metadata}
    store = ts.open(spec, create=True).result()
    rng = np.random.default_rng(0)
    corners = [(0, 0, 0), (999_936, 999_936, 999_936)]
    corners += [tuple(map(int, 64 * rng.integers(0, side // 64, 3))) for _ in range(10)]
    box = rng.integers(1, 255, (64, 64, 64), np.uint8)
    for x, y, z in corners:
        store[x : x + 64, y : y + 64, z : z + 64] = box
    began = time.monotonic()
    tracemalloc.start()
    output = tmp_path / "out"
    assert (
        len(converted(tmp_path / "em", output, missing="keep", shard=(64, 64, 64), axes="xyz")) == 1
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 30
    assert peak < 256e6
    assert len([n for n in _files(output) if n.startswith("c/")]) == 12
    found = ts.open({"driver": "zarr3", "kvstore": f"file://{output}/"}).result()
    for x, y, z in corners:
        part = found[x : x + 64, y : y + 64, z : z + 64].read().result()
        np.testing.assert_array_equal(part, box)
    assert faults(output) == []


# Codecs


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [
        ("uint8", "png"),
        ("uint8", "raw"),
        ("uint16", "png:9"),
        ("uint32", "compressed_segmentation"),
        ("uint64", "compressed_segmentation:16"),
        ("uint64", "gzip"),
    ],
)
def test_codecs_of_precomputed(tmp_path, dtype, codec):
    data = noise((20, 21, 22), dtype) // np.dtype(dtype).type(3)
    volume(tmp_path / "em", data, kind="segmentation")
    fields = {"format": "precomputed", "chunk": (8, 8, 8), "codec": codec}
    converted(tmp_path / "em", tmp_path / "out", **fields)
    np.testing.assert_array_equal(read(tmp_path / "out", "zero"), data)
    assert faults(tmp_path / "out") == []
    if not codec.startswith("gzip"):
        converted(tmp_path / "em", tmp_path / "loose", **fields, shard="none")
        np.testing.assert_array_equal(read(tmp_path / "loose", "zero"), data)


def test_jpeg_is_near_and_the_plan_warns(tmp_path):
    ramp = np.arange(64, dtype=np.uint8)[:, None, None] * 3 + noise((64, 40, 20)) // 64
    volume(tmp_path / "em", ramp)
    fields = {"format": "precomputed", "codec": "jpeg:95", "chunk": (16, 16, 16)}
    plan = _plan(tmp_path / "em", tmp_path / "out", **fields)
    assert plan.warnings == ("jpeg:95 is lossy: voxels come back changed",)
    run(plan)
    found = read(tmp_path / "out", "zero").astype(int)
    assert 0 < np.abs(found - ramp).max() <= 8
    assert faults(tmp_path / "out") == []


@pytest.mark.parametrize("form", FORMATS)
def test_a_codec_chosen_from_a_sample_stays_and_is_lossless(tmp_path, form, monkeypatch):
    data = np.repeat(noise((20, 21, 22)), 2, axis=0)
    volume(tmp_path / "em", data)
    fields = {"format": form, "chunk": (8, 8, 8), "codec": "auto"}
    first = _plan(tmp_path / "em", tmp_path / "out", **fields)
    codec = first.identity()["codec"]
    assert not codec.startswith("jpeg")
    listed = "\n".join(first.about)
    assert f"codec: {codec}, the smallest on a sample that writes at 50 and reads at 300" in listed
    run(first)
    np.testing.assert_array_equal(read(tmp_path / "out"), data)
    # On another machine, where another codec is quick.
    monkeypatch.setattr("volumes.writing.choosing.READ_MB_S", 1e9)
    again = _plan(tmp_path / "em", tmp_path / "out", **fields)
    assert again.identity() == first.identity()
    assert f"codec: {codec}, as chosen when" in "\n".join(again.about)
    assert run(again) == [0]
    other = {"format": "n5" if form == "zarr2" else "zarr2"}
    with pytest.raises(RequestError, match=rf"made by another convert \(.*format: {form} there"):
        _plan(tmp_path / "em", tmp_path / "out", **fields | other)


# From sections to columns


@pytest.fixture
def athwart(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A volume ``em`` of sections, where what is in flight is small beside a memory of 1 MB."""
    for module in ("pipelines.writing.plan", "volumes.writing.boxes"):
        monkeypatch.setattr(f"{module}.PIECE_BYTES", 1 << 14)
    data = noise((96, 96, 64))
    volume(tmp_path / "em", data, chunk=(96, 96, 1))
    return data


_COLUMNS = {"format": "zarr2", "chunk": (8, 8, 64), "memory_mb": 1, "rechunk": "staged"}


def test_the_staged_way_is_taken_where_it_decodes_less(tmp_path, monkeypatch, athwart):
    monkeypatch.setattr("volumes.sources.volume.IN_FLIGHT", 1 << 14)
    fields = {"format": "zarr3", "chunk": (8, 8, 64), "shard": "none"}
    made = _plan(tmp_path / "em", tmp_path / "out", **fields, memory_mb=100)
    assert [s.job.name for s in made.stages] == ["convert"]
    assert "way: direct; each byte of the source is decoded 1 times directly" in made.about
    # A memory that holds some sections: the direct way would decode each of them many times.
    big = noise((256, 256, 256))
    volume(tmp_path / "big", big, chunk=(256, 256, 1))
    fields |= {"chunk": (16, 16, 256), "memory_mb": 2}
    plan = _plan(tmp_path / "big", tmp_path / "out", **fields)
    assert [s.job.name for s in plan.stages] == ["stage", "convert"]
    direct = _plan(tmp_path / "big", tmp_path / "out", **fields, rechunk="direct")
    staged = sum(s.times_read for s in plan.stages) + 1
    assert staged < direct.stages[0].times_read
    assert any(line.startswith("way: staged; each byte of the source is") for line in plan.about)
    assert all(s.peak_bytes <= 2e6 for s in plan.stages)
    assert min(run(plan)) > 1
    np.testing.assert_array_equal(read(tmp_path / "out"), big)


def test_a_copy_is_removed_and_the_same_command_does_nothing(tmp_path, athwart):
    first = converted(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    assert min(first) > 1
    np.testing.assert_array_equal(read(tmp_path / "out"), athwart)
    state = tmp_path / "out/segclr-beam"
    left = sorted(p.name for p in state.iterdir())
    assert left == ["convert", "convert-complete.json", "convert.json"]
    before = tree(tmp_path)
    assert converted(tmp_path / "em", tmp_path / "out", **_COLUMNS) == [0, 0]
    assert tree(tmp_path) == before
    assert faults(tmp_path / "out") == []


@pytest.mark.parametrize("staging", ["precious", ".", "out", "em", "new/er"])
def test_nothing_else_in_the_directory_for_copies_is_touched(tmp_path, athwart, staging):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_text("x")
    before = tree(tmp_path)
    place = str(tmp_path / staging)
    converted(tmp_path / "em", tmp_path / "out", **_COLUMNS, staging=place)
    after = tree(tmp_path)
    assert {k: after.get(k) for k in before} == before
    assert [k for k in after if "staging" in k] == []
    np.testing.assert_array_equal(read(tmp_path / "out"), athwart)


def test_a_chunk_that_changed_after_a_copy_was_removed(tmp_path, athwart):
    converted(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    _poke(tmp_path / "em", 5, 6, 7)
    assert converted(tmp_path / "em", tmp_path / "out", **_COLUMNS) != [0, 0]
    np.testing.assert_array_equal(read(tmp_path / "out"), read(tmp_path / "em"))
    assert read(tmp_path / "out")[5, 6, 7] == athwart[5, 6, 7] ^ 1


def test_a_chunk_that_changes_after_it_was_copied_is_not_taken_for_read(tmp_path, athwart):
    plan = _plan(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    writing.prepare(plan, "test")
    work(dataclasses.replace(plan, stages=plan.stages[:1]))
    _poke(tmp_path / "em", 5, 6, 7)
    with pytest.raises(RunError, match=r"em changed while \[3:51, 5:101, -7:57\) was read from it"):
        work(dataclasses.replace(plan, stages=plan.stages[1:]))
    converted(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    np.testing.assert_array_equal(read(tmp_path / "out"), read(tmp_path / "em"))


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("moment", range(0, 30, 3))
def test_stopped_at_any_write_it_is_resumed(tmp_path, athwart, monkeypatch, moment):
    left = [moment]
    write = volume_case.write_unit

    def failing(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise _KilledError
        return write(*args)

    # Between two units, within a unit before its record, and while the copy is removed.
    monkeypatch.setattr(volume_case, "write_unit", failing)
    if moment % 2:
        monkeypatch.setattr(volume_case, "write_unit", write)
        monkeypatch.setattr("volumes.units.objects_under", failing_after(moment))
    removed = "volumes.removal.shutil.rmtree"
    with monkeypatch.context() as patch:
        patch.setattr(removed, lambda path: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises((_KilledError, RunError)):
            converted(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    monkeypatch.undo()
    for module in ("pipelines.writing.plan", "volumes.writing.boxes"):
        monkeypatch.setattr(f"{module}.PIECE_BYTES", 1 << 14)
    converted(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    np.testing.assert_array_equal(read(tmp_path / "out"), athwart)
    assert not (tmp_path / "out/segclr-beam/staging").exists()
    assert faults(tmp_path / "out") == []


def failing_after(moment: int) -> Any:
    """A stand-in for what looks at stored objects, which fails once so many were looked at."""
    left = [moment]

    def looked(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise _KilledError
        return objects_under(*args)

    return looked


@pytest.mark.parametrize("records_first", [True, False])
def test_killed_while_the_copy_is_removed(tmp_path, athwart, records_first, monkeypatch):
    plan = _plan(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    writing.prepare(plan, "test")
    work(plan)

    def half(path: str) -> None:
        """Removes every second file, then dies."""
        for file in sorted(p for p in pathlib.Path(path).rglob("*") if p.is_file())[::2]:
            file.unlink()
        raise OSError("killed")

    with monkeypatch.context() as patch:
        if records_first:
            patch.setattr("volumes.removal.shutil.rmtree", half)
        else:
            whole, left = shutil.rmtree, [1]

            def later(path: str) -> None:
                left[0] -= 1
                return whole(path) if left[0] >= 0 else half(path)

            patch.setattr("volumes.removal.shutil.rmtree", later)
        with pytest.raises(RunError, match="killed"):
            writing.finish(plan)
    if not records_first:
        _poke(tmp_path / "em", 5, 6, 7)
    converted(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    np.testing.assert_array_equal(read(tmp_path / "out"), read(tmp_path / "em"))
    assert not (tmp_path / "out/segclr-beam/staging").exists()


@pytest.mark.parametrize("memory", [2, 300])
def test_resumed_with_less_memory_and_by_another_way(tmp_path, athwart, memory):
    rechunk = {2: "staged", 300: "auto"}[memory]
    fields = _COLUMNS | {"memory_mb": memory, "rechunk": rechunk}
    plan = _plan(tmp_path / "em", tmp_path / "out", **fields)
    writing.prepare(plan, "test")
    work(dataclasses.replace(plan, stages=plan.stages[:1]))
    assert plan.peak_bytes > 10**6
    other = _plan(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    assert other.last.grid != plan.last.grid
    run(other)
    np.testing.assert_array_equal(read(tmp_path / "out"), athwart)
    assert faults(tmp_path / "out") == []
    assert not (tmp_path / "out/segclr-beam/staging").exists()


def test_resumed_with_more_memory_it_keeps_its_units(tmp_path, athwart):
    plan = _plan(tmp_path / "em", tmp_path / "out", **_COLUMNS)
    run(plan)
    other = _plan(tmp_path / "em", tmp_path / "out", **_COLUMNS | {"memory_mb": 300})
    assert other.last.grid == plan.last.grid
    assert "of 300 MB allowed" in "\n".join(other.lines())
    assert writing.prepare(other, "test").pending == 0
    # Less than its units take is another matter.
    less = _plan(tmp_path / "em", tmp_path / "new", **_COLUMNS | {"memory_mb": 300})
    assert less.last.grid != plan.last.grid


def test_keeping_what_is_not_stored_goes_directly(tmp_path, athwart):
    (tmp_path / "em/c/0/0/9").unlink()
    with pytest.raises(RequestError, match="--missing keep: with a copy .* --rechunk direct"):
        _plan(tmp_path / "em", tmp_path / "out", **_COLUMNS, missing="keep")
    fields = _COLUMNS | {"rechunk": "auto"}
    converted(tmp_path / "em", tmp_path / "out", **fields, missing="keep")
    athwart[:, :, 9] = 0
    np.testing.assert_array_equal(read(tmp_path / "out", "zero"), athwart)


# Again, and after failures

_LOOSE = {"format": "zarr3", "chunk": (8, 8, 8), "shard": (16, 16, 16)}


def _small_units(plan: WritePlan, unit: tuple[int, int, int]) -> WritePlan:
    """The same plan of one pass with units of another shape."""
    (stage,) = plan.stages
    grid = dataclasses.replace(stage.job.grid, chunk=unit)
    job = dataclasses.replace(stage.job, grid=grid)
    return dataclasses.replace(plan, stages=(dataclasses.replace(stage, job=job),))


def test_a_plan_changes_nothing_reads_no_voxel_and_travels(tmp_path):
    volume(tmp_path / "em", noise())
    for path in (tmp_path / "em/c").rglob("*"):
        if path.is_file():
            path.write_bytes(b"torn")
    before = tree(tmp_path)
    plan = _plan(tmp_path / "em", tmp_path / "out", **_LOOSE)
    assert tree(tmp_path) == before
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.to_json()["stages"][0]["units"] == 1


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_command_twice(tmp_path, form, monkeypatch):
    volume(tmp_path / "em", noise())
    fields = {"format": form, "chunk": (8, 8, 8)}
    converted(tmp_path / "em", tmp_path / "out", **fields)
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    plan = convert.plan(ConvertConfig("em/", "./out/", **fields))
    assert writing.prepare(plan, "test").line().startswith("nothing to do: all 1 units are written")
    writing.finish(plan)
    assert tree(tmp_path) == before


def test_only_units_of_chunks_that_changed_are_done_again(tmp_path):
    volume(tmp_path / "em", noise())
    plan = _small_units(_plan(tmp_path / "em", tmp_path / "out", **_LOOSE), (16, 16, 16))
    assert run(plan) == [12]
    _poke(tmp_path / "em", 5, 6, 7)
    assert run(plan) == [1]
    np.testing.assert_array_equal(read(tmp_path / "out"), read(tmp_path / "em"))
    assert faults(tmp_path / "out") == []


def test_levels_made_since_stay_where_a_conversion_is_done_again(tmp_path):
    volume(tmp_path / "em", noise(), size=(4.0, 4.0, 4.0))
    for form in ("ome-zarr", "precomputed"):
        fields = {"format": form, "chunk": (8, 8, 8)}
        converted(tmp_path / "em", tmp_path / form, **fields)
        volume_case.downsampled(tmp_path / form, levels=2)
        made = volume_case.levels_of(tmp_path / form)
        assert len(made) == 3
        _poke(tmp_path / "em", 5, 6, 7)
        assert converted(tmp_path / "em", tmp_path / form, **fields) == [1]
        assert volume_case.levels_of(tmp_path / form) == made
        assert volume_case.downsampled(tmp_path / form, levels=2) == [1]
        np.testing.assert_array_equal(read(made[0]), read(tmp_path / "em"))


def test_two_runs_at_once_make_one_volume(tmp_path):
    data = noise()
    volume(tmp_path / "em", data)
    plans = [_plan(tmp_path / "em", tmp_path / "out", **_LOOSE) for _ in range(2)]
    assert [writing.prepare(p, "test").pending for p in plans] == [1, 1]
    assert work(plans[0]) == [1]
    assert work(plans[1]) == [0]
    assert writing.finish(plans[0]) == writing.finish(plans[1])
    np.testing.assert_array_equal(read(tmp_path / "out"), data)


@pytest.mark.slow
def test_two_processes_and_kills_at_random_moments(tmp_path):
    data = noise((64, 64, 64))
    volume(tmp_path / "em", data, chunk=(64, 64, 1))
    script = textwrap.dedent(
        f"""
        import sys
        from launch.cli import main
        import pipelines.writing.plan, volumes.writing.boxes
        pipelines.writing.plan.PIECE_BYTES = volumes.writing.boxes.PIECE_BYTES = 1 << 12
        pipelines.writing.plan.TARGET_BYTES = 1 << 14
        sys.exit(main(["convert", "--input={tmp_path}/em", "--output={tmp_path}/out", "--quiet",
                       "--format=zarr2", "--chunk=8,8,64", "--rechunk=staged", "--memory-mb=1"]))
        """
    )

    def begun() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script], cwd=_ROOT, stderr=subprocess.PIPE, text=True
        )

    rng = np.random.default_rng(3)
    for _ in range(4):
        pair = [begun(), begun()]
        time.sleep(rng.uniform(4, 9))
        for process in pair:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    last = begun()
    assert last.communicate(timeout=120)[1] == ""
    assert last.returncode == 0
    np.testing.assert_array_equal(read(tmp_path / "out"), data)
    assert faults(tmp_path / "out") == []
    assert not (tmp_path / "out/segclr-beam/staging").exists()


def test_a_full_disk_is_an_error_with_the_reason_and_room_completes(tmp_path):
    data = noise((64, 64, 32))
    volume(tmp_path / "em", data)
    plan = _plan(tmp_path / "em", tmp_path / "out", chunk=(32, 32, 32), shard=(64, 64, 32))
    writing.prepare(plan, "test")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write voxels \[3:67, .*out: .*File too large"):
            work(plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out/segclr-beam/convert").exists()
    run(plan)
    np.testing.assert_array_equal(read(tmp_path / "out"), data)


def test_an_output_that_cannot_be_made_is_an_error_with_the_reason(tmp_path):
    volume(tmp_path / "em", noise())
    (tmp_path / "file").write_text("x")
    plan = _plan(tmp_path / "em", tmp_path / "file/out")
    with pytest.raises(RunError, match=r"cannot create .*convert\.json: .*Not a directory"):
        writing.prepare(plan, "test")
    with pytest.raises(RunError, match=r"cannot create /proc/out/.*convert\.json"):
        run(_plan(tmp_path / "em", pathlib.Path("/proc/out")))


# What is refused


def test_an_output_of_another_conversion_is_refused_field_by_field(tmp_path):
    volume(tmp_path / "em", noise())
    volume(tmp_path / "other", noise())
    converted(tmp_path / "em", tmp_path / "out", **_LOOSE)
    before = tree(tmp_path)
    cases = [
        ({"chunk": (4, 8, 8)}, "chunk: [8, 8, 8] there, [4, 8, 8] asked"),
        ({"shard": (8, 8, 8)}, "shard: [16, 16, 16] there, [8, 8, 8] asked"),
        ({"codec": "raw"}, "codec: zstd:1 there, raw asked"),
        ({"dtype": "uint16"}, "dtype: uint8 there, uint16 asked"),
        ({"origin_vx": (0, 0, 0)}, "origin_vx: [3, 5, -7] there, [0, 0, 0] asked"),
        ({"format": "ome-zarr"}, "format: zarr3 there, ome-zarr asked"),
        ({"axes": "yxz"}, " there, yxz asked"),
        ({"missing": "zero"}, "missing: error there, zero asked"),
        ({"kind": "segmentation"}, "kind: image there, segmentation asked"),
        (
            {"crop": ((3, 5, -7), (19, 21, 9))},
            "box: {'start': [3, 5, -7], 'stop': [40, 34, 16]} there",
        ),
    ]
    for changes, told in cases:
        with pytest.raises(RequestError) as caught:
            _plan(tmp_path / "em", tmp_path / "out", **(_LOOSE | changes))
        assert "was made by another convert (" in str(caught.value)
        assert told in str(caught.value)
    with pytest.raises(RequestError, match=r"source: file://.*/em/.* there, .*/other/"):
        _plan(tmp_path / "other", tmp_path / "out", **_LOOSE)
    assert tree(tmp_path) == before


def test_outputs_that_are_in_the_way_are_left_alone(tmp_path):
    volume(tmp_path / "place/em", noise())
    (tmp_path / "file").write_text("x")
    before = tree(tmp_path)
    em = tmp_path / "place/em"
    for output, told in (
        (em, r"place/em is the source; give another directory"),
        (tmp_path / "place/../place/em", r"place/em is the source; give another directory"),
        (em / "c", r"em/c lies inside the input .*em; a volume's directory holds that"),
        (em / "new", r"em/new lies inside the input .*em; a volume's directory holds that"),
        (tmp_path / "place", r"place is not empty and no convert of this package \(it holds em/\)"),
        (tmp_path / "file", r"file is a file; a volume is a directory"),
    ):
        with pytest.raises(RequestError, match=told):
            _plan(em, output)
    link = tmp_path / "link"
    link.symlink_to(em)
    with pytest.raises(RequestError, match=r"link is not empty and no convert"):
        _plan(em, link)
    link.unlink()
    assert tree(tmp_path) == before


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = noise()
    volume(tmp_path / "em", data)
    words = ["convert", "--input=em", "--output=out", "--format=precomputed", "--chunk=16"]
    words += ["--crop=3:20,5:34,-7:16", "--origin=-1,-2,-3"]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    np.testing.assert_array_equal(read(tmp_path / "out"), data[:17])
    assert spec_of(tmp_path / "out").domain.start == (-1, -2, -3)
    command = manifest(tmp_path / "out")["command"]
    assert command == " ".join(["segclr-beam", *words])
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    assert '"units_written": 0' in capsys.readouterr().out
    os.remove(tmp_path / "em/c/0/0/0")
    assert main([*words, "--quiet"]) == 1
    told = capsys.readouterr().err
    assert "[3:19, 5:21, -7:9)" in told
    assert "--missing zero" in told
    assert "Traceback" not in told
