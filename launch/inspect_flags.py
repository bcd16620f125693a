"""Flags of the job that tells what something is."""

import argparse

from launch.parsers import Job


def _info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="path or URL of a volume, an embedding store or a model; for a volume also a "
        "TensorStore URL, or a view or TensorStore spec, inline or as @file.json",
    )


INSPECT_JOBS: tuple[Job, ...] = (
    Job(
        "info",
        "what a volume, an embedding store or a model is",
        "segclr-beam info em.zarr",
        ("path",),
        _info,
        "launch.inspecting",
        beam=False,
    ),
)
"""The job that looks at things and changes nothing."""
