"""Every job's flags: the only place that knows them. Imports nothing heavy, so ``--help`` is quick.

A job's parsed flags carry the names of its config's fields, so that a config is made from them
without a table in between.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_NEGATIVE = re.compile(r"-[\d.]")


class UsageError(ValueError):
    """The command line is wrong: exit status 2, the message alone is shown."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(f"{message}; see {self.prog} --help")


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A job of the command line.

    Attributes:
        name: What the user types.
        line: What it does, in a line.
        example: A command that works.
        required: Flags that it cannot do without.
        add_flags: Adds its flags to a parser.
        module: The module whose ``JOBS`` runs it; loaded when it is asked for.
    """

    name: str
    line: str
    example: str
    required: tuple[str, ...]
    add_flags: Callable[[argparse.ArgumentParser], None]
    module: str = "launch.jobs"


def _floats(text: str) -> tuple[float, float, float]:
    parts = text.split(",")
    try:
        values = [float(p) for p in parts]
    except ValueError:
        values = []
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"three numbers X,Y,Z are needed, got {text!r}")
    return (values[0], values[1], values[2])


def _integers(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    try:
        values = [int(p) for p in parts]
    except ValueError:
        values = []
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"three integers X,Y,Z are needed, got {text!r}")
    return (values[0], values[1], values[2])


def _cube(text: str) -> tuple[int, int, int]:
    """Three integers, or one for all axes."""
    if "," in text:
        return _integers(text)
    side = _integer(text)
    return (side, side, side)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, got {text!r}") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"an integer is needed, got {text!r}") from None


def _processes(text: str) -> int:
    count = _integer(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"at least 1 process is needed, got {count}")
    return count


def _common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument("--config", metavar="FILE", help="YAML or JSON file that gives flags values")
    group.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    group.add_argument("--json", action="store_true", help="end stdout with a one-line summary")
    group.add_argument("--quiet", action="store_true", help="no plan and no progress on stderr")
    group.add_argument(
        "--verbose",
        action="store_true",
        help="show what Beam and TensorFlow write to stderr, and where an error was raised",
    )
    group.add_argument(
        "--workers", type=_processes, default=1, metavar="N", help="local processes (default 1)"
    )
    group.add_argument(
        "--runner",
        default="DirectRunner",
        help="a Beam runner; DirectRunner, the default, runs in this process. Flags that this "
        "list does not have go to Beam: --project, --region, --temp_location, ...",
    )


def _ingest(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read")
    group.add_argument("--source", metavar="PATH", help="a directory of PNG sections, .h5 or .npy")
    group.add_argument("--dataset", metavar="NAME", help="the dataset in an HDF5 file")
    group.add_argument(
        "--axes", metavar="zyx", help="stored axes of an HDF5 or NPY array, slowest first"
    )
    group.add_argument(
        "--kind", choices=("image", "segmentation"), help="what the voxels are: grey values or ids"
    )
    group.add_argument(
        "--voxel-size", dest="voxel_size_nm", type=_floats, metavar="X,Y,Z", help="voxel size in nm"
    )
    group.add_argument(
        "--origin",
        dest="origin_vx",
        type=_integers,
        default=(0, 0, 0),
        metavar="X,Y,Z",
        help="frame coordinate of the first voxel, in voxels (default 0,0,0)",
    )
    group = parser.add_argument_group("what to write")
    group.add_argument("--output", metavar="URL", help="the zarr3 volume to make")
    group.add_argument(
        "--chunk",
        type=_cube,
        default=(64, 64, 64),
        metavar="X,Y,Z",
        help="voxels of a chunk (default 64,64,64)",
    )
    group.add_argument(
        "--shard",
        type=_cube,
        metavar="X,Y,Z",
        help="voxels of a shard, whole chunks (default: chosen)",
    )
    group.add_argument(
        "--memory-mb",
        type=_integer,
        default=1024,
        metavar="MB",
        help="memory for a slab (default 1024)",
    )


def _embed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read")
    group.add_argument(
        "--image",
        metavar="VOLUME",
        help="the image, uint8: a path or URL (zarr, OME-Zarr, N5, precomputed), a TensorStore "
        "URL, or a TensorStore JSON spec, inline or as @file.json",
    )
    group.add_argument("--segmentation", metavar="VOLUME", help="the segmentation, integers")
    group.add_argument(
        "--nodes",
        metavar="NODES",
        help="auto[:spacing_nm], a directory of <segment_id>.swc files (nm), or a CSV or Parquet "
        "table with segment_id, x_nm, y_nm, z_nm and node_id",
    )
    group.add_argument(
        "--spacing-nm", type=_number, metavar="NM", help="thin given skeletons to this path length"
    )
    group.add_argument(
        "--scale",
        type=_floats,
        metavar="X,Y,Z",
        help="voxel size in nm that picks a level of multiscale volumes",
    )
    group.add_argument(
        "--voxel-size",
        dest="voxel_size_nm",
        type=_floats,
        metavar="X,Y,Z",
        help="voxel size in nm, where a volume states none",
    )
    group.add_argument(
        "--origin",
        dest="origin_vx",
        type=_integers,
        metavar="X,Y,Z",
        help="frame coordinate of the first voxel, where a volume states none",
    )
    group.add_argument(
        "--axes", metavar="xyz", help="stored axes, where a volume states none (default xyz)"
    )
    group = parser.add_argument_group("what to compute")
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="a checkpoint's prefix or directory, a .keras file, or untrained[:width=8,...]",
    )
    group.add_argument(
        "--batch",
        type=_integer,
        default=2,
        metavar="N",
        help="crops a batch, at least 2 (default 2); part of a run's identity",
    )
    group.add_argument(
        "--input-size",
        type=_integer,
        metavar="N",
        help="voxels a side of a crop, for checkpoints (default 129)",
    )
    group.add_argument(
        "--box",
        type=_cube,
        metavar="X,Y,Z",
        help="voxels of a box (default: a common multiple of the read chunks, at least 128)",
    )
    group.add_argument(
        "--halo",
        type=_cube,
        metavar="X,Y,Z",
        help="voxels read around a box (default: half the crop)",
    )
    group.add_argument(
        "--missing-image",
        choices=("error", "zero"),
        default="error",
        help="what an absent image chunk is under a mask (default error)",
    )
    group.add_argument(
        "--missing-segmentation",
        choices=("background", "error"),
        default="background",
        help="what an absent segmentation chunk is (default background)",
    )
    group.add_argument(
        "--read-mb",
        type=_integer,
        default=256,
        metavar="MB",
        help="decoded bytes under way at once while reading (default 256)",
    )
    group = parser.add_argument_group("what to write")
    group.add_argument("--output", metavar="URL", help="the embedding store")


def _export(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read")
    group.add_argument("--store", metavar="URL", help="the embedding store")
    group.add_argument(
        "--version", type=_integer, metavar="N", help="a published version (default: the latest)"
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
            "image sections (PNG), HDF5 or NPY -> a volume",
            "segclr-beam ingest --source em/ --kind image --voxel-size 10,10,10 --output em.zarr",
            ("source", "kind", "voxel_size_nm", "output"),
            _ingest,
        ),
        Job(
            "embed",
            "image + segmentation + nodes -> an embedding store",
            "segclr-beam embed --image em.zarr --segmentation seg.zarr --nodes auto:1500 "
            "--model segclr-216000/ --output store",
            ("image", "segmentation", "nodes", "model", "output"),
            _embed,
        ),
        Job(
            "export",
            "an embedding store -> Parquet files",
            "segclr-beam export --store store --output tables",
            ("store", "output"),
            _export,
        ),
        Job(
            "demo",
            "all of it on a sample volume that is made on the spot",
            "segclr-beam demo --output demo-output",
            ("output",),
            _demo,
            "launch.demo",
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


def job_parser(job: Job) -> Parser:
    """The parser of a job's flags."""
    parser = Parser(
        prog=f"segclr-beam {job.name}",
        description=job.line,
        epilog=f"example:\n  {job.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    job.add_flags(parser)
    _common(parser)
    needed = [a for a in parser._actions if a.dest in job.required]
    shown = [f"{a.option_strings[-1]} {a.metavar or a.dest.upper()}" for a in needed]
    parser.usage = " ".join([parser.prog, *shown, "[flags]"])
    return parser


def flag_names(parser: argparse.ArgumentParser) -> list[str]:
    """Every long flag of a parser."""
    return [s for a in parser._actions for s in a.option_strings if s.startswith("--")]


def spelled(words: Sequence[str], own: Sequence[str]) -> list[str]:
    """Words as argparse understands them.

    A job's own flags may be written with ``_``: ``--dry_run`` would otherwise be a flag of Beam's
    that does nothing here. A negative value, as in ``--origin -8,0,0``, is joined to its flag; else
    argparse takes it for a flag.

    Args:
        words: Words of the command line or of a config file.
        own: The job's own flags.
    """
    done: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        dashed = name.replace("_", "-")
        if name.startswith("--") and dashed in own:
            done.append(dashed + equals + value)
        elif _NEGATIVE.match(word) and done and done[-1] in own:
            done[-1] += f"={word}"
        else:
            done.append(word)
    return done


def missing_flags(job: Job, parser: argparse.ArgumentParser, parsed: Any) -> Sequence[str]:
    """The flags that a job needs and did not get."""
    flags = {a.dest: a.option_strings[-1] for a in parser._actions if a.option_strings}
    return [flags[name] for name in job.required if getattr(parsed, name) is None]
