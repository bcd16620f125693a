"""What the user asks of an embed run: typed, frozen, checked without looking at any storage."""

import dataclasses
import math
from typing import Any

from pipelines.request import refuse_empty, refuse_secrets, refuse_unwritable
from transforms.work import COMMIT_SECONDS, MissingImage, MissingSegmentation
from volumes import objects
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3
from volumes.spec import redacted_source

BATCH = 2
"""Crops a batch, unless the user says otherwise: on a CPU more of them gain nothing."""

READ_MB = 256
"""Decoded megabytes under way at once while a box is read, unless the user says otherwise."""

READ_AHEAD = 2
"""Boxes that are read while one is encoded, where they fit, unless the user says otherwise."""

CACHE_MB = 256
"""Decoded megabytes that a process keeps of what it has read, unless the user says otherwise.

Boxes of a range come one beside the other, and the halos of neighbours overlap. For boxes of 128
voxels with a halo of 64, an image of one byte and ids of eight, this is the least that keeps all of
the box before: half of what is decoded is not decoded again. It takes 768 to keep a row of boxes.
"""

DISK_CACHE_GB = 20.0
"""Gigabytes of copies of remote chunks, where the user asks for copies and does not say."""

_LONGEST_COMMIT_S = 3600.0

# Fields that name a place.
_PLACES = ("image", "segmentation", "nodes", "model", "output", "agglomeration", "disk_cache")


@dataclasses.dataclass(frozen=True, slots=True)
class EmbedConfig:
    """The request.

    Attributes:
        image: The image volume.
        segmentation: The segmentation volume.
        nodes: ``auto[:spacing_nm]``, or a file or directory of nodes.
        model: A checkpoint's prefix or directory, a ``.keras`` file, or ``untrained[:key=value]``.
        output: Where the embedding store is, or will be made.
        spacing_nm: Path length to which given skeletons are thinned.
        box: Voxels of a box, XYZ; None to let the plan choose.
        halo: Voxels read around a box, XYZ; None for what the model's input size needs.
        scale: Voxel size in nm, XYZ, of the level of multiscale volumes.
        voxel_size_nm: Voxel size, XYZ, of volumes whose format states none.
        origin_vx: Frame coordinate of the first voxel, XYZ, of volumes whose format states none.
        axes: Stored axes of volumes whose format states none, slowest first.
        batch: Crops a batch, at least 2.
        input_size: Voxels a side of a crop, for checkpoints; None for the published 129.
        missing_image: What an image chunk that is not stored means under a mask.
        missing_segmentation: What a segmentation chunk that is not stored means.
        read_mb: Decoded bytes under way at once while a box is read, in units of 10**6.
        read_ahead: Boxes that are read while one is encoded; fewer where they do not fit.
        cache_mb: Decoded bytes that a process keeps of what it has read, in units of 10**6.
        disk_cache: Local directory for copies of what is read over a network; None for none.
        disk_cache_gb: What the copies may take, in units of 10**9 bytes.
        workers: Local processes.
        agglomeration: Table that maps supervoxels to bodies; None where the segmentation has
            bodies.
        retry_failed: Whether boxes that are set aside are done again.
        commit_seconds: For how long boxes gather before they share a commit; a kill costs so much
            work, and the box in flight.
        scheduled: Whether the run gives way, and counts as done, while another one lives.
        allow_functions: Packages whose functions a view may run.
    """

    image: str
    segmentation: str
    nodes: str
    model: str
    output: str
    spacing_nm: float | None = None
    box: Vec | None = None
    halo: Vec | None = None
    scale: Vec3 | None = None
    voxel_size_nm: Vec3 | None = None
    origin_vx: Vec | None = None
    axes: str | None = None
    batch: int = BATCH
    input_size: int | None = None
    missing_image: MissingImage = "error"
    missing_segmentation: MissingSegmentation = "background"
    read_mb: int = READ_MB
    read_ahead: int = READ_AHEAD
    cache_mb: int = CACHE_MB
    disk_cache: str | None = None
    disk_cache_gb: float = DISK_CACHE_GB
    workers: int = 1
    agglomeration: str | None = None
    retry_failed: bool = False
    commit_seconds: float = COMMIT_SECONDS
    scheduled: bool = False
    allow_functions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        needed = ("image", "segmentation", "nodes", "model", "output")
        refuse_empty(**{name: getattr(self, name) for name in needed})
        refuse_secrets("into manifests", output=self.output)
        refuse_unwritable(output=self.output)
        for flag, size in (("--scale", self.scale), ("--voxel-size", self.voxel_size_nm)):
            if size is not None and not all(math.isfinite(v) and v > 0 for v in size):
                raise RequestError(
                    f"{flag} {','.join(f'{v:g}' for v in size)} is no voxel size; positions in nm "
                    "have no voxel without one: give three positive numbers X,Y,Z in nm"
                )
        if self.box is not None and min(self.box) < 1:
            raise RequestError(
                f"--box {','.join(map(str, self.box))} has an axis without a voxel; give three "
                "integers X,Y,Z of at least 1"
            )
        for flag, count in (("--read-mb", self.read_mb), ("--workers", self.workers)):
            if count < 1:
                raise RequestError(f"{flag} {count} is too few to work with; give 1 or more")
        for flag, count in (("--read-ahead", self.read_ahead), ("--cache-mb", self.cache_mb)):
            if count < 0:
                raise RequestError(f"{flag} {count} is less than nothing; give 0 for none, or more")
        self._check_copies()
        if not 0 <= self.commit_seconds <= _LONGEST_COMMIT_S:
            raise RequestError(
                f"--commit-seconds {self.commit_seconds:g} is none to work with: so much work is "
                f"lost with a worker; give 0 to {_LONGEST_COMMIT_S:g}"
            )

    def _check_copies(self) -> None:
        if self.disk_cache is not None and objects.local_path(self.disk_cache) is None:
            raise RequestError(
                f"--disk-cache {objects.redacted(self.disk_cache)} is not on this machine; it is "
                "for copies that are nearer than what they are of: give a local directory"
            )
        if not (math.isfinite(self.disk_cache_gb) and self.disk_cache_gb > 0):
            raise RequestError(
                f"--disk-cache-gb {self.disk_cache_gb:g} leaves no room for copies; give more than "
                "0, or leave --disk-cache out"
            )

    def to_json(self) -> dict[str, Any]:
        """The request as it can be made again from anywhere: local paths made absolute."""
        body = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        body |= {name: body[name] and placed(body[name]) for name in _PLACES}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in body.items()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "EmbedConfig":
        """The request that ``to_json`` wrote."""
        body: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in document.items()
        }
        return cls(**body)


def placed(text: str) -> str:
    """What names an input, without secrets, with a local path made absolute."""
    text = redacted_source(text)
    if text.startswith("@"):
        return "@" + objects.absolute(text[1:])
    named = text.partition(":")[0] in ("auto", "untrained")
    if named or text.lstrip().startswith("{") or "://" in text or "|" in text:
        return text
    return objects.absolute(text)
