"""Stamps: whether what is stored under a box may have changed, told without reading a voxel.

The stamp of a box is a digest of the storage keys that hold its voxels (chunks, or shards where
sharded), each with the generation that TensorStore gives it: device, inode and time on file,
generation on GCS, ETag on S3 and HTTP, place or content in an OCDBT database. A key that is not
stored has a generation of its own, so a chunk that appears or vanishes moves the stamp. Equal
stamps mean equal stored bytes, as far as the storage tells; other stamps mean that something may
have been written: a file that is copied, or written again with the same bytes, has another
generation. Metadata is not part of a stamp. A volume that is open at one version of an OCDBT
database has the stamps of that version; open it anew to see what came after.

Where there is no generation there is no stamp, which is None and never a text that could look
unchanged: a JSON spec of another driver or with a transform, a web server without strong ETags.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.errors import RunError
from volumes.formats import TS_ERRORS, told
from volumes.geometry import Box
from volumes.opening import Volume

_IN_FLIGHT = 4096
_ABSENT = b"\x02"
# A generation is a byte of flags and what the storage gave; where it gave nothing, the byte alone.
_FLAGS = 1
# What a web server answers that tells of no file without sending it.
_NO_HEAD = re.compile(r"HTTP code (405|501)\]|http_response_code='(405|501)'")
_METADATA = {
    "zarr2": ".zarray",
    "zarr3": "zarr.json",
    "n5": "attributes.json",
    "neuroglancer_precomputed": "info",
}
_KEY_ENCODINGS = ("default", "v2")
_HASHES = ("identity", "murmurhash3_x86_128")

_Extents = Sequence[tuple[int, int]]
_Json = dict[str, Any]
_Codes = npt.NDArray[np.uint64]


def stamp(volume: Volume, box: Box) -> str | None:
    """The stamp of a box: hex digest of the keys under it and their generations.

    Args:
        volume: Open volume.
        box: Frame voxels, XYZ; only what lies in the domain counts, and a box outside it has the
            digest of nothing.

    Returns:
        The digest, or None where the volume's storage gives no generations.

    Raises:
        RunError: The storage fails.
    """
    document = _document(volume)
    if document is None:
        return None
    digest = hashlib.sha256()
    try:
        for key, generation in _generations(volume, _keys(volume, document, box)):
            if generation is None:
                return None
            digest.update(f"{key}\0{generation.hex()}\n".encode())
    except TS_ERRORS as e:
        raise _failure(volume, f"voxels {box}", e) from e
    return digest.hexdigest()


def stamped(volume: Volume) -> bool:
    """Whether the volume has stamps: its format is known and its storage gives generations.

    The storage is judged by the volume's metadata file.

    Raises:
        RunError: The storage fails.
    """
    if _document(volume) is None:
        return False
    metadata = _METADATA[volume.spec.format]
    try:
        generations = [g for _, g in _generations(volume, iter((metadata,)))]
    except TS_ERRORS as e:
        raise _failure(volume, metadata, e) from e
    return generations[0] not in (None, _ABSENT)


def keys_under(volume: Volume, box: Box) -> Iterator[str] | None:
    """The storage keys that hold the voxels of a box, stored or not, from metadata alone.

    They are relative to the volume's directory, each given once, in an order that is the same for
    boxes over the same keys; None where the format's keys are not known.
    """
    document = _document(volume)
    return None if document is None else _keys(volume, document, box)


def _failure(volume: Volume, what: str, error: Exception) -> RunError:
    """What to say of a generation that cannot be read."""
    spec = volume.spec
    return RunError(
        f"{what} of the {spec.kind} {spec.source}: the stamp, by which a change is told, cannot be "
        f"read: {told(error)}; check that this process may read the volume, or try again"
    )


def _document(volume: Volume) -> _Json | None:
    """The JSON spec with all metadata, or None where it does not tell how keys are named."""
    if volume.spec.format not in _METADATA:
        return None
    document: _Json = volume.store.spec().to_json(include_defaults=True)
    if volume.spec.format == "zarr3":
        known = document["metadata"]["chunk_key_encoding"]["name"] in _KEY_ENCODINGS
    elif volume.spec.format == "neuroglancer_precomputed":
        scale = document["scale_metadata"]
        sharding = scale["sharding"]
        known = ".." not in scale["key"].split("/")  # which is not below the directory
        known = known and (sharding is None or sharding["hash"] in _HASHES)
    else:
        known = True
    return document if known else None


def _generations(volume: Volume, keys: Iterator[str]) -> Iterator[tuple[str, bytes | None]]:
    """Each key with its generation; None where the storage gives none."""
    store = volume.store.kvstore
    assert store is not None  # the formats with known keys all have one
    while some := list(itertools.islice(keys, _IN_FLIGHT)):
        reads = [store.read(key, byte_range=slice(0, 0)) for key in some]
        for key, read in zip(some, reads, strict=True):
            try:
                result = read.result()
            except (ValueError, NotImplementedError) as e:
                if _NO_HEAD.search(str(e)) is None:
                    raise
                yield key, None
                continue
            generation = bytes(result.stamp.generation)
            if result.state == "missing":
                yield key, _ABSENT
            else:
                yield key, generation if len(generation) > _FLAGS else None


def _keys(volume: Volume, document: _Json, box: Box) -> Iterator[str]:
    """The keys under a box."""
    part = volume.spec.domain.intersection(box)
    if part.size == 0:
        return iter(())
    extents = _stored(document, part)
    if volume.spec.format == "neuroglancer_precomputed":
        return _precomputed(document["scale_metadata"], extents[:3])
    metadata = document["metadata"]
    match volume.spec.format:
        case "zarr2":
            return _joined(extents, metadata["chunks"], metadata["dimension_separator"])
        case "zarr3":
            chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            encoding = metadata["chunk_key_encoding"]
            separator = encoding["configuration"]["separator"]
            prefix = f"c{separator}" if encoding["name"] == "default" else ""
            return _joined(extents, chunk, separator, prefix)
        case _:
            return _joined(extents, metadata["blockSize"], "/")


def _stored(document: _Json, part: Box) -> list[tuple[int, int]]:
    """A part of the domain along each stored dimension, as (start, stop)."""
    as_they_are = [{"input_dimension": axis} for axis in range(3)]  # which JSON leaves out
    extents = []
    for out in document["transform"].get("output", as_they_are):
        offset, axis = out.get("offset", 0), out.get("input_dimension")
        inside = (0, 1) if axis is None else (part.start[axis], part.stop[axis])
        extents.append((inside[0] + offset, inside[1] + offset))
    return extents


def _joined(
    extents: _Extents, chunk: Sequence[int], separator: str, prefix: str = ""
) -> Iterator[str]:
    """Keys that are the chunk's index in stored order."""
    # Not strict: the dimensions that a Zarr 2 field has of its own are in no key.
    cells = [range(a // c, -(-b // c)) for (a, b), c in zip(extents, chunk, strict=False)]
    for cell in itertools.product(*cells):
        yield prefix + separator.join(map(str, cell))


def _precomputed(scale: _Json, extents: _Extents) -> Iterator[str]:
    """Keys of a neuroglancer precomputed scale; its extents are in the format's own voxels."""
    first, size, chunk = scale["voxel_offset"], scale["size"], scale["chunk_size"]
    cells = [
        range((a - o) // c, -((o - b) // c))
        for (a, b), o, c in zip(extents, first, chunk, strict=True)
    ]
    if scale["sharding"] is not None:
        grid = [-(-n // c) for n, c in zip(size, chunk, strict=True)]
        for name in _shards(scale["sharding"], grid, cells):
            yield f"{scale['key']}/{name}"
        return
    for cell in itertools.product(*cells):
        ends = (
            f"{o + i * c}-{o + min((i + 1) * c, n)}"
            for i, o, c, n in zip(cell, first, chunk, size, strict=True)
        )
        yield f"{scale['key']}/{'_'.join(ends)}"


def _shards(sharding: _Json, grid: Sequence[int], cells: Sequence[range]) -> list[str]:
    """Names of the shard files that hold the cells of a grid, by ascending number.

    A cell's number is its compressed Morton code. What remains of it after the preshift is hashed;
    the hash's low bits name the minishard, the next ones the shard.
    """
    xs, ys, zs = _morton(grid, cells)
    low, bits = sharding["minishard_bits"], sharding["shard_bits"]
    shards: set[int] = set()
    for z in zs:  # a plane at a time, so that memory does not grow with the box's depth
        codes = (xs[:, None] | ys[None, :] | z).ravel()
        codes = _shifted(codes, sharding["preshift_bits"])
        hashed = codes if sharding["hash"] == "identity" else _murmur(codes)
        numbers = _shifted(hashed, low) & np.uint64((1 << bits) - 1)
        shards.update(np.unique(numbers).tolist())
    width = math.ceil(bits / 4)
    return [f"{n:x}".rjust(width, "0") + ".shard" for n in sorted(shards)]


def _shifted(values: _Codes, bits: int) -> _Codes:
    """The values moved right; 64 bits or more leave nothing."""
    return values >> np.uint64(bits) if bits < 64 else np.zeros_like(values)


def _morton(grid: Sequence[int], cells: Sequence[range]) -> list[_Codes]:
    """What each axis has of the compressed Morton codes of cells, to be combined by or.

    Bits of x, y and z take turns, from the lowest; an axis takes part as long as its grid has
    indices with that bit.
    """
    needed = [(n - 1).bit_length() for n in grid]
    codes = [np.zeros(len(c), np.uint64) for c in cells]
    indices = [np.array(c, np.uint64) for c in cells]
    place = 0
    for bit in range(max(needed)):
        for axis in range(3):
            if bit < needed[axis]:
                one = (indices[axis] >> np.uint64(bit)) & np.uint64(1)
                codes[axis] |= one << np.uint64(place)
                place += 1
    return codes


def _murmur(values: _Codes) -> _Codes:
    """The low 64 bits of MurmurHash3_x86_128, seed 0, of each value's 8 little-endian bytes."""
    k1, k2 = values.astype(np.uint32), (values >> np.uint64(32)).astype(np.uint32)
    # Eight bytes are a tail of two words; the third and fourth words of the state stay alike.
    h1 = _rotated(k1 * np.uint32(0x239B961B), 15) * np.uint32(0xAB0E9789)
    h2 = _rotated(k2 * np.uint32(0xAB0E9789), 16) * np.uint32(0x38B34AE5)
    length = np.full_like(h1, 8)
    h1, h2 = h1 ^ length, h2 ^ length
    h1 = h1 + h2 + length + length
    h2, h3 = h2 + h1, length + h1
    h1, h2, h3 = _mixed(h1), _mixed(h2), _mixed(h3)
    h1 = h1 + h2 + h3 + h3
    return h1.astype(np.uint64) | (h2 + h1).astype(np.uint64) << np.uint64(32)


def _rotated(words: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    """32-bit words turned left."""
    return (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))


def _mixed(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MurmurHash3's last mixing of a 32-bit word."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))
