"""Storage: geometry, volumes and the embedding store, on numpy and tensorstore."""

from volumes.creating import StoredVolume, create
from volumes.embeddings import EmbeddingStore
from volumes.geometry import Box, ChunkGrid, Vec, Vec3
from volumes.lazy import LazyVolume, concat, open, overlay, stack
from volumes.opening import open_volume, resolve_volume
from volumes.receipts import Receipt, Rows
from volumes.spec import VolumeSpec

__all__ = [
    "Box",
    "ChunkGrid",
    "EmbeddingStore",
    "LazyVolume",
    "Receipt",
    "Rows",
    "StoredVolume",
    "Vec",
    "Vec3",
    "VolumeSpec",
    "concat",
    "create",
    "open",
    "open_volume",
    "overlay",
    "resolve_volume",
    "stack",
]
