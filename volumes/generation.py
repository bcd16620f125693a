"""The names of what a store holds: generations, their partitions, and the boxes in these."""

import dataclasses
import math
from typing import Any

from volumes import objects
from volumes.geometry import ChunkGrid, Vec, vec
from volumes.partition import Partition

# A block may hold many empty boxes, but its box axis stays of a length that is quickly told.
PARTITION_BOXES = 64**3


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """Names one generation of a store; JSON-able, picklable, opens nothing.

    Attributes:
        store: Location of the store.
        name: The generation's name.
        width: D, the length of an embedding.
        lattice: Shape of a box in voxels, XYZ; cell (0, 0, 0) begins at voxel 0 of the frame.
        block: Boxes of a partition on each axis, at most 64**3 together.
    """

    store: str
    name: str
    width: int
    lattice: Vec
    block: Vec

    def __post_init__(self) -> None:
        """Refuse a block that is none, or of too many boxes."""
        if min(self.block) < 1 or math.prod(self.block) > PARTITION_BOXES:
            raise ValueError(f"a partition has 1 to {PARTITION_BOXES} boxes, got {self.block}")

    @property
    def url(self) -> str:
        """Location of the generation."""
        return objects.join(self.store, "generations", self.name)

    def blocks(self, grid: ChunkGrid) -> ChunkGrid:
        """The lattice of partitions over the lattice coordinates of a grid of boxes."""
        return ChunkGrid(grid.lattice_domain, self.block)

    def partition_name(self, box: Vec) -> str:
        """Name ``I_J_K`` of the partition that owns the box at a lattice coordinate."""
        return name_of(vec(i // b for i, b in zip(box, self.block, strict=True)))

    def partition(self, name: str) -> Partition:
        """The partition of a name."""
        url = objects.join(self.url, "partitions", name)
        return Partition(url, math.prod(self.block), self.width)

    def local(self, box: Vec) -> int:
        """Index of a box on its partition's box axis, running fastest along x."""
        i, j, k = (c % b for c, b in zip(box, self.block, strict=True))
        return i + self.block[0] * (j + self.block[1] * k)

    def box_at(self, partition: Vec, local: int) -> Vec:
        """Lattice coordinate of the box at an index of a partition; the inverse of ``local``."""
        nx, ny, _ = self.block
        offset = (local % nx, local // nx % ny, local // (nx * ny))
        return vec(c * n + o for c, n, o in zip(partition, self.block, offset, strict=True))

    def place(self, box: Vec) -> tuple[Partition, int]:
        """The partition that owns a box, and the box's index in it."""
        return self.partition(self.partition_name(box)), self.local(box)

    def to_json(self) -> dict[str, Any]:
        """The generation as JSON."""
        return dataclasses.asdict(self) | {
            "lattice": list(self.lattice),
            "block": list(self.block),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Generation":
        """The generation that ``to_json`` wrote."""
        return cls(
            document["store"],
            document["name"],
            document["width"],
            vec(document["lattice"]),
            vec(document["block"]),
        )


def name_of(coordinate: Vec) -> str:
    """``I_J_K``, the key of a box or a partition."""
    return "_".join(str(i) for i in coordinate)


def coordinate_of(name: str) -> Vec:
    """The lattice coordinate of a key; the inverse of ``name_of``."""
    return vec(int(i) for i in name.split("_"))
