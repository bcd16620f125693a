"""Numbers as plans print them."""

from volumes.geometry import Vec


def shape_text(shape: Vec) -> str:
    """A shape for people: ``1,024 x 512 x 64``."""
    return " x ".join(f"{n:,}" for n in shape)


def bytes_text(count: int) -> str:
    """Bytes for people: three digits and a unit of 1,000."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB", "EB"):
        if value < 999.5 or unit == "EB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"
