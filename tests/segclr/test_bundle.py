import pathlib
import shutil
import struct

import google_crc32c
import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segclr import bundle
from segclr.errors import ModelError
from tests.segclr.checkpoints import tensorflow, write_bundle

TENSORS = {
    "a/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a/kernel/long/name": np.array([-1.5, 2.25], np.float32),
    "b": np.array(2**53 + 1, np.int64),
    "c": np.array(b"text"),
    "d": np.zeros((0, 3), np.float32),
    "e": np.ones(3, np.float16),
}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundle") / "some.ckpt", TENSORS)


@pytest.fixture
def copy(prefix, tmp_path):
    """The prefix of a copy that a test may damage."""
    for file in pathlib.Path(prefix).parent.iterdir():
        shutil.copy(file, tmp_path)
    return str(tmp_path / "some.ckpt")


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def masked(data):
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def block(records):
    """A block of records with shared prefixes and a restart every 2 records."""
    out, restarts, last = bytearray(), [], b""
    for i, (key, value) in enumerate(records):
        shared = 0
        if i % 2 == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(records, compress, per_block=3, kind=None):
    """A table file written by its specification: several blocks, plain or Snappy."""
    out, index = bytearray(), []

    def add(content):
        handle = len(out)
        if compress:
            body = pyarrow.Codec("snappy").compress(content, asbytes=True)
        else:
            body = content
        stored = body + bytes([int(compress) if kind is None else kind])
        out.extend(stored + struct.pack("<I", masked(stored)))
        return varint(handle) + varint(len(body))

    for i in range(0, len(records), per_block):
        part = records[i : i + per_block]
        index.append((part[-1][0], add(block(part))))
    handles = add(block([])) + add(block(index))
    footer = handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return bytes(out) + footer


def rewritten(prefix, **options):
    """The index at ``prefix`` as another table file."""
    data = pathlib.Path(f"{prefix}.index").read_bytes()
    return table(list(bundle._table(data)), **options)


def test_entries_and_tensors_are_those_that_tensorflow_reads(prefix):
    reader = tensorflow().train.load_checkpoint(prefix)
    index = bundle.read_index(prefix)
    assert list(index) == sorted(TENSORS)
    shapes = reader.get_variable_to_shape_map()
    assert {key: list(entry.shape) for key, entry in index.items()} == shapes
    for key in ("a/kernel", "a/kernel/long/name", "b", "d"):
        value = bundle.read_tensor(prefix, key, index[key])
        np.testing.assert_array_equal(value, reader.get_tensor(key))
        np.testing.assert_array_equal(value, TENSORS[key])
        assert value.dtype == TENSORS[key].dtype
        assert not value.flags.writeable


@pytest.mark.parametrize("per_block", [1, 2, 100])
@pytest.mark.parametrize("compress", [False, True])
def test_blocks_may_be_many_and_compressed(copy, compress, per_block):
    expected = bundle.read_index(copy)
    data = rewritten(copy, compress=compress, per_block=per_block)
    pathlib.Path(f"{copy}.index").write_bytes(data)
    assert bundle.read_index(copy) == expected
    reader = tensorflow().train.load_checkpoint(copy)
    assert set(reader.get_variable_to_shape_map()) == set(expected)


def test_an_absent_index_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nix\.index cannot be read: No such file"):
        bundle.read_index(str(tmp_path / "nix"))


def test_a_missing_shard_is_named(copy):
    index = bundle.read_index(copy)
    pathlib.Path(f"{copy}.data-00000-of-00001").unlink()
    with pytest.raises(ModelError, match=r"data-00000-of-00001 cannot be read: No such file"):
        bundle.read_tensor(copy, "b", index["b"])


def test_a_data_file_cut_short_is_named(copy):
    index = bundle.read_index(copy)
    path = pathlib.Path(f"{copy}.data-00000-of-00001")
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ModelError, match=r"too short: tensor a/kernel needs bytes 0 to 96\."):
        bundle.read_tensor(copy, "a/kernel", index["a/kernel"])


def test_a_flipped_bit_in_a_tensor_is_found(copy):
    index = bundle.read_index(copy)
    path = pathlib.Path(f"{copy}.data-00000-of-00001")
    data = bytearray(path.read_bytes())
    data[index["a/kernel"].offset + 5] ^= 4
    path.write_bytes(data)
    crc = f"{index['a/kernel'].crc32c:#010x}"
    with pytest.raises(ModelError, match=rf"CRC-32C of tensor a/kernel is .* its index says {crc}"):
        bundle.read_tensor(copy, "a/kernel", index["a/kernel"])
    assert bundle.read_tensor(copy, "b", index["b"]) == 2**53 + 1


@pytest.mark.parametrize(("key", "kind"), [("c", "string"), ("e", "float16")])
def test_tensors_of_other_types_are_refused(prefix, key, kind):
    entry = bundle.read_index(prefix)[key]
    with pytest.raises(ModelError, match=rf"tensor {key} of the checkpoint .* is {kind}: only"):
        bundle.read_tensor(prefix, key, entry)


def test_a_tensor_in_slices_is_refused(tmp_path):
    tf = tensorflow()
    prefix = str(tmp_path / "sliced")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=["whole"],
        shape_and_slices=["4 0,2"],
        tensors=[tf.constant([1.0, 2.0])],
    )
    entry = bundle.read_index(prefix)["whole"]
    with pytest.raises(ModelError, match="tensor whole .* is float32, stored in slices: only"):
        bundle.read_tensor(prefix, "whole", entry)


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "x.index"
    path.write_bytes(b"short")
    with pytest.raises(ModelError, match=r"x\.index is damaged .*: it has 5 bytes"):
        bundle.read_index(str(tmp_path / "x"))
    path.write_bytes(bytes(100))
    with pytest.raises(ModelError, match="it ends in 0x0000000000000000 instead of 0xdb47"):
        bundle.read_index(str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([], "it is empty"),
        ([(b"a", b"")], "it has no header"),
        ([(b"", b"")], "its header gives 0 shards"),
        ([(b"", b"\x08\x01\x10\x01")], "big-endian"),
        ([(b"", b"\x08\x01"), (b"\xff", b"")], "is not text"),
        ([(b"", b"\x08\x01"), (b"a", b"\x18\x01")], "a lies in shard 1 of 1"),
        ([(b"", b"\x08\x01"), (b"a", b"\x0b")], "unknown kind 3"),
        ([(b"", b"\x08\x01"), (b"a", b"\x12\x7f")], "beyond its message"),
        ([(b"", b"\x08\x01"), (b"a", b"\x48\x01")], "unknown field 9"),
        ([(b"", b"\x08\xff")], "does not end"),
    ],
)
def test_contents_that_make_no_sense_are_refused(tmp_path, records, problem):
    (tmp_path / "x.index").write_bytes(table(records, compress=False))
    with pytest.raises(ModelError, match=problem):
        bundle.read_index(str(tmp_path / "x"))


def test_an_unknown_compression_and_false_snappy_are_refused(copy):
    path = pathlib.Path(f"{copy}.index")
    data = rewritten(copy, compress=False)
    other, false = (rewritten(copy, compress=False, kind=kind) for kind in (4, 1))
    path.write_bytes(other)
    with pytest.raises(ModelError, match="unknown compression 4"):
        bundle.read_index(copy)
    path.write_bytes(false)
    with pytest.raises(ModelError, match="no Snappy data|claims"):
        bundle.read_index(copy)
    path.write_bytes(data)
    assert len(bundle.read_index(copy)) == len(TENSORS)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), compress=st.booleans())
def test_no_flipped_bit_in_the_index_passes_for_other_tensors(prefix, tmp_path, data, compress):
    content = bytearray(rewritten(prefix, compress=compress))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "x.index").write_bytes(content)
    try:
        found = bundle.read_index(str(tmp_path / "x"))
    except ModelError:
        return
    assert found == bundle.read_index(prefix)


def test_no_truncated_index_passes(prefix, tmp_path):
    content = rewritten(prefix, compress=True)
    for length in range(len(content)):
        (tmp_path / "x.index").write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"x\.index is damaged"):
            bundle.read_index(str(tmp_path / "x"))
