import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import threading

import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes import sample_volumes as made
from volumes import stamps
from volumes.errors import RunError
from volumes.geometry import Box, vec
from volumes.opening import Volume, open_volume, resolve_volume
from volumes.stamps import keys_under, stamp, stamped

SIZE = (8.0, 8.0, 40.0)
SHAPE = (20, 15, 10)
CHUNK = (8, 8, 4)
SHARD = (16, 16, 8)
ORIGIN = (5, -6, 7)
DOMAIN = Box.of(ORIGIN, SHAPE)
DATA = made.noise(SHAPE)
FIRST = Box.of(ORIGIN, CHUNK)
LAST = Box((21, 2, 15), (25, 9, 17))
OUTSIDE = Box((-30, -30, -30), (5, 30, 30))
NOTHING = hashlib.sha256().hexdigest()
METADATA = {".zarray", ".zattrs", "zarr.json", "attributes.json", "info"}
UNITS = {"dimension_units": ["8 nm", "8 nm", "40 nm"], "voxel_offset": list(ORIGIN)}


def opened(given, kind="image", **stated) -> Volume:
    return open_volume(resolve_volume(str(given), kind=kind, **stated))


def zarr2(path, separator, order):
    """The data in an order of axes such as ``tczyx``, its keys written with a separator."""
    axes = [a for a in order if a in "xyz"]
    data = DATA.transpose(["xyz".index(a) for a in axes])
    data = data.reshape([SHAPE["xyz".index(a)] if a in "xyz" else 1 for a in order])
    metadata = {
        "shape": list(data.shape),
        "chunks": [CHUNK["xyz".index(a)] if a in "xyz" else 1 for a in order],
        "dtype": "|u1",
        "compressor": None,
        "dimension_separator": separator,
    }
    made.create(path, {"driver": "zarr", "metadata": metadata})[...] = data
    stated = {
        "resolution": [dict(zip("xyz", SIZE, strict=True)).get(a, 1) for a in order],
        "offset": [dict(x=40, y=-48, z=280).get(a, 0) for a in order],
        "axis_names": list(order),
    }
    (path / ".zattrs").write_text(json.dumps(stated))
    return path


def zarr3_keys(path, encoding, separator):
    """A Zarr 3 array whose keys are encoded in another way."""
    metadata = {
        "shape": list(SHAPE),
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(CHUNK)}},
        "chunk_key_encoding": {"name": encoding, "configuration": {"separator": separator}},
        "attributes": UNITS,
    }
    made.create(path, {"driver": "zarr3", "metadata": metadata})[...] = DATA
    return path


def sharding(preshift, minishards, shards, hashed):
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": preshift,
        "minishard_bits": minishards,
        "shard_bits": shards,
        "hash": hashed,
    }


def precomputed(place, shape, chunk, sharded, offset=ORIGIN, key=None):
    """A precomputed scale with absent chunks, open to be written."""
    scale = {"size": shape, "chunk_size": chunk, "resolution": SIZE, "voxel_offset": offset}
    scale |= {"encoding": "raw"} | ({"sharding": sharded} if sharded else {})
    kind = {"data_type": "uint8", "num_channels": 1, "type": "image"}
    spec = {"driver": "neuroglancer_precomputed", "multiscale_metadata": kind}
    spec["scale_metadata"] = scale | ({"key": key} if key else {})
    return made.create(place, json.loads(json.dumps(spec)))


def spread(path, *bits):
    precomputed(path, SHAPE, CHUNK, sharding(*bits))[...] = DATA[..., None]
    return path


def in_ocdbt(path, shard=None, version=None):
    """A JSON spec of a Zarr 3 array inside an OCDBT database, made unless it is there."""
    kvstore = {"driver": "ocdbt", "base": f"file://{path}/", "path": "a/"}
    if not path.exists():
        inner = {"chunk_shape": list(CHUNK)}
        metadata = {
            "shape": list(SHAPE),
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard or CHUNK}},
            "attributes": UNITS,
        }
        if shard:
            metadata["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]
        spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
        ts.open(json.loads(json.dumps(spec))).result()[...] = DATA
    pinned = {} if version is None else {"version": version}
    return json.dumps({"driver": "zarr3", "kvstore": kvstore | pinned})


MAKERS = {
    "zarr2 zyx": lambda path: zarr2(path, ".", "zyx"),
    "zarr2 tczyx": lambda path: zarr2(path, "/", "tczyx"),
    "zarr2 xyzc": lambda path: zarr2(path, ".", "xyzc"),
    "zarr3": lambda path: made.zarr3(path, DATA, CHUNK, attributes=UNITS),
    "zarr3 dots": lambda path: zarr3_keys(path, "default", "."),
    "zarr3 v2": lambda path: zarr3_keys(path, "v2", "/"),
    "zarr3 sharded": lambda path: made.zarr3(path, DATA, CHUNK, shard=SHARD, attributes=UNITS),
    "n5": lambda path: made.n5(path, DATA, CHUNK, {"resolution": SIZE, "offset": [40, -48, 280]}),
    "n5 c": lambda path: made.n5(
        path,
        DATA[..., None],
        (*CHUNK, 1),
        {"resolution": [*SIZE, 1], "offset": [40, -48, 280, 0], "axes": list("xyzc")},
    ),
    "precomputed": lambda path: made.precomputed(path, DATA, CHUNK, resolution=SIZE, offset=ORIGIN),
    "precomputed two shards": lambda path: spread(path, 1, 1, 1, "identity"),
    "precomputed one shard": lambda path: spread(path, 2, 3, 0, "identity"),
    "precomputed murmur": lambda path: spread(path, 0, 2, 5, "murmurhash3_x86_128"),
    "precomputed murmur 64": lambda path: spread(path, 1, 0, 64, "murmurhash3_x86_128"),
    "ocdbt": in_ocdbt,
    "ocdbt sharded": lambda path: in_ocdbt(path, SHARD),
}


@dataclasses.dataclass
class Case:
    """A volume, a way to write it, and the key that each of its chunks was seen to lie in."""

    volume: Volume
    writer: ts.TensorStore
    owner: dict[int, str]

    def keys(self, box):
        return {self.owner[i] for i in self.volume.spec.read_grid.meeting(box)}

    def cells(self):
        grid = self.volume.spec.read_grid
        return [grid.box(i) for i in range(grid.size)]


def unpinned(given):
    """The volume as it is at each moment, also inside a database."""
    return open_volume(dataclasses.replace(opened(given).spec, pinned=None))


def writable(volume):
    """The volume in its frame, written through another context than it is read with."""
    stored = ts.open(json.loads(volume.spec.tensorstore), open=True).result()
    return stored[volume.store.spec().transform]


def touch(writer, voxel):
    """Give one voxel another value, not 0."""
    writer[voxel] = int(writer[voxel].read().result()) % 249 + 1


def stored(writer):
    """Generation of each stored key, metadata left out."""
    keys = [k.decode() for k in writer.kvstore.list().result()]
    reads = {k: writer.kvstore.read(k).result() for k in keys if k not in METADATA}
    return {k: (r.stamp.generation, r.value) for k, r in reads.items()}


def case(name, path):
    volume = unpinned(MAKERS[name](path))
    writer = writable(volume)
    grid, owner = volume.spec.read_grid, {}
    for i in range(grid.size):
        before = stored(writer)
        touch(writer, grid.box(i).start)
        after = stored(writer)
        (owner[i],) = {k for k in after if after[k] != before.get(k)}
    return Case(volume, writer, owner)


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


@pytest.mark.parametrize("name", MAKERS)
def test_the_keys_of_the_domain_are_those_that_are_stored(every, name):
    one = every[name]
    keys = list(keys_under(one.volume, DOMAIN))
    assert sorted(keys) == sorted(stored(one.writer))
    assert list(keys_under(one.volume, DOMAIN.grown((9, 9, 9)))) == keys
    assert list(keys_under(one.volume, OUTSIDE)) == []
    assert stamped(one.volume)


def test_the_cases_store_as_many_keys_as_they_were_made_for(every):
    numbers = {name: len(set(one.owner.values())) for name, one in every.items()}
    few = {"zarr3 sharded": 4, "ocdbt sharded": 4, "precomputed two shards": 2}
    few |= {"precomputed one shard": 1, "precomputed murmur": 14, "precomputed murmur 64": 12}
    assert numbers == dict.fromkeys(MAKERS, 18) | few


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


# Grids of up to 2**20 chunks an axis, so that the axes run out of bits one after another.
extents = st.integers(0, 20).flatmap(lambda bits: st.integers(1 << bits >> 1, 1 << bits))


@settings(max_examples=60)
@given(
    grid=st.tuples(extents, extents, extents).map(lambda g: [max(n, 1) for n in g]),
    preshift=st.integers(0, 12),
    minishards=st.integers(0, 8),
    shards=st.integers(0, 30),
    hashed=st.sampled_from(["identity", "murmurhash3_x86_128"]),
    data=st.data(),
)
def test_any_precomputed_shard_is_found(
    tmp_path_factory, grid, preshift, minishards, shards, hashed, data
):
    path = tmp_path_factory.mktemp("sharded") / "v"
    kind = sharding(preshift, minishards, shards, hashed)
    shape = [2 * n - 1 for n in grid]
    writer = precomputed(path, shape, [2, 2, 2], kind)
    at = [data.draw(st.integers(o, o + n - 1)) for o, n in zip(ORIGIN, shape, strict=True)]
    writer[(*at, 0)] = 7
    volume = opened(path)
    assert list(keys_under(volume, Box.of(vec(at), (1, 1, 1)))) == list(stored(writer))


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
