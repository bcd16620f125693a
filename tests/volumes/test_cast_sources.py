import json
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volumes.errors import RequestError, RunError
from volumes.geometry import Box
from volumes.sources import CAST_DTYPES, casting, resolve_source


def _resolve(path, array, kind="segmentation", **options):
    np.save(path, array)
    return resolve_source(str(path), None, "xyz", kind, **options)


def _whole(source):
    return source.open().read(Box((0, 0, 0), source.shape))


@pytest.mark.parametrize("stored", ["uint64", "int64", "int16", "float64", "float32", "uint8"])
@pytest.mark.parametrize("asked", CAST_DTYPES)
def test_labels_wider_or_narrower_than_they_need(tmp_path, stored, asked):
    labels = (np.arange(60).reshape(5, 4, 3) * 2).astype(stored)
    source = _resolve(tmp_path / "a.npy", labels, dtype=asked)
    assert source.dtype == asked
    found = pickle.loads(pickle.dumps(source)).open().read(Box((1, 0, 1), (5, 4, 3)))
    assert found.dtype == asked
    np.testing.assert_array_equal(found, labels[1:, :, 1:])
    if stored != asked:
        assert source.lines()[-1] == (
            f"{stored} voxels become {asked}; one whose value that does not hold is an error"
        )
        document = json.loads(json.dumps(source.to_json()))
        assert (document["dtype"], document["stored_dtype"]) == (asked, stored)


def test_by_default_the_dtype_stays(tmp_path):
    labels = np.ones((2, 3, 4), np.uint64)
    assert _resolve(tmp_path / "a.npy", labels).dtype == "uint64"


@pytest.mark.parametrize(
    ("value", "stored", "asked", "told"),
    [
        (256, "uint64", "uint8", "256"),
        (2**32, "uint64", "uint32", "4294967296"),
        (2**64 - 1, "uint64", "uint32", "18446744073709551615"),
        (-1, "int64", "uint64", "-1"),
        (-1, "int8", "uint8", "-1"),
        (2.5, "float32", "uint8", "2.5"),
        (np.nan, "float64", "uint64", "nan"),
        (np.inf, "float64", "uint64", "inf"),
        (2.0**64, "float64", "uint64", "18446744073709551616.0|1.8446744073709552e\\+19"),
        (65536, "float32", "uint16", "65536.0"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_voxel(tmp_path, value, stored, asked, told):
    labels = np.zeros((5, 4, 3), stored)
    labels[3, 2, 1] = value
    source = _resolve(tmp_path / "a.npy", labels, dtype=asked)
    with pytest.raises(
        RunError,
        match=rf"a\.npy holds ({told}) at voxel \(3, 2, 1\) \(x, y, z\), in "
        + re.escape("[0:5, 0:4, 0:3)")
        + rf"; {asked} holds whole numbers from 0 to {np.iinfo(asked).max}, .*wider --dtype",
    ):
        source.open().read(Box((0, 0, 0), (5, 4, 3)))
    np.testing.assert_array_equal(source.open().read(Box((0, 0, 0), (3, 4, 3))), 0)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-3, 2**64 - 1) | st.integers(0, 300), min_size=1, max_size=6),
    asked=st.sampled_from(CAST_DTYPES),
)
def test_integers_are_kept_exactly_or_refused(values, asked):
    stored = np.int64 if min(values) < 0 else np.uint64
    values = [min(v, 2**63 - 1) for v in values] if stored is np.int64 else values
    array = np.array(values, stored).reshape(-1, 1, 1)
    box = Box((0, 0, 0), array.shape)
    if all(0 <= v <= np.iinfo(asked).max for v in values):
        assert casting.cast(array, asked, box, "it").ravel().tolist() == values
    else:
        with pytest.raises(RunError, match="it holds"):
            casting.cast(array, asked, box, "it")


def test_images_of_other_scales_need_whole_values(tmp_path):
    grey = np.arange(60).reshape(5, 4, 3)
    source = _resolve(tmp_path / "a.npy", grey.astype(np.int16), "image", dtype="uint16")
    np.testing.assert_array_equal(_whole(source), grey)
    with pytest.raises(RequestError, match=r"has dtype float32; an image is .* give --dtype if it"):
        _resolve(tmp_path / "a.npy", grey.astype(np.float32), "image")
    with pytest.raises(
        RequestError, match=r"--dtype uint32 is no dtype of a volume of kind image; give one of uin"
    ):
        _resolve(tmp_path / "a.npy", grey.astype(np.uint32), "image", dtype="uint32")
    with pytest.raises(RequestError, match=r"--dtype float32 is no dtype of a volume of kind segm"):
        _resolve(tmp_path / "a.npy", grey, dtype="float32")
    with pytest.raises(RequestError, match="has dtype bool; ids are integers"):
        _resolve(tmp_path / "a.npy", grey > 3, dtype="uint8")


def test_what_is_cast_at_a_time_is_bounded(tmp_path, monkeypatch):
    labels = np.arange(4000).reshape(20, 20, 10).astype(np.uint64)
    monkeypatch.setattr(casting, "READ_BYTES", 8 * 900)
    source = _resolve(tmp_path / "a.npy", labels, dtype="uint16")
    reader = source.open()
    read = []
    real = reader._reader.read

    def watched(box):
        read.append(box.size)
        return real(box)

    reader._reader.read = watched
    np.testing.assert_array_equal(reader.read(Box((0, 0, 0), (20, 20, 10))), labels)
    assert max(read) <= 900
    assert sum(read) == 4000
    assert source.scratch_bytes == 3 * 8 * 900
