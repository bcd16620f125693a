"""The choice of a codec: every lossless one is tried, and what is written stays out of the way."""

import itertools

import numpy as np
import pytest

from tests.volumes.writing.layouts import layout_of
from volumes.writing import Codec
from volumes.writing.choosing import READ_MB_S, WRITE_MB_S, Trial, chosen, tried
from volumes.writing.codecs import FORMATS, SHARDED, candidates


def _trial(name, ratio, write, read):
    return Trial(Codec.parse(name), ratio, write, read)


@pytest.mark.parametrize(
    ("form", "sharded"),
    [(f, s) for f, s in itertools.product(FORMATS, (False, True)) if f in SHARDED or not s],
)
@pytest.mark.parametrize(("kind", "dtype"), [("image", "uint8"), ("segmentation", "uint64")])
def test_every_lossless_codec_is_tried_smallest_first(form, sharded, kind, dtype):
    layout = layout_of(
        format=form,
        kind=kind,
        dtype=dtype,
        shape=(100, 90, 80),
        chunk=(8, 8, 8),
        shard=(16, 8, 8) if sharded else None,
    )
    steps = np.arange(16 * 16 * 8).reshape(16, 16, 8) // 64
    samples = [(steps + k).astype(dtype) for k in (1, 40)]
    trials = tried(layout, samples)
    assert {t.codec for t in trials} == set(candidates(form, kind, dtype, sharded=sharded))
    ratios = [t.ratio for t in trials]
    assert ratios == sorted(ratios, reverse=True)
    assert all(t.write_mb_s > 0 and t.read_mb_s > 0 for t in trials)
    raw = next(t for t in trials if t.codec == Codec("raw"))
    assert raw.ratio < 1.01  # checksums and indices cost a little
    assert trials[0].ratio > 2


def test_the_shape_of_the_whole_volume_does_not_matter():
    layout = layout_of(shape=(10**9, 10**9, 10**9), chunk=(8, 8, 8), shard=(64, 64, 64))
    sample = np.full((64, 64, 64), 7, np.uint8)
    assert tried(layout, [sample])[0].ratio > 2


@pytest.mark.parametrize(
    ("trials", "name"),
    [
        # The smallest of those that are quick enough both ways.
        (
            [
                _trial("zstd:9", 9, WRITE_MB_S - 1, READ_MB_S),
                _trial("gzip:6", 8, WRITE_MB_S, READ_MB_S - 1),
                _trial("zstd:1", 3, WRITE_MB_S, READ_MB_S),
                _trial("blosc-lz4", 2, 1000, 1000),
            ],
            "zstd:1",
        ),
        # Where none is, the one that reads fastest.
        (
            [_trial("zstd:9", 9, 1, 20), _trial("gzip:6", 3, 1, 30), _trial("raw", 1, 49, 29)],
            "gzip:6",
        ),
    ],
)
def test_the_smallest_that_is_fast_enough_is_chosen(trials, name):
    assert chosen(trials).codec == Codec.parse(name)
    assert chosen(trials[::-1]).codec == Codec.parse(name)


def test_a_trial_for_people():
    line = _trial("compressed_segmentation:8", 12.3456, 1234.5, 67.8).line()
    assert line == "compressed_segmentation:8     12.35 x  write   1,234 MB/s  read      68 MB/s"
