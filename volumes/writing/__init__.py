"""Volumes that this package writes: formats, codecs, shards, and the writing of boxes."""

from volumes.writing.arrays import Target, create_levels, open_for_writing
from volumes.writing.boxes import SHARDS_IN_FLIGHT, as_type, check_whole, write_box
from volumes.writing.codecs import Codec
from volumes.writing.errors import storage_errors
from volumes.writing.layout import VolumeLayout

__all__ = [
    "SHARDS_IN_FLIGHT",
    "Codec",
    "Target",
    "VolumeLayout",
    "as_type",
    "check_whole",
    "create_levels",
    "open_for_writing",
    "storage_errors",
    "write_box",
]
