"""The plan of an embed run: made from metadata and the nodes, and refused where it cannot work."""

import dataclasses
from typing import Any

from pipelines.embed.config import EmbedConfig
from pipelines.embed.estimate import Estimate, assumptions
from pipelines.embed.resolving import resolved
from pipelines.text import bytes_text, shape_text
from segclr.sampler import NAME, VERSION
from transforms.reading import input_volume
from transforms.work import EmbedWork
from volumes import objects, provenance, store
from volumes.agglomeration import Table
from volumes.caching.remote import copied, refusal
from volumes.errors import RequestError
from volumes.geometry import Vec3, same_voxel_size
from volumes.opening import open_volume
from volumes.snapshots import Guard, guard
from volumes.spec import VolumeSpec
from volumes.survey import Survey
from volumes.tables import NodeSource

_GUARDS: dict[Guard, str] = {
    "pinned": "its version",
    "transaction": "a transaction",
    "stamps": "its stamps",
    "none": "nothing, since its storage tells no change",
}


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
        table: The agglomeration table, to be kept in the store; None for none.
        resuming: Whether the store holds this very run already.
        complete: Number and document of the version that has all of it, or None.
        replaces: Whether its manifest takes the place of another run's.
        job: The job that it is for.
    """

    config: EmbedConfig
    work: EmbedWork
    source: NodeSource | None
    survey: Survey | None
    estimate: Estimate
    identity: dict[str, Any]
    table: Table | None
    resuming: bool
    complete: tuple[int, dict[str, Any]] | None
    replaces: bool = False
    job: str = "embed"

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
            "job": self.job,
            "request": self.config.to_json(),
            "identity": self.identity,
            "generation": work.generation.to_json() | {"store": ""},
            "image": work.image.to_json(),
            "segmentation": work.segmentation.to_json(),
            "agglomeration": work.agglomeration and work.agglomeration.to_json(),
            "guards": {
                "image": _guard(work, work.image),
                "segmentation": _guard(work, work.segmentation),
            },
            "grid": work.grid.to_json(),
            "halo": list(work.halo),
            "nodes": _nodes_json(self.source, work.spacing_nm),
            "model": work.model.to_json(),
            "missing_image": work.missing_image,
            "missing_segmentation": work.missing_segmentation,
            "bytes_in_flight": work.bytes_in_flight,
            "read_ahead": work.read_ahead,
            "cache_bytes": work.cache_bytes,
            "copies": None if work.copies is None else dataclasses.asdict(work.copies),
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
        guards = [_GUARDS[_guard(work, spec)] for spec in (image, segmentation)]
        return [
            f"image: {image.source}, {image.format} {image.dtype}, voxels {image.domain}",
            f"segmentation: {segmentation.source}, {segmentation.format} {segmentation.dtype}, "
            f"voxels {segmentation.domain}",
            *self._bodies_line(),
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
            f"reading: {_ahead(work)}, {_kept(work)}",
            *self._copies_line(),
            f"held still while a box is read: image by {guards[0]}, segmentation by {guards[1]}",
            f"store: {work.generation.store}{self._found()}; a database for each "
            f"{shape_text(work.generation.block)} boxes",
            *(f"warning: {w}" for w in self.warnings),
        ]

    def _bodies_line(self) -> list[str]:
        if self.work.agglomeration is None:
            return []
        return [
            f"bodies: {self.work.agglomeration.pairs:,} supervoxels belong to another body, by "
            f"{self.config.agglomeration}"
        ]

    def _copies_line(self) -> list[str]:
        copies = self.work.copies
        if copies is None:
            return []
        each = "; ".join(_copied(spec) for spec in (self.work.image, self.work.segmentation))
        room = bytes_text(copies.budget_bytes)
        return [f"copies: at most {room} in {copies.directory}, for all who use it; {each}"]

    def _found(self) -> str:
        if self.work.renew:
            return (
                f", generation {self.work.generation.name}: what is committed is compared with the "
                "inputs as they are now, so all figures above are upper bounds"
            )
        if self.job == "reprocess":
            return f", as its new generation {self.work.generation.name}; older versions stay"
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
    output = objects.absolute(config.output)
    name, standing = store.current(output)
    found = resolved(config, name, standing)
    resuming = store.refuse_other_identity(output, name, found.identity)
    work = _continued(found.work, standing) if standing is not None else found.work
    complete = _complete(output, work.identity, config.retry_failed) if resuming else None
    if standing is not None and standing["job"] != "embed" and complete is None:
        raise RequestError(
            f"--output {objects.redacted(output)} was being reprocessed, and that did not come to "
            "its end; what it left undone only a comparison with the inputs can tell: finish it "
            f"with segclr-beam reprocess --store {objects.redacted(output)}"
        )
    return EmbedPlan(
        config,
        work,
        found.source,
        found.survey,
        found.estimate,
        found.identity,
        found.table,
        resuming,
        complete,
    )


def _continued(work: EmbedWork, standing: dict[str, Any]) -> EmbedWork:
    """The work of an unfinished run, which reads its inputs at the versions that it began with."""
    image = dataclasses.replace(work.image, pinned=standing["image"]["pinned"])
    segmentation = dataclasses.replace(work.segmentation, pinned=standing["segmentation"]["pinned"])
    return dataclasses.replace(work, image=image, segmentation=segmentation)


def _guard(work: EmbedWork, spec: VolumeSpec) -> Guard:
    return guard(input_volume(work, spec))


def _ahead(work: EmbedWork) -> str:
    if not work.read_ahead:
        return "one box after the other"
    boxes = "1 box" if work.read_ahead == 1 else f"{work.read_ahead} boxes"
    return f"{boxes} ahead while one is encoded and others are committed"


def _kept(work: EmbedWork) -> str:
    if not work.cache_bytes:
        return "no chunk kept for the next box"
    return f"{bytes_text(work.cache_bytes)} of decoded chunks kept a worker"


def _copied(spec: VolumeSpec) -> str:
    """Whether an input is copied to disk, and if not, why not."""
    why = refusal(spec)
    if why is None and not copied(open_volume(spec)):
        why = "its storage gives no generations (ETags) by which a change is told"
    return f"{spec.kind}: yes" if why is None else f"{spec.kind}: none, since {why}"


def _nodes_json(source: NodeSource | None, spacing_nm: float | None) -> dict[str, Any]:
    if source is not None:
        return source.to_json()
    return {"kind": "auto", "sampler": NAME, "sampler_version": VERSION, "spacing_nm": spacing_nm}


def _complete(output: str, identity: str, retry_failed: bool) -> tuple[int, dict[str, Any]] | None:
    """The latest version, where it holds all of this run, or all but what is set aside."""
    latest = store.latest_version(output)
    if latest is None or latest[1].get("identity") != identity or latest[1]["undone_boxes"]:
        return None
    return None if retry_failed and latest[1]["failed_boxes"] else latest


def _nm(size: Vec3) -> str:
    return " x ".join(f"{v:g}" for v in size)


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
