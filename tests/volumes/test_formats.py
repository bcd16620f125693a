import json

import numpy as np
import pytest

from tests.volumes import sample_volumes as made
from volumes.errors import RequestError
from volumes.formats import Directory, find_levels
from volumes.levels import asked_axes, by_axis, named_axes, nm_per, quantity_nm
from volumes.naming import Flags, locate

DATA = made.noise((6, 5, 4))
CHUNK = (4, 4, 4)


def levels(path):
    return find_levels(Directory({"driver": "file", "path": f"{path}/"}, str(path)))


def the_level(path):
    (level,) = levels(path)
    return level


@pytest.mark.parametrize(
    ("unit", "nm"),
    [
        ("nm", 1),
        ("nanometer", 1),
        ("Nanometers", 1),
        ("um", 1e3),
        ("µm", 1e3),
        ("μm", 1e3),
        ("micrometer", 1e3),
        ("micron", 1e3),
        ("mm", 1e6),
        ("m", 1e9),
        ("metre", 1e9),
        ("pm", 1e-3),
        ("angstrom", 0.1),
        ("Å", 0.1),
    ],
)
def test_units_of_length(unit, nm):
    assert nm_per(unit, "v") == nm


@pytest.mark.parametrize("unit", ["s", "parsec", "Mm", ""])
def test_other_units_are_refused_by_name(unit):
    with pytest.raises(RequestError, match=f"v states its voxel size in '{unit}'"):
        nm_per(unit, "v")


@pytest.mark.parametrize(
    ("value", "nm"),
    [
        ("8 nm", 8.0),
        ("4nm", 4.0),
        ("nm", 1.0),
        ("0.004 um", 4.0),
        ("8e-9 m", 8.0),
        ([40, "angstrom"], 4.0),
        ("8", None),
        (None, None),
        (8, None),
    ],
)
def test_quantities_in_nm(value, nm):
    assert quantity_nm(value, "v") == nm


def test_a_quantity_that_is_no_number_is_refused():
    with pytest.raises(RequestError, match=r"v states the length '1\.2\.3 nm', which is no number"):
        quantity_nm("1.2.3 nm", "v")


def test_axis_names():
    assert named_axes(["c^", "Z", "y", "x"]) == ("channel", "z", "y", "x")
    assert named_axes(["dim_0", "dim_1", "dim_2"]) is None
    assert named_axes(["x", "y", None]) == ("x", "y", "?")
    assert asked_axes("zyx") == ("z", "y", "x")
    assert asked_axes("x,y,z,channel") == ("x", "y", "z", "channel")
    for wrong in ("xy", "xyzz", "xyzq", "row,col,z"):
        with pytest.raises(RequestError, match=f"axes '{wrong}' do not name x, y and z once each"):
            asked_axes(wrong)


def test_values_by_axis():
    assert by_axis((1, 2, 3, 4), ("channel", "z", "y", "x"), "v") == (4, 3, 2)
    assert by_axis((2, 3, 4), ("channel", "z", "y", "x"), "v") == (4, 3, 2)
    with pytest.raises(RequestError, match=r"v states 2 values \(1, 2\) for its dimensions \(x, y"):
        by_axis((1, 2), ("x", "y", "z"), "v")


def test_zarr3_states_units_and_offset(tmp_path):
    attributes = {"dimension_units": ["40 nm", "8 nm", "0.004 um"], "voxel_offset": [7, -3, 0]}
    path = made.zarr3(tmp_path / "v", DATA, CHUNK, names=("z", "y", "x"), attributes=attributes)
    level = the_level(path)
    assert level.format == "zarr3"
    assert level.axes == ("z", "y", "x")
    assert level.voxel_size_nm == (40.0, 8.0, 4.0)
    assert level.origin_vx == (7.0, -3.0, 0.0)


def test_zarr3_without_attributes_states_nothing(tmp_path):
    level = the_level(made.zarr3(tmp_path / "v", DATA, CHUNK))
    assert (level.axes, level.voxel_size_nm, level.origin_vx) == (None, None, None)


@pytest.mark.parametrize("key", ["resolution", "voxel_size"])
def test_zarr2_states_resolution_and_offset_in_its_units(tmp_path, key):
    attributes = {
        "_ARRAY_DIMENSIONS": ["z", "y", "x"],
        key: [0.04, 4, 4],
        "offset": [0.08, -8, 4],
        "units": ["um", "nm", "nm"],
    }
    level = the_level(made.zarr2(tmp_path / "v", DATA, CHUNK, attributes))
    assert level.format == "zarr2"
    assert level.axes == ("z", "y", "x")
    assert level.voxel_size_nm == (40.0, 4.0, 4.0)
    assert level.origin_vx == (2.0, -2.0, 1.0)


def test_zarr2_resolution_without_units_is_in_nm(tmp_path):
    level = the_level(made.zarr2(tmp_path / "v", DATA, CHUNK, {"resolution": [40, 4, 4]}))
    assert level.voxel_size_nm == (40.0, 4.0, 4.0)
    assert level.axes is None


def test_precomputed_lists_its_scales(tmp_path):
    path = made.precomputed(tmp_path / "v", DATA, CHUNK, resolution=(8, 8, 40), offset=(5, 6, 7))
    made.precomputed(path, DATA[::2, ::2, ::2], CHUNK, resolution=(16, 16, 80))
    first, second = levels(path)
    assert first.format == "neuroglancer_precomputed"
    assert first.voxel_size_nm == (8.0, 8.0, 40.0)
    assert first.origin_vx == (5.0, 6.0, 7.0)
    assert second.voxel_size_nm == (16.0, 16.0, 80.0)
    assert json.loads(second.tensorstore)["scale_index"] == 1


def test_n5_states_resolution_or_pixel_resolution(tmp_path):
    plain = {"resolution": [4, 4, 40], "offset": [8, 0, -40], "axes": ["x", "y", "z"]}
    level = the_level(made.n5(tmp_path / "a", DATA, CHUNK, plain))
    assert (level.format, level.axes) == ("n5", ("x", "y", "z"))
    assert level.voxel_size_nm == (4.0, 4.0, 40.0)
    assert level.origin_vx == (2.0, 0.0, -1.0)
    pixel = {"pixelResolution": {"dimensions": [0.004, 0.004, 0.04], "unit": "um"}}
    level = the_level(made.n5(tmp_path / "b", DATA, CHUNK, pixel))
    assert level.voxel_size_nm == (4.0, 4.0, 40.0)


def test_an_n5_level_whose_resolution_may_be_another_levels_states_none(tmp_path):
    attributes = {"resolution": [4, 4, 4], "downsamplingFactors": [2, 2, 2]}
    assert the_level(made.n5(tmp_path / "v", DATA, CHUNK, attributes)).voxel_size_nm is None


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_levels_share_the_frame(tmp_path, version):
    image = made.multiscale(
        [[0.04, 8, 8], [0.08, 16, 16], [0.16, 32, 32]],
        [[0.4, 160, 0], [0.42, 164, 4], [0.46, 172, 12]],
    )
    found = levels(made.ome_group(tmp_path / "v", image, version))
    assert [v.axes for v in found] == [("z", "y", "x")] * 3
    assert [v.voxel_size_nm for v in found] == [(40, 8, 8), (80, 16, 16), (160, 32, 32)]
    origins = np.array([v.origin_vx for v in found])
    assert origins == pytest.approx(np.array([[10, 20, 0], [5, 10, 0], [2.5, 5, 0]]))
    specs = [json.loads(v.tensorstore) for v in found]
    assert [s["kvstore"]["path"] for s in specs] == [f"{tmp_path}/v/s{i}/" for i in range(3)]
    assert {s["driver"] for s in specs} == {"zarr" if version == "0.4" else "zarr3"}


def test_ome_levels_without_half_voxel_shifts_share_a_corner(tmp_path):
    scales = [[0.04, 8, 8], [0.08, 16, 16]]
    none = levels(made.ome_group(tmp_path / "a", made.multiscale(scales, [None, None]), "0.4"))
    assert [v.origin_vx for v in none] == [None, None]
    same = made.multiscale(scales, [[0.08, 0, 16]] * 2)
    found = levels(made.ome_group(tmp_path / "b", same, "0.4"))
    assert [v.origin_vx for v in found] == [(2.0, 0.0, 2.0), (1.0, 0.0, 1.0)]


def test_ome_centres_that_coincide_are_centres_where_corners_lie_between_voxels(tmp_path):
    """Voxel 1 of the finer level is the middle of voxel 0 of the coarser, three times as wide."""
    image = made.multiscale([[0.04, 8, 8], [0.04, 24, 8]], [[0.08, 8, 0]] * 2)
    found = levels(made.ome_group(tmp_path / "v", image, "0.5"))
    assert [v.origin_vx for v in found] == [(2.0, 1.0, 0.0), (2.0, 0.0, 0.0)]


def test_the_whole_images_transformation_follows_the_levels(tmp_path):
    image = made.multiscale([[1, 2, 2]], [[3, 0, 2]])
    image["coordinateTransformations"] = [
        {"type": "scale", "scale": [0.04, 4, 4]},
        {"type": "translation", "translation": [0.04, 16, 0]},
    ]
    level = the_level(made.ome_group(tmp_path / "v", image, "0.5"))
    assert level.voxel_size_nm == (40.0, 8.0, 8.0)
    assert level.origin_vx == pytest.approx((4.0, 2.0, 1.0))


def test_ome_axes_of_other_types_and_without_units(tmp_path):
    axes = [{"name": "t", "type": "time", "unit": "second"}, {"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space"} for n in "zyx"]
    image = made.multiscale([[1, 1, 40, 8, 8]], [None], axes)
    level = the_level(made.ome_group(tmp_path / "v", image, "0.5"))
    assert level.axes == ("time", "channel", "z", "y", "x")
    assert level.voxel_size_nm == (None,) * 5


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_array_of_an_ome_group_takes_from_the_group_what_it_leaves_out(tmp_path, version):
    image = made.multiscale([[0.04, 8, 8], [0.08, 16, 16]], [[0.4, 160, 0], [0.42, 164, 4]])
    path = made.ome_group(tmp_path / "v", image, version)
    write = made.zarr2 if version == "0.4" else made.zarr3
    write(path / "s1", DATA, CHUNK)
    write(path / "other", DATA, CHUNK)
    level = the_level(path / "s1")
    assert level.axes == ("z", "y", "x")
    assert level.voxel_size_nm == (80.0, 16.0, 16.0)
    assert level.origin_vx == pytest.approx((5, 10, 0))
    assert the_level(path / "other").axes is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": ["z", "y", "x"]}, "whose axes have no types and units; 0.4 and 0.5 are read"),
        ({"datasets": []}, "OME-Zarr without datasets"),
        ({"datasets": [{"path": "0"}]}, "a level that states no scale"),
        (
            {"coordinateTransformations": [{"type": "affine", "affine": [1]}]},
            r"the coordinate transformation \{'type': 'affine'",
        ),
        (
            {"coordinateTransformations": [{"type": "scale", "scale": [1, 2]}]},
            "a translation of 3 numbers each",
        ),
        ({"axes": [{"name": n, "unit": "furlong"} for n in "zyx"]}, "'furlong', which is no unit"),
    ],
)
def test_ome_metadata_that_is_not_understood_is_refused(tmp_path, change, message):
    image = made.multiscale([[1, 1, 1]], [None]) | change
    path = made.ome_group(tmp_path / "v", image, "0.4")
    with pytest.raises(RequestError, match=message):
        levels(path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"v is not a volume: looked there for zarr\.json .*, \.zarray .*, info .* and found"),
        ({"zarr.json": "{"}, r"its zarr\.json is not JSON"),
        ({".zarray": "[]"}, r"its \.zarray is no JSON object"),
        (
            {"zarr.json": '{"node_type": "group", "attributes": {}}'},
            "is a Zarr group without OME-Zarr multiscales",
        ),
        ({".zgroup": "{}"}, "is a Zarr group without OME-Zarr multiscales"),
        ({"attributes.json": '{"n5": "2.0.0"}'}, "is an N5 group, not an N5 dataset"),
        ({"info": '{"@type": "neuroglancer_skeletons"}'}, "@type 'neuroglancer_skeletons'"),
        (
            {"attributes.json": '{"dimensions": [1], "resolution": [1, 2], "units": ["nm"]}'},
            "states 2 values of resolution and 1 units",
        ),
    ],
)
def test_what_is_no_volume_is_refused_with_what_was_found(tmp_path, files, message):
    path = tmp_path / "v"
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    with pytest.raises(RequestError, match=message) as error:
        levels(path)
    assert str(path) in str(error.value)


def test_a_driver_that_is_named_is_the_only_one_looked_for(tmp_path):
    path = made.zarr2(tmp_path / "v", DATA, CHUNK)
    flags = Flags(None, None, None)
    assert locate(f"file://{path}|zarr2:", "v", flags).levels[0].format == "zarr2"
    assert locate(f"{path}|auto:", "v", flags).levels[0].format == "zarr2"
    with pytest.raises(
        RequestError,
        match=r"looked there for zarr\.json \(Zarr 3, OME-Zarr 0\.5\)"
        " and found none",
    ):
        locate(f"file://{path}|zarr3:", "v", flags)


def test_chunks_compressed_as_whole_files_are_refused_and_not_taken_for_missing(tmp_path):
    made.precomputed(tmp_path / "em", DATA, CHUNK)
    for chunk in [p for p in (tmp_path / "em").rglob("*_*") if p.is_file()]:
        chunk.rename(chunk.with_name(f"{chunk.name}.gz"))
    with pytest.raises(RequestError, match=r"stores chunks as \S*0-4\.gz.*gunzip -r"):
        levels(tmp_path / "em")
