"""The job ``versions``: which versions of an embedding store are published, told from documents."""

import dataclasses
from typing import Any

from pipelines.request import refuse_empty, store_url
from segclr.errors import ModelError
from segclr.model import ModelSpec
from volumes import store

_UNKNOWN = "not recorded"


@dataclasses.dataclass(frozen=True, slots=True)
class VersionsConfig:
    """The request.

    Attributes:
        store: The embedding store.
    """

    store: str

    def __post_init__(self) -> None:
        """Refuse an empty location."""
        refuse_empty(store=self.store)


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """A published version, as documents tell it.

    Attributes:
        version: Its number.
        published: When, UTC, ISO 8601.
        job: What made it.
        run: The run that made it.
        generation: Its generation.
        model: The model, in a line.
        rows: Rows of all boxes.
        boxes: Committed boxes.
        nodes: Planned nodes.
        failed_boxes: Boxes that are set aside.
        undone_boxes: Boxes that were left undone.
        digest: Digest of its content.
    """

    version: int
    published: str
    job: str
    run: str
    generation: str
    model: str
    rows: int
    boxes: int
    nodes: int
    failed_boxes: int
    undone_boxes: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """The version as JSON."""
        return dataclasses.asdict(self)


def listed(config: VersionsConfig) -> list[Published]:
    """The versions of a store, oldest first; those that ``compact`` removed are not among them.

    Raises:
        RequestError: There is no store.
        RunError: A document is damaged.
    """
    url = store_url(config.store)
    models: dict[str, str] = {}
    found = []
    for number in store.version_numbers(url):
        document = store.read_version(url, number)
        if document is not None:  # else it was removed since
            found.append(_published(url, number, document, models))
    return found


def table(versions: list[Published]) -> list[str]:
    """The versions for people: a header and a line each."""
    head = ("version", "published", "job", "run", "generation", "rows", "boxes", "nodes")
    rows: list[tuple[str, ...]] = [(*head, "failed", "undone", "model")]
    for v in versions:
        counts = (v.rows, v.boxes, v.nodes, v.failed_boxes, v.undone_boxes)
        about = (str(v.version), v.published, v.job, v.run, v.generation)
        rows.append((*about, *(f"{n:,}" for n in counts), v.model))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _published(
    url: str, number: int, document: dict[str, Any], models: dict[str, str]
) -> Published:
    generation, run = document["generation"]["name"], str(document.get("run", ""))
    if generation not in models:
        models[generation] = _model(url, generation, run)
    return Published(
        version=number,
        published=str(document.get("published", _UNKNOWN)),
        job=str((store.read_run(url, run, "run") or {}).get("job", _UNKNOWN)) if run else _UNKNOWN,
        run=run or _UNKNOWN,
        generation=generation,
        model=models[generation],
        rows=int(document["rows"]),
        boxes=int(document["boxes"]),
        nodes=int(document["nodes"]),
        failed_boxes=int(document["failed_boxes"]),
        undone_boxes=int(document["undone_boxes"]),
        digest=document["digest"],
    )


def _model(url: str, generation: str, run: str) -> str:
    """The model in a line, from the manifest of its generation, or else of its run."""
    for manifest in (store.read_manifest(url, generation), _manifest_of(url, run)):
        if manifest is None or "model" not in manifest:
            continue
        try:
            return ModelSpec.from_json(manifest["model"]).title
        except ModelError:  # other software's description: versions are listed all the same
            continue
    return _UNKNOWN


def _manifest_of(url: str, run: str) -> dict[str, Any] | None:
    return store.read_run(url, run, "manifest") if run else None
