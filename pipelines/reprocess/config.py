"""What the user asks of a reprocess: a store, and what of it is to be replaced from now on."""

import dataclasses
from typing import Any

from pipelines.embed.config import EmbedConfig
from transforms.work import MissingImage, MissingSegmentation
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3

NO_TABLE = "none"
"""As the agglomeration table: there is none any more."""

# Fields that say how this run works, and not what the store is brought to.
_RUNNING = ("store", "workers", "scheduled", "disk_cache", "allow_functions")


@dataclasses.dataclass(frozen=True, slots=True)
class ReprocessConfig:
    """The request. An input that is None is looked at again where the store's manifest says it is.

    Attributes:
        store: The embedding store.
        image: As of ``EmbedConfig``, like all that follow.
        segmentation: The segmentation volume.
        agglomeration: Table of supervoxels and bodies; ``none`` for no table any more.
        nodes: The nodes.
        model: The model.
        spacing_nm: Path length to which given skeletons are thinned.
        box: Voxels of a box, XYZ.
        halo: Voxels read around a box, XYZ.
        scale: Voxel size in nm, XYZ, of the level of multiscale volumes.
        batch: Crops a batch.
        input_size: Voxels a side of a crop.
        missing_image: What an image chunk that is not stored means under a mask.
        missing_segmentation: What a segmentation chunk that is not stored means.
        read_mb: Decoded megabytes under way at once.
        read_ahead: Boxes that are read while one is encoded.
        cache_mb: Decoded megabytes that a process keeps.
        disk_cache: Directory for copies; None for none, whatever the store's request had.
        disk_cache_gb: What the copies may take.
        workers: Local processes.
        commit_seconds: For how long boxes gather before they share a commit.
        scheduled: Whether the run gives way, and counts as done, while another one lives.
        allow_functions: Packages whose functions a view may run; each run lists them itself.
    """

    store: str
    image: str | None = None
    segmentation: str | None = None
    agglomeration: str | None = None
    nodes: str | None = None
    model: str | None = None
    spacing_nm: float | None = None
    box: Vec | None = None
    halo: Vec | None = None
    scale: Vec3 | None = None
    batch: int | None = None
    input_size: int | None = None
    missing_image: MissingImage | None = None
    missing_segmentation: MissingSegmentation | None = None
    read_mb: int | None = None
    read_ahead: int | None = None
    cache_mb: int | None = None
    disk_cache: str | None = None
    disk_cache_gb: float | None = None
    workers: int = 1
    commit_seconds: float | None = None
    scheduled: bool = False
    allow_functions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == "":
                raise RequestError(
                    f"--{field.name} was empty; give it a value, or leave it out to look at the "
                    "same place again"
                )

    def applied(self, standing: EmbedConfig) -> EmbedConfig:
        """The request that embedded the store, with what this one replaces."""
        given: dict[str, Any] = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in _RUNNING and getattr(self, f.name) is not None
        }
        if self.agglomeration == NO_TABLE:
            given["agglomeration"] = None
        if self.nodes is not None and self.spacing_nm is None:
            given["spacing_nm"] = None
        return dataclasses.replace(
            standing,
            output=self.store,
            workers=self.workers,
            scheduled=self.scheduled,
            disk_cache=self.disk_cache,
            allow_functions=self.allow_functions,
            retry_failed=False,
            **given,
        )
