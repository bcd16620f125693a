import contextlib
import json
import pickle

import mrcfile
import numpy as np
import pytest

from tests.volumes.section_files import cut, filled
from volumes.errors import RequestError, RunError
from volumes.geometry import Box
from volumes.sources import agreed_voxel_size, resolve_source


def _write(path, voxels, size=None, **header):
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(voxels.T))
        file.set_volume()
        if size is not None:
            file.voxel_size = size
        for name, value in header.items():
            file.header[name] = value
    return str(path)


def _resolve(path, kind="image", axes=None, **options):
    return resolve_source(str(path), None, axes, kind, **options)


def _whole(source):
    with contextlib.closing(source.open()) as reader:
        return reader.read(Box((0, 0, 0), source.shape))


@pytest.mark.parametrize(
    ("dtype", "kind", "asked"),
    [
        (np.uint16, "image", None),
        (np.uint16, "segmentation", None),
        (np.int16, "segmentation", None),
        (np.int16, "image", "uint16"),
        (np.int8, "segmentation", None),
        (np.int8, "image", "uint8"),
        (np.float32, "segmentation", "uint32"),
        (np.float16, "segmentation", "uint64"),
    ],
)
def test_modes(tmp_path, dtype, kind, asked):
    voxels = (filled() % 100).astype(dtype)
    source = _resolve(_write(tmp_path / "a.mrc", voxels), kind, dtype=asked)
    assert source.dtype == (asked or np.dtype(dtype).name)
    assert source.shape == (7, 5, 4)
    np.testing.assert_array_equal(_whole(source), voxels)
    box = Box((1, 2, 1), (6, 5, 3))
    reader = pickle.loads(pickle.dumps(source)).open()
    np.testing.assert_array_equal(reader.read(box), voxels[1:6, 2:5, 1:3])
    reader.close()
    assert json.loads(json.dumps(source.to_json()))["type"] == "mrc"


def test_bytes_are_signed_unless_imod_says_otherwise(tmp_path):
    voxels = filled().astype(np.int8)
    path = _write(tmp_path / "a.mrc", voxels)
    with pytest.raises(RequestError, match=r"has dtype int8; an image is uint8 or uint16"):
        _resolve(path)
    data = bytearray((tmp_path / "a.mrc").read_bytes())
    data[152:156] = (1146047817).to_bytes(4, "little")
    (tmp_path / "a.mrc").write_bytes(data)
    source = _resolve(path)
    assert source.dtype == "uint8"
    np.testing.assert_array_equal(_whole(source), voxels.view(np.uint8))
    data[156] = 1
    (tmp_path / "a.mrc").write_bytes(data)
    assert _resolve(path, "segmentation").dtype == "int8"


def test_floats_and_complex_numbers_are_refused(tmp_path):
    with pytest.raises(
        RequestError, match=r"has dtype float32; an image is .* or give --dtype if it holds whole"
    ):
        _resolve(_write(tmp_path / "a.mrc", filled().astype(np.float32)))
    with pytest.raises(RequestError, match="has dtype complex64; an image is uint8 or uint16"):
        _resolve(_write(tmp_path / "b.mrc", filled().astype(np.complex64)), dtype="uint8")


def test_voxel_size_in_angstrom_and_origin(tmp_path):
    voxels = filled().astype(np.uint16)
    path = _write(tmp_path / "a.mrc", voxels, (81.3, 81.3, 300), nxstart=5, nystart=-6, nzstart=7)
    source = _resolve(path)
    assert source.voxel_size_nm == (8.13, 8.13, 30.0)
    assert source.origin_vx == (5, -6, 7)
    assert agreed_voxel_size(source, (8.13, 8.13, 30)) == (8.13, 8.13, 30)
    # One angstrom is what programs write that know no size.
    plain = _resolve(_write(tmp_path / "b.mrc", voxels, 1))
    assert (plain.voxel_size_nm, plain.origin_vx) == (None, None)
    assert _resolve(_write(tmp_path / "c.mrc", voxels, 0)).voxel_size_nm is None


def test_an_origin_in_angstrom_counts_where_it_is_whole_voxels(tmp_path):
    voxels = filled().astype(np.uint16)
    path = _write(tmp_path / "a.mrc", voxels, 40, origin=(80, 120, -40))
    assert _resolve(path).origin_vx == (2, 3, -1)
    source = _resolve(_write(tmp_path / "a.mrc", voxels, 40, origin=(90, 120, 40)))
    assert source.origin_vx is None
    assert source.lines()[1] == (
        "its origin of 90, 120, 40 angstrom (x, y, z) is not whole voxels and is left out"
    )


def test_columns_rows_and_sections_may_be_any_axes(tmp_path):
    stored = filled((7, 5, 4)).astype(np.uint16)
    path = _write(
        tmp_path / "a.mrc", stored, mapc=3, mapr=1, maps=2, nxstart=1, nystart=2, nzstart=3
    )
    source = _resolve(path)
    # Columns are z, rows are x, sections are y.
    assert source.shape == (5, 4, 7)
    assert source.origin_vx == (2, 3, 1)
    np.testing.assert_array_equal(_whole(source), stored.transpose(1, 2, 0))
    with pytest.raises(RequestError, match="--axes zyx was given, but the header of .* says yxz"):
        _resolve(path, axes="zyx")
    _write(tmp_path / "a.mrc", stored, mapc=1, mapr=1, maps=2)
    with pytest.raises(RequestError, match=r"columns, rows and sections are the axes \[1, 1, 2\]"):
        _resolve(path)


def test_an_extended_header_and_the_other_byte_order(tmp_path):
    voxels = filled().astype(">i2")
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.ascontiguousarray(voxels.T))
        file.set_extended_header(np.arange(100, dtype=np.float32))
    np.testing.assert_array_equal(_whole(_resolve(tmp_path / "a.mrc", "segmentation")), voxels)


def test_a_stack_of_volumes_is_refused(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.zeros((2, 3, 4, 5), np.uint16))
    with pytest.raises(RequestError, match=r"is a stack of volumes \(space group 401\)"):
        _resolve(tmp_path / "a.mrc")


def test_cut_damaged_and_replaced_files(tmp_path):
    path = _write(tmp_path / "a.mrc", filled().astype(np.uint16))
    source = _resolve(path)
    whole = cut(tmp_path / "a.mrc", 1200)
    with pytest.raises(RequestError, match=r"is cut short: it has 1200 bytes .* tells of 1304"):
        _resolve(path)
    with pytest.raises(RunError, match=r"a\.mrc cannot be read any more: .*is cut short"):
        source.open()
    cut(tmp_path / "a.mrc", 500)
    with pytest.raises(RequestError, match=r"a\.mrc has a damaged MRC header: "):
        _resolve(path)
    (tmp_path / "a.mrc").write_bytes(whole[:12] + (99).to_bytes(4, "little") + whole[16:])
    with pytest.raises(RequestError, match=r"a\.mrc has a mode that is not read: .*99"):
        _resolve(path)
    _write(tmp_path / "a.mrc", filled((7, 5, 5)).astype(np.uint16))
    with pytest.raises(RunError, match=r"now holds uint16 of shape \(5, 5, 7\), which is not what"):
        source.open()
