"""TIFF stacks: one file of many pages, as TIFF, BigTIFF, ImageJ and OME-TIFF keep a volume.

A stack without compression whose pages lie one after another is mapped; of another only the strips
or tiles that meet a box are decoded, one at a time, or whole pages where Pillow has to.
"""

import contextlib
import dataclasses
import functools
import math
import xml.etree.ElementTree
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec, Vec3
from volumes.sources import tiff
from volumes.sources.base import Axes, Stamp, check_dtype, file_stamp, stated_size
from volumes.sources.flat import (
    FlatArray,
    FlatSource,
    check_whole,
    described_again,
    settled_axes,
)
from volumes.sources.headers import ImageError
from volumes.spec import Kind

_UNITS_NM = {
    "pm": 1e-3, "Å": 1e-1, "angstrom": 1e-1, "nm": 1.0, "nanometer": 1.0, "um": 1e3, "µm": 1e3,
    "μm": 1e3, "\\u00B5m": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "mm": 1e6,
    "cm": 1e7, "m": 1e9,
}  # fmt: skip
_COPIES = 3
_X_RESOLUTION, _Y_RESOLUTION = 282, 283


@dataclasses.dataclass(frozen=True, slots=True)
class StackSource:
    """A TIFF stack whose pages are decoded.

    Attributes:
        url: Absolute path of the file.
        array: What the file says of its pages, rows and columns; its offset means nothing.
        axes: Names of pages, rows and columns.
        tile: Rows and columns that are decoded at once; None where it is the whole page.
    """

    url: str
    array: FlatArray
    axes: Axes
    tile: tuple[int, int] | None

    @property
    def shape(self) -> Vec:
        """Voxels, XYZ."""
        return self.axes.shape(self.array.stored)

    @property
    def dtype(self) -> str:
        """Name of the dtype in native byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=").name

    @property
    def piece(self) -> Vec:
        """A strip, a tile or a page."""
        return self.axes.shape((1, *(self.tile or self.array.stored[1:])))

    @property
    def scratch_bytes(self) -> int:
        """What is decoded at once: as it is stored, decoded, and as it is put in its place."""
        return _COPIES * math.prod(self.piece) * np.dtype(self.dtype).itemsize

    @property
    def voxel_size_nm(self) -> Vec3 | None:
        """The voxel size that the file states, XYZ."""
        return self.array.voxel_size_nm

    @property
    def origin_vx(self) -> Vec | None:
        """None: TIFF states no origin."""
        return None

    def open(self) -> "StackReader":
        """Open the file."""
        return StackReader(self)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "type": "tiff",
            "url": self.url,
            "axes": self.axes.names,
            "shape": list(self.shape),
            "dtype": self.dtype,
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        rows, columns = self.tile or self.array.stored[1:]
        pages = self.array.stored[0]
        return (
            f"TIFF file {self.url} of {pages} pages, axes {self.axes.names}, decoded in parts of "
            f"{columns} x {rows} pixels",
        )


class StackReader:
    """An open TIFF stack."""

    absent = 0

    def __init__(self, source: StackSource) -> None:
        """Open the file of a source, and check that it still is what was planned."""
        self._source = source
        try:
            self._file: BinaryIO = open(source.url, "rb")
        except OSError as e:
            raise RunError(f"{source.url} cannot be read any more: {e.strerror}") from e
        try:
            self._structure = tiff.opened(source.url)
        except ImageError as e:
            self._file.close()
            raise RunError(f"{source.url} cannot be read any more: it {e}") from e
        self._reader = tiff.PageReader(self._structure, self._file)
        try:
            described_again(
                source.url, functools.partial(_described, self._structure), source.array
            )
        except RunError:
            self.close()
            raise
        self._pages = self._structure.series[0].pages

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        source = self._source
        out = np.empty(box.shape, source.dtype, order="F")
        stored = out.transpose(["xyz".index(a) for a in source.axes.names])
        spans = dict(zip("xyz", zip(box.start, box.stop, strict=True), strict=True))
        pages, rows, columns = (spans[a] for a in source.axes.names)
        for number in range(*pages):
            try:
                page = self._pages[number]
                if page is None:
                    raise ImageError("is not in the file")
                stored[number - pages[0]] = self._reader.read(page, rows, columns)
            except (ImageError, tifffile.TiffFileError) as e:
                raise RunError(
                    f"{source.url}: page {number} {e}; repair or replace the file and run the same "
                    "command again"
                ) from e
        return out

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamp of the file."""
        return (file_stamp(self._source.url),)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
        self._file.close()


def resolve_stack(
    path: str, axes: str | None, kind: Kind, asked: str | None = None
) -> FlatSource | StackSource:
    """A source of a TIFF file, given its absolute path, from what it says of its pages.

    Raises:
        RequestError: The file cannot be read, holds several images or channels, or what no volume
            is made of.
    """
    with _telling(path), tiff.opened(path) as structure, tiff.damage():
        array = _described(structure, path)
        tile = tiff.tiles(structure.pages.first)
    check_dtype(np.dtype(array.dtype), kind, path, asked)
    # Pages of which the file says no more are sections.
    wished = axes or ("zyx" if _TIMES not in array.notes else None)
    settled = settled_axes(array, wished, path)
    if array.offset:
        return FlatSource("TIFF", path, array, settled, describe_stack)
    return StackSource(path, array, settled, tile)


_TIMES = "the file calls its pages points in time; --axes says that they are space"


def describe_stack(path: str) -> FlatArray:
    """What a TIFF file, given its absolute path, says of its pages, rows and columns.

    Returns:
        The array; its offset is 0 where its pages do not lie one after another, uncompressed.

    Raises:
        RequestError: It cannot be read, or holds several images, several channels, pages in other
            files, or what is not one number a voxel.
    """
    with _telling(path), tiff.opened(path) as structure:
        return _described(structure, path)


@contextlib.contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except ImageError as e:
        raise RequestError(f"{path} {e}; supply the file again if it is damaged") from e


def _described(structure: tifffile.TiffFile, path: str) -> FlatArray:
    """What an open file says; the ``RequestError`` of ``describe_stack``."""
    with _telling(path), tiff.damage():
        return _parsed(structure, path)


def _parsed(structure: tifffile.TiffFile, path: str) -> FlatArray:
    series = _only_series(structure, path)
    first = structure.pages.first
    found = tiff.page_header(first)
    if found.dtype is None:
        raise RequestError(
            f"{path} is {found.colour} with {found.depth} bits a sample; a section is grey with "
            "whole bytes, since a voxel holds one number: convert it to grey"
        )
    others = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if a not in "YX"]
    others = [(a, n) for a, n in others if n != 1]
    if len(others) > 1 or any(a in "CS" for a, _ in others):
        raise RequestError(
            f"{path} has axes {series.axes} of shape {series.shape}; a volume has x, y and z and "
            "one number a voxel: write the wanted channel and time to a file of its own"
        )
    stored = (others[0][1] if others else 1, found.height, found.width)
    name = others[0][0] if others else "Z"
    offset = series.dataoffset or 0
    tiff.check_decodable(first, structure.filehandle)
    array = FlatArray(
        offset=offset,
        dtype=structure.byteorder + np.dtype(found.dtype).str[1:],
        stored=stored,
        axes="zyx" if name == "Z" and others else None,
        voxel_size_nm=_voxel_size(structure),
        notes=(_TIMES,) if name == "T" else (),
    )
    return check_whole(path, array) if offset else array


def _only_series(structure: tifffile.TiffFile, path: str) -> tifffile.TiffPageSeries:
    pages = tiff.full_pages(structure)
    try:
        series = structure.series
    except (ValueError, KeyError, IndexError, TypeError, OSError) as e:
        raise RequestError(f"{path} has pages that make no image: {e}") from e
    if any(s.is_multifile for s in series):
        raise RequestError(
            f"{path} is one file of a set (OME-TIFF), and changes of the others would go "
            "unnoticed; write the set to one file, or give a directory of sections"
        )
    if len(series) != 1:
        shapes = ", ".join(str(s.shape) for s in series[:4])
        raise RequestError(
            f"{path} holds {len(series)} images of shapes {shapes}; a volume is one: write the "
            "wanted one to a file of its own"
        )
    # ImageJ keeps more sections in one page than its list tells where they are many.
    if len(series[0].pages) < len(pages) or any(p is None for p in series[0].pages):
        raise RequestError(
            f"{path} has {len(pages)} pages, of which its description uses {len(series[0].pages)}; "
            "the rest would be lost: write it again"
        )
    return series[0]


def _voxel_size(structure: tifffile.TiffFile) -> Vec3 | None:
    """The voxel size that ImageJ or OME wrote, in nm, XYZ."""
    sizes: list[float | None] = [None]
    if structure.is_ome:
        sizes = _ome_sizes(structure.ome_metadata or "")
    elif structure.is_imagej:
        sizes = _imagej_sizes(structure)
    found = [v for v in sizes if v is not None and math.isfinite(v) and v > 0]
    return stated_size(found, "it") if len(found) == 3 else None


def _imagej_sizes(structure: tifffile.TiffFile) -> list[float | None]:
    found = structure.imagej_metadata or {}
    factor = _UNITS_NM.get(str(found.get("unit", "")).strip())
    tags = structure.pages.first.tags
    resolutions = [tags.valueof(code) for code in (_X_RESOLUTION, _Y_RESOLUTION)]
    spacing = found.get("spacing")
    if factor is None or spacing is None or not all(resolutions):
        return [None]
    x, y = (factor * denominator / max(1, numerator) for numerator, denominator in resolutions)
    return [x, y, factor * float(spacing)]


def _ome_sizes(text: str) -> list[float | None]:
    try:
        root = xml.etree.ElementTree.fromstring(text)
    except xml.etree.ElementTree.ParseError:
        return [None]
    pixels = next((e for e in root.iter() if e.tag.rsplit("}", 1)[-1] == "Pixels"), None)
    if pixels is None:
        return [None]
    sizes: list[float | None] = []
    for axis in "XYZ":
        value = pixels.get(f"PhysicalSize{axis}")
        factor = _UNITS_NM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        sizes.append(None if value is None or factor is None else float(value) * factor)
    return sizes
