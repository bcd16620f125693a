"""What the embed pipeline costs beside the bare model: time, bytes read, memory, planning.

    python -m benchmarks.embed                 all parts; about 15 minutes on two cores
    python -m benchmarks.embed --parts speed   one of speed, memory, planning
    python -m benchmarks.embed --quick         few crops: does it run at all; no figures to quote

How it measures:

- *speed*: bare model and pipeline in one process, in turn: half of the bare batches, the pipeline,
  the other half. The model is loaded, compiled and warm before. The pipeline's time runs from the
  moment its first box begins to be read to the moment its last commit has returned, so Beam's start
  and end are apart. Bare batches are ready in memory. Rates are medians over the repetitions.
- *bytes*: the pipeline's counter of decoded bytes, against what one read of image and segmentation
  for each crop alone would decode, whole chunks in both cases.
- *memory*: the peak resident memory (VmHWM) of a fresh process that plans and runs the same job,
  against the figure that its plan printed.
- *planning*: ``plan`` and the bytes of the graph for volumes of 10**3, 10**6 and 10**12 boxes, of
  which only the metadata exists.

Real input (``../shared``: a FIB-25 cube and a full-size checkpoint in the public format) is taken
where it is there; otherwise the demo's synthetic volume and an untrained network of full size.
"""

import argparse
import csv
import dataclasses
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

import apache_beam as beam
import numpy as np

from benchmarks.machine import describe, met, table
from pipelines import demo, embed, ingest, writing
from pipelines.demo.phantom import PhantomConfig
from segclr.crops import crop_box
from segclr.encoder import Encoder, shared_encoder
from segclr.sampler import sample_sites
from transforms import boxes
from volumes import commits
from volumes.geometry import ChunkGrid, Vec3, voxels_at
from volumes.opening import open_volume
from volumes.reading import decoded_bytes, read_box
from volumes.resolving import resolve_volume
from volumes.writing import Target, VolumeLayout, create_levels

NARROW = "untrained:width=4,input=65"
_SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
_A_BOX = 100


@dataclasses.dataclass(frozen=True)
class Input:
    """The volumes and models of a run.

    Attributes:
        folder: Scratch.
        name: What the volume is.
        full: The full-size model.
    """

    folder: pathlib.Path
    name: str
    full: str

    def config(self, nodes: pathlib.Path, model: str, store: str) -> embed.EmbedConfig:
        """An embed run over them."""
        return embed.EmbedConfig(
            image=str(self.folder / "em.zarr"),
            segmentation=str(self.folder / "segmentation.zarr"),
            nodes=str(nodes),
            model=model,
            output=str(self.folder / store),
        )


def run_graph(build: Any) -> dict[str, int]:
    """Run a graph in process; the counters by name."""
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    found: dict[str, int] = {}
    for counter in result.metrics().query()["counters"]:
        name = counter.key.metric.name
        found[name] = found.get(name, 0) + counter.committed
    return found


def prepare_input(folder: pathlib.Path) -> Input:
    """Ingest the real volume, or the demo's; unpack the checkpoint, or name the untrained one."""
    fib25 = _SHARED / "data" / "fib25"
    if fib25.exists():
        size: Vec3 = (10.0, 10.0, 10.0)
        em, labels, name = fib25 / "em", fib25 / "groundtruth.h5", "FIB-25, 250^3 voxels of 10 nm"
    else:
        config = demo.DemoConfig(str(folder))
        demo.make_sample(config)
        size = PhantomConfig().voxel_size_nm
        em, labels = folder / "sample" / "em", folder / "sample" / "segmentation.h5"
        name = "the demo's synthetic volume"
    for source, kind, more in (
        (em, "image", {}),
        (labels, "segmentation", {"dataset": "stack", "axes": "zyx"}),
    ):
        output = "em.zarr" if kind == "image" else "segmentation.zarr"
        plan = ingest.plan(
            ingest.IngestConfig(
                source=str(source),
                output=str(folder / output),
                kind=kind,  # type: ignore[arg-type]
                voxel_size_nm=size,
                **more,
            )
        )
        writing.prepare(plan, "a benchmark")
        run_graph(lambda root, plan=plan: writing.build(root, plan))
        writing.finish(plan)
    archive = _SHARED / "reference" / "segclr_tf2_legacy_ckpt.tar.xz"
    full = "untrained:width=64"
    if archive.exists():
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        full = str(folder / "segclr_tf2_legacy_ckpt")
    return Input(folder, name, full)


def write_nodes(found: Input, count: int) -> pathlib.Path:
    """A table of real sites, about 100 in each of as many boxes as are needed."""
    image = resolve_volume(str(found.folder / "em.zarr"), kind="image")
    labels = resolve_volume(str(found.folder / "segmentation.zarr"), kind="segmentation")
    domain, size = labels.domain, labels.voxel_size_nm
    voxels = read_box(open_volume(labels), domain).array
    grid = ChunkGrid(domain, embed.default_box(image.read_chunk, labels.read_chunk))
    spacing_nm, per_box = 1500.0, []
    wanted = max(1, math.ceil(count / _A_BOX))
    while spacing_nm > 4 * max(size):
        sites = sample_sites(voxels, domain, domain, domain, size, spacing_nm)
        index = grid.indices_at(voxels_at(sites.position_nm, size))
        per_box = [np.flatnonzero(index == i)[: -(-count // wanted)] for i in range(grid.size)]
        per_box = sorted((p for p in per_box if len(p)), key=len, reverse=True)[:wanted]
        if sum(len(p) for p in per_box) >= count or wanted > grid.size:
            break
        if spacing_nm < 200:
            wanted = grid.size
        spacing_nm /= 1.4
    picked = sites.take(np.concatenate(per_box)[:count])
    path = found.folder / f"nodes-{count}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["segment_id", "node_id", "x_nm", "y_nm", "z_nm"])
        for i in range(len(picked)):
            row = [int(picked.segment_id[i]), i, *picked.position_nm[i].tolist()]
            writer.writerow(row)
    return path


class Stopwatch:
    """Notes when the first box begins to be read and when the last commit has returned."""

    def __init__(self) -> None:
        """Not started."""
        self.begun: float | None = None
        self.ended = 0.0
        self._read, self._commit = boxes.read_input, commits.commit_boxes

    def __enter__(self) -> "Stopwatch":
        """Put the two notes in."""

        def read(*args: Any) -> Any:
            self.begun = self.begun or time.perf_counter()
            return self._read(*args)

        def commit(*args: Any) -> Any:
            stands = self._commit(*args)
            self.ended = time.perf_counter()
            return stands

        boxes.read_input, commits.commit_boxes = read, commit
        return self

    def __exit__(self, *_: object) -> None:
        """Take them out."""
        boxes.read_input, commits.commit_boxes = self._read, self._commit

    @property
    def seconds(self) -> float:
        """From first read to last commit."""
        if self.begun is None:
            raise RuntimeError("no box was read")
        return self.ended - self.begun


def bare(encoder: Encoder, batches: int) -> float:
    """Seconds for a number of ready batches."""
    n = encoder.input_size
    rng = np.random.default_rng(0)
    ready = rng.integers(0, 256, (encoder.batch, n, n, n), dtype=np.uint8)
    ready[:, :, : n // 3] = 0
    started = time.perf_counter()
    for _ in range(batches):
        encoder.encode_batch(ready)
    return time.perf_counter() - started


def speed(found: Input, crops: dict[str, int], repetitions: dict[str, int]) -> None:
    """Print the rates and the bytes."""
    rates, bytes_rows = [], []
    for label, model in (("narrow", NARROW), ("full size", found.full)):
        nodes = write_nodes(found, crops[label])
        bare_rates, pipeline_rates, shares = [], [], []
        for repetition in range(repetitions[label]):
            plan = embed.plan(found.config(nodes, model, f"store-{label}-{repetition}"))
            encoder = shared_encoder(plan.work.model)
            bare(encoder, 1)
            embed.prepare(plan, "a benchmark")
            half = math.ceil(crops[label] / encoder.batch / 2)
            seconds = bare(encoder, half)
            with Stopwatch() as watch:
                counts = run_graph(lambda root, plan=plan: embed.build(root, plan))
            seconds += bare(encoder, half)
            bare_rates.append(2 * half * encoder.batch / seconds)
            pipeline_rates.append(counts["embeddings"] / watch.seconds)
            shares.append(pipeline_rates[-1] / bare_rates[-1])
        ratio = statistics.median(shares)
        goal = met(ratio >= 0.95) if label == "full size" else "-"
        rates.append(
            [
                label,
                plan.work.model.title,
                f"{counts['embeddings']} x {repetitions[label]}",
                f"{statistics.median(bare_rates):.2f}",
                f"{statistics.median(pipeline_rates):.2f}",
                f"{ratio:.3f}",
                goal,
            ]
        )
        bytes_rows.append(_bytes_row(label, plan, counts))
    header = ["network", "model", "crops", "bare /s", "pipeline /s", "ratio", "goal >= 0.95"]
    table(f"speed, on {found.name}", header, rates)
    header = ["network", "nodes a box", "MB an embedding", "MB a crop alone", "share", "goal < 0.1"]
    table("decoded bytes", header, bytes_rows)


def _bytes_row(label: str, plan: embed.EmbedPlan, counts: dict[str, int]) -> list[str]:
    work = plan.work
    with open(plan.config.nodes, newline="", encoding="utf-8") as file:
        rows = [[float(r[f"{a}_nm"]) for a in "xyz"] for r in csv.DictReader(file)]
    voxels = voxels_at(np.array(rows), work.voxel_size_nm)
    each = 0
    for v in voxels.tolist():
        box = crop_box((v[0], v[1], v[2]), work.model.input_size)
        each += decoded_bytes(work.image, box) + decoded_bytes(work.segmentation, box)
    ours = counts["bytes_read"] / counts["embeddings"]
    alone = each / len(voxels)
    return [
        label,
        f"{counts['embeddings'] / plan.estimate.boxes:.0f}",
        f"{ours / 1e6:.2f}",
        f"{alone / 1e6:.2f}",
        f"{ours / alone:.4f}",
        met(ours / alone < 0.1),
    ]


def memory(found: Input, quick: bool) -> None:
    """Print predicted and measured peaks, each of a process of its own."""
    rows = []
    cases = [("narrow", NARROW, 40, {}), ("narrow, sampled", NARROW, 0, {"nodes": "auto:1000"})]
    if not quick:
        cases += [
            ("full size", found.full, 30, {}),
            ("full size, batch 4", found.full, 30, {"batch": 4}),
            ("full size, box 64", found.full, 30, {"box": [64, 64, 64]}),
        ]
    for label, model, count, changes in cases:
        nodes = write_nodes(found, count) if count else pathlib.Path("auto")
        config = dataclasses.replace(
            found.config(nodes, model, f"memory-{label}"),
            **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()},
        )
        words = [sys.executable, "-m", "benchmarks.embed", "--peak", json.dumps(_as_json(config))]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1200)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        peak, predicted = json.loads(done.stdout.splitlines()[-1])
        share = peak / predicted
        rows.append(
            [
                label,
                f"{predicted / 2**20:.0f}",
                f"{peak / 2**20:.0f}",
                f"{share:.3f}",
                met(0.75 <= share <= 1),
            ]
        )
    header = ["run", "predicted MiB", "peak MiB", "share", "goal 0.75 to 1"]
    table("peak memory of a worker", header, rows)


def _as_json(config: embed.EmbedConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def peak(document: dict[str, Any]) -> None:
    """Run one job and print its peak and the plan's figure: the body of a fresh process."""
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
    plan = embed.plan(embed.EmbedConfig(**given))
    embed.prepare(plan, "a benchmark")
    run_graph(lambda root: embed.build(root, plan))
    embed.finish(plan)
    # getrusage's figure would still be the parent's, from before the exec.
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps([kib * 1024, plan.estimate.peak_bytes]))


def planning(found: Input) -> None:
    """Print the time to plan and the size of the graph for ever larger volumes."""
    rows = []
    for power in (3, 6, 12):
        side = 128 * 10 ** (power // 3)
        for name, kind, dtype in (("em", "image", "uint8"), ("seg", "segmentation", "uint64")):
            layout = VolumeLayout(
                shape=(side, side, side),
                dtype=dtype,
                kind=kind,  # type: ignore[arg-type]
                voxel_size_nm=(8.0, 8.0, 8.0),
                origin_vx=(0, 0, 0),
                chunk=(64, 64, 64),
                shard=(512, 512, 512),
            )
            create_levels([Target(str(found.folder / f"{name}-{power}"), layout)], {})
        config = embed.EmbedConfig(
            image=str(found.folder / f"em-{power}"),
            segmentation=str(found.folder / f"seg-{power}"),
            nodes="auto:1500",
            model=NARROW,
            output=str(found.folder / f"planned-{power}"),
        )
        times = []
        for _ in range(5):
            started = time.perf_counter()
            plan = embed.plan(config)
            times.append(time.perf_counter() - started)
        pipeline = beam.Pipeline(runner="FnApiRunner")
        embed.build(pipeline, plan)
        graph = len(pipeline.to_runner_api().SerializeToString())
        milliseconds = 1000 * statistics.median(times)
        rows.append(
            [f"10^{power}", f"{plan.work.grid.size:,}", f"{milliseconds:.0f}", f"{graph:,}"]
        )
    table("planning (goal: flat)", ["boxes", "exactly", "plan ms", "graph bytes"], rows)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops-narrow", type=int, default=1000)
    parser.add_argument("--crops-full", type=int, default=200)
    parser.add_argument("--repetitions-narrow", type=int, default=3)
    parser.add_argument("--repetitions-full", type=int, default=1)
    parser.add_argument("--parts", default="speed,memory,planning")
    parser.add_argument("--quick", action="store_true", help="does it run: few crops, no figures")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        peak(json.loads(given.peak))
        return
    crops = {"narrow": given.crops_narrow, "full size": given.crops_full}
    repetitions = {"narrow": given.repetitions_narrow, "full size": given.repetitions_full}
    if given.quick:
        crops, repetitions = {"narrow": 20, "full size": 4}, {"narrow": 1, "full size": 1}
    print(describe())
    with tempfile.TemporaryDirectory() as scratch:
        found = prepare_input(pathlib.Path(scratch))
        for part in given.parts.split(","):
            if part == "speed":
                speed(found, crops, repetitions)
            elif part == "memory":
                memory(found, given.quick)
            elif part == "planning":
                planning(found)
            else:
                parser.error(f"there is no part {part!r}; give speed, memory or planning")


if __name__ == "__main__":
    main()
