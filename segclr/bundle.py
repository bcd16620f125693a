"""Reads TensorFlow's tensor bundles without TensorFlow.

Planning and fingerprints need the names, shapes and bytes of a checkpoint's tensors; importing
TensorFlow for them would cost several seconds and half a gigabyte.

A bundle is ``PREFIX.index`` and ``PREFIX.data-00000-of-00001`` (or several such shards). The index
is a table in LevelDB's format: blocks of key-value records with shared key prefixes, each stored
plain or compressed by Snappy and followed by its masked CRC-32C; an index block that points at
them; a footer that points at the index block. The value of the empty key is the bundle's header,
that of every other key describes one tensor: type, shape, shard, offset, length and CRC-32C. Both
are protocol buffers, of which this module reads the few fields it needs.
"""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow

from segclr.errors import ModelError

FLOAT32 = 1
"""Type number of a float32 tensor."""

INT64 = 9
"""Type number of an int64 tensor."""

STRING = 7
"""Type number of a string tensor."""

_DTYPES: dict[int, np.dtype[Any]] = {FLOAT32: np.dtype("<f4"), INT64: np.dtype("<i8")}
_DTYPE_NAMES = {
    FLOAT32: "float32",
    2: "float64",
    3: "int32",
    STRING: "string",
    INT64: "int64",
    10: "bool",
    14: "bfloat16",
    19: "float16",
}

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_PLAIN, _SNAPPY = 0, 1
# Snappy's densest element gives 64 bytes for 3; a claim beyond that is damage.
_SNAPPY_RATIO = 32
_VARINT_BYTES = 10
# The keys of slices begin so; the tensor that they make up has an entry of its own.
_SLICE = b"\0"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies.

    Attributes:
        dtype: TensorFlow's number of the type; see ``dtype_name``.
        shape: Its shape; None where the rank is not known or a dimension is open.
        shard: Number of the data file.
        offset: First byte in the data file.
        size: Bytes.
        crc32c: Masked CRC-32C of the bytes.
        sliced: Whether the tensor is stored in slices under other keys.
        shards: Number of data files of the bundle.
    """

    dtype: int
    shape: tuple[int, ...] | None
    shard: int
    offset: int
    size: int
    crc32c: int
    sliced: bool
    shards: int

    @property
    def dtype_name(self) -> str:
        """Name of the type, for messages."""
        return _DTYPE_NAMES.get(self.dtype, f"type {self.dtype}")


class _DamagedError(Exception):
    """What is wrong with the bytes at hand; the caller knows the file."""


def read_index(prefix: str) -> dict[str, Entry]:
    """The tensors of the bundle at ``prefix``, by key, in the order of the index.

    Raises:
        ModelError: If ``PREFIX.index`` is absent, truncated, damaged or of another format.
    """
    path = pathlib.Path(f"{prefix}.index")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the checkpoint index {path} cannot be read: {error.strerror}") from error
    try:
        return _entries(data)
    except _DamagedError as damage:
        raise ModelError(
            f"the checkpoint index {path} is damaged or not one of TensorFlow's: {damage}. Fetch "
            "the checkpoint again"
        ) from damage


def read_tensor(prefix: str, key: str, entry: Entry) -> npt.NDArray[Any]:
    """The tensor that ``entry`` describes, read-only, checked against its CRC-32C.

    Args:
        prefix: The bundle's prefix.
        key: The tensor's key, for messages.
        entry: Its entry from ``read_index``.

    Raises:
        ModelError: If the tensor is neither float32 nor int64, is sliced, or if its data file is
            absent, too short or damaged.
    """
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None or entry.sliced or entry.shape is None:
        kind = entry.dtype_name + (", stored in slices" if entry.sliced else "")
        raise ModelError(
            f"tensor {key} of the checkpoint {prefix} is {kind}: only whole float32 and int64 "
            "tensors of known shape are read"
        )
    if entry.size != dtype.itemsize * math.prod(entry.shape):
        raise ModelError(
            f"the checkpoint index {prefix}.index gives tensor {key} {entry.size} bytes, but its "
            f"shape {entry.shape} takes {dtype.itemsize * math.prod(entry.shape)}"
        )
    path = pathlib.Path(f"{prefix}.data-{entry.shard:05d}-of-{entry.shards:05d}")
    try:
        with path.open("rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
    except OSError as error:
        raise ModelError(
            f"the checkpoint's data file {path} cannot be read: {error.strerror}"
        ) from error
    if len(data) != entry.size:
        raise ModelError(
            f"the checkpoint's data file {path} is too short: tensor {key} needs bytes "
            f"{entry.offset} to {entry.offset + entry.size}. Fetch the checkpoint again"
        )
    if _masked_crc(data) != entry.crc32c:
        raise ModelError(
            f"the checkpoint's data file {path} is damaged: the CRC-32C of tensor {key} is "
            f"{_masked_crc(data):#010x}, its index says {entry.crc32c:#010x}. Fetch the checkpoint "
            "again"
        )
    return np.frombuffer(data, dtype=dtype).reshape(entry.shape)


def _entries(data: bytes) -> dict[str, Entry]:
    """The entries of an index file."""
    found: dict[str, Entry] = {}
    shards: int | None = None
    for key, value in _table(data):
        if shards is None:
            if key:
                raise _DamagedError("it has no header")
            shards = _header(value)
            continue
        if key.startswith(_SLICE):
            continue
        try:
            name = key.decode()
        except UnicodeDecodeError as error:
            raise _DamagedError(f"key {key!r} is not text") from error
        entry = _entry(value, shards)
        if not 0 <= entry.shard < shards:
            raise _DamagedError(f"{name} lies in shard {entry.shard} of {shards}")
        found[name] = entry
    if shards is None:
        raise _DamagedError("it is empty")
    return found


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of a table file."""
    if len(data) < _FOOTER_BYTES:
        raise _DamagedError(f"it has {len(data)} bytes, its footer alone takes {_FOOTER_BYTES}")
    footer = data[-_FOOTER_BYTES:]
    (magic,) = struct.unpack("<Q", footer[-8:])
    if magic != _MAGIC:
        raise _DamagedError(f"it ends in {magic:#018x} instead of {_MAGIC:#018x}")
    _, at = _handle(footer, 0)
    handle, _ = _handle(footer, at)
    for _, value in _records(_block(data, handle)):
        yield from _records(_block(data, _handle(value, 0)[0]))


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and length of a block, and where the handle ends."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(data: bytes, handle: tuple[int, int]) -> bytes:
    """The decompressed block at ``handle``, checked against its CRC-32C."""
    offset, size = handle
    stop = offset + size
    if stop + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise _DamagedError(f"a block ends at byte {stop + _TRAILER_BYTES}, beyond the blocks' end")
    stored = data[offset : stop + 1]
    (crc,) = struct.unpack("<I", data[stop + 1 : stop + _TRAILER_BYTES])
    if _masked_crc(stored) != crc:
        raise _DamagedError(
            f"the CRC-32C of the block at byte {offset} is {_masked_crc(stored):#010x}, not "
            f"{crc:#010x} as stored"
        )
    content, kind = stored[:-1], stored[-1]
    if kind == _PLAIN:
        return content
    if kind != _SNAPPY:
        raise _DamagedError(f"the block at byte {offset} has the unknown compression {kind}")
    length, _ = _varint(content, 0)
    if length > _SNAPPY_RATIO * len(content):
        raise _DamagedError(f"the block at byte {offset} claims {length} bytes")
    try:
        plain: bytes = pyarrow.Codec("snappy").decompress(content, length, asbytes=True)
    except (OSError, ValueError) as error:
        raise _DamagedError(f"the block at byte {offset} is no Snappy data: {error}") from error
    return plain


def _records(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of a block, whose keys omit what they share with the key before."""
    if len(block) < 4:
        raise _DamagedError(f"a block of {len(block)} bytes")
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise _DamagedError(f"a block of {len(block)} bytes with {restarts} restarts")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        size, at = _varint(block, at)
        if shared > len(key) or at + unshared + size > end:
            raise _DamagedError(f"a record before byte {at} of a block runs beyond its end")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + size]
        at += size


def _header(data: bytes) -> int:
    """Number of shards that the bundle's header gives."""
    fields = dict(_fields(data))
    shards = fields.get(1, 0)
    if fields.get(2, 0) != 0:
        raise _DamagedError("its tensors are big-endian")
    if not isinstance(shards, int) or shards < 1:
        raise _DamagedError(f"its header gives {shards!r} shards")
    return shards


def _entry(data: bytes, shards: int) -> Entry:
    """An entry from its message."""
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] | None = ()
    sliced = False
    for field, value in _fields(data):
        if field == 2 and isinstance(value, bytes):
            shape = _shape(value)
        elif field == 7:
            sliced = True
        elif field in numbers and isinstance(value, int):
            numbers[field] = value
        else:
            raise _DamagedError(f"an entry has the unknown field {field}")
    return Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], sliced, shards)


def _shape(data: bytes) -> tuple[int, ...] | None:
    """A tensor's shape; None where it is not fully known."""
    sizes = []
    for field, value in _fields(data):
        if field == 3 and value:
            return None
        if field == 2 and isinstance(value, bytes):
            size = dict(_fields(value)).get(1, 0)
            if not isinstance(size, int) or size >= 2**63:
                return None
            sizes.append(size)
    return tuple(sizes)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol-buffer message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _varint(data, at)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _DamagedError(f"a message has a field of the unknown kind {kind}")
        if at + size > len(data):
            raise _DamagedError("a field runs beyond its message")
        value = data[at : at + size]
        yield tag >> 3, value if kind == _BYTES else int.from_bytes(value, "little")
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and where it ends."""
    value = 0
    for i, byte in enumerate(data[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise _DamagedError(f"a number at byte {at} does not end")


def _masked_crc(data: bytes) -> int:
    """CRC-32C as LevelDB stores it: rotated right by 15 bits, plus a constant."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
