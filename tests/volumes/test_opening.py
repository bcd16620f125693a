import contextlib
import dataclasses
import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.volumes import sample_volumes as made
from volumes.errors import RequestError, RunError
from volumes.geometry import Box
from volumes.opening import open_volume, resolve_volume, shared_domain
from volumes.spec import VolumeSpec

SIZE = (8.0, 8.0, 40.0)
SHAPE = (20, 15, 10)
CHUNK = (8, 8, 4)
DATA = made.noise(SHAPE)
SECRET = "hunter2"


def resolve(volume, kind="image", **stated):
    return resolve_volume(str(volume), kind=kind, **stated)


def voxels(spec: VolumeSpec):
    return open_volume(spec).store.read().result()


def zyx(data):
    return data.transpose()


def a_zarr3(path, data=DATA, **attributes):
    stated = {"dimension_units": ["8 nm", "8 nm", "40 nm"], "voxel_offset": [5, -6, 7]}
    return made.zarr3(path, data, CHUNK, names=("x", "y", "z"), attributes=stated | attributes)


@contextlib.contextmanager
def served(directory, status=None) -> Iterator[str]:
    """The directory over HTTP on the loopback, or one status for whatever is asked."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if status is None:
                super().do_GET()
            else:
                self.send_error(status)

        def log_message(self, format, *args):
            pass

    handler = functools.partial(Handler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


# Every format, in the frame


def test_zarr3(tmp_path):
    spec = resolve(a_zarr3(tmp_path / "v"))
    assert (spec.format, spec.driver, spec.axes) == ("zarr3", "zarr3", ("x", "y", "z"))
    assert (spec.voxel_size_nm, spec.origin_vx) == (SIZE, (5, -6, 7))
    assert spec.domain == Box((5, -6, 7), (25, 9, 17))
    assert (spec.read_chunk, spec.write_chunk, spec.dtype) == (CHUNK, CHUNK, "uint8")
    assert spec.assumed == ()
    store = open_volume(spec).store
    assert store.domain.labels == ("x", "y", "z")
    assert store[5, -6, 7].read().result() == DATA[0, 0, 0]
    np.testing.assert_array_equal(voxels(spec), DATA)


def test_zarr3_sharded_and_turned(tmp_path):
    ids = made.noise(SHAPE, "uint64") << np.uint64(40)
    path = made.zarr3(
        tmp_path / "v",
        zyx(ids),
        (4, 8, 8),
        shard=(8, 16, 16),
        names=("z", "y", "x"),
        attributes={"dimension_units": ["40 nm", "8 nm", "8 nm"], "voxel_offset": [7, -6, 5]},
    )
    spec = resolve(path, "segmentation")
    assert spec.domain == Box((5, -6, 7), (25, 9, 17))
    assert (spec.read_chunk, spec.write_chunk) == ((8, 8, 4), (16, 16, 8))
    assert (spec.dtype, spec.itemsize) == ("uint64", 8)
    np.testing.assert_array_equal(voxels(spec), ids)


def test_zarr2_with_a_channel(tmp_path):
    attributes = {
        "axis_names": ["c^", "z", "y", "x"],
        "resolution": [40, 8, 8],
        "offset": [280, -48, 40],
    }
    data = zyx(DATA)[None]
    spec = resolve(made.zarr2(tmp_path / "v", data, (1, 4, 8, 8), attributes))
    assert spec.axes == ("channel", "z", "y", "x")
    assert (spec.voxel_size_nm, spec.origin_vx) == (SIZE, (5, -6, 7))
    assert spec.read_chunk == (8, 8, 4)
    np.testing.assert_array_equal(voxels(spec), DATA)


@pytest.mark.parametrize("sharded", [False, True])
def test_precomputed(tmp_path, sharded):
    path = made.precomputed(
        tmp_path / "v", DATA, CHUNK, resolution=SIZE, offset=(5, -6, 7), sharded=sharded
    )
    spec = resolve(path)
    assert (spec.format, spec.axes) == ("neuroglancer_precomputed", ("x", "y", "z", "channel"))
    assert (spec.voxel_size_nm, spec.origin_vx) == (SIZE, (5, -6, 7))
    assert spec.read_chunk == CHUNK
    np.testing.assert_array_equal(voxels(spec), DATA)


def test_n5(tmp_path):
    attributes = {"resolution": [8, 8, 40], "offset": [40, -48, 280], "axes": ["x", "y", "z"]}
    spec = resolve(made.n5(tmp_path / "v", DATA, CHUNK, attributes))
    assert (spec.format, spec.voxel_size_nm, spec.origin_vx) == ("n5", SIZE, (5, -6, 7))
    np.testing.assert_array_equal(voxels(spec), DATA)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_levels(tmp_path, version):
    write = made.zarr2 if version == "0.4" else made.zarr3
    image = made.multiscale([[0.04, 8, 8], [0.08, 16, 16]], [[0.4, 160, 0], [0.42, 164, 4]])
    path = made.ome_group(tmp_path / "v", image, version)
    write(path / "s0", zyx(DATA), (4, 8, 8))
    write(path / "s1", zyx(DATA[::2, ::2, ::2]), (4, 8, 8))
    spec = resolve(path, scale=(16, 16, 80))
    assert (spec.voxel_size_nm, spec.origin_vx) == ((16, 16, 80), (0, 10, 5))
    np.testing.assert_array_equal(voxels(spec), DATA[::2, ::2, ::2])
    assert resolve(path, scale=(8, 8, 40)).origin_vx == (0, 20, 10)
    with pytest.raises(RequestError) as error:
        resolve(path)
    assert str(error.value) == (
        f"{path} has 2 levels and no --scale; give one of:\n"
        "  --scale 8,8,40  20 x 15 x 10 voxels\n"
        "  --scale 16,16,80  10 x 8 x 5 voxels"
    )


def test_an_array_inside_an_ome_group_is_turned_as_its_group_says(tmp_path):
    image = made.multiscale([[0.04, 8, 8]], [None])
    path = made.ome_group(tmp_path / "v", image, "0.4")
    made.zarr2(path / "s0", zyx(DATA), (4, 8, 8))
    spec = resolve(path / "s0")
    assert (spec.voxel_size_nm, spec.assumed) == (SIZE, ("origin",))
    np.testing.assert_array_equal(voxels(spec), DATA)


# The ways of naming a volume


def test_the_same_volume_by_every_name(tmp_path, monkeypatch):
    path = a_zarr3(tmp_path / "v w")
    monkeypatch.chdir(tmp_path)
    document = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(document))
    url = path.as_uri()
    names = [str(path), f"{path}/", "v w", url, f"{url}/|zarr3:", f"{path}|zarr3:", f"{url}/|auto:"]
    modes = {"open": True, "create": True, "assume_metadata": True}
    names += [json.dumps(document), json.dumps(document | modes), f"@{file}"]
    specs = [resolve(name) for name in names]
    assert {s.where() for s in specs} == {f"{url}/|zarr3:"}
    assert len({dataclasses.replace(s, source="") for s in specs}) == 1
    assert [s.source for s in specs[:4]] == names[:4]
    assert specs[-1].source == f"@{file}"


def test_a_json_spec_states_what_the_format_leaves_out(tmp_path):
    path = made.zarr2(tmp_path / "v", zyx(DATA), (4, 8, 8))
    document = {"driver": "zarr", "kvstore": f"file://{path}/"}
    document |= {"voxel_size_nm": [8, 8, 40], "origin_vx": [5, -6, 7], "axes": ["z", "y", "x"]}
    spec = resolve(json.dumps(document))
    assert (spec.voxel_size_nm, spec.origin_vx, spec.assumed) == (SIZE, (5, -6, 7), ())
    assert json.loads(spec.tensorstore).keys() == {"driver", "kvstore"}
    np.testing.assert_array_equal(voxels(spec), DATA)
    with pytest.raises(RequestError, match=r"origin_vx \[5, -6, 7\] in its JSON and \[1, 1, 1\]"):
        resolve(json.dumps(document), origin_vx=(1, 1, 1))


@pytest.mark.parametrize(
    "modes",
    [
        {"create": True},
        {"create": True, "delete_existing": True, "open": False},
        {"open": True, "assume_metadata": True},
    ],
)
def test_a_json_spec_never_writes_and_trusts_nothing_unread(tmp_path, modes):
    path = tmp_path / "v"
    document = {"driver": "zarr3", "kvstore": f"file://{path}/", **modes}
    document["schema"] = {"dtype": "uint8", "domain": {"shape": [4, 4, 4]}}
    for volume in (document, {"driver": "cast", "dtype": "uint8", "base": document}):
        with pytest.raises(RequestError, match="cannot be opened: NOT_FOUND"):
            resolve(json.dumps(volume), voxel_size_nm=SIZE)
    assert not path.exists()


def test_a_json_spec_with_a_transform_states_its_own_domain(tmp_path):
    path = made.zarr3(
        tmp_path / "v", DATA, CHUNK, attributes={"dimension_units": ["8 nm", "8 nm", "40 nm"]}
    )
    cut = {"input_inclusive_min": [3, 4, 5], "input_exclusive_max": [18, 15, 9]}
    document = {"driver": "zarr3", "kvstore": f"file://{path}/", "transform": cut}
    spec = resolve(json.dumps(document))
    assert spec.format == "json-spec"
    assert (spec.voxel_size_nm, spec.domain) == (SIZE, Box((3, 4, 5), (18, 15, 9)))
    assert spec.anchor_vx == (0, 0, 0)
    assert spec.read_grid.box(0) == Box((3, 4, 5), (8, 8, 8))
    np.testing.assert_array_equal(voxels(spec), DATA[3:18, 4:15, 5:9])


def test_a_json_spec_picks_a_scale_by_its_index(tmp_path):
    path = made.precomputed(tmp_path / "v", DATA, CHUNK, resolution=(8, 8, 40))
    made.precomputed(path, DATA[::2, ::2, ::2], CHUNK, resolution=(16, 16, 80))
    document = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/"}
    spec = resolve(json.dumps(document | {"scale_index": 1}))
    assert spec.voxel_size_nm == (16, 16, 80)
    assert spec.where().endswith("|neuroglancer_precomputed:1")
    np.testing.assert_array_equal(voxels(spec), DATA[::2, ::2, ::2])
    with pytest.raises(RequestError, match="has no scale_index 2: it has 2 scales"):
        resolve(json.dumps(document | {"scale_index": 2}))


def test_over_http_and_without_the_secrets_of_its_url(tmp_path):
    made.precomputed(tmp_path / "v", DATA, CHUNK, resolution=SIZE, offset=(5, -6, 7))
    with served(tmp_path) as url:
        host = url.removeprefix("http://")
        spec = resolve(f"http://me:{SECRET}@{host}/v?token={SECRET}")
        assert spec.source == f"{url}/v"
        assert spec.where() == f"{url}/v/|neuroglancer_precomputed:0"
        assert SECRET not in json.dumps(spec.to_json()) + repr(spec)
        np.testing.assert_array_equal(voxels(spec), DATA)
        piped = resolve(f"{url}/v?token={SECRET}|neuroglancer-precomputed:")
        assert piped.where() == spec.where()
        with pytest.raises(RequestError, match="looked there for zarr") as error:
            resolve(f"{url}/absent?token={SECRET}")
    assert SECRET not in str(error.value)
    assert "credential members were removed from what was given" in str(error.value)


def test_a_server_that_denies_is_told(tmp_path):
    with served(tmp_path, status=403) as url:
        with pytest.raises(RequestError, match=r"cannot be read, or is not a volume: .*403"):
            resolve(f"{url}/v")


# What a format states, and what flags add


def test_flags_state_what_the_format_leaves_out(tmp_path):
    path = made.zarr3(tmp_path / "v", zyx(DATA), (4, 8, 8))
    spec = resolve(path, voxel_size_nm=SIZE, origin_vx=(5, -6, 7), axes="zyx")
    assert (spec.voxel_size_nm, spec.origin_vx, spec.assumed) == (SIZE, (5, -6, 7), ())
    np.testing.assert_array_equal(voxels(spec), DATA)


def test_stored_order_is_x_y_z_where_nothing_states_axes(tmp_path):
    spec = resolve(made.zarr2(tmp_path / "v", DATA, CHUNK), voxel_size_nm=SIZE)
    assert (spec.axes, spec.assumed) == (("x", "y", "z"), ("axes", "origin"))
    np.testing.assert_array_equal(voxels(spec), DATA)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"voxel_size_nm": (8, 8, 30)},
            "states a voxel size of 8,8,40 nm and --voxel-size gives 8,8,30",
        ),
        ({"origin_vx": (0, 0, 0)}, "states its origin as voxel 5,-6,7 and --origin gives 0,0,0"),
        ({"axes": "zyx"}, "states its axes as x,y,z and the axes given are z,y,x"),
        (
            {"scale": (16, 16, 80)},
            "has 1 level and --scale 16,16,80 names none; give one of:\n"
            "  --scale 8,8,40  20 x 15 x 10 voxels",
        ),
    ],
)
def test_a_flag_that_contradicts_the_volume_is_refused_with_both(tmp_path, flags, message):
    path = a_zarr3(tmp_path / "v")
    with pytest.raises(RequestError, match=message) as error:
        resolve(path, **flags)
    assert str(error.value).startswith(str(path))


def test_flags_that_agree_are_taken(tmp_path):
    path = a_zarr3(tmp_path / "v")
    agreeing = resolve(
        path,
        voxel_size_nm=(8, 8.0000000001, 40),
        origin_vx=(5, -6, 7),
        axes="xyz",
        scale=(8, 8, 40),
    )
    assert agreeing == resolve(path)


def test_no_voxel_size(tmp_path):
    path = made.zarr2(tmp_path / "v", DATA, CHUNK)
    with pytest.raises(RequestError) as error:
        resolve(path)
    assert str(error.value).startswith(f"{path} has no voxel size: add --voxel-size X,Y,Z (nm)")


@pytest.mark.parametrize("size", [(8, 8, 0), (8, -8, 8), (8, float("nan"), 8)])
def test_a_voxel_size_that_is_none_is_refused(tmp_path, size):
    path = made.zarr2(tmp_path / "v", DATA, CHUNK)
    with pytest.raises(RequestError, match=r"has a voxel size of .* nm; three positive lengths"):
        resolve(path, voxel_size_nm=size)
    stated = made.zarr2(tmp_path / "w", DATA, CHUNK, {"resolution": list(size)})
    with pytest.raises(RequestError, match=r"has a voxel size of .* nm; three positive lengths"):
        resolve(stated)


def test_a_zero_in_dimension_units_is_refused(tmp_path):
    with pytest.raises(RequestError, match="has a voxel size of 0,0,0 nm"):
        resolve(a_zarr3(tmp_path / "v", dimension_units=["0 nm"] * 3))


def test_levels_without_units_cannot_be_picked(tmp_path):
    axes = [{"name": n, "type": "space"} for n in "zyx"]
    image = made.multiscale([[1, 1, 1], [2, 2, 2]], [None, None], axes)
    path = made.ome_group(tmp_path / "v", image, "0.4")
    with pytest.raises(RequestError, match="has 2 levels whose scales have no unit"):
        resolve(path, voxel_size_nm=SIZE)


def test_a_level_between_voxels_is_refused(tmp_path):
    image = made.multiscale([[0.04, 8, 8], [0.08, 16, 16]], [[0, 8, 0], [0.02, 12, 4]])
    path = made.ome_group(tmp_path / "v", image, "0.4")
    made.zarr2(path / "s0", zyx(DATA), (4, 8, 8))
    made.zarr2(path / "s1", zyx(DATA), (4, 8, 8))
    assert resolve(path, scale=(8, 8, 40)).origin_vx == (0, 1, 0)
    with pytest.raises(RequestError, match=r"an origin of 0,0\.5,0 voxels, which is no whole"):
        resolve(path, scale=(16, 16, 80))


# What is no volume of the kind


def test_a_path_that_is_absent_or_a_file(tmp_path):
    with pytest.raises(RequestError, match="absent does not exist; .* segclr-beam ingest"):
        resolve(tmp_path / "absent")
    file = tmp_path / "stack.h5"
    file.write_bytes(b"x")
    with pytest.raises(RequestError, match=r"stack\.h5 is a file, and a volume is a directory"):
        resolve(file)
    with pytest.raises(RequestError, match="is not a volume: looked there for"):
        resolve(tmp_path)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ("ftp://host/em", "no store is known for ftp://"),
        ("gs://b/em", "gs://b/em is no location: .*Invalid GCS bucket name"),
        ("file:///x/|zarr4:", r"file:///x/\|zarr4: is no TensorStore URL: .*zarr4"),
        ('{"driver": "zarr3"', r"the inline JSON spec is not JSON"),
        ('{"kvstore": "file:///x/"}', "is no TensorStore spec: a JSON object with a driver"),
        ('{"driver": "zarr4"}', "cannot be opened: .*zarr4"),
        ('{"driver": "zarr3"}', "has no kvstore"),
        ('{"driver": "zarr3", "kvstore": 5}', "is refused by TensorStore"),
        ("@/nowhere/spec.json", "there is no file /nowhere/spec.json"),
        (
            '{"driver": "zarr3", "kvstore": "memory://", "voxel_size_nm": 8}',
            r"has voxel_size_nm 8; three numbers \[x, y, z\]",
        ),
        (
            '{"driver": "zarr3", "kvstore": "memory://", "origin_vx": [0, 0.5, 0]}',
            r"has origin_vx 0,0\.5,0; whole voxels are needed",
        ),
    ],
)
def test_names_that_lead_nowhere(volume, message):
    with pytest.raises(RequestError, match=message):
        resolve(volume)


def test_metadata_that_tensorstore_refuses(tmp_path):
    path = a_zarr3(tmp_path / "v")
    file = path / "zarr.json"
    file.write_text(file.read_text().replace('"uint8"', '"uint9"'))
    with pytest.raises(RequestError, match=r"v cannot be opened: .*uint9") as error:
        resolve(path)
    assert "tensorstore_spec" not in str(error.value)


def test_voxels_of_the_wrong_type(tmp_path):
    wide = made.zarr2(tmp_path / "u16", made.noise(SHAPE, "uint16"), CHUNK)
    real = made.zarr2(tmp_path / "f32", made.noise(SHAPE, "float32"), CHUNK)
    truth = made.zarr2(tmp_path / "bool", made.noise(SHAPE, "bool"), CHUNK)
    with pytest.raises(RequestError, match="u16 has uint16 voxels, and an image is uint8"):
        resolve(wide, voxel_size_nm=SIZE)
    assert resolve(wide, "segmentation", voxel_size_nm=SIZE).dtype == "uint16"
    for path, name in ((real, "float32"), (truth, "bool")):
        with pytest.raises(RequestError, match=f"has {name} voxels, and a segmentation holds ids"):
            resolve(path, "segmentation", voxel_size_nm=SIZE)


def test_dimensions_that_are_no_volume(tmp_path):
    flat = made.zarr2(tmp_path / "flat", DATA[0], (8, 8))
    with pytest.raises(RequestError, match=r"has 2 dimensions of extent \(15, 10\), taken as x, y"):
        resolve(flat, voxel_size_nm=SIZE)
    pair = made.zarr2(tmp_path / "pair", np.stack([DATA, DATA]), (1, *CHUNK))
    with pytest.raises(RequestError, match=r"4 dimensions of extent \(2, 20, 15, 10\) named chann"):
        resolve(pair, voxel_size_nm=SIZE, axes="cxyz")
    named = made.zarr3(tmp_path / "named", DATA, CHUNK, names=("x", "y", "t"))
    with pytest.raises(RequestError, match="has the axes x, y, time; a volume has x, y and z"):
        resolve(named, voxel_size_nm=SIZE)


def test_a_domain_without_bounds_is_refused():
    fill = {"driver": "array", "array": 7, "dtype": "uint8"}
    fill["transform"] = {"input_rank": 3, "output": [], "input_labels": ["x", "y", "z"]}
    with pytest.raises(RequestError, match="a bounded one is needed"):
        resolve(json.dumps(fill), voxel_size_nm=SIZE)


# Opening again, and together


def test_a_volume_that_changed_since_the_plan_is_refused(tmp_path):
    path = a_zarr3(tmp_path / "v")
    spec = resolve(path)
    file = path / "zarr.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"shape": [21, 15, 10]}))
    with pytest.raises(
        RunError,
        match=r"uint8 over \[5:25, -6:9, 7:17\) was planned and uint8 .*21.* is stored now",
    ):
        open_volume(spec)
    file.write_text(json.dumps(document | {"data_type": "int8"}))
    with pytest.raises(RunError, match="was planned and int8"):
        open_volume(spec)
    file.unlink()
    with pytest.raises(RunError, match="v was planned as a volume and cannot be opened now: NOT_F"):
        open_volume(spec)


def test_a_huge_domain_costs_nothing(tmp_path):
    side = 10**6
    metadata = {
        "shape": [side] * 3,
        "data_type": "uint64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64] * 3}},
        "attributes": {"dimension_units": ["8 nm"] * 3},
    }
    made.create(tmp_path / "v", {"driver": "zarr3", "metadata": metadata})
    start = time.perf_counter()
    spec = resolve(tmp_path / "v", "segmentation")
    open_volume(spec)
    assert spec.domain.size == 10**18
    assert time.perf_counter() - start < 2


def test_shared_domain(tmp_path):
    image = resolve(a_zarr3(tmp_path / "em"))
    path = a_zarr3(tmp_path / "seg", made.noise(SHAPE, "uint32"), voxel_offset=[15, 0, 0])
    segmentation = resolve(path, "segmentation")
    assert shared_domain(image, segmentation) == Box((15, 0, 7), (25, 9, 10))
    away = dataclasses.replace(segmentation, domain=Box((25, 0, 7), (40, 9, 10)))
    with pytest.raises(RequestError) as error:
        shared_domain(image, away)
    assert "covers voxels [5:25, -6:9, 7:17) and" in str(error.value)
    assert "covers [25:40, 0:9, 7:10), which do not overlap" in str(error.value)
    coarse = dataclasses.replace(segmentation, voxel_size_nm=(16.0, 16.0, 40.0))
    with pytest.raises(RequestError, match=r"voxels of 8,8,40 nm and .* of 16,16,40 nm"):
        shared_domain(image, coarse)
