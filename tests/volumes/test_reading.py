import itertools
import json

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes import sample_volumes as made
from volumes.errors import RunError
from volumes.geometry import Box
from volumes.opening import Volume, open_volume, resolve_volume
from volumes.reading import (
    Request,
    chunks_under,
    decoded_bytes,
    read_box,
    read_boxes,
    read_subvolume,
    read_whole,
)
from volumes.writing import Target, VolumeLayout, create_levels, open_for_writing, write_box

SIZE = (8.0, 8.0, 40.0)
SHAPE = (20, 15, 10)
CHUNK = (8, 8, 4)
ORIGIN = (5, -6, 7)
DOMAIN = Box.of(ORIGIN, SHAPE)
DATA = made.noise(SHAPE)
FIRST = Box.of(ORIGIN, CHUNK)


def opened(path, kind="image", **stated) -> Volume:
    return open_volume(resolve_volume(str(path), kind=kind, **stated))


def write(name, path, data=DATA):
    """A volume of a format, named by it, in the same frame as all others."""
    units = {"dimension_units": ["8 nm", "8 nm", "40 nm"], "voxel_offset": list(ORIGIN)}
    lengths = {"resolution": [40, 8, 8], "offset": [280, -48, 40], "axis_names": ["z", "y", "x"]}
    along = {"resolution": [8, 8, 40], "offset": [40, -48, 280]}
    match name:
        case "zarr2":
            return made.zarr2(path, data.transpose(), CHUNK[::-1], lengths, fill=0)
        case "zarr3":
            return made.zarr3(path, data, CHUNK, attributes=units)
        case "zarr3 sharded":
            return made.zarr3(path, data, CHUNK, shard=(16, 16, 8), attributes=units)
        case "n5":
            return made.n5(path, data, CHUNK, along)
        case "precomputed" | "precomputed sharded":
            sharded = name.endswith("sharded")
            return made.precomputed(
                path, data, CHUNK, resolution=SIZE, offset=ORIGIN, sharded=sharded
            )
    raise ValueError(name)


FORMATS = ("zarr2", "zarr3", "zarr3 sharded", "n5", "precomputed", "precomputed sharded")


def oracle(box, data=DATA, domain=DOMAIN):
    """The box of an array that is zero outside its domain."""
    padded = np.zeros(box.shape, data.dtype)
    part = box.intersection(domain)
    if part.size:
        padded[part.slices(box)] = data[part.slices(domain)]
    return padded


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Every format once, for the tests that only read."""
    directory = tmp_path_factory.mktemp("formats")
    return {n: opened(write(n, directory / n.replace(" ", "-"))) for n in FORMATS}


def boxes():
    low = st.tuples(*(st.integers(o - 10, o + n + 5) for o, n in zip(ORIGIN, SHAPE, strict=True)))
    shape = st.tuples(st.integers(0, 30), st.integers(0, 25), st.integers(0, 20))
    return st.builds(Box.of, low, shape)


@settings(deadline=None, max_examples=60)
@given(box=boxes(), name=st.sampled_from(FORMATS), in_flight=st.sampled_from([1, 700, 1 << 20]))
def test_a_box_is_the_volume_there_and_zero_outside(every, box, name, in_flight):
    volume = every[name]
    part = read_box(volume, box, missing="error", bytes_in_flight=in_flight)
    np.testing.assert_array_equal(part.array, oracle(box))
    assert part.array.flags.c_contiguous
    assert part.array.flags.writeable
    assert part.array.dtype == np.uint8
    assert (part.box, part.missing) == (box, ())
    grid = volume.spec.read_grid
    touched = [grid.box(i) for i in grid.meeting(box)]
    assert part.bytes_decoded == decoded_bytes(volume.spec, box) == sum(b.size for b in touched)
    assert chunks_under(volume.spec, box) == len(touched)


def test_chunks_of_a_transformed_spec_begin_where_they_are_stored(tmp_path):
    path = made.zarr3(tmp_path / "v", DATA, CHUNK)
    cut = {"input_inclusive_min": [3, 4, 5], "input_exclusive_max": [18, 15, 9]}
    document = {"driver": "zarr3", "kvstore": f"file://{path}/", "transform": cut}
    volume = opened(json.dumps(document), voxel_size_nm=SIZE)
    box = Box((0, 4, 6), (9, 15, 7))
    part = read_box(volume, box, missing="error")
    np.testing.assert_array_equal(part.array[3:], DATA[3:9, 4:15, 6:7])
    assert not part.array[:3].any()
    # Two chunks along x (3:8 and 8:16), two along y (4:8 and 8:15), one along z (5:8).
    assert chunks_under(volume.spec, box) == 4
    assert part.bytes_decoded == (5 + 8) * (4 + 7) * 3


def test_several_boxes_of_several_volumes_are_read_together(every):
    requests = [
        Request(every[name], Box((0, 0, n), (20, 9, 9 + n))) for n, name in enumerate(FORMATS)
    ]
    parts = read_boxes(requests, bytes_in_flight=1000)
    for request, part in zip(requests, parts, strict=True):
        np.testing.assert_array_equal(part.array, oracle(request.box))
    assert read_boxes([]) == []


def test_a_subvolume(tmp_path, every):
    ids = made.noise(SHAPE, "uint64") << np.uint64(50)
    segmentation = opened(write("zarr3 sharded", tmp_path / "ids", ids), "segmentation")
    image = every["zarr2"]
    box, other = Box((0, 0, 0), (20, 9, 12)), Box((3, -6, 7), (9, 0, 9))
    both = read_subvolume(image, segmentation, box)
    np.testing.assert_array_equal(both.image, oracle(box))
    np.testing.assert_array_equal(both.labels, oracle(box, ids))
    assert both.labels.dtype == np.uint64
    assert (both.labels_box, both.missing_image, both.missing_labels) == (box, (), ())
    assert both.bytes_decoded == sum(decoded_bytes(v.spec, box) for v in (image, segmentation))
    apart = read_subvolume(image, segmentation, box, other)
    np.testing.assert_array_equal(apart.labels, oracle(other, ids))
    np.testing.assert_array_equal(apart.image, both.image)


# What is not stored, and what is damaged


def with_a_hole(name, path):
    """A volume whose chunk (1, 0, 1) is not stored; its box; the data as they read then."""
    hole = Box.of((13, -6, 11), CHUNK)
    data = DATA.copy()
    data[hole.slices(DOMAIN)] = 0
    # TensorStore does not store a chunk that is all fill value.
    return opened(write(name, path, data)), hole, data


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_chunk_is_zero_and_reported_as_far_as_the_box_goes(tmp_path, name):
    volume, hole, data = with_a_hole(name, tmp_path / "v")
    part = read_box(volume, DOMAIN)
    np.testing.assert_array_equal(part.array, data)
    assert part.missing == (hole,)
    assert part.bytes_decoded == decoded_bytes(volume.spec, DOMAIN) - hole.size
    corner = Box((0, -9, 12), (15, -2, 30))
    assert read_box(volume, corner).missing == (hole.intersection(corner),)
    beside = Box((0, 2, 0), (40, 40, 40))
    assert read_box(volume, beside, missing="error").missing == ()


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_chunk_is_an_error_where_asked(tmp_path, name):
    volume, _, _ = with_a_hole(name, tmp_path / "v")
    with pytest.raises(RunError) as error:
        read_box(volume, Box((0, -9, 12), (15, -2, 30)), missing="error")
    assert "voxels [13:15, -6:-2, 12:15) of the image" in str(error.value)
    assert f"{tmp_path}/v are in a chunk that is not stored: NOT_FOUND" in str(error.value)


def test_a_missing_shard_is_every_chunk_of_it(tmp_path):
    path = write("zarr3 sharded", tmp_path / "v")
    (path / "c" / "0" / "0" / "0").unlink()
    part = read_box(opened(path), DOMAIN)
    shard = Box.of(ORIGIN, (16, 16, 8)).intersection(DOMAIN)
    assert not part.array[shard.slices(DOMAIN)].any()
    assert part.array[16:].all()
    assert sum(b.size for b in part.missing) == shard.size
    assert len(part.missing) == 8


def test_a_precomputed_shard_that_is_missing_or_empty_is_told(tmp_path):
    path = write("precomputed sharded", tmp_path / "v")
    first, second = sorted((path / "8_8_40").iterdir())
    first.unlink()
    part = read_box(opened(path), DOMAIN)
    read = part.array != 0
    assert sum(b.size for b in part.missing) == (~read).sum() > 0
    np.testing.assert_array_equal(part.array, np.where(read, DATA, 0))
    second.write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot be read: FAILED_PRECONDITION.*1\.shard"):
        read_box(opened(path), DOMAIN)


def test_a_whole_shard_that_tensorstore_reads_as_zeros_is_told(tmp_path):
    """It does so where shards hold as many minishards as ours."""
    layout = VolumeLayout(
        *((64, 32, 32), "uint8", "image", (8.0, 8.0, 8.0), (-8, 0, 16)),
        **{"chunk": (16, 16, 16), "shard": (32, 32, 32), "format": "precomputed"},
    )
    target = Target(str(tmp_path / "v"), layout)
    create_levels([target], {})
    stored = np.full(layout.shape, 9, np.uint8)
    stored[32:] = 0  # which is no shard at all
    stored[:16, :16] = 0  # zeros of a shard that is there
    write_box(open_for_writing(target), layout.domain, stored)
    volume = open_volume(target.spec())
    part = read_box(volume, layout.domain)
    np.testing.assert_array_equal(part.array, stored)
    held = Box((24, 0, 16), (56, 32, 48))
    assert sum(b.size for b in part.missing) == held.size
    assert all(held.encloses(b) for b in part.missing)
    assert read_whole(volume, layout.domain) is None
    assert read_whole(volume, Box((-8, 0, 16), (24, 32, 48))) is not None
    with pytest.raises(RunError, match=r"not stored: NOT_FOUND: shard 8_8_8/.\.shard is missing"):
        read_box(volume, layout.domain, missing="error")


def test_a_missing_chunk_is_zero_whatever_the_fill_value(tmp_path):
    data = DATA.copy()
    data[:8, :8, :4] = 7
    path = made.zarr2(tmp_path / "v", data, CHUNK, fill=7)
    part = read_box(opened(path, voxel_size_nm=SIZE), Box((0, 0, 0), (10, 10, 10)))
    assert part.missing == (Box((0, 0, 0), CHUNK),)
    assert not part.array[:8, :8, :4].any()
    np.testing.assert_array_equal(part.array[8:], data[8:10, :10])


def test_missing_chunks_of_image_and_labels_are_told_apart(tmp_path):
    image, hole, _ = with_a_hole("n5", tmp_path / "em")
    labels = opened(write("zarr3", tmp_path / "ids", DATA), "segmentation")
    both = read_subvolume(image, labels, DOMAIN, missing_labels="error")
    assert (both.missing_image, both.missing_labels) == ((hole,), ())
    both = read_subvolume(labels, image, DOMAIN)
    assert (both.missing_image, both.missing_labels) == ((), (hole,))


def test_a_damaged_chunk_is_an_error_whatever_the_policy(tmp_path):
    path = write("zarr3", tmp_path / "v")
    chunk = path / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    volume = opened(path)
    with pytest.raises(RunError) as error:
        read_box(volume, DOMAIN, missing="zero")
    assert str(error.value).startswith(f"voxels {FIRST} of the image {path} cannot be read: ")
    assert "c/0/0/0" in str(error.value)
    intact = Box((13, -6, 7), (25, 9, 17))
    np.testing.assert_array_equal(read_box(volume, intact).array, oracle(intact))


# Without touching storage


def huge(path, chunk=64) -> Volume:
    metadata = {
        "shape": [10**6] * 3,
        "data_type": "uint64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk] * 3}},
        "codecs": [{"name": "bytes"}],
    }
    made.create(path, {"driver": "zarr3", "metadata": metadata})
    return opened(path, "segmentation", voxel_size_nm=SIZE)


def test_counts_over_a_huge_domain_list_nothing(tmp_path):
    spec = huge(tmp_path / "v").spec
    assert chunks_under(spec, spec.domain) == 15625**3
    assert decoded_bytes(spec, spec.domain) == 8 * 10**18
    assert decoded_bytes(spec, Box((-5, 0, 999_990), (1, 64, 10**7))) == 8 * 64 * 64 * 64
    assert decoded_bytes(spec, Box((-5, 0, 0), (0, 64, 64))) == 0


def test_what_cannot_be_allocated_is_refused_instead_of_ending_the_process(tmp_path):
    volume = huge(tmp_path / "v")
    with pytest.raises(RunError, match="would take 8,000,000,000,268,435,456 bytes of memory, abo"):
        read_box(volume, volume.spec.domain)
    with pytest.raises(
        RunError,
        match=r"0:100, 0:100\) of .*v would take 24,777,216 bytes .* limit"
        r" of 9,999,999; use a smaller --box",
    ):
        read_box(volume, Box((0, 0, 0), (100, 100, 100)), limit_bytes=9_999_999)
    part = read_box(volume, Box((0, 0, 0), (3, 3, 3)), limit_bytes=10_000_000)
    assert (part.array.sum(), part.missing) == (0, (Box((0, 0, 0), (3, 3, 3)),))


def test_a_chunk_that_cannot_be_allocated_is_refused(tmp_path):
    volume = huge(tmp_path / "v", 4096)
    with pytest.raises(RunError, match="would take 549,755,813,896 bytes of memory"):
        read_box(volume, Box((0, 0, 0), (1, 1, 1)))
    assert read_box(volume, Box((-9, 0, 0), (0, 9, 9))).array.shape == (9, 9, 9)


def test_batches_stay_under_the_bytes_in_flight(every, monkeypatch):
    sizes: list[list[int]] = []

    class Counting(ts.Batch):
        def __enter__(self):
            sizes.append([])
            return super().__enter__()

    plain = ts.TensorStore.read
    monkeypatch.setattr(ts, "Batch", Counting)
    monkeypatch.setattr(
        ts.TensorStore,
        "read",
        lambda store, *, batch, order: (
            sizes[-1].append(store.domain.size) or plain(store, batch=batch, order=order)
        ),
    )
    read_box(every["zarr3"], DOMAIN, bytes_in_flight=600)
    chunks = list(itertools.chain.from_iterable(sizes))
    assert sum(chunks) == DOMAIN.size
    assert len(chunks) == 18
    assert max(sum(s) for s in sizes) <= 600
    assert len(sizes) < len(chunks)


def test_what_a_view_reads_counts_for_it(tmp_path, monkeypatch):
    data = made.noise((64, 64, 16))
    path = made.zarr3(tmp_path / "v", data, (16, 16, 4))
    of = {"volume": str(path), "voxel_size_nm": list(SIZE)}
    step = {"op": "downsample", "factors": [4, 4, 1], "method": "max"}
    document = {"format": "segclr-beam-view", "format_version": 1, "of": of, "steps": [step]}
    view = opened(json.dumps(document))
    # A chunk of 4 x 4 x 4 is made of 1024 bytes, and 64 of these make the volume.
    assert (view.spec.read_chunk, view.spec.domain.shape) == ((4, 4, 4), (16, 16, 16))
    batches: list[int] = []

    class Counting(ts.Batch):
        def __enter__(self):
            batches.append(0)
            return super().__enter__()

    monkeypatch.setattr(ts, "Batch", Counting)
    expected = data.reshape(16, 4, 16, 4, 16).max((1, 3))
    np.testing.assert_array_equal(
        read_box(view, view.spec.domain, bytes_in_flight=4096).array, expected
    )
    assert len(batches) == 16
    with pytest.raises(
        RunError, match="would take 69,632 bytes of memory, above the limit of 69,0"
    ):
        read_box(view, view.spec.domain, limit_bytes=69_000)
