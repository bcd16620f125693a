"""Storage keys: under which a volume's voxels are stored, and which voxels a key holds.

A key names what is written at once: a chunk, or a shard where sharded. It is relative to the
volume's directory. All is told from metadata, and a grid of any size costs the same; which keys are
stored, ``volumes.listing`` tells.

====================  =========================  ===================================================
format                key                        its box
====================  =========================  ===================================================
zarr2, n5             ``0.1.2`` or ``0/1/2``     the chunk
zarr3                 ``c/0/1/2`` or as zarr2    the chunk, or the shard
precomputed           ``8_8_8/0-64_0-64_0-64``   the chunk
precomputed, sharded  ``8_8_8/0a.shard``         the hull of the chunks that the shard can hold; a
                                                 shard of hashed chunks has none, see ``boxless``
====================  =========================  ===================================================
"""

from collections.abc import Iterator
from typing import Any

import tensorstore as ts

from volumes.geometry import Box, vec
from volumes.key_schemes import Frame, JoinedKeys, Keys, NamedKeys, Scale, ShardedKeys
from volumes.opening import Volume
from volumes.sharding import HASHES, Sharding

FORMATS = ("zarr2", "zarr3", "n5", "neuroglancer_precomputed")
"""The formats whose keys are known."""

_KEY_ENCODINGS = ("default", "v2")

_Json = dict[str, Any]


def keys_in(store: ts.TensorStore, form: str) -> Keys | None:
    """How the keys of an array are named, by its metadata.

    Args:
        store: The array, its dimensions x, y, z in frame voxels; all of it.
        form: The format, as ``VolumeSpec.format`` has it.

    Returns:
        None where the format's keys are not known.
    """
    if form not in FORMATS:
        return None
    document: _Json = store.spec().to_json(include_defaults=True)
    domain = Box(vec(store.domain.inclusive_min), vec(store.domain.exclusive_max))
    frame = Frame.of(document, domain)
    if form == "neuroglancer_precomputed":
        return _scale_keys(document, frame)
    metadata = document["metadata"]
    if form == "zarr2":
        shape, chunk = metadata["shape"], metadata["chunks"]
        return JoinedKeys(frame, "", metadata["dimension_separator"], tuple(shape), tuple(chunk))
    if form == "n5":
        shape, chunk = metadata["dimensions"], metadata["blockSize"]
        return JoinedKeys(frame, "", "/", tuple(shape), tuple(chunk))
    encoding = metadata["chunk_key_encoding"]
    if encoding["name"] not in _KEY_ENCODINGS:
        return None
    separator = encoding["configuration"]["separator"]
    prefix = f"c{separator}" if encoding["name"] == "default" else ""
    chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    return JoinedKeys(frame, prefix, separator, tuple(metadata["shape"]), tuple(chunk))


def _scale_keys(document: _Json, frame: Frame) -> Keys | None:
    metadata = document["scale_metadata"]
    if ".." in metadata["key"].split("/"):  # which is not below the directory
        return None
    scale = Scale(
        frame,
        f"{metadata['key']}/",
        tuple(metadata["voxel_offset"]),
        tuple(metadata["size"]),
        tuple(metadata["chunk_size"]),
        document["multiscale_metadata"]["num_channels"],
    )
    sharding = metadata["sharding"]
    if sharding is None:
        return NamedKeys(scale)
    return (
        ShardedKeys(scale, Sharding.of(sharding, scale.grid))
        if sharding["hash"] in HASHES
        else None
    )


def keys_of(volume: Volume) -> Keys | None:
    """How the keys of a volume are named; None where that is not known."""
    return keys_in(volume.store, volume.spec.format)


def keys_under(volume: Volume, box: Box) -> Iterator[str] | None:
    """The storage keys that hold the voxels of a box, stored or not, from metadata alone.

    They are relative to the volume's directory, each given once, in an order that is the same for
    boxes over the same keys; None where the format's keys are not known.
    """
    keys = keys_of(volume)
    return None if keys is None else keys.under(box)


def box_of(volume: Volume, key: str) -> Box | None:
    """The frame box whose voxels are stored under a key; for many keys use ``keys_of``.

    Returns:
        The box, clipped to the domain; None where the key is no chunk's (metadata, records), where
        the format's keys are not known, or where a shard has no box (``Keys.boxless``).
    """
    keys = keys_of(volume)
    return None if keys is None else keys.box(key)


def stored_keys(volume: Volume) -> Iterator[str] | None:
    """The chunk keys that are stored, by listing; None where the storage cannot be listed."""
    store = volume.store.kvstore
    keys = keys_of(volume)
    if store is None or keys is None:
        return None
    try:
        listed = store.list().result()
    except NotImplementedError:
        return None
    names = (key.decode() for key in listed)
    return (name for name in names if box_of(volume, name) is not None)
