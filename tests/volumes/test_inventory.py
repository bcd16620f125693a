import json
import pathlib
import resource
import time

import numpy as np
import pytest

from tests.launch.served import served
from tests.support import tells_of_quality
from tests.volumes import sample_volumes as made
from tests.volumes.keyed_volumes import (
    CHUNK,
    DATA,
    DOMAIN,
    MAKERS,
    METADATA,
    ORIGIN,
    SHAPE,
    SHARD,
    UNITS,
    opened,
    precomputed,
    sharding,
    spread,
)
from volumes import inventory as inventories
from volumes.encodings import encoding
from volumes.errors import RequestError
from volumes.geometry import Box
from volumes.inspection import Broken, inspect, is_volume
from volumes.inventory import Inside, inventory
from volumes.keys import keys_under

ON_FILE = [name for name in MAKERS if not name.startswith("ocdbt")]
SHARDED = [name for name in MAKERS if "shard" in name or "murmur" in name]


def taken(path, named=10):
    volume = opened(path, kind=None)
    return inventory(volume.store, volume.spec.format, named)


def chunks(path):
    """The files of chunks, in order of name."""
    return sorted(
        p for p in path.rglob("*") if p.is_file() and p.name not in METADATA and p.suffix != ".json"
    )


@pytest.mark.parametrize("name", ON_FILE)
def test_a_whole_volume_lacks_nothing(tmp_path, name):
    path = MAKERS[name](tmp_path / "v")
    found = taken(path)
    files = chunks(path)
    assert (found.expected, found.stored, found.absent) == (len(files), len(files), 0)
    assert found.at_most == len(files)
    assert found.stored_bytes == sum(p.stat().st_size for p in files)
    assert found.decoded_bytes == DOMAIN.size
    assert found.ratio == DOMAIN.size / found.stored_bytes
    assert (found.missing, found.strays, found.unknown) == ((), 0, "")
    whole = Inside(chunks=18, stored=18, missing=(), absent=0, unknown="")
    assert found.inside == (whole if name in SHARDED else None)


@pytest.mark.parametrize("name", ON_FILE)
def test_what_is_removed_is_missing_by_name(tmp_path, name):
    path = MAKERS[name](tmp_path / "v")
    files = chunks(path)
    gone = files[len(files) // 2]
    volume = opened(path)
    size = gone.stat().st_size
    before = taken(path)
    gone.unlink()
    found = inventory(volume.store, volume.spec.format)
    (missing,) = found.missing
    assert found.absent == 1
    assert path / missing.key == gone
    assert found.stored_bytes == before.stored_bytes - size
    if "murmur" in name:
        assert missing.box is None
    elif name in SHARDED:
        assert found.decoded_bytes < before.decoded_bytes
        assert DOMAIN.encloses(missing.box)
    else:
        assert found.decoded_bytes == before.decoded_bytes - missing.box.size
    if found.inside is not None:
        assert found.inside.absent == 0
        assert found.inside.stored < 18


def test_the_first_missing_ones_are_named_and_all_are_counted(tmp_path):
    path = MAKERS["zarr3"](tmp_path / "v")
    for file in chunks(path)[:5]:
        file.unlink()
    found = taken(path, named=2)
    assert (found.absent, [m.key for m in found.missing]) == (5, ["c/0/0/0", "c/0/0/1"])
    assert found.missing[0].box == Box.of(ORIGIN, CHUNK)


def test_an_array_without_any_chunk(tmp_path):
    precomputed(tmp_path / "v", SHAPE, CHUNK, None)
    found = taken(tmp_path / "v", named=100)
    assert (found.expected, found.stored, found.absent, found.stored_bytes) == (18, 0, 18, 0)
    assert found.ratio is None
    assert len(found.missing) == 18


def test_what_is_no_chunk_is_a_stray(tmp_path):
    path = MAKERS["precomputed"](tmp_path / "v")
    (path / "8_8_40" / "0-8_0-8_0-4.gz").write_bytes(b"x")
    (path / "8_8_40" / "extra").write_bytes(b"x")
    found = taken(path)
    assert (found.strays, found.stored, found.stored_bytes) == (2, 18, DOMAIN.size)
    assert found.stray in ("8_8_40/0-8_0-8_0-4.gz", "8_8_40/extra")


# Chunks inside shards


def partly(path, form):
    """A sharded volume of which two chunks of the first shard are written: (0, 0, 0), (1, 0, 1)."""
    if form == "zarr3":
        inner = {"chunk_shape": list(CHUNK)}
        metadata = {
            "shape": list(SHAPE),
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(SHARD)}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
            "attributes": UNITS,
        }
        writer = made.create(path, {"driver": "zarr3", "metadata": metadata})
        origin = (0, 0, 0)
    else:
        writer = precomputed(path, SHAPE, CHUNK, sharding(1, 1, 2, "identity"))[..., 0]
        origin = ORIGIN
    for cell in ((0, 0, 0), (1, 0, 1)):
        box = Box.of(tuple(o + i * c for o, i, c in zip(origin, cell, CHUNK, strict=True)), CHUNK)
        writer[tuple(map(slice, box.start, box.stop))] = 7
    return path


@pytest.mark.parametrize("form", ["zarr3", "precomputed"])
def test_chunks_that_a_stored_shard_lacks_are_named(tmp_path, form):
    found = taken(partly(tmp_path / "v", form))
    inside = found.inside
    assert (inside.chunks, inside.stored) == (18, 2)
    assert found.decoded_bytes == 2 * np.prod(CHUNK)
    assert found.absent == found.expected - found.stored > 0
    volume = opened(tmp_path / "v")
    stored = {str(p.relative_to(tmp_path / "v")) for p in chunks(tmp_path)}
    grid = volume.spec.read_grid
    owners = [set(keys_under(volume, grid.box(i))) for i in range(grid.size)]
    assert inside.absent == sum(owner <= stored for owner in owners) - 2
    assert len(inside.missing) == inside.absent
    corners = {b.start for b in inside.missing}
    assert ORIGIN not in corners
    assert (ORIGIN[0] + 8, ORIGIN[1], ORIGIN[2]) in corners
    assert set(inside.missing) <= {grid.box(i) for i in range(grid.size)}


def test_a_hashed_shard_lacks_what_belongs_into_it(tmp_path):
    path = tmp_path / "v"
    writer = precomputed(path, SHAPE, CHUNK, sharding(0, 1, 1, "murmurhash3_x86_128"))[..., 0]
    writer[tuple(map(slice, ORIGIN, (13, 2, 11)))] = 7
    found = taken(path, named=30)
    assert (found.expected, found.stored, found.inside.stored) == (2, 1, 1)
    assert found.inside.absent == len(found.inside.missing) > 0
    spread(tmp_path / "w", 0, 1, 1, "murmurhash3_x86_128")
    sizes = [len(taken_of(p)) for p in chunks(tmp_path / "w")]
    assert found.inside.absent + 1 in sizes
    assert sum(sizes) == 18


def taken_of(shard: pathlib.Path):
    """Offsets of the chunks that a shard of two minishards with raw indices holds."""
    data = shard.read_bytes()
    found = []
    for start, stop in np.frombuffer(data[:32], "<u8").reshape(2, 2).tolist():
        found += np.frombuffer(data[32 + start : 32 + stop], "<u8").reshape(3, -1)[0].tolist()
    return found


def test_gzipped_minishard_indices_are_read(tmp_path):
    kind = sharding(1, 1, 1, "identity") | {"minishard_index_encoding": "gzip"}
    precomputed(tmp_path / "v", SHAPE, CHUNK, kind)[...] = DATA[..., None]
    assert taken(tmp_path / "v").inside.stored == 18


@pytest.mark.parametrize("name", ["zarr3 sharded", "precomputed two shards"])
@pytest.mark.parametrize("damage", ["empty", "truncated"])
def test_a_damaged_shard_is_told_and_the_others_are_counted(tmp_path, name, damage):
    path = MAKERS[name](tmp_path / "v")
    shard = chunks(path)[0]
    whole = taken(path).inside.stored
    shard.write_bytes(b"" if damage == "empty" else shard.read_bytes()[:20])
    found = taken(path)
    assert found.inside.damaged == 1
    key = str(shard.relative_to(path))
    assert found.inside.damage.startswith(f"the shard {key} has a damaged index, so none of its ch")
    assert "write it again from its source" in found.inside.damage
    assert 0 < found.inside.stored < whole
    assert found.inside.absent == whole - found.inside.stored


# Bounds


def test_an_exabyte_with_a_few_chunks_takes_seconds_and_little_memory(tmp_path):
    shape, side = [10**6] * 3, 64
    grid = {"name": "regular", "configuration": {"chunk_shape": [8 * side] * 3}}
    inner = {"chunk_shape": [side] * 3, "codecs": [LITTLE, ZSTD]}
    metadata = {"shape": shape, "data_type": "uint64", "chunk_grid": grid, "attributes": UNITS}
    metadata["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]
    zarr = made.create(tmp_path / "zarr", {"driver": "zarr3", "metadata": metadata})
    flat = precomputed(tmp_path / "flat", shape, [side] * 3, None)[..., 0]
    kind = sharding(9, 6, 40, "identity")
    scale = precomputed(tmp_path / "scale", shape, [side] * 3, kind)[..., 0]
    for i in range(100):
        at = (i * 9973, 500_000 - i * 1009, 7 * side)
        zarr[at] = 5
        flat[tuple(a + o for a, o in zip(at, ORIGIN, strict=True))] = 5
        scale[tuple(a + o for a, o in zip(at, ORIGIN, strict=True))] = 5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    found = {name: taken(tmp_path / name) for name in ("zarr", "flat", "scale")}
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    cells = -(-(10**6) // side)
    assert found["zarr"].expected == (-(-(10**6) // 512)) ** 3
    assert found["flat"].expected == cells**3
    assert found["flat"].stored == 100
    assert found["flat"].absent == cells**3 - 100
    assert {f.missing for f in found.values()} == {()}
    for name in ("zarr", "scale"):
        inside = found[name].inside
        assert (inside.chunks, inside.stored, inside.missing) == (cells**3, 100, ())
        assert inside.absent > 0
    assert found["zarr"].decoded_bytes == 100 * side**3 * 8


def test_counts_are_exact_beyond_64_bits(tmp_path):
    shape = [2**61 + 1, 2**61 + 1, 2**61 + 1]
    grid = {"name": "regular", "configuration": {"chunk_shape": [2, 2, 2]}}
    metadata = {"shape": shape, "data_type": "uint8", "chunk_grid": grid, "attributes": UNITS}
    made.create(tmp_path / "v", {"driver": "zarr3", "metadata": metadata})
    found = taken(tmp_path / "v")
    assert found.expected == (2**60 + 1) ** 3 == found.absent


def test_more_keys_than_are_kept_are_counted(tmp_path, monkeypatch):
    path = MAKERS["zarr3 sharded"](tmp_path / "v")
    chunks(path)[0].unlink()
    monkeypatch.setattr(inventories, "KEPT", 2)
    found = taken(path)
    assert (found.stored, found.absent, found.missing) == (3, 1, ())
    assert found.inside.stored is None
    assert "not counted: the indices of its shards have too many places" in found.inside.unknown
    # Whole shards, then.
    assert found.decoded_bytes == DOMAIN.size - Box.of(ORIGIN, SHARD).intersection(DOMAIN).size


def test_large_grids_are_counted_and_not_looked_through(tmp_path, monkeypatch):
    path = MAKERS["zarr3 sharded"](tmp_path / "v")
    chunks(path)[0].unlink()
    monkeypatch.setattr(inventories, "ENUMERATED", 3)
    found = taken(path)
    assert (found.absent, found.missing) == (1, ())
    assert (found.inside.stored, found.inside.absent, found.inside.missing) == (10, 0, ())
    hashed = taken(MAKERS["precomputed murmur"](tmp_path / "h"))
    assert (hashed.expected, hashed.absent, hashed.at_most) == (None, None, 18)
    assert (hashed.stored, hashed.inside.stored, hashed.inside.absent) == (14, 18, None)
    assert hashed.inside.unknown == "the shards do not tell which chunks belong into them"


def test_indices_with_too_many_places_are_not_read(tmp_path, monkeypatch):
    path = MAKERS["zarr3 sharded"](tmp_path / "v")
    monkeypatch.setattr(inventories, "PLACES", 31)
    found = taken(path).inside
    assert found.stored is None
    assert found.unknown == "not counted: the indices of its shards have 32 places, over 31"


# Where storage does not tell


def test_a_web_server_leaves_it_unknown(tmp_path):
    MAKERS["zarr3 sharded"](tmp_path / "v")
    with served(tmp_path) as server:
        found = taken(f"{server.url}/v")
    assert (found.expected, found.stored, found.absent, found.ratio) == (4, None, None, None)
    assert (found.inside.chunks, found.inside.stored) == (18, None)
    assert "cannot be listed (a web server gives no list of its files)" in found.unknown


@pytest.mark.parametrize("name", ["ocdbt", "ocdbt sharded"])
def test_a_database_tells_no_sizes(tmp_path, name):
    found = taken(MAKERS[name](tmp_path / "v"))
    assert (found.absent, found.stored_bytes, found.ratio) == (0, None, None)
    assert found.decoded_bytes == DOMAIN.size


def test_a_view_is_unknown(tmp_path):
    path = MAKERS["zarr3"](tmp_path / "v")
    base = {"driver": "zarr3", "kvstore": f"file://{path}/"}
    volume = opened(json.dumps({"driver": "cast", "dtype": "uint8", "base": base}), axes="xyz")
    found = inventory(volume.store, volume.spec.format)
    assert (found.expected, found.stored) == (None, None)
    assert found.unknown == "the names of its chunks are not known here"


# Codecs


def zarr3_codecs(path, codecs):
    grid = {"name": "regular", "configuration": {"chunk_shape": [16, 16, 8]}}
    metadata = {"shape": [20, 15, 10], "data_type": "uint16", "chunk_grid": grid}
    return made.create(path, {"driver": "zarr3", "metadata": metadata | {"codecs": codecs}})


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": True}}
BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "typesize": 2}
TURN = {"name": "transpose", "configuration": {"order": [2, 1, 0]}}
INNER = {
    "chunk_shape": [8, 8, 4],
    "codecs": [LITTLE, {"name": "crc32c"}],
    "index_location": "start",
}


@pytest.mark.parametrize(
    ("codecs", "said"),
    [
        ([LITTLE], "bytes"),
        ([TURN, BIG, ZSTD], "transpose 2,1,0, bytes big endian, zstd 3 with checksum"),
        ([LITTLE, {"name": "blosc", "configuration": BLOSC}], "bytes, blosc-lz4 5 bitshuffle"),
        ([LITTLE, {"name": "gzip", "configuration": {"level": 6}}], "bytes, gzip 6"),
        (
            [{"name": "sharding_indexed", "configuration": INNER}],
            "sharding 16x16x8 of 8x8x4: bytes, crc32c, index first",
        ),
    ],
)
def test_zarr3_codecs_are_told_as_a_chain(tmp_path, codecs, said):
    assert encoding(zarr3_codecs(tmp_path / "v", codecs), "zarr3") == said


@pytest.mark.parametrize(
    ("compressor", "said"),
    [
        (None, "raw"),
        ({"id": "zlib", "level": 1}, "zlib 1"),
        ({"id": "zstd", "level": 4}, "zstd 4"),
        ({"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 1}, "blosc-zstd 3 shuffle"),
    ],
)
def test_zarr2_compressors(tmp_path, compressor, said):
    metadata = {"shape": [8, 8, 8], "chunks": [4, 4, 4], "dtype": "|u1", "compressor": compressor}
    store = made.create(tmp_path / "v", {"driver": "zarr", "metadata": metadata})
    assert encoding(store, "zarr2") == said


@pytest.mark.parametrize(
    ("compression", "said"),
    [
        ({"type": "raw"}, "raw"),
        ({"type": "gzip", "level": 5}, "gzip 5"),
        ({"type": "xz", "preset": 6}, "xz 6"),
        ({"type": "bzip2", "blockSize": 9}, "bzip2 9"),
        ({"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 0}, "blosc-lz4 5"),
    ],
)
def test_n5_compressions(tmp_path, compression, said):
    metadata = {"dimensions": [8, 8, 8], "blockSize": [4, 4, 4], "dataType": "uint8"}
    spec = {"driver": "n5", "metadata": metadata | {"compression": compression}}
    assert encoding(made.create(tmp_path / "v", spec), "n5") == said


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        ({"encoding": "jpeg", "jpeg_quality": 40}, "jpeg quality 40"),
        ({"encoding": "png", "png_level": 6}, "png level 6"),
        (
            {
                "encoding": "compressed_segmentation",
                "compressed_segmentation_block_size": [8, 8, 8],
                "sharding": sharding(9, 6, 11, "identity") | {"data_encoding": "gzip"},
            },
            "compressed_segmentation in blocks of 8x8x8, sharded: 11 shard bits, 6 minishard bits, "
            "9 preshift bits, identity hash, gzip data, raw index",
        ),
    ],
)
def test_precomputed_encodings(tmp_path, encoded, said):
    dtype = "uint64" if "compressed" in said else "uint8"
    scale = {"size": [64] * 3, "chunk_size": [16] * 3, "resolution": [8, 8, 8]}
    multiscale = {"data_type": dtype, "num_channels": 1, "type": "image"}
    spec = {"driver": "neuroglancer_precomputed", "multiscale_metadata": multiscale}
    store = made.create(tmp_path / "v", spec | {"scale_metadata": scale | encoded})
    if not tells_of_quality():
        said = {"jpeg quality 40": "jpeg", "png level 6": "png"}.get(said, said)
    assert encoding(store, "neuroglancer_precomputed") == said


# A volume with all its levels


def test_each_level_is_looked_at_without_a_scale(tmp_path):
    group = made.ome_group(
        tmp_path / "v", made.multiscale([[0.04, 8, 8], [0.08, 16, 16]], [None, None]), "0.5"
    )
    made.zarr3(group / "s0", made.noise((20, 40, 60)), (16, 16, 16), names=("z", "y", "x"))
    made.zarr3(group / "s1", made.noise((10, 20, 30)), (16, 16, 16), names=("z", "y", "x"))
    found = inspect(str(group))
    assert [s.path for s in found.scales] == ["s0", "s1"]
    assert [s.voxel_size_nm for s in found.scales] == [(8, 8, 40), (16, 16, 80)]
    assert [s.shape for s in found.scales] == [(60, 40, 20), (30, 20, 10)]
    assert {s.axes for s in found.scales} == {("z", "y", "x")}
    assert [s.inventory.absent for s in found.scales] == [0, 0]
    assert (found.kind, list(found.root), list(found.first)) == (None, ["zarr.json"], ["zarr.json"])


def test_a_level_that_is_gone_is_told_beside_the_others(tmp_path):
    made.precomputed(tmp_path / "v", made.noise((20, 15, 10)), CHUNK)
    group = made.ome_group(
        tmp_path / "w", made.multiscale([[0.04, 8, 8], [0.08, 16, 16]], [None, None]), "0.5"
    )
    made.zarr3(group / "s0", made.noise((20, 40, 60)), (16, 16, 16), names=("z", "y", "x"))
    whole, gone = inspect(str(group)).scales
    assert whole.inventory.absent == 0
    assert isinstance(gone, Broken)
    assert gone.path == "s1"
    assert 'zarr.json" does not exist' in gone.error


def test_what_no_job_takes_is_told_all_the_same(tmp_path):
    path = made.zarr2(tmp_path / "bare", made.noise((20, 15, 10)), CHUNK)
    (scale,) = inspect(str(path)).scales
    assert (scale.voxel_size_nm, scale.origin_vx, scale.stated_axes) == (None, None, False)
    attributes = {"resolution": [8, 8, 8], "voxel_offset": [0.5, 0, 0], "axes": ["x", "y", "z"]}
    path = made.zarr2(tmp_path / "between", made.noise((20, 15, 10)), CHUNK, attributes)
    (scale,) = inspect(str(path)).scales
    assert (scale.voxel_size_nm, scale.origin_vx) == ((8, 8, 8), (0.5, 0, 0))
    attributes = {"resolution": [8, 8, 8, 1], "axes": ["x", "y", "z", "c"]}
    path = made.zarr2(tmp_path / "channels", made.noise((20, 15, 10, 3)), (*CHUNK, 1), attributes)
    (scale,) = inspect(str(path)).scales
    assert (scale.axes, scale.extents) == (("x", "y", "z", "channel"), (20, 15, 10, 3))
    assert (scale.inventory.expected, scale.inventory.stored) == (54, 54)
    assert scale.inventory.decoded_bytes == 3 * DOMAIN.size


def test_two_dimensions_are_no_volume(tmp_path):
    path = made.zarr2(tmp_path / "v", made.noise((20, 15)), (8, 8), {"resolution": [8, 8]})
    (scale,) = inspect(str(path)).scales
    assert isinstance(scale, Broken)
    assert f"{path} has 2 dimensions (20 x 15), taken as x, y, z" in scale.error


def test_documents_beside_the_arrays_are_kept(tmp_path):
    path = made.precomputed(tmp_path / "v", made.noise((20, 15, 10)), CHUNK)
    (path / "provenance").write_text('{"sources": ["gs://a/b"]}')
    (path / "zarr.json").write_text("no json")
    with pytest.raises(RequestError, match="its zarr.json is not JSON"):
        inspect(str(path))
    (path / "zarr.json").unlink()
    found = inspect(str(path))
    assert found.root["provenance"] == {"sources": ["gs://a/b"]}
    assert (found.kind, found.url) == ("image", str(path))
    assert is_volume(str(path))
    assert not is_volume(str(tmp_path))


def test_a_spec_has_no_directory(tmp_path):
    path = MAKERS["zarr3"](tmp_path / "v")
    found = inspect(json.dumps({"driver": "zarr3", "kvstore": f"file://{path}/"}))
    assert (found.url, list(found.root), found.first) == (None, ["zarr.json"], {})
    assert found.scales[0].inventory.stored == 18
    assert inspect(f"file://{path}/|zarr3:").url is None


def test_a_database_is_looked_at_in_one_version(tmp_path):
    (scale,) = inspect(MAKERS["ocdbt"](tmp_path / "v")).scales
    assert scale.version is not None
    assert scale.inventory.stored == 18
