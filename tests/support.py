"""What tests of several packages share."""

import importlib.metadata
import pathlib

import pytest

_SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def shared(*parts: str) -> pathlib.Path:
    """A path below ``../shared``, or a skip with the reason where it is absent."""
    path = _SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference data at ../shared/{'/'.join(parts)}, which is absent")
    return path


def tells_of_quality() -> bool:
    """Whether this TensorStore tells the level of PNG and the quality of JPEG of what it opens."""
    return tuple(int(n) for n in importlib.metadata.version("tensorstore").split(".")) >= (0, 1, 86)
