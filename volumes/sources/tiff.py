"""TIFF and BigTIFF files, page by page: what a page holds, and its pixels, without silent damage.

tifffile reads the structure and decodes what Python's own libraries can (none, Deflate, LZMA,
PackBits); other compressions (LZW, JPEG) go through Pillow. A file whose list of pages breaks off
is opened by tifffile with the pages before the break, so that list is walked here as well; and a
page is decoded only if each of its strips or tiles lies in the file. Of the compressions, Deflate
and LZMA have checksums: a flipped bit in another can change pixels unnoticed.
"""

import contextlib
import io
import itertools
import logging
import struct
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import TiffImagePlugin

from volumes.errors import RequestError
from volumes.sources.headers import Header, ImageError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFF and BigTIFF files, of either byte order."""

Page = tifffile.TiffPage | tifffile.TiffFrame
"""A page, or one that shares the tags of the page before it."""

Span = tuple[int, int]

# What it logs of damaged files is said here, in one message.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_BROKEN = (
    tifffile.TiffFileError, struct.error, IndexError, KeyError, ValueError, TypeError,
    ZeroDivisionError, NotImplementedError, OSError, EOFError, SyntaxError, zlib.error, LZMAError,
    OverflowError, AttributeError, MemoryError,
)  # fmt: skip
_COLOURS = {0: "grey with white as 0", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
_MODES = {"L": "uint8", "I;16": "uint16", "I;16B": "uint16", "I;16N": "uint16", "I": "int32"}
_REDUCED = 1
_MAX_PAGES = 10**7


def opened(file: BinaryIO | str, size: int | None = None) -> tifffile.TiffFile:
    """The structure of a file, which must be closed.

    Args:
        file: A path, or a file that is open at its start.
        size: Bytes of the file, where they cannot be found by seeking.

    Raises:
        ImageError: It is no TIFF file, or is cut short before its pages are told.
    """
    try:
        found = tifffile.TiffFile(file, size=size)
    except FileNotFoundError as e:
        raise ImageError(f"cannot be read: {e.strerror}") from e
    except _BROKEN as e:
        raise ImageError(f"has a damaged header: {e}") from e
    try:
        pages = sum(1 for _ in _offsets(found.filehandle))
        if len(found.pages) != pages:
            raise ImageError(f"tells of {pages} pages, of which {len(found.pages)} can be read")
    except ImageError:
        found.close()
        raise
    except _BROKEN as e:
        found.close()
        raise ImageError(f"has a damaged header: {e}") from e
    return found


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Turns what tifffile and Pillow raise of damaged tags into an ``ImageError``."""
    try:
        yield
    except (ImageError, RequestError):
        raise
    except _BROKEN as e:
        raise ImageError(f"has a damaged header: {e}") from e


def _offsets(file: tifffile.FileHandle) -> Iterator[int]:
    """Where each page's tags begin.

    Raises:
        ImageError: The list breaks off, or turns in a circle.
    """
    head = _exactly(file, 0, 8)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    number, pointer, tag = (order + "Q", order + "Q", 20) if big else (order + "H", order + "I", 12)
    at = 8 if big else 4
    seen: set[int] = set()
    while True:
        offset = struct.unpack(pointer, _exactly(file, at, struct.calcsize(pointer)))[0]
        if offset == 0:
            return
        if offset in seen or len(seen) > _MAX_PAGES:
            raise ImageError(f"has a list of pages that leads back to byte {offset}")
        seen.add(offset)
        tags = struct.unpack(number, _exactly(file, offset, struct.calcsize(number)))[0]
        yield offset
        at = offset + struct.calcsize(number) + tags * tag


def _exactly(file: tifffile.FileHandle, at: int, size: int) -> bytes:
    file.seek(at)
    data: bytes = file.read(size)
    if len(data) < size:
        raise ImageError(
            f"is cut short: it ends before byte {at + size}, where a page is described"
        )
    return data


def full_pages(file: tifffile.TiffFile) -> list[Page]:
    """The pages that are not smaller copies of another.

    Raises:
        ImageError: One cannot be read.
    """
    try:
        return [p for p in file.pages if not _subfile(p) & _REDUCED]
    except _BROKEN as e:
        raise ImageError(f"has a page that cannot be read: {e}") from e


def _subfile(page: Page) -> int:
    return int(page.subfiletype) if isinstance(page, tifffile.TiffPage) else 0


def page_header(page: tifffile.TiffPage) -> Header:
    """What a page says of itself; its dtype is None unless each pixel is one number."""
    colour = _COLOURS.get(int(page.photometric), f"photometric {int(page.photometric)}")
    if page.samplesperpixel != 1:
        colour = f"{colour} with {page.samplesperpixel} samples"
    depth = int(page.bitspersample)
    plain = colour == "grey" and page.dtype is not None and page.imagedepth == 1
    dtype = page.dtype.newbyteorder("=") if plain and page.dtype is not None else None
    whole = dtype is not None and dtype.kind in "iuf" and dtype.itemsize * 8 == depth
    name = dtype.name if dtype is not None and whole else None
    return Header("TIFF", page.imagewidth, page.imagelength, colour, depth, name)


def header(file: BinaryIO, size: int | None = None) -> Header:
    """The header of a file of one page that is open at its start.

    Raises:
        ImageError: It is no TIFF file, holds several pages, or is compressed in a way that cannot
            be undone here.
    """
    with opened(file, size) as structure, damage():
        return _single(structure)[1]


def decode(data: bytes) -> npt.NDArray[Any]:
    """The pixels of a file of one page, ``[row, column]``, native byte order.

    Raises:
        ImageError: It is cut short or damaged, or holds what no section is made of.
    """
    with opened(io.BytesIO(data)) as structure, damage():
        page, found = _single(structure)
        if found.dtype is None:
            raise ImageError(f"is {found.colour} with {found.depth} bits")
        reader = PageReader(structure, io.BytesIO(data))
        return reader.read(page, (0, found.height), (0, found.width))


def _single(structure: tifffile.TiffFile) -> tuple[tifffile.TiffPage, Header]:
    pages = full_pages(structure)
    if len(pages) != 1 or not isinstance(pages[0], tifffile.TiffPage):
        raise ImageError(
            f"holds {len(pages)} pages; a section is a file of one page: give a file of many pages "
            "itself as --source"
        )
    found = page_header(pages[0])
    if found.dtype is not None:
        check_decodable(pages[0], structure.filehandle)
    return pages[0], found


def check_decodable(page: tifffile.TiffPage, file: BinaryIO | tifffile.FileHandle) -> None:
    """Refuse a compression that neither tifffile nor Pillow undoes here.

    Raises:
        ImageError: It names the compression and what to do.
    """
    if _tifffile_decodes(page):
        return
    name = _compression(page)
    try:
        file.seek(0)
        with TiffImagePlugin.TiffImageFile(cast(BinaryIO, _Kept(file))) as image:
            mode = image.mode
    except _BROKEN as e:
        mode = f"which Pillow does not read: {e}"
    if _MODES.get(mode, "").lstrip("u") != page_header_dtype(page).lstrip("u"):
        raise ImageError(
            f"is compressed with {name}, which is not undone here for {page_header_dtype(page)}; "
            "write it again without compression or with Deflate (tiffcp -c zip IN OUT), or install "
            "imagecodecs"
        )


def page_header_dtype(page: tifffile.TiffPage) -> str:
    """Name of a page's dtype in native byte order."""
    return "no dtype" if page.dtype is None else page.dtype.newbyteorder("=").name


def tiles(page: tifffile.TiffPage) -> tuple[int, int] | None:
    """Rows and columns that are decoded at once; None where it is the whole page."""
    if not _tifffile_decodes(page):
        return None
    rows, columns = page.chunks[-2:] if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    return min(int(rows), page.imagelength), min(int(columns), page.imagewidth)


def _tifffile_decodes(page: tifffile.TiffPage) -> bool:
    known = page.compression == 1 or page.compression in tifffile.TIFF.DECOMPRESSORS
    return known and (page.predictor == 1 or page.predictor in tifffile.TIFF.UNPREDICTORS)


def _compression(page: tifffile.TiffPage) -> str:
    try:
        return tifffile.COMPRESSION(page.compression).name
    except ValueError:
        return f"compression {int(page.compression)}"


class _Kept(io.RawIOBase):
    """A file that whoever is given it does not close."""

    def __init__(self, file: BinaryIO | tifffile.FileHandle) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence) or self._file.tell())

    def tell(self) -> int:
        return int(self._file.tell())


class PageReader:
    """Reads parts of the pages of an open file."""

    def __init__(self, structure: tifffile.TiffFile, file: BinaryIO) -> None:
        """Keep what is open.

        Args:
            structure: The file's pages.
            file: The same file, for Pillow; closed by whoever gave it.
        """
        self._structure = structure
        self._file = file
        self._image: TiffImagePlugin.TiffImageFile | None = None

    def read(self, page: Page, rows: Span, columns: Span) -> npt.NDArray[Any]:
        """The pixels of a part of a page, ``[row, column]``, native byte order.

        Args:
            page: A page of the file.
            rows: First row, and the one after the last.
            columns: First column, and the one after the last.

        Raises:
            ImageError: The page is cut short or damaged.
        """
        keyframe = page.keyframe
        if keyframe is None:
            raise ImageError("has no tags of its own")
        try:
            self._check_inside(page)
            if _tifffile_decodes(keyframe):
                return self._segments(page, keyframe, rows, columns)
            whole = self._pillow(page, keyframe)
        except ImageError:
            raise
        except _BROKEN as e:
            raise ImageError(f"cannot be decoded: {e}") from e
        return whole[slice(*rows), slice(*columns)]

    def _check_inside(self, page: Page) -> None:
        end = self._structure.filehandle.size
        spans = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        wanted = max((offset + size for offset, size in spans), default=0)
        if wanted > end:
            raise ImageError(
                f"is cut short: it ends at byte {end}, before its pixels do ({wanted})"
            )
        counts = (len(page.dataoffsets), len(page.databytecounts))
        if not spans or counts[0] != counts[1] or any(size == 0 for _, size in spans):
            raise ImageError("has strips or tiles without pixels")

    def _segments(
        self, page: Page, keyframe: tifffile.TiffPage, rows: Span, columns: Span
    ) -> npt.NDArray[Any]:
        """The strips or tiles that meet a part, put together."""
        height, width = keyframe.chunks[-2:] if keyframe.is_tiled else (
            keyframe.rowsperstrip, keyframe.imagewidth
        )  # fmt: skip
        across = -(-keyframe.imagewidth // width)
        out = np.empty((rows[1] - rows[0], columns[1] - columns[0]), page_header_dtype(keyframe))
        down = range(rows[0] // height, -(-rows[1] // height))
        along = range(columns[0] // width, -(-columns[1] // width))
        for i, j in itertools.product(down, along):
            top, left = i * height, j * width
            part = self._segment(page, keyframe, i * across + j)
            first, last = max(rows[0], top), min(rows[1], top + part.shape[0])
            start, stop = max(columns[0], left), min(columns[1], left + part.shape[1])
            into = out[first - rows[0] : last - rows[0], start - columns[0] : stop - columns[0]]
            into[...] = part[first - top : last - top, start - left : stop - left]
        return out

    def _segment(self, page: Page, keyframe: tifffile.TiffPage, index: int) -> npt.NDArray[Any]:
        file = self._structure.filehandle
        file.seek(page.dataoffsets[index])
        data = file.read(page.databytecounts[index])
        # One tag may hold the coding tables of all JPEG tiles, for a tifffile with imagecodecs.
        tables = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}
        found, _, shape = keyframe.decode(data, index, **tables)
        if found is None or found.shape != shape or shape[0] != 1 or shape[3] != 1:
            raise ImageError(f"holds a strip or tile ({index}) of another shape than it says")
        return np.asarray(found[0, :, :, 0])

    def _pillow(self, page: Page, keyframe: tifffile.TiffPage) -> npt.NDArray[Any]:
        """A whole page."""
        if self._image is None:
            self._file.seek(0)
            self._image = TiffImagePlugin.TiffImageFile(self._file)
        self._image.seek(page.index)
        pixels = np.asarray(self._image)
        wanted = np.dtype(page_header_dtype(keyframe))
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        shape = (keyframe.imagelength, keyframe.imagewidth)
        if pixels.shape != shape or pixels.dtype.itemsize != wanted.itemsize:
            raise ImageError(f"decodes to {pixels.dtype} of shape {pixels.shape}, not as it says")
        # Pillow has no uint32: the same bits are read as signed ones.
        return np.ascontiguousarray(native).view(wanted)

    def close(self) -> None:
        """Close the file's structure."""
        self._structure.close()
