"""How the chunks of a stored array are encoded, in the words of its format."""

from collections.abc import Iterable, Sequence
from typing import Any

import tensorstore as ts

_Json = dict[str, Any]

_CHECKED = ("crc32c", "adler32", "crc32", "fletcher32")
_SHUFFLES = {0: "", 1: "shuffle", 2: "bitshuffle", -1: "auto shuffle"}


def encoding(store: ts.TensorStore, form: str) -> str:
    """The encoding in a line; empty for a format that is not known.

    Args:
        store: The array, its dimensions in the order in which shapes are to be told.
        form: The format, as ``VolumeSpec.format`` has it.
    """
    document: _Json = store.spec().to_json(include_defaults=True)
    match form:
        case "zarr3":
            layout = store.chunk_layout
            shard, chunk = (_shape(p.shape) for p in (layout.write_chunk, layout.read_chunk))
            return _chain(document["metadata"]["codecs"], f"sharding {shard} of {chunk}")
        case "zarr2":
            metadata = document["metadata"]
            steps = [*(metadata["filters"] or ()), metadata["compressor"]]
            return ", ".join(_numcodec(s) for s in steps if s is not None) or "raw"
        case "n5":
            return _n5(document["metadata"]["compression"])
        case "neuroglancer_precomputed":
            return _precomputed(document["scale_metadata"])
        case _:
            return ""


def checked(store: ts.TensorStore, form: str) -> bool | None:
    """Whether chunks carry a checksum, so that a flipped bit is an error; None where not known."""
    if form == "zarr3":
        codecs = store.spec().to_json(include_defaults=True)["metadata"]["codecs"]
        return _has_checksum(codecs)
    if form == "zarr2":
        metadata = store.spec().to_json(include_defaults=True)["metadata"]
        steps = [s["id"] for s in [*(metadata["filters"] or ()), metadata["compressor"]] if s]
        return any(s in (*_CHECKED, "gzip", "zlib", "bz2") for s in steps)
    return None


def _has_checksum(codecs: Iterable[_Json]) -> bool:
    return any(
        c["name"] in (*_CHECKED, "gzip")
        or c.get("configuration", {}).get("checksum") is True
        or _has_checksum(c.get("configuration", {}).get("codecs", ()))
        for c in codecs
    )


def _chain(codecs: Sequence[_Json], shards: str) -> str:
    """A chain of Zarr 3 codecs; ``shards`` is what to call sharding."""
    said = []
    for codec in codecs:
        found = codec.get("configuration", {})
        match codec["name"]:
            case "sharding_indexed":
                index = ", index first" if found.get("index_location") == "start" else ""
                said.append(f"{shards}: {_chain(found['codecs'], 'sharding inside')}{index}")
            case "bytes":
                said.append("bytes" + (" big endian" if found.get("endian") == "big" else ""))
            case "blosc":
                said.append(_blosc(found["cname"], found["clevel"], found.get("shuffle", "")))
            case "transpose":
                said.append(f"transpose {','.join(map(str, found['order']))}")
            case name:
                checksum = " with checksum" if found.get("checksum") is True else ""
                said.append(_with_level(name, found.get("level")) + checksum)
    return ", ".join(said)


def _numcodec(codec: _Json) -> str:
    """A Zarr 2 filter or compressor."""
    if codec["id"] == "blosc":
        shuffle = codec.get("shuffle", 1)
        return _blosc(codec["cname"], codec["clevel"], _SHUFFLES.get(shuffle, str(shuffle)))
    return _with_level(codec["id"], codec.get("level"))


def _n5(codec: _Json) -> str:
    """An N5 compression."""
    if codec["type"] == "blosc":
        shuffle = codec.get("shuffle", 0)
        return _blosc(codec["cname"], codec["clevel"], _SHUFFLES.get(shuffle, str(shuffle)))
    level = next((codec[k] for k in ("level", "preset", "blockSize") if k in codec), None)
    return _with_level(codec["type"], level if level != -1 else None)


def _precomputed(scale: _Json) -> str:
    """A precomputed scale: its encoding, and its shards."""
    said = scale["encoding"]
    match said:
        case "jpeg":
            said += f" quality {scale['jpeg_quality']}" if "jpeg_quality" in scale else ""
        case "png":
            said += f" level {scale['png_level']}" if "png_level" in scale else ""
        case "compressed_segmentation":
            block = scale["compressed_segmentation_block_size"]
            said += f" in blocks of {'x'.join(map(str, block))}"
    sharding = scale["sharding"]
    if sharding is None:
        return str(said)
    return (
        f"{said}, sharded: {sharding['shard_bits']} shard bits, {sharding['minishard_bits']} "
        f"minishard bits, {sharding['preshift_bits']} preshift bits, {sharding['hash']} hash, "
        f"{sharding['data_encoding']} data, {sharding['minishard_index_encoding']} index"
    )


def _shape(shape: Iterable[int | None] | None) -> str:
    return "x".join(str(n or "?") for n in shape or ())


def _blosc(name: str, level: int, shuffle: str) -> str:
    shuffled = "" if shuffle in ("", "noshuffle") else f" {shuffle}"
    return f"blosc-{name} {level}{shuffled}"


def _with_level(name: str, level: Any) -> str:
    return name if level is None else f"{name} {level}"
