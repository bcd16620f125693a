import asyncio
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import volumes
from tests.volumes import sample_volumes as made
from tests.volumes.view_cases import DATA, DOMAIN, IDS, ORIGIN, SHAPE, SIZE, a_zarr
from volumes.errors import DataError, RequestError, RunError
from volumes.geometry import Box
from volumes.opening import resolve_volume


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return a_zarr(tmp_path_factory.mktemp("lazy") / "em")


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    return a_zarr(tmp_path_factory.mktemp("lazy") / "ids", IDS)


def twice(voxels, voxel_size_nm, parameters):
    return voxels.astype("uint16") * 2


# Opening and reading


def test_a_volume_is_opened_by_any_name_and_read(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    spec = {"driver": "zarr3", "kvstore": f"file://{path}/"}
    for name in ("em", path, f"{path}|zarr3:", spec, json.dumps(spec), path.as_uri()):
        em = volumes.open(name)
        assert (em.domain, em.shape, em.dtype) == (DOMAIN, SHAPE, np.uint8)
        assert (em.kind, em.voxel_size_nm, em.spec.format) == ("image", SIZE, "zarr3")
        np.testing.assert_array_equal(em.read_sync(), DATA)
        np.testing.assert_array_equal(asyncio.run(em.read()), DATA)
    first, second = Box((3, -6, 7), (7, 0, 9)), Box((20, 0, 10), (25, 9, 17))
    some = volumes.open(path).read_many([first, second])
    padded = np.zeros(first.shape, np.uint8)
    padded[2:] = DATA[:2, :6, :2]
    np.testing.assert_array_equal(some[0], padded)
    np.testing.assert_array_equal(some[1], DATA[15:, 6:, 3:])
    with pytest.raises(RunError, match="above the limit of 10; use a smaller"):
        volumes.open(path).read_many([first], limit_bytes=10)


def test_what_a_volume_leaves_out_is_stated(tmp_path):
    path = made.zarr2(tmp_path / "v", DATA.T, (4, 8, 8))
    with pytest.raises(RequestError, match="has no voxel size"):
        volumes.open(path)
    em = volumes.open(path, voxel_size_nm=SIZE, origin_vx=ORIGIN, axes="zyx", kind="segmentation")
    assert (em.domain, em.kind) == (DOMAIN, "segmentation")
    np.testing.assert_array_equal(em.read_sync(), DATA)
    again = resolve_volume(json.dumps(em.view), kind=None)
    assert (again.domain, again.kind) == (DOMAIN, "segmentation")


# Views


def test_every_operation_is_a_new_volume_whose_document_says_the_same(path, ids, tmp_path):
    em, labels = volumes.open(path), volumes.open(ids)
    table = tmp_path / "bodies.csv"
    table.write_text("supervoxel,body\n5,6\n")
    low, high = em.crop(stop={"z": 12}), em.crop(start={"z": np.int64(12)})
    rgb = volumes.stack([em.label({"z": "w"}), em.label({"z": "w"})], "channel")
    lazies = {
        "crop": (em.crop(Box((6, 0, 8), (10, 3, 9))), DATA[1:5, 6:9, 1:2]),
        "stride": (em.stride([1, 1, 7]).translate(to=[0, 0, 0]), DATA[:, :, ::7]),
        "transpose": (em.transpose("yxz").translate([1, 2, 3]), DATA.transpose(1, 0, 2)),
        "channel": (rgb.channel(1).label({"w": "z"}), DATA),
        "cast": (em.cast("int32").cast(np.uint8, "clip"), DATA),
        "downsample": (em.downsample([1, 1, 1]), DATA),
        "modes": (labels.downsample({"x": 20}).downsample({"x": 2}), None),
        "concat": (volumes.concat([low, high], "z"), DATA),
        "overlay": (volumes.overlay([em, high]), DATA),
        "relabel": (labels.relabel({int(IDS[0, 0, 0]): 3}, "zero"), (IDS == IDS[0, 0, 0]) * 3),
        "table": (labels.relabel(str(table)), IDS),
        "mask": (em.mask(labels, [int(IDS[0, 0, 0])]), DATA * (IDS == IDS[0, 0, 0])),
        "contrast": (em.contrast(0, 255), DATA),
        "percentiles": (em.percentiles(0, 100, cell=5), None),
        "clahe": (em.clahe(cell=5), None),
        "split": (em.split("z", ["c", "z"], 5).merge(("c", "z"), "z"), DATA),
        "broadcast": (em.crop(stop={"z": 8}).broadcast("z", 3, start=1), DATA[:, :, [0, 0, 0]]),
        "apply": (em.apply(twice, "uint16", kind="image"), DATA.astype("uint16") * 2),
    }
    for name, (lazy, expected) in lazies.items():
        found = lazy.read_sync()
        if expected is not None:
            np.testing.assert_array_equal(found, expected, err_msg=name)
        assert found.shape == lazy.shape
        assert found.dtype == lazy.dtype
        text = json.dumps(lazy.view)
        same = resolve_volume(text, kind=None, allow_functions=("tests",))
        file = tmp_path / f"{name}.json"
        lazy.save(file)
        opened = volumes.open(f"@{file}", allow_functions=("tests.volumes.test_lazy",))
        np.testing.assert_array_equal(opened.read_sync(), found, err_msg=name)
        sizes = (same.domain, same.voxel_size_nm, same.kind, same.dtype)
        assert sizes == (lazy.domain, lazy.voxel_size_nm, lazy.kind, lazy.dtype.name)
        unread = pickle.loads(pickle.dumps(lazy))
        assert unread == lazy
        assert unread.spec == lazy.spec
        np.testing.assert_array_equal(unread.read_sync(), found)
    assert em.view["steps"] == []


def test_opening_and_viewing_open_nothing_to_read(tmp_path):
    path = a_zarr(tmp_path / "v")
    for chunk in (path / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    half = volumes.open(path).downsample([2, 2, 1]).clahe(cell=8)
    assert half.shape == (11, 8, 10)
    with pytest.raises(DataError, match="cannot be read"):
        half.read_sync()


def test_a_function_runs_if_it_is_handed_over_or_listed(path):
    em = volumes.open(path)
    name = f"{__name__}:twice"
    with pytest.raises(RequestError, match="add --allow-functions tests"):
        em.apply(name, "uint16")
    listed = volumes.open(path, allow_functions=["tests"]).apply(name, "uint16")
    assert listed.view == em.apply(twice, "uint16").view
    with pytest.raises(RequestError, match="a function is named package.module:name"):
        em.apply(lambda v, s, p: v, "uint8")


def test_an_array_that_is_no_volume_says_so(path):
    split = volumes.open(path).split("z", ["channel", "z"], 5)
    assert split.array.names == ("x", "y", "channel", "z")
    assert split.dtype == np.uint8
    with pytest.raises(RequestError, match="of more than one index along channel"):
        split.read_sync()
    assert split.channel(0).shape == (20, 15, 5)


def test_many_reads_at_once(path):
    em = volumes.open(path).downsample([2, 2, 2])

    async def all_of_them():
        boxes = [Box.of((2 + i, -3, 3), (1, 8, 6)) for i in range(11)]
        return await asyncio.gather(*(em.read(b) for b in boxes))

    np.testing.assert_array_equal(np.concatenate(asyncio.run(all_of_them())), em.read_sync())


# Creating and writing


@pytest.mark.parametrize("format", ["zarr3", "zarr2", "n5", "precomputed", "ome-zarr"])
def test_a_volume_is_created_written_and_read(tmp_path, format):
    out = volumes.create(
        tmp_path / "v",
        (20, 15, 10),
        voxel_size_nm=(8, 8, 40),
        metadata={"animal": "fly"},
        origin_vx=ORIGIN,
        chunk=(8, 8, 4),
        format=format,
    )
    assert (out.domain, out.voxel_size_nm, out.dtype) == (DOMAIN, SIZE, np.uint8)
    assert not out.read_sync().any()

    async def write():
        rows = [Box((5, -6, z), (25, 9, z + 1)) for z in range(7, 17)]
        for box in rows:
            await out.write(box, DATA[box.slices(DOMAIN)])

    asyncio.run(write())
    np.testing.assert_array_equal(out.read_sync(), DATA)
    again = volumes.open(tmp_path / "v")
    assert (again.domain, again.voxel_size_nm, again.kind) == (DOMAIN, SIZE, "image")
    np.testing.assert_array_equal(again.read_sync(), DATA)
    np.testing.assert_array_equal(out.stride([2, 1, 1]).read_sync(), DATA[1::2])
    text = "".join(p.read_text() for p in (tmp_path / "v").iterdir() if p.is_file())
    assert '"animal"' in text or format == "ome-zarr"


def test_an_array_is_stored_at_once_and_by_another_process(tmp_path):
    out = volumes.create(
        tmp_path / "v",
        IDS,
        voxel_size_nm=SIZE,
        chunk=(4, 4, 4),
        shard=(8, 8, 8),
        codec="zstd:5",
    )
    assert (out.kind, out.dtype, out.spec.write_chunk) == ("segmentation", np.uint64, (8, 8, 8))
    np.testing.assert_array_equal(out.read_sync(), IDS)
    file = tmp_path / "out.pickle"
    file.write_bytes(pickle.dumps(out))
    program = (
        "import pickle, sys, numpy as np\n"
        "from volumes import Box\n"
        "out = pickle.load(sys.stdin.buffer)\n"
        "out.write_sync(Box((3, 0, 0), (9, 2, 1)), np.full((6, 2, 1), 7, 'uint64'))\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], input=file.read_bytes(), check=True, cwd=os.getcwd()
    )
    expected = IDS.copy()
    expected[3:9, :2, :1] = 7
    np.testing.assert_array_equal(out.read_sync(), expected)


def test_what_cannot_be_written_is_told(tmp_path, path):
    out = volumes.create(tmp_path / "v", (8, 8, 8), voxel_size_nm=SIZE)
    box = Box((0, 0, 0), (2, 2, 2))
    for wrong, shape in ((box, (2, 2, 3)), (Box((7, 0, 0), (9, 2, 2)), (2, 2, 2))):
        with pytest.raises(RequestError, match=r"an array of shape .* is to fill \["):
            out.write_sync(wrong, np.zeros(shape, "uint8"))
    with pytest.raises(RunError, match="holds 300, which uint8 does not hold exactly"):
        out.write_sync(box, np.full((2, 2, 2), 300))
    out.write_sync(box, np.full((2, 2, 2), 200))
    assert out.read_sync(box).tolist() == np.full((2, 2, 2), 200).tolist()
    with pytest.raises(RequestError, match="v holds a volume already, which is not replaced"):
        volumes.create(tmp_path / "v", (8, 8, 8), voxel_size_nm=SIZE)
    for reading in (volumes.open(path), out.stride([2, 2, 2])):
        with pytest.raises(RequestError, match="is open for reading, and a view stores nothing"):
            asyncio.run(reading.write(box, np.zeros((2, 2, 2), "uint8")))
    with pytest.raises(RequestError, match="overlay of no volume at all"):
        volumes.overlay([])
