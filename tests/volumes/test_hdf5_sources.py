import contextlib
import json
import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes.section_files import filled
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, vec
from volumes.sources import agreed_origin, agreed_voxel_size, resolve_source
from volumes.sources.cubes import covered


def _put(file, name, voxels, resolution=None, offset=None, axes="zyx", **options):
    """XYZ voxels as a dataset; resolution and offset are XYZ in nm."""
    stored = voxels.transpose(["xyz".index(a) for a in axes])
    node = file.create_dataset(name, data=stored, **options)
    for key, value in (("resolution", resolution), ("offset", offset)):
        if value is not None:
            node.attrs[key] = [float(value["xyz".index(a)]) for a in axes]
    return node


def _resolve(path, dataset, kind="segmentation", axes=None, **options):
    return resolve_source(str(path), dataset, axes, kind, **options)


def _whole(source):
    with contextlib.closing(source.open()) as reader:
        return reader.read(Box((0, 0, 0), source.shape))


@pytest.fixture
def cremi(tmp_path):
    """A file of CREMI's layout: labels smaller than raw, with an offset."""
    path = tmp_path / "cremi.h5"
    with h5py.File(path, "w") as file:
        _put(file, "volumes/raw", filled((30, 20, 10)), (4, 4, 40))
        labels = filled((12, 8, 5), np.uint64)
        _put(file, "volumes/labels/neuron_ids", labels, (4, 4, 40), (36, 24, 80), chunks=(5, 4, 6))
    return path


def test_cremis_layout_states_voxel_size_origin_and_axes(cremi):
    source = _resolve(cremi, "volumes/labels/neuron_ids")
    assert source.shape == (12, 8, 5)
    assert source.voxel_size_nm == (4.0, 4.0, 40.0)
    assert source.origin_vx == (9, 6, 2)
    assert source.axes.names == "zyx"
    np.testing.assert_array_equal(_whole(source), filled((12, 8, 5), np.uint64))
    assert source.lines() == (
        f"HDF5 file {cremi}, dataset volumes/labels/neuron_ids, axes zyx, HDF5 chunks of (6, 4, 5);"
        " it states 4,4,40 nm, first voxel at (9, 6, 2)",
    )
    raw = _resolve(cremi, "volumes/raw", "image")
    assert (raw.voxel_size_nm, raw.origin_vx) == ((4.0, 4.0, 40.0), None)
    assert agreed_origin(raw, None) == (0, 0, 0)
    assert agreed_origin(raw, (1, 2, 3)) == (1, 2, 3)
    assert agreed_origin(source, None) == agreed_origin(source, (9, 6, 2)) == (9, 6, 2)
    with pytest.raises(
        RequestError, match=r"--origin 0,0,0 was given, but .*cremi\.h5 states 9,6,2 \(x, y, z, in"
    ):
        agreed_origin(source, (0, 0, 0))
    with pytest.raises(RequestError, match=r"--voxel-size 40,4,4 was given, but .* 4,4,40 nm"):
        agreed_voxel_size(source, (40, 4, 4))


def test_other_places_state_a_size_but_no_axes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        _put(file, "stack", filled(), (4, 8, 40), (8, 16, 80), axes="xyz")
        _put(file, "bare", filled())
        file["bare"].attrs["resolution"] = "high"
        _put(file, "broken", filled(), (4, 0, 40))
    with pytest.raises(RequestError, match=r"dataset /stack has shape \(7, 5, 4\) and no axes"):
        _resolve(tmp_path / "a.h5", "stack")
    source = _resolve(tmp_path / "a.h5", "stack", axes="xyz")
    assert (source.voxel_size_nm, source.origin_vx) == ((4.0, 8.0, 40.0), (2, 2, 2))
    bare = _resolve(tmp_path / "a.h5", "bare", axes="zyx")
    assert (bare.voxel_size_nm, bare.origin_vx) == (None, None)
    with pytest.raises(
        RequestError, match=r"a\.h5 states no voxel size and none was given; .*--voxel-size X,Y,Z"
    ):
        agreed_voxel_size(bare, None)
    with pytest.raises(RequestError, match=r"dataset /broken states a voxel size of 4,0,40 nm"):
        _resolve(tmp_path / "a.h5", "broken", axes="zyx")


def test_an_offset_within_a_voxel_is_refused_with_its_value(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        _put(file, "volumes/raw", filled(), (4, 4, 40), (6, 4, 40))
    with pytest.raises(
        RequestError,
        match=r"dataset /volumes/raw has an offset of 6,4,40 nm \(x, y, z\), which is 1.5,1,1 vox",
    ):
        _resolve(tmp_path / "a.h5", "volumes/raw")


def _cubes(path, dtype=np.uint64, second=(40, 0, 0)):
    first, other = filled((6, 5, 4), dtype), filled((3, 5, 6), dtype)[::-1]
    with h5py.File(path, "w") as file:
        _put(file, "volumes/ids/a", first, (4, 4, 40), (16, 0, 0))
        _put(file, "volumes/ids/b", other, (4, 4, 40), second)
    return first, other


@pytest.mark.parametrize("named", ["volumes/ids", "volumes/ids/a,volumes/ids/b"])
def test_cubes_make_one_volume_with_zeros_between(tmp_path, named):
    path = tmp_path / "a.h5"
    first, other = _cubes(path, second=(48, 8, 80))
    source = _resolve(path, named)
    # Frame voxels [4:10, 0:5, 0:4) and [12:15, 2:7, 2:8).
    assert source.origin_vx == (4, 0, 0)
    assert source.shape == (11, 7, 8)
    assert source.voxel_size_nm == (4.0, 4.0, 40.0)
    expected = np.zeros((11, 7, 8), np.uint64)
    expected[:6, :5, :4] = first
    expected[8:, 2:, 2:] = other
    empty = 11 * 7 * 8 - first.size - other.size
    assert source.empty_voxels == source.to_json()["empty_voxels"] == empty
    assert source.lines()[0] == (
        f"HDF5 file {path}, 2 cubes in [4:15, 0:7, 0:8) (x, y, z); {empty} voxels of it belong to "
        "none and are filled with zeros"
    )
    assert json.loads(json.dumps(source.to_json()))["cubes"][1]["origin_vx"] == [12, 2, 2]
    reader = pickle.loads(pickle.dumps(source)).open()
    np.testing.assert_array_equal(reader.read(Box((0, 0, 0), source.shape)), expected)
    assert reader.absent == empty
    box = Box((5, 1, 1), (9, 6, 5))
    np.testing.assert_array_equal(reader.read(box), expected[5:9, 1:6, 1:5])
    assert reader.absent == (expected[5:9, 1:6, 1:5] == 0).sum()
    assert reader.stamps(box)[0][0] == "a.h5"
    reader.close()


def test_cubes_that_overlap_must_agree(tmp_path):
    path = tmp_path / "a.h5"
    whole = filled((10, 5, 4), np.uint32)
    with h5py.File(path, "w") as file:
        _put(file, "volumes/a", whole[:6], (4, 4, 40), (0, 0, 0))
        _put(file, "volumes/b", whole[4:], (4, 4, 40), (16, 0, 0))
    source = _resolve(path, "volumes/a,volumes/b")
    assert source.empty_voxels == 0
    np.testing.assert_array_equal(_whole(source), whole)
    with h5py.File(path, "a") as file:
        file["volumes/b"][3, 2, 1] = 9999  # x = 5 of the frame
    held = whole[5, 2, 3]
    with pytest.raises(
        RunError,
        match=rf"cube volumes/b holds 9999 at frame voxel \(5, 2, 3\) \(x, y, z\), where a cube "
        rf"before it holds {held}; voxels of one would be lost",
    ):
        _whole(source)


def test_cubes_that_make_no_volume(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        _put(file, "v/a", filled(dtype=np.uint64), (4, 4, 40), (0, 0, 0))
        _put(file, "v/coarse", filled(dtype=np.uint64), (8, 8, 40), (0, 0, 0))
        _put(file, "v/narrow", filled(dtype=np.uint32), (4, 4, 40), (0, 0, 0))
        _put(file, "v/lost", filled(dtype=np.uint64), (4, 4, 40))
    with pytest.raises(
        RequestError, match=r"v/coarse has voxels of 8,8,40 nm and v/a of 4,4,40 \(x, y, z\)"
    ):
        _resolve(path, "v/a,v/coarse", axes="zyx")
    with pytest.raises(RequestError, match=r"v/narrow has dtype uint32 and v/a has uint64; a vol"):
        _resolve(path, "v/a,v/narrow", axes="zyx")
    for named in ("v/a,v/lost", "v"):
        with pytest.raises(
            RequestError, match=r"dataset /v/lost has no attributes resolution and offset"
        ):
            _resolve(path, named, axes="zyx")
    with pytest.raises(RequestError, match=r"--dataset v/none is not in the file; give --dataset"):
        _resolve(path, "v/a,v/none", axes="zyx")


def test_a_name_with_a_comma_is_a_name(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        _put(file, "a,b", filled())
    source = _resolve(tmp_path / "a.h5", "a,b", "image", axes="zyx")
    np.testing.assert_array_equal(_whole(source), filled())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_covered_counts_what_a_mask_counts(data):
    within = Box((0, 0, 0), (9, 8, 7))
    mask = np.zeros(within.shape, bool)
    boxes = []
    for _ in range(data.draw(st.integers(0, 4))):
        start = vec(data.draw(st.integers(-3, n)) for n in within.shape)
        shape = vec(data.draw(st.integers(0, 6)) for _ in range(3))
        boxes.append(Box.of(start, shape))
        part = boxes[-1].intersection(within)
        mask[part.slices(within)] = True
    assert covered(within, boxes) == mask.sum()
