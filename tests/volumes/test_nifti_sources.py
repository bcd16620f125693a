import contextlib
import gzip
import json
import pickle

import nibabel
import numpy as np
import pytest

from tests.volumes.section_files import cut, filled
from volumes.errors import RequestError, RunError
from volumes.geometry import Box
from volumes.sources import resolve_source
from volumes.sources.base import decoded_bytes


def _write(path, voxels, affine=None, unit=None, make=nibabel.Nifti1Image):
    image = make(voxels, np.eye(4) if affine is None else affine, dtype=voxels.dtype)
    if unit is not None:
        image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return str(path)


def _resolve(path, kind="segmentation", axes=None, **options):
    return resolve_source(str(path), None, axes, kind, **options)


def _whole(source):
    with contextlib.closing(source.open()) as reader:
        return reader.read(Box((0, 0, 0), source.shape))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("make", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", ">u2", "uint64"])
def test_dtypes_and_boxes(tmp_path, name, make, dtype):
    voxels = filled(dtype=np.dtype(dtype))
    voxels[0, 0, 0] = np.iinfo(dtype).max
    source = _resolve(_write(tmp_path / name, voxels, make=make))
    assert source.shape == (7, 5, 4)
    assert source.dtype == np.dtype(dtype).newbyteorder("=").name
    np.testing.assert_array_equal(_whole(source), voxels)
    box = Box((1, 2, 1), (6, 5, 3))
    reader = pickle.loads(pickle.dumps(source)).open()
    # Backwards and forwards.
    for z in (3, 0, 2):
        part = Box((0, 1, z), (7, 5, z + 1))
        np.testing.assert_array_equal(reader.read(part), voxels[:, 1:, z : z + 1])
    np.testing.assert_array_equal(reader.read(box), voxels[1:6, 2:5, 1:3])
    assert reader.stamps(box)[0][0] == name
    reader.close()
    assert json.loads(json.dumps(source.to_json()))["type"] == "nifti"
    assert decoded_bytes(source, box) >= voxels[1:6, 2:5, 1:3].nbytes


def test_a_gzip_stream_goes_on_where_it_stands(tmp_path, monkeypatch):
    voxels = filled((7, 5, 12))
    source = _resolve(_write(tmp_path / "a.nii.gz", voxels))
    reader = source.open()
    opened = []
    monkeypatch.setattr(gzip, "open", lambda *a, real=gzip.open: opened.append(a) or real(*a))
    for z in range(0, 12, 3):
        np.testing.assert_array_equal(
            reader.read(Box((0, 0, z), (7, 5, z + 3))), voxels[:, :, z : z + 3]
        )
    assert len(opened) == 1
    reader.read(Box((0, 0, 0), (7, 5, 1)))
    assert len(opened) == 2
    reader.close()
    assert source.piece == (7, 5, 1)
    assert source.scratch_bytes == 2 * 7 * 5
    assert "one gzip stream" in source.lines()[1]


@pytest.mark.parametrize(
    ("unit", "size", "expected"),
    [
        ("mm", (0.000009, 0.000009, 0.00003), (9.0, 9.0, 30.0)),
        ("micron", (0.004, 0.004, 0.04), (4.0, 4.0, 40.0)),
        (None, (4, 4, 40), None),
    ],
)
def test_the_voxel_size_needs_a_unit(tmp_path, unit, size, expected):
    source = _resolve(_write(tmp_path / "a.nii", filled(), np.diag([*size, 1]), unit))
    assert source.voxel_size_nm == expected
    assert source.origin_vx is None


def test_the_origin_is_taken_where_it_is_whole_voxels(tmp_path):
    affine = np.diag([0.004, 0.004, 0.04, 1])
    affine[:3, 3] = 0.04, -0.012, 0.4
    source = _resolve(_write(tmp_path / "a.nii", filled(), affine, "micron"))
    assert source.origin_vx == (10, -3, 10)
    affine[0, 3] = 0.042
    source = _resolve(_write(tmp_path / "a.nii", filled(), affine, "micron"))
    assert source.origin_vx is None
    assert source.lines()[1] == (
        "its origin of 10.5, -3, 10 voxels (x, y, z) is not whole and is left out"
    )


def test_axes_against_space_keep_their_order_and_are_told(tmp_path):
    affine = np.diag([-0.004, -0.004, 0.04, 1])
    source = _resolve(_write(tmp_path / "a.nii", filled(), affine, "micron"))
    assert source.voxel_size_nm == (4.0, 4.0, 40.0)
    assert source.lines()[1] == ("its x, y axis runs against space; voxels keep their stored order")
    np.testing.assert_array_equal(_whole(source), filled())


@pytest.mark.parametrize(
    "linear", [[[0, 4, 0], [4, 0, 0], [0, 0, 40]], [[4, 0.5, 0], [-0.5, 4, 0], [0, 0, 40]]]
)
def test_what_lies_askew_is_refused(tmp_path, linear):
    affine = np.eye(4)
    affine[:3, :3] = linear
    with pytest.raises(
        RequestError, match=r"a\.nii has an affine transform that is no axis-aligned scaling"
    ):
        _resolve(_write(tmp_path / "a.nii", filled(), affine, "micron"))


def test_more_than_one_number_a_voxel_and_scaled_values_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"has shape \(3, 4, 5, 2\) \(x, y, z, \.\.\.\)"):
        _resolve(_write(tmp_path / "a.nii", np.zeros((3, 4, 5, 2), np.uint8)))
    assert _resolve(_write(tmp_path / "b.nii", np.zeros((3, 4, 5, 1), np.uint8))).shape == (3, 4, 5)
    image = nibabel.Nifti1Image(filled(), np.eye(4))
    image.header.set_slope_inter(2, 1)
    nibabel.save(image, tmp_path / "c.nii")
    with pytest.raises(RequestError, match=r"c\.nii scales its values \(by 2, plus 1\)"):
        _resolve(tmp_path / "c.nii")
    with pytest.raises(RequestError, match="--axes zyx was given, but the header .* says xyz"):
        _resolve(tmp_path / "b.nii", axes="zyx")


def test_floats_with_whole_values_need_a_dtype(tmp_path):
    path = _write(tmp_path / "a.nii.gz", filled().astype(np.float32))
    with pytest.raises(
        RequestError, match=r"has dtype float32; ids are integers.* give --dtype if"
    ):
        _resolve(path)
    source = _resolve(path, dtype="uint16")
    np.testing.assert_array_equal(_whole(source), filled())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_cut_and_replaced_files(tmp_path, name):
    voxels = np.random.default_rng(1).integers(0, 255, (20, 20, 9), np.uint8)
    path = _write(tmp_path / name, voxels)
    source = _resolve(path)
    size = (tmp_path / name).stat().st_size
    whole = cut(tmp_path / name, size - 700)
    if name == "a.nii":
        with pytest.raises(RequestError, match=r"is cut short: it has 3252 bytes .* tells of 3952"):
            _resolve(path)
    else:
        with pytest.raises(RunError, match=r"a\.nii\.gz cannot be read at \[0:20, 0:20, 0:9\)"):
            _whole(source)
        damaged = bytearray(whole)
        damaged[-6] ^= 1  # the checksum
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(RunError, match=r"CRC check failed"):
            _whole(source)
    cut(tmp_path / name, 30)
    with pytest.raises(RequestError, match=rf"--source .*{name} is neither an HDF5 nor an NPY"):
        _resolve(path)
    _write(tmp_path / name, voxels[:10])
    with pytest.raises(RunError, match=r"now holds uint8 of shape \(10, 20, 9\), which is not"):
        source.open()
