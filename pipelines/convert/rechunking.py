"""The way voxels take from one chunking to another: directly, or through a copy between the two.

Where chunks of source and output lie athwart (sections to columns), a unit of the output meets many
chunks of the source, each of which is decoded for many units. A copy with chunks between the two is
written from whole chunks of the source and read by whole units of the output, so that each byte is
decoded about once on either side; it costs to be written and read.
"""

import dataclasses
import hashlib
import itertools
import math

from pipelines.convert.config import ConvertConfig
from pipelines.writing.plan import Stage, stage
from volumes import objects
from volumes.errors import RequestError
from volumes.geometry import Vec, vec
from volumes.sources.volume import VolumeSource
from volumes.units import STATE, WriteJob
from volumes.writing import Codec, Target, VolumeLayout

# The direct way is left when it reads the source so often, and the staged one costs less.
_OFTEN = 3.0
# Bytes of a chunk of the copy.
_SMALLEST, _LARGEST = 32 << 10, 64 << 20


def stages(
    config: ConvertConfig, source: VolumeSource, target: Target, budget: int
) -> tuple[tuple[Stage, ...], Target | None, str]:
    """The passes of a conversion, the copy they go through if any, and a line for people.

    Raises:
        RequestError: A unit does not fit into memory, or no copy helps where one was asked for.
    """
    direct = _stage("convert", source, target.url, target, budget)
    often = f"each byte of the source is decoded {direct.times_read:.3g} times directly"
    direct_does = direct.times_read < _OFTEN or config.missing == "keep"
    if config.rechunk == "direct" or (config.rechunk == "auto" and direct_does):
        return (direct,), None, f"way: direct; {often}"
    staged = _staged(config, source, target, budget)
    if staged is None:
        if config.rechunk == "staged":
            raise RequestError(
                f"--rechunk staged: {often}, and no copy with chunks between those of source and "
                f"output fits into --memory-mb {config.memory_mb} and has chunks of at least "
                f"{_SMALLEST >> 10} KiB; leave it out, or give more memory"
            )
        return (direct,), None, f"way: direct; {often}, and no copy would make it less"
    first, last, copy = staged
    cost = first.times_read + last.times_read + 1
    if config.rechunk == "auto" and cost >= direct.times_read:
        return (direct,), None, f"way: direct; {often}, a copy would cost {cost:.3g} passes"
    chunk = ",".join(map(str, copy.layout.chunk))
    line = (
        f"way: staged; {often}, and {first.times_read:.3g} times to a copy in chunks of {chunk}, "
        f"which is decoded {last.times_read:.3g} times; the copy is in {copy.url} and is removed "
        "at the end"
    )
    return (first, last), copy, line


def _staged(
    config: ConvertConfig, source: VolumeSource, target: Target, budget: int
) -> tuple[Stage, Stage, Target] | None:
    """The two passes with the copy that makes them cheapest; None where none fits."""
    place = staging_place(config, target.url)
    best: tuple[float, Stage, Stage, Target] | None = None
    for chunk in _chunks(source, target, budget):
        layout = VolumeLayout(
            shape=source.shape,
            dtype=source.dtype,
            kind=source.spec.kind,
            voxel_size_nm=source.spec.voxel_size_nm,
            origin_vx=source.box.start,
            chunk=chunk,
            shard=None,
            codec=Codec.parse("blosc-lz4:1"),
        )
        copy = Target(objects.join(place, "_".join(map(str, chunk))), layout)
        again = VolumeSource(copy.spec(), source.box, "error", stamped=source.spec)
        try:
            first = _stage("stage", source, copy.url, copy, budget)
            last = _stage("convert", again, target.url, target, budget, first.job)
        except RequestError:  # such a chunk does not fit into memory; another one may
            continue
        cost = first.times_read + last.times_read
        if best is None or cost < best[0]:
            best = (cost, first, last, copy)
    return None if best is None else best[1:]


def staging_place(config: ConvertConfig, output: str) -> str:
    """The directory that copies of a conversion lie in, which is its own and is removed at the end.

    In a directory that the user gives it is a new one, named after the output, so that nothing else
    that lies there is touched and several conversions can share it.
    """
    if config.staging is None:
        return objects.join(output, STATE, "staging")
    name = hashlib.blake2b(output.encode(), digest_size=8).hexdigest()
    return objects.join(objects.absolute(config.staging), f"{STATE}-staging-{name}")


def _stage(
    name: str,
    source: VolumeSource,
    output: str,
    target: Target,
    budget: int,
    copied: WriteJob | None = None,
) -> Stage:
    origin = target.layout.origin_vx
    made = stage(name, source, origin, output, [target], [(1, 1, 1)], None, budget, source.offset)
    return dataclasses.replace(made, job=dataclasses.replace(made.job, copied=copied))


def _chunks(source: VolumeSource, target: Target, budget: int) -> list[Vec]:
    """Chunks of a copy worth a try: on each axis what source or output have, or between."""
    sides = []
    for extent, piece, write in zip(
        source.shape, source.piece, target.layout.write_chunk, strict=True
    ):
        small, large = min(piece, write, extent), min(max(piece, write), extent)
        between = round(math.sqrt(small * large))
        sides.append(sorted({small, between, large, min(write, extent)}))
    itemsize = source.spec.itemsize
    largest = min(_LARGEST, budget // 16)
    return [
        vec(c) for c in itertools.product(*sides) if _SMALLEST <= math.prod(c) * itemsize <= largest
    ]
