"""Codecs: their names and levels, who takes them, and that all come back out of what is stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import tells_of_quality
from tests.volumes.writing.layouts import layout_of, made
from volumes.errors import RequestError
from volumes.opening import open_volume
from volumes.reading import read_box
from volumes.resolving import resolve_volume
from volumes.writing import Codec, write_box
from volumes.writing.arrays import stored_codec
from volumes.writing.codecs import (
    FORMATS,
    LOSSY,
    SHARDED,
    candidates,
    check_codec,
    codec_in,
    default_codec,
)

_LEVELS = {
    "zstd": (1, 22, 3),
    "gzip": (0, 9, 6),
    "blosc-lz4": (0, 9, 5),
    "blosc-zstd": (0, 9, 5),
    "bzip2": (1, 9, 9),
    "xz": (0, 9, 6),
    "png": (0, 9, 6),
    "jpeg": (1, 100, 90),
    "compressed_segmentation": (8, 16, 8),
}
_NAMES = ("raw", *_LEVELS)
_DTYPES = ("uint8", "uint16", "uint32", "uint64")

# By the table of the module: each format with the codecs it takes for a type and with shards.
_TAKEN = {
    "zarr2": {"raw", "zstd", "gzip", "blosc-lz4", "blosc-zstd", "bzip2"},
    "zarr3": {"raw", "zstd", "gzip", "blosc-lz4", "blosc-zstd"},
    "ome-zarr": {"raw", "zstd", "gzip", "blosc-lz4", "blosc-zstd"},
    "n5": {"raw", "zstd", "gzip", "blosc-lz4", "blosc-zstd", "bzip2", "xz"},
    "precomputed": {"raw", "gzip", "png", "jpeg", "compressed_segmentation"},
}


def _takes(form, name, dtype, sharded):
    fits = {"png": _DTYPES[:2], "jpeg": _DTYPES[:1], "compressed_segmentation": _DTYPES[2:]}
    loose_gzip = form == "precomputed" and name == "gzip" and not sharded
    return name in _TAKEN[form] and dtype in fits.get(name, (dtype,)) and not loose_gzip


def _cases():
    """Every format with and without shards, with each codec and a type that it takes."""
    for form in FORMATS:
        for sharded in (False, True) if form in SHARDED else (False,):
            for name in _NAMES:
                for dtype in _DTYPES:
                    if _takes(form, name, dtype, sharded):
                        yield form, sharded, name, dtype


@pytest.mark.parametrize("name", _LEVELS)
def test_names_and_levels(name):
    lowest, highest, default = _LEVELS[name]
    assert Codec.parse(name) == Codec(name, default)
    assert Codec.parse(f"{name}:{lowest}") == Codec(name, lowest)
    assert Codec.parse(f"{name}:{highest}") == Codec(name, highest)
    assert Codec(name, 5).lossy == (name in LOSSY) == (name == "jpeg")


def test_the_codec_without_a_level_and_the_short_name():
    assert Codec.parse("raw") == Codec("raw")
    assert Codec.parse("cseg:16") == Codec("compressed_segmentation", 16)
    assert Codec.parse("cseg") == Codec("compressed_segmentation", 8)


@given(st.sampled_from(sorted(_LEVELS)), st.integers(1, 9))
def test_a_codec_is_its_own_name(name, level):
    level = 8 if name == "compressed_segmentation" else level
    codec = Codec.parse(f"{name}:{level}")
    assert Codec.parse(str(codec)) == codec
    assert str(Codec("raw")) == "raw"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lzma", "--codec lzma is no codec known here; give one of raw, zstd, gzip, blosc-lz4, "),
        ("", "--codec  is no codec known here; give one of raw, zstd, "),
        ("ZSTD:3", "--codec ZSTD:3 is no codec known here"),
        ("raw:1", "--codec raw:1: raw has no level; leave :1 out"),
        ("raw:", "--codec raw:: raw has no level; leave : out"),
        ("zstd:23", "--codec zstd:23: the level of zstd is a number from 1 to 22; give zstd:3"),
        ("zstd:0", "--codec zstd:0: the level of zstd is a number from 1 to 22; give zstd:3"),
        ("zstd:-1", "--codec zstd:-1: the level of zstd is a number from 1 to 22; give zstd:3"),
        ("zstd:", "--codec zstd:: the level of zstd is a number from 1 to 22; give zstd:3"),
        ("zstd:3:4", "--codec zstd:3:4: the level of zstd is a number from 1 to 22"),
        ("gzip:fast", "--codec gzip:fast: the level of gzip is a number from 0 to 9; give gzip:6"),
        ("gzip:²", "--codec gzip:²: the level of gzip is a number from 0 to 9; give gzip:6"),
        ("jpeg:0", "--codec jpeg:0: the level of jpeg is a number from 1 to 100; give jpeg:90"),
        ("cseg:9", "--codec cseg:9: the block of compressed_segmentation is 8 or 16 voxels a side"),
        ("cseg:4", "--codec cseg:4: the level of compressed_segmentation is a number from 8 to 16"),
    ],
)
def test_codecs_that_there_are_not(text, message):
    with pytest.raises(RequestError) as caught:
        Codec.parse(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [*_DTYPES, "float32"])
def test_who_takes_what(form, sharded, dtype):
    for name in _NAMES:
        codec = Codec.parse(name)
        if _takes(form, name, dtype, sharded):
            check_codec(codec, form, dtype, sharded=sharded)
            continue
        with pytest.raises(RequestError) as caught:
            check_codec(codec, form, dtype, sharded=sharded)
        told = str(caught.value)
        assert told.startswith(f"--codec {codec} does not fit: ")
        fitting = told.partition("give one of ")[2].split(", ")
        assert fitting == [n for n in _NAMES if _takes(form, n, dtype, sharded)]
    for kind in ("image", "segmentation"):
        default = default_codec(form, kind, dtype, sharded=sharded)
        tried = candidates(form, kind, dtype, sharded=sharded)
        assert Codec("raw") in tried
        assert not any(c.lossy for c in (default, *tried))
        for codec in (default, *tried):
            check_codec(codec, form, dtype, sharded=sharded)


@pytest.mark.parametrize(
    ("name", "form", "dtype", "sharded", "why"),
    [
        ("zstd", "precomputed", "uint8", False, "--format precomputed has no zstd"),
        ("png", "zarr3", "uint8", True, "--format zarr3 has no png"),
        ("jpeg", "precomputed", "uint16", False, "jpeg holds uint8 voxels and these are uint16"),
        ("png", "precomputed", "int8", True, "png holds uint8 or uint16 voxels and these are int8"),
        ("gzip", "precomputed", "uint8", False, "precomputed has gzip inside shards only"),
        ("gzip:1", "precomputed", "uint8", True, "precomputed states no level of gzip, and 6 is"),
    ],
)
def test_the_refusal_says_why(name, form, dtype, sharded, why):
    with pytest.raises(RequestError, match=why):
        check_codec(Codec.parse(name), form, dtype, sharded=sharded)


@pytest.mark.parametrize(("form", "sharded", "name", "dtype"), list(_cases()))
def test_what_is_written_with_a_codec_is_read_and_tells_it(tmp_path, form, sharded, name, dtype):
    codec = Codec.parse(name)
    layout = layout_of(
        format=form,
        dtype=dtype,
        kind="segmentation",
        shape=(17, 9, 10),
        chunk=(8, 8, 8),
        shard=(16, 8, 8) if sharded else None,
        codec=codec,
    )
    volume = made(tmp_path, layout)
    ramp = np.arange(1, 17 * 9 * 10 + 1).reshape(layout.shape)
    voxels = (ramp // 12 + 1).astype(dtype) if dtype == "uint8" else ramp.astype(dtype)
    write_box(volume, layout.domain, voxels)
    spec = resolve_volume(str(tmp_path), kind=None)
    found = read_box(open_volume(spec), spec.domain, missing="error").array
    if codec.lossy:
        assert np.abs(found.astype(int) - voxels).max() <= 12
    else:
        np.testing.assert_array_equal(found, voxels)
    if name not in ("png", "jpeg") or tells_of_quality():
        assert stored_codec(volume) == stored_codec(open_volume(spec)) == codec
    if name not in ("raw", "compressed_segmentation") and dtype == "uint64":
        stored = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
        assert stored < voxels.nbytes


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("level", ["lowest", "highest"])
def test_levels_at_their_ends_come_back(tmp_path, form, level):
    for name in sorted(_TAKEN[form] & set(_LEVELS)):
        value = _LEVELS[name][level == "highest"]
        if name == "gzip" and form == "precomputed":
            value = 6  # inside shards gzip has one level
        dtype = "uint64" if name == "compressed_segmentation" else "uint8"
        layout = layout_of(
            format=form,
            dtype=dtype,
            chunk=(8, 8, 8),
            shard=(16, 8, 8) if (form, name) == ("precomputed", "gzip") else None,
            codec=Codec.parse(f"{name}:{value}"),
        )
        volume = made(tmp_path / name, layout)
        if name not in ("png", "jpeg") or tells_of_quality():
            assert stored_codec(volume) == layout.codec, name


@pytest.mark.parametrize(
    ("compression", "codec"),
    [
        ({"type": "gzip", "level": -1}, Codec("gzip", 6)),  # what N5 has as its default
        ({"type": "gzip"}, Codec("gzip", 6)),
        ({"type": "gzip", "level": 0}, Codec("gzip", 0)),
        ({"type": "zstd", "level": -7}, Codec("zstd", 3)),
    ],
)
def test_levels_of_others_that_cannot_be_written_here(compression, codec):
    document = {"driver": "n5", "metadata": {"compression": compression}}
    assert codec_in(document) == codec


def test_codecs_of_others_are_none():
    blosc = {"name": "blosc", "configuration": {"cname": "snappy", "clevel": 5}}
    assert codec_in({"driver": "zarr3", "metadata": {"codecs": [{"name": "bytes"}, blosc]}}) is None
    assert codec_in({"driver": "zarr", "metadata": {"compressor": {"id": "lz9"}}}) is None
    assert codec_in({"driver": "n5", "metadata": {"compression": {"type": "jxl"}}}) is None
    assert codec_in({"driver": "array"}) is None
    scale = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 4]}
    assert codec_in({"driver": "neuroglancer_precomputed", "scale_metadata": scale}) is None
