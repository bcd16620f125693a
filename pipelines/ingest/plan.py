"""The plan of an ingest: made from metadata alone, and refused where it cannot work."""

from typing import Any

from pipelines.ingest.config import IngestConfig
from pipelines.writing.layout import Wanted, chosen_codec, chosen_layout, described, identity
from pipelines.writing.output import check_output, kept_budget, read_manifest
from pipelines.writing.plan import WritePlan, stage
from pipelines.writing.sample import samples
from volumes import objects
from volumes.sources import (
    Source,
    agreed_origin,
    agreed_voxel_size,
    resolve_source,
    stored_dtype,
)
from volumes.spec import canonical
from volumes.writing import Target, VolumeLayout


def plan(config: IngestConfig) -> WritePlan:
    """Look at the source's metadata and decide shards and units; nothing is written.

    Raises:
        RequestError: The source is no source of such a volume, a shard does not fit into memory, or
            the output holds something else.
    """
    source = resolve_source(
        config.source,
        config.dataset,
        config.axes,
        config.kind,
        config.dtype,
        config.missing_sections,
    )
    output = objects.absolute(config.output)
    allowed = config.memory_mb * 10**6
    budget = kept_budget(output, "ingest", allowed)
    wanted = Wanted(
        shape=source.shape,
        dtype=stored_dtype(source.dtype, config.kind),
        kind=config.kind,
        voxel_size_nm=agreed_voxel_size(source, config.voxel_size_nm),
        origin_vx=agreed_origin(source, config.origin_vx),
        chunk=config.chunk,
        shard=config.shard,
        format=config.format,
        codec=config.codec,
    )
    standing = read_manifest(output, "ingest")
    layout, tried = chosen_codec(
        chosen_layout(wanted, source, budget),
        config.codec,
        None if standing is None else standing["identity"],
        lambda layout: samples(source, layout),
    )
    target = Target(output, layout)
    work = stage("ingest", source, layout.origin_vx, output, [target], [(1, 1, 1)], None, budget)
    made = WritePlan(
        job="ingest",
        source=source.url,
        output=output,
        volumes=((target,),),
        stages=(work,),
        identity_text=canonical(_identity(config, source, layout)),
        about=(*source.lines(), *described(target, source.dtype), *tried),
        budget_bytes=allowed,
        chosen_for_bytes=budget,
        warnings=_warnings(config, layout, work.times_read),
    )
    check_output(made)
    return made


def _identity(config: IngestConfig, source: Source, layout: VolumeLayout) -> dict[str, Any]:
    """What makes this ingest this one, as JSON: an output takes no other."""
    read = {
        "source": source.url,
        "dataset": config.dataset,
        "read_as": config.axes,
        "missing_sections": config.missing_sections,
    }
    return read | identity(layout)


def _warnings(config: IngestConfig, layout: VolumeLayout, times_read: float) -> tuple[str, ...]:
    """What the user should know before it runs."""
    found = []
    if config.kind == "image" and layout.dtype != "uint8":
        found.append(
            f"the image is {layout.dtype} and is stored so; embed takes uint8 images "
            "only, so scale the grey values first if that is what it is for"
        )
    if times_read > 2:
        found.append(
            "a section or chunk of the source is decoded for each unit it meets; more "
            "--memory-mb, or a --shard of less depth in z, makes fewer"
        )
    return tuple(found)
