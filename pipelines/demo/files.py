"""A sample volume as files: PNG sections, an HDF5 segmentation and a table of kinds."""

import csv
import os
import pathlib

import h5py
import numpy as np
from PIL import Image

from pipelines.demo.phantom import Phantom


def write_sections(phantom: Phantom, directory: str | os.PathLike[str]) -> int:
    """Write the image as PNG sections ``section.NNNN.png``; row = y, column = x, number = z.

    Args:
        phantom: The sample volume.
        directory: Where to write; made if absent.

    Returns:
        Number of sections.
    """
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    depth = phantom.config.shape[2]
    for z in range(depth):
        rows = np.ascontiguousarray(phantom.image[:, :, z].T)
        Image.fromarray(rows).save(folder / f"section.{z:04d}.png", compress_level=1)
    return depth


def write_segmentation_h5(phantom: Phantom, path: str | os.PathLike[str]) -> None:
    """Write the labels as dataset ``stack`` (uint64, axes z, y, x, gzip) of a new HDF5 file."""
    shape = phantom.labels.shape[::-1]
    chunk = tuple(min(64, n) for n in shape)
    with h5py.File(path, "w") as file:
        stack = file.create_dataset(
            "stack", shape, np.uint64, chunks=chunk, compression="gzip", compression_opts=4
        )
        for z in range(0, shape[0], chunk[0]):
            stack[z : z + chunk[0]] = phantom.labels[:, :, z : z + chunk[0]].T


def write_kinds_csv(phantom: Phantom, path: str | os.PathLike[str]) -> None:
    """Write ``segment_id,kind``, a row a segment, ascending."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("segment_id", "kind"))
        table.writerows(phantom.kinds)
