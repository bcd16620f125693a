"""Shards of precomputed volumes, against what TensorStore itself writes at once."""

import math

import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes.writing.layouts import layout_of
from volumes.errors import RequestError
from volumes.geometry import vec
from volumes.writing.arrays import array_spec
from volumes.writing.morton import (
    block,
    chosen_shard,
    code_bits,
    legal_shards,
    shard_bits,
    shard_in_volume,
    sharding,
)

_counts = st.tuples(*[st.integers(1, 40)] * 3)
_chunks = st.tuples(*[st.integers(1, 4)] * 3)


def _code(cell, counts):
    """The compressed Morton code of a chunk, bit by bit as the format's specification has it."""
    code = place = 0
    for bit in range(max((n - 1).bit_length() for n in counts)):
        for axis in range(3):
            if 2**bit < counts[axis]:
                code |= (cell[axis] >> bit & 1) << place
                place += 1
    return code


@given(_counts, st.data())
def test_chunks_of_a_block_are_those_whose_codes_agree(counts, data):
    bits = data.draw(st.integers(0, code_bits(counts)))
    sides = block(counts, bits)
    cell = [data.draw(st.integers(0, n - 1)) for n in counts]
    other = [data.draw(st.integers(0, n - 1)) for n in counts]
    same_block = all(a // s == b // s for a, b, s in zip(cell, other, sides, strict=True))
    assert same_block == (_code(cell, counts) >> bits == _code(other, counts) >> bits)
    assert math.prod(sides) == 2**bits


@settings(max_examples=40, deadline=None)
@given(_counts, _chunks, st.data())
def test_tensorstore_writes_at_once_what_is_called_a_shard(counts, chunk, data):
    shape = vec(
        c * n - data.draw(st.integers(0, c - 1)) for c, n in zip(chunk, counts, strict=True)
    )
    shard = data.draw(st.sampled_from(legal_shards(shape, chunk)))
    layout = layout_of(shape=shape, chunk=chunk, shard=shard, format="precomputed")
    store = ts.open(array_spec(layout, {"driver": "memory"}), create=True, context=ts.Context())
    written = store.result().chunk_layout.write_chunk.shape[:3]
    assert vec(written) == shard_in_volume(shape, chunk, shard)
    assert layout.write_chunk == shard


@given(_counts, _chunks)
def test_legal_shards_double_from_one_chunk_to_all_of_them(counts, chunk):
    shape = vec(c * n for c, n in zip(chunk, counts, strict=True))
    shards = legal_shards(shape, chunk)
    assert shards[0] == chunk
    assert all(s >= n for s, n in zip(shards[-1], shape, strict=True))
    sizes = [math.prod(s) for s in shards]
    assert all(b == 2 * a for a, b in zip(sizes, sizes[1:], strict=False))
    for bits, shard in enumerate(shards):
        assert shard_bits(shape, chunk, shard) == bits
        document = sharding(shape, chunk, shard, "raw")
        members = ("preshift_bits", "minishard_bits", "shard_bits")
        assert all(document[m] >= 0 for m in members)
        assert sum(document[m] for m in members) == code_bits(counts)
        assert document["preshift_bits"] + document["minishard_bits"] == bits


@given(_counts, _chunks, st.integers(1, 10**5))
def test_the_chosen_shard_is_the_largest_within_the_limit(counts, chunk, limit):
    shape = vec(c * n for c, n in zip(chunk, counts, strict=True))
    shard = chosen_shard(shape, chunk, limit)
    larger = [s for s in legal_shards(shape, chunk) if math.prod(s) > math.prod(shard)]
    assert math.prod(shard) <= limit or shard == chunk
    assert all(math.prod(s) > limit for s in larger)


def test_a_shard_of_another_shape_is_refused_with_those_there_are():
    with pytest.raises(RequestError) as caught:
        shard_bits((40, 20, 10), (10, 10, 10), (10, 20, 10))
    assert str(caught.value) == (
        "--shard 10,20,10 is no shard of a precomputed volume of (40, 20, 10) voxels in chunks of "
        "(10, 10, 10): its shards follow the Morton order of the chunks, in which x, y and z take "
        "turns; give one of 20,10,10; 20,20,10; 40,20,10"
    )
    with pytest.raises(RequestError, match="give one of none: the volume is one chunk"):
        shard_bits((10, 10, 10), (10, 10, 10), (20, 10, 10))


def test_a_grid_of_the_largest_extent_costs_nothing():
    side = 2**21
    shards = legal_shards((64 * side, 64 * side, 64 * side), (64, 64, 64))
    assert len(shards) == 64
    assert shards[-1] == (64 * side, 64 * side, 64 * side)
