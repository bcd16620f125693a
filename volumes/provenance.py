"""What made a thing and when, for manifests and volume attributes: recorded, never compared."""

import datetime
import importlib.metadata
import platform

_PACKAGES = ("apache-beam", "h5py", "numpy", "pillow", "tensorstore")


def version() -> str:
    """This package's version; ``uninstalled`` in a checkout that was not installed."""
    return _version("segclr-beam", "uninstalled")


def software() -> dict[str, str]:
    """Versions of Python, of this package and of what it stands on; imports none of them."""
    found = {name: _version(name, "absent") for name in _PACKAGES}
    return {"segclr-beam": version(), "python": platform.python_version(), **found}


def now() -> str:
    """The time in UTC as ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(name: str, otherwise: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return otherwise
