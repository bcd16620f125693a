import contextlib
import io
import json
import pickle
import threading

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.volumes.section_files import cut, filled, write_section, write_sections
from volumes import objects
from volumes.errors import RequestError, RunError
from volumes.geometry import Box
from volumes.sources import images, remote, resolve_source
from volumes.sources.headers import ImageError
from volumes.sources.numbering import LISTED, Missing, gaps, standing_for


def _resolve(path, kind="image", **options):
    return resolve_source(str(path), None, None, kind, **options)


def _whole(source):
    with contextlib.closing(source.open()) as reader:
        return reader.read(Box((0, 0, 0), source.shape))


def _smooth(shape=(40, 30, 3)):
    x, y, z = np.indices(shape)
    return (x * 3 + y * 2 + z * 20).astype(np.uint8)


# Formats


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int32])
def test_tiff_sections_of_labels_keep_their_dtype(tmp_path, dtype):
    top = np.iinfo(dtype).max
    voxels = dtype(top) - filled(dtype=dtype)
    write_sections(tmp_path, voxels, name="seg_{:03d}.tif")
    source = _resolve(tmp_path, "segmentation")
    assert source.dtype == np.dtype(dtype).name
    assert source.lines() == (f"4 TIFF sections 1 to 4 in {tmp_path}",)
    np.testing.assert_array_equal(_whole(source), voxels)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"tile": (16, 32)},
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 7, "compression": "lzma"},
        {"rowsperstrip": 7, "compression": "packbits"},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_sections_tiled_striped_big_and_compressed(tmp_path, options, dtype):
    if options.get("compression") == "packbits":
        path = tmp_path / "em.1.tif"
        pixels = np.ascontiguousarray(_smooth()[:, :, 0].T).astype(dtype)
        Image.fromarray(pixels).save(path, compression="packbits")
        assert tifffile.imread(path).dtype == dtype
        np.testing.assert_array_equal(_whole(_resolve(tmp_path))[:, :, 0], pixels.T)
        return
    voxels = _smooth((70, 45, 3)).astype(dtype) * dtype(1 if dtype == np.uint8 else 250)
    for z in range(3):
        tifffile.imwrite(
            tmp_path / f"em.{z}.tif", voxels[:, :, z].T, photometric="minisblack", **options
        )
    source = _resolve(tmp_path)
    np.testing.assert_array_equal(_whole(source), voxels)
    box = Box((17, 3, 1), (65, 44, 3))
    np.testing.assert_array_equal(source.open().read(box), voxels[17:65, 3:44, 1:3])


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_adobe_deflate"])
def test_compressions_that_pillow_undoes(tmp_path, compression):
    voxels = _smooth()
    for z in range(3):
        image = Image.fromarray(np.ascontiguousarray(voxels[:, :, z].T))
        image.save(tmp_path / f"em.{z}.tif", compression=compression)
    tolerance = 12 if compression == "jpeg" else 0
    found = _whole(_resolve(tmp_path)).astype(int)
    assert np.abs(found - voxels).max() <= tolerance
    expected = [np.asarray(Image.open(tmp_path / f"em.{z}.tif")).T for z in range(3)]
    np.testing.assert_array_equal(found, np.stack(expected, 2))


def test_jpeg_sections_are_what_pillow_decodes_and_are_no_ids(tmp_path):
    voxels = _smooth()
    paths = write_sections(tmp_path, voxels, name="em{}.jpg")
    found = _whole(_resolve(tmp_path))
    np.testing.assert_array_equal(found, np.stack([np.asarray(Image.open(p)).T for p in paths], 2))
    assert np.abs(found.astype(int) - voxels).max() < 12
    with pytest.raises(RequestError, match=r"em1\.jpg is JPEG, which changes values.*ids would"):
        _resolve(tmp_path, "segmentation")


def test_formats_are_told_by_content_and_may_be_mixed(tmp_path):
    voxels = _smooth((20, 10, 5))
    write_section(tmp_path / "a.1.png", voxels[:, :, 0])
    write_section(tmp_path / "a.2.tif", voxels[:, :, 1])
    write_section(tmp_path / "b.tif", voxels[:, :, 2])
    (tmp_path / "b.tif").rename(tmp_path / "a.3.png")  # TIFF that says PNG
    write_section(tmp_path / "c.png", voxels[:, :, 3])
    (tmp_path / "c.png").rename(tmp_path / "a.4.dat")  # PNG of no known name
    write_section(tmp_path / "a.5.jpeg", voxels[:, :, 4])
    (tmp_path / "notes.6.txt").write_text("no image")
    source = _resolve(tmp_path)
    assert source.lines() == (
        f"5 sections (1 JPEG, 2 PNG, 2 TIFF) 1 to 5 in {tmp_path}",
        "ignored: 1 file that is no image (such as notes.6.txt)",
    )
    np.testing.assert_array_equal(_whole(source)[:, :, :4], voxels[:, :, :4])
    write_section(tmp_path / "a.2.tif", voxels[:, :, 1].astype(np.uint16))
    with pytest.raises(
        RequestError,
        match=r"a\.2\.tif is 20 x 10 pixels of uint16, but a\.1\.png is 20 x 10 pixels of uint8",
    ):
        _resolve(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (np.zeros((4, 5, 3), np.uint8), {"photometric": "rgb"}, "RGB with 3 samples with 8 bits"),
        (np.zeros((4, 5), np.uint8), {"photometric": "miniswhite"}, "grey with white as 0 with 8"),
        (np.zeros((4, 5), bool), {}, "grey with 1 bits a sample"),
        (np.zeros((4, 5), np.complex64), {}, "grey with 64 bits a sample"),
        (np.zeros((4, 5), np.float32), {}, "has dtype float32; an image is uint8 or uint16"),
        (np.zeros((3, 4, 5), np.uint8), {}, "holds 3 pages; a section is a file of one page"),
    ],
)
def test_tiff_sections_that_are_none(tmp_path, pixels, options, message):
    options = {"photometric": "minisblack"} | options
    tifffile.imwrite(tmp_path / "em.1.tif", pixels, metadata=None, **options)
    with pytest.raises(RequestError, match=message):
        _resolve(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_colour_jpegs_are_refused_by_name(tmp_path, mode):
    Image.fromarray(_smooth()[:, :, 0]).convert(mode).save(tmp_path / "em.1.jpg")
    named = {"RGB": "colour", "CMYK": "CMYK"}[mode]
    with pytest.raises(RequestError, match=rf"em\.1\.jpg is {named} with 8 bits a sample"):
        _resolve(tmp_path)


def test_a_compression_that_nobody_undoes_is_named(tmp_path):
    write_section(tmp_path / "em.1.tif", _smooth()[:, :, 0])
    data = bytearray((tmp_path / "em.1.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "em.1.tif") as file:
        at = file.pages.first.tags["Compression"].valueoffset
    data[at : at + 2] = (34712).to_bytes(2, "little")
    (tmp_path / "em.1.tif").write_bytes(data)
    with pytest.raises(
        RequestError,
        match=r"em\.1\.tif is compressed with JPEG2000, which is not undone here for uint8; write "
        r"it again without compression or with Deflate",
    ):
        _resolve(tmp_path)


# Damage


def _encoded(pixels, extension, **options):
    data = io.BytesIO()
    if extension == "tif":
        tifffile.imwrite(data, pixels, photometric="minisblack", **options)
    else:
        Image.fromarray(pixels).save(data, "JPEG", **options)
    return data.getvalue()


@pytest.mark.parametrize(
    ("extension", "options"),
    [
        ("jpg", {}),
        ("jpg", {"progressive": True}),
        ("tif", {}),
        ("tif", {"tile": (16, 16), "compression": "zlib"}),
        ("tif", {"rowsperstrip": 8, "bigtiff": True}),
    ],
)
def test_every_cut_of_a_section_is_noticed(extension, options):
    pixels = np.random.default_rng(5).integers(0, 255, (40, 50), np.uint8)
    data = _encoded(pixels, extension, **options)
    expected = images.decode(data)
    assert expected.shape == (40, 50)
    for keep in [*range(0, 300, 11), *range(300, len(data), 97), len(data) - 1]:
        try:
            found = images.decode(data[:keep])
        except ImageError:
            continue
        # What was cut off held no pixels.
        np.testing.assert_array_equal(found, expected)
        assert keep > len(data) * 0.9


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 3000), bit=st.integers(0, 7), kind=st.sampled_from(["jpg", "tif"]))
def test_a_flipped_bit_is_an_error_or_an_array_and_never_a_crash(at, bit, kind):
    pixels = np.random.default_rng(5).integers(0, 255, (40, 50), np.uint8)
    data = bytearray(_encoded(pixels, kind, **({"compression": "zlib"} if kind == "tif" else {})))
    data[at % len(data)] ^= 1 << bit
    try:
        images.header(io.BytesIO(bytes(data)))
        found = images.decode(bytes(data))
    except ImageError:
        return
    assert found.ndim == 2


def test_a_tiff_section_cut_after_the_plan_is_named(tmp_path):
    paths = write_sections(tmp_path, _smooth(), name="em.{}.tif")
    source = _resolve(tmp_path)
    reader = source.open()
    whole = cut(paths[1], 800)
    with pytest.raises(RunError, match=r"em\.2\.tif is cut short: it ends at byte 800, before its"):
        reader.read(Box((0, 0, 0), source.shape))
    with pytest.raises(RunError, match="read again|run the same command again"):
        reader.read(Box((0, 0, 1), (3, 3, 2)))
    paths[1].write_bytes(whole)
    np.testing.assert_array_equal(reader.read(Box((0, 0, 0), source.shape)), _smooth())


# Missing sections


@pytest.mark.parametrize("policy", ["blank", "nearest"])
def test_missing_sections_are_filled_and_told(tmp_path, policy):
    voxels = filled((6, 5, 9), np.uint16)
    paths = write_sections(tmp_path, voxels, first=5)
    for z in (2, 5, 6):  # 7, 10 and 11
        paths[z].unlink()
    source = _resolve(tmp_path, missing=policy)
    expected = voxels.copy()
    if policy == "blank":
        expected[:, :, [2, 5, 6]] = 0
        words = "filled with zeros"
    else:
        expected[:, :, [2, 5, 6]] = voxels[:, :, [1, 4, 7]]
        words = "filled with copies of the nearest section, the one before where two are as near"
    assert source.shape == (6, 5, 9)
    assert source.lines() == (
        f"6 PNG sections 5 to 13 in {tmp_path}",
        f"missing: 3 sections (7, 10-11), {words}",
    )
    document = json.loads(json.dumps(source.to_json()))["missing"]
    digest = document.pop("digest")
    assert document == {
        "policy": policy, "count": 3, "ranges": [[7, 7], [10, 11]], "more_ranges": 0
    }  # fmt: skip
    reader = pickle.loads(pickle.dumps(source)).open()
    np.testing.assert_array_equal(reader.read(Box((0, 0, 0), (6, 5, 9))), expected)
    assert reader.absent == 3 * 30
    assert reader.read(Box((1, 1, 5), (3, 3, 6)))[0, 0, 0] == expected[1, 1, 5]
    assert reader.absent == 4
    reader.read(Box((0, 0, 0), (6, 5, 2)))
    assert reader.absent == 0
    # A section that is supplied later is another description, and moves the stamps of its box.
    before = reader.stamps(Box((0, 0, 4), (6, 5, 6)))
    assert [n for n, _ in before] == ["em.9.png"]
    write_section(paths[5], voxels[:, :, 5])
    with pytest.raises(RunError, match="no longer holds the sections that were planned"):
        source.open()
    again = _resolve(tmp_path, missing=policy)
    assert again.missing.digest != digest
    assert again.open().stamps(Box((0, 0, 4), (6, 5, 6))) != before


def test_without_a_policy_missing_sections_are_refused_with_the_ways_out(tmp_path):
    paths = write_sections(tmp_path, filled())
    paths[1].unlink()
    with pytest.raises(
        RequestError,
        match=r"section 2 is missing between 1 and 4; .*--missing-sections blank \(zeros\) or near",
    ):
        _resolve(tmp_path)
    with pytest.raises(RequestError, match=r"--missing-sections skip is unknown; give one of refu"):
        _resolve(tmp_path, missing="skip")


def test_a_corrupt_section_is_an_error_under_any_policy(tmp_path):
    paths = write_sections(tmp_path, filled((64, 64, 4)))
    paths[1].unlink()
    source = _resolve(tmp_path, missing="blank")
    cut(paths[2], 60)
    with pytest.raises(RunError, match=r"em\.3\.png is cut short: it ends at byte 60"):
        _whole(source)
    cut(paths[2], 20)
    with pytest.raises(RequestError, match=r"em\.3\.png ends within its header, after 20 bytes"):
        _resolve(tmp_path, missing="nearest")


def test_many_and_large_gaps_make_a_small_description(tmp_path):
    numbers = [*range(0, 4000, 2), 10**12]
    missing = Missing.of(numbers, "blank")
    assert missing.count == 1999 + (10**12 - 3999)
    assert len(missing.runs) == LISTED
    assert len(json.dumps(missing.to_json())) < 400
    assert missing.line().startswith(f"missing: {missing.count} sections (1, 3, 5, 7, 9, 11, 13")
    assert "19 and 1990 more gaps), filled with zeros" in missing.line()
    write_section(tmp_path / "em.1.png", filled()[:, :, 0])
    write_section(tmp_path / "em.1000000000.png", filled()[:, :, 1])
    source = _resolve(tmp_path, missing="nearest")
    assert source.shape == (7, 5, 10**9)
    found = source.open().read(Box((0, 0, 499_999_998), (7, 5, 500_000_001)))
    # Number 500,000,000 is nearer to 1; 500,000,001 is the first that is not.
    expected = filled()[:, :, [0, 0, 1]]
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_filling_is_what_an_oracle_fills(tmp_path_factory, data):
    numbers = sorted(data.draw(st.sets(st.integers(0, 24), min_size=1, max_size=9)))
    policy = data.draw(st.sampled_from(["blank", "nearest"]))
    directory = tmp_path_factory.mktemp("gaps")
    stored = {n: np.full((3, 2), n + 1, np.uint8) for n in numbers}
    for n, section in stored.items():
        write_section(directory / f"s{n}.tif", section)
    source = resolve_source(str(directory), None, None, "image", missing=policy)
    span = range(numbers[0], numbers[-1] + 1)
    oracle = []
    for n in span:
        nearest = min(numbers, key=lambda m: (abs(m - n), m))
        blank = n not in stored and policy == "blank"
        oracle.append(np.zeros((3, 2), np.uint8) if blank else stored[nearest])
    first = data.draw(st.integers(0, len(span) - 1))
    last = data.draw(st.integers(first + 1, len(span)))
    box = Box((0, 0, first), (3, 2, last))
    reader = source.open()
    np.testing.assert_array_equal(reader.read(box), np.stack(oracle[first:last], 2))
    lacking = [n for n in span if n not in stored]
    assert reader.absent == 6 * sum(1 for n in span[first:last] if n not in stored)
    assert source.missing.count == len(lacking)
    assert [n for a, b in gaps(numbers) for n in range(a, b + 1)] == lacking
    assert all(standing_for(numbers, n, "blank") is None for n in lacking)


# In a bucket


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A directory behind TensorStore's door for remote ones."""

    def kvstore(url):
        assert url.startswith("s3://bucket")
        inside = url.removeprefix("s3://bucket").strip("/")
        return {"driver": "file", "path": f"{tmp_path}/{inside}/"}

    monkeypatch.setattr(objects, "kvstore", kvstore)
    return tmp_path


def test_sections_of_all_formats_in_a_bucket(bucket):
    voxels = _smooth((60, 40, 6))
    (bucket / "em").mkdir()
    for z, extension in enumerate(["png", "tif", "jpg"] * 2):
        write_section(bucket / "em" / f"em {z}.{extension}", voxels[:, :, z])
    (bucket / "em" / "notes.txt").write_text("x")
    source = _resolve("s3://bucket/em")
    assert source.shape == (60, 40, 6)
    assert source.formats == (("JPEG", 2), ("PNG", 2), ("TIFF", 2))
    assert source.ignored_example == "notes.txt"
    local = _whole(_resolve(bucket / "em"))
    np.testing.assert_array_equal(_whole(source), local)
    np.testing.assert_array_equal(local[:, :, [0, 1, 3, 4]], voxels[:, :, [0, 1, 3, 4]])
    box = Box((0, 0, 0), source.shape)
    reader = source.open()
    before = reader.stamps(box)
    write_section(bucket / "em" / "em 4.tif", voxels[:, :, 0])
    assert [a != b for a, b in zip(reader.stamps(box), before, strict=True)] == [
        False, False, False, False, True, False
    ]  # fmt: skip
    cut(bucket / "em" / "em 1.tif", 30)
    with pytest.raises(RequestError, match=r"em%201\.tif has a damaged header|em%201\.tif is cut"):
        _resolve("s3://bucket/em")


def test_only_the_parts_of_a_remote_tiff_that_describe_it_are_read(bucket, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1400), np.uint8)
    (bucket / "em").mkdir()
    tifffile.imwrite(bucket / "em" / "em.1.tif", pixels, tile=(128, 128), photometric="minisblack")
    read = []
    lock = threading.Lock()
    fetched = remote.RemoteFile._fetched

    def watched(self, start):
        data = fetched(self, start)
        with lock:
            read.append(len(data))
        return data

    monkeypatch.setattr(remote.RemoteFile, "_fetched", watched)
    source = _resolve("s3://bucket/em")
    assert source.shape == (1400, 1500, 1)
    assert 0 < sum(read) <= 2 * remote.BLOCK_BYTES < pixels.nbytes / 4
    np.testing.assert_array_equal(_whole(source)[:, :, 0], pixels.T)


# What is no source of sections


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("zarr.json", "zarr3"),
        (".zarray", "zarr2"),
        (".zgroup", "zarr2"),
        ("attributes.json", "N5"),
        ("info", "neuroglancer precomputed"),
    ],
)
def test_a_volume_is_told_apart(tmp_path, marker, told):
    (tmp_path / marker).write_text("{}")
    with pytest.raises(
        RequestError,
        match=rf"is a volume \({told}\) already; .*use convert, as in segclr-beam convert --input",
    ):
        _resolve(tmp_path)


@pytest.mark.parametrize("url", ["gs://b/em/|zarr3:", '{"driver": "zarr3"}', "@spec.json"])
def test_a_tensorstore_url_or_spec_is_a_volume(url):
    with pytest.raises(RequestError, match=r"is a TensorStore spec or URL already; .*use convert"):
        _resolve(url)


def test_a_policy_for_missing_sections_needs_sections(tmp_path):
    np.save(tmp_path / "a.npy", filled())
    with pytest.raises(
        RequestError, match=r"--missing-sections blank was given for .*a\.npy, which is a file"
    ):
        resolve_source(str(tmp_path / "a.npy"), None, "xyz", "image", missing="blank")
