"""Random histories of a store, against a model that computes everything anew after each step."""

import contextlib
import csv
import io
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import Phase, settings, stateful
from hypothesis import strategies as st

from launch.cli import main
from segclr.crops import crop_digest, cut_crop
from segclr.encoder import shared_encoder
from segclr.model import resolve_model
from segclr.sampler import sample_sites
from tests.volumes import sample_volumes
from transforms import boxes
from volumes.context import process_context
from volumes.embeddings import EmbeddingStore
from volumes.errors import RunError
from volumes.geometry import Box, voxels_at

SHAPE = (40, 20, 18)
DOMAIN = Box((0, 0, 0), SHAPE)
SIZE_NM = (8.0, 8.0, 10.0)
MODEL = "untrained:width=2,input=17,seed=1,embedding=4"
CROP, SPACING_NM = 17, 80.0
IDS = [3, 2**53 + 1, 2**64 - 1, 77]
BOX = st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, 5)) for n in SHAPE))
POSITION = st.tuples(*(st.integers(0, n - 1) for n in SHAPE))

Row = tuple[bytes, int, bytes]
"""Vector, mask voxels and digest of the crop."""


def within(where) -> tuple[slice, ...]:
    """A box given as (start, extent) an axis, cut at the volume's edge."""
    return tuple(slice(a, min(a + n, end)) for (a, n), end in zip(where, SHAPE, strict=True))


def ran(*words: str) -> tuple[int, dict]:
    """Run a command; gives its status and its summary."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = main([*words, "--json", "--quiet"])
    return status, json.loads(out.getvalue().splitlines()[-1])


class Model:
    """The inputs as they are, and the rows that follow from them by one direct computation."""

    def __init__(self, image: np.ndarray, labels: np.ndarray, sampled: bool) -> None:
        self.image, self.labels, self.sampled = image, labels, sampled
        self.nodes: dict[int, tuple[int, tuple[int, int, int]]] = {}
        self.table: dict[int, int] = {}
        self._vectors: dict[bytes, bytes] = {}
        self._encoder = shared_encoder(resolve_model(MODEL))

    def bodies(self) -> np.ndarray:
        mapped = self.labels.copy()
        for supervoxel, body in self.table.items():
            mapped[self.labels == np.uint64(supervoxel)] = body
        return mapped

    def rows(self) -> dict[tuple[int, int], Row]:
        bodies = self.bodies()
        found = {}
        for segment, node, voxel in self._sites(bodies):
            crop = cut_crop(self.image, bodies, DOMAIN, voxel, segment, CROP)
            if crop.mask_voxels:
                vector, digest = self._vector(crop.pixels), crop_digest(crop.pixels)
                found[segment, node] = vector, crop.mask_voxels, digest
        return found

    def _sites(self, bodies: np.ndarray) -> Iterator[tuple[int, int, tuple[int, int, int]]]:
        if not self.sampled:
            for node, (segment, voxel) in self.nodes.items():
                yield segment, node, voxel
            return
        sites = sample_sites(bodies, DOMAIN, DOMAIN, DOMAIN, SIZE_NM, SPACING_NM)
        voxels = voxels_at(sites.position_nm, SIZE_NM)
        for i in range(len(sites)):
            x, y, z = (int(v) for v in voxels[i])
            yield int(sites.segment_id[i]), int(sites.node_id[i]), (x, y, z)

    def _vector(self, pixels: np.ndarray) -> bytes:
        key = pixels.tobytes()
        if key not in self._vectors:
            batch = np.zeros((2, CROP, CROP, CROP), np.uint8)
            batch[0] = pixels
            self._vectors[key] = self._encoder.encode_batch(batch)[0].tobytes()
        return self._vectors[key]


def rows_of(url: str, version: int | None = None) -> dict[tuple[int, int], Row]:
    """The rows of a store by identity; fails on a repeated one."""
    found: dict[tuple[int, int], Row] = {}
    for rows in EmbeddingStore.open(url, version).all():
        for i in range(len(rows)):
            key = int(rows.segment_id[i]), int(rows.node_id[i])
            assert key not in found
            mask = int(rows.mask_voxels[i])
            found[key] = rows.embedding[i].tobytes(), mask, rows.crop_digest[i].tobytes()
    return found


class Killed:
    """Ends a run at its n-th step of some kind, as a failure of the storage would."""

    def __init__(self, at: int | None) -> None:
        self._at = at
        self._seen = 0

    def __enter__(self) -> None:
        real_read, real_commit = boxes.read_input, boxes.commit_outputs
        self._real = real_read, real_commit

        def read(*args):
            self._step()
            return real_read(*args)

        def commit(*args):
            self._step()
            settled = list(real_commit(*args))
            self._step()
            return iter(settled)

        boxes.read_input, boxes.commit_outputs = read, commit

    def __exit__(self, *_: object) -> None:
        boxes.read_input, boxes.commit_outputs = self._real

    def _step(self) -> None:
        self._seen += 1
        if self._at is not None and self._seen >= self._at:
            raise RunError("the storage went away")


class Histories(stateful.RuleBasedStateMachine):
    """Edits and runs in any order; the store follows the inputs after every run that ends well."""

    @stateful.initialize(
        seed=st.integers(0, 10), sampled=st.booleans(), kill=st.none() | st.integers(1, 12)
    )
    def begin(self, seed: int, sampled: bool, kill: int | None) -> None:
        """Make the inputs and the store; the first run may be killed and given again."""
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="histories"))
        rng = np.random.default_rng(seed)
        image = rng.integers(1, 256, SHAPE, dtype=np.uint8)
        coarse = rng.integers(0, 5, tuple(-(-n // 4) for n in SHAPE))
        fine = np.kron(coarse, np.ones((4, 4, 4), np.int64))[tuple(slice(n) for n in SHAPE)]
        labels = np.array([0, *IDS], np.uint64)[fine]
        self.model = Model(image, labels, sampled)
        stated = {
            "names": ("x", "y", "z"),
            "attributes": {"dimension_units": [f"{s} nm" for s in SIZE_NM]},
        }
        shard = (16, 16, 16) if seed % 2 else None
        sample_volumes.zarr3(self.folder / "image", image, (8, 8, 8), shard=shard, **stated)
        sample_volumes.zarr3(self.folder / "labels", labels, (8, 8, 8), **stated)
        for i in range(12):
            voxel = tuple(int(rng.integers(0, n)) for n in SHAPE)
            self.model.nodes[100 + i] = (int(labels[voxel]) or IDS[0], voxel)
        self.published: dict[int, dict] = {}
        self.up_to_date = False
        self._write_tables()
        self.words = [
            *("embed", f"--image={self.folder}/image", f"--segmentation={self.folder}/labels"),
            *(f"--agglomeration={self.folder}/table.csv", f"--model={MODEL}", "--box=16"),
            *(f"--output={self.url}", "--commit-seconds=0"),
            f"--nodes={f'auto:{SPACING_NM}' if sampled else f'{self.folder}/nodes.csv'}",
        ]
        with Killed(kill):
            status, _ = ran(*self.words)
        if status:
            status, _ = ran(*self.words)
        assert status == 0
        self._agree()

    @property
    def url(self) -> str:
        """The store."""
        return str(self.folder / "store")

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @stateful.rule(where=BOX, value=st.integers(0, 255))
    def edit_image(self, where, value: int) -> None:
        """Grey values of a small box change."""
        self._edit("image", self.model.image, where, value)

    @stateful.rule(where=BOX, segment=st.sampled_from([0, *IDS]))
    def edit_labels(self, where, segment: int) -> None:
        """A small box goes to another supervoxel."""
        self._edit("labels", self.model.labels, where, segment)

    @stateful.rule(where=BOX)
    def write_again(self, where) -> None:
        """Chunks are written with the bytes that they have."""
        index = within(where)
        opened = self._opened("image")
        opened[index] = opened[index].read().result()

    @stateful.rule(
        node=st.integers(100, 116), segment=st.sampled_from(IDS), at=st.none() | POSITION
    )
    def edit_nodes(self, node: int, segment: int, at) -> None:
        """A node comes, moves, changes its segment, or goes."""
        self.model.nodes.pop(node, None)
        if at is not None:
            self.model.nodes[node] = (segment, at)
        self._write_tables()
        self.up_to_date = self.up_to_date and self.model.sampled

    @stateful.rule(supervoxel=st.sampled_from(IDS), body=st.sampled_from([0, 5000, *IDS]))
    def edit_table(self, supervoxel: int, body: int) -> None:
        """A supervoxel goes to another body."""
        self.model.table[supervoxel] = body
        self._write_tables()
        self.up_to_date = False

    @stateful.rule(kill=st.none() | st.integers(1, 10))
    def reprocess(self, kill: int | None) -> None:
        """Bring the store up to date; it may be killed, and is not given again then."""
        latest = max(self.published)
        with Killed(kill):
            status, summary = ran("reprocess", f"--store={self.url}", "--commit-seconds=0")
        if status:
            assert kill is not None, summary
            self.up_to_date = False
            return
        before = {row[2] for row in self.published[latest].values()}
        self._agree()
        if not self.torn:
            new = [r for r in self.published[max(self.published)].values() if r[2] not in before]
            assert summary["embeddings"] >= len({r[2] for r in new})
        self.torn = False

    @stateful.rule()
    def embed_again(self) -> None:
        """The first command, or its like now: nothing to do, or it says what must be done."""
        status, summary = ran(*self.words)
        if status == 0:
            assert summary["embeddings"] == 0
        else:
            assert status == 2
            assert "reprocess" in summary["error"] or "belongs to another run" in summary["error"]

    @stateful.rule(keep=st.integers(1, 3))
    def compact(self, keep: int) -> None:
        """Old versions go; the others stay as they are."""
        status, summary = ran("compact", f"--store={self.url}", f"--keep={keep}")
        assert status == 0, summary
        self.published = {n: self.published[n] for n in sorted(self.published)[-keep:]}

    @stateful.invariant()
    def older_versions_stay(self) -> None:
        """What was published reads as it did."""
        for number, rows in getattr(self, "published", {}).items():
            assert rows_of(self.url, number) == rows

    torn = False

    def _agree(self) -> None:
        """The store is what a computation from nothing gives, and says so of itself."""
        version = EmbeddingStore.open(self.url).version
        rows = rows_of(self.url)
        assert rows == self.model.rows()
        self.published[version] = rows
        status, found = ran("verify", f"--store={self.url}")
        assert status == 0, found
        self.up_to_date = True

    def _edit(self, name: str, array: np.ndarray, where, value: int) -> None:
        index = within(where)
        array[index] = value
        self._opened(name)[index] = array[index]
        self.up_to_date = False

    def _opened(self, name: str) -> ts.TensorStore:
        spec = {"driver": "zarr3", "kvstore": f"file://{self.folder}/{name}"}
        return ts.open(spec, context=process_context(), read=True, write=True).result()

    def _write_tables(self) -> None:
        with (self.folder / "nodes.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["segment_id", "node_id", "x_nm", "y_nm", "z_nm"])
            for node, (segment, voxel) in sorted(self.model.nodes.items()):
                position = [v * s for v, s in zip(voxel, SIZE_NM, strict=True)]
                writer.writerow([segment, node, *position])
        with (self.folder / "table.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("supervoxel", "body"), *self.model.table.items()])


@pytest.mark.slow
def test_random_histories_end_where_a_full_run_would() -> None:
    # A history takes seconds, so none is made shorter once it fails: it is printed as it is.
    stateful.run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=12,
            stateful_step_count=10,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
        ),
    )
