"""What the work on a box is made of: the run, and a box at each step of its way.

    BoxNodes ── read ──> BoxInput ── embed ──> BoxOutput ── commit ──> Done

No Beam here, and nothing that computes; see ``transforms.reading``, ``transforms.embedding`` and
``transforms.boxes``.
"""

import dataclasses
from typing import Literal

from segclr.model import ModelSpec
from segclr.nodes import Nodes
from segclr.sampler import cells_box
from volumes.agglomeration import Agglomeration
from volumes.caching.disk import Copies
from volumes.commits import OPEN, Change, Fence
from volumes.errors import DataError
from volumes.generation import Generation, name_of
from volumes.geometry import Box, ChunkGrid, Vec, Vec3
from volumes.reading import Part, Subvolume
from volumes.receipts import (
    BoxPlan,
    Failure,
    Receipt,
    fingerprint,
)
from volumes.spec import VolumeSpec

COMMIT_SECONDS = 5.0
"""For how long boxes gather before they share a commit, unless the user says otherwise."""

MissingImage = Literal["error", "zero"]
MissingSegmentation = Literal["background", "error"]


@dataclasses.dataclass(frozen=True, slots=True)
class EmbedWork:
    """All that a worker needs to know to embed any box of a run; picklable, opens nothing.

    Attributes:
        image: The image volume, uint8.
        segmentation: The segmentation volume, an integer type, of the image's voxel size.
        grid: The lattice of boxes over what both volumes share, anchored at voxel 0.
        generation: Where the rows go.
        model: The network that encodes.
        identity: Digest of what makes this run this run: inputs, nodes and recipe.
        inputs: Digest of where image and segmentation are.
        recipe: Digest of what makes a crop's vector, but for the inputs: model and parameters.
        run: The run's name.
        halo: Voxels read around a core, XYZ, on each side.
        missing_image: What an image chunk that is not stored means under a node's mask.
        missing_segmentation: What a segmentation chunk that is not stored means.
        spacing_nm: Spacing of the sampler's lattice in nm; None where nodes are given.
        bytes_in_flight: Decoded bytes that may be under way at once while a box is read.
        agglomeration: The table that maps the segmentation's ids to bodies; None for none.
        fence: By which what it writes is refused once a newer run has taken over.
        retry_failed: Whether boxes that are set aside are done again.
        commit_seconds: For how long boxes gather before they share a commit.
        renew: Whether boxes that are committed are compared with the inputs as they are now.
        read_ahead: Boxes that are read while one is encoded, and whether commits are under way
            meanwhile; 0 for one thing after the other.
        cache_bytes: Decoded chunks that a process keeps of what it has read; 0 for none.
        copies: The copy on local disk of what is read over a network; None for none.
    """

    image: VolumeSpec
    segmentation: VolumeSpec
    grid: ChunkGrid
    generation: Generation
    model: ModelSpec
    identity: str
    inputs: str
    recipe: str
    run: str
    halo: Vec
    missing_image: MissingImage
    missing_segmentation: MissingSegmentation
    spacing_nm: float | None
    bytes_in_flight: int
    agglomeration: Agglomeration | None = None
    fence: Fence = OPEN
    retry_failed: bool = False
    renew: bool = False
    commit_seconds: float = COMMIT_SECONDS
    read_ahead: int = 0
    cache_bytes: int = 0
    copies: Copies | None = None

    @property
    def voxel_size_nm(self) -> Vec3:
        """Voxel size in nm, XYZ, that both volumes have."""
        return self.image.voxel_size_nm

    def key(self, index: int) -> str:
        """The key ``I_J_K`` of a box of the grid."""
        return name_of(self.grid.coordinate(index))

    def read_box(self, index: int) -> Box:
        """The core grown by the halo, clipped to the domain."""
        return self.grid.box(index).grown(self.halo).intersection(self.grid.domain)

    def labels_box(self, index: int) -> Box:
        """What is read of the segmentation: the read box, and every sampler cell at the core."""
        box = self.read_box(index)
        if self.spacing_nm is None:
            return box
        cells = cells_box(
            self.grid.box(index), self.grid.domain, self.voxel_size_nm, self.spacing_nm
        )
        return box.hull(cells)

    def describe(self, index: int) -> str:
        """The box for messages: its key and the voxels it owns."""
        return f"box {self.key(index)} {self.grid.box(index)}"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The segmentation of a box as it was read: bodies, where a table maps the ids.

    Attributes:
        part: The ids.
        stamp: Digest of the storage generations of what was read; None where there are none.
        supervoxels: The ids before they were mapped, packed; None where no table maps them.
    """

    part: Part
    stamp: str | None
    supervoxels: bytes | None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BoxNodes:
    """A box and the nodes that belong to it.

    Attributes:
        index: The box.
        nodes: Its nodes; none where it had some and they have vanished.
        prior: Its receipt, where it is committed and to be looked at again.
        sampled: The stamp of the segmentation that the nodes were sampled from; None where they
            were given, or the storage has no stamps.
        bytes_read: Decoded bytes that were read to sample them.
    """

    index: int
    nodes: Nodes
    prior: Receipt | None = None
    sampled: str | None = None
    bytes_read: int = 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BoxInput:
    """A box with its nodes and voxels.

    Attributes:
        index: The box.
        nodes: Its nodes.
        prior: As of ``BoxNodes``.
        subvolume: Image and segmentation; bodies, where a table maps the ids.
        image_stamp: Digest of the storage generations of the image's chunks that were read.
        labels_stamp: The same of the segmentation's.
        supervoxels: As of ``Labels``.
    """

    index: int
    nodes: Nodes
    prior: Receipt | None
    subvolume: Subvolume
    image_stamp: str | None
    labels_stamp: str | None
    supervoxels: bytes | None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BoxOutput:
    """What is to become of a box, not yet committed.

    Attributes:
        index: The box.
        change: What will be written.
        bytes_read: Decoded bytes read for it.
    """

    index: int
    change: Change
    bytes_read: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """A box that is settled.

    Attributes:
        box: Its key.
        stands: Its receipt, or its failure where it is set aside; None where it was removed.
        found: Whether that stood before, and nothing was computed.
        bytes_read: Decoded bytes read for it now.
    """

    box: str
    stands: Receipt | Failure | None
    found: bool
    bytes_read: int = 0


def plan_of(work: EmbedWork, index: int, nodes: Nodes) -> BoxPlan:
    """What a box owes: every node that belongs to it, those to be rejected included."""
    return BoxPlan(work.key(index), len(nodes), nodes.identity_digest(), nodes.digest())


def fingerprint_of(work: EmbedWork, plan: BoxPlan) -> str:
    """The fingerprint of a box's receipt in this run."""
    return fingerprint(work.recipe, plan.content)


def check_labels(work: EmbedWork, index: int, labels: Part) -> None:
    """Apply the policy for segmentation chunks that are not stored.

    Raises:
        DataError: A chunk is missing and the policy is ``error``.
    """
    if labels.missing and work.missing_segmentation == "error":
        raise DataError(
            f"{work.describe(index)}: {len(labels.missing)} chunks of {work.segmentation.source} "
            f"are not stored, the first at {labels.missing[0]}; --missing-segmentation error takes "
            "that for a loss: restore them, or run with --missing-segmentation background into a "
            "new --output"
        )
