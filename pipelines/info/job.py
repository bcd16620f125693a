"""The job ``info``: tells what lies at a path, and reports it."""

import dataclasses
import pathlib

from pipelines.info.others import model_report, store_report
from pipelines.info.report import Report
from pipelines.info.view import view_report
from pipelines.info.volume import volume_report
from volumes import objects
from volumes.errors import RequestError, RunError
from volumes.inspection import METADATA, inspect, is_volume

_UNTRAINED = "untrained"
_CHECKPOINT = ("*.index", "checkpoint")
_LOOKED_FOR = (
    "store.json (an embedding store), "
    f"{', '.join(METADATA[:-1])} or {METADATA[-1]} (a volume) and {' or '.join(_CHECKPOINT)} (a "
    "model)"
)
_GIVE = (
    "give a volume's directory or URL, a view or TensorStore spec (inline, or @file.json), an "
    "embedding store, a checkpoint's prefix or directory, or a .keras file"
)
_NAMED = 4


@dataclasses.dataclass(frozen=True, slots=True)
class InfoConfig:
    """The request.

    Attributes:
        path: Path or URL of anything that this package works with.
    """

    path: str

    def __post_init__(self) -> None:
        """Refuse an empty path."""
        if not self.path.strip():
            raise RequestError(f"the path of info was empty; {_GIVE}")


def look(config: InfoConfig) -> Report:
    """Find out what lies at a path; nothing is written, and no voxel and no vector is read.

    Raises:
        RequestError: It is nothing known, or cannot be understood; the message says what was looked
            for.
        RunError: The storage fails.
    """
    path = config.path
    local = None if _is_spec(path) else objects.local_path(path)
    there = local is not None and local.exists()
    if path.partition(":")[0] == _UNTRAINED and not there:
        return model_report(path)
    if _is_spec(path):
        return view_report(path) or volume_report(inspect(path))
    if local is not None:
        return _local(path, local)
    url = _named(path)
    if _has_store(url):
        return store_report(url)
    if _may_be_volume(url):
        return volume_report(inspect(url))
    raise RequestError(f"{url} is nothing known here: looked for {_LOOKED_FOR}; {_GIVE}")


def _local(path: str, local: pathlib.Path) -> Report:
    """What lies at a local path."""
    if local.is_dir():
        if _has_store(path):
            return store_report(path)
        if is_volume(path):
            return volume_report(inspect(path))
        if any(any(local.glob(pattern)) for pattern in _CHECKPOINT):
            return model_report(path)
        found = objects.names(path)
        listed = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
        holds = f"it holds {listed}" if found else "it is empty"
        raise RequestError(
            f"{_named(path)} is nothing known here: looked in it for {_LOOKED_FOR} and found none "
            f"({holds}); {_GIVE}"
        )
    if local.suffix in (".keras", ".index") or local.with_name(local.name + ".index").is_file():
        return model_report(path)
    if local.is_file() and local.suffix == ".json":
        return view_report(f"@{path}") or volume_report(inspect(f"@{path}"))
    if local.is_file():
        raise RequestError(
            f"{_named(path)} is a file that is no model (.keras, or a checkpoint's .index) and no "
            "view or TensorStore spec (.json); sections (PNG, JPEG, TIFF), HDF5, NPY, MRC and "
            "NIfTI become a volume with: segclr-beam ingest"
        )
    raise RequestError(f"{_named(path)} does not exist; {_GIVE}")


def _is_spec(path: str) -> bool:
    """Whether the path is a TensorStore spec or URL."""
    if path.startswith("@") or path.lstrip().startswith("{"):
        return True
    local = objects.local_path(path)
    return "|" in path and not (local is not None and local.exists())


def _has_store(url: str) -> bool:
    """Whether a directory is an embedding store's."""
    try:
        return objects.exists(objects.join(url, "store.json"))
    except RunError:  # a server may refuse what is absent; what may be read is told below
        return False


def _may_be_volume(url: str) -> bool:
    """Whether a remote directory may be a volume's; its metadata tell."""
    try:
        return is_volume(url)
    except RunError:
        return True


def _named(path: str) -> str:
    return str(objects.redacted(path))
