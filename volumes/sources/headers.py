"""What the header of an image file says, whatever its format."""

import dataclasses


class ImageError(ValueError):
    """The bytes are no whole image; the message says why and is to follow the file's name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What an image file's header says.

    Attributes:
        format: ``PNG``, ``JPEG`` or ``TIFF``.
        width: Pixels in a row.
        height: Rows.
        colour: ``grey``, ``RGB``, ``palette``, ...
        depth: Bits of a sample.
        dtype: Name of the dtype of its pixels in native byte order; None where they are not one
            grey value each in whole bytes.
    """

    format: str
    width: int
    height: int
    colour: str
    depth: int
    dtype: str | None

    def __str__(self) -> str:
        """The size and the dtype, for messages."""
        held = self.dtype or f"{self.colour} with {self.depth} bits a sample"
        return f"{self.width} x {self.height} pixels of {held}"
