"""Codecs of the volumes that this package writes: their names, their levels, who takes them.

A codec is written ``NAME`` or ``NAME:LEVEL``: ``zstd:3``, ``gzip:6``, ``blosc-lz4``, ``jpeg:40``.

=======================  =========  ==================================  ========================
name                     level      formats                             voxels
=======================  =========  ==================================  ========================
raw                      none       all                                 all
zstd                     1 to 22    zarr2, zarr3, ome-zarr, n5          all
gzip                     0 to 9     all; precomputed in shards, only 6  all
blosc-lz4, blosc-zstd    0 to 9     zarr2, zarr3, ome-zarr, n5          all
bzip2                    1 to 9     zarr2, n5                           all
xz                       0 to 9     n5                                  all
png                      0 to 9     precomputed                         uint8, uint16
jpeg                     1 to 100   precomputed                         uint8; lossy (quality)
compressed_segmentation  8 or 16    precomputed                         uint32, uint64 (block)
=======================  =========  ==================================  ========================
"""

import dataclasses
from typing import Any

from volumes.errors import RequestError
from volumes.spec import Kind

_Json = dict[str, Any]

ZARR = ("zarr2", "zarr3", "ome-zarr")
FORMATS = (*ZARR, "n5", "precomputed")
"""The formats that are written, as ``--format`` names them."""

SHARDED = ("zarr3", "ome-zarr", "precomputed")
"""The formats that know shards."""

LOSSY = ("jpeg",)
"""Codecs that change voxels."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a codec; ``levels`` is (lowest, highest, default), or None."""

    levels: tuple[int, int, int] | None
    formats: tuple[str, ...]
    dtypes: tuple[str, ...] = ()


_KNOWN = {
    "raw": _Known(None, FORMATS),
    "zstd": _Known((1, 22, 3), (*ZARR, "n5")),
    "gzip": _Known((0, 9, 6), FORMATS),
    "blosc-lz4": _Known((0, 9, 5), (*ZARR, "n5")),
    "blosc-zstd": _Known((0, 9, 5), (*ZARR, "n5")),
    "bzip2": _Known((1, 9, 9), ("zarr2", "n5")),
    "xz": _Known((0, 9, 6), ("n5",)),
    "png": _Known((0, 9, 6), ("precomputed",), ("uint8", "uint16")),
    "jpeg": _Known((1, 100, 90), ("precomputed",), ("uint8",)),
    "compressed_segmentation": _Known((8, 16, 8), ("precomputed",), ("uint32", "uint64")),
}
# The level with which TensorStore compresses inside precomputed shards.
_SHARD_GZIP = 6
_ALSO = {"cseg": "compressed_segmentation"}


@dataclasses.dataclass(frozen=True, slots=True)
class Codec:
    """How chunks are compressed.

    Attributes:
        name: One of the table above.
        level: Its level, quality or block; None where it has none.
    """

    name: str
    level: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Codec":
        """The codec that a user names.

        Raises:
            RequestError: There is none of that name, or it has no such level.
        """
        name, colon, given = text.partition(":")
        name = _ALSO.get(name, name)
        known = _KNOWN.get(name)
        if known is None:
            raise RequestError(
                f"--codec {text} is no codec known here; give one of {', '.join(_KNOWN)} or auto, "
                "with a level as in zstd:3"
            )
        if known.levels is None:
            if colon:
                raise RequestError(f"--codec {text}: {name} has no level; leave :{given} out")
            return cls(name)
        lowest, highest, level = known.levels
        if colon:
            level = int(given) if given.isascii() and given.isdecimal() else -1
        if not lowest <= level <= highest:
            raise RequestError(
                f"--codec {text}: the level of {name} is a number from {lowest} to {highest}; "
                f"give {name}:{known.levels[2]}"
            )
        if name == "compressed_segmentation" and level not in (8, 16):
            raise RequestError(f"--codec {text}: the block of {name} is 8 or 16 voxels a side")
        return cls(name, level)

    def __str__(self) -> str:
        """The codec as ``parse`` takes it."""
        return self.name if self.level is None else f"{self.name}:{self.level}"

    @property
    def lossy(self) -> bool:
        """Whether voxels come back changed."""
        return self.name in LOSSY


def default_codec(format_name: str, kind: Kind, dtype: str, *, sharded: bool) -> Codec:
    """What is taken where the user names no codec."""
    if format_name == "precomputed":
        if kind == "segmentation" and dtype in _KNOWN["compressed_segmentation"].dtypes:
            return Codec("compressed_segmentation", 8)
        if sharded:
            return Codec("gzip", 6)
        return Codec("png", 6) if dtype in _KNOWN["png"].dtypes else Codec("raw")
    if format_name == "n5":
        return Codec("gzip", 6)
    # On real EM, zstd 3 writes at less than half the speed of 1 and saves nothing; on
    # segmentations it is as fast and a tenth smaller.
    return Codec("zstd", 1 if kind == "image" else 3)


def candidates(format_name: str, kind: Kind, dtype: str, *, sharded: bool) -> tuple[Codec, ...]:
    """The lossless codecs worth a try on data of a kind, for ``--codec auto``."""
    tried = ["raw", "zstd:1", "zstd:3", "zstd:9", "gzip:1", "gzip:6", "blosc-lz4", "blosc-zstd"]
    if kind == "image":
        tried += ["png:1", "png:6"]
    else:
        tried += ["compressed_segmentation:8", "compressed_segmentation:16"]
    codecs = [Codec.parse(t) for t in tried]
    return tuple(c for c in codecs if not _refusal(c, format_name, dtype, sharded))


def check_codec(codec: Codec, format_name: str, dtype: str, *, sharded: bool) -> None:
    """Refuse a codec that a format or a type of voxels does not take.

    Raises:
        RequestError: It is so; the message names those that fit.
    """
    refusal = _refusal(codec, format_name, dtype, sharded)
    if refusal:
        fitting = [n for n in _KNOWN if not _refusal(Codec(n), format_name, dtype, sharded)]
        raise RequestError(
            f"--codec {codec} does not fit: {refusal}; for this volume give one of "
            f"{', '.join(fitting)}"
        )


def _refusal(codec: Codec, format_name: str, dtype: str, sharded: bool) -> str:
    """Why a codec does not fit; an empty text where it does."""
    known = _KNOWN[codec.name]
    if format_name not in known.formats:
        return f"--format {format_name} has no {codec.name}"
    if known.dtypes and dtype not in known.dtypes:
        return f"{codec.name} holds {' or '.join(known.dtypes)} voxels and these are {dtype}"
    if format_name == "precomputed" and codec.name == "gzip":
        if not sharded:
            return "precomputed has gzip inside shards only"
        if codec.level not in (None, _SHARD_GZIP):
            return f"precomputed states no level of gzip, and {_SHARD_GZIP} is what is written"
    return ""


def zarr3_codecs(codec: Codec, dtype_size: int) -> list[_Json]:
    """The codec chain of zarr3 after ``bytes``."""
    if codec.name == "raw":
        return []
    if codec.name.startswith("blosc"):
        configuration = _blosc(codec) | {"shuffle": "noshuffle", "typesize": dtype_size}
        return [{"name": "blosc", "configuration": configuration | {"blocksize": 0}}]
    return [{"name": codec.name, "configuration": {"level": codec.level}}]


def zarr2_compressor(codec: Codec) -> _Json | None:
    """The compressor of zarr2."""
    if codec.name == "raw":
        return None
    if codec.name.startswith("blosc"):
        return {"id": "blosc", **_blosc(codec), "shuffle": 0, "blocksize": 0}
    return {"id": {"bzip2": "bz2"}.get(codec.name, codec.name), "level": codec.level}


def n5_compression(codec: Codec) -> _Json:
    """The compression of N5."""
    match codec.name:
        case "raw":
            return {"type": "raw"}
        case "bzip2":
            return {"type": "bzip2", "blockSize": codec.level}
        case "xz":
            return {"type": "xz", "preset": codec.level}
        case "gzip" | "zstd":
            return {"type": codec.name, "level": codec.level}
        case _:
            return {"type": "blosc", **_blosc(codec), "shuffle": 0}


def precomputed_encoding(codec: Codec) -> _Json:
    """The members of a precomputed scale that state its encoding."""
    match codec.name:
        case "png":
            return {"encoding": "png", "png_level": codec.level}
        case "jpeg":
            return {"encoding": "jpeg", "jpeg_quality": codec.level}
        case "compressed_segmentation":
            block = [codec.level] * 3
            return {
                "encoding": "compressed_segmentation",
                "compressed_segmentation_block_size": block,
            }
        case _:
            return {"encoding": "raw"}


def shard_encoding(codec: Codec) -> str:
    """How a precomputed shard compresses its chunks: images that are compressed already are not."""
    return "gzip" if codec.name in ("gzip", "compressed_segmentation") else "raw"


def _blosc(codec: Codec) -> _Json:
    return {"cname": codec.name.removeprefix("blosc-"), "clevel": codec.level}


def codec_in(document: _Json) -> Codec | None:
    """The codec of an array, from its TensorStore spec with all metadata; None for others.

    Args:
        document: ``store.spec().to_json(include_defaults=True)``.
    """
    match document["driver"]:
        case "zarr3":
            return _zarr3_codec(document["metadata"]["codecs"])
        case "zarr":
            compressor = document["metadata"]["compressor"]
            return Codec("raw") if compressor is None else _named(compressor["id"], compressor)
        case "n5":
            compression = document["metadata"]["compression"]
            return _named(compression["type"], compression)
        case "neuroglancer_precomputed":
            return _scale_codec(document["scale_metadata"])
        case _:
            return None


def _zarr3_codec(chain: list[_Json]) -> Codec | None:
    """The compressing codec of a chain, inside shards where there are some."""
    for codec in chain:
        if codec["name"] == "sharding_indexed":
            return _zarr3_codec(codec["configuration"]["codecs"])
        if codec["name"] in ("zstd", "gzip", "blosc"):
            return _named(codec["name"], codec.get("configuration", {}))
    return Codec("raw")


def _scale_codec(scale: _Json) -> Codec | None:
    encoding = scale["encoding"]
    if encoding == "compressed_segmentation":
        block = scale["compressed_segmentation_block_size"]
        return Codec(encoding, block[0]) if block in ([8] * 3, [16] * 3) else None
    if encoding in ("png", "jpeg"):
        # TensorStore before 0.1.86 does not tell it.
        level = scale.get({"png": "png_level", "jpeg": "jpeg_quality"}[encoding])
        return Codec.parse(encoding) if level is None else Codec(encoding, level)
    sharding = scale.get("sharding") or {}
    return Codec.parse("gzip" if sharding.get("data_encoding") == "gzip" else "raw")


def _named(name: str, configuration: _Json) -> Codec | None:
    """A codec that a format names, with its level."""
    if name == "blosc":
        name = f"blosc-{configuration['cname']}"
    name = {"bz2": "bzip2"}.get(name, name)
    if name not in _KNOWN:
        return None
    default = Codec.parse(name)
    levels = _KNOWN[name].levels
    stated = [configuration.get(k) for k in ("level", "clevel", "blockSize", "preset")]
    known = [v for v in stated if isinstance(v, int) and levels and levels[0] <= v <= levels[1]]
    return Codec(name, known[0]) if known else default
