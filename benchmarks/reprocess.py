"""What it costs to bring a store up to date, against embedding it anew.

    python -m benchmarks.reprocess                 1,237 crops of a narrow network
    python -m benchmarks.reprocess --quick         few crops: does it run; no figures to quote

The full-size network: --repetitions 1 --box 64 --spacing-vx 44 --model with the default of
--full-model. Then each full run takes about as many seconds as it has crops, divided by three, on
two quiet cores, and there are five of them: the first, and one for each case that changes
something; an hour altogether.

How it measures:

- A volume is made of noise, with Voronoi cells as segments, in zarr3 chunks without shards. An
  agglomeration table joins two of them, and nodes are sampled.
- A run is ``plan``, ``prepare``, the graph and ``finish``, in this process. A run with fewer nodes
  comes before all, so that imports and the model's compilation are in no figure.
- Each case begins with a fresh copy of the store, and with volumes that are hard links to the first
  ones: these have the same stamps, since a chunk that is written becomes a new file. Then the
  inputs are changed, and the store is reprocessed. Times are medians over the repetitions.
- What must come out is found by a full run on the changed inputs into a new store: its rows, box by
  box, are those of the reprocessed store or not; and those rows whose crop's digest no row of the
  same box had before are the crops that really differ.
- *full-size share* is computed, not measured: to the times of both runs it adds, for each vector
  computed, what a crop of the full-size network takes longer than one of the model that ran.
"""

import argparse
import csv
import dataclasses
import itertools
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from benchmarks.embed import bare, run_graph
from benchmarks.machine import describe, met, table
from pipelines import embed, reprocess
from pipelines.embed import EmbedConfig, EmbedPlan
from pipelines.reprocess import ReprocessConfig
from segclr.encoder import shared_encoder
from segclr.model import resolve_model
from volumes.commits import Fence
from volumes.context import process_context
from volumes.embeddings import EmbeddingStore
from volumes.geometry import Vec
from volumes.receipts import Rows

FULL = "untrained:width=64,input=129,embedding=64"

# Its crops are to a box of 32 voxels what full-size ones are to a box of 128.
NARROW = "untrained:width=4,input=33,embedding=64"

_VOXEL_NM = 8.0
_CROPS = 1000
_BOXES = 64

# The spacing of the nodes of the run that warms up, against that of the others.
_SPARSER = 4

# A segment's id is its number and this, so that no float could hold it.
_FIRST_ID = 2**53 + 1

Labels = npt.NDArray[np.uint64]
ByBox = dict[str, Rows]


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a run's inputs and stores are.

    Attributes:
        folder: Scratch.
        given: The command line.
    """

    folder: pathlib.Path
    given: argparse.Namespace

    @property
    def inputs(self) -> pathlib.Path:
        """Volumes and table as the next run finds them."""
        return self.folder / "inputs"

    @property
    def kept(self) -> pathlib.Path:
        """Volumes and table as they were at first."""
        return self.folder / "kept"

    def config(self, store: str) -> EmbedConfig:
        """A full run into a store."""
        return EmbedConfig(
            image=str(self.inputs / "image"),
            segmentation=str(self.inputs / "labels"),
            agglomeration=str(self.inputs / "table.csv"),
            nodes=f"auto:{self.given.spacing_vx * _VOXEL_NM:g}",
            model=self.given.model,
            output=str(self.folder / store),
            box=(self.given.box,) * 3,
        )

    def restore(self) -> None:
        """The first inputs again, with the stamps that they had."""
        shutil.rmtree(self.inputs, ignore_errors=True)
        shutil.copytree(self.kept, self.inputs, copy_function=os.link)

    def opened(self, name: str) -> ts.TensorStore:
        """A volume, to be changed."""
        return _array(self.inputs / name)

    def join(self, pairs: dict[int, int]) -> None:
        """Write the table."""
        path = self.inputs / "table.csv"
        path.unlink(missing_ok=True)  # a link to the first one
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("supervoxel", "body"), *pairs.items()])


def _array(path: pathlib.Path) -> ts.TensorStore:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return ts.open(spec, context=process_context()).result()


def voronoi(side: int, segments: int, rng: np.random.Generator) -> Labels:
    """Labels ``[x, y, z]``: each voxel has the id of the nearest of random points."""
    points = rng.random((segments, 3)) * side
    axis = np.arange(side, dtype=np.float32)
    nearest = np.full((side, side, side), np.inf, np.float32)
    found = np.zeros((side, side, side), np.uint64)
    for number, (x, y, z) in enumerate(points.astype(np.float32)):
        distance = (
            ((axis - x) ** 2)[:, None, None]
            + ((axis - y) ** 2)[:, None]
            + ((axis - z) ** 2)[None, None]
        )
        closer = distance < nearest
        nearest[closer] = distance[closer]
        found[closer] = _FIRST_ID + number
    return found


def make_inputs(site: Site) -> Labels:
    """Write volumes and table; returns the labels."""
    given = site.given
    rng = np.random.default_rng(given.seed)
    side = given.box * given.boxes
    labels = voronoi(side, given.segments, rng)
    image = rng.integers(1, 256, labels.shape, dtype=np.uint8)
    for name, voxels in (("image", image), ("labels", labels)):
        metadata = {
            "shape": list(voxels.shape),
            "data_type": voxels.dtype.name,
            "dimension_names": ["x", "y", "z"],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [given.box] * 3}},
            "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1}}],
            "attributes": {
                "dimension_units": [f"{_VOXEL_NM:g} nm"] * 3,
                "voxel_offset": [0, 0, 0],
            },
        }
        path = {"driver": "file", "path": f"{site.inputs / name}/"}
        spec = {"driver": "zarr3", "kvstore": path, "metadata": metadata, "create": True}
        ts.open(spec, context=process_context()).result()[...].write(voxels).result()
    site.join(first_table())
    site.inputs.rename(site.kept)
    return labels


def first_table() -> dict[int, int]:
    """What the first table joins: two segments."""
    return {_FIRST_ID: _FIRST_ID + 1}


@dataclasses.dataclass(frozen=True)
class Case:
    """A change of the inputs.

    Attributes:
        name: What changes.
        change: Changes the inputs in place.
        same: Whether a full run would make the same rows as before.
    """

    name: str
    change: Callable[[Site], None]
    same: bool = False


def cases(site: Site, labels: Labels) -> list[Case]:
    """The cases of this benchmark, on these labels."""
    middle = site.given.box * site.given.boxes // 2
    at = (middle, middle, middle)
    ids, voxels = np.unique(labels, return_counts=True)
    usual = int(ids[np.argsort(voxels)[len(ids) // 2]])
    tenth = [int(i) for i in ids[2:][::10]]
    unknown = {i: 2 * _FIRST_ID + i for i in tenth}
    joined = {i: int(labels[_neighbour(labels, i)]) for i in tenth}
    return [
        Case("nothing", lambda _: None, same=True),
        Case("a chunk rewritten, same bytes", _rewrite_chunk, same=True),
        Case("a voxel of the image", lambda s: _flip(s, at)),
        Case("a segment grows by a voxel", lambda s: _grow(s, labels, usual)),
        Case(f"{len(tenth)} segments renamed", lambda s: s.join(first_table() | unknown)),
        Case(f"{len(tenth)} segments joined to others", lambda s: s.join(first_table() | joined)),
    ]


def _neighbour(labels: Labels, segment: int) -> Vec:
    """A voxel beside a segment."""
    x, y, z = np.argwhere(_grown(labels == segment) & (labels != segment))[0].tolist()
    return x, y, z


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask and the voxels that share a face with it."""
    found = mask.copy()
    for axis in range(3):
        one, other = np.moveaxis(found, axis, 0), np.moveaxis(mask, axis, 0)
        one[1:] |= other[:-1]
        one[:-1] |= other[1:]
    return found


def _rewrite_chunk(site: Site) -> None:
    array, box = site.opened("image"), site.given.box
    first = box * (site.given.boxes // 2)
    part = array[first : first + box, first : first + box, first : first + box]
    part.write(part.read().result()).result()


def _flip(site: Site, at: Vec) -> None:
    array = site.opened("image")
    array[at].write(np.uint8(int(array[at].read().result()) ^ 1)).result()


def _grow(site: Site, labels: Labels, segment: int) -> None:
    grown = _grown(labels == segment)
    where = np.argwhere(grown)
    begin, end = where.min(axis=0).tolist(), (where.max(axis=0) + 1).tolist()
    index = tuple(slice(a, b) for a, b in zip(begin, end, strict=True))
    changed = np.where(grown, np.uint64(segment), labels)
    site.opened("labels")[index].write(changed[index]).result()


def timed_run(plan_it: Callable[[], EmbedPlan]) -> tuple[float, embed.Result]:
    """Plan and run; the seconds, and what it did."""
    started = time.perf_counter()
    plan = plan_it()
    embed.prepare(plan, "a benchmark")
    run_graph(lambda root: embed.build(root, plan))
    result = embed.finish(plan)
    return time.perf_counter() - started, result


_EPOCHS = itertools.count(1)


def renewal(site: Site, store: str) -> EmbedPlan:
    """The plan of a reprocess that works alone, under a newer epoch each time."""
    table_path = str(site.inputs / "table.csv")
    plan = reprocess.plan(ReprocessConfig(str(site.folder / store), agglomeration=table_path))
    fence = Fence(next(_EPOCHS), alone=True)
    return dataclasses.replace(plan, work=dataclasses.replace(plan.work, fence=fence))


def rows_by_box(site: Site, store: str) -> ByBox:
    """The rows of each box of a store's newest version."""
    found = EmbeddingStore.open(str(site.folder / store))
    return {box: found.by_box(box) for box in found.boxes()}


def differing(before: ByBox, after: ByBox) -> int:
    """Rows of ``after`` whose crop no row of the same box of ``before`` shows."""
    count = 0
    for box, rows in after.items():
        known = {bytes(d) for d in before[box].crop_digest} if box in before else set()
        count += sum(bytes(d) not in known for d in rows.crop_digest)
    return count


def identical(one: ByBox, other: ByBox) -> bool:
    """Whether two stores have the same boxes with the same rows, bit for bit."""
    digests = [{box: rows.digest() for box, rows in s.items()} for s in (one, other)]
    return digests[0] == digests[1]


@dataclasses.dataclass
class Base:
    """The first full run.

    Attributes:
        seconds: Its time, a repetition each.
        rows: Its rows.
        extra_s: What a crop of the full-size network takes longer than one of the model that ran.
    """

    seconds: list[float]
    rows: ByBox
    extra_s: float

    @property
    def crops(self) -> int:
        """Crops it encoded."""
        return sum(len(rows) for rows in self.rows.values())


def first_run(site: Site) -> Base:
    """Warm up, embed, and time crops of both networks."""
    site.restore()
    sparse = f"auto:{_SPARSER * site.given.spacing_vx * _VOXEL_NM:g}"
    warm_up = dataclasses.replace(site.config("warm-up"), nodes=sparse)
    timed_run(lambda: embed.plan(warm_up))
    seconds = []
    for _ in range(site.given.repetitions):
        shutil.rmtree(site.folder / "store", ignore_errors=True)
        seconds.append(timed_run(lambda: embed.plan(site.config("store")))[0])
    crop_s = []
    for model in (site.given.full_model, site.given.model):
        encoder = shared_encoder(resolve_model(model))
        bare(encoder, 1)
        batches = [bare(encoder, 1) for _ in range(site.given.batches)]
        crop_s.append(statistics.median(batches) / encoder.batch)
    base = Base(seconds, rows_by_box(site, "store"), crop_s[0] - crop_s[1])
    boxes, full = len(base.rows), statistics.median(seconds)
    print(
        f"\nfull run: {full:.2f} s, {base.crops:,} crops in {boxes} boxes (goals: "
        f"{_CROPS:,} crops {met(base.crops >= _CROPS)}, {_BOXES} boxes {met(boxes >= _BOXES)})\n"
        f"a crop: {1000 * crop_s[1]:.1f} ms ({site.given.model}), {1000 * crop_s[0]:.1f} ms "
        f"({site.given.full_model}); a full run of the latter, computed: "
        f"{full + base.crops * base.extra_s:.0f} s"
    )
    return base


def measure(site: Site, base: Base, case: Case) -> list[str]:
    """Reprocess after a change, as often as asked, and compare with a full run."""
    seconds = []
    for _ in range(site.given.repetitions):
        site.restore()
        shutil.rmtree(site.folder / "renewed", ignore_errors=True)
        shutil.copytree(site.folder / "store", site.folder / "renewed")
        case.change(site)
        taken, result = timed_run(lambda: renewal(site, "renewed"))
        seconds.append(taken)
    expected = base.rows
    if not case.same:
        timed_run(lambda: embed.plan(site.config("anew")))
        expected = rows_by_box(site, "anew")
        shutil.rmtree(site.folder / "anew")
    took, full = statistics.median(seconds), statistics.median(base.seconds)
    differ = differing(base.rows, expected)
    at_full_size = (took + result.embeddings * base.extra_s) / (full + base.crops * base.extra_s)
    same = identical(rows_by_box(site, "renewed"), expected)
    return [
        case.name,
        f"{took:.2f}",
        f"{100 * took / full:.1f} %",
        f"{100 * at_full_size:.2f} %",
        met(at_full_size < 0.02) if case.name == "nothing" else "-",
        str(result.boxes_skipped + result.boxes + result.boxes_removed),
        str(result.boxes),
        str(result.embeddings),
        str(differ),
        met(result.embeddings == differ),
        "identical" if same else "DIFFERENT",
    ]


def main() -> None:
    """Run every case and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, default=4, help="boxes a side of the volume")
    parser.add_argument("--box", type=int, default=32, help="voxels a side of a box and a chunk")
    parser.add_argument("--segments", type=int, default=120, help="segments of the volume")
    parser.add_argument("--spacing-vx", type=int, default=22, help="spacing of the sampled nodes")
    parser.add_argument("--model", default=NARROW, help="the network that runs")
    parser.add_argument("--full-model", default=FULL, help="the network that shares are given for")
    parser.add_argument("--batches", type=int, default=5, help="batches to time a network by")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the volume")
    parser.add_argument("--quick", action="store_true", help="does it run: few crops, no figures")
    given = parser.parse_args()
    if given.quick:
        given.boxes, given.box, given.segments, given.spacing_vx = 2, 16, 22, 12
        given.model = given.full_model = "untrained:width=2,input=17,embedding=8"
        given.batches = given.repetitions = 1
    print(describe())
    with tempfile.TemporaryDirectory() as scratch:
        site = Site(pathlib.Path(scratch), given)
        labels = make_inputs(site)
        base = first_run(site)
        rows = [measure(site, base, case) for case in cases(site, labels)]
    header = ["changed", "s", "share", "full-size share", "goal < 2 %", "looked at", "read"]
    title = "reprocess, against a full run (full-size share: computed, not measured)"
    table(title, [*header, "computed", "differ", "goal equal", "rows"], rows)


if __name__ == "__main__":
    main()
