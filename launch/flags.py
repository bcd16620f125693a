"""Every job's flags: the only place that knows them. Imports nothing heavy, so ``--help`` is quick.

A job's parsed flags carry the names of its config's fields, so that a config is made from them
without a table in between. Those of the jobs that look after a store are in ``store_flags``.
"""

import argparse
from typing import Any

from launch.inspect_flags import INSPECT_JOBS
from launch.parsers import (
    Job,
    Parser,
    cube,
    floats,
    functions,
    integer,
    integers,
    number,
    scheduled,
    store,
)
from launch.store_flags import STORE_JOBS
from launch.volume_flags import VOLUME_JOBS, layout


def _ingest(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read")
    group.add_argument(
        "--source",
        metavar="PATH",
        help="a directory of sections (PNG, JPEG, TIFF), or a file: HDF5, NPY, TIFF stack, MRC, "
        "NIfTI",
    )
    group.add_argument(
        "--dataset",
        metavar="NAME",
        help="the dataset in an HDF5 file; several between commas, or a group of them, where they "
        "have attributes resolution and offset (nm, stored order)",
    )
    group.add_argument(
        "--axes",
        metavar="zyx",
        help="stored axes of an array, slowest first, where the source does not state them",
    )
    group.add_argument(
        "--missing-sections",
        choices=("refuse", "blank", "nearest"),
        default="refuse",
        help="what a missing section is: an error, zeros, or a copy of the nearest one "
        "(default refuse)",
    )
    group.add_argument(
        "--kind", choices=("image", "segmentation"), help="what the voxels are: grey values or ids"
    )
    group.add_argument(
        "--voxel-size",
        dest="voxel_size_nm",
        type=floats,
        metavar="X,Y,Z",
        help="voxel size in nm, where the source states none",
    )
    group.add_argument(
        "--origin",
        dest="origin_vx",
        type=integers,
        metavar="X,Y,Z",
        help="frame coordinate of the first voxel, in voxels (default: what the source states, or "
        "0,0,0)",
    )
    group = parser.add_argument_group("what to write")
    group.add_argument("--output", metavar="URL", help="a new or empty directory")
    group.add_argument(
        "--dtype",
        choices=("uint8", "uint16", "uint32", "uint64"),
        help="dtype of the volume; a voxel whose value it does not hold is an error (default: the "
        "source's)",
    )
    layout(group)
    group.add_argument(
        "--memory-mb",
        type=integer,
        default=1024,
        metavar="MB",
        help="memory for a unit of work (default 1024)",
    )


def _inputs(parser: argparse.ArgumentParser) -> Any:
    """What embed and reprocess read; gives the group."""
    group = parser.add_argument_group("what to read")
    group.add_argument(
        "--image",
        metavar="VOLUME",
        help="the image, uint8: a path or URL (zarr, OME-Zarr, N5, precomputed), a TensorStore "
        "URL, or a TensorStore JSON spec, inline or as @file.json",
    )
    group.add_argument("--segmentation", metavar="VOLUME", help="the segmentation, integers")
    group.add_argument(
        "--agglomeration",
        metavar="FILE",
        help="CSV or Parquet with supervoxel and body, where the segmentation has supervoxels; an "
        "id that it does not list is its own body",
    )
    group.add_argument(
        "--nodes",
        metavar="NODES",
        help="auto[:spacing_nm], a directory of <segment_id>.swc files (nm), or a CSV or Parquet "
        "table with segment_id, x_nm, y_nm, z_nm and node_id",
    )
    group.add_argument(
        "--spacing-nm", type=number, metavar="NM", help="thin given skeletons to this path length"
    )
    group.add_argument(
        "--scale",
        type=floats,
        metavar="X,Y,Z",
        help="voxel size in nm that picks a level of multiscale volumes",
    )
    functions(group)
    return group


def _computing(parser: argparse.ArgumentParser, config: dict[str, Any]) -> None:
    """What embed and reprocess compute; ``config`` has the defaults, none for reprocess."""
    group = parser.add_argument_group("what to compute")
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="a checkpoint's prefix or directory, a .keras file, or untrained[:width=8,...]",
    )
    group.add_argument(
        "--batch",
        type=integer,
        default=config.get("batch"),
        metavar="N",
        help="crops a batch, at least 2 (default 2); part of a run's identity",
    )
    group.add_argument(
        "--input-size",
        type=integer,
        metavar="N",
        help="voxels a side of a crop, for checkpoints (default 129)",
    )
    group.add_argument(
        "--box",
        type=cube,
        metavar="X,Y,Z",
        help="voxels of a box (default: a common multiple of the read chunks, at least 128)",
    )
    group.add_argument(
        "--halo",
        type=cube,
        metavar="X,Y,Z",
        help="voxels read around a box (default: half the crop)",
    )
    group.add_argument(
        "--missing-image",
        choices=("error", "zero"),
        default=config.get("missing_image"),
        help="what an absent image chunk is under a mask (default error)",
    )
    group.add_argument(
        "--missing-segmentation",
        choices=("background", "error"),
        default=config.get("missing_segmentation"),
        help="what an absent segmentation chunk is (default background)",
    )
    group.add_argument(
        "--read-mb",
        type=integer,
        default=config.get("read_mb"),
        metavar="MB",
        help="decoded bytes under way at once while reading (default 256)",
    )
    group.add_argument(
        "--commit-seconds",
        type=number,
        default=config.get("commit_seconds"),
        metavar="S",
        help="for how long finished boxes gather to share a commit (default 5)",
    )


def _reading(parser: argparse.ArgumentParser, config: dict[str, Any]) -> None:
    """How embed and reprocess read; ``config`` has the defaults, none for reprocess."""
    group = parser.add_argument_group("how to read (changes no result)")
    group.add_argument(
        "--read-ahead",
        type=integer,
        default=config.get("read_ahead"),
        metavar="N",
        help="boxes read while one is encoded, as far as they fit into 1 GB; 0 for one thing after "
        "the other (default 2)",
    )
    group.add_argument(
        "--cache-mb",
        type=integer,
        default=config.get("cache_mb"),
        metavar="MB",
        help="decoded chunks a worker keeps for the next boxes, whose halos overlap; each is asked "
        "about before it is used again; 0 for none (default 256)",
    )
    group.add_argument(
        "--disk-cache",
        metavar="DIR",
        help="keep copies of what is read over http, gs or s3 in this local directory, which "
        "processes may share; each is asked about before it is used",
    )
    group.add_argument(
        "--disk-cache-gb",
        type=number,
        default=config.get("disk_cache_gb"),
        metavar="GB",
        help="what the copies may take; those used longest ago go first (default 20)",
    )


def _embed(parser: argparse.ArgumentParser) -> None:
    group = _inputs(parser)
    group.add_argument(
        "--voxel-size",
        dest="voxel_size_nm",
        type=floats,
        metavar="X,Y,Z",
        help="voxel size in nm, where a volume states none",
    )
    group.add_argument(
        "--origin",
        dest="origin_vx",
        type=integers,
        metavar="X,Y,Z",
        help="frame coordinate of the first voxel, where a volume states none",
    )
    group.add_argument(
        "--axes", metavar="xyz", help="stored axes, where a volume states none (default xyz)"
    )
    _computing(
        parser,
        {
            "batch": 2,
            "missing_image": "error",
            "missing_segmentation": "background",
            "read_mb": 256,
            "commit_seconds": 5.0,
        },
    )
    _reading(parser, {"read_ahead": 2, "cache_mb": 256, "disk_cache_gb": 20.0})
    group = parser.add_argument_group("what to write")
    group.add_argument("--output", metavar="URL", help="the embedding store")
    group.add_argument(
        "--retry-failed", action="store_true", help="do boxes again that were set aside"
    )
    scheduled(group)


def _reprocess(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to bring up to date")
    store(group)
    scheduled(group)
    parser.description = (
        "Compares what is committed with the inputs as they are now, and computes what differs. A "
        "flag below replaces that input from now on; one left out means the same place, looked at "
        "again. Another model or parameter makes a new generation."
    )
    _inputs(parser)
    _computing(parser, {})
    _reading(parser, {})


def _export(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read")
    store(group)
    group.add_argument(
        "--version", type=integer, metavar="N", help="a published version (default: the latest)"
    )
    group = parser.add_argument_group("what to write")
    group.add_argument(
        "--format",
        choices=("parquet",),
        default="parquet",
        help="format of the files (default parquet)",
    )
    group.add_argument("--output", metavar="URL", help="a new or empty directory")


def _demo(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to write")
    group.add_argument(
        "--output", metavar="DIR", help="a new directory: sample, volumes, store, tables, picture"
    )


JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        Job(
            "ingest",
            "sections (PNG, JPEG, TIFF), TIFF stacks, HDF5, NPY, MRC or NIfTI -> a volume",
            "segclr-beam ingest --source em/ --kind image --voxel-size 10,10,10 --output em.zarr",
            ("source", "kind", "output"),
            _ingest,
        ),
        *VOLUME_JOBS,
        Job(
            "embed",
            "image + segmentation + nodes -> an embedding store",
            "segclr-beam embed --image em.zarr --segmentation seg.zarr --nodes auto:1500 "
            "--model segclr-216000/ --output store",
            ("image", "segmentation", "nodes", "model", "output"),
            _embed,
        ),
        Job(
            "reprocess",
            "bring an embedding store up to date with inputs, nodes or model that changed",
            "segclr-beam reprocess --store store",
            ("store",),
            _reprocess,
        ),
        Job(
            "export",
            "an embedding store -> Parquet files",
            "segclr-beam export --store store --output tables",
            ("store", "output"),
            _export,
        ),
        *STORE_JOBS,
        *INSPECT_JOBS,
        Job(
            "demo",
            "all of it on a sample volume that is made on the spot",
            "segclr-beam demo --output demo-output",
            ("output",),
            _demo,
            "launch.demo",
            beam=False,
        ),
    )
}
"""The jobs, in the order in which a user meets them."""


def top_parser() -> Parser:
    """The parser of ``segclr-beam`` itself: for ``--help`` and to say which job there is."""
    width = max(len(name) for name in JOBS)
    lines = "\n".join(f"  {name:{width}}  {job.line}" for name, job in JOBS.items())
    return Parser(
        prog="segclr-beam",
        usage="segclr-beam JOB [flags]",
        description="SegCLR embeddings of brain volumes, on Apache Beam and TensorStore.",
        epilog=f"jobs:\n{lines}\n\nsegclr-beam JOB --help shows a job's flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
