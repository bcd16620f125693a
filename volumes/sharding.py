"""Neuroglancer's sharded format: which shard holds a chunk, and which chunks a shard can hold.

A chunk's number is its compressed Morton code: bits of x, y and z take turns from the lowest, and
an axis takes part as long as the grid has indices with that bit. What remains of the number after
the preshift is hashed; the hash's low bits name the minishard, the next ones the shard.

With the identity hash a shard fixes some bits of each axis's index and leaves the others free, so
the chunks of a shard are the product of a set on each axis, which is counted without listing it.
With another hash the chunks of a shard lie anywhere.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

HASHES = ("identity", "murmurhash3_x86_128")
"""The hashes that are known here."""

_NAME = re.compile(r"([0-9a-f]*)\.shard")

_Codes = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True, slots=True)
class AxisSet:
    """The indices below ``count`` whose bits from ``low`` up to ``high`` are ``value``.

    Attributes:
        count: Indices of the axis.
        low: The lowest bit that is fixed.
        high: One past the highest bit that is fixed.
        value: The fixed bits, as a number of ``high - low`` bits.
    """

    count: int
    low: int
    high: int
    value: int

    @property
    def size(self) -> int:
        """How many indices there are."""
        whole, rest = divmod(self.count, 1 << self.high)
        return (whole << self.low) + min(max(rest - self.first, 0), 1 << self.low)

    @property
    def first(self) -> int:
        """The lowest index, where there is one."""
        return self.value << self.low

    @property
    def last(self) -> int:
        """The highest index, where there is one."""
        block = (self.count - 1 - self.first) >> self.high << self.high
        return min(self.count - 1, block + self.first + (1 << self.low) - 1)

    @property
    def values(self) -> int:
        """How many values the fixed bits take over all indices."""
        return min(-(-self.count >> self.low), 1 << (self.high - self.low))

    def holds(self, index: int) -> bool:
        """Whether an index is one of them."""
        return (index >> self.low) & ((1 << (self.high - self.low)) - 1) == self.value


@dataclasses.dataclass(frozen=True, slots=True)
class Sharding:
    """How the chunks of a precomputed scale are spread over shards.

    Attributes:
        grid: Chunks on each axis, XYZ.
        hash: One of ``HASHES``.
        preshift_bits: Low bits of a chunk's number that do not take part.
        minishard_bits: Bits of the hash that name the minishard.
        shard_bits: Bits of the hash that name the shard.
    """

    grid: tuple[int, int, int]
    hash: str
    preshift_bits: int
    minishard_bits: int
    shard_bits: int

    @classmethod
    def of(cls, document: dict[str, Any], grid: Sequence[int]) -> "Sharding":
        """From the ``sharding`` member of a scale's metadata."""
        x, y, z = grid
        return cls(
            (x, y, z),
            document["hash"],
            document["preshift_bits"],
            document["minishard_bits"],
            document["shard_bits"],
        )

    @property
    def ordered(self) -> bool:
        """Whether the chunks of a shard are told by its number."""
        return self.hash == "identity"

    @property
    def count(self) -> int | None:
        """How many shards have a chunk of the grid; None where only listing chunks would tell."""
        if not self.ordered:
            return None
        return math.prod(a.values for a in self._sets(0))

    @property
    def numbers(self) -> int:
        """One past the highest number of a shard that has a chunk; for the identity hash."""
        bits = sum(map(len, places_of(self.grid))) - self.preshift_bits - self.minishard_bits
        return 1 << max(0, min(bits, self.shard_bits))

    def names(self, cells: Sequence[range]) -> list[str]:
        """Names of the shard files that hold the cells of a part of the grid, ascending."""
        xs, ys, zs = morton(self.grid, cells)
        shards: set[int] = set()
        for z in zs:  # a plane at a time, so that memory does not grow with the box's depth
            codes = (xs[:, None] | ys[None, :] | z).ravel()
            shards.update(np.unique(self.shards_of(codes)).tolist())
        return [self.name(n) for n in sorted(shards)]

    def shards_of(self, numbers: _Codes) -> _Codes:
        """The number of the shard that holds each chunk, by the chunks' numbers."""
        kept = shifted(numbers, self.preshift_bits)
        hashed = kept if self.ordered else murmur(kept)
        return shifted(hashed, self.minishard_bits) & np.uint64((1 << self.shard_bits) - 1)

    def name(self, number: int) -> str:
        """Name of a shard's file."""
        return f"{number:x}".rjust(math.ceil(self.shard_bits / 4), "0") + ".shard"

    def number(self, name: str) -> int | None:
        """The number of a shard file; None for the name of anything else."""
        match = _NAME.fullmatch(name)
        if match is None or not match.group(1):
            return None
        number = int(match.group(1), 16)
        return number if number >> self.shard_bits == 0 and self.name(number) == name else None

    def cells(self, number: int) -> tuple[AxisSet, AxisSet, AxisSet] | None:
        """The chunks that a shard can hold, by axis; None where it can hold none.

        Only for the identity hash.
        """
        x, y, z = self._sets(number)
        fixed = sum(a.high - a.low for a in (x, y, z))
        return (x, y, z) if number >> fixed == 0 and min(x.size, y.size, z.size) > 0 else None

    def _sets(self, number: int) -> list[AxisSet]:
        """For each axis the indices that agree with a shard's number."""
        start = self.preshift_bits + self.minishard_bits
        stop = start + self.shard_bits
        sets = []
        for count, places in zip(self.grid, places_of(self.grid), strict=True):
            low, high = (sum(p < end for p in places) for end in (start, stop))
            bits = [(number >> (p - start)) & 1 for p in places[low:high]]
            sets.append(AxisSet(count, low, high, sum(b << i for i, b in enumerate(bits))))
        return sets


def places_of(grid: Sequence[int]) -> list[list[int]]:
    """For each axis, where each bit of its index stands in a chunk's number, lowest first."""
    needed = [(n - 1).bit_length() for n in grid]
    places: list[list[int]] = [[] for _ in grid]
    place = 0
    for bit in range(max(needed)):
        for axis, bits in enumerate(needed):
            if bit < bits:
                places[axis].append(place)
                place += 1
    return places


def cells_of(grid: Sequence[int], numbers: _Codes) -> npt.NDArray[np.int64]:
    """The chunks (int64 ``[n, 3]``) of numbers, those that the grid does not have left out."""
    axes = []
    inside = np.ones(len(numbers), bool)
    for count, places in zip(grid, places_of(grid), strict=True):
        index = np.zeros(len(numbers), np.uint64)
        for bit, place in enumerate(places):
            index |= ((numbers >> np.uint64(place)) & np.uint64(1)) << np.uint64(bit)
        inside &= index < count
        axes.append(index)
    inside &= shifted(numbers, sum(map(len, places_of(grid)))) == 0
    return np.stack(axes, 1)[inside].astype(np.int64)


def morton(grid: Sequence[int], cells: Sequence[range]) -> list[_Codes]:
    """What each axis has of the numbers of cells, to be combined by or."""
    codes = []
    for places, wanted in zip(places_of(grid), cells, strict=True):
        indices = np.array(wanted, np.uint64)
        code = np.zeros(len(wanted), np.uint64)
        for bit, place in enumerate(places):
            code |= ((indices >> np.uint64(bit)) & np.uint64(1)) << np.uint64(place)
        codes.append(code)
    return codes


def shifted(values: _Codes, bits: int) -> _Codes:
    """The values moved right; 64 bits or more leave nothing."""
    return values >> np.uint64(bits) if bits < 64 else np.zeros_like(values)


def murmur(values: _Codes) -> _Codes:
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
