"""The reader of an embedding store."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from volumes import objects, partition, seals, store
from volumes.errors import RequestError
from volumes.generation import Generation, coordinate_of
from volumes.geometry import Vec
from volumes.receipts import Rows


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingStore:
    """Reads one version of a store; a running writer does not disturb it.

    Attributes:
        generation: The generation the version is of.
        version: The version's number; None for work under way.
        partitions: (name, database version) of each partition, in the order of their coordinates.
        document: What the version records: counts, digests, inputs.
    """

    generation: Generation
    version: int | None
    partitions: tuple[tuple[str, int | None], ...]
    document: dict[str, Any] = dataclasses.field(hash=False)

    @classmethod
    def open(cls, url: str, version: int | Literal["live"] | None = None) -> "EmbeddingStore":
        """Open a store for reading.

        Args:
            url: The store's location.
            version: A published version's number, None for the latest, or ``"live"`` for what is
                committed now, work under way included.

        Raises:
            RequestError: There is no store, no such version, or nothing published yet.
        """
        partition.forget()
        shown = objects.redacted(url)
        if objects.read(objects.join(url, "store.json")) is None:
            raise RequestError(
                f"{shown} is not an embedding store: it has no store.json; give the --output of an "
                "embed run"
            )
        if version == "live":
            return cls._live(url)
        numbers = store.version_numbers(url)
        if not numbers:
            raise RequestError(
                f"{shown} has no published version yet: its run did not end; run the same embed "
                'command again, or read what is there as version "live"'
            )
        number = numbers[-1] if version is None else version
        document = store.read_version(url, number)
        if document is None:
            raise RequestError(
                f"{shown} has no version {number}; give one that it has: "
                f"{', '.join(map(str, numbers))}"
            )
        generation = Generation.from_json(document["generation"] | {"store": url})
        names = sorted(document["partitions"], key=coordinate_of)
        pinned = tuple((n, int(document["partitions"][n]["version"])) for n in names)
        return cls(generation, number, pinned, document)

    @classmethod
    def _live(cls, url: str) -> "EmbeddingStore":
        names = store.generations(url)
        if not names:
            raise RequestError(
                f"{objects.redacted(url)} has no generation yet: nothing ran into it"
            )
        manifest = store.read_manifest(url, names[-1]) or {}
        generation = Generation.from_json(manifest["generation"] | {"store": url})
        present = sorted(store.partitions_present(generation), key=coordinate_of)
        return cls(generation, None, tuple((n, None) for n in present), manifest)

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return self.generation.width

    def __len__(self) -> int:
        """Number of rows; counted from the receipts where the version is live."""
        if self.version is not None:
            return int(self.document["rows"])
        return sum(seals.seal(self.generation, name).rows for name, _ in self.partitions)

    def boxes(self) -> Iterator[str]:
        """Keys ``I_J_K`` of the committed boxes, partition by partition, in the order of rows."""
        for name, version in self.partitions:
            yield from self.boxes_of(name, version)

    def boxes_of(self, name: str, version: int | None) -> list[str]:
        """Keys of a partition's committed boxes, in the order of the box axis."""
        found = partition.listed(self.generation.partition(name), "receipts", version)
        return sorted(found, key=lambda box: self.generation.local(coordinate_of(box)))

    def by_box(self, box: str | Vec) -> Rows:
        """The rows of the box with a key ``I_J_K`` or a lattice coordinate; none if not there."""
        coordinate = coordinate_of(box) if isinstance(box, str) else box
        name = self.generation.partition_name(coordinate)
        for known, version in self.partitions:
            if known == name:
                part = self.generation.partition(name)
                return partition.read_rows(part, self.generation.local(coordinate), version)
        return Rows.empty(self.width)

    def by_segment(self, segment_id: int) -> Rows:
        """The rows of a segment, in the order of boxes.

        Segment ids of every box are looked at; only boxes that hold the segment are read.
        """
        wanted = np.uint64(segment_id)
        found = []
        for name, version in self.partitions:
            part = self.generation.partition(name)
            for box in self.boxes_of(name, version):
                local = self.generation.local(coordinate_of(box))
                mine = partition.read_ids(part, local, version) == wanted
                if mine.any():
                    found.append(partition.read_rows(part, local, version).take(mine))
        return Rows.concatenated(found or [Rows.empty(self.width)])

    def all(self) -> Iterator[Rows]:
        """The rows of every box that has any, a box at a time, in the order of (box, row)."""
        for name, version in self.partitions:
            yield from self.rows_of(name, version)

    def rows_of(self, name: str, version: int | None) -> Iterator[Rows]:
        """The rows of those boxes of a partition that have any, a box at a time."""
        part = self.generation.partition(name)
        for box in self.boxes_of(name, version):
            local = self.generation.local(coordinate_of(box))
            rows = partition.read_rows(part, local, version)
            if len(rows):
                yield rows
