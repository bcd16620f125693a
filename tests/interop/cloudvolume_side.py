"""What CloudVolume writes and reads, in a process of its own.

CloudVolume forks and starts threads of its own, and TensorStore does not outlive a fork, so the two
never share a process: ``write`` and ``read`` start ``cloudvolume_process``, and arrays go over as
NPY. One call writes or reads many volumes, because importing CloudVolume takes seconds.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LIMIT_S = 240


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """How CloudVolume is to write a volume; ``factor`` is what a level has of the one before."""

    encoding: str = "raw"
    kind: str = "image"
    chunk: tuple[int, int, int] = (16, 16, 8)
    resolution: tuple[float, float, float] = (8.0, 8.0, 40.0)
    offset: tuple[int, int, int] = (0, 0, 0)
    factor: tuple[int, int, int] = (2, 2, 1)
    sharded: bool = False
    compress: str = ""


@dataclasses.dataclass(frozen=True)
class Scale:
    """A level as CloudVolume reads it: its array, XYZ, and what the metadata mean to it."""

    array: Array
    resolution: tuple[float, float, float]
    offset: tuple[int, int, int]
    kind: str
    encoding: str
    sharded: bool


def write(volumes: Mapping[pathlib.Path, tuple[Sequence[Array], Precomputed]]) -> None:
    """Write precomputed volumes of levels, XYZ, finest first."""
    with tempfile.TemporaryDirectory() as scratch:
        asked = []
        for at, (folder, (levels, how)) in enumerate(volumes.items()):
            files = [pathlib.Path(scratch, f"{at}-{level}.npy") for level in range(len(levels))]
            for file, array in zip(files, levels, strict=True):
                np.save(file, array)
            names = [str(f) for f in files]
            asked.append({"folder": str(folder), "levels": names, **dataclasses.asdict(how)})
        _run("write", asked, scratch)


def read(folders: Sequence[pathlib.Path]) -> list[list[Scale]]:
    """Every level of precomputed volumes, finest first."""
    with tempfile.TemporaryDirectory() as scratch:
        told = _run("read", [{"folder": str(f)} for f in folders], scratch)
        return [[_scale(stated) for stated in levels] for levels in told]


def _scale(stated: dict[str, Any]) -> Scale:
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()}
    return Scale(**{**lists, "array": np.load(stated["array"])})


def _run(what: str, asked: list[dict[str, Any]], scratch: str) -> Any:
    words = [sys.executable, "-m", "tests.interop.cloudvolume_process", what, scratch]
    done = subprocess.run(
        words,
        cwd=_ROOT,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
