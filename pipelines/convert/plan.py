"""The plan of a conversion: made from metadata, and for ``--codec auto`` a sample of the data."""

from typing import Any

from pipelines.convert.config import ConvertConfig
from pipelines.convert.rechunking import stages, staging_place
from pipelines.writing.kinds import of_kind
from pipelines.writing.layout import Wanted, chosen_codec, chosen_layout, described, identity
from pipelines.writing.occupied import occupied
from pipelines.writing.output import check_output, kept_budget, read_manifest
from pipelines.writing.plan import WritePlan
from pipelines.writing.sample import samples
from volumes import objects
from volumes.errors import RequestError
from volumes.geometry import Box
from volumes.opening import resolve_volume
from volumes.reading import MissingChunks
from volumes.sources.volume import VolumeSource
from volumes.spec import VolumeSpec, canonical
from volumes.writing import Target, VolumeLayout


def plan(config: ConvertConfig) -> WritePlan:
    """Look at the volume's metadata and decide layout, units and the way; nothing is written.

    Raises:
        RequestError: There is no such volume, what is asked cannot be, a unit does not fit into
            memory, or the output holds something else.
    """
    found = resolve_volume(
        config.input,
        kind=None,
        scale=config.scale,
        voxel_size_nm=config.voxel_size_nm,
        allow_functions=config.allow_functions,
    )
    spec = of_kind(found, config.kind)
    output = objects.absolute(config.output)
    source = VolumeSource(spec, _part(config, spec), _missing(config, spec))
    allowed = config.memory_mb * 10**6
    budget = kept_budget(output, "convert", allowed)
    layout, trials = _layout(config, source, budget, output)
    target = Target(output, layout)
    work, staging, way = stages(config, source, target, budget)
    keep = config.missing == "keep"
    made = WritePlan(
        job="convert",
        source=spec.source,
        output=output,
        volumes=((target,),) if staging is None else ((staging,), (target,)),
        stages=work,
        identity_text=canonical(_identity(config, source, layout)),
        about=(*source.lines(), *described(target, spec.dtype), *trials, way),
        budget_bytes=allowed,
        chosen_for_bytes=budget,
        warnings=_warnings(layout),
        temporary=staging_place(config, output),
    )
    check_output(made)
    return occupied(made, source) if keep else made


def _part(config: ConvertConfig, spec: VolumeSpec) -> Box:
    """The frame voxels to convert."""
    if config.crop is None:
        return spec.domain
    part = Box(*config.crop)
    if not spec.domain.encloses(part):
        raise RequestError(
            f"--crop {part} is not within {spec.source}, which has voxels {spec.domain}; give a "
            "box of it"
        )
    return part


def _missing(config: ConvertConfig, spec: VolumeSpec) -> MissingChunks:
    if config.missing is None:
        return "error" if spec.kind == "image" else "zero"
    return "error" if config.missing == "error" else "zero"


def _layout(
    config: ConvertConfig, source: VolumeSource, budget: int, output: str
) -> tuple[VolumeLayout, tuple[str, ...]]:
    """What is made, and what ``--codec auto`` tried, for people."""
    spec = source.spec
    wanted = Wanted(
        shape=source.shape,
        dtype=config.dtype or spec.dtype,
        kind=spec.kind,
        voxel_size_nm=spec.voxel_size_nm,
        origin_vx=config.origin_vx or source.box.start,
        chunk=config.chunk,
        shard=config.shard,
        format=config.format,
        codec=config.codec,
        axes=None if config.axes is None else tuple(config.axes),
    )
    layout = chosen_layout(wanted, source, budget, source.offset)
    standing = read_manifest(output, "convert")
    identity = None if standing is None else standing["identity"]
    return chosen_codec(layout, config.codec, identity, lambda x: samples(source, x))


def _identity(config: ConvertConfig, source: VolumeSource, layout: VolumeLayout) -> dict[str, Any]:
    """What makes this conversion this one, as JSON: an output takes no other."""
    read = {
        "source": source.spec.where(),
        "box": source.box.to_json(),
        "missing": "keep" if config.missing == "keep" else source.missing,
    }
    return read | identity(layout)


def _warnings(layout: VolumeLayout) -> tuple[str, ...]:
    found = []
    if layout.compression.lossy:
        found.append(f"{layout.compression} is lossy: voxels come back changed")
    if layout.compression.lossy and layout.kind == "segmentation":
        raise RequestError(
            f"--codec {layout.compression} changes voxels, and ids must stay; give a lossless one"
        )
    return tuple(found)
