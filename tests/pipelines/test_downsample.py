"""``downsample``: every level against NumPy, and where its voxels lie."""

import dataclasses
import importlib
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorstore as ts
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.cli import main
from pipelines import downsample, writing
from pipelines.downsample import DownsampleConfig
from pipelines.writing import WritePlan
from tests.pipelines.volume_case import (
    ORIGIN,
    converted,
    downsampled,
    faults,
    levels_of,
    noise,
    read,
    run,
    spec_of,
    stored,
    tree,
    volume,
    work,
)
from volumes.errors import DataError, RequestError
from volumes.geometry import Vec

Array = npt.NDArray[Any]
_PLAN = importlib.import_module("pipelines.downsample.plan")


def _plan(source: pathlib.Path, **fields: Any) -> WritePlan:
    return downsample.plan(DownsampleConfig(str(source), **fields))


def _coarser(array: Array, start: Sequence[int], factors: Vec, method: str) -> tuple[Array, Vec]:
    """A level by the definition: a voxel at a time, in Python's own integers and fractions."""
    low = tuple(a // f for a, f in zip(start, factors, strict=True))
    high = tuple(-(-(a + n) // f) for a, n, f in zip(start, array.shape, factors, strict=True))
    out = np.empty([b - a for a, b in zip(low, high, strict=True)], array.dtype)
    for cell in itertools.product(*map(range, out.shape)):
        box = tuple(
            slice(max(0, (c + lo) * f - a), (c + lo + 1) * f - a)
            for c, lo, f, a in zip(cell, low, factors, start, strict=True)
        )
        out[cell] = _one(array[box].ravel().tolist(), method)
    return out, low


def _one(voxels: list[Any], method: str) -> Any:
    if method == "mean":
        if isinstance(voxels[0], float):
            return sum(voxels) / len(voxels)
        whole, rest = divmod(sum(voxels), len(voxels))
        return whole + (2 * rest + whole % 2 > len(voxels))
    ids = [v for v in voxels if v] or [0] if method == "sparse-mode" else voxels
    return min(ids, key=lambda v: (-ids.count(v), v))


def _cascade(array: Array, steps: Sequence[Vec], method: str) -> list[Array]:
    """Each level of the one before."""
    level, start, made = array, ORIGIN, []
    for step in steps:
        level, start = _coarser(level, start, step, method)
        made.append(level)
    return made


def _ids(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Few ids beyond doubles, and background, so that they repeat."""
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 0, 2**63 + 1, 2**63 + 3, 7], np.uint64), shape)


def _check_places(path: pathlib.Path, steps: Sequence[Vec]) -> None:
    """Whether a voxel's corner lies where it did, at every level, as the volume describes it."""
    first, *others = levels_of(path)
    factor = np.ones(3, int)
    assert len(others) == len(steps)
    for level, step in zip(others, steps, strict=True):
        factor *= step
        assert level.voxel_size_nm == pytest.approx(tuple(factor * first.voxel_size_nm))
        assert level.domain.start == tuple(np.array(first.domain.start) // factor)
        assert level.domain.stop == tuple(-(-np.array(first.domain.stop) // factor))
        assert (level.kind, level.dtype) == (first.kind, first.dtype)


# Levels


_STEPS = [(2, 2, 1)] * 3


@pytest.mark.parametrize("form", ["ome-zarr", "precomputed"])
@pytest.mark.parametrize("shard", [None, "none"])
@pytest.mark.parametrize(
    ("kind", "method"),
    [("image", "mean"), ("segmentation", "mode"), ("segmentation", "sparse-mode")],
)
def test_levels_in_place_and_new(tmp_path, form, shard, kind, method):
    data = noise((37, 29, 13)) if kind == "image" else _ids((37, 29, 13))
    volume(tmp_path / "em", data, kind=kind)
    fields: dict[str, Any] = {"levels": 3, "method": method}
    base = {"format": form, "chunk": (8, 8, 8), "shard": shard}
    converted(tmp_path / "em", tmp_path / "in", **base)
    downsampled(tmp_path / "in", **fields)
    downsampled(tmp_path / "em", output=str(tmp_path / "new"), **fields, **base)
    oracle = _cascade(data, _STEPS, method)
    assert len({int(a.sum() % 2**31) for a in oracle}) == 3
    for path in (tmp_path / "in", tmp_path / "new"):
        first, *others = levels_of(path)
        np.testing.assert_array_equal(read(first, "zero"), data)
        for level, wanted in zip(others, oracle, strict=True):
            np.testing.assert_array_equal(read(level, "zero"), wanted)
            sharded = level.write_chunk != level.read_chunk
            assert not (sharded and shard)
        _check_places(path, _STEPS)
        assert faults(path) == []
    before = tree(tmp_path)
    assert set(downsampled(tmp_path / "in", **fields)) == {0}
    assert tree(tmp_path) == before


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_factors_and_origin(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("property")
    shape = data.draw(st.tuples(*[st.integers(1, 14)] * 3), "shape")
    origin = data.draw(st.tuples(*[st.integers(-20, 20)] * 3), "origin")
    factor = st.tuples(*[st.integers(1, 4)] * 3).filter(lambda f: max(f) > 1)
    steps = data.draw(st.lists(factor, min_size=1, max_size=3), "factors")
    form = data.draw(st.sampled_from(["ome-zarr", "precomputed"]), "format")
    method = data.draw(st.sampled_from(["mode", "sparse-mode"]), "method")
    shard = data.draw(st.sampled_from([None, "none"]), "shard")
    ids = _ids(shape, data.draw(st.integers(0, 9), "seed"))
    volume(tmp_path / "seg", ids, origin=origin, kind="segmentation")
    fields = {"factors": tuple(steps), "method": method, "chunk": (3, 2, 4), "shard": shard}
    if form == "precomputed":
        fields["chunk"] = (8, 8, 8)
    downsampled(tmp_path / "seg", output=str(tmp_path / "out"), format=form, **fields)
    level, start = ids, origin
    for step, made in zip(steps, levels_of(tmp_path / "out")[1:], strict=True):
        level, start = _coarser(level, start, step, method)
        assert made.domain.start == start
        np.testing.assert_array_equal(read(made, "zero"), level)
    _check_places(tmp_path / "out", steps)
    assert faults(tmp_path / "out") == []


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "int64", "uint64"])
def test_means_of_other_types(tmp_path, dtype):
    data = noise((9, 8, 7), dtype)
    volume(tmp_path / "em", data)
    fields = {"output": str(tmp_path / "out"), "factors": ((2, 3, 2),), "levels": 1}
    downsampled(tmp_path / "em", **fields)
    (wanted,) = _cascade(data, [(2, 3, 2)], "mean")
    found = read(levels_of(tmp_path / "out")[1])
    if dtype == "float32":
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    else:
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("form", ["ome-zarr", "precomputed"])
@pytest.mark.parametrize("shard", [None, "none"])
def test_passes_split_by_memory_make_the_same_levels(tmp_path, monkeypatch, form, shard):
    for module in ("pipelines.writing.plan", "volumes.writing.boxes"):
        monkeypatch.setattr(f"{module}.PIECE_BYTES", 1 << 14)
    data = noise((72, 64, 48))
    data[:40, :40] = 0  # shards and chunks of nothing but zeros
    volume(tmp_path / "em", data, size=(4.0, 4.0, 4.0))
    base = {"format": form, "chunk": (8, 8, 8), "shard": shard, "levels": 4}
    made = {}
    for memory in (64, 4096):
        output = tmp_path / f"{memory}"
        with monkeypatch.context() as patch:
            if memory == 64:
                patch.setattr(_PLAN, "_SHARE", 1 / 4096)
            plan = _plan(
                tmp_path / "em", output=str(output), **base, memory_mb=memory, missing="zero"
            )
            run(plan)
            assert run(plan) == [0] * len(plan.stages)
        made[memory] = (len(plan.stages), [read(v, "zero") for v in levels_of(output)])
        assert faults(output) == []
    assert made[64][0] > 1 == made[4096][0]
    for few, many in zip(made[64][1], made[4096][1], strict=True):
        np.testing.assert_array_equal(few, many)
    oracle = _cascade(data[:24, :24], [(2, 2, 2)], "mean")[0][:-1, :-1, :-1]
    np.testing.assert_array_equal(made[64][1][1][:11, :11, : oracle.shape[2]], oracle[:11, :11])


@pytest.mark.parametrize("origin", [(0, 0, 0), (64, -64, 128)])
def test_each_chunk_of_an_aligned_source_is_decoded_once(tmp_path, monkeypatch, capsys, origin):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.writing.plan.TARGET_BYTES", 1 << 15)
    data = noise((128, 64, 64))
    volume(tmp_path / "em", data, chunk=(32, 32, 32), size=(4.0, 4.0, 4.0), origin=origin)
    words = ["downsample", "--volume=em", "--output=out", "--levels=2", "--chunk=8", "--json"]
    assert main(words) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["units_written"] > 1
    assert summary["bytes_read"] == data.nbytes


def test_a_source_chunk_that_changes_changes_every_level(tmp_path):
    data = noise((37, 29, 13))
    volume(tmp_path / "em", data)
    converted(tmp_path / "em", tmp_path / "out", format="ome-zarr", chunk=(8, 8, 8))
    downsampled(tmp_path / "out", levels=2)
    spec = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/out/0/"}
    ts.open(spec, open=True).result().T[8:16, 8:16, :8] = 200
    data[8:16, 8:16, :8] = 200
    assert downsampled(tmp_path / "out", levels=2) == [1]
    for level, wanted in zip(
        levels_of(tmp_path / "out")[1:], _cascade(data, _STEPS[:2], "mean"), strict=True
    ):
        np.testing.assert_array_equal(read(level), wanted)


def test_zeros_in_shards_of_precomputed_are_no_missing_chunks_of_the_next_pass(
    tmp_path, monkeypatch
):
    data = noise((64, 16, 16))
    data[:40] = 0
    volume(tmp_path / "em", data, size=(4.0, 4.0, 4.0))
    monkeypatch.setattr(_PLAN, "_SHARE", 1e-6)
    fields = {"format": "precomputed", "chunk": (8, 8, 8), "levels": 2}
    plan = _plan(tmp_path / "em", output=str(tmp_path / "out"), missing="zero", **fields)
    assert len(plan.stages) == 2
    run(plan)
    wanted = _cascade(data, [(2, 2, 2)] * 2, "mean")
    for level, oracle in zip(levels_of(tmp_path / "out")[1:], wanted, strict=True):
        np.testing.assert_array_equal(read(level, "zero"), oracle)


def test_a_chunk_that_is_not_stored(tmp_path):
    data = noise((32, 16, 16))
    for kind in ("image", "segmentation"):
        volume(tmp_path / kind, data, kind=kind)
        (tmp_path / kind / "c/1/0/0").unlink()
    fields = {"output": str(tmp_path / "out"), "levels": 1, "chunk": (8, 8, 8)}
    with pytest.raises(DataError, match=r"\[19:35, 5:21, -7:9\).*--missing zero"):
        downsampled(tmp_path / "image", **fields)
    fields["output"] = str(tmp_path / "ids")
    downsampled(tmp_path / "segmentation", **fields)
    data[16:] = 0
    (wanted,) = _cascade(data, [(2, 2, 1)], "mode")
    np.testing.assert_array_equal(read(levels_of(tmp_path / "ids")[1]), wanted)


# Volumes that are not ours


@pytest.mark.parametrize("unit", ["nanometer", "micrometer"])
@pytest.mark.parametrize("sharded", [True, False])
def test_levels_for_a_group_that_zarr_python_wrote(tmp_path, unit, sharded):
    data = noise((26, 24, 22))
    nm = {"nanometer": 1.0, "micrometer": 1e-3}[unit]
    axes = [{"name": a, "type": "space", "unit": unit} for a in "zyx"]
    # The centre of the first voxel, which is voxel 3, 5, -7.
    moves = [
        {"type": "scale", "scale": [40 * nm, 4 * nm, 4 * nm]},
        {"type": "translation", "translation": [-280 * nm, 20 * nm, 12 * nm]},
    ]
    image = {
        "name": "theirs",
        "axes": axes,
        "datasets": [{"path": "s0", "coordinateTransformations": moves}],
        "omero": {"channels": []},
    }
    group = zarr.create_group(tmp_path / "theirs", zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    group.attrs["theirs"] = {"kept": True}
    array = group.create_array(
        "s0",
        shape=data.shape[::-1],
        dtype="uint8",
        chunks=(8, 8, 8),
        shards=(16, 16, 16) if sharded else None,
        dimension_names=["z", "y", "x"],
    )
    array[...] = data.T
    kept = {k: v for k, v in stored(tmp_path / "theirs").items() if k.startswith("s0/")}
    downsampled(tmp_path / "theirs", levels=2)
    oracle = _cascade(data, _STEPS[:2], "mean")
    levels = levels_of(tmp_path / "theirs")
    for level, wanted in zip(levels, [data, *oracle], strict=True):
        np.testing.assert_array_equal(read(level), wanted)
    _check_places(tmp_path / "theirs", _STEPS[:2])
    after = stored(tmp_path / "theirs")
    assert {k: after[k] for k in kept} == kept
    found = zarr.open_group(tmp_path / "theirs", mode="r")
    assert found.attrs["theirs"] == {"kept": True}
    listed = found.attrs["ome"]["multiscales"][0]
    assert listed["name"] == "theirs"
    assert listed["omero"] == {"channels": []}
    assert len(listed["datasets"]) == 3
    path = listed["datasets"][2]["path"]
    np.testing.assert_array_equal(found[path][...].T, oracle[1])
    assert faults(tmp_path / "theirs") == []
    assert downsampled(tmp_path / "theirs", levels=2) == [0]


def test_levels_whose_name_is_taken_are_left_alone(tmp_path):
    data = noise((16, 16, 16))
    image = {
        "axes": [{"name": a, "type": "space", "unit": "nanometer"} for a in "xyz"],
        "datasets": [
            {
                "path": "1",
                "coordinateTransformations": [{"type": "scale", "scale": [4.0, 4.0, 4.0]}],
            }
        ],
    }
    group = zarr.create_group(tmp_path / "theirs", zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    names = ["x", "y", "z"]
    group.create_array("1", data=data, chunks=(8, 8, 8), dimension_names=names)
    before = stored(tmp_path / "theirs")
    with pytest.raises(RequestError, match="theirs/1"):
        downsampled(tmp_path / "theirs", levels=1)
    assert stored(tmp_path / "theirs") == before


# What is refused


def test_requests_that_mean_nothing(tmp_path):
    em = tmp_path / "em"
    for fields, told in [
        ({"levels": 0}, "--levels 0 is no number of levels to make; give 1 to 30"),
        ({"levels": 31}, "--levels 31 is no number"),
        ({"factors": ((1, 1, 1),)}, "--factors 1,1,1 makes nothing coarser"),
        ({"factors": ((2, 2, 2), (2, 0, 2))}, "--factors 2,0,2 makes nothing coarser"),
        ({"chunk": (8, 0, 8)}, "--chunk 8,0,8 has an axis without a voxel"),
        ({"shard": "8,8,8"}, "--shard 8,8,8: shards follow from the levels"),
        ({"codec": "lzma"}, "--codec lzma is no codec known here"),
        ({"memory_mb": 0}, "--memory-mb 0 is less than 1"),
        ({"output": ""}, "--output"),
        (
            {"output": "http://h/v"},
            "--output http://h/v is a web server's, which is only",
        ),
        ({"format": "precomputed"}, "--format precomputed: levels are added to --volume as it is"),
        ({"scale": (8.0, 8.0, 8.0)}, "--scale 8,8,8: levels are added to --volume as it is"),
        ({"voxel_size_nm": (8.0, 8.0, 8.0)}, "--voxel-size 8,8,8: levels are added to --volume"),
    ]:
        with pytest.raises(RequestError) as caught:
            DownsampleConfig(str(em), **fields)
        assert told in str(caught.value)


def test_volumes_that_take_no_levels_and_methods_that_do_not_fit(tmp_path):
    volume(tmp_path / "em", noise())
    volume(tmp_path / "seg", noise(dtype="uint64"), kind="segmentation")
    volume(tmp_path / "float", noise(dtype="float32"))
    converted(tmp_path / "em", tmp_path / "zarr2", format="zarr2")
    converted(tmp_path / "em", tmp_path / "n5", format="n5")
    before = tree(tmp_path)
    out = {"output": str(tmp_path / "out"), "levels": 1}
    for name, fields, told in [
        ("em", {}, "em is zarr3 with the axes x, y, z and takes no levels: that do OME-Zarr 0.5"),
        ("zarr2", {}, "zarr2 is zarr2 with the axes z, y, x and takes no levels"),
        ("n5", {}, "n5 is n5 with the axes x, y, z and takes no levels"),
        ("seg", out | {"method": "mean"}, "--method mean of "),
        ("float", out | {"method": "mode"}, "which is float32: numbers that are no ids"),
        ("float", out | {"method": "sparse-mode"}, "--method sparse-mode of "),
        ("seg", out | {"codec": "jpeg", "format": "precomputed"}, "--codec jpeg:90 changes voxels"),
        ("em", out | {"levels": None}, "so it needs no coarser levels"),
        ("em", out | {"output": str(tmp_path / "em")}, "em is the source"),
        ("em", out | {"output": str(tmp_path / "em/new")}, "lies inside the input"),
        ("em", out | {"output": str(tmp_path / "seg")}, "seg is not empty and no downsample"),
        ("em", out | {"kind": "segmentation", "method": "mean"}, "--method mean of "),
        ("float", out | {"kind": "segmentation"}, "--kind segmentation: "),
    ]:
        with pytest.raises(RequestError) as caught:
            _plan(tmp_path / name, **fields)
        assert told in str(caught.value)
    assert tree(tmp_path) == before


def test_another_pyramid_is_refused_field_by_field(tmp_path):
    volume(tmp_path / "em", noise())
    output = str(tmp_path / "out")
    fields = {"output": output, "levels": 2, "chunk": (8, 8, 8)}
    downsampled(tmp_path / "em", **fields)
    before = tree(tmp_path)
    for changes, told in [
        ({"levels": 3}, "factors: [[2, 2, 1], [2, 2, 1]] there, [[2, 2, 1], [2, 2, 1], [2, 2, 1]]"),
        ({"method": "mode"}, "method: mean there, mode asked"),
        ({"chunk": (4, 8, 8)}, "chunk: [8, 8, 8] there, [4, 8, 8] asked"),
        ({"shard": "none"}, "shards: "),
        ({"codec": "raw"}, "codec: zstd:1 there, raw asked"),
        ({"missing": "zero"}, "missing: default there, zero asked"),
    ]:
        with pytest.raises(RequestError) as caught:
            _plan(tmp_path / "em", **(fields | changes))
        assert "was made by another downsample (" in str(caught.value)
        assert told in str(caught.value)
    assert tree(tmp_path) == before


def test_resumed_after_a_kill_between_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(_PLAN, "_SHARE", 1e-6)
    data = noise((48, 16, 16))
    volume(tmp_path / "em", data, size=(4.0, 4.0, 4.0))
    for form in ("ome-zarr", "precomputed"):
        converted(tmp_path / "em", tmp_path / form, format=form, chunk=(8, 8, 8))
        plan = _plan(tmp_path / form, levels=2)
        writing.prepare(plan, "test")
        job = plan.stages[0].job
        assert len(plan.stages) == 2
        half = [s for s in plan.stages if s.job is job]
        assert work(_only(plan, half)) == [job.grid.size]
        assert run(_plan(tmp_path / form, levels=2)) == [0, plan.stages[1].job.grid.size]
        wanted = _cascade(data, [(2, 2, 2)] * 2, "mean")
        for level, oracle in zip(levels_of(tmp_path / form)[1:], wanted, strict=True):
            np.testing.assert_array_equal(read(level, "zero"), oracle)


def _only(plan: WritePlan, stages: Sequence[Any]) -> WritePlan:
    return dataclasses.replace(plan, stages=tuple(stages))


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = _ids((37, 29, 13))
    volume(tmp_path / "seg", data, kind="segmentation")
    words = ["downsample", "--volume=seg", "--output=out", "--factors=2,2,1/3,1,2", "--levels=3"]
    assert main([*words, "--quiet"]) == 0
    oracle = _cascade(data, [(2, 2, 1), (3, 1, 2), (3, 1, 2)], "mode")
    for level, wanted in zip(levels_of(tmp_path / "out")[1:], oracle, strict=True):
        np.testing.assert_array_equal(read(level), wanted)
    assert main([*words, "--quiet"]) == 0
    assert main(["downsample", "--volume=seg", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert told.count("segclr-beam: ") == 1
    assert "takes no levels" in told
    assert spec_of(tmp_path / "seg").domain.start == ORIGIN
