import hashlib
import itertools

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segclr.crops import Crop, crop_box, crop_digest, cut_crop, iter_crops
from tests.support import shared
from volumes.geometry import Box

DTYPES = [np.uint8, np.int16, np.uint32, np.int64, np.uint64]


def naive_crop(image, labels, box, voxel, segment_id, size):
    """The definition, voxel by voxel."""
    pixels = np.zeros((size, size, size), np.uint8)
    count = 0
    for k, j, i in itertools.product(range(size), repeat=3):
        at = tuple(v - size // 2 + d for v, d in zip(voxel, (i, j, k), strict=True))
        if box.contains(at):
            inside = tuple(a - o for a, o in zip(at, box.start, strict=True))
            if int(labels[inside]) == segment_id:
                pixels[k, j, i] = image[inside]
                count += 1
    return pixels, count


def test_the_published_crop_is_64_below_and_64_above_its_centre():
    assert crop_box((100, 0, -7), 129) == Box((36, -64, -71), (165, 65, 58))
    assert crop_box((0, 0, 0), 4) == Box((-2, -2, -2), (2, 2, 2))


def test_x_of_the_volume_is_the_last_axis_of_the_crop():
    image = np.zeros((7, 8, 9), np.uint8)
    image[4, 4, 4], image[5, 4, 4], image[4, 6, 4], image[4, 4, 1] = 9, 50, 60, 70
    labels = np.ones(image.shape, np.uint64)
    crop = cut_crop(image, labels, Box.of((10, 20, 30), image.shape), (14, 24, 34), 1, 7)
    assert crop.pixels[3, 3, 3] == 9
    assert crop.pixels[3, 3, 4] == 50
    assert crop.pixels[3, 5, 3] == 60
    assert crop.pixels[0, 3, 3] == 70
    assert np.count_nonzero(crop.pixels) == 4
    assert crop.pixels.flags.c_contiguous
    assert crop.pixels.dtype == np.uint8


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    start=st.tuples(*[st.integers(-20, 20)] * 3),
    size=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 1000),
)
def test_a_crop_is_its_definition_voxel_by_voxel(data, shape, start, size, dtype, order, seed):
    rng = np.random.default_rng(seed)
    image = np.asarray(rng.integers(0, 256, shape, dtype=np.uint8), order=order)
    labels = np.asarray(rng.integers(0, 3, shape).astype(dtype), order=order)
    box = Box.of(start, shape)
    voxel = tuple(data.draw(st.integers(a - 4, a + 9)) for a in start)
    crop = cut_crop(image, labels, box, voxel, 1, size)
    pixels, count = naive_crop(image, labels, box, voxel, 1, size)
    np.testing.assert_array_equal(crop.pixels, pixels)
    assert crop.mask_voxels == count


@pytest.mark.parametrize(
    ("dtype", "present", "asked", "matches"),
    [
        (np.uint64, 2**53, 2**53, True),
        (np.uint64, 2**53 + 1, 2**53, False),
        (np.uint64, 2**53, 2**53 + 1, False),
        (np.uint64, 2**63, 2**63, True),
        (np.uint64, 2**63 + 1, 2**63, False),
        (np.uint64, 2**64 - 1, 2**64 - 1, True),
        (np.int64, -1, 2**64 - 1, False),
        (np.int64, 2**53 + 1, 2**53, False),
        (np.int64, 2**63 - 1, 2**63 - 1, True),
        (np.uint32, 5, 2**32 + 5, False),
        (np.int32, -1, 2**32 - 1, False),
        (np.uint8, 1, 257, False),
        (np.uint8, 255, 255, True),
    ],
)
def test_ids_are_compared_as_exact_integers(dtype, present, asked, matches):
    labels = np.full((3, 3, 3), present, dtype)
    image = np.full((3, 3, 3), 7, np.uint8)
    crop = cut_crop(image, labels, Box.of((0, 0, 0), (3, 3, 3)), (1, 1, 1), asked, 3)
    assert crop.mask_voxels == (27 if matches else 0)
    assert crop.pixels.sum() == (27 * 7 if matches else 0)


def test_black_voxels_of_the_segment_count_as_mask():
    labels = np.ones((3, 3, 3), np.uint64)
    image = np.zeros((3, 3, 3), np.uint8)
    box = Box.of((0, 0, 0), (3, 3, 3))
    assert cut_crop(image, labels, box, (1, 1, 1), 1, 3).mask_voxels == 27
    assert cut_crop(image, labels, box, (0, 0, 0), 1, 3).mask_voxels == 8
    assert cut_crop(image, labels, box, (9, 9, 9), 1, 3).mask_voxels == 0


def test_crops_are_cut_when_they_are_asked_for():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    labels = np.full((3, 3, 3), 2**63 + 1, np.uint64)
    voxels = np.array([[1, 1, 1], [0, 1, 2]], np.int64)
    ids = np.array([2**63 + 1, 2**63], np.uint64)
    crops = iter_crops(image, labels, Box.of((0, 0, 0), (3, 3, 3)), voxels, ids, 1)
    first = next(crops)
    assert isinstance(first, Crop)
    assert (first.pixels.item(), first.mask_voxels) == (13, 1)
    image[:] = 0
    second = next(crops)
    assert (second.pixels.item(), second.mask_voxels) == (0, 0)
    assert next(crops, None) is None


def test_nodes_without_an_id_each_are_refused():
    image, labels = np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 3), np.uint64)
    box = Box.of((0, 0, 0), (3, 3, 3))
    with pytest.raises(ValueError, match="shorter"):
        list(iter_crops(image, labels, box, np.zeros((2, 3), np.int64), np.zeros(1, np.uint64), 1))


def test_arrays_that_do_not_fill_the_box_are_refused():
    image, labels = np.zeros((3, 3, 4), np.uint8), np.zeros((3, 3, 3), np.uint64)
    box = Box.of((0, 0, 0), (3, 3, 3))
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3\), got \(3, 3, 4\) and \(3, 3, 3\)"):
        cut_crop(image, labels, box, (1, 1, 1), 1, 3)
    with pytest.raises(ValueError, match="got uint16 and uint64"):
        cut_crop(np.zeros((3, 3, 3), np.uint16), labels, box, (1, 1, 1), 1, 3)
    with pytest.raises(ValueError, match="got uint8 and float32"):
        cut_crop(image[:, :, :3], labels.astype(np.float32), box, (1, 1, 1), 1, 3)


def test_a_digest_is_of_the_values_in_zyx():
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    digest = crop_digest(pixels)
    assert digest == hashlib.blake2b(bytes(range(27)), digest_size=16).digest()
    assert crop_digest(np.asfortranarray(pixels)) == digest
    assert crop_digest(pixels.T) != digest


def test_the_reference_crops_are_reproduced_bit_for_bit():
    expected = np.load(shared("reference", "segclr_crops.npz"), allow_pickle=False)
    sections = sorted(shared("data", "fib25", "em").glob("iso.*.png"))
    image = np.stack([np.asarray(Image.open(section)) for section in sections]).T
    with h5py.File(shared("data", "fib25", "groundtruth.h5")) as file:
        labels = file["stack"][:].T
    box = Box.of((0, 0, 0), image.shape)
    voxels = np.ascontiguousarray(expected["center_zyx"][:, ::-1]).astype(np.int64)
    ids = expected["segment_id"].astype(np.uint64)
    crops = list(iter_crops(image, labels, box, voxels, ids, 129))
    assert len(crops) == len(expected["crops"]) == 2
    for crop, reference in zip(crops, expected["crops"], strict=True):
        np.testing.assert_array_equal(crop.pixels, reference)
        assert 0.14 < crop.mask_voxels / 129**3 < 0.19
