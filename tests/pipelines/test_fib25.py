"""The main job on a real volume: from sections, HDF5 and skeletons to rows equal to the vectors."""

import csv
import json
import pathlib
import shutil
import tarfile

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from launch.cli import main
from segclr.encoder import load_encoder
from segclr.model import resolve_model
from tests.support import shared
from volumes import EmbeddingStore

pytestmark = pytest.mark.slow

SIZE_NM = 10.0
NARROW = "untrained:width=4,input=65"


def run(*words: str) -> None:
    assert main([*words, "--quiet"]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Both volumes, ingested from what a microscope and a segmentation leave on disk."""
    here = tmp_path_factory.mktemp("fib25")
    em, labels = str(here / "em.zarr"), str(here / "seg.zarr")
    size = ("--voxel-size", "10,10,10")
    source = str(shared("data", "fib25", "em"))
    run("ingest", "--source", source, "--kind", "image", *size, "--output", em)
    source = str(shared("data", "fib25", "groundtruth.h5"))
    kind = ("--dataset", "stack", "--axes", "zyx", "--kind", "segmentation")
    run("ingest", "--source", source, *kind, *size, "--output", labels)
    # Skeletons of every third body: more than 100 nodes when thinned, and a third of the time.
    (here / "swc").mkdir()
    skeletons = sorted(shared("data", "fib25", "skeletons").glob("*.swc"))
    for path in skeletons[::3]:
        shutil.copyfile(path, here / "swc" / path.name)
    return here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    here = tmp_path_factory.mktemp("checkpoint")
    with tarfile.open(shared("reference", "segclr_tf2_legacy_ckpt.tar.xz")) as archive:
        archive.extractall(here, filter="data")
    return here / "segclr_tf2_legacy_ckpt"


@pytest.fixture(scope="module")
def voxels() -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, ZYX, read without any code of ours and padded by half a crop."""
    paths = sorted(shared("data", "fib25", "em").glob("*.png"))
    image = np.stack([np.asarray(Image.open(p)) for p in paths])
    with h5py.File(shared("data", "fib25", "groundtruth.h5")) as file:
        labels = file["stack"][...]
    return np.pad(image, 64), np.pad(labels, 64)


def embed(folder: pathlib.Path, nodes: pathlib.Path, model: str, store: str, *flags: str) -> str:
    url = str(folder / store)
    volumes = ("--image", str(folder / "em.zarr"), "--segmentation", str(folder / "seg.zarr"))
    run("embed", *volumes, "--nodes", str(nodes), "--model", model, "--output", url, *flags)
    return url


def rows_of(url: str) -> dict[tuple[int, int], tuple[tuple[float, ...], bytes]]:
    found = {}
    for rows in EmbeddingStore.open(url).all():
        for i in range(len(rows)):
            key = int(rows.segment_id[i]), int(rows.node_id[i])
            assert key not in found
            found[key] = tuple(rows.position_nm[i].tolist()), rows.embedding[i].tobytes()
    return found


def test_the_published_sites_equal_their_vectors(folder, checkpoint, capsys) -> None:
    sites = json.loads(shared("reference", "segclr_positions.json").read_text())["positions"]
    nodes = folder / "sites.csv"
    with nodes.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["segment_id", "node_id", "x_nm", "y_nm", "z_nm"])
        for i, site in enumerate(sites):
            z, y, x = (SIZE_NM * c for c in site["center_zyx"])
            writer.writerow([site["segment_id"], i, x, y, z])
    url = embed(folder, nodes, str(checkpoint), "sites")
    tables = folder / "tables"
    run("export", "--store", url, "--output", str(tables))
    expected = np.load(checkpoint / "expected.npz")["embedding"]
    exported = [r for p in tables.glob("*.parquet") for r in pq.read_table(p).to_pylist()]
    assert sorted(r["node_id"] for r in exported) == [0, 1]
    for row in exported:
        vector = np.array(row["embedding"], np.float32)
        assert np.abs(vector - expected[row["node_id"]]).max() < 1e-4
        fill = row["mask_voxels"] / 129**3
        assert abs(fill - sites[row["node_id"]]["fill"]) < 1e-9


def test_the_skeletons_equal_one_direct_computation(folder, checkpoint, voxels) -> None:
    url = embed(folder, folder / "swc", str(checkpoint), "real", "--spacing-nm", "3000")
    found = rows_of(url)
    assert len(found) >= 100
    image, labels = voxels
    encoder = load_encoder(resolve_model(str(checkpoint)))
    outside = 0
    for (segment, _), (position, vector) in list(found.items())[::8]:
        x, y, z = (
            round(p / SIZE_NM - 0.5 + 1e-9) if p % SIZE_NM else int(p / SIZE_NM) for p in position
        )
        index = (slice(z, z + 129), slice(y, y + 129), slice(x, x + 129))
        crop = np.where(labels[index] == segment, image[index], 0).astype(np.uint8)
        outside += min(x, y, z) < 64 or max(x, y, z) + 65 > 250
        batch = np.zeros((2, 129, 129, 129), np.uint8)
        batch[0] = crop
        assert (
            np.abs(encoder.encode_batch(batch)[0] - np.frombuffer(vector, np.float32)).max() < 1e-5
        )
    assert outside > 5


def test_box_and_workers_do_not_change_the_rows(folder) -> None:
    found = []
    for box, workers in ((64, 1), (96, 1), (128, 1), (128, 2)):
        name = f"narrow-{box}-{workers}"
        flags = ("--spacing-nm", "3000", "--box", str(box), "--workers", str(workers))
        found.append(rows_of(embed(folder, folder / "swc", NARROW, name, *flags)))
    assert len(found[0]) >= 100
    assert len({v for _, v in found[0].values()}) > 100
    assert found[0] == found[1] == found[2] == found[3]
