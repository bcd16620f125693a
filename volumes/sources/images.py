"""Files of one image: told apart by their first bytes, described by headers, decoded whole.

A section is a file of one of these formats; what it is called plays no part.
"""

from typing import Any, BinaryIO

import numpy.typing as npt

from volumes.sources import jpeg, png, tiff
from volumes.sources.headers import Header, ImageError

SIGNATURE_BYTES = 16
"""Bytes from the start of a file that tell its format."""

_SIGNATURES = (
    ("PNG", png.SIGNATURE),
    ("JPEG", jpeg.SIGNATURE),
    *(("TIFF", signature) for signature in tiff.SIGNATURES),
)
_DECODERS = {"PNG": png.decode, "JPEG": jpeg.decode, "TIFF": tiff.decode}


def format_of(head: bytes) -> str | None:
    """``PNG``, ``JPEG`` or ``TIFF`` by a file's first bytes (at least 16); None for others."""
    return next((name for name, begin in _SIGNATURES if head.startswith(begin)), None)


def header(file: BinaryIO, size: int | None = None) -> Header:
    """What a file's header says; no pixel is read.

    Args:
        file: The file, open, at its start.
        size: Bytes of the file, where they cannot be found by seeking.

    Raises:
        ImageError: It is no image of these formats, or its header is damaged.
    """
    head = file.read(SIGNATURE_BYTES)
    found = format_of(head)
    if found is None:
        begins = f"it begins with {head[:8]!r}" if head else "it is empty"
        raise ImageError(f"is not a PNG, JPEG or TIFF file ({begins})")
    file.seek(0)
    if found == "TIFF":
        return tiff.header(file, size)
    return png.header(file) if found == "PNG" else jpeg.header(file)


def decode(data: bytes) -> npt.NDArray[Any]:
    """The pixels of a whole file, ``[row, column]``, native byte order.

    Raises:
        ImageError: It is cut short or damaged, or holds what no section is made of.
    """
    found = format_of(data[:SIGNATURE_BYTES])
    if found is None:
        begins = f"it begins with {data[:8]!r}" if data else "it is empty"
        raise ImageError(f"is not a PNG, JPEG or TIFF file ({begins})")
    return _DECODERS[found](data)
