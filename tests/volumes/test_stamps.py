import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes.keyed_volumes import (
    CHUNK,
    DATA,
    DOMAIN,
    FIRST,
    LAST,
    MAKERS,
    ORIGIN,
    OUTSIDE,
    SHAPE,
    SIZE,
    case,
    in_ocdbt,
    opened,
    precomputed,
    sharding,
    stored,
    touch,
    unpinned,
    writable,
)
from volumes import stamps
from volumes.errors import RunError
from volumes.geometry import Box, vec
from volumes.keys import keys_under
from volumes.stamps import stamp, stamped

NOTHING = hashlib.sha256().hexdigest()


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stamps")
    return {name: case(name, directory / name.replace(" ", "-")) for name in MAKERS}


def boxes():
    low = st.tuples(*(st.integers(o - 9, o + n + 4) for o, n in zip(ORIGIN, SHAPE, strict=True)))
    shape = st.tuples(st.integers(0, 30), st.integers(0, 25), st.integers(0, 20))
    return st.builds(Box.of, low, shape)


def voxels():
    return st.tuples(*(st.integers(o, o + n - 1) for o, n in zip(ORIGIN, SHAPE, strict=True)))


# Which keys


@settings(max_examples=150)
@given(name=st.sampled_from(list(MAKERS)), box=boxes(), voxel=voxels())
def test_a_stamp_moves_if_and_only_if_a_key_under_the_box_is_written(every, name, box, voxel):
    one = every[name]
    assert set(keys_under(one.volume, box)) == one.keys(box)
    before = stamp(one.volume, box)
    assert stamp(one.volume, box) == before
    touch(one.writer, voxel)
    written = one.owner[one.volume.spec.read_grid.index_at(vec(voxel))]
    assert (stamp(one.volume, box) != before) == (written in one.keys(box))


def test_a_far_box_of_a_huge_domain_costs_its_own_keys_alone(tmp_path):
    path, far = tmp_path / "v", Box((10**6, 10**6, 10**6), (10**6 + 64, 10**6 + 64, 10**6 + 1))
    precomputed(path, [10**7] * 3, [64] * 3, sharding(9, 6, 40, "identity"))
    volume = opened(path)
    assert 1 <= len(list(keys_under(volume, far))) <= 8
    assert stamp(volume, far) not in (None, NOTHING)


# What moves a stamp


def moves(one, change):
    """The cells whose stamps a change moves."""
    before = [stamp(one.volume, cell) for cell in one.cells()]
    change()
    after = [stamp(one.volume, cell) for cell in one.cells()]
    assert None not in before + after
    return {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("index", [0, 10])
def test_a_write_moves_the_stamps_over_its_key_alone(every, name, index):
    one = every[name]
    cell, key = one.cells()[index], one.owner[index]
    neighbours = {i for i, k in one.owner.items() if k == key}
    with pytest.raises(ValueError, match="Destination does not support writing"):
        one.volume.store[cell.start] = 1
    assert moves(one, lambda: None) == set()
    assert moves(one, lambda: touch(one.writer, cell.start)) == neighbours
    same = one.writer.kvstore[key]
    assert moves(one, lambda: one.writer.kvstore.write(key, same).result()) == neighbours


@pytest.mark.parametrize("name", MAKERS)
def test_what_vanishes_and_what_appears_moves_the_stamp(every, name):
    one = every[name]
    key = one.owner[0]
    neighbours = {i for i, k in one.owner.items() if k == key}
    value = one.writer.kvstore[key]
    keys = list(keys_under(one.volume, DOMAIN))
    assert moves(one, lambda: one.writer.kvstore.__delitem__(key)) == neighbours
    assert moves(one, lambda: None) == set()
    assert list(keys_under(one.volume, DOMAIN)) == keys
    assert moves(one, lambda: one.writer.kvstore.write(key, value).result()) == neighbours


def test_the_digest_is_of_keys_and_generations_alone(every, monkeypatch):
    one = every["zarr3"]
    assert stamp(one.volume, OUTSIDE) == NOTHING
    inside = Box((6, -5, 8), (7, -4, 9))
    assert stamp(one.volume, inside) == stamp(one.volume, FIRST.intersection(DOMAIN))
    generation = stored(one.writer)["c/0/0/0"][0]
    alone = hashlib.sha256(f"c/0/0/0\0{generation.hex()}\n".encode()).hexdigest()
    assert stamp(one.volume, FIRST) == alone
    whole = stamp(one.volume, DOMAIN)
    monkeypatch.setattr(stamps, "_IN_FLIGHT", 5)
    assert stamp(one.volume, DOMAIN) == whole


def test_two_holes_are_not_one(tmp_path):
    precomputed(tmp_path / "v", SHAPE, CHUNK, None)
    volume = opened(tmp_path / "v")
    digests = {stamp(volume, volume.spec.read_grid.box(i)) for i in range(18)}
    assert len(digests) == 18
    assert None not in digests


# An OCDBT database at a version


def test_a_pinned_version_keeps_its_stamps(tmp_path):
    document = in_ocdbt(tmp_path / "db")
    live, planned = unpinned(document), opened(document)
    stated = opened(in_ocdbt(tmp_path / "db", version=planned.spec.pinned))
    first, last = stamp(live, FIRST), stamp(live, LAST)
    touch(writable(live), FIRST.start)
    for before in (planned, stated):
        assert stamped(before)
        assert (stamp(before, FIRST), stamp(before, LAST)) == (first, last)
    for after in (live, opened(document)):
        assert stamped(after)
        assert stamp(after, FIRST) not in (None, first)
        assert stamp(after, LAST) == last


# Where there are none


@pytest.mark.parametrize(
    "view",
    [
        lambda base: {"driver": "cast", "dtype": "uint8", "base": base},
        lambda base: (
            {"driver": "downsample", "downsample_factors": [2, 2, 2], "base": base}
            | {"downsample_method": "stride"}
        ),
        lambda base: (
            base
            | {"transform": {"input_inclusive_min": [3, 4, 5], "input_exclusive_max": [18, 15, 9]}}
        ),
    ],
)
def test_a_json_spec_of_another_driver_or_with_a_transform_has_no_stamps(tmp_path, view):
    path = MAKERS["zarr3"](tmp_path / "v")
    document = view({"driver": "zarr3", "kvstore": f"file://{path}/"})
    volume = opened(json.dumps(document), axes="xyz")
    assert volume.spec.format == "json-spec"
    assert stamp(volume, volume.spec.domain) is None
    assert keys_under(volume, volume.spec.domain) is None
    assert not stamped(volume)


def test_a_scale_that_lies_beside_its_volume_has_no_stamps(tmp_path):
    precomputed(tmp_path / "v", SHAPE, CHUNK, None, key="../beside")[...] = DATA[..., None]
    assert len(list((tmp_path / "beside").iterdir())) == 18
    volume = opened(tmp_path / "v")
    assert stamp(volume, DOMAIN) is None
    assert not stamped(volume)


@contextlib.contextmanager
def served(folder, etag="", refused=None):
    """A folder over HTTP; ``etag`` begins every ETag, and a ``refused`` status answers chunks."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_HEAD(self):
            if refused:
                self.send_error(refused)
            else:
                super().do_HEAD()

        def end_headers(self):
            with contextlib.suppress(OSError):
                found = os.stat(self.translate_path(self.path))
                if etag:
                    self.send_header("ETag", f'{etag}{found.st_ino}-{found.st_mtime_ns}"')
            super().end_headers()

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v"
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize("name", ["zarr3", "zarr3 sharded", "precomputed murmur"])
def test_a_web_server_with_etags_gives_stamps(tmp_path, name):
    one = case(name, tmp_path / "v")
    with served(tmp_path, etag='"') as url:
        remote = dataclasses.replace(one, volume=opened(url))
        assert stamped(remote.volume)
        neighbours = {i for i, k in one.owner.items() if k == one.owner[0]}
        assert moves(remote, lambda: touch(one.writer, FIRST.start)) == neighbours
        gone = moves(remote, lambda: one.writer.kvstore.__delitem__(one.owner[0]))
        assert gone == neighbours


@pytest.mark.parametrize(
    "answers", [{"etag": ""}, {"etag": 'W/"'}, {"refused": 405}, {"refused": 501}]
)
def test_a_web_server_that_tells_nothing_gives_none(tmp_path, answers):
    MAKERS["zarr3"](tmp_path / "v")
    with served(tmp_path, **answers) as url:
        volume = opened(url)
        assert not stamped(volume)
        assert stamp(volume, FIRST) is None
        assert stamp(volume, DOMAIN) is None
        assert stamp(volume, OUTSIDE) == NOTHING


# When storage fails


def test_a_web_server_that_forbids_is_an_error(tmp_path):
    MAKERS["zarr3"](tmp_path / "v")
    with served(tmp_path, refused=403) as url:
        volume = opened(url)
        with pytest.raises(RunError) as error:
            stamp(volume, FIRST)
        with pytest.raises(RunError, match=f"^zarr.json of the image {url}: .*PERMISSION_DENIED"):
            stamped(volume)
    text = str(error.value)
    assert text.startswith(f"voxels [5:13, -6:2, 7:11) of the image {url}: the stamp, by which a c")
    assert "cannot be read: PERMISSION_DENIED: Forbidden" in text
    assert "; check that this process may read the volume" in text


def test_a_chunk_that_cannot_be_opened_is_an_error(tmp_path):
    path = MAKERS["zarr3"](tmp_path / "v")
    chunk = path / "c" / "0" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to(chunk)
    volume = opened(path)
    with pytest.raises(RunError) as error:
        stamp(volume, DOMAIN)
    assert str(error.value).startswith(f"voxels {DOMAIN} of the image {path}: the stamp, by")
    assert "c/0/0/0" in str(error.value)
    assert stamp(volume, LAST) is not None


@contextlib.contextmanager
def unprivileged():
    """A time without root's right to read everything."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_chunk_that_may_not_be_read_is_an_error(tmp_path):
    path = MAKERS["zarr3"](tmp_path / "v")
    (path / "c" / "0" / "0" / "0").chmod(0)
    volume = opened(path)
    with unprivileged(), pytest.raises(RunError, match=rf"of the image {path}: .* PERMISSION_DENI"):
        stamp(volume, FIRST)


# Views


def view(of, *steps):
    document = {"format": "segclr-beam-view", "format_version": 1, "of": of, "steps": steps}
    return json.dumps(document)


def test_the_stamp_of_a_view_is_that_of_what_it_is_made_of(tmp_path):
    names = ("zarr3", "precomputed two shards")
    volumes = [opened(MAKERS[name](tmp_path / name.split()[0])) for name in names]
    low, high = (ORIGIN[0], *ORIGIN[1:]), DOMAIN.stop
    middle = {"op": "crop", "start": list(low), "stop": [low[0] + 8, *high[1:]]}
    parts = [view(volumes[0].spec.source, middle)]
    parts.append(
        view(volumes[1].spec.source, middle | {"start": [low[0] + 8, *low[1:]], "stop": high})
    )
    both = opened(view([json.loads(p) for p in parts], {"op": "concat", "axis": "x"}))
    assert both.spec.format == "view"
    assert stamped(both)
    left, right = Box.of(low, (1, 1, 1)), Box.of((high[0] - 1, low[1], low[2]), (1, 1, 1))
    first, last, whole = (stamp(both, box) for box in (left, right, DOMAIN))
    assert len({first, last, whole, None}) == 4
    assert stamp(both, OUTSIDE) == NOTHING
    touch(writable(volumes[0]), low)
    assert stamp(both, left) not in (None, first)
    assert (stamp(both, right), stamp(both, DOMAIN) == whole) == (last, False)
    touch(writable(volumes[0]), (high[0] - 1, *low[1:]))
    before = [stamp(both, box) for box in (left, right, DOMAIN)]
    touch(writable(volumes[0]), (high[0] - 1, *low[1:]))  # which the view does not have
    assert [stamp(both, box) for box in (left, right, DOMAIN)] == before


def test_a_view_has_no_stamps_where_a_volume_of_it_has_none(tmp_path):
    path = MAKERS["zarr3"](tmp_path / "v")
    base = {"driver": "zarr3", "kvstore": f"file://{path}/"}
    cast = {"driver": "cast", "dtype": "uint8", "base": base}
    of = {"volume": cast, "voxel_size_nm": list(SIZE), "axes": "xyz"}
    without = opened(view(of, {"op": "crop", "stop": [13, 9, 10]}))
    assert stamp(without, without.spec.domain) is None
    assert not stamped(without)
