"""What tests of several packages share."""

import pathlib

import pytest

_SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def shared(*parts: str) -> pathlib.Path:
    """A path below ``../shared``, or a skip with the reason where it is absent."""
    path = _SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference data at ../shared/{'/'.join(parts)}, which is absent")
    return path
