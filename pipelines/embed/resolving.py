"""From what was asked to what will be done: inputs resolved, from metadata and the nodes alone."""

import dataclasses
import math
import os
from typing import Any

from pipelines.embed.blocks import block_for
from pipelines.embed.config import EmbedConfig
from pipelines.embed.estimate import Estimate, estimate
from pipelines.embed.memory import fitting_read_ahead
from pipelines.text import bytes_text
from segclr.errors import ModelError
from segclr.model import ModelSpec, resolve_model
from segclr.sampler import DEFAULT_SPACING_NM, NAME, VERSION, check_domain
from segclr.skeletons import thin
from transforms.work import EmbedWork
from volumes import agglomeration, objects, store, tables
from volumes.agglomeration import Table
from volumes.caching.disk import Copies
from volumes.errors import RequestError
from volumes.generation import Generation
from volumes.geometry import Box, ChunkGrid, Vec, Vec3, vec
from volumes.opening import resolve_volume, shared_domain
from volumes.receipts import json_digest
from volumes.spec import VolumeSpec
from volumes.survey import Survey, check_inside, survey
from volumes.tables import NodeSource

_SMALLEST_BOX = 128
_LARGEST_BOX = 512
_AUTO = "auto"

# Where the volumes are.
_VOLUMES = ("image", "image_origin_vx", "segmentation", "segmentation_origin_vx")

# What identifies a run but not the vector of a crop: where its inputs are.
_INPUTS = (*_VOLUMES, "agglomeration", "nodes")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """What was asked, with every input found.

    Attributes:
        work: All that a worker needs to know.
        source: The given nodes, or None where they are sampled.
        survey: What the given nodes are, or None.
        estimate: What it will cost.
        identity: What makes this run this run, a flat JSON object.
        table: The agglomeration table, to be kept in the store; None for none.
    """

    work: EmbedWork
    source: NodeSource | None
    survey: Survey | None
    estimate: Estimate
    identity: dict[str, Any]
    table: Table | None


def resolved(config: EmbedConfig, generation: str, standing: dict[str, Any] | None) -> Resolved:
    """Look at the inputs; nothing is written, no voxel is read.

    Args:
        config: The request.
        generation: Name of the generation to be written.
        standing: Its manifest, where it has one: its partitions keep their shape, and an unfinished
            run reads its inputs at the versions that it began with.

    Raises:
        RequestError: The request cannot work, with the reason and the remedy.
    """
    image = _volume(config, config.image, "image")
    segmentation = _volume(config, config.segmentation, "segmentation")
    domain = shared_domain(image, segmentation)
    model = _model(config)
    box = config.box or default_box(image.read_chunk, segmentation.read_chunk)
    halo = _halo(config, model)
    grid = ChunkGrid(domain, box)
    source, spacing_nm = _nodes(config, domain, image.voxel_size_nm)
    table = None if config.agglomeration is None else agglomeration.read_table(config.agglomeration)
    output = objects.absolute(config.output)
    recipe = {
        "voxel_size_nm": list(image.voxel_size_nm),
        "sampler": None if source else sampler_text(spacing_nm),
        "model": model.fingerprint,
        "batch": model.batch,
        "input_size": model.input_size,
        "box": list(box),
        "halo": list(halo),
        "missing_image": config.missing_image,
        "missing_segmentation": config.missing_segmentation,
    }
    identity = {
        "image": image.where(),
        "image_origin_vx": list(image.origin_vx),
        "segmentation": segmentation.where(),
        "segmentation_origin_vx": list(segmentation.origin_vx),
        "agglomeration": None if table is None else table.digest(),
        "nodes": _nodes_identity(source, spacing_nm),
        **recipe,
    }
    work = EmbedWork(
        image=image,
        segmentation=segmentation,
        grid=grid,
        generation=Generation(output, generation, model.embedding_width, box, (1, 1, 1)),
        model=model,
        identity=json_digest(identity),
        inputs=json_digest({k: identity[k] for k in _VOLUMES}),
        recipe=json_digest(recipe),
        run=store.new_run(),
        halo=halo,
        missing_image=config.missing_image,
        missing_segmentation=config.missing_segmentation,
        spacing_nm=spacing_nm,
        bytes_in_flight=config.read_mb * 10**6,
        agglomeration=None if table is None else agglomeration.named(output, table),
        retry_failed=config.retry_failed,
        commit_seconds=config.commit_seconds,
        cache_bytes=config.cache_mb * 10**6,
        copies=_copies(config),
    )
    work = dataclasses.replace(work, read_ahead=fitting_read_ahead(work, config.read_ahead))
    found = _survey(source, grid, image.voxel_size_nm)
    cost = estimate(work, found)
    _refuse_too_large(cost, config.workers)
    work = _placed(config, work, found, cost, standing)
    return Resolved(work, source, found, cost, identity, table)


def _copies(config: EmbedConfig) -> Copies | None:
    """Where what is read over a network is kept."""
    path = None if config.disk_cache is None else objects.local_path(config.disk_cache)
    if path is None:
        return None
    copies = Copies(os.path.abspath(path), round(config.disk_cache_gb * 10**9))
    copies.check()
    return copies


def recipe_of(identity: dict[str, Any]) -> str:
    """Digest of what of an identity makes a crop's vector: all but where the inputs are."""
    return json_digest({k: v for k, v in identity.items() if k not in _INPUTS})


def _placed(
    config: EmbedConfig,
    work: EmbedWork,
    found: Survey | None,
    cost: Estimate,
    standing: dict[str, Any] | None,
) -> EmbedWork:
    """The work with the shape of its partitions: the standing one, or one that is chosen."""
    if standing is not None:
        block = vec(standing["generation"]["block"])
    else:
        block = block_for(
            work.grid,
            None if found is None else found.box_index,
            store=work.generation.store,
            workers=config.workers,
            box_seconds=cost.seconds / max(cost.boxes, 1),
            commit_seconds=config.commit_seconds,
        )
    return dataclasses.replace(work, generation=dataclasses.replace(work.generation, block=block))


def default_box(image_chunk: Vec, segmentation_chunk: Vec) -> Vec:
    """A common multiple of the read chunks, at least 128 and, where that goes, at most 512 a side.

    Chunks whose common multiple is larger than that share no useful box; a multiple of the larger
    chunk is taken then.
    """

    def side(a: int, b: int) -> int:
        unit = math.lcm(a, b)
        if unit > _LARGEST_BOX:
            unit = max(a, b)
        return unit * -(-_SMALLEST_BOX // unit)

    return vec(side(a, b) for a, b in zip(image_chunk, segmentation_chunk, strict=True))


def _volume(config: EmbedConfig, volume: str, kind: Any) -> VolumeSpec:
    return resolve_volume(
        volume,
        kind=kind,
        scale=config.scale,
        voxel_size_nm=config.voxel_size_nm,
        origin_vx=config.origin_vx,
        axes=config.axes,
        allow_functions=config.allow_functions,
    )


def _model(config: EmbedConfig) -> ModelSpec:
    try:
        return resolve_model(config.model, batch=config.batch, input_size=config.input_size)
    except ModelError as e:
        asked = f"--model {objects.redacted(config.model)} --batch {config.batch}"
        if config.input_size is not None:
            asked += f" --input-size {config.input_size}"
        raise RequestError(f"{asked}: {e}") from e


def _halo(config: EmbedConfig, model: ModelSpec) -> Vec:
    needed = model.input_size // 2
    if config.halo is None:
        return (needed, needed, needed)
    if min(config.halo) < needed:
        raise RequestError(
            f"--halo {','.join(map(str, config.halo))} is smaller than {needed}: a crop of "
            f"{model.input_size} voxels reaches {needed} beyond its node, and what is not read "
            f"would be black; give at least {needed},{needed},{needed}, or leave the flag out"
        )
    return config.halo


def _nodes(
    config: EmbedConfig, domain: Box, voxel_size_nm: Vec3
) -> tuple[NodeSource | None, float | None]:
    """The given nodes, or the spacing of sampled ones."""
    kind, colon, text = config.nodes.partition(":")
    if kind != _AUTO:
        return tables.resolve_nodes(config.nodes, config.spacing_nm), None
    if config.spacing_nm is not None:
        raise RequestError(
            f"--spacing-nm {config.spacing_nm:g} thins given skeletons, and --nodes {config.nodes} "
            f"samples its own sites; give the spacing as --nodes auto:{config.spacing_nm:g}"
        )
    spacing_nm = _spacing(config.nodes, text) if colon else DEFAULT_SPACING_NM
    try:
        check_domain(domain, voxel_size_nm, spacing_nm)
    except ValueError as e:
        raise RequestError(f"--nodes {config.nodes}: {e}") from e
    return None, spacing_nm


def _spacing(nodes: str, text: str) -> float:
    """The spacing behind ``auto:``."""
    try:
        return float(text)
    except ValueError as e:
        raise RequestError(
            f"--nodes {nodes}: {text!r} is no spacing; after auto: stands the edge of the "
            f"sampler's cells in nm, as in auto:{DEFAULT_SPACING_NM:g}"
        ) from e


def sampler_text(spacing_nm: float | None) -> str:
    """The sampler as an identity has it."""
    return f"{NAME} {VERSION} at {spacing_nm!r} nm"


def _nodes_identity(source: NodeSource | None, spacing_nm: float | None) -> str:
    if source is None:
        return sampler_text(spacing_nm)
    thinned = "" if source.spacing_nm is None else f" thinned to {source.spacing_nm!r} nm"
    return f"{source.kind} {source.digest}{thinned}"


def _survey(source: NodeSource | None, grid: ChunkGrid, voxel_size_nm: Vec3) -> Survey | None:
    if source is None:
        return None
    found = survey(source, grid.domain, voxel_size_nm, grid, thin)
    check_inside(found, grid.domain, voxel_size_nm)
    return found


def _refuse_too_large(cost: Estimate, workers: int) -> None:
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if cost.peak_bytes * workers > have:
        raise RequestError(
            f"{workers} worker(s) of about {bytes_text(cost.peak_bytes)} do not fit into the "
            f"{bytes_text(have)} of this machine; take a smaller --box, a smaller --batch or fewer "
            "--workers"
        )
