"""A small volume with nodes, and the embeddings of it by one direct computation."""

import csv
import dataclasses
import pathlib

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from launch.runner import counted
from pipelines import embed
from segclr.encoder import shared_encoder
from segclr.model import resolve_model
from tests.volumes import sample_volumes
from volumes.embeddings import EmbeddingStore
from volumes.receipts import Rows

SHAPE = (44, 40, 36)
SIZE_NM = (8.0, 8.0, 10.0)
MODEL = "untrained:width=2,input=17,seed=1,embedding=8"
CROP = 17
IDS = np.array([0, 3, 2**53 + 1, 2**53 + 2, 2**64 - 1, 77], dtype=np.uint64)


@dataclasses.dataclass(frozen=True)
class Case:
    folder: pathlib.Path
    image: np.ndarray
    labels: np.ndarray
    nodes: list[tuple[int, int, float, float, float]]

    def config(self, store: str, **changes) -> embed.EmbedConfig:
        values = {
            "image": str(self.folder / "image"),
            "segmentation": str(self.folder / "labels"),
            "nodes": str(self.folder / "nodes.csv"),
            "model": MODEL,
            "output": str(self.folder / store),
            "box": (16, 16, 16),
        }
        return embed.EmbedConfig(**(values | changes))


def make_case(folder: pathlib.Path, seed: int = 0) -> Case:
    """Blocks of segments of 5 voxels a side, so that every crop holds several of them."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 256, SHAPE, dtype=np.uint8)
    coarse = rng.integers(0, len(IDS), tuple(-(-n // 5) for n in SHAPE))
    fine = np.kron(coarse, np.ones((5, 5, 5), dtype=np.int64))[tuple(slice(n) for n in SHAPE)]
    labels = IDS[fine]
    make_volumes(folder, image, labels)
    occupied = np.argwhere(labels != 0)
    picked = occupied[rng.permutation(len(occupied))[:60]]
    corners = [v for v in occupied if (v < 3).any() or (v > np.array(SHAPE) - 4).any()][:6]
    nodes = []
    for i, v in enumerate([*picked, *corners]):
        x, y, z = (float(a * s) for a, s in zip(v, SIZE_NM, strict=True))
        nodes.append((int(labels[tuple(v)]), 2**63 + i, x, y, z))
    write_nodes(folder / "nodes.csv", nodes)
    return Case(folder, image, labels, nodes)


def make_volumes(folder: pathlib.Path, image: np.ndarray, labels: np.ndarray) -> pathlib.Path:
    """Volumes ``image``, sharded, and ``labels``, not, in a folder, which is returned."""
    stated = {
        "names": ("x", "y", "z"),
        "attributes": {"dimension_units": [f"{s} nm" for s in SIZE_NM], "voxel_offset": [0, 0, 0]},
    }
    sample_volumes.zarr3(folder / "image", image, (16, 16, 16), shard=(32, 32, 32), **stated)
    sample_volumes.zarr3(folder / "labels", labels, (8, 8, 8), **stated)
    return folder


def write_nodes(path: pathlib.Path, nodes) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["segment_id", "node_id", "x_nm", "y_nm", "z_nm"])
        writer.writerows(nodes)


def direct(case: Case) -> dict[tuple[int, int], np.ndarray]:
    """The embedding of each node, without boxes, stores or transforms: arrays and one model."""
    half = CROP // 2
    image = np.pad(case.image, half)
    labels = np.pad(case.labels, half)
    encoder = shared_encoder(resolve_model(MODEL))
    found = {}
    for segment, node, *position in case.nodes:
        x, y, z = (round(p / s) for p, s in zip(position, SIZE_NM, strict=True))
        index = (slice(x, x + CROP), slice(y, y + CROP), slice(z, z + CROP))
        crop = np.where(labels[index] == np.uint64(segment), image[index], 0).transpose(2, 1, 0)
        batch = np.zeros((2, CROP, CROP, CROP), np.uint8)
        batch[0] = crop
        found[segment, node] = encoder.encode_batch(batch)[0].copy()
    return found


def run(plan: embed.EmbedPlan, build=embed.build, options: list[str] | None = None):
    """Prepare and run a plan in process; returns Beam's counters by name."""
    embed.prepare(plan, "a test")
    pipeline = beam.Pipeline(options=PipelineOptions(options or ["--runner=FnApiRunner"]))
    build(pipeline, plan)
    result = pipeline.run()
    result.wait_until_finish()
    return counted(result)


def rows_by_node(url: str) -> dict[tuple[int, int], tuple]:
    """Every row of a store by identity; fails on a repeated one."""
    found = {}
    for rows in EmbeddingStore.open(url).all():
        for i in range(len(rows)):
            key = int(rows.segment_id[i]), int(rows.node_id[i])
            assert key not in found
            found[key] = row(rows, i)
    return found


def row(rows: Rows, i: int) -> tuple:
    return tuple(a[i].tobytes() for a in rows.arrays().values())
