"""Volumes of any origin and voxel size, and the jobs that make volumes of them, unit by unit."""

import contextlib
import json
import pathlib
import shutil
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipelines import convert, downsample, writing
from pipelines.writing import WritePlan
from tests.volumes import sample_volumes
from volumes.checks import CheckJob, Fault, check_unit
from volumes.opening import open_volume
from volumes.reading import read_box
from volumes.resolving import resolve_levels, resolve_volume
from volumes.spec import VolumeSpec
from volumes.units import open_targets, write_unit

Array = npt.NDArray[Any]

ORIGIN = (3, 5, -7)
SIZE = (4.0, 4.0, 40.0)


def volume(
    path: pathlib.Path,
    data: Array,
    *,
    chunk: tuple[int, ...] = (16, 16, 16),
    size: tuple[float, ...] = SIZE,
    origin: tuple[int, ...] = ORIGIN,
    kind: str = "image",
    shard: tuple[int, ...] | None = None,
) -> pathlib.Path:
    """A zarr3 volume, stored x, y, z; as TensorStore writes one, chunks of zeros are absent."""
    units = [f"{s:g} nm" for s in size]
    attributes = {
        "dimension_units": units,
        "voxel_offset": list(origin),
        "segclr_beam": {"kind": kind},
    }
    names = ("x", "y", "z")
    return sample_volumes.zarr3(path, data, chunk, shard=shard, names=names, attributes=attributes)


def noise(shape: tuple[int, ...] = (37, 29, 23), dtype: str = "uint8", seed: int = 0) -> Array:
    """Voxels over the whole range of a type, none of which is 0."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    found = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return np.where(found == 0, np.dtype(dtype).type(1), found)


def work(plan: WritePlan) -> list[int]:
    """Do what is pending of a prepared plan; gives the units written, pass by pass."""
    written = []
    for stage in plan.stages:
        job = stage.job
        with contextlib.closing(job.source.open()) as reader:
            volumes = open_targets(job)
            done = [write_unit(job, reader, volumes, index) for index in job.units()]
        written.append(sum(not d.skipped for d in done))
    return written


def run(plan: WritePlan) -> list[int]:
    """Prepare, do and finish a plan; gives the units written, pass by pass."""
    prepared = writing.prepare(plan, "test")
    written = work(plan) if prepared.pending else [0 for _ in plan.stages]
    writing.finish(plan)
    return written


def converted(source: pathlib.Path, output: pathlib.Path, **fields: Any) -> list[int]:
    """Convert a volume."""
    return run(convert.plan(convert.ConvertConfig(str(source), str(output), **fields)))


def downsampled(source: pathlib.Path, **fields: Any) -> list[int]:
    """Make levels of a volume."""
    return run(downsample.plan(downsample.DownsampleConfig(str(source), **fields)))


def spec_of(path: pathlib.Path) -> VolumeSpec:
    """A volume as it describes itself."""
    return resolve_volume(str(path), kind=None)


def read(path: pathlib.Path | VolumeSpec, missing: Literal["error", "zero"] = "error") -> Array:
    """All voxels of a volume."""
    spec = path if isinstance(path, VolumeSpec) else spec_of(path)
    return read_box(open_volume(spec), spec.domain, missing=missing).array


def stored(path: pathlib.Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def tree(path: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a directory, with its time."""
    return {
        str(p.relative_to(path)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in path.rglob("*")
        if p.is_file()
    }


def manifest(output: pathlib.Path, job: str = "convert") -> dict[str, Any]:
    """The manifest of a job."""
    document = json.loads((output / "segclr-beam" / f"{job}.json").read_text())
    assert isinstance(document, dict)
    return document


def checks(output: pathlib.Path) -> list[CheckJob]:
    """The checks of all jobs that wrote to a volume."""
    found = []
    for job in ("convert", "downsample"):
        if (output / "segclr-beam" / f"{job}.json").exists():
            stages = manifest(output, job)["stages"]
            found += [CheckJob.from_json(s["check"], str(output)) for s in stages if s["kept"]]
    return found


def faults(output: pathlib.Path) -> list[Fault]:
    """All that a check finds."""
    return [f for job in checks(output) for i in job.units() for f in check_unit(job, i).faults]


def replace(path: pathlib.Path, make: Any) -> None:
    """Put another volume in the place of one."""
    shutil.rmtree(path)
    make(path)


def levels_of(path: pathlib.Path) -> tuple[VolumeSpec, ...]:
    """The levels of a volume as it describes itself."""
    return resolve_levels(str(path), kind=None)
