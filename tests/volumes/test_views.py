import concurrent.futures
import dataclasses
import json
import pickle

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.volumes import sample_volumes as made
from tests.volumes.view_cases import (
    DATA,
    DOMAIN,
    IDS,
    ORIGIN,
    SHAPE,
    SIZE,
    a_zarr,
    coarser,
    made_of,
    read,
    resolved,
    view,
)
from volumes import views
from volumes.errors import DataError, RequestError, RunError
from volumes.geometry import Box
from volumes.keys import keys_under
from volumes.opening import open_volume, resolve_levels, resolve_volume, stored_under
from volumes.reading import read_box
from volumes.spec import VolumeSpec
from volumes.stamps import stamp


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return a_zarr(tmp_path_factory.mktemp("views") / "em")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return a_zarr(tmp_path_factory.mktemp("views") / "ids", IDS)


# Each operation against NumPy


def test_crop(image):
    spec = resolved(image, {"op": "crop", "start": [7, -4, 8], "stop": {"x": 12, "z": 9}})
    assert (spec.domain, spec.voxel_size_nm) == (Box((7, -4, 8), (12, 9, 9)), SIZE)
    assert (spec.read_chunk, spec.anchor_vx) == ((8, 8, 4), ORIGIN)
    assert (spec.format, spec.kind, spec.dtype, spec.axes) == ("view", "image", "uint8", (*"xyz",))
    np.testing.assert_array_equal(read(spec).array, DATA[2:7, 2:, 1:2])


def test_stride_takes_the_multiples_in_the_frame(image):
    spec = resolved(image, {"op": "stride", "step": [2, 3, 4]})
    # x 6, 8, ..., 24; y -6, -3, ..., 6; z 8, 12, 16.
    assert spec.domain == Box((3, -2, 2), (13, 3, 5))
    assert spec.voxel_size_nm == (16, 24, 160)
    np.testing.assert_array_equal(read(spec).array, DATA[1::2, ::3, 1::4])


def test_transpose_and_translate(image):
    spec = resolved(
        image,
        {"op": "transpose", "axes": "zyx"},
        {"op": "translate", "by": {"x": 1}},
        {"op": "translate", "to": {"z": -2}},
    )
    assert spec.domain == Box.of((8, -6, -2), SHAPE[::-1])
    assert spec.voxel_size_nm == SIZE[::-1]
    assert spec.read_chunk == (4, 8, 8)
    np.testing.assert_array_equal(read(spec).array, DATA.transpose(2, 1, 0))


def test_a_channel_is_picked_of_an_array_that_is_no_volume(tmp_path):
    data = made.noise((3, 10, 15, 20))
    path = made.zarr3(tmp_path / "v", data, (1, 4, 8, 8), names=("c", "z", "y", "x"), attributes={})
    of = {"volume": str(path), "voxel_size_nm": list(SIZE), "origin_vx": list(ORIGIN)}
    spec = resolved(of, {"op": "channel", "index": 2})
    assert (spec.domain, spec.voxel_size_nm) == (DOMAIN, SIZE)
    np.testing.assert_array_equal(read(spec).array, data[2].transpose(2, 1, 0))
    with pytest.raises(RequestError, match=r"3 dimensions|axes channel, z, y, x, of more than one"):
        resolved(of)
    with pytest.raises(RequestError, match=r"\(channel\): has index 3, and channel has 0:3"):
        resolved(of, {"op": "channel", "index": 3})


@pytest.mark.parametrize("method", ["mean", "mode", "min", "max", "median", "stride"])
def test_downsample_is_anchored_at_voxel_0(image, method):
    factors = (2, 3, 4)
    spec = resolved(image, {"op": "downsample", "factors": list(factors), "method": method})
    found = read(spec).array
    assert spec.voxel_size_nm == (16, 24, 160)
    if method == "stride":
        np.testing.assert_array_equal(found, made_of(image, {"op": "stride", "step": [2, 3, 4]}))
        return
    lowest = {"mode": lambda v: np.bincount(v.reshape(-1)).argmax(), "min": np.min, "max": np.max}
    reduce = lowest | {
        "mean": lambda v: np.rint(v.mean()),
        "median": lambda v: np.sort(v.reshape(-1))[(v.size - 1) // 2],
    }
    expected, first = coarser(DATA, ORIGIN, factors, reduce[method])
    assert spec.domain == Box.of(first, expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", ["min", "max"])
@pytest.mark.parametrize(("start", "stop", "factor"), [(5, 7, 4), (9, 15, 8), (9, 11, 30)])
def test_downsample_of_a_part_inside_one_cell(image, method, start, stop, factor):
    found = made_of(
        image,
        {"op": "crop", "start": {"x": start}, "stop": {"x": stop}},
        {"op": "downsample", "factors": [factor, 1, 1], "method": method},
    )
    part = DATA[start - 5 : stop - 5]
    np.testing.assert_array_equal(found, getattr(part, method)(0, keepdims=True))


def test_downsample_of_ids_blends_none(labels):
    with pytest.raises(RequestError, match=r"takes the mean of ids, which is no id"):
        resolved(labels, {"op": "downsample", "factors": [2, 2, 1], "method": "mean"})
    found = made_of(labels, {"op": "downsample", "factors": [2, 2, 1], "method": "mode"})
    assert set(np.unique(found)) <= set(np.unique(IDS))


def test_sections_are_stacked_into_a_volume(tmp_path):
    sections = []
    for k in range(4):
        path = made.zarr3(tmp_path / f"s{k}", DATA[:, :, k].T, (8, 8), names=("y", "x"))
        sections.append({"volume": str(path), "voxel_size_nm": list(SIZE)})
    step = {"op": "stack", "axis": "z", "start": 100, "voxel_size_nm": 30}
    spec = resolved(sections, step)
    assert spec.domain == Box((0, 0, 100), (20, 15, 104))
    assert (spec.voxel_size_nm, spec.read_chunk) == ((8, 8, 30), (8, 8, 1))
    np.testing.assert_array_equal(read(spec).array, DATA[:, :, :4])
    needed = views.needs(spec, Box((0, 0, 101), (3, 3, 103)))
    assert [box for _, box in needed] == [Box((0, 0, 0), (3, 3, 1))] * 2
    np.testing.assert_array_equal(read(needed[0][0]).array[:, :, 0], DATA[:, :, 1])


def test_a_stack_of_volumes_of_one_section(image):
    cut = [view(image, {"op": "crop", "start": {"z": z}, "stop": {"z": z + 1}}) for z in (9, 8, 7)]
    spec = resolved([json.loads(v) for v in cut], {"op": "stack", "axis": "z"})
    assert spec.domain == Box((5, -6, 9), (25, 9, 12))
    np.testing.assert_array_equal(read(spec).array, DATA[:, :, 2::-1])


def test_concat(image):
    low = {"op": "crop", "stop": {"y": 0}}
    high = {"op": "crop", "start": {"y": 0}}
    halves = [json.loads(view(image, s)) for s in (low, high)]
    spec = resolved(halves, {"op": "concat", "axis": "y"})
    assert spec.domain == DOMAIN
    np.testing.assert_array_equal(read(spec).array, DATA)
    with pytest.raises(RequestError, match="ends at y 9 and, as number 2, one that begins at -6"):
        resolved(halves[::-1], {"op": "concat", "axis": "y"})
    moved = resolved(halves[::-1], {"op": "concat", "axis": "y", "move": True})
    assert moved.domain == Box((5, 0, 7), (25, 15, 17))
    np.testing.assert_array_equal(read(moved).array, np.concatenate([DATA[:, 6:], DATA[:, :6]], 1))


def test_overlay(tmp_path, image):
    patch = made.noise((4, 5, 3), seed=7)
    over = a_zarr(tmp_path / "patch", patch, origin=(10, 7, 8))
    with pytest.raises(RequestError, match=r"x 5:25, y -6:12, z 7:17 with gaps between the 2"):
        resolved([image, over], {"op": "overlay"})
    spec = resolved([image, over], {"op": "overlay", "gaps": "zero"})
    assert spec.domain == Box((5, -6, 7), (25, 12, 17))
    expected = np.zeros(spec.domain.shape, np.uint8)
    expected[:, :15] = DATA
    expected[5:9, 13:18, 1:4] = patch
    np.testing.assert_array_equal(read(spec).array, expected)
    below = made_of([over, image], {"op": "overlay", "gaps": "zero"})
    assert (below[:, :15] == DATA).all()


def test_quarters_leave_no_gap(image):
    quarters = [
        json.loads(view(image, {"op": "crop", "start": {"x": a, "z": c}, "stop": {"x": b, "z": d}}))
        for a, b in ((5, 14), (12, 25))
        for c, d in ((7, 10), (10, 17))
    ]
    np.testing.assert_array_equal(made_of(quarters, {"op": "overlay"}), DATA)
    with pytest.raises(RequestError, match="with gaps between the 3 volumes"):
        resolved(quarters[:3], {"op": "overlay"})


def test_broadcast(image):
    one = {"op": "crop", "start": {"z": 9}, "stop": {"z": 10}}
    spec = resolved(image, one, {"op": "broadcast", "axis": "z", "size": 7, "start": -2})
    assert spec.domain == Box((5, -6, -2), (25, 9, 5))
    np.testing.assert_array_equal(read(spec).array, np.repeat(DATA[:, :, 2:3], 7, 2))
    with pytest.raises(RequestError, match="repeats z, which has 7:17; only an axis of extent 1"):
        resolved(image, {"op": "broadcast", "axis": "z", "size": 7})


def test_a_section_is_repeated_along_a_new_axis(tmp_path):
    path = made.zarr3(tmp_path / "s", DATA[:, :, 0], (8, 8), names=("x", "y"))
    of = {"volume": str(path), "voxel_size_nm": list(SIZE)}
    step = {"op": "broadcast", "axis": "z", "size": 3, "voxel_size_nm": 40}
    np.testing.assert_array_equal(made_of(of, step), np.repeat(DATA[:, :, :1], 3, 2))


def test_split_and_merge(image):
    split = {"op": "split", "axis": "z", "into": ["channel", "z"], "inner_size": 5}
    spec = resolved(image, split, {"op": "channel", "index": 1})
    assert spec.domain == Box((5, -6, 0), (25, 9, 5))
    np.testing.assert_array_equal(read(spec).array, DATA[:, :, 5:])
    odd = {"op": "split", "axis": "z", "into": ["z", "channel"], "inner_size": 2}
    coarse = resolved(image, odd, {"op": "channel", "index": 1})
    assert coarse.voxel_size_nm == (8, 8, 80)
    np.testing.assert_array_equal(read(coarse).array, DATA[:, :, 1::2])
    back = {"op": "merge", "axes": ["channel", "z"], "into": "z"}
    np.testing.assert_array_equal(made_of(image, split, back), DATA)
    other = {"op": "merge", "axes": ["z", "channel"], "into": "z"}
    turned = DATA.reshape(20, 15, 2, 5).transpose(0, 1, 3, 2).reshape(SHAPE)
    sized = {"op": "label", "voxel_size_nm": {"z": 8}}
    np.testing.assert_array_equal(made_of(image, split, other, sized), turned)
    with pytest.raises(RequestError, match="z with 10 indices into rows of 4, which leaves 2 over"):
        resolved(image, split | {"inner_size": 4})
    with pytest.raises(RequestError, match="a general reshape would move voxels across rows"):
        resolved(image, {"op": "reshape", "shape": [1, 2, 3]})


def test_relabel_by_map_and_table(tmp_path, labels):
    ids = [int(i) for i in np.unique(IDS)[:3]]
    assert min(ids) > 2**53  # which a float would not hold
    step = {"op": "relabel", "map": {str(ids[0]): 7, str(ids[1]): str(ids[0])}}
    expected = np.where(IDS == ids[0], 7, np.where(IDS == ids[1], ids[0], IDS))
    np.testing.assert_array_equal(made_of(labels, step), expected)
    alone = np.where(IDS == ids[0], 7, np.where(IDS == ids[1], ids[0], 0))
    np.testing.assert_array_equal(made_of(labels, step | {"others": "zero"}), alone)
    table = tmp_path / "bodies.csv"
    table.write_text(f"supervoxel,body\n{ids[0]},7\n{ids[1]},{ids[0]}\n")
    spec = resolved(labels, {"op": "relabel", "table": str(table)})
    np.testing.assert_array_equal(read(spec).array, expected)
    assert str(ids[0]) not in spec.tensorstore


def test_a_table_that_has_changed_is_not_used(tmp_path, labels):
    table = tmp_path / "bodies.csv"
    table.write_text("supervoxel,body\n4,7\n")
    spec = resolved(labels, {"op": "relabel", "table": str(table)})
    table.write_text("supervoxel,body\n4,8\n")
    newer = resolved(labels, {"op": "relabel", "table": str(table)})
    assert newer.where() != spec.where()
    read(spec)  # this process still has the table that was planned
    for i in range(4):
        other = tmp_path / f"{i}.csv"
        other.write_text(f"supervoxel,body\n4,{9 + i}\n")
        resolved(labels, {"op": "relabel", "table": str(other)})
    with pytest.raises(RunError, match=r"bodies\.csv has changed since the plan: its pairs had"):
        read(spec)


def test_relabel_is_for_ids(image):
    with pytest.raises(RequestError, match="replaces ids, and the voxels are uint8 of an image"):
        resolved(image, {"op": "relabel", "map": {"1": 2}})
    of = {"volume": str(image), "kind": "segmentation"}
    spec = resolved(of, {"op": "relabel", "map": {str(DATA[0, 0, 0]): 3}})
    assert (spec.kind, spec.dtype) == ("segmentation", "uint64")
    assert read(spec).array[0, 0, 0] == 3


@pytest.mark.parametrize(("ratio", "size"), [(2, (16, 24, 40)), (1, SIZE), (0.5, (4, 8, 20))])
def test_mask(tmp_path, image, ratio, size):
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 3, (12, 10, 14)).astype("uint16")
    start = (1, -1, 9)
    mask = a_zarr(tmp_path / "mask", ids, origin=start, size=size)
    expected = np.zeros(SHAPE, np.uint8)
    others = DATA.copy()
    for cell in np.ndindex(SHAPE):
        # The voxel of the mask in which the centre of ours lies.
        at = [
            int((i + o + 0.5) * s // m) - a
            for i, o, s, m, a in zip(cell, ORIGIN, SIZE, size, start, strict=True)
        ]
        inside = all(0 <= i < n for i, n in zip(at, ids.shape, strict=True))
        if inside and ids[tuple(at)]:
            expected[cell] = DATA[cell]
        if not inside or ids[tuple(at)] == 2:
            others[cell] = 0
    assert 0 < np.count_nonzero(expected) < expected.size
    by = {"op": "mask", "by": str(mask)}
    np.testing.assert_array_equal(made_of(image, by), expected)
    np.testing.assert_array_equal(made_of(image, by | {"ids": ["2"], "invert": True}), others)


def test_a_mask_must_fit(tmp_path, image):
    mask = a_zarr(tmp_path / "mask", size=(12, 8, 40))
    with pytest.raises(RequestError, match="8 nm along x and a mask of 12 nm; one must be a whole"):
        resolved(image, {"op": "mask", "by": str(mask)})


# Casts


CASTS = [
    ("int16", [-300, -1, 0, 255, 256, 32767], "uint8", [0, 0, 0, 255, 255, 255], -300),
    ("float32", [-2.4, 0.5, 1.5, 254.6, 300, np.inf], "uint8", [0, 0, 2, 255, 255, 255], -2.4),
    ("uint64", [0, 1, 2**53 + 1, 2**63], "float64", None, 2**53 + 1),
    ("uint64", [0, 1, 2**63 - 1, 2**63], "int64", [0, 1, 2**63 - 1, 2**63 - 1], 2**63),
    ("float64", [0, 2.0**63, 2.0**64, np.nan], "uint64", [0, 2**63, 2**64 - 1, 0], 2.0**64),
    ("float64", [0, 1e300, -1e300], "float32", [0, 3.4028235e38, -3.4028235e38], 1e300),
]


@pytest.mark.parametrize(("dtype", "values", "wanted", "clipped", "bad"), CASTS)
def test_cast(tmp_path, dtype, values, wanted, clipped, bad):
    data = np.array(values, dtype).reshape(-1, 1, 1)
    path = a_zarr(tmp_path / "v", data)
    of = {"volume": str(path), "kind": "image"}
    spec = resolved(of, {"op": "cast", "dtype": wanted})
    with pytest.raises(RunError, match="does not hold; give the cast a wider") as error:
        read(spec)
    assert str(np.array([bad], dtype)[0]) in str(error.value)
    if clipped is not None:
        found = made_of(of, {"op": "cast", "dtype": wanted, "rule": "clip"})
        np.testing.assert_array_equal(found.reshape(-1), np.array(clipped, wanted))


@pytest.mark.parametrize("wanted", ["uint8", "int16", "uint64", "float32", "float64"])
def test_an_exact_cast_changes_nothing(image, wanted):
    found = made_of(image, {"op": "cast", "dtype": wanted})
    assert found.dtype == wanted
    np.testing.assert_array_equal(found, DATA)


def test_wrap_wraps(tmp_path):
    path = a_zarr(tmp_path / "v", np.array([300, -1], "int16").reshape(-1, 1, 1))
    found = made_of(path, {"op": "cast", "dtype": "uint8", "rule": "wrap"})
    assert found.reshape(-1).tolist() == [44, 255]


# Compositions


def _steps():
    n = st.integers(1, 4)
    three = st.tuples(n, n, n).map(list)
    return st.lists(
        st.one_of(
            st.builds(lambda s: {"op": "stride", "step": s}, three),
            st.builds(lambda a: {"op": "transpose", "axes": list(a)}, st.permutations("xyz")),
            st.builds(
                lambda f, m: {"op": "downsample", "factors": f, "method": m},
                three,
                st.sampled_from(["min", "max"]),
            ),
            st.builds(
                lambda a, b, c: {"op": "crop-by", "low": [a, b, c]}, *(st.integers(0, 3),) * 3
            ),
            st.builds(
                lambda b: {"op": "translate", "by": b}, st.tuples(*(st.integers(-9, 9),) * 3)
            ),
            st.builds(
                lambda a, n: {"op": "split-merge", "axis": a, "n": n}, st.sampled_from("xyz"), n
            ),
        ),
        max_size=5,
    )


def _oracle(step, data, start):
    """The step as a view has it, and what NumPy makes of an array."""
    match step["op"]:
        case "stride":
            by = step["step"]
            first = [-(-a // n) for a, n in zip(start, by, strict=True)]
            at = [i * n - a for i, n, a in zip(first, by, start, strict=True)]
            return step, data[tuple(slice(i, None, n) for i, n in zip(at, by, strict=True))], first
        case "transpose":
            order = ["xyz".index(a) for a in step["axes"]]
            return step, data.transpose(order), [start[i] for i in order]
        case "downsample":
            reduce = {"min": np.min, "max": np.max}[step["method"]]
            return step, *coarser(data, start, step["factors"], reduce)
        case "translate":
            moved = [a + b for a, b in zip(start, step["by"], strict=True)]
            return step | {"by": list(step["by"])}, data, moved
        case "crop-by":
            low = [min(n, m - 1) for n, m in zip(step["low"], data.shape, strict=True)]
            first = [a + n for a, n in zip(start, low, strict=True)]
            return {"op": "crop", "start": first}, data[tuple(slice(n, None) for n in low)], first
    axis, n = "xyz".index(step["axis"]), step["n"]
    keep = data.shape[axis] // n * n
    if not keep:
        return None, data, start
    cut = [slice(None)] * 3
    cut[axis] = slice(0, keep)
    name = step["axis"]
    steps = [
        {"op": "crop", "stop": {name: start[axis] + keep}},
        {"op": "split", "axis": name, "into": ["other", name], "inner_size": n},
        {"op": "merge", "axes": ["other", name], "into": name},
    ]
    return steps, data[tuple(cut)], [0 if i == axis else a for i, a in enumerate(start)]


@settings(deadline=None, max_examples=60)
@given(asked=_steps(), seed=st.integers(0, 10**6))
def test_compositions_are_what_numpy_makes_however_they_are_read(image, asked, seed):
    data, start, steps = DATA, list(ORIGIN), []
    for step in asked:
        own, made_, first = _oracle(step, data, start)
        if own is not None and made_.size:
            steps += own if isinstance(own, list) else [own]
            data, start = made_, list(first)
    spec = resolved(image, *steps)
    assert spec.domain == Box.of(tuple(start), data.shape)
    volume = open_volume(spec)
    np.testing.assert_array_equal(read_box(volume, spec.domain).array, data)
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(spec.domain.start, spec.domain.stop) for _ in range(2))
    box = Box(tuple(np.minimum(a, b).tolist()), tuple((np.maximum(a, b) + 1).tolist()))
    part = read_box(volume, box)
    np.testing.assert_array_equal(part.array, data[box.slices(spec.domain)])
    again = VolumeSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    for needed, inner in views.needs(spec, box):
        assert needed.domain.encloses(inner)
        assert needed.where().endswith("|zarr3:")


def test_what_a_box_needs_is_all_that_it_is_made_of(tmp_path):
    ids = made.noise((40, 40, 8), "uint16", 2)
    em = made.noise((40, 40, 8), seed=3)
    steps = (
        {"op": "contrast", "method": "clahe", "cell": 4},
        {"op": "downsample", "factors": [2, 2, 1], "method": "mean"},
        {"op": "mask", "by": str(tmp_path / "ids")},
        {"op": "stride", "step": [1, 2, 2]},
    )
    a_zarr(tmp_path / "ids", ids, origin=(0, 0, 0), size=(16, 16, 40))
    a_zarr(tmp_path / "em", em, origin=(0, 0, 0))
    spec = resolved(tmp_path / "em", *steps)
    box = Box((5, 2, 1), (8, 4, 3))
    expected = read(spec, box).array
    assert expected.any()
    kept = {"em": np.zeros(em.shape, bool), "ids": np.zeros(ids.shape, bool)}
    for needed, inner in views.needs(spec, box):
        kept[needed.source.rsplit("/", 1)[1]][inner.slices(needed.domain)] = True
    assert all(0 < k.mean() < 0.5 for k in kept.values())
    a_zarr(
        tmp_path / "other-ids",
        np.where(kept["ids"], ids, 0).astype("uint16"),
        (0, 0, 0),
        (16, 16, 40),
    )
    a_zarr(tmp_path / "other", np.where(kept["em"], em, 0).astype("uint8"), (0, 0, 0))
    other = [s | {"by": str(tmp_path / "other-ids")} if "by" in s else s for s in steps]
    found = read(resolved(tmp_path / "other", *other), box, missing="zero")
    np.testing.assert_array_equal(found.array, expected)


# Views as volumes


def test_a_view_of_a_view_and_of_any_volume(tmp_path, image):
    file = tmp_path / "half.json"
    file.write_text(view(image, {"op": "crop", "stop": {"x": 15}}))
    url = f"file://{image}/|zarr3:"
    spec = {"driver": "zarr3", "kvstore": f"file://{image}/"}
    crop = {"op": "crop", "start": [6, 0, 8], "stop": [10, 5, 12]}
    for of in (f"@{file}", {"file": str(file)}, {"volume": str(image)}, url, spec, image):
        np.testing.assert_array_equal(made_of(of, crop), DATA[1:5, 6:11, 1:5])
    outer = resolve_volume(f"@{file}", kind="image")
    assert outer.source == f"@{file}"
    assert resolve_levels(f"@{file}", kind=None) == (outer,)
    assert resolved(image).domain == DOMAIN
    np.testing.assert_array_equal(made_of(image), DATA)


def test_paths_in_a_file_are_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / "views").mkdir()
    (tmp_path / "data").mkdir()
    a_zarr(tmp_path / "data" / "em")
    (tmp_path / "views" / "inner.json").write_text(view("../data/em"))
    (tmp_path / "views" / "spec.json").write_text(
        json.dumps({"driver": "zarr3", "kvstore": f"file://{tmp_path}/data/em/"})
    )
    (tmp_path / "bodies.csv").write_text("supervoxel,body\n1,2\n")
    for of in ("@inner.json", {"file": "inner.json"}, {"volume": "../data/em"}, "@spec.json"):
        (tmp_path / "views" / "outer.json").write_text(view(of))
        for cwd, name in ((tmp_path, "@views/outer.json"), (tmp_path / "views", "@outer.json")):
            monkeypatch.chdir(cwd)
            np.testing.assert_array_equal(read(resolve_volume(name, kind=None)).array, DATA)
    of = {"volume": "../data/em", "kind": "segmentation"}
    (tmp_path / "views" / "ids.json").write_text(
        view(of, {"op": "relabel", "table": "../bodies.csv"})
    )
    assert read(resolve_volume("@ids.json", kind=None)).array.dtype == np.uint64


def test_flags_that_contradict_a_view_are_refused(image):
    name = view(image)
    assert resolve_volume(name, kind=None, scale=SIZE, origin_vx=ORIGIN, axes="xyz")
    for flags, message in (
        ({"scale": (8, 8, 30)}, "voxels of 8,8,40 nm and --scale gives 8,8,30"),
        ({"voxel_size_nm": (8, 8, 30)}, "voxels of 8,8,40 nm and --voxel-size gives 8,8,30"),
        ({"origin_vx": (0, 0, 0)}, "begins at voxel 5,-6,7 and --origin gives 0,0,0"),
        ({"axes": "zyx"}, "has the axes x,y,z and z,y,x are given"),
    ):
        with pytest.raises(RequestError, match=message):
            resolve_volume(name, kind=None, **flags)
    with pytest.raises(RequestError, match="has float32 voxels, and an image is uint8"):
        resolve_volume(view(image, {"op": "cast", "dtype": "float32"}), kind="image")


def test_what_is_assumed_of_a_volume_is_assumed_of_its_view(tmp_path):
    path = made.zarr2(tmp_path / "v", DATA, (8, 8, 4))
    of = {"volume": str(path), "voxel_size_nm": list(SIZE)}
    assert resolved(of, {"op": "stride", "step": [2, 1, 1]}).assumed == ("axes", "origin")
    stated = of | {"origin_vx": list(ORIGIN), "axes": "zyx"}
    spec = resolved(stated, {"op": "stride", "step": [1, 1, 1]})
    assert (spec.assumed, spec.domain) == ((), Box.of(ORIGIN, SHAPE[::-1]))


def test_where_is_the_place_and_not_the_version(tmp_path):
    document = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/db/|ocdbt:"}
    metadata = {"shape": list(SHAPE), "data_type": "uint8"}
    store = ts.open(document | {"metadata": metadata}, create=True).result()
    store[...] = DATA
    of = {"volume": document, "voxel_size_nm": list(SIZE)}
    before = resolved(of)
    store[0, 0, 0] = 0
    after = resolved(of)
    assert before != after
    assert before.where() == after.where()
    assert "ocdbt" in before.where()
    assert read(before).array[0, 0, 0] == DATA[0, 0, 0]
    assert read(after).array[0, 0, 0] == 0


def test_no_secret_is_kept(tmp_path, image):
    path = f"file://me:hunter2@{image}-absent"
    name = view({"driver": "zarr3", "kvstore": f"file://{image}/", "context": {"token": "hunter2"}})
    spec = resolve_volume(name, kind=None)
    assert "hunter2" not in json.dumps(spec.to_json()) + repr(spec) + spec.where()
    with pytest.raises(RequestError) as error:
        resolved(path)
    assert "hunter2" not in str(error.value)


def test_resolving_reads_no_voxel_and_a_volume_of_any_size_costs_the_same(tmp_path):
    metadata = {
        "shape": [10**6] * 3,
        "data_type": "uint64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64, 64, 64]}},
        "dimension_names": ["x", "y", "z"],
        "attributes": {"dimension_units": ["8 nm"] * 3},
    }
    store = made.create(tmp_path / "v", {"driver": "zarr3", "metadata": metadata})
    far = (slice(10**6 - 64, 10**6),) * 3
    store[far] = made.noise((64, 64, 64), "uint64")
    chunk = next(p for p in (tmp_path / "v").rglob("15624") if p.is_file())
    move = {"op": "translate", "by": [-(10**6), 0, 0]}
    steps = [
        move,
        {"op": "split", "axis": "z", "into": ["c", "z"], "inner_size": 10**3},
        {"op": "merge", "axes": ["c", "z"], "into": "z"},
        {"op": "relabel", "map": {"1": 2}},
        {"op": "downsample", "factors": [4, 4, 4], "method": "mode"},
        {"op": "mask", "by": json.loads(view(tmp_path / "v", move))},
    ]
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])  # which would be told if it were read
    spec = resolved(tmp_path / "v", *steps)
    volume = open_volume(spec)
    assert spec.domain == Box((-250_000, 0, 0), (0, 250_000, 250_000))
    last = Box((-16, 249_984, 249_984), (0, 250_000, 250_000))
    with pytest.raises(DataError, match="cannot be read"):
        read_box(volume, last)
    chunk.write_bytes(whole)
    assert read_box(volume, last).array.any()
    assert not read_box(volume, Box.of((-9, 0, 0), (2, 2, 2))).array.any()


# Chunks that are absent or damaged


def test_a_piece_over_an_absent_chunk_keeps_what_exists(tmp_path):
    path = a_zarr(tmp_path / "v", origin=(0, 0, 0))
    (path / "c" / "0" / "0" / "1").unlink()
    expected = DATA.copy()
    expected[:8, :8, 4:8] = 0
    steps = [
        [{"op": "downsample", "factors": [1, 1, 8], "method": "max"}],
        [
            {"op": "split", "axis": "z", "into": ["c", "z"], "inner_size": 5},
            {"op": "merge", "axes": ["c", "z"], "into": "z"},
            {"op": "cast", "dtype": "int8", "rule": "wrap"},
            {"op": "cast", "dtype": "uint8", "rule": "wrap"},
        ],
        [{"op": "mask", "by": str(path)}],
    ]
    coarse, _ = coarser(expected, (0, 0, 0), (1, 1, 8), np.max)
    for own, wanted in zip(steps, (coarse, expected, expected), strict=True):
        spec = resolved(path, *own)
        part = read(spec, missing="zero")
        np.testing.assert_array_equal(part.array, wanted)
        assert part.missing
        assert sum(b.size for b in part.missing) < spec.domain.size
        with pytest.raises(DataError, match="are in a chunk that is not stored: NOT_FOUND"):
            read(spec)


def test_a_damaged_chunk_beside_an_absent_one_is_told(tmp_path):
    path = a_zarr(tmp_path / "v")
    (path / "c" / "0" / "0" / "1").unlink()
    (path / "c" / "0" / "0" / "0").write_bytes(b"none")
    spec = resolved(path, {"op": "downsample", "factors": [1, 1, 16], "method": "max"})
    with pytest.raises(DataError, match=r"voxels \[5:13, -6:2, 0:1\) of the image .* cannot be"):
        read(spec, missing="zero")


def test_a_volume_that_changed_under_a_view_is_told(tmp_path):
    path = a_zarr(tmp_path / "v")
    spec = resolved(path, {"op": "stride", "step": [2, 2, 2]})
    file = path / "zarr.json"
    file.write_text(
        file.read_text().replace("[20, 15, 10]", "[20, 15, 9]").replace("[20,15,10]", "[20,15,9]")
    )
    with pytest.raises(RunError, match="v has changed since the plan: uint8 over"):
        open_volume(spec)
    file.unlink()
    with pytest.raises(RunError, match="was planned as a volume and cannot be opened now"):
        open_volume(spec)


def test_a_spec_of_a_view_survives_replacing_its_name(image):
    spec = resolved(image, {"op": "stride", "step": [2, 1, 1]})
    renamed = dataclasses.replace(spec, source="em")
    assert renamed.where() == spec.where()
    np.testing.assert_array_equal(read(renamed).array, DATA[1::2])


def test_pictures_are_stacked_and_have_no_stamps(tmp_path):
    sections = []
    for k in range(3):
        Image.fromarray(DATA[:, :, k].T).save(tmp_path / f"{k}.png")
        picture = {"driver": "png", "kvstore": f"file://{tmp_path}/{k}.png"}
        of = {"volume": picture, "voxel_size_nm": list(SIZE)}
        sections.append(json.loads(view(of, {"op": "channel", "index": 0})))
    spec = resolved(sections, {"op": "stack", "axis": "z", "voxel_size_nm": 40})
    np.testing.assert_array_equal(read(spec).array, DATA[:, :, :3])
    assert stored_under(open_volume(spec), spec.domain) is None


def test_what_is_stored_under_a_box_moves_its_stamp_and_nothing_else_does(tmp_path):
    channels = made.noise((2, *SHAPE))
    path = made.zarr3(tmp_path / "v", channels, (1, 8, 8, 4), names=("c", "x", "y", "z"))
    of = {"volume": str(path), "voxel_size_nm": list(SIZE)}
    spec = resolved(of, {"op": "channel", "index": 1}, {"op": "translate", "by": [100, 0, 0]})
    volume = open_volume(spec)
    box = Box((108, 0, 0), (110, 3, 4))

    def stamps():
        found = stored_under(volume, box)
        assert found is not None
        return [stamp(v, b) for v, b in found]

    (stored, part), *rest = stored_under(volume, box)
    assert (part, rest) == (Box((8, 0, 0), (10, 3, 4)), [])
    assert list(keys_under(stored, part)) == ["c/1/1/0/0"]
    np.testing.assert_array_equal(read_box(stored, part).array, channels[1, 8:10, :3, :4])
    before = stamps()
    for key in ("c/0/1/0/0", "c/1/0/0/0"):
        (path / key).write_bytes((path / key).read_bytes())
    assert stamps() == before
    (path / "c/1/1/0/0").unlink()
    assert stamps() != before
    plain = open_volume(resolve_volume(str(a_zarr(tmp_path / "em")), kind=None))
    assert stored_under(plain, box) == [(plain, box)]


def test_computed_steps_never_wait_for_one_another(image):
    steps = [{"op": "cast", "dtype": t, "rule": "clip"} for t in ("int8", "uint8") * 6]
    small = {"op": "split", "axis": "z", "into": ["c", "z"], "inner_size": 1}
    back = {"op": "merge", "axes": ["c", "z"], "into": "z"}
    volume = open_volume(resolved(image, small, *steps, back, *steps))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        boxes = [volume.spec.domain] * 16
        parts = list(threads.map(lambda b: read_box(volume, b).array, boxes, timeout=60))
    assert all((p == np.minimum(DATA, 127)).all() for p in parts)
