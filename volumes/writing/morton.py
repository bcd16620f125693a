"""Which shards a sharded precomputed volume can have.

A precomputed shard holds the chunks whose compressed Morton codes agree in their high bits. With
the identity hash these are 2**n consecutive codes, which make a box: bits of x, y and z take turns
from the lowest, and an axis takes part as long as the grid has indices with that bit.
"""

import math
from collections.abc import Sequence

from volumes.errors import RequestError
from volumes.geometry import Vec, vec

# Chunks of one minishard; its index is read whole to find one of them, 24 bytes each.
_MINISHARD_BITS = 6


def code_bits(counts: Sequence[int]) -> int:
    """Bits of the Morton codes of a grid with so many chunks on each axis."""
    return sum((n - 1).bit_length() for n in counts)


def block(counts: Sequence[int], bits: int) -> Vec:
    """Chunks on each axis that share a code but for its lowest bits.

    Args:
        counts: Chunks on each axis of the grid, XYZ.
        bits: How many of the low bits; no more than the code has.
    """
    sides = [1, 1, 1]
    left = bits
    for bit in range(max((n - 1).bit_length() for n in counts)):
        for axis in range(3):
            if left and (counts[axis] - 1) >> bit:
                sides[axis] *= 2
                left -= 1
    return vec(sides)


def legal_shards(shape: Vec, chunk: Vec) -> list[Vec]:
    """Every shape, in voxels, that a shard of a volume can have; the smallest is one chunk."""
    counts = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    blocks = (block(counts, bits) for bits in range(code_bits(counts) + 1))
    return [vec(b * c for b, c in zip(sides, chunk, strict=True)) for sides in blocks]


def shard_in_volume(shape: Vec, chunk: Vec, shard: Vec) -> Vec:
    """The part of a shard, in whole chunks, that a volume has; what TensorStore calls a shard."""
    sides = zip(shape, chunk, shard, strict=True)
    return vec(min(s, -(-n // c) * c) for n, c, s in sides)


def shard_bits(shape: Vec, chunk: Vec, shard: Vec) -> int:
    """How many low bits of the code a shard of this shape leaves free.

    Raises:
        RequestError: No shard has that shape; the message lists those there are.
    """
    legal = legal_shards(shape, chunk)
    if shard in legal:
        return legal.index(shard)
    listed = "; ".join(",".join(map(str, s)) for s in legal[1:])
    raise RequestError(
        f"--shard {','.join(map(str, shard))} is no shard of a precomputed volume of {shape} "
        f"voxels in chunks of {chunk}: its shards follow the Morton order of the chunks, in which "
        f"x, y and z take turns; give one of {listed or 'none: the volume is one chunk'}"
    )


def sharding(shape: Vec, chunk: Vec, shard: Vec, encoding: str) -> dict[str, object]:
    """The ``sharding`` member of a precomputed scale.

    Args:
        shape: Voxels of the volume, XYZ.
        chunk: Voxels of a chunk.
        shard: Voxels of a shard, one of ``legal_shards``.
        encoding: ``gzip`` or ``raw``: how chunks are compressed inside a shard.

    Raises:
        RequestError: No shard has that shape.
    """
    bits = shard_bits(shape, chunk, shard)
    counts = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    preshift = min(bits, _MINISHARD_BITS)
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": preshift,
        "hash": "identity",
        "minishard_bits": bits - preshift,
        "shard_bits": code_bits(counts) - bits,
        "data_encoding": encoding,
        "minishard_index_encoding": "gzip",
    }


def chosen_shard(shape: Vec, chunk: Vec, limit_voxels: int) -> Vec:
    """The largest legal shard that has at most so many voxels; one chunk where none has."""
    fitting = [s for s in legal_shards(shape, chunk) if math.prod(s) <= limit_voxels]
    return fitting[-1] if fitting else chunk
