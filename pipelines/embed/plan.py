"""The plan of an embed run: made from metadata and the nodes, and refused where it cannot work."""

import dataclasses
import math
import os
from typing import Any

from pipelines.embed.config import EmbedConfig
from pipelines.embed.estimate import Estimate, assumptions, estimate
from pipelines.text import bytes_text, shape_text
from segclr.errors import ModelError
from segclr.model import ModelSpec, resolve_model
from segclr.sampler import DEFAULT_SPACING_NM, NAME, VERSION, check_domain
from segclr.skeletons import thin
from transforms.work import EmbedWork
from volumes import objects, provenance, store, tables
from volumes.errors import RequestError
from volumes.geometry import Box, ChunkGrid, Vec, Vec3, same_voxel_size, vec
from volumes.opening import resolve_volume, shared_domain
from volumes.receipts import json_digest
from volumes.spec import VolumeSpec
from volumes.store import Generation
from volumes.survey import Survey, check_inside, survey
from volumes.tables import NodeSource

GENERATION = "1"
"""The generation that embed writes."""

_BLOCK: Vec = (8, 8, 8)
_SMALLEST_BOX = 128
_LARGEST_BOX = 512
_AUTO = "auto"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EmbedPlan:
    """What will run; its JSON is the run's manifest.

    Attributes:
        config: The request.
        work: All that a worker needs to know.
        source: The given nodes, or None where they are sampled.
        survey: What the given nodes are, or None.
        estimate: What it will cost.
        identity: What makes this run this run, a flat JSON object.
        resuming: Whether the store holds this very run already.
        complete: Number and document of the version that has all of it, or None.
    """

    config: EmbedConfig
    work: EmbedWork
    source: NodeSource | None
    survey: Survey | None
    estimate: Estimate
    identity: dict[str, Any]
    resuming: bool
    complete: tuple[int, dict[str, Any]] | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before it runs."""
        found = []
        trained, size = self.work.model.trained_voxel_size_nm, self.work.voxel_size_nm
        if trained is not None and not same_voxel_size(trained, size):
            found.append(
                f"THE MODEL WAS TRAINED AT {_nm(trained)} nm AND THE VOLUMES HAVE {_nm(size)} nm: "
                "embeddings of another voxel size are not comparable with published ones"
            )
        if self.work.model.kind == "untrained":
            found.append(
                f"the {self.work.model.title} has random weights: its embeddings show that the "
                "pipeline works, and nothing about neurons"
            )
        for volume in (self.work.image, self.work.segmentation):
            if volume.assumed:
                found.append(
                    f"{volume.source} does not state its {' and '.join(volume.assumed)}; taken are "
                    f"axes {','.join(volume.axes)} and origin {volume.origin_vx}"
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        work = self.work
        return {
            "job": "embed",
            "identity": self.identity,
            "generation": work.generation.to_json() | {"store": ""},
            "image": work.image.to_json(),
            "segmentation": work.segmentation.to_json(),
            "grid": work.grid.to_json(),
            "halo": list(work.halo),
            "nodes": _nodes_json(self.source, work.spacing_nm),
            "model": work.model.to_json(),
            "missing_image": work.missing_image,
            "missing_segmentation": work.missing_segmentation,
            "bytes_in_flight": work.bytes_in_flight,
            "estimate": dataclasses.asdict(self.estimate),
            "warnings": list(self.warnings),
        }

    def manifest(self, command: str) -> dict[str, Any]:
        """The run's manifest: the plan, and what made it."""
        made = {"command": command, "software": provenance.software(), "made": provenance.now()}
        return self.to_json() | made

    def lines(self) -> list[str]:
        """The plan for people, a line each."""
        work, cost = self.work, self.estimate
        image, segmentation = work.image, work.segmentation
        often = "too many chunks to tell how often each"
        if cost.chunk_reads is not None:
            often = f"each chunk about {cost.chunk_reads:.3g} times"
        return [
            f"image: {image.source}, {image.format} {image.dtype}, voxels {image.domain}",
            f"segmentation: {segmentation.source}, {segmentation.format} {segmentation.dtype}, "
            f"voxels {segmentation.domain}",
            f"shared: voxels {work.grid.domain} of {_nm(work.voxel_size_nm)} nm",
            f"model: {work.model.title}, crops of {work.model.input_size} voxels a side, batches "
            f"of {work.model.batch}, fingerprint {work.model.fingerprint[:12]}",
            f"nodes: {self._nodes_line()}",
            f"boxes: {cost.boxes:,} of {work.grid.size:,}, each {shape_text(work.grid.chunk)} "
            f"voxels and a halo of {shape_text(work.halo)}",
            f"to read: {bytes_text(cost.bytes_to_read)} decoded, {often}",
            f"time: about {_duration(cost.seconds)} ({assumptions(work)})",
            f"memory: at most about {bytes_text(cost.peak_bytes)} a worker, "
            f"{self.config.workers} of them",
            f"store: {work.generation.store}{self._found()}",
            *(f"warning: {w}" for w in self.warnings),
        ]

    def _found(self) -> str:
        if self.complete is not None:
            return f", which has all of this run as version {self.complete[0]}: nothing to do"
        return ", goes on from what is committed" if self.resuming else ""

    def _nodes_line(self) -> str:
        if self.source is None or self.survey is None:
            return (
                f"sampled by {NAME} {VERSION}, one a segment and cell of "
                f"{self.work.spacing_nm:g} nm; assumed {self.estimate.nodes_assumed:,} (30 a cell)"
            )
        found = self.survey
        about = "" if found.exact else f" (from {found.basis} rows)"
        return (
            f"{found.rows:,} from {self.source.files:,} {self.source.kind} file(s), "
            f"{found.inside:,} inside, {found.outside:,} outside, {found.nan:,} nan{about}"
        )


def plan(config: EmbedConfig) -> EmbedPlan:
    """Look at the inputs and decide what will run; nothing is written, no voxel is read.

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
    identity = {
        "image": image.where(),
        "image_origin_vx": list(image.origin_vx),
        "segmentation": segmentation.where(),
        "segmentation_origin_vx": list(segmentation.origin_vx),
        "voxel_size_nm": list(image.voxel_size_nm),
        "nodes": _nodes_identity(source, spacing_nm),
        "model": model.fingerprint,
        "batch": model.batch,
        "input_size": model.input_size,
        "box": list(box),
        "halo": list(halo),
        "missing_image": config.missing_image,
        "missing_segmentation": config.missing_segmentation,
    }
    output = objects.absolute(config.output)
    work = EmbedWork(
        image=image,
        segmentation=segmentation,
        grid=grid,
        generation=Generation(output, GENERATION, model.embedding_width, box, _BLOCK),
        model=model,
        identity=json_digest(identity),
        run=store.new_run(),
        halo=halo,
        missing_image=config.missing_image,
        missing_segmentation=config.missing_segmentation,
        spacing_nm=spacing_nm,
        bytes_in_flight=config.read_mb * 10**6,
    )
    found = _survey(source, grid, image.voxel_size_nm)
    cost = estimate(work, found)
    _refuse_too_large(cost, config.workers)
    resuming = store.refuse_other_identity(output, GENERATION, identity)
    complete = _complete(output, work.identity) if resuming else None
    return EmbedPlan(config, work, source, found, cost, identity, resuming, complete)


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


def _nodes_identity(source: NodeSource | None, spacing_nm: float | None) -> str:
    if source is None:
        return f"{NAME} {VERSION} at {spacing_nm!r} nm"
    thinned = "" if source.spacing_nm is None else f" thinned to {source.spacing_nm!r} nm"
    return f"{source.kind} {source.digest}{thinned}"


def _nodes_json(source: NodeSource | None, spacing_nm: float | None) -> dict[str, Any]:
    if source is not None:
        return source.to_json()
    return {"kind": _AUTO, "sampler": NAME, "sampler_version": VERSION, "spacing_nm": spacing_nm}


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


def _complete(output: str, identity: str) -> tuple[int, dict[str, Any]] | None:
    """The latest version, where it holds all of this run."""
    latest = store.latest_version(output)
    return latest if latest is not None and latest[1].get("identity") == identity else None


def _nm(size: Vec3) -> str:
    return " x ".join(f"{v:g}" for v in size)


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
