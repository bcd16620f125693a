"""The plan of a pyramid: made from metadata alone, and refused where it cannot work."""

import dataclasses
import math
from typing import Any

import numpy as np

from pipelines.downsample.config import DownsampleConfig
from pipelines.downsample.levels import Pass, passes
from pipelines.text import shape_text
from pipelines.writing.kinds import of_kind
from pipelines.writing.layout import CHUNK, UNSHARDED, described
from pipelines.writing.output import check_output, kept_budget, read_manifest
from pipelines.writing.plan import Stage, WritePlan, stage
from volumes import objects
from volumes.downsampling import Method, ladder
from volumes.errors import RequestError
from volumes.geometry import Vec
from volumes.levels import SPATIAL
from volumes.opening import open_volume, resolve_levels, resolve_volume
from volumes.reading import MissingChunks
from volumes.sources.volume import VolumeSource
from volumes.spec import VolumeSpec, canonical, numbers
from volumes.writing import Codec, Target, VolumeLayout
from volumes.writing.arrays import is_group, is_sharded, stored_codec

# What a unit takes of the memory: itself, its levels, and what is being written of it.
_SHARE = 1 / 4


def plan(config: DownsampleConfig) -> WritePlan:
    """Look at the volume's metadata and decide levels, passes and units; nothing is written.

    Raises:
        RequestError: There is no such volume, it holds no levels, a unit does not fit into memory,
            or the output holds something else.
    """
    base = _base(config)
    steps = _steps(config, base)
    allowed = config.memory_mb * 10**6
    budget = kept_budget(base.url, "downsample", allowed)
    limit = math.floor(budget * _SHARE / base.spec.itemsize)
    made = passes(base.layout, steps, limit, copied=base.new)
    method = config.method or ("mean" if base.spec.kind == "image" else "mode")
    _check_method(method, base.spec)
    stages, targets = _stages(config, base, made, method, budget)
    listed = [
        f"level {t.level}: {shape_text(t.layout.shape)} voxels of "
        f"{numbers(t.layout.voxel_size_nm)} nm, shard "
        f"{'none' if t.layout.shard is None else shape_text(t.layout.shard)}"
        for t in targets
    ]
    found = WritePlan(
        job="downsample",
        source=base.spec.source,
        output=base.url,
        volumes=(targets,),
        stages=stages,
        identity_text=canonical(_identity(config, base, steps, method, targets)),
        about=(
            *stages[0].job.source.lines(),
            described(targets[-1], base.spec.dtype)[1],
            f"method: {method}",
            *listed,
        ),
        budget_bytes=allowed,
        chosen_for_bytes=budget,
        method=method,
        fresh=base.new,
    )
    if not check_output(found) and not base.new:
        _refuse_taken(targets)
    return found


def _refuse_taken(targets: tuple[Target, ...]) -> None:
    """Refuse levels whose directories in another one's group hold something.

    Raises:
        RequestError: One does.
    """
    for target in targets:
        if target.array_url != target.url and objects.names(target.array_url):
            raise RequestError(
                f"level {target.level} would be in {target.array_url}, which holds something that "
                "is no coarser level of the volume; move that away, or give --output for a new one"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class _Base:
    """The level a pyramid begins with.

    Attributes:
        spec: The level.
        url: The volume that gets the levels.
        level: The number of that level in it.
        layout: The level as it is stored there, or is to be.
        new: Whether that volume is made, with this level in it.
    """

    spec: VolumeSpec
    url: str
    level: int
    layout: VolumeLayout
    new: bool


def _base(config: DownsampleConfig) -> _Base:
    if config.output is not None:
        name = config.format or "ome-zarr"
        found = resolve_volume(
            config.volume,
            kind=None,
            scale=config.scale,
            voxel_size_nm=config.voxel_size_nm,
            allow_functions=config.allow_functions,
        )
        spec = of_kind(found, config.kind)
        axes = tuple(reversed(SPATIAL)) if name == "ome-zarr" else SPATIAL
        layout = _layout(config, spec, name, axes, config.chunk or CHUNK)
        url = objects.absolute(config.output)
        return _Base(spec, url, 0, layout, True)
    levels = resolve_levels(config.volume, kind=None)
    url = objects.absolute(config.volume)
    standing = read_manifest(url, "downsample")
    number = len(levels) - 1 if standing is None else int(standing["identity"]["from_level"])
    spec = of_kind(levels[number], config.kind)
    name = _format(spec, url)
    axes = SPATIAL if name == "precomputed" else spec.axes
    layout = _layout(config, spec, name, axes, config.chunk or spec.read_chunk)
    return _Base(spec, url, number, layout, False)


def _format(spec: VolumeSpec, url: str) -> str:
    """The format by which levels are added to a volume.

    Raises:
        RequestError: It is none that takes levels.
    """
    if spec.format == "neuroglancer_precomputed":
        return "precomputed"
    if spec.format == "zarr3" and is_group(url) and sorted(spec.axes) == sorted(SPATIAL):
        return "ome-zarr"
    raise RequestError(
        f"--volume {spec.source} is {spec.format} with the axes {', '.join(spec.axes)} and takes "
        "no levels: that do OME-Zarr 0.5 groups with the axes x, y, z, and precomputed volumes; "
        "give --output for a new one"
    )


def _layout(
    config: DownsampleConfig, spec: VolumeSpec, name: str, axes: tuple[str, ...], chunk: Vec
) -> VolumeLayout:
    """The level as it is stored, or is to be; shards, where it has some, of one chunk."""
    codec = None if config.codec is None else Codec.parse(config.codec)
    stored = None if config.output is not None else open_volume(spec)
    if codec is None and stored is not None:
        codec = stored_codec(stored)
    sharded = config.shard != UNSHARDED and (stored is None or is_sharded(stored))
    if codec is not None and codec.name == "gzip" and name == "precomputed" and not sharded:
        codec = None
    if codec is not None and codec.lossy and spec.kind == "segmentation":
        raise RequestError(
            f"--codec {codec} changes voxels, and ids must stay; give a lossless one"
        )
    return VolumeLayout(
        shape=spec.domain.shape,
        dtype=spec.dtype,
        kind=spec.kind,
        voxel_size_nm=spec.voxel_size_nm,
        origin_vx=spec.domain.start,
        chunk=chunk,
        shard=chunk if sharded else None,
        format=name,
        codec=codec,
        axes=axes,
    )


def _steps(config: DownsampleConfig, base: _Base) -> list[Vec]:
    """For each level to make, how many voxels of the one before make one of its own."""
    if config.factors is None:
        spec, chunk = base.spec, base.layout.chunk
        found = list(
            ladder(spec.domain.shape, spec.voxel_size_nm, levels=config.levels, chunk=chunk)
        )
        if not found:
            raise RequestError(
                f"{spec.source} has {shape_text(spec.domain.shape)} voxels, which fit into one "
                f"chunk of {shape_text(chunk)}, so it needs no coarser levels; give --levels N to "
                "make some all the same"
            )
        return found
    given = list(config.factors)
    return given + [given[-1]] * ((config.levels or len(given)) - len(given))


def _check_method(method: Method, spec: VolumeSpec) -> None:
    """Refuse a method that the voxels do not take."""
    if method == "mean" and spec.kind == "segmentation":
        raise RequestError(
            f"--method mean of {spec.source}: the mean of two ids is the id of another segment; "
            "give mode or sparse-mode"
        )
    if method != "mean" and np.dtype(spec.dtype).kind == "f":
        raise RequestError(
            f"--method {method} of {spec.source}, which is {spec.dtype}: numbers that are no ids "
            "hardly ever repeat; give mean"
        )


def _stages(
    config: DownsampleConfig, base: _Base, made: list[Pass], method: Method, budget: int
) -> tuple[tuple[Stage, ...], tuple[Target, ...]]:
    """The passes, each reading the coarsest level of the one before, and all that is written."""
    missing: MissingChunks = config.missing or ("error" if base.spec.kind == "image" else "zero")
    source = VolumeSource(base.spec, base.spec.domain, missing)
    stages: list[Stage] = []
    targets: list[Target] = []
    level = base.level if base.new else base.level + 1
    for number, one in enumerate(made, 1):
        wanted = [Target(base.url, x, level + i) for i, x in enumerate(one.layouts)]
        stages.append(
            stage(
                f"downsample-{number}",
                source,
                source.box.start,
                base.url,
                wanted,
                one.factors,
                method,
                budget,
                source.offset,
            )
        )
        targets += wanted
        level += len(wanted)
        last = wanted[-1].spec()
        source = VolumeSource(last, last.domain)
    return tuple(stages), tuple(targets)


def _identity(
    config: DownsampleConfig,
    base: _Base,
    steps: list[Vec],
    method: Method,
    targets: tuple[Target, ...],
) -> dict[str, Any]:
    """What makes this pyramid this one, as JSON: an output takes no other."""
    return {
        "source": base.spec.where(),
        "from_level": base.level,
        "kind": base.spec.kind,
        "factors": [list(s) for s in steps],
        "method": method,
        "missing": config.missing or "default",
        "format": base.layout.format,
        "chunk": list(base.layout.chunk),
        "codec": str(targets[-1].layout.compression),
        "shards": [None if t.layout.shard is None else list(t.layout.shard) for t in targets],
    }
