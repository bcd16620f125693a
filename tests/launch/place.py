"""A small place to work in: volumes, nodes and a store, all made through the command line."""

import csv
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from launch.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[2]

SHAPE = (80, 32, 32)
HUGE = 2**60 + 1
MODEL = "untrained:width=2,input=17,embedding=4"

# By hand, in boxes of 16 voxels of 10 nm: 0_0_0 holds two, 1_1_0 and 4_1_1 one each; the one in
# 0_0_1 has no voxel of its segment in reach (empty_mask), and the last lies outside.
NODES = [
    (7, 1, 80.0, 80.0, 80.0),
    (7, 2, 120.0, 80.0, 120.0),
    (HUGE, 3, 280.0, 180.0, 80.0),
    (9, 5, 10.0, 10.0, 300.0),
    (9, 4, 720.0, 200.0, 200.0),
    (5, 6, 9000.0, 0.0, 0.0),
]

FIRST_SHARD = pathlib.Path("em.zarr", "c", "0", "0", "0")
"""Of the image: the boxes 0_0_0, 0_0_1 and 1_1_0 read it."""

LAST_SHARD = pathlib.Path("em.zarr", "c", "0", "0", "4")
"""Of the image: only the box 4_1_1 reads it, which comes last."""

EMBED = [
    "embed",
    "--image=em.zarr",
    "--segmentation=seg.zarr",
    "--nodes=nodes.csv",
    f"--model={MODEL}",
    "--box=16",
]


def voxels() -> tuple[np.ndarray, np.ndarray]:
    """Image and segmentation, XYZ: segments 7, 2**60 + 1 and 9, and background."""
    image = np.random.default_rng(0).integers(1, 256, SHAPE, dtype=np.uint8)
    labels = np.zeros(SHAPE, dtype=np.uint64)
    labels[:24, :16] = 7
    labels[24:, :, :16] = HUGE
    labels[24:, 16:, 16:] = 9
    return image, labels


def write_nodes(path: pathlib.Path, nodes: Sequence[Sequence[object]] = NODES) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["segment_id", "node_id", "x_nm", "y_nm", "z_nm"])
        writer.writerows(nodes)


def ingest(source: str, kind: str, output: str) -> list[str]:
    """The words that make a volume of an NPY file, in shards of 16 x 32 x 32."""
    return [
        *("ingest", f"--source={source}", "--axes=xyz", f"--kind={kind}", f"--output={output}"),
        *("--voxel-size=10,10,10", "--chunk=16", "--shard=16,32,32"),
    ]


def furnish(folder: pathlib.Path) -> None:
    """Make em.zarr, seg.zarr and nodes.csv in the working directory, which must be ``folder``."""
    assert pathlib.Path.cwd() == folder
    for name, array in zip(("em", "seg"), voxels(), strict=True):
        np.save(folder / f"{name}.npy", array)
    write_nodes(folder / "nodes.csv")
    assert main([*ingest("em.npy", "image", "em.zarr"), "--quiet"]) == 0
    assert main([*ingest("seg.npy", "segmentation", "seg.zarr"), "--quiet"]) == 0


def snapshot(folder: pathlib.Path) -> dict[str, str]:
    """Every path below a folder, with the digest of what a file holds."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        )
        for path in sorted(folder.rglob("*"))
    }


def tables(folder: pathlib.Path) -> dict[str, str]:
    """The Parquet files of an export, by name and digest."""
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.parquet")}
    assert found
    return found


def last_json(stdout: str) -> dict[str, object]:
    """The JSON object on the last line."""
    document = json.loads(stdout.splitlines()[-1])
    assert isinstance(document, dict)
    return document


def environment() -> dict[str, str]:
    """For a process of its own, which must find this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT)}
