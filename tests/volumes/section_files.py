"""Sections on disk, for tests."""

import pathlib

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image


def write_section(path: pathlib.Path, section: npt.NDArray[np.generic]) -> None:
    """Write one section, ``[x, y]``, in the format that the name says."""
    rows = np.ascontiguousarray(section.T)
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, rows, photometric="minisblack", metadata=None)
    else:
        Image.fromarray(rows).save(path, quality=95)


def write_sections(
    directory: pathlib.Path,
    voxels: npt.NDArray[np.generic],
    first: int = 1,
    name: str = "em.{}.png",
) -> list[pathlib.Path]:
    """Write ``[x, y, z]`` as sections ``first``, ``first + 1``, ...; gives their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name.format(first + z) for z in range(voxels.shape[2])]
    for z, path in enumerate(paths):
        write_section(path, voxels[:, :, z])
    return paths


def cut(path: pathlib.Path, keep: int) -> bytes:
    """Cut a file short; gives what it held."""
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    return whole


def filled(shape: tuple[int, int, int] = (7, 5, 4), dtype: type = np.uint8) -> npt.NDArray:
    """Voxels ``[x, y, z]``, each with its own value as far as the dtype has them."""
    return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)
