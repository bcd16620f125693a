import dataclasses
import json
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.launch.served import served
from tests.volumes.keyed_volumes import (
    DOMAIN,
    MAKERS,
    ORIGIN,
    OUTSIDE,
    SHAPE,
    case,
    opened,
    precomputed,
    sharding,
    stored,
)
from volumes import objects
from volumes.errors import RunError
from volumes.geometry import Box, vec
from volumes.keys import box_of, keys_of, keys_under
from volumes.listing import stored_keys, stored_objects
from volumes.opening import open_volume
from volumes.sharding import Sharding, cells_of, morton


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stamps")
    return {name: case(name, directory / name.replace(" ", "-")) for name in MAKERS}


def boxes():
    low = st.tuples(*(st.integers(o - 9, o + n + 4) for o, n in zip(ORIGIN, SHAPE, strict=True)))
    shape = st.tuples(st.integers(0, 30), st.integers(0, 25), st.integers(0, 20))
    return st.builds(Box.of, low, shape)


@pytest.mark.parametrize("name", MAKERS)
def test_the_keys_of_the_domain_are_those_that_are_stored(every, name):
    one = every[name]
    keys = list(keys_under(one.volume, DOMAIN))
    assert sorted(keys) == sorted(stored(one.writer))
    assert list(keys_under(one.volume, DOMAIN.grown((9, 9, 9)))) == keys
    assert list(keys_under(one.volume, OUTSIDE)) == []


def test_the_cases_store_as_many_keys_as_they_were_made_for(every):
    numbers = {name: len(set(one.owner.values())) for name, one in every.items()}
    few = {"zarr3 sharded": 4, "ocdbt sharded": 4, "precomputed two shards": 2}
    few |= {"precomputed one shard": 1, "precomputed murmur": 14, "precomputed murmur 64": 12}
    assert numbers == dict.fromkeys(MAKERS, 18) | few


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


# The box of a key

HASHED = [name for name in MAKERS if "murmur" in name]
EXACT = [name for name in MAKERS if not name.startswith("precomputed ")]


@pytest.mark.parametrize("name", EXACT)
def test_the_box_of_a_key_is_its_chunk_or_shard(every, name):
    one = every[name]
    grid = one.volume.spec.write_grid
    boxes = {box_of(one.volume, key) for key in stored(one.writer)}
    assert boxes == {grid.box(i) for i in range(grid.size)}
    for key in stored(one.writer):
        assert list(keys_under(one.volume, box_of(one.volume, key))) == [key]
    keys = keys_of(one.volume)
    assert (keys.count, keys.boxless) == (grid.size, "")
    assert sum(keys.values(k) for k in keys.every()) == DOMAIN.size


@pytest.mark.parametrize("name", ["precomputed two shards", "precomputed one shard"])
def test_the_box_of_a_shard_is_the_hull_of_its_chunks(every, name):
    one = every[name]
    keys, cells = keys_of(one.volume), one.cells()
    assert keys.count == len(stored(one.writer))
    assert sorted(keys.every()) == sorted(stored(one.writer))
    for key in stored(one.writer):
        mine = [cells[i] for i, owner in one.owner.items() if owner == key]
        hull = mine[0]
        for cell in mine[1:]:
            hull = hull.hull(cell)
        assert keys.box(key) == hull
        assert key in keys.under(hull)
        assert keys.values(key) == sum(c.size for c in mine)


@pytest.mark.parametrize("name", HASHED)
def test_a_shard_of_hashed_chunks_has_no_box_and_says_why(every, name):
    keys = keys_of(every[name].volume)
    assert (
        "in the order of a hash (murmurhash3_x86_128), so a shard's name tells no" in keys.boxless
    )
    assert keys.count is None
    for key in stored(every[name].writer):
        assert (keys.box(key), keys.values(key), keys.holds(key)) == (None, None, True)
    assert sorted(keys.every()) == sorted(stored(every[name].writer))


@settings(max_examples=100)
@given(name=st.sampled_from([n for n in MAKERS if n not in HASHED]), box=boxes())
def test_every_key_under_a_box_has_a_box_that_meets_it(every, name, box):
    volume = every[name].volume
    for key in keys_under(volume, box):
        found = box_of(volume, key)
        assert found.intersection(box).size > 0
        assert DOMAIN.encloses(found)
        assert key in keys_under(volume, found)


NO_KEYS = ["", "zarr.json", "segclr-beam/ingest/0_0_0.json", "c", "c/0/0", "c/0/0/0/0", "c/0/0/9"]
NO_KEYS += ["c/0/0/00", "c/0/0/-1", "c.0.0", "0.0", "00.0.0", "0/0/0.__lock", "c/0/0/ 0", "0,0,0"]
NO_KEYS += ["8_8_40/", "8_8_40/5-13_-6-2_7-12", "8_8_40/5-13_-6-2", "8_8_40/6-14_-6-2_7-11"]
NO_KEYS += ["8_8_40/5-13_-6-2_7-11.gz", "8_8_40/.shard", "8_8_40/g.shard", "8_8_40/000.shard"]
NO_KEYS += ["8_8_40/0A.shard", "16_16_80/0.shard", "8_8_40/05-13_-6-2_7-11", "8_8_40/20.shard"]


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_no_key_has_no_box(every, name):
    keys = keys_of(every[name].volume)
    own = set(keys.under(DOMAIN))
    assert own
    for key in NO_KEYS:
        assert (keys.holds(key), keys.box(key), keys.values(key)) == (False, None, None)
    others = {key for other in MAKERS for key in every[other].owner.values()} - own
    hashed = set() if name in HASHED else others
    assert [key for key in hashed if keys.holds(key)] == []


# Sharding, against every chunk one by one

few = st.integers(1, 9)


@settings(max_examples=150)
@given(
    grid=st.tuples(few, few, few),
    preshift=st.integers(0, 5),
    minishards=st.integers(0, 4),
    bits=st.integers(0, 9),
)
def test_the_chunks_of_shards_are_counted_without_listing_them(grid, preshift, minishards, bits):
    spread = Sharding(grid, "identity", preshift, minishards, bits)
    xs, ys, zs = morton(grid, [range(n) for n in grid])
    codes = (xs[:, None, None] | ys[:, None] | zs).ravel()
    shards = spread.shards_of(codes)
    cells = cells_of(grid, codes)
    assert cells.tolist() == [list(c) for c in np.ndindex(*grid)]
    present = sorted(set(shards.tolist()))
    assert spread.count == len(present)
    assert [n for n in range(spread.numbers) if spread.cells(n)] == present
    for number in range(1 << bits):
        mine, sets = cells[shards == number], spread.cells(number)
        if not len(mine):
            assert sets is None
            continue
        assert np.prod([s.size for s in sets]) == len(mine)
        assert [s.first for s in sets] == mine.min(axis=0).tolist()
        assert [s.last for s in sets] == mine.max(axis=0).tolist()
        for axis, one in enumerate(sets):
            held = [i for i in range(grid[axis]) if one.holds(i)]
            assert held == sorted(set(mine[:, axis].tolist()))
        assert spread.number(spread.name(number)) == number
    assert spread.number(spread.name(1 << bits)) is None


def test_a_number_that_no_chunk_has_is_left_out():
    grid = (3, 1, 2)
    found = cells_of(grid, np.array([0, 3, 4, 5, 8, 2**63], np.uint64))
    # x has two bits at places 0 and 2, z has one at place 1; 5 is x = 3, beyond the grid.
    assert found.tolist() == [[0, 0, 0], [1, 0, 1], [2, 0, 0]]


# What is stored


@pytest.mark.parametrize("name", MAKERS)
def test_stored_keys_are_found_by_listing(every, name, tmp_path):
    one = every[name]
    keys = sorted(stored(one.writer))
    one.writer.kvstore.write("segclr-beam/ingest/0_0_0.json", b"{}").result()
    one.writer.kvstore.write("8_8_40/notes.txt", b"{}").result()
    try:
        assert sorted(stored_keys(unpinned_again(one))) == keys
    finally:
        del one.writer.kvstore["segclr-beam/ingest/0_0_0.json"]
        del one.writer.kvstore["8_8_40/notes.txt"]


def unpinned_again(one):
    return open_volume(dataclasses.replace(one.volume.spec, pinned=None))


def test_sizes_are_those_of_files(every):
    one = every["zarr3"]
    found = dict(stored_objects(one.volume.store.kvstore, "c/"))
    assert found == {key: len(one.writer.kvstore[key]) for key in stored(one.writer)}
    assert dict(stored_objects(one.volume.store.kvstore, "c/1")) == {
        key: size for key, size in found.items() if key.startswith("c/1")
    }
    assert list(stored_objects(one.volume.store.kvstore, "nothing/")) == []


def test_locks_are_not_listed(tmp_path):
    volume = opened(MAKERS["zarr3"](tmp_path / "v"))
    (tmp_path / "v" / "c" / "0" / "0" / "0.__lock").write_bytes(b"")
    assert len(list(stored_objects(volume.store.kvstore, "c/"))) == 18


def test_a_directory_that_may_not_be_listed_is_an_error(tmp_path):
    volume = opened(MAKERS["zarr3"](tmp_path / "v"))
    (tmp_path / "v" / "c" / "0").rename(tmp_path / "elsewhere")
    (tmp_path / "v" / "c" / "0").symlink_to(tmp_path / "v" / "c" / "0")
    with pytest.raises(RunError, match=f"^cannot list {tmp_path}/v/: .*c/0"):
        list(stored_keys(volume))


def test_a_web_server_cannot_be_listed(tmp_path):
    MAKERS["zarr3"](tmp_path / "v")
    with served(tmp_path) as server:
        volume = opened(f"{server.url}/v")
        with pytest.raises(RunError) as error:
            list(stored_keys(volume))
    assert str(error.value).startswith(f"{server.url}/v/ cannot be listed (a web server gives no l")
    assert "look at a copy in a directory or bucket" in str(error.value)


def test_a_bucket_is_listed_with_sizes(tmp_path, monkeypatch):
    """GCS as google-cloud-storage answers, below the place of the volume."""
    asked = []

    class Bucket:
        def list_blobs(self, prefix):
            asked.append(prefix)
            names = ("em/c/0/0/0", "em/c/0/0/1")
            return [types.SimpleNamespace(name=n, size=7 + i) for i, n in enumerate(names)]

    monkeypatch.setattr(objects, "blob", lambda url: types.SimpleNamespace(bucket=Bucket()))
    store = objects.keyed("gs://bucket/em")
    assert list(stored_objects(store, "c/")) == [("c/0/0/0", 7), ("c/0/0/1", 8)]
    assert asked == ["em/c/"]


def test_a_view_has_no_keys(tmp_path):
    path = MAKERS["zarr3"](tmp_path / "v")
    base = {"driver": "zarr3", "kvstore": f"file://{path}/"}
    volume = opened(json.dumps({"driver": "cast", "dtype": "uint8", "base": base}), axes="xyz")
    assert box_of(volume, "c/0/0/0") is None
    with pytest.raises(RunError, match="is a json-spec volume, whose keys are not known, so what"):
        list(stored_keys(volume))
