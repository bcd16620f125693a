"""JPEG files of one grey value a pixel: headers without pixels, and pixels of whole files.

Pillow decodes. JPEG has no checksums: a flipped bit in the pixels changes some of them unnoticed,
while a file that is cut short is refused.
"""

import io
import struct
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import JpegImagePlugin

from volumes.sources.headers import Header, ImageError

SIGNATURE = b"\xff\xd8\xff"
"""The first bytes of every JPEG file."""

_SCAN = 0xDA
_END = b"\xff\xd9"
_BARE = {0x01, *range(0xD0, 0xD8)}
# Start of frame, of any coding; the three left out are tables.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_COLOURS = {1: "grey", 3: "colour", 4: "CMYK"}


def header(file: BinaryIO) -> Header:
    """The header of a file that is open at its start; only its segments before the pixels are read.

    Raises:
        ImageError: It is no JPEG file, or ends before its pixels.
    """
    if file.read(2) != SIGNATURE[:2]:
        raise ImageError("is not a JPEG file")
    while True:
        marker, body = _segment(file)
        if marker in _FRAMES:
            return _frame(body, file.tell())
        if marker == _SCAN:
            raise ImageError("has a damaged header: its pixels begin before their size is told")


def _segment(file: BinaryIO) -> tuple[int, bytes]:
    """The next marker, with what a frame's marker holds; the others' is skipped."""
    at = file.tell()
    begin = file.read(2)
    if len(begin) < 2:
        raise ImageError(f"ends within its header, after {at} bytes")
    if begin[0] != 0xFF:
        raise ImageError(f"has a damaged header: byte {at} begins no segment")
    marker = begin[1]
    if marker == 0xFF:  # padding
        file.seek(at + 1)
        return marker, b""
    if marker in _BARE:
        return marker, b""
    length = file.read(2)
    if len(length) < 2:
        raise ImageError(f"ends within its header, after {at + 2} bytes")
    size = struct.unpack(">H", length)[0] - 2
    if marker in _FRAMES:
        return marker, file.read(max(0, size))
    file.seek(at + 4 + max(0, size))
    return marker, b""


def _frame(body: bytes, at: int) -> Header:
    if len(body) < 6:
        raise ImageError(f"ends within its header, after {at} bytes")
    depth, height, width, samples = struct.unpack(">BHHB", body[:6])
    colour = _COLOURS.get(samples, f"{samples} samples")
    dtype = "uint8" if (samples, depth) == (1, 8) else None
    return Header("JPEG", width, height, colour, depth, dtype)


def decode(data: bytes) -> npt.NDArray[Any]:
    """The pixels of a grey JPEG file, ``[row, column]``, uint8.

    Raises:
        ImageError: The file is cut short or damaged, or not grey with 8 bits.
    """
    file = io.BytesIO(data)
    found = header(file)
    if found.dtype is None:
        raise ImageError(f"is {found.colour} with {found.depth} bits")
    # Pillow takes what is left of a scan for all of it where only the end mark is lost.
    if data.rfind(_END) < file.tell():
        raise ImageError(f"is cut short: it ends at byte {len(data)}, before its end mark")
    try:
        # Not Image.open: it refuses large images, which sections are.
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        raise ImageError(f"cannot be decoded: {e}") from e
    if pixels.shape != (found.height, found.width) or pixels.dtype != found.dtype:
        raise ImageError(
            f"decodes to {pixels.dtype} of shape {pixels.shape}, not as its header says"
        )
    return pixels
