import collections
import fractions
import itertools
import math
import tracemalloc
from typing import Any

import h5py
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import tensorstore as ts

from tests.support import shared
from volumes import downsampling
from volumes.downsampling import Method, ladder, reduced, scratch_bytes
from volumes.geometry import Box, Vec, vec

INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
MODES: tuple[Method, ...] = ("mode", "sparse-mode")

factor_vecs = st.tuples(*[st.integers(1, 5)] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
starts = st.tuples(*[st.integers(-20, 20)] * 3)


def cell_value(values: list[Any], method: Method, dtype: np.dtype[Any]) -> Any:
    if method == "mean":
        if dtype.kind == "f":
            return dtype.type(math.fsum(values) / len(values))
        return round(fractions.Fraction(sum(values), len(values)))
    counts = collections.Counter(values)
    if method == "sparse-mode" and len(counts) > 1:
        counts.pop(0, None)
    return min(counts, key=lambda v: (-counts[v], v))


def oracle(
    array: npt.NDArray[Any], start: Vec, factors: Vec, method: Method
) -> tuple[npt.NDArray[Any], Vec]:
    """What the definition says, voxel by voxel."""
    cells: dict[Vec, list[Any]] = collections.defaultdict(list)
    for at in np.ndindex(array.shape):
        cell = vec((a + s) // f for a, s, f in zip(at, start, factors, strict=True))
        cells[cell].append(array[at].item())
    first, last = vec(map(min, zip(*cells, strict=True))), vec(map(max, zip(*cells, strict=True)))
    out = np.empty([b - a + 1 for a, b in zip(first, last, strict=True)], array.dtype)
    for cell, values in cells.items():
        at = vec(c - a for c, a in zip(cell, first, strict=True))
        out[at] = cell_value(values, method, array.dtype)
    return out, first


@st.composite
def arrays(draw: st.DrawFn, method: Method) -> npt.NDArray[Any]:
    """Arrays of every type, memory order and layout; of few values for modes, of all for means."""
    name = draw(st.sampled_from(INTEGERS))
    dtype, ends, shape = np.dtype(name), np.iinfo(name), draw(shapes)
    few = st.sampled_from([ends.min, 0, 1, 2, ends.max])
    elements = few if method != "mean" or draw(st.booleans()) else hnp.from_dtype(dtype)
    array = draw(hnp.arrays(dtype, shape, elements=elements, fill=st.sampled_from([0, 1])))
    array = np.asarray(array, order=draw(st.sampled_from("CF")))
    layout = draw(st.sampled_from(["whole", "inner", "reversed", "spread", "turned"]))
    if layout == "inner":
        return np.pad(array, 1, mode="wrap")[1:-1, 1:-1, 1:-1]
    if layout == "reversed":
        return array[::-1, :, ::-1]
    if layout == "spread":
        return np.repeat(array, 2, axis=draw(st.integers(0, 2)))[::2]
    return array.transpose(1, 2, 0) if layout == "turned" else array


def check(array: npt.NDArray[Any], start: Vec, factors: Vec, method: Method, threads: int) -> None:
    before = array.copy()
    level, first = reduced(array, start, factors, method, threads=threads)
    wanted, wanted_first = oracle(array, start, factors, method)
    assert first == wanted_first
    assert level.dtype == array.dtype
    np.testing.assert_array_equal(level, wanted)
    np.testing.assert_array_equal(array, before)
    assert not np.shares_memory(level, array)


@pytest.mark.parametrize("method", ["mean", *MODES])
@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(data=st.data())
def test_a_level_is_what_its_definition_says(data: st.DataObject, method: Method) -> None:
    array, start = data.draw(arrays(method)), data.draw(starts)
    check(array, start, data.draw(factor_vecs), method, threads=1)


@pytest.mark.parametrize("method", ["mean", *MODES])
@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_of_any_size_and_threads_give_the_same(
    method: Method, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    array = rng.integers(0, 4, (11, 13, 9), np.uint32)
    for voxels in (1, 20, 64, 300):
        monkeypatch.setattr(downsampling, "_TILE_VOXELS", dict.fromkeys(("mean", *MODES), voxels))
        check(array, (-3, 1, 8), (2, 3, 2), method, threads)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("factors", [(2, 2, 2), (2, 2, 1), (1, 2, 2), (8, 8, 5), (3, 2, 7)])
def test_means_at_the_ends_of_a_type(dtype: str, factors: Vec) -> None:
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(1)
    picked = rng.choice(np.array([ends.min, ends.min + 1, ends.max - 1, ends.max], dtype), 8**3)
    array = picked.reshape(8, 8, 8)
    array[:, :, :3] = ends.max
    check(array, (0, 0, 0), factors, "mean", threads=1)
    check(np.full((8, 8, 8), ends.min, dtype), (0, 0, 0), factors, "mean", threads=1)


def test_cells_so_large_that_sums_need_wider_integers() -> None:
    array = np.full((300, 17, 16), 255, np.uint8, order="F")
    array[0, 0, 0] = 0
    array[0, 16, 15] = 128
    level, first = reduced(array, (0, 0, 0), (300, 17, 16), "mean")
    assert (level.item(), first) == (255, (0, 0, 0))
    half, _ = reduced(array[:1, :1, 14:16], (0, 0, 14), (1, 1, 2), "mean")
    assert half.item() == 255
    assert reduced(array[:, :, :1] * 0 + 3, (0, 0, 0), (300, 17, 1), "mode")[0].item() == 3
    many = np.arange(300 * 17, dtype=np.uint64).reshape(300, 17, 1) // 2
    assert reduced(many, (0, 0, 0), (300, 17, 1), "mode")[0].item() == 0
    assert reduced(many, (0, 0, 0), (300, 17, 1), "sparse-mode")[0].item() == 1
    many[-1, -3:] = 7
    assert reduced(many, (0, 0, 0), (300, 17, 1), "mode")[0].item() == 7


def test_halves_go_to_the_even_neighbour() -> None:
    array = np.array([1, 2, 2, 3, 0, 1, -1, -2, 0, -1, -3, -2], np.int16).reshape(-1, 1, 1)
    level, _ = reduced(array, (0, 0, 0), (2, 1, 1), "mean")
    assert level.ravel().tolist() == [2, 2, 0, -2, 0, -2]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    array=hnp.arrays(
        np.float32, shapes, elements=st.integers(-(2**20), 2**20).map(lambda v: v / 8)
    ),
    start=starts,
    factors=factor_vecs,
)
def test_means_of_floats(array: npt.NDArray[np.float32], start: Vec, factors: Vec) -> None:
    check(array, start, factors, "mean", threads=1)


@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_that_are_none_stay_in_their_cell(order: Any) -> None:
    array = np.ones((6, 4, 4), np.float32, order=order)
    array[0, 0, 0], array[2, 0, 0], array[3, 0, 0] = np.nan, np.inf, -np.inf
    array[4:] = np.finfo(np.float32).max
    level, _ = reduced(array, (0, 0, 0), (2, 4, 4), "mean")
    assert np.isnan(level[:2]).all()
    assert level[2].item() == np.finfo(np.float32).max


@pytest.mark.parametrize("method", ["mean", *MODES])
@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(data=st.data())
def test_parts_at_multiples_of_the_factor_make_the_whole(
    data: st.DataObject, method: Method
) -> None:
    array, start = data.draw(arrays(method)), data.draw(starts)
    factors = data.draw(factor_vecs)
    box = Box.of(start, vec(array.shape))
    whole, first = reduced(array, start, factors, method)
    whole_box = Box.of(first, vec(whole.shape))
    cuts = []
    for a, b, f in zip(box.start, box.stop, factors, strict=True):
        inner = data.draw(st.sets(st.integers(a // f + 1, max(a // f + 1, (b - 1) // f))))
        cuts.append([a, *sorted(i * f for i in inner if a < i * f < b), b])
    covered = 0
    for sides in itertools.product(*(itertools.pairwise(c) for c in cuts)):
        part = Box(vec(s[0] for s in sides), vec(s[1] for s in sides))
        level, at = reduced(array[part.slices(box)], part.start, factors, method)
        level_box = Box.of(at, vec(level.shape))
        np.testing.assert_array_equal(level, whole[level_box.slices(whole_box)])
        covered += level_box.size
    assert covered == whole.size


@pytest.mark.parametrize("method", ["mean", "mode"])
@pytest.mark.parametrize("factors", [(2, 2, 2), (2, 2, 1), (4, 4, 2), (3, 1, 2)])
def test_a_level_is_what_tensorstore_makes(method: Any, factors: Vec) -> None:
    rng = np.random.default_rng(3)
    array = rng.integers(0, 200 if method == "mean" else 3, (21, 18, 14), np.uint8)
    level, first = reduced(array, (-5, 3, 8), factors, method)
    placed = ts.array(array)[ts.d[:].translate_to[-5, 3, 8]]
    wanted = ts.downsample(placed, list(factors), method)
    np.testing.assert_array_equal(level, wanted.read().result())
    assert first == wanted.domain.inclusive_min


@pytest.mark.parametrize("method", MODES)
def test_bodies_of_a_real_segmentation(method: Method) -> None:
    with h5py.File(shared("data", "fib25", "groundtruth.h5")) as f:
        array = f["stack"][:25, :30, :33].T
    assert len(np.unique(array)) >= 5
    for factors in ((2, 2, 2), (4, 4, 4), (2, 2, 1)):
        check(array, (1, -3, 7), factors, method, threads=2)


def test_sparse_mode_keeps_a_neurite_of_one_voxel() -> None:
    array = np.zeros((32, 32, 32), np.uint64)
    steps = np.arange(32)
    array[steps, steps // 2, 9] = 2**63 + 1
    for factors in ((2, 2, 2), (4, 4, 4), (2, 2, 1)):
        sparse, _ = reduced(array, (0, 0, 0), factors, "sparse-mode")
        cells = {vec(np.array(at) // factors) for at in zip(*np.nonzero(array), strict=True)}
        assert {vec(at) for at in zip(*np.nonzero(sparse), strict=True)} == cells
        assert set(np.unique(sparse)) == {0, 2**63 + 1}
        plain, _ = reduced(array, (0, 0, 0), factors, "mode")
        assert np.count_nonzero(plain) == 0


def test_sparse_mode_still_prefers_the_more_frequent_of_two_bodies() -> None:
    array = np.array([0, 0, 0, 0, 7, 5, 5, 9], np.int64).reshape(2, 2, 2)
    assert reduced(array, (0, 0, 0), (2, 2, 2), "sparse-mode")[0].item() == 5
    assert reduced(array, (0, 0, 0), (2, 2, 2), "mode")[0].item() == 0
    assert reduced(array - 5, (0, 0, 0), (2, 2, 2), "sparse-mode")[0].item() == -5


def test_a_level_keeps_the_memory_order() -> None:
    for order in ("C", "F"):
        array = np.zeros((8, 10, 12), np.uint8, order=order)
        level, _ = reduced(array, (0, 0, 0), (2, 2, 2), "mean")
        assert level.flags.f_contiguous == array.flags.f_contiguous


@pytest.mark.parametrize("method", ["mean", *MODES])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64"])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 1, 2), (2, 1, 3), (128, 128, 128)])
def test_scratch_is_bounded(method: Method, dtype: str, factors: Vec) -> None:
    array = np.random.default_rng(0).integers(0, 5, (128, 128, 129), dtype)
    tracemalloc.start()
    try:
        level, _ = reduced(array, (0, 0, 0), factors, method)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bound = scratch_bytes(vec(array.shape), array.itemsize, factors, method)
    assert peak - level.nbytes <= bound
    large = scratch_bytes((10**5, 10**5, 10**5), array.itemsize, factors, method)
    assert bound <= large <= 400 * 2**20


@pytest.mark.parametrize(
    ("array", "factors", "method", "message"),
    [
        (np.zeros((2, 2)), (2, 2, 2), "mean", r"axes x, y, z is needed, got the shape \(2, 2\)"),
        (np.zeros((2, 2, 2)), (2, 0, 2), "mean", r"factors of at least 1 .* got \(2, 0, 2\)"),
        (np.zeros((2, 2, 2)), (2048, 1024, 1024), "mean", r"below 2\*\*31 .*\(2048, 1024, 1024\)"),
        (
            np.zeros((2, 2, 2)),
            (2, 2, 2),
            "median",
            "mean, mode, sparse-mode is needed, got 'median'",
        ),
        (np.zeros((2, 2, 2)), (2, 2, 2), "mode", "float64 have no mode, which takes integers$"),
        (np.zeros((2, 2, 2), bool), (2, 2, 2), "mean", "bool have no mean, .*integers and floats"),
    ],
)
def test_what_cannot_be_reduced_is_refused(
    array: npt.NDArray[Any], factors: Vec, method: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reduced(array, (0, 0, 0), factors, method)


def test_an_empty_array_has_an_empty_level() -> None:
    level, first = reduced(np.zeros((0, 4, 4), np.uint8), (3, 0, 0), (2, 2, 2), "mean")
    assert (level.shape[0], first) == (0, (1, 0, 0))


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [
        ((1000, 1000, 250), (4, 4, 40), [(2, 2, 1)] * 3 + [(2, 2, 2)] * 2),
        ((512, 512, 512), (8, 8, 8), [(2, 2, 2)] * 3),
        ((512, 512, 128), (8, 8, 33), [(2, 2, 1)] * 2 + [(2, 2, 2)]),
        ((256, 256, 256), (40, 4, 4), [(1, 2, 2)] * 3 + [(2, 2, 2)] * 2),
        ((128, 128, 128), (10, 10, 14.1), [(2, 2, 2)]),
        ((128, 128, 128), (10, 10, 14.2), [(2, 2, 1), (2, 2, 2)]),
        ((64, 64, 64), (4, 4, 40), []),
        ((512, 256, 1), (4, 4, 40), [(2, 2, 1)] * 3),
        ((1, 1, 1), (4, 4, 40), []),
    ],
)
def test_ladders(shape: Vec, size: tuple[float, float, float], wanted: list[Vec]) -> None:
    assert ladder(shape, size) == tuple(wanted)


def test_a_ladder_of_so_many_levels_or_to_another_chunk() -> None:
    assert ladder((64, 64, 64), (4, 4, 4), levels=2) == ((2, 2, 2),) * 2
    assert ladder((4096, 64, 64), (4, 4, 4), levels=1) == ((2, 2, 2),)
    assert ladder((256, 256, 256), (4, 4, 4), chunk=(256, 256, 32)) == ((2, 2, 2),) * 3
    assert ladder((4, 2, 1), (4, 4, 4), levels=9) == ((2, 2, 1), (2, 1, 1))
    assert ladder((256, 256, 256), (4, 4, 4), levels=0) == ()


@hypothesis.given(
    shape=st.tuples(*[st.integers(1, 10**12)] * 3),
    size=st.tuples(*[st.floats(0.01, 1e5)] * 3),
)
def test_a_ladder_ends_in_one_chunk_and_voxels_never_become_less_alike(
    shape: Vec, size: tuple[float, float, float]
) -> None:
    steps = ladder(shape, size)
    extent, sizes = list(shape), list(size)
    for step in steps:
        assert max(extent) > 64
        assert set(step) <= {1, 2}
        assert 2 in step
        counted = [s for s, n in zip(sizes, extent, strict=True) if n > 1]
        after = [s * f for s, f, n in zip(sizes, step, extent, strict=True) if n > 1]
        assert max(after) / min(after) <= max(counted) / min(counted)
        assert all(f == 1 for f, n in zip(step, extent, strict=True) if n == 1)
        sizes = [s * f for s, f in zip(sizes, step, strict=True)]
        extent = [-(-n // f) for n, f in zip(extent, step, strict=True)]
    assert max(extent) <= 64
    total = [math.prod(s[axis] for s in steps) for axis in range(3)]
    assert extent == [-(-n // f) for n, f in zip(shape, total, strict=True)]
    assert sizes == [s * f for s, f in zip(size, total, strict=True)]
    assert all(a.is_integer() and math.log2(a).is_integer() for a in map(float, total))
