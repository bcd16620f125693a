import contextlib
import io
import json
import os
import pickle

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.volumes.section_files import cut
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, vec
from volumes.sources import agreed_voxel_size, resolve_source, tiff
from volumes.sources.base import decoded_bytes
from volumes.sources.flat import FlatSource
from volumes.sources.headers import ImageError
from volumes.sources.stacks import StackSource


def _voxels(shape=(45, 37, 5), dtype=np.uint16):
    return np.random.default_rng(2).integers(0, 2**15, shape).astype(dtype)


def _write(path, voxels, **options):
    """XYZ voxels as a stack, a page a z."""
    tifffile.imwrite(path, np.ascontiguousarray(voxels.T), photometric="minisblack", **options)
    return str(path)


def _resolve(path, kind="segmentation", axes=None, **options):
    return resolve_source(str(path), None, axes, kind, **options)


def _whole(source):
    with contextlib.closing(source.open()) as reader:
        return reader.read(Box((0, 0, 0), source.shape))


@pytest.mark.parametrize(
    ("options", "kind", "piece"),
    [
        ({}, FlatSource, (1, 1, 1)),
        ({"bigtiff": True, "byteorder": ">"}, FlatSource, (1, 1, 1)),
        ({"ome": True, "metadata": {"axes": "ZYX"}}, FlatSource, (1, 1, 1)),
        ({"compression": "zlib"}, StackSource, (45, 37, 1)),
        ({"compression": "zlib", "predictor": True, "rowsperstrip": 8}, StackSource, (45, 8, 1)),
        ({"tile": (16, 32), "compression": "lzma"}, StackSource, (32, 16, 1)),
        ({"tile": (16, 32), "bigtiff": True}, StackSource, (32, 16, 1)),
        ({"rowsperstrip": 10}, FlatSource, (1, 1, 1)),
    ],
)
def test_stacks_of_all_layouts(tmp_path, options, kind, piece):
    voxels = _voxels()
    source = _resolve(_write(tmp_path / "a.tif", voxels, **options))
    assert type(source) is kind
    assert (source.shape, source.dtype, source.piece) == ((45, 37, 5), "uint16", piece)
    np.testing.assert_array_equal(_whole(source), voxels)
    box = Box((3, 9, 1), (40, 37, 4))
    reader = pickle.loads(pickle.dumps(source)).open()
    found = reader.read(box)
    np.testing.assert_array_equal(found, voxels[3:40, 9:37, 1:4])
    assert found.dtype.isnative
    assert decoded_bytes(source, box) >= found.nbytes
    assert reader.stamps(box) == reader.stamps(box)
    reader.close()
    assert json.loads(json.dumps(source.to_json()))["type"] == "tiff"
    assert source.lines()[0].startswith(f"TIFF file {tmp_path}/a.tif")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_labels_of_all_dtypes(tmp_path, dtype, compression):
    voxels = _voxels((9, 8, 3)) % 100
    voxels = voxels.astype(dtype)
    voxels[0, 0, 0] = np.iinfo(dtype).max
    source = _resolve(_write(tmp_path / "a.tif", voxels, compression=compression))
    assert source.dtype == dtype
    np.testing.assert_array_equal(_whole(source), voxels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stacks_that_pillow_writes(tmp_path, compression, dtype):
    voxels = (_voxels() % 256).astype(dtype)
    first, *others = (Image.fromarray(np.ascontiguousarray(p)) for p in voxels.T)
    path = tmp_path / "a.tif"
    first.save(path, save_all=True, append_images=others, compression=compression)
    source = _resolve(path, "image")
    reader = source.open()
    # Out of order, too.
    for z in (3, 0, 4):
        box = Box((5, 6, z), (30, 20, z + 1))
        np.testing.assert_array_equal(reader.read(box), voxels[5:30, 6:20, z : z + 1])
    reader.close()
    np.testing.assert_array_equal(_whole(source), voxels)


def test_ids_of_32_bits_keep_their_sign_bit_through_pillow(tmp_path):
    ids = np.array([[1, 2**31, 2**32 - 1]], np.uint32)
    path = tmp_path / "a.tif"
    Image.fromarray(ids.view(np.int32)).save(path, compression="tiff_lzw")
    with tifffile.TiffFile(path) as file:
        at = file.pages.first.tags["SampleFormat"].valueoffset
    data = bytearray(path.read_bytes())
    data[at] = 1  # unsigned
    path.write_bytes(data)
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.dtype == np.uint32
        assert file.pages.first.compression == 5
    assert _whole(_resolve(tmp_path / "a.tif")).ravel().tolist() == ids.ravel().tolist()


def test_imagej_hyperstacks_state_their_voxel_size(tmp_path):
    voxels = _voxels()
    meta = {"spacing": 0.04, "unit": "um", "axes": "ZYX"}
    path = _write(
        tmp_path / "a.tif", voxels, imagej=True, resolution=(1 / 0.009, 1 / 0.004), metadata=meta
    )
    source = _resolve(path)
    assert source.voxel_size_nm == (9.0, 4.0, 40.0)
    assert source.origin_vx is None
    np.testing.assert_array_equal(_whole(source), voxels)
    assert agreed_voxel_size(source, None) == (9.0, 4.0, 40.0)
    assert agreed_voxel_size(source, (9, 4, 40)) == (9, 4, 40)
    with pytest.raises(
        RequestError, match=r"--voxel-size 4,4,40 was given, but .*a\.tif states 9,4,40 nm"
    ):
        agreed_voxel_size(source, (4, 4, 40))
    with pytest.raises(RequestError, match=r"--axes xyz was given, but the header .* says zyx"):
        _resolve(path, axes="xyz")
    # ImageJ writes the pages of a large stack after one description.
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        first = file.pages.first
        at = first.offset + 2 + 12 * len(first.tags)
    data[at : at + 4] = bytes(4)
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(_whole(_resolve(path)), voxels)
    _write(tmp_path / "b.tif", voxels, imagej=True, metadata={"axes": "ZYX"})
    assert _resolve(tmp_path / "b.tif").voxel_size_nm is None


@pytest.mark.parametrize(
    ("unit", "size", "expected"),
    [("nm", (4.0, 4.0, 40.0), (4.0, 4.0, 40.0)), ("µm", (0.005, 0.006, 0.03), (5.0, 6.0, 30.0)),
     ("pixel", (1, 1, 1), None)],
)  # fmt: skip
def test_ome_tiff_states_its_voxel_size(tmp_path, unit, size, expected):
    meta = {"axes": "ZYX"}
    for axis, value in zip("XYZ", size, strict=True):
        meta |= {f"PhysicalSize{axis}": value, f"PhysicalSize{axis}Unit": unit}
    path = _write(tmp_path / "a.ome.tif", _voxels(), metadata=meta, compression="zlib")
    source = _resolve(path)
    assert source.voxel_size_nm == expected
    np.testing.assert_array_equal(_whole(source), _voxels())


def test_pages_with_smaller_copies_beside_them(tmp_path):
    voxels = _voxels((64, 48, 4), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        file.write(voxels.T, subifds=1, metadata={"axes": "ZYX"}, tile=(16, 16))
        file.write(voxels.T[:, ::2, ::2], subfiletype=1, tile=(16, 16))
    source = _resolve(tmp_path / "a.ome.tif", "image")
    np.testing.assert_array_equal(_whole(source), voxels)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_box_of_any_axes(tmp_path_factory, data):
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    axes = data.draw(st.sampled_from(["zyx", "xyz", "yzx", "zxy"]))
    options = data.draw(
        st.sampled_from([{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 2}])
    )
    voxels = np.arange(1, np.prod(shape) + 1).reshape(shape).astype(np.uint16)
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    stored = np.ascontiguousarray(voxels.transpose(["xyz".index(a) for a in axes]))
    with tifffile.TiffWriter(path) as file:
        for page in stored:
            file.write(page, contiguous=False, photometric="minisblack", metadata=None, **options)
    source = _resolve(path, axes=axes)
    assert source.shape == shape
    start = vec(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = vec(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    box = Box(start, stop)
    expected = voxels[box.slices(Box((0, 0, 0), shape))]
    reader = source.open()
    np.testing.assert_array_equal(reader.read(box), expected)
    reader.close()


def test_time_is_not_taken_for_space_unasked(tmp_path):
    path = _write(tmp_path / "a.tif", _voxels(), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(
        RequestError, match=r"a\.tif has shape \(5, 37, 45\) and no axes were given.*--axes zyx"
    ):
        _resolve(path)
    np.testing.assert_array_equal(_whole(_resolve(path, axes="zyx")), _voxels())


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 8, 9), {"imagej": True, "metadata": {"axes": "ZCYX"}}, r"has axes ZCYX of shape "),
        ((2, 3, 8, 9), {"imagej": True, "metadata": {"axes": "TZYX"}}, r"axes TZYX .*\(2, 3, 8, 9"),
        ((3, 8, 9), {"ome": True, "metadata": {"axes": "CYX"}}, r"has axes CYX of shape \(3, 8, 9"),
    ],
)
def test_channels_and_times_are_refused(tmp_path, shape, options, message):
    array = np.zeros(shape, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", **options)
    with pytest.raises(RequestError, match=message):
        _resolve(tmp_path / "a.tif", "image")


def test_what_is_not_one_number_a_voxel(tmp_path):
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 8, 9, 3), np.uint8), photometric="rgb")
    with pytest.raises(RequestError, match=r"c\.tif is RGB with 3 samples with 8 bits a sample"):
        _resolve(tmp_path / "c.tif")
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        for shape in ((8, 9), (8, 9), (7, 9)):
            file.write(np.zeros(shape, np.uint8), metadata=None, photometric="minisblack")
    with pytest.raises(
        RequestError, match=r"two\.tif holds 2 images of shapes \(2, 8, 9\), \(7, 9\)"
    ):
        _resolve(tmp_path / "two.tif")
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((4, 8, 9), np.float32), photometric="minisblack")
    with pytest.raises(RequestError, match=r"has dtype float32; an image is uint8 or uint16"):
        _resolve(tmp_path / "f.tif", "image")
    with pytest.raises(RequestError, match=r"--dataset a was given for .* which is a TIFF file"):
        resolve_source(str(tmp_path / "f.tif"), "a", None, "image")


def test_one_file_of_a_set_is_refused(tmp_path):
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="9" '
        'SizeY="8" SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstZ="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID>'
        '</TiffData><TiffData IFD="0" FirstZ="1" PlaneCount="1"><UUID FileName="b.ome.tif">'
        "urn:uuid:2</UUID></TiffData></Pixels></Image></OME>"
    )
    for name in ("a", "b"):
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif",
            np.zeros((8, 9), np.uint8),
            description=xml,
            metadata=None,
            photometric="minisblack",
        )
    with pytest.raises(RequestError, match=r"a\.ome\.tif is one file of a set \(OME-TIFF\)"):
        _resolve(tmp_path / "a.ome.tif", "image")


# Damage


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"bigtiff": True}, {"imagej": True},
     {"ome": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"}],
)  # fmt: skip
def test_no_cut_of_a_stack_loses_a_page_unnoticed(tmp_path, options):
    voxels = _voxels((20, 18, 6))
    path = _write(tmp_path / "a.tif", voxels, **options)
    data = (tmp_path / "a.tif").read_bytes()
    noticed = 0
    for keep in [*range(0, 400, 13), *range(400, len(data), 211), len(data) - 1]:
        (tmp_path / "a.tif").write_bytes(data[:keep])
        try:
            found = _whole(_resolve(path))
        except (RequestError, RunError) as e:
            noticed += "a.tif" in str(e)
            continue
        np.testing.assert_array_equal(found, voxels)
        noticed += 1
    assert noticed == len([*range(0, 400, 13), *range(400, len(data), 211)]) + 1


def test_a_list_of_pages_that_turns_in_a_circle(tmp_path):
    path = _write(tmp_path / "a.tif", _voxels(), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        last, back = file.pages[4].offset, file.pages[0].offset
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = last + 2 + 12 * int.from_bytes(data[last : last + 2], "little")
    data[at : at + 4] = back.to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ImageError, match=rf"list of pages that leads back to byte {back}"):
        tiff.opened(io.BytesIO(bytes(data)))
    with pytest.raises(RequestError, match="a.tif has a list of pages that leads back"):
        _resolve(path)


def test_a_stack_that_breaks_or_is_replaced_after_the_plan(tmp_path):
    path = _write(tmp_path / "a.tif", _voxels(), compression="zlib")
    source = _resolve(path)
    reader = source.open()
    before = reader.stamps(Box((0, 0, 0), (1, 1, 1)))
    with tifffile.TiffFile(path) as file:
        at = file.pages[2].dataoffsets[0]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[at : at + 40] = bytes(40)
    (tmp_path / "a.tif").write_bytes(data)
    os.utime(path, ns=(1, 1))
    assert reader.stamps(Box((0, 0, 0), (1, 1, 1))) != before
    reader.close()
    with pytest.raises(RunError, match=r"a\.tif: page 2 cannot be decoded: .*repair or replace"):
        _whole(source)
    _write(tmp_path / "a.tif", _voxels((45, 37, 6)), compression="zlib")
    with pytest.raises(
        RunError, match=r"a\.tif now holds uint16 of shape \(6, 37, 45\), which is not what was"
    ):
        source.open()
    cut(tmp_path / "a.tif", 60)
    with pytest.raises(RunError, match=r"a\.tif cannot be read any more: "):
        source.open()


def test_memory_is_that_of_a_tile(tmp_path):
    path = _write(tmp_path / "a.tif", _voxels((640, 640, 2)), tile=(64, 64), compression="zlib")
    source = _resolve(path)
    assert source.scratch_bytes == 3 * 64 * 64 * 2
    reader = source.open()
    read = []
    segment = reader._reader._segment

    def watched(page, keyframe, index):
        read.append(index)
        return segment(page, keyframe, index)

    reader._reader._segment = watched
    reader.read(Box((60, 0, 1), (70, 64, 2)))
    reader.close()
    assert read == [0, 1]
