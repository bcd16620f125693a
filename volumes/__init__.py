"""Storage: geometry, volumes and the embedding store, on numpy and tensorstore."""

from volumes.embeddings import EmbeddingStore
from volumes.geometry import Box, ChunkGrid, Vec, Vec3
from volumes.opening import open_volume, resolve_volume
from volumes.receipts import Receipt, Rows
from volumes.spec import VolumeSpec

__all__ = [
    "Box",
    "ChunkGrid",
    "EmbeddingStore",
    "Receipt",
    "Rows",
    "Vec",
    "Vec3",
    "VolumeSpec",
    "open_volume",
    "resolve_volume",
]
