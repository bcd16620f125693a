import itertools
import json
import os
import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.volumes.section_files import cut, write_section, write_sections
from volumes import objects
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, vec
from volumes.sources import hdf5 as sources_hdf5
from volumes.sources.base import decoded_bytes, whole_units
from volumes.sources.resolving import resolve_source

_PERMUTATIONS = ["".join(p) for p in itertools.permutations("xyz")]


def _voxels(shape=(7, 5, 4), dtype=np.uint8):
    # Every voxel its own value: a turned axis cannot go unnoticed.
    return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)


def _whole(source):
    return source.open().read(Box((0, 0, 0), source.shape))


def _stored(voxels, axes):
    """XYZ voxels as an array with the named axes."""
    return voxels.transpose(["xyz".index(a) for a in axes])


def _hdf5(path, voxels, axes="zyx", dataset="stack", **options):
    with h5py.File(path, "w") as file:
        file.create_dataset(dataset, data=_stored(voxels, axes), **options)
    return str(path)


def _npy(path, array):
    np.save(path, array)
    return str(path)


# Sections


def test_sections_are_rows_y_and_columns_x_in_the_order_of_their_numbers(tmp_path):
    voxels = _voxels((7, 5, 12))
    write_sections(tmp_path, voxels, first=2)  # 2 to 13: the order of names is another one
    source = resolve_source(str(tmp_path), None, None, "image")
    assert source.shape == (7, 5, 12)
    assert source.dtype == "uint8"
    assert source.piece == (7, 5, 1)
    assert source.lines() == (f"12 PNG sections 2 to 13 in {tmp_path}",)
    np.testing.assert_array_equal(_whole(source), voxels)
    box = Box((2, 1, 3), (6, 4, 9))
    np.testing.assert_array_equal(source.open().read(box), voxels[2:6, 1:4, 3:9])
    assert decoded_bytes(source, box) == 7 * 5 * 6


def test_the_last_digits_of_the_stem_are_the_number(tmp_path):
    voxels = _voxels()
    write_sections(tmp_path, voxels, first=98, name="run2_z{:04d}_raw.png")
    np.testing.assert_array_equal(
        _whole(resolve_source(f"file://{tmp_path}", None, None, "image")), voxels
    )


@pytest.mark.parametrize("kind", ["image", "segmentation"])
def test_sections_of_16_bits(tmp_path, kind):
    voxels = _voxels(dtype=np.uint16) * np.uint16(399)
    write_sections(tmp_path, voxels)
    source = resolve_source(str(tmp_path), None, None, kind)
    assert source.dtype == "uint16"
    np.testing.assert_array_equal(_whole(source), voxels)


def test_missing_sections_are_listed(tmp_path):
    paths = write_sections(tmp_path, _voxels((3, 3, 30)), first=2600)
    for z in (11, 20, 21, 22):
        paths[z].unlink()
    with pytest.raises(
        RequestError, match=r"sections 2611, 2620-2622 are missing between 2600 and 2629"
    ):
        resolve_source(str(tmp_path), None, None, "image")
    for z in (20, 21, 22):
        write_section(paths[z], _voxels()[:3, :3, 0])
    with pytest.raises(RequestError, match=r"section 2611 is missing between 2600 and 2629"):
        resolve_source(str(tmp_path), None, None, "image")


def test_repeated_numbers_are_listed(tmp_path):
    write_sections(tmp_path, _voxels(), first=1, name="a.{}.png")
    write_sections(tmp_path, _voxels()[:, :, :1], first=3, name="b.{:03d}.png")
    with pytest.raises(RequestError, match=r"number 3 is borne by a\.3\.png, b\.003\.png; "):
        resolve_source(str(tmp_path), None, None, "image")


def test_the_first_section_of_another_size_is_named_with_both_sizes(tmp_path):
    paths = write_sections(tmp_path, _voxels())
    write_section(paths[2], _voxels((8, 5, 1))[:, :, 0])
    write_section(paths[3], _voxels((9, 5, 1))[:, :, 0])
    with pytest.raises(
        RequestError, match=r"em\.3\.png is 8 x 5 pixels of uint8, but em\.1\.png is 7 x 5 pixels"
    ):
        resolve_source(str(tmp_path), None, None, "image")
    write_section(paths[1], _voxels(dtype=np.uint16)[:, :, 0])
    with pytest.raises(RequestError, match=r"em\.2\.png is 7 x 5 pixels of uint16, but em\.1"):
        resolve_source(str(tmp_path), None, None, "image")


@pytest.mark.parametrize(
    ("mode", "named"),
    [
        ("RGB", "RGB with 8 bits"),
        ("RGBA", "RGBA with 8 bits"),
        ("LA", "grey with alpha with 8 bits"),
        ("P", "palette with 8 bits"),
        ("1", "grey with 1 bits"),
    ],
)
def test_colour_alpha_palette_and_bits_are_refused_by_name(tmp_path, mode, named):
    paths = write_sections(tmp_path, _voxels())
    Image.open(paths[1]).convert(mode).save(paths[1])
    with pytest.raises(RequestError, match=rf"em\.2\.png is {named} a sample; a section is grey"):
        resolve_source(str(tmp_path), None, None, "image")
    with pytest.raises(RequestError, match="or give the ids as an HDF5 or NPY file"):
        resolve_source(str(tmp_path), None, None, "segmentation")


def test_an_unreadable_header_is_named(tmp_path):
    paths = write_sections(tmp_path, _voxels())
    cut(paths[2], 20)
    with pytest.raises(RequestError, match=r"em\.3\.png ends within its header, after 20 bytes"):
        resolve_source(str(tmp_path), None, None, "image")
    paths[2].write_bytes(b"hello")
    with pytest.raises(
        RequestError, match=r"em\.3\.png is not a PNG, JPEG or TIFF file .it begins with b'hello"
    ):
        resolve_source(str(tmp_path), None, None, "image")


def test_other_images_are_refused_and_other_files_told(tmp_path):
    write_sections(tmp_path, _voxels())
    for name in ("notes.txt", "meta.json", "a.xml", ".hidden.7.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "deeper").mkdir()
    source = resolve_source(str(tmp_path), None, None, "image")
    assert source.lines()[1] == "ignored: 3 files that are no image (such as a.xml)"
    np.testing.assert_array_equal(_whole(source), _voxels())
    (tmp_path / "em.5.tif").write_text("x")
    with pytest.raises(
        RequestError, match=r"em\.5\.tif is not a PNG, JPEG or TIFF file \(it begins with b'x'\)"
    ):
        resolve_source(str(tmp_path), None, None, "image")


def test_a_directory_without_sections_and_a_section_without_number(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(RequestError, match=r"holds no PNG, JPEG or TIFF files \(1 others\)"):
        resolve_source(str(tmp_path), None, None, "image")
    write_section(tmp_path / "overview.png", _voxels()[:, :, 0])
    with pytest.raises(RequestError, match=r"overview\.png has no number in its name"):
        resolve_source(str(tmp_path), None, None, "image")


@pytest.mark.parametrize(
    ("dataset", "axes", "flag"), [("a", None, "dataset a"), (None, "zyx", "axes zyx")]
)
def test_sections_have_no_dataset_and_no_axes(tmp_path, dataset, axes, flag):
    write_sections(tmp_path, _voxels())
    with pytest.raises(RequestError, match=rf"--{flag} was given for .*, which is a directory of"):
        resolve_source(str(tmp_path), dataset, axes, "image")


def test_a_section_that_breaks_after_the_plan_is_named_and_can_be_repaired(tmp_path):
    voxels = _voxels((64, 64, 4))
    paths = write_sections(tmp_path, voxels)
    source = resolve_source(str(tmp_path), None, None, "image")
    reader = source.open()
    whole = cut(paths[1], 60)
    with pytest.raises(RunError, match=r"em\.2\.png is cut short: it ends at byte 60"):
        reader.read(Box((0, 0, 0), source.shape))
    paths[1].write_bytes(whole)
    np.testing.assert_array_equal(_whole(source), voxels)
    write_section(paths[1], voxels[:50, :, 0])
    with pytest.raises(RunError, match=r"em\.2\.png now is 50 x 64 of uint8, planned was 64 x 64"):
        reader.read(Box((0, 0, 0), source.shape))
    paths[1].unlink()
    with pytest.raises(RunError, match=r"em\.2\.png is gone"):
        reader.read(Box((0, 0, 0), source.shape))
    with pytest.raises(RunError, match="no longer holds the sections that were planned"):
        source.open()


def test_stamps_are_of_the_sections_of_the_box_and_change_with_them(tmp_path):
    paths = write_sections(tmp_path, _voxels())
    reader = resolve_source(str(tmp_path), None, None, "image").open()
    box = Box((0, 0, 1), (3, 3, 3))
    before = reader.stamps(box)
    assert [name for name, _ in before] == ["em.2.png", "em.3.png"]
    found = os.stat(paths[1])
    assert before[0][1] == f"{found.st_size}:{found.st_mtime_ns}"
    os.utime(paths[0], ns=(1, 1))
    assert reader.stamps(box) == before
    os.utime(paths[2], ns=(1, 1))
    assert reader.stamps(box) != before


def test_sections_in_a_bucket(tmp_path, monkeypatch):
    # The store is a directory behind TensorStore's door for remote ones.
    def kvstore(url):
        assert url.startswith("s3://bucket/")
        return {
            "driver": "file",
            "path": f"{tmp_path}/{url.removeprefix('s3://bucket/').strip('/')}/",
        }

    monkeypatch.setattr(objects, "kvstore", kvstore)
    voxels = _voxels((64, 40, 5))
    paths = write_sections(tmp_path / "em", voxels, name="em 1%{}.png")
    source = resolve_source("s3://bucket/em/", None, None, "image")
    assert source.url == "s3://bucket/em"
    reader = source.open()
    np.testing.assert_array_equal(_whole(source), voxels)
    box = Box((0, 0, 0), source.shape)
    before = reader.stamps(box)
    assert before[1][0] == "em 1%2.png"
    assert reader.stamps(box) == before
    write_section(paths[1], voxels[:, :, 0])
    assert [a != b for a, b in zip(reader.stamps(box), before, strict=True)] == [
        False, True, False, False, False
    ]  # fmt: skip
    cut(paths[3], 10)
    with pytest.raises(RequestError, match=r"em%201%254\.png ends within its header, after 10"):
        resolve_source("s3://bucket/em", None, None, "image")
    with pytest.raises(RequestError, match="s3://bucket/none is remote and no directory of sect"):
        resolve_source("s3://bucket/none", None, None, "image")


# HDF5


@pytest.mark.parametrize("axes", _PERMUTATIONS)
def test_hdf5_in_any_order_of_axes(tmp_path, axes):
    voxels = _voxels((9, 6, 11), np.uint64) + np.uint64(2**63)
    path = _hdf5(tmp_path / "a.h5", voxels, axes, "group/ids", chunks=(4, 4, 2))
    source = resolve_source(path, "group/ids", axes, "segmentation")
    assert source.shape == (9, 6, 11)
    assert source.piece == vec((4, 4, 2)[axes.index(a)] for a in "xyz")
    np.testing.assert_array_equal(_whole(source), voxels)
    box = Box((1, 2, 3), (8, 6, 10))
    found = source.open().read(box)
    np.testing.assert_array_equal(found, voxels[1:8, 2:6, 3:10])
    assert found.dtype == np.uint64


def test_hdf5_with_a_channel_axis_of_one(tmp_path):
    voxels = _voxels()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"] = voxels.T[None]
        file["two"] = np.stack([voxels.T, voxels.T])
    path = str(tmp_path / "a.h5")
    source = resolve_source(path, "one", "czyx", "image")
    np.testing.assert_array_equal(_whole(source), voxels)
    assert source.piece == (1, 1, 1)
    with pytest.raises(RequestError, match=r"dataset /two has 2 channels \(shape \(2, 4, 5, 7\)"):
        resolve_source(path, "two", "czyx", "image")
    with pytest.raises(RequestError, match=r"--axes zyx does not name the axes .* of rank 4"):
        resolve_source(path, "one", "zyx", "image")


@pytest.mark.parametrize("axes", ["zyx", "yxz"])
def test_hdf5_is_read_in_whole_chunks_of_bounded_bytes(tmp_path, monkeypatch, axes):
    voxels = _voxels((50, 40, 30), np.uint16)
    path = _hdf5(tmp_path / "a.h5", voxels, axes, chunks=(8, 8, 8))
    monkeypatch.setattr(sources_hdf5, "READ_BYTES", 8 * 8 * 24 * 2)
    source = resolve_source(path, "stack", axes, "image")
    reader = source.open()
    read = []

    class Watched:
        def __getitem__(self, index):
            read.append(index)
            return dataset[index]

    dataset, reader._dataset = reader._dataset, Watched()
    box = Box((3, 0, 5), (50, 40, 29))
    np.testing.assert_array_equal(reader.read(box), voxels[3:50, :, 5:29])
    chunks = set()
    for index in read:
        assert np.prod([s.stop - s.start for s in index]) <= 8 * 8 * 24
        touched = set(itertools.product(*(range(s.start // 8, -(-s.stop // 8)) for s in index)))
        assert not chunks & touched  # no chunk is decompressed twice
        chunks |= touched
    assert len(read) > 20


def test_hdf5_errors_list_the_datasets(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["em/raw"] = _voxels().T
        file["seg"] = _voxels(dtype=np.uint64).T
    path = str(tmp_path / "a.h5")
    listed = r"em/raw \(4, 5, 7\) uint8, seg \(4, 5, 7\) uint64"
    with pytest.raises(
        RequestError, match=rf"no dataset was named; give --dataset, one of: {listed}"
    ):
        resolve_source(path, None, "zyx", "image")
    with pytest.raises(
        RequestError, match=rf"--dataset stack is not in the file.*one of: {listed}"
    ):
        resolve_source(path, "stack", "zyx", "image")
    with pytest.raises(RequestError, match=rf"--dataset em is a group, not a dataset.*{listed}"):
        resolve_source(path, "em", "zyx", "image")


def test_axes_are_asked_for_and_checked(tmp_path):
    path = _hdf5(tmp_path / "a.h5", _voxels())
    with pytest.raises(
        RequestError,
        match=r"dataset /stack has shape \(4, 5, 7\) and no axes were given.*--axes zyx",
    ):
        resolve_source(path, "stack", None, "image")
    for axes in ("zy", "zyy", "czyx", "ZYX"):
        with pytest.raises(
            RequestError, match=rf"--axes {axes} does not name the axes of .*rank 3"
        ):
            resolve_source(path, "stack", axes, "image")
    with h5py.File(path, "a") as file:
        file["flat"] = np.zeros((3, 4), np.uint8)
    with pytest.raises(RequestError, match=r"dataset /flat has rank 2 \(shape \(3, 4\)\)"):
        resolve_source(path, "flat", "yx", "image")


def test_hdf5_that_keeps_voxels_elsewhere_or_none_is_refused(tmp_path):
    path = _hdf5(tmp_path / "a.h5", _voxels())
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((4, 5, 7), np.uint8)
        layout[...] = h5py.VirtualSource(path, "stack", (4, 5, 7))
        file.create_virtual_dataset("view", layout)
        file["nothing"] = h5py.Empty(np.uint8)
        file["thin"] = np.zeros((4, 0, 7), np.uint8)
    with pytest.raises(RequestError, match="dataset /view keeps its voxels in other files"):
        resolve_source(path, "view", "zyx", "image")
    with pytest.raises(RequestError, match="dataset /nothing holds nothing"):
        resolve_source(path, "nothing", "zyx", "image")
    with pytest.raises(RequestError, match=r"has shape \(7, 0, 4\) .*which holds no voxel"):
        resolve_source(path, "thin", "zyx", "image")


def test_hdf5_that_breaks_after_the_plan(tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 255, (60, 60, 60), np.uint8)
    path = _hdf5(tmp_path / "a.h5", voxels, chunks=(20, 20, 20), compression="gzip")
    source = resolve_source(path, "stack", "zyx", "image")
    data = bytearray((tmp_path / "a.h5").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    (tmp_path / "a.h5").write_bytes(data)
    with pytest.raises(RunError, match=r"dataset stack cannot be read at \[0:60, 0:60, 0:60\)"):
        _whole(source)
    (tmp_path / "a.h5").write_bytes(data[:5000])
    with pytest.raises(RunError, match=r"a\.h5 cannot be read any more"):
        source.open()
    with pytest.raises(RequestError, match=r"a\.h5 is not an HDF5 file that can be read"):
        resolve_source(path, "stack", "zyx", "image")
    _hdf5(tmp_path / "a.h5", voxels[:50])
    with pytest.raises(RunError, match="dataset stack is not what was planned any more"):
        source.open()


# NPY


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_npy_of_any_shape_order_and_box(tmp_path_factory, data):
    shape = data.draw(st.tuples(*[st.integers(1, 8)] * 3))
    axes = data.draw(st.sampled_from(_PERMUTATIONS))
    dtype = data.draw(st.sampled_from(["<u8", ">u8", "<i4", ">u2"]))
    order = data.draw(st.sampled_from("CF"))
    voxels = _voxels(shape, dtype)
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, np.asarray(_stored(voxels, axes), order=order))
    source = resolve_source(str(path), None, axes, "segmentation")
    start = vec(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = vec(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    box = Box(start, stop)
    found = source.open().read(box)
    np.testing.assert_array_equal(found, voxels[box.slices(Box((0, 0, 0), shape))])
    assert found.dtype.isnative
    assert found.dtype.name == source.dtype
    assert decoded_bytes(source, box) == found.nbytes


def test_npy_keeps_ids_beyond_doubles(tmp_path):
    ids = np.array([2**53 + 1, 2**63 + 3, 2**64 - 1], np.uint64).reshape(3, 1, 1)
    source = resolve_source(_npy(tmp_path / "a.npy", ids), None, "xyz", "segmentation")
    assert _whole(source).ravel().tolist() == [2**53 + 1, 2**63 + 3, 2**64 - 1]


def test_npy_errors(tmp_path):
    objects_file = _npy(tmp_path / "o.npy", np.full((2, 2, 2), {}, object))
    with pytest.raises(RequestError, match=r"o\.npy holds Python objects, which are not read"):
        resolve_source(objects_file, None, "zyx", "image")
    path = _npy(tmp_path / "a.npy", _voxels())
    with pytest.raises(RequestError, match=r"a\.npy has shape \(7, 5, 4\) and no axes were given"):
        resolve_source(path, None, None, "image")
    with pytest.raises(RequestError, match="--dataset stack was given for .* which is an NPY file"):
        resolve_source(path, "stack", "zyx", "image")
    source = resolve_source(path, None, "xyz", "image")
    cut(tmp_path / "a.npy", 200)
    with pytest.raises(RequestError, match=r"a\.npy is not a whole NPY file"):
        resolve_source(path, None, "xyz", "image")
    with pytest.raises(RunError, match=r"a\.npy cannot be read any more"):
        source.open()
    _npy(tmp_path / "a.npy", _voxels((7, 5, 5)))
    with pytest.raises(RunError, match=r"now holds uint8 of shape \(7, 5, 5\), which is not what"):
        source.open()


# All kinds


@pytest.mark.parametrize(
    ("dtype", "kind", "message"),
    [
        (np.float32, "image", "has dtype float32; an image is uint8 or uint16"),
        (np.int16, "image", "has dtype int16; an image is uint8 or uint16"),
        (np.bool_, "image", "has dtype bool; an image is uint8 or uint16"),
        (np.uint64, "image", "or say --kind segmentation if it holds ids"),
        (np.float64, "segmentation", "has dtype float64; ids are integers.*convert it to uint64"),
        (np.bool_, "segmentation", "has dtype bool; ids are integers"),
    ],
)
def test_dtypes_that_do_not_fit_the_kind(tmp_path, dtype, kind, message):
    array = np.ones((2, 3, 4), dtype)
    with pytest.raises(RequestError, match=message):
        resolve_source(_npy(tmp_path / "a.npy", array), None, "zyx", kind)
    with pytest.raises(RequestError, match=message):
        resolve_source(_hdf5(tmp_path / "a.h5", array), "stack", "zyx", kind)


def test_what_is_no_source(tmp_path):
    with pytest.raises(RequestError, match="none does not exist"):
        resolve_source(str(tmp_path / "none"), None, None, "image")
    (tmp_path / "a.h5").write_bytes(b"not HDF5 at all")
    with pytest.raises(
        RequestError,
        match=r"a\.h5 is neither an HDF5 nor an NPY file, nor TIFF, MRC or NIfTI \(it begins with "
        "b'not HDF5'",
    ):
        resolve_source(str(tmp_path / "a.h5"), "stack", "zyx", "image")
    np.savez(tmp_path / "a.npz", a=_voxels())
    with pytest.raises(RequestError, match=r"a\.npz is neither an HDF5 nor an NPY file"):
        resolve_source(str(tmp_path / "a.npz"), None, "zyx", "image")
    with pytest.raises(RequestError, match=r"https://a\.org/b\.h5 is remote and no directory"):
        resolve_source("https://a.org/b.h5", "stack", "zyx", "image")


def test_an_address_with_a_secret_is_refused_without_it():
    with pytest.raises(RequestError, match=r"the address s3://bucket/em was given with") as caught:
        resolve_source("s3://user:pass7@bucket/em?token=s3cr3t", None, None, "image")
    assert "s3cr3t" not in str(caught.value)
    assert "pass7" not in str(caught.value)


def test_sources_travel_as_pickles_and_land_in_json(tmp_path):
    write_sections(tmp_path / "em", _voxels())
    h5 = _hdf5(tmp_path / "a.h5", _voxels(), chunks=(2, 2, 2))
    npy = _npy(tmp_path / "a.npy", _voxels())
    found = [
        resolve_source(str(tmp_path / "em"), None, None, "image"),
        resolve_source(h5, "stack", "zyx", "image"),
        resolve_source(npy, None, "xyz", "image"),
    ]
    for source, kind in zip(found, ["sections", "hdf5", "npy"], strict=True):
        copy = pickle.loads(pickle.dumps(source))
        assert copy == source
        assert hash(copy) == hash(source)
        np.testing.assert_array_equal(_whole(copy), _voxels())
        document = json.loads(json.dumps(source.to_json()))
        assert document["type"] == kind
        assert document["shape"] == [7, 5, 4]
        assert source.url in source.lines()[0]
        reader = source.open()
        assert reader.stamps(Box((0, 0, 0), (1, 1, 1)))
        reader.close()


@given(
    extent=st.tuples(*[st.integers(1, 50)] * 3),
    unit=st.tuples(*[st.integers(1, 9)] * 3),
    limit=st.integers(1, 40_000),
    order=st.permutations([0, 1, 2]),
)
def test_whole_units_are_whole_and_within_the_limit(extent, unit, limit, order):
    found = whole_units(extent, unit, limit, tuple(order))
    assert all(f % u == 0 for f, u in zip(found, unit, strict=True))
    assert np.prod(found) <= limit or found == unit
    if np.prod([-(-n // u) * u for n, u in zip(extent, unit, strict=True)]) <= limit:
        assert all(f >= n for f, n in zip(found, extent, strict=True))
