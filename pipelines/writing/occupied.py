"""Only the units over what a volume stores: how a sparse volume of any extent is written."""

import dataclasses
import math
from collections.abc import Iterator

from pipelines.writing.plan import Stage, WritePlan, granule
from volumes import objects
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec, vec
from volumes.keys import box_of
from volumes.listing import stored_keys
from volumes.opening import Volume, open_volume
from volumes.shapes import times_read
from volumes.sources.volume import VolumeSource
from volumes.units import STATE


def occupied(plan: WritePlan, source: VolumeSource) -> WritePlan:
    """The plan with its units listed: those that meet a chunk that the source stores.

    Costs what the listing of the source costs, whatever its extent.

    Args:
        plan: A plan of one pass.
        source: What it reads.

    Raises:
        RequestError: The storage cannot be listed, or the plan has several passes.
    """
    if len(plan.stages) > 1:
        raise RequestError(
            "--missing keep: with a copy between the chunkings, all of it would be written; give "
            "--rechunk direct"
        )
    (stage,) = plan.stages
    unit = _unit(stage, source)
    grid = dataclasses.replace(stage.job.grid, chunk=unit)
    volume = open_volume(source.spec)
    units: set[int] = set()
    moved = vec(a - b for a, b in zip(stage.job.origin_vx, source.box.start, strict=True))
    for box in _stored(volume, source.url):
        part = box.intersection(source.box).translated(moved)
        if part.size:
            units.update(grid.meeting(part))
    listed = objects.join(plan.output, STATE, f"{plan.job}-units.json")
    job = dataclasses.replace(stage.job, grid=grid, listed=listed)
    often = times_read(source.shape, unit, source.piece, source.offset)
    made = dataclasses.replace(stage, job=job, times_read=often, occupied=tuple(sorted(units)))
    about = (*plan.about, f"stored: {len(units):,} units meet a stored chunk; others are left out")
    return dataclasses.replace(plan, about=about, stages=(made,))


def _unit(stage: Stage, source: VolumeSource) -> Vec:
    """The largest unit of which every write chunk meets a stored chunk if the unit does.

    On an axis on which chunks of the source are whole write chunks it is one of them; elsewhere it
    is a write chunk.
    """
    write = granule(stage.job.targets, stage.job.factors)
    unit = vec(
        p if p % w == 0 and o % p == 0 else w
        for p, w, o in zip(source.piece, write, source.offset, strict=True)
    )
    return unit if math.prod(unit) <= math.prod(stage.unit) else write


def _stored(volume: Volume, name: str) -> Iterator[Box]:
    """The boxes of the chunks that a volume stores.

    Raises:
        RequestError: Its storage cannot be listed, or its keys tell of no box.
    """
    try:
        for key in stored_keys(volume):
            box = box_of(volume, key)
            if box is not None:
                yield box
    except RunError as e:
        raise RequestError(
            f"--missing keep: what {name} stores is not known: {e}; give --crop and --missing zero"
        ) from e
