"""Arrays as they are created: metadata, levels, what a reader finds, and doing it twice."""

import dataclasses
import json
import pathlib
import pickle

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings

from tests.volumes.writing.layouts import PROVENANCE, layout_of, layouts, made, voxels_of
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, vec
from volumes.opening import open_volume
from volumes.reading import read_box
from volumes.resolving import resolve_levels, resolve_volume
from volumes.writing import Codec, Target, create_levels, open_for_writing, write_box
from volumes.writing.arrays import is_group, is_sharded, stored_codec
from volumes.writing.codecs import FORMATS


def _json(path):
    return json.loads(pathlib.Path(path).read_text())


def _tree(path):
    return {
        str(p.relative_to(path)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in path.rglob("*")
        if p.is_file()
    }


def _levels(path, form, count=3, **changes):
    """Levels of a pyramid whose voxels double in x and y."""
    base = layout_of(format=form, shape=(24, 16, 9), chunk=(4, 4, 4), shard=None, **changes)
    targets = []
    for level in range(count):
        step = (2**level, 2**level, 1)
        start = [a // f for a, f in zip(base.domain.start, step, strict=True)]
        stop = [-(-b // f) for b, f in zip(base.domain.stop, step, strict=True)]
        sizes = tuple(s * f for s, f in zip(base.voxel_size_nm, step, strict=True))
        shape = vec(b - a for a, b in zip(start, stop, strict=True))
        layout = dataclasses.replace(
            base, shape=shape, origin_vx=vec(start), voxel_size_nm=sizes, codec=Codec("raw")
        )
        targets.append(Target(str(path), layout, level))
    return targets


# What a reader finds


@settings(max_examples=40, deadline=None)
@given(layout=layouts())
def test_the_spec_made_from_a_layout_is_what_resolving_finds(tmp_path_factory, layout):
    path = tmp_path_factory.mktemp("volume")
    target = Target(str(path), layout)
    volume = made(path, layout)
    found = resolve_volume(str(path), kind=None)
    assert dataclasses.replace(found, source=target.array_url) == target.spec() == volume.spec
    assert found.assumed == ()
    assert found.voxel_size_nm == layout.voxel_size_nm
    assert found.domain == layout.domain
    assert found.read_chunk == layout.chunk
    assert stored_codec(open_volume(found)) == layout.codec
    assert is_sharded(volume) == (layout.shard is not None)
    assert is_group(str(path)) == (layout.format == "ome-zarr")


@pytest.mark.parametrize("form", ["ome-zarr", "precomputed"])
def test_every_level_is_found_as_it_was_made(tmp_path, form):
    targets = _levels(tmp_path, form)
    create_levels(targets, PROVENANCE, name="em", method="mean")
    found = resolve_levels(str(tmp_path), kind=None)
    assert [dataclasses.replace(f, source="") for f in found] == [
        dataclasses.replace(t.spec(), source="") for t in targets
    ]
    for target in targets:
        assert open_for_writing(target).spec == target.spec()


# Metadata


@pytest.mark.parametrize(("kind", "level"), [("image", 1), ("segmentation", 3)])
def test_metadata_of_zarr3(tmp_path, kind, level):
    made(tmp_path, layout_of(kind=kind, dtype="uint16"))
    found = _json(tmp_path / "zarr.json")
    assert found["dimension_names"] == ["x", "y", "z"]
    assert found["attributes"] == {
        "dimension_units": ["4 nm", "4 nm", "33.5 nm"],
        "voxel_offset": [100, -20, 3],
        "segclr_beam": {"kind": kind, "provenance": PROVENANCE},
    }
    assert found["chunk_grid"]["configuration"]["chunk_shape"] == [4, 4, 3]
    (sharding,) = found["codecs"]
    assert sharding["name"] == "sharding_indexed"
    inner = sharding["configuration"]
    assert inner["chunk_shape"] == [4, 2, 3]
    assert inner.get("index_location", "end") == "end"
    assert [c["name"] for c in inner["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert inner["codecs"][0]["configuration"] == {"endian": "little"}
    assert inner["codecs"][1]["configuration"]["level"] == level
    assert [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]


def test_metadata_of_zarr2(tmp_path):
    made(tmp_path, layout_of(format="zarr2", axes=("z", "y", "x"), dtype="uint16"))
    array = _json(tmp_path / ".zarray")
    assert (array["shape"], array["chunks"]) == ([5, 7, 11], [3, 2, 4])
    assert (array["dtype"], array["order"], array["fill_value"]) == ("<u2", "C", 0)
    assert array["dimension_separator"] == "/"
    assert _json(tmp_path / ".zattrs") == {
        "_ARRAY_DIMENSIONS": ["z", "y", "x"],
        "resolution": [33.5, 4.0, 4.0],
        "units": ["nm"] * 3,
        "dimension_units": ["33.5 nm", "4 nm", "4 nm"],
        "voxel_offset": [3, -20, 100],
        "segclr_beam": {"kind": "image", "provenance": PROVENANCE},
    }


def test_metadata_of_n5(tmp_path):
    made(tmp_path, layout_of(format="n5", axes=("z", "y", "x")))
    found = _json(tmp_path / "attributes.json")
    assert (found["dimensions"], found["blockSize"]) == ([5, 7, 11], [3, 2, 4])
    assert found["axes"] == ["z", "y", "x"]
    assert (found["resolution"], found["units"]) == ([33.5, 4.0, 4.0], ["nm"] * 3)
    assert found["offset"] == [3 * 33.5, -20 * 4.0, 100 * 4.0]
    assert found["compression"]["type"] == "gzip"
    assert found["segclr_beam"] == {"kind": "image", "provenance": PROVENANCE}


def test_metadata_of_precomputed(tmp_path):
    layout = layout_of(
        format="precomputed", kind="segmentation", dtype="uint64", chunk=(8, 8, 8), shard=(16, 8, 8)
    )
    made(tmp_path, layout)
    info = _json(tmp_path / "info")
    assert (info["type"], info["data_type"], info["num_channels"]) == ("segmentation", "uint64", 1)
    (scale,) = info["scales"]
    assert scale["key"] == "4_4_33.5"
    assert scale["resolution"] == [4, 4, 33.5]
    assert (scale["size"], scale["voxel_offset"]) == ([11, 7, 5], [100, -20, 3])
    assert scale["chunk_sizes"] == [[8, 8, 8]]
    assert scale["encoding"] == "compressed_segmentation"
    assert scale["compressed_segmentation_block_size"] == [8, 8, 8]
    assert scale["sharding"]["data_encoding"] == "gzip"
    provenance = _json(tmp_path / "provenance")
    assert provenance["sources"] == ["em"]
    (step,) = provenance["processing"]
    assert (step["by"], step["method"], step["date"]) == (
        "segclr-beam",
        PROVENANCE,
        PROVENANCE["time"],
    )


def test_metadata_of_an_ome_zarr_group(tmp_path):
    targets = _levels(tmp_path, "ome-zarr", 2, origin_vx=(10, -20, 3), axes=("z", "y", "x"))
    create_levels(targets, PROVENANCE, name="em", method="mean")
    found = _json(tmp_path / "zarr.json")
    assert (found["zarr_format"], found["node_type"]) == (3, "group")
    assert found["attributes"]["segclr_beam"] == {"kind": "image", "provenance": PROVENANCE}
    ome = found["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    assert image["name"] == "em"
    assert image["axes"] == [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    assert image["type"] == "mean"
    # The centre of voxel 10 lies at 40 nm; that of the coarser voxel 5, of voxels 10 and 11, at 42.
    assert image["datasets"] == [
        {
            "path": "0",
            "coordinateTransformations": [
                {"type": "scale", "scale": [33.5, 4.0, 4.0]},
                {"type": "translation", "translation": [100.5, -80.0, 40.0]},
            ],
        },
        {
            "path": "1",
            "coordinateTransformations": [
                {"type": "scale", "scale": [33.5, 8.0, 8.0]},
                {"type": "translation", "translation": [100.5, -78.0, 42.0]},
            ],
        },
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_provenance_is_written_without_secrets(tmp_path, form):
    known = {"source": "http://me:pw1@a.org/x?sig=t0k3n", "api_key": "k3y"}
    create_levels([Target(str(tmp_path), layout_of(format=form))], known)
    text = " ".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert "a.org/x" in text
    assert not any(secret in text for secret in ("pw1", "t0k3n", "k3y"))


# Once and again


@pytest.mark.parametrize("form", FORMATS)
def test_creating_again_changes_nothing_and_another_layout_is_refused(tmp_path, form):
    layout = layout_of(format=form)
    volume = made(tmp_path, layout)
    voxels = voxels_of(layout)
    write_box(volume, layout.domain, voxels)
    before = _tree(tmp_path)
    create_levels([Target(str(tmp_path), layout)], PROVENANCE)
    assert _tree(tmp_path) == before
    np.testing.assert_array_equal(volume.store.read().result(), voxels)
    other = dataclasses.replace(layout, shape=(11, 7, 6))
    with pytest.raises(RunError, match="cannot create the volume .*FAILED_PRECONDITION"):
        create_levels([Target(str(tmp_path), other)], PROVENANCE)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("form", ["ome-zarr", "precomputed"])
def test_levels_are_added_and_adding_them_again_changes_nothing(tmp_path, form):
    targets = _levels(tmp_path, form)
    create_levels(targets[:1], PROVENANCE, name="em")
    volume = open_for_writing(targets[0])
    voxels = voxels_of(targets[0].layout)
    write_box(volume, volume.spec.domain, voxels)
    assert len(resolve_levels(str(tmp_path), kind=None)) == 1
    create_levels(targets[1:], PROVENANCE, method="mean")
    found = resolve_levels(str(tmp_path), kind=None)
    assert [f.domain for f in found] == [t.layout.domain for t in targets]
    assert [f.voxel_size_nm for f in found] == [t.layout.voxel_size_nm for t in targets]
    for target in targets[1:]:
        values = voxels_of(target.layout)
        write_box(open_for_writing(target), target.layout.domain, values)
    before = _tree(tmp_path)
    create_levels(targets[1:], PROVENANCE, method="mean")
    assert _tree(tmp_path) == before
    # The job that made the finest level may be done again too.
    create_levels(targets[:1], PROVENANCE, name="em")
    assert _tree(tmp_path) == before
    for spec, target in zip(found, targets, strict=True):
        array = read_box(open_volume(spec), spec.domain, missing="error").array
        np.testing.assert_array_equal(array, voxels_of(target.layout))


def test_all_levels_at_once_are_those_added_one_by_one(tmp_path):
    for form in ("ome-zarr", "precomputed"):
        once, one_by_one = tmp_path / form / "once", tmp_path / form / "one"
        create_levels(_levels(once, form), PROVENANCE, name="em", method="mean")
        for number, target in enumerate(_levels(one_by_one, form)):
            create_levels([target], PROVENANCE, name="em", method="mean" if number else None)
        first = {k: v for k, (_, v) in _tree(once).items()}
        assert first == {k: v for k, (_, v) in _tree(one_by_one).items()}


def test_levels_of_a_group_that_was_replaced_are_refused(tmp_path):
    targets = _levels(tmp_path, "ome-zarr")
    create_levels(targets[:1], PROVENANCE)
    with pytest.raises(RunError, match="has 1 levels where 2 were planned to be; something else"):
        create_levels(targets[2:], PROVENANCE, method="mean")
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(RunError, match=r"zarr\.json is not JSON .*it is damaged"):
        create_levels(targets[1:2], PROVENANCE, method="mean")
    (tmp_path / "zarr.json").unlink()
    with pytest.raises(RunError, match=r"zarr\.json was removed while it was needed"):
        create_levels(targets[1:2], PROVENANCE, method="mean")


@pytest.mark.parametrize("form", ["zarr2", "zarr3", "n5"])
def test_a_level_of_a_format_without_levels_is_refused(form):
    with pytest.raises(
        RequestError, match=f"em is {form}, which holds one level; several need --format ome-zarr"
    ):
        Target("em", layout_of(format=form), 1)


@pytest.mark.parametrize("form", FORMATS)
def test_opening_what_is_not_there_is_an_error(tmp_path, form):
    target = Target(str(tmp_path / "none"), layout_of(format=form))
    with pytest.raises(RunError, match=r"cannot open the volume .*none.*: NOT_FOUND"):
        open_for_writing(target)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("changes", [{"shape": (11, 7, 6)}, {"dtype": "uint16"}])
def test_a_volume_that_was_replaced_is_refused_by_workers(tmp_path, form, changes):
    made(tmp_path, layout_of(format=form))
    planned = Target(str(tmp_path), layout_of(format=form, **changes))
    with pytest.raises(RunError) as caught:
        open_for_writing(planned)
    told = str(caught.value)
    assert str(tmp_path) in told
    assert ("something else has replaced it" in told) or ("FAILED_PRECONDITION" in told)


def test_zeros_are_stored_and_a_lost_shard_is_told_from_them(tmp_path):
    layout = layout_of()
    write_box(made(tmp_path, layout), layout.domain, np.zeros(layout.shape, np.uint8))
    shards = [p for p in (tmp_path / "c").rglob("*") if p.is_file()]
    assert len(shards) == 3 * 2 * 2
    strict = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/", "fill_missing_data_reads": False}
    assert not ts.open(strict).result().read().result().any()
    (tmp_path / "c/1/0/1").unlink()
    with pytest.raises(ValueError, match="is missing"):
        ts.open(strict).result().read().result()


def test_targets_travel_as_pickles():
    target = Target("/a/b", layout_of(format="ome-zarr"), 2)
    assert pickle.loads(pickle.dumps(target)) == target
    assert target.array_url == "/a/b/2"
    assert Target("/a/b", layout_of(format="precomputed"), 2).array_url == "/a/b"
    assert target.spec().domain == Box((100, -20, 3), (111, -13, 8))
