"""The one door to what a volume can be made from: sections, TIFF stacks, HDF5, NPY, MRC, NIfTI.

The kind of a source is told by what is there, not by its name: a directory holds sections, a file
begins with the signature of its format.
"""

import os
from collections.abc import Sequence

import h5py

from volumes import objects
from volumes.errors import RequestError
from volumes.sources import mrc, nifti, npy, tiff
from volumes.sources.base import Source
from volumes.sources.casting import CAST_DTYPES, CastSource
from volumes.sources.cubes import resolve_hdf5
from volumes.sources.flat import resolve_flat
from volumes.sources.numbering import MISSING_SECTIONS, MissingSections
from volumes.sources.sections import resolve_sections
from volumes.sources.stacks import resolve_stack
from volumes.spec import Kind

_MARKS = {
    "zarr.json": "zarr3",
    ".zarray": "zarr2",
    ".zgroup": "zarr2",
    "attributes.json": "N5",
    "info": "neuroglancer precomputed",
}
_HEAD_BYTES = max(mrc.HEADER_BYTES, nifti.HEADER_BYTES)
_IMAGE_DTYPES = ("uint8", "uint16")


def resolve_source(
    url: str,
    dataset: str | None,
    axes: str | None,
    kind: Kind,
    dtype: str | None = None,
    missing: MissingSections = "refuse",
) -> Source:
    """Describe a source from metadata alone; no voxel is read.

    Args:
        url: A local path or URL: a directory of sections (also in a bucket), or a local file: HDF5,
            NPY, TIFF, MRC or NIfTI.
        dataset: Path of the dataset in an HDF5 file, several between commas, or a group; None for
            the others.
        axes: Stored axes, slowest first, such as ``zyx``; for NIfTI the first is the fastest. None
            for sections, which are row = y, column = x, number = z, and where the file states them.
        kind: What the volume is to hold.
        dtype: The dtype that the volume is to have, one of ``CAST_DTYPES``; None for the source's.
        missing: What a missing section is.

    Raises:
        RequestError: There is nothing there, or nothing that a volume can be made of.
    """
    if objects.redacted(url) != url:
        raise RequestError(
            f"the address {objects.redacted(url)} was given with a password or a query string, "
            "which would be written into plans and manifests; leave it out and give credentials "
            "in the environment"
        )
    check_asked(kind, dtype, missing)
    source = _resolve(url, dataset, axes, kind, dtype, missing)
    if min(source.shape) < 1:
        raise RequestError(
            f"{source.url} has shape {source.shape} (x, y, z), which holds no voxel; give another "
            "source"
        )
    return source if dtype in (None, source.dtype) else CastSource(source, str(dtype))


def check_asked(kind: Kind, dtype: str | None, missing: str) -> None:
    """Refuse a dtype or a policy that there is not.

    Raises:
        RequestError: There is no such dtype or policy, or not for this kind of volume.
    """
    held = _IMAGE_DTYPES if kind == "image" else CAST_DTYPES
    if dtype is not None and dtype not in held:
        raise RequestError(
            f"--dtype {dtype} is no dtype of a volume of kind {kind}; give one of "
            f"{', '.join(held)}, or leave it out to keep the source's"
        )
    if missing not in MISSING_SECTIONS:
        raise RequestError(
            f"--missing-sections {missing} is unknown; give one of {', '.join(MISSING_SECTIONS)}"
        )


def _resolve(
    url: str,
    dataset: str | None,
    axes: str | None,
    kind: Kind,
    dtype: str | None,
    missing: MissingSections,
) -> Source:
    if url.lstrip().startswith(("{", "@")) or "|" in url:
        raise _is_volume(url, "a TensorStore spec or URL")
    path = objects.local_path(url)
    if path is not None and not path.exists():
        raise RequestError(f"--source {url} does not exist; give a directory or a file that does")
    if path is not None and not path.is_dir():
        if missing != "refuse":
            raise RequestError(
                f"--missing-sections {missing} was given for {url}, which is a file; only a "
                "directory of sections lacks some: leave it out"
            )
        return _resolve_file(os.path.abspath(path), dataset, axes, kind, dtype)
    place = url.rstrip("/") if path is None else os.path.abspath(path)
    # A web server has no list to be asked for.
    listed = path is not None or not url.startswith(("http://", "https://"))
    names = objects.names(place) if listed else []
    if path is None and not names:
        raise RequestError(
            f"--source {url} is remote and no directory of sections; a single file (HDF5, NPY, "
            "TIFF, MRC or NIfTI) is read in place, from a local disk only: copy it there and give "
            "its path. A volume that is served there is read by: segclr-beam convert --input"
        )
    _refuse_volume(place, names)
    _refuse_options("a directory of sections", url, {"--dataset": dataset, "--axes": axes})
    return resolve_sections(place, kind, dtype, missing)


def _refuse_volume(url: str, names: Sequence[str]) -> None:
    """Refuse a directory that is a volume, told by the file that each format has."""
    found = [told for name, told in _MARKS.items() if name in names]
    if found:
        raise _is_volume(url, f"a volume ({found[0]})")


def _is_volume(url: str, what: str) -> RequestError:
    return RequestError(
        f"--source {url} is {what} already; ingest reads sections and files: use convert, as in "
        "segclr-beam convert --input VOLUME --output NEW"
    )


def _resolve_file(
    path: str, dataset: str | None, axes: str | None, kind: Kind, dtype: str | None
) -> Source:
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as e:
        raise RequestError(f"--source {path} cannot be read: {e.strerror}") from e
    if h5py.is_hdf5(path):
        return resolve_hdf5(path, dataset, axes, kind, dtype)
    if head.startswith(npy.MAGIC):
        _refuse_options("an NPY file", path, {"--dataset": dataset})
        return resolve_flat("NPY", path, npy.describe_npy, axes, kind, dtype)
    if head.startswith(tiff.SIGNATURES):
        _refuse_options("a TIFF file", path, {"--dataset": dataset})
        return resolve_stack(path, axes, kind, dtype)
    if mrc.is_mrc(head):
        _refuse_options("an MRC file", path, {"--dataset": dataset})
        return resolve_flat("MRC", path, mrc.describe_mrc, axes, kind, dtype)
    unzipped = nifti.unzipped_head(path) if head.startswith(nifti.GZIP) else head
    if nifti.is_nifti(unzipped):
        _refuse_options("a NIfTI file", path, {"--dataset": dataset})
        return nifti.resolve_nifti(path, axes, kind, dtype)
    raise RequestError(
        f"--source {path} is neither an HDF5 nor an NPY file, nor TIFF, MRC or NIfTI (it begins "
        f"with {head[:8]!r}); give one of these, or a directory of sections (PNG, JPEG, TIFF)"
    )


def _refuse_options(what: str, url: str, options: dict[str, str | None]) -> None:
    for flag, value in options.items():
        if value is not None:
            raise RequestError(
                f"{flag} {value} was given for {url}, which is {what} and has none; leave it out"
            )
