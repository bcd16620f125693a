"""The job ``demo``: a sample volume made on the spot goes the whole way, and is looked at.

The way is that of a user: sections and HDF5 on disk, two ingests, one embed, one export. Between
them stand only files. Everything lies below the output:

    sample/em/, sample/segmentation.h5, sample/kinds.csv    the sample, as a microscope leaves it
    em.zarr, segmentation.zarr                              the volumes
    store, tables                                           the embeddings, and their export
    demo.png                                                the picture
"""

import csv
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.demo.files import write_kinds_csv, write_sections, write_segmentation_h5
from pipelines.demo.phantom import PhantomConfig, make_phantom
from pipelines.demo.picture import Section, cut_section, draw_demo, knn_accuracy, project_2d
from pipelines.embed import EmbedConfig
from pipelines.export import ExportConfig
from pipelines.ingest import IngestConfig
from volumes import documents, objects
from volumes.errors import RequestError
from volumes.geometry import Vec3
from volumes.opening import open_volume, resolve_volume
from volumes.reading import read_box

MODEL = "untrained:width=8,input=65"
"""The network of the demo: small and untrained, with a fixed seed."""

SPACING_NM = 1000.0
"""Spacing of the sampled sites."""

_SAMPLE = ("segclr-demo-sample", 1)
_DONE = "sample.json"

# Sites this far from a section are drawn in it, in voxels.
_REACH_VX = 6.0


@dataclasses.dataclass(frozen=True, slots=True)
class DemoConfig:
    """The request.

    Attributes:
        output: Directory that takes everything; local, since sections are written there.
        phantom: The sample.
        model: The network.
        spacing_nm: Spacing of the sampled sites in nm.
    """

    output: str
    phantom: PhantomConfig = PhantomConfig()
    model: str = MODEL
    spacing_nm: float = SPACING_NM

    def below(self, *parts: str) -> str:
        """A path below the output."""
        return objects.join(objects.absolute(self.output), *parts)

    def ingests(self) -> tuple[IngestConfig, IngestConfig]:
        """The two ingests: image, then segmentation."""
        size: Vec3 = self.phantom.voxel_size_nm
        return (
            IngestConfig(
                source=self.below("sample", "em"),
                output=self.below("em.zarr"),
                kind="image",
                voxel_size_nm=size,
            ),
            IngestConfig(
                source=self.below("sample", "segmentation.h5"),
                output=self.below("segmentation.zarr"),
                kind="segmentation",
                voxel_size_nm=size,
                dataset="stack",
                axes="zyx",
            ),
        )

    def embed(self, workers: int) -> EmbedConfig:
        """The embed run."""
        return EmbedConfig(
            image=self.below("em.zarr"),
            segmentation=self.below("segmentation.zarr"),
            nodes=f"auto:{self.spacing_nm:g}",
            model=self.model,
            output=self.below("store"),
            workers=workers,
        )

    def export(self) -> ExportConfig:
        """The export."""
        return ExportConfig(store=self.below("store"), output=self.below("tables"))


def plan_lines(config: DemoConfig) -> list[str]:
    """What the demo will do, for people, a line each."""
    shape = " x ".join(str(n) for n in config.phantom.shape)
    size = " x ".join(f"{v:g}" for v in config.phantom.voxel_size_nm)
    return [
        f"sample: {shape} voxels of {size} nm with {config.phantom.neurites} neurites, seed "
        f"{config.phantom.seed}",
        f"nodes: sampled, one a segment and cell of {config.spacing_nm:g} nm",
        f"model: {config.model}",
        f"output: {config.below()}",
    ]


def make_sample(config: DemoConfig) -> bool:
    """Write the sample's files; False where they are there already.

    Raises:
        RequestError: The output is remote, or holds something that is not a demo of this config.
    """
    if objects.local_path(config.output) is None:
        raise RequestError(
            f"--output {objects.redacted(config.output)} is remote; the demo writes image sections "
            "as files: give a local directory"
        )
    body = {"phantom": dataclasses.asdict(config.phantom)}
    wanted = documents.dump(*_SAMPLE, body)
    where = config.below("sample", _DONE)
    found = objects.read(where)
    if found == wanted:
        return False
    names = set(objects.names(config.below()))
    if found is not None or names - {"sample/"}:
        raise RequestError(
            f"--output {config.output} is not empty and not this demo's (it has "
            f"{', '.join(sorted(names)[:3])}); nothing of it was touched: name a new directory"
        )
    phantom = make_phantom(config.phantom)
    write_sections(phantom, config.below("sample", "em"))
    write_segmentation_h5(phantom, config.below("sample", "segmentation.h5"))
    write_kinds_csv(phantom, config.below("sample", "kinds.csv"))
    objects.write(where, wanted)
    return True


def account(config: DemoConfig, title: str) -> dict[str, Any]:
    """Read the export back, draw the picture, and say in figures what came out.

    Args:
        config: The demo.
        title: The network's title, which goes into the picture.

    Returns:
        ``embeddings``, ``segments``, ``kinds`` (name to count), ``knn`` (agreement of the five
        nearest vectors of other segments), ``majority`` (the share of the commonest kind) and
        ``picture``, as JSON.
    """
    table = _exported(config)
    segments = np.asarray(table["segment_id"].to_numpy(), dtype=np.uint64)
    column = table["embedding"].combine_chunks()
    vectors = np.asarray(column.flatten().to_numpy(), np.float32).reshape(len(segments), -1)
    kind_of = _kinds(config)
    kinds = [kind_of[int(s)] for s in segments]
    knn, majority = knn_accuracy(vectors, kinds, segments)
    _, explained = project_2d(vectors)
    counts = {name: kinds.count(name) for name in sorted(set(kinds))}
    picture = config.below("demo.png")
    caption = (
        f"{len(vectors):,} sites of {len(set(segments.tolist())):,} segments; the five nearest of "
        f"other segments agree on the kind for {knn:.0%} (the commonest kind: {majority:.0%}).\n"
        f"The two components show {float(explained.sum()):.0%} of the variance."
    )
    size = config.phantom.voxel_size_nm
    sites = np.stack([table[f"{a}_nm"].to_numpy() for a in "xyz"], axis=1) / np.array(size)
    draw_demo(picture, title, caption, _sections(config, sites, kinds), vectors, kinds)
    return {
        "embeddings": len(vectors),
        "segments": len(set(segments.tolist())),
        "kinds": counts,
        "knn": round(knn, 4),
        "majority": round(majority, 4),
        "picture": picture,
    }


def _exported(config: DemoConfig) -> pa.Table:
    where = config.below("tables")
    names = [n for n in objects.names(where) if n.endswith(".parquet")]
    return pa.concat_tables([pq.read_table(objects.join(where, n)) for n in names])


def _kinds(config: DemoConfig) -> dict[int, str]:
    path = config.below("sample", "kinds.csv")
    with open(path, newline="", encoding="utf-8") as file:
        return {int(row["segment_id"]): row["kind"] for row in csv.DictReader(file)}


def _sections(
    config: DemoConfig, sites_vx: npt.NDArray[np.float64], kinds: list[str]
) -> list[Section]:
    """The middle planes, horizontal and vertical, read back from the volumes."""
    size = config.phantom.voxel_size_nm
    image = resolve_volume(config.below("em.zarr"), kind="image")
    labels = resolve_volume(config.below("segmentation.zarr"), kind="segmentation")
    whole = image.domain
    voxels = read_box(open_volume(image), whole).array
    ids = read_box(open_volume(labels), whole).array.astype(np.uint64)
    middle = [math.floor(n / 2) for n in whole.shape]
    return [
        cut_section(voxels, ids, size, sites_vx, kinds, axis, middle[axis], _REACH_VX)
        for axis in (2, 1)
    ]
