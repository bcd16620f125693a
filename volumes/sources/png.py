"""PNG files of one grey value a pixel: headers without pixels, and pixels without silent damage.

Pillow decodes. It does not look at the checksums of the pixel data (of 2,000 single flipped bits,
two went unnoticed), so they are checked here first.
"""

import io
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import PngImagePlugin

from volumes.sources.headers import Header, ImageError

HEADER_BYTES = 33
"""Bytes from the start of the file that hold its header."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""The first bytes of every PNG file."""

_DTYPES = {("grey", 8): "uint8", ("grey", 16): "uint16"}
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


def parse_header(data: bytes) -> Header:
    """The header in a file's first ``HEADER_BYTES`` bytes.

    Raises:
        ImageError: They are not the beginning of a PNG file.
    """
    if data[:8] != SIGNATURE:
        begins = f"it begins with {data[:8]!r}" if data else "it is empty"
        raise ImageError(f"is not a PNG file ({begins})")
    if len(data) < HEADER_BYTES:
        raise ImageError(f"ends within its header, after {len(data)} bytes")
    length, kind, body = struct.unpack(">I4s13s", data[8:29])
    if length != 13 or kind != b"IHDR" or struct.pack(">I", zlib.crc32(data[12:29])) != data[29:33]:
        raise ImageError("has a damaged header")
    width, height, depth, colour = struct.unpack(">IIBB", body[:10])
    named = _COLOURS.get(colour, f"colour type {colour}")
    return Header("PNG", width, height, named, depth, _DTYPES.get((named, depth)))


def header(file: BinaryIO) -> Header:
    """The header of a file that is open at its start.

    Raises:
        ImageError: It is no PNG file, or its header is damaged.
    """
    return parse_header(file.read(HEADER_BYTES))


def decode(data: bytes) -> npt.NDArray[Any]:
    """The pixels of a grey PNG file, ``[row, column]``, uint8 or uint16.

    Raises:
        ImageError: The file is cut short or damaged, or not grey with 8 or 16 bits.
    """
    found = parse_header(data[:HEADER_BYTES])
    if found.dtype is None:
        raise ImageError(f"is {found.colour} with {found.depth} bits")
    _check_sums(data)
    try:
        # Not Image.open: it refuses large images, which sections are.
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        raise ImageError(f"cannot be decoded: {e}") from e
    if pixels.shape != (found.height, found.width) or pixels.dtype != found.dtype:
        raise ImageError(
            f"decodes to {pixels.dtype} of shape {pixels.shape}, not as its header says"
        )
    return pixels


def _check_sums(data: bytes) -> None:
    """Walk the file's chunks up to its end mark, each against its checksum."""
    view = memoryview(data)
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", view[at : at + 8])
        end = at + 12 + length
        if end > len(data):
            break
        if struct.pack(">I", zlib.crc32(view[at + 4 : end - 4])) != view[end - 4 : end]:
            raise ImageError(f"is damaged: its {kind!r} chunk at byte {at} fails its checksum")
        if kind == b"IEND":
            return
        at = end
    raise ImageError(f"is cut short: it ends at byte {len(data)}, before its end mark")
