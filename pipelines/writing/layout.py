"""How a volume is made like, where the user leaves something out; and how that is told."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.text import shape_text
from pipelines.writing.plan import Memory
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3, vec
from volumes.levels import SPATIAL
from volumes.shapes import TARGET_BYTES, choose_unit, times_read
from volumes.sources.base import Source
from volumes.spec import Kind, numbers
from volumes.writing import Codec, Target, VolumeLayout
from volumes.writing.choosing import READ_MB_S, WRITE_MB_S, chosen, tried
from volumes.writing.codecs import FORMATS, SHARDED, ZARR
from volumes.writing.morton import legal_shards

CHUNK: Vec = (64, 64, 64)
"""Voxels of a chunk, unless the user says otherwise."""

# Shards with which a source is decoded half again as often as with others are as good: larger ones
# make fewer objects.
_ALIKE = 1.5
_CHUNKS_A_SHARD = 4

UNSHARDED = "none"
"""What ``--shard`` is given where chunks are to be stored one by one."""

AUTO = "auto"
"""What ``--codec`` is given to have one chosen from a sample of the data."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a volume; see ``VolumeLayout``.

    Attributes:
        shard: Voxels of a shard; None to choose, ``none`` for none.
        codec: ``NAME`` or ``NAME:LEVEL``; None, or ``auto`` for the time being, for the default.
    """

    shape: Vec
    dtype: str
    kind: Kind
    voxel_size_nm: Vec3
    origin_vx: Vec
    chunk: Vec = CHUNK
    shard: Vec | str | None = None
    format: str = "zarr3"
    codec: str | None = None
    axes: tuple[str, ...] | None = None

    def layout(self, shard: Vec | None) -> VolumeLayout:
        """The layout with a shard, or without."""
        # With x fastest, ids compress a tenth better, and it is what OME-Zarr asks for.
        otherwise = tuple(reversed(SPATIAL)) if self.format in ZARR else SPATIAL
        return VolumeLayout(
            shape=self.shape,
            dtype=self.dtype,
            kind=self.kind,
            voxel_size_nm=self.voxel_size_nm,
            origin_vx=self.origin_vx,
            chunk=self.chunk,
            shard=shard,
            format=self.format,
            codec=None if self.codec in (None, AUTO) else Codec.parse(str(self.codec)),
            axes=self.axes or otherwise,
        )


def check_stored(format_name: str, chunk: Vec, shard: Vec | str | None, codec: str | None) -> None:
    """Refuse flags for how a volume is stored that mean nothing.

    Raises:
        RequestError: They do; the message names the flag.
    """
    if format_name not in FORMATS:
        raise RequestError(
            f"--format {format_name} is not written here; give one of {', '.join(FORMATS)}"
        )
    if isinstance(shard, str) and shard != UNSHARDED:
        raise RequestError(f"--shard {shard} is neither X,Y,Z nor {UNSHARDED}; give one of them")
    sides = None if isinstance(shard, str) else shard
    if sides is not None and format_name not in SHARDED:
        raise RequestError(
            f"--shard {numbers(sides)}: {format_name} has no shards; leave it out, or give "
            f"--format {' or '.join(SHARDED)}"
        )
    for flag, value in (("--chunk", chunk), ("--shard", sides)):
        if value is not None and min(value) < 1:
            raise RequestError(
                f"{flag} {numbers(value)} has an axis without a voxel; give three integers "
                "X,Y,Z of at least 1"
            )
    if codec not in (None, AUTO):
        Codec.parse(str(codec))


def chosen_codec(
    layout: VolumeLayout,
    codec: str | None,
    standing: dict[str, Any] | None,
    samples: Callable[[VolumeLayout], Sequence[npt.NDArray[Any]]],
) -> tuple[VolumeLayout, tuple[str, ...]]:
    """The layout with the codec that ``--codec auto`` chooses; as it is for another ``--codec``.

    Args:
        layout: What is made.
        codec: What was given.
        standing: The identity of the job that is being taken up again, whose codec stays.
        samples: Gives blocks of the voxels that are to be stored.

    Returns:
        The layout, and what was tried, for people.
    """
    if codec != AUTO:
        return layout, ()
    if standing is not None and standing["format"] == layout.format:
        before = Codec.parse(standing["codec"])
        line = f"codec: {before}, as chosen when this job began"
        return dataclasses.replace(layout, codec=before), (line,)
    trials = tried(layout, samples(layout))
    best = chosen(trials)
    lines = (
        f"codec: {best.codec}, the smallest on a sample that writes at {WRITE_MB_S:g} and reads at "
        f"{READ_MB_S:g} MB/s of raw voxels here, of",
        *(f"  {t.line()}" for t in trials),
    )
    return dataclasses.replace(layout, codec=best.codec), lines


def chosen_layout(
    wanted: Wanted, source: Source, budget: int, offset: Vec = (0, 0, 0)
) -> VolumeLayout:
    """The layout that was asked for, with a shard that suits source and memory where none was.

    A chosen shard has up to four chunks a side, no more than cover the volume: of those that the
    memory allows the one with which the source is decoded least often; where that makes hardly a
    difference, the wider in x and y, then the deeper in z. Where not even one chunk fits, it is a
    chunk; the plan of the work then refuses with the figures.

    Raises:
        RequestError: There is no such volume.
    """
    if wanted.shard == UNSHARDED or wanted.format not in SHARDED:
        return wanted.layout(None if isinstance(wanted.shard, str) else wanted.shard)
    if wanted.shard is not None:
        return wanted.layout(vec(wanted.shard))
    fitting = []
    for shard in _candidates(wanted):
        layout = wanted.layout(shard)
        memory = Memory.of(source, [layout], [(1, 1, 1)])
        if memory.needed(shard) <= budget:
            itemsize = max(layout.itemsize, np.dtype(source.dtype).itemsize)
            unit = choose_unit(
                source.shape,
                shard,
                source.piece,
                memory.limit(budget),
                max(1, TARGET_BYTES // itemsize),
                offset,
            )
            fitting.append((times_read(source.shape, unit, source.piece, offset), layout))
    if fitting:
        least = min(often for often, _ in fitting)
        return next(layout for often, layout in fitting if often <= _ALIKE * least)
    return wanted.layout(wanted.chunk if wanted.format != "precomputed" else None)


def _candidates(wanted: Wanted) -> list[Vec]:
    """Shards worth a try, the wider before the narrower, of one width the deeper first."""
    if wanted.format == "precomputed":
        most = math.prod(wanted.chunk) * _CHUNKS_A_SHARD**3
        legal = legal_shards(wanted.shape, wanted.chunk)
        return [s for s in reversed(legal) if math.prod(s) <= most]
    counts = [-(-n // c) for n, c in zip(wanted.shape, wanted.chunk, strict=True)]

    def shard(chunks: tuple[int, int, int]) -> Vec:
        sides = zip(wanted.chunk, chunks, counts, strict=True)
        return vec(c * min(k, n) for c, k, n in sides)

    sides = range(_CHUNKS_A_SHARD, 0, -1)
    return [shard((wide, wide, deep)) for wide in sides for deep in sides]


def described(target: Target, dtype: str) -> tuple[str, str]:
    """A target for people: what the voxels are, and how they are stored.

    Args:
        target: What is written.
        dtype: What the source's voxels are.
    """
    layout = target.layout
    kept = "" if dtype == layout.dtype else f", stored as {layout.dtype}"
    order = "" if layout.axes == SPATIAL else f", stored {','.join(layout.axes)}"
    sharded = f" in shards of {shape_text(layout.shard)}" if layout.shard else ""
    return (
        f"volume: {layout.kind}, {shape_text(layout.shape)} voxels (x, y, z) of {dtype}"
        f"{kept}; voxel size {', '.join(f'{v:g}' for v in layout.voxel_size_nm)} nm; first voxel "
        f"at {layout.origin_vx}",
        f"output: {target.url}, {layout.format}, chunks of {shape_text(layout.chunk)}{sharded}, "
        f"{layout.compression}{order}",
    )


def identity(layout: VolumeLayout) -> dict[str, Any]:
    """What of a layout makes a job that job, as JSON."""
    return {
        "kind": layout.kind,
        "shape": list(layout.shape),
        "dtype": layout.dtype,
        "voxel_size_nm": list(layout.voxel_size_nm),
        "origin_vx": list(layout.origin_vx),
        "format": layout.format,
        "chunk": list(layout.chunk),
        "shard": None if layout.shard is None else list(layout.shard),
        "codec": str(layout.compression),
        "axes": "".join(layout.axes),
    }
