"""PNG files of one grey value a pixel: headers without pixels, and pixels without silent damage.

Pillow decodes. It does not look at the checksums of the pixel data (of 2,000 single flipped bits,
two went unnoticed), so they are checked here first.
"""

import dataclasses
import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import PngImagePlugin

HEADER_BYTES = 33
"""Bytes from the start of the file that hold its header."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DTYPES = {("grey", 8): "uint8", ("grey", 16): "uint16"}
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


class PngError(ValueError):
    """The bytes are no whole PNG file; the message says why and is to follow the file's name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What a PNG file's header says.

    Attributes:
        width: Pixels in a row.
        height: Rows.
        colour: ``grey``, ``RGB``, ``palette``, ``grey with alpha`` or ``RGBA``.
        depth: Bits of a sample.
    """

    width: int
    height: int
    colour: str
    depth: int

    @property
    def dtype(self) -> str | None:
        """Name of the dtype of its pixels; None unless it is grey with 8 or 16 bits."""
        return _DTYPES.get((self.colour, self.depth))


def parse_header(data: bytes) -> Header:
    """The header in a file's first ``HEADER_BYTES`` bytes.

    Raises:
        PngError: They are not the beginning of a PNG file.
    """
    if data[:8] != _SIGNATURE:
        begins = f"it begins with {data[:8]!r}" if data else "it is empty"
        raise PngError(f"is not a PNG file ({begins})")
    if len(data) < HEADER_BYTES:
        raise PngError(f"ends within its header, after {len(data)} bytes")
    length, kind, body = struct.unpack(">I4s13s", data[8:29])
    if length != 13 or kind != b"IHDR" or struct.pack(">I", zlib.crc32(data[12:29])) != data[29:33]:
        raise PngError("has a damaged header")
    width, height, depth, colour = struct.unpack(">IIBB", body[:10])
    return Header(width, height, _COLOURS.get(colour, f"colour type {colour}"), depth)


def decode(data: bytes) -> npt.NDArray[Any]:
    """The pixels of a grey PNG file, ``[row, column]``, uint8 or uint16.

    Raises:
        PngError: The file is cut short or damaged, or not grey with 8 or 16 bits.
    """
    header = parse_header(data[:HEADER_BYTES])
    if header.dtype is None:
        raise PngError(f"is {header.colour} with {header.depth} bits")
    _check_sums(data)
    try:
        # Not Image.open: it refuses large images, which sections are.
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        raise PngError(f"cannot be decoded: {e}") from e
    if pixels.shape != (header.height, header.width) or pixels.dtype != header.dtype:
        raise PngError(f"decodes to {pixels.dtype} of shape {pixels.shape}, not as its header says")
    return pixels


def _check_sums(data: bytes) -> None:
    """Walk the file's chunks up to its end mark, each against its checksum."""
    view = memoryview(data)
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", view[at : at + 8])
        end = at + 12 + length
        if end > len(data):
            break
        if struct.pack(">I", zlib.crc32(view[at + 4 : end - 4])) != view[end - 4 : end]:
            raise PngError(f"is damaged: its {kind!r} chunk at byte {at} fails its checksum")
        if kind == b"IEND":
            return
        at = end
    raise PngError(f"is cut short: it ends at byte {len(data)}, before its end mark")
