"""Flags of the jobs that make volumes of volumes."""

import argparse
from typing import Any

from launch.parsers import (
    Job,
    crop,
    cube,
    cube_or_none,
    floats,
    functions,
    integer,
    integers,
    steps,
)

FORMATS = ("zarr3", "zarr2", "ome-zarr", "n5", "precomputed")


def layout(group: Any) -> None:
    """Add the flags that say how a volume is stored."""
    group.add_argument(
        "--format", choices=FORMATS, default="zarr3", help="of the volume (default zarr3)"
    )
    group.add_argument(
        "--chunk",
        type=cube,
        default=(64, 64, 64),
        metavar="X,Y,Z",
        help="voxels of a chunk, what is read at once (default 64,64,64)",
    )
    group.add_argument(
        "--shard",
        type=cube_or_none,
        metavar="X,Y,Z|none",
        help="voxels of a shard, what is written at once: whole chunks (default: chosen)",
    )
    group.add_argument(
        "--codec",
        metavar="NAME[:LEVEL]",
        help="raw, zstd, gzip, blosc-lz4, blosc-zstd, bzip2, xz, png, jpeg, "
        "compressed_segmentation; auto tries those that fit on a sample (default: by format)",
    )


def _source(group: Any) -> None:
    group.add_argument(
        "--kind", choices=("image", "segmentation"), help="where the volume does not say"
    )
    group.add_argument(
        "--scale", type=floats, metavar="X,Y,Z", help="voxel size in nm of the level to take"
    )
    group.add_argument(
        "--voxel-size",
        dest="voxel_size_nm",
        type=floats,
        metavar="X,Y,Z",
        help="voxel size in nm, where the volume states none",
    )
    functions(group)


def _missing(group: Any) -> None:
    group.add_argument(
        "--missing",
        choices=("error", "zero", "keep"),
        help="a chunk of the input that is not stored: an error (default for images), zeros "
        "(default for segmentations), or left out of the output too",
    )


def _memory(group: Any) -> None:
    group.add_argument(
        "--memory-mb",
        type=integer,
        default=2048,
        metavar="MB",
        help="memory for a worker's unit of work (default 2048)",
    )


def _convert(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read")
    group.add_argument("--input", metavar="VOLUME", help="a volume, or a view (JSON, @file.json)")
    _source(group)
    group.add_argument(
        "--crop", type=crop, metavar="X0:X1,Y0:Y1,Z0:Z1", help="frame voxels to take (default all)"
    )
    _missing(group)
    group = parser.add_argument_group("what to write")
    group.add_argument("--output", metavar="URL", help="a new or empty directory")
    layout(group)
    group.add_argument("--dtype", metavar="NAME", help="type of the voxels (default: the input's)")
    group.add_argument(
        "--origin",
        dest="origin_vx",
        type=integers,
        metavar="X,Y,Z",
        help="frame coordinate of the first voxel (default: as it lies)",
    )
    group.add_argument(
        "--axes", metavar="zyx", help="stored order (default zyx for Zarr, xyz for n5)"
    )
    group = parser.add_argument_group("how")
    group.add_argument(
        "--rechunk",
        choices=("auto", "direct", "staged"),
        default="auto",
        help="whether voxels pass through a copy with chunks between the two (default auto)",
    )
    group.add_argument("--staging", metavar="URL", help="where that copy is (default: OUTPUT)")
    _memory(group)


def _downsample(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read")
    group.add_argument(
        "--volume",
        metavar="VOLUME",
        help="an OME-Zarr 0.5 group or a precomputed volume, which gets the levels; any volume "
        "with --output",
    )
    _source(group)
    group.add_argument(
        "--missing",
        choices=("error", "zero"),
        help="a chunk that is not stored: an error (default for images), or zeros (default for "
        "segmentations)",
    )
    group = parser.add_argument_group("what to write")
    group.add_argument(
        "--levels", type=integer, metavar="N", help="how many (default: until one chunk holds all)"
    )
    group.add_argument(
        "--factors",
        type=steps,
        metavar="X,Y,Z[/X,Y,Z...]",
        help="of each step; the last repeats (default: until voxels are alike on all axes, then "
        "2,2,2)",
    )
    group.add_argument(
        "--method",
        choices=("mean", "mode", "sparse-mode"),
        help="default mean for images and mode for segmentations; sparse-mode prefers ids to "
        "background, so that thin neurites stay",
    )
    group.add_argument(
        "--output", metavar="URL", help="a new volume with the input's level and the coarser ones"
    )
    group.add_argument(
        "--format",
        choices=("ome-zarr", "precomputed"),
        help="of --output (default ome-zarr)",
    )
    group.add_argument(
        "--chunk", type=cube, metavar="X,Y,Z", help="voxels of a chunk (default: the volume's)"
    )
    group.add_argument("--shard", choices=("none",), help="chunks one by one (default: shards)")
    group.add_argument(
        "--codec", metavar="NAME[:LEVEL]", help="default: the volume's, or by format"
    )
    group = parser.add_argument_group("how")
    _memory(group)


VOLUME_JOBS = (
    Job(
        "convert",
        "a volume -> a volume of other format, chunks, shards, codec or extent",
        "segclr-beam convert --input em.zarr --format precomputed --output em.precomputed",
        ("input", "output"),
        _convert,
    ),
    Job(
        "downsample",
        "coarser levels of a volume: mean of an image, mode of a segmentation",
        "segclr-beam downsample --volume em.precomputed",
        ("volume",),
        _downsample,
    ),
)
"""The jobs of this module."""
