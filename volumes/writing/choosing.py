"""A codec chosen by what it does to a sample of the data: its size, and its speed here."""

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes.geometry import vec
from volumes.writing.arrays import array_spec
from volumes.writing.codecs import Codec, candidates
from volumes.writing.errors import storage_errors
from volumes.writing.layout import VolumeLayout
from volumes.writing.morton import legal_shards

WRITE_MB_S = 50.0
"""A codec must write that many raw megabytes a second to be chosen."""

READ_MB_S = 300.0
"""A codec must read that many raw megabytes a second to be chosen."""

_REPETITIONS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What a codec did to a sample.

    Attributes:
        codec: The codec.
        ratio: Raw bytes by stored bytes.
        write_mb_s: Raw megabytes encoded a second, by this process.
        read_mb_s: Raw megabytes decoded a second, by this process.
    """

    codec: Codec
    ratio: float
    write_mb_s: float
    read_mb_s: float

    def line(self) -> str:
        """The trial for people."""
        return (
            f"{self.codec!s:<26} {self.ratio:8.2f} x  write {self.write_mb_s:7,.0f} MB/s  "
            f"read {self.read_mb_s:7,.0f} MB/s"
        )


def tried(layout: VolumeLayout, samples: Sequence[npt.NDArray[Any]]) -> list[Trial]:
    """Every lossless codec of a format on samples, the smallest result first.

    Args:
        layout: What is to be made; its codec does not matter.
        samples: Boxes of voxels ``[x, y, z]`` of the layout's dtype, of whole chunks.
    """
    sharded = layout.shard is not None
    found = [
        _trial(layout, codec, samples)
        for codec in candidates(layout.format, layout.kind, layout.dtype, sharded=sharded)
    ]
    return sorted(found, key=lambda t: -t.ratio)


def chosen(trials: Sequence[Trial]) -> Trial:
    """The smallest of those that are fast enough, or the one that reads fastest where none is."""
    quick = [t for t in trials if t.write_mb_s >= WRITE_MB_S and t.read_mb_s >= READ_MB_S]
    if quick:
        return max(quick, key=lambda t: t.ratio)
    return max(trials, key=lambda t: t.read_mb_s)


def _trial(layout: VolumeLayout, codec: Codec, samples: Sequence[npt.NDArray[Any]]) -> Trial:
    raw = sum(s.nbytes for s in samples)
    stored, writing, reading = 0, 0.0, 0.0
    for sample in samples:
        made = _sampled(layout, codec, vec(sample.shape))
        sizes, writes, reads = zip(
            *(_timed(made, sample) for _ in range(_REPETITIONS)), strict=True
        )
        stored += sizes[0]
        writing += statistics.median(writes)
        reading += statistics.median(reads)
    return Trial(codec, raw / max(1, stored), raw / 1e6 / writing, raw / 1e6 / reading)


def _sampled(layout: VolumeLayout, codec: Codec, shape: tuple[int, int, int]) -> VolumeLayout:
    """The layout of a sample alone; a sharded precomputed one is a single shard."""
    shard = None
    if layout.format == "precomputed" and layout.shard is not None:
        shard = legal_shards(shape, layout.chunk)[-1]
    return dataclasses.replace(layout, shape=shape, origin_vx=(0, 0, 0), shard=shard, codec=codec)


def _timed(layout: VolumeLayout, voxels: npt.NDArray[Any]) -> tuple[int, float, float]:
    """Stored bytes, and the seconds that writing to memory and reading again take."""
    spec = array_spec(layout, {"driver": "memory"})
    context = ts.Context()
    with storage_errors(f"try the codec {layout.compression}"):
        store = ts.open(spec, create=True, context=context).result()
        box = tuple(slice(0, n) for n in layout.shape)
        turned = [layout.axes.index(a) for a in "xyz"]
        target = store[..., 0] if layout.format == "precomputed" else store.transpose(turned)
        began = time.perf_counter()
        target[ts.d[:].translate_to[0]][box].write(voxels).result()
        wrote = time.perf_counter()
        read = np.asarray(target[ts.d[:].translate_to[0]][box].read().result())
        ended = time.perf_counter()
        kvstore = store.kvstore
        keys = [] if kvstore is None else kvstore.list().result()
        found = [] if kvstore is None else [kvstore.read(k) for k in keys]
        stored = sum(len(f.result().value) for f in found)
    if not math.prod(read.shape) == voxels.size or not np.array_equal(read, voxels):
        raise ValueError(f"{layout.compression} is not lossless")
    return stored, wrote - began, ended - wrote
