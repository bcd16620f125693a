"""The one door to what a volume can be made from: image sections, HDF5 and NPY.

The kind of a source is told by what is there, not by its name: a directory holds sections, a file
begins with the signature of its format.
"""

import os

import h5py

from volumes import objects
from volumes.errors import RequestError
from volumes.sources_base import Source
from volumes.sources_hdf5 import resolve_hdf5
from volumes.sources_npy import MAGIC, resolve_npy
from volumes.sources_sections import resolve_sections
from volumes.spec import Kind


def resolve_source(url: str, dataset: str | None, axes: str | None, kind: Kind) -> Source:
    """Describe a source from metadata alone; no voxel is read.

    Args:
        url: A local path or URL: a directory of PNG sections (also in a bucket), or a local HDF5 or
            NPY file.
        dataset: Path of the dataset in an HDF5 file; None for the others.
        axes: Stored axes of an HDF5 or NPY array, slowest first, such as ``zyx``; None for
            sections, which are row = y, column = x, number = z.
        kind: What the volume is to hold.

    Raises:
        RequestError: There is nothing there, or nothing that a volume can be made of.
    """
    if objects.redacted(url) != url:
        raise RequestError(
            f"the address {objects.redacted(url)} was given with a password or a query string, "
            "which would be written into plans and manifests; leave it out and give credentials "
            "in the environment"
        )
    source = _resolve(url, dataset, axes, kind)
    if min(source.shape) < 1:
        raise RequestError(
            f"{source.url} has shape {source.shape} (x, y, z), which holds no voxel; give another "
            "source"
        )
    return source


def _resolve(url: str, dataset: str | None, axes: str | None, kind: Kind) -> Source:
    path = objects.local_path(url)
    if path is None:
        # A web server has no list to be asked for.
        if url.startswith(("http://", "https://")) or not objects.names(url):
            raise RequestError(
                f"--source {url} is remote and no directory of sections; a single file (HDF5 or "
                "NPY) is read in place, from a local disk only: copy it there and give its path"
            )
        _refuse_options("a directory of sections", url, {"--dataset": dataset, "--axes": axes})
        return resolve_sections(url.rstrip("/"), kind)
    if not path.exists():
        raise RequestError(f"--source {url} does not exist; give a directory or a file that does")
    if path.is_dir():
        _refuse_options("a directory of sections", url, {"--dataset": dataset, "--axes": axes})
        return resolve_sections(os.path.abspath(path), kind)
    return _resolve_file(os.path.abspath(path), dataset, axes, kind)


def _resolve_file(path: str, dataset: str | None, axes: str | None, kind: Kind) -> Source:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as e:
        raise RequestError(f"--source {path} cannot be read: {e.strerror}") from e
    if h5py.is_hdf5(path):
        return resolve_hdf5(path, dataset, axes, kind)
    if head.startswith(MAGIC):
        _refuse_options("an NPY file", path, {"--dataset": dataset})
        return resolve_npy(path, axes, kind)
    raise RequestError(
        f"--source {path} is neither an HDF5 nor an NPY file (it begins with {head[:8]!r}); give "
        "one of these, or a directory of PNG sections"
    )


def _refuse_options(what: str, url: str, options: dict[str, str | None]) -> None:
    for flag, value in options.items():
        if value is not None:
            raise RequestError(
                f"{flag} {value} was given for {url}, which is {what} and has none; leave it out"
            )
