"""Where embeddings live: a store's documents, generations, runs and published versions.

    STORE/store.json                        format, D, lattice (box shape, anchored at voxel 0)
    STORE/generations/G/manifest.json       a generation (one model, one set of parameters), and
                                            what it is being brought to: inputs and nodes
    STORE/generations/G/partitions/I_J_K/   an OCDBT database that owns a block of boxes
    STORE/runs/RUN/                         who ran, what it walked and turned away, how it ended
    STORE/versions/V.json                   published last: each partition's version and digests
    STORE/agglomerations/D.parquet          tables that map supervoxels to bodies

Everything but the partitions and the tables is a small JSON document, written whole. Versions are
created only where none is; a manifest is replaced by the one job that may, which is alone then.
"""

import datetime
import secrets
from collections.abc import Iterator
from typing import Any

from volumes import documents, objects
from volumes.errors import RequestError, RunError
from volumes.generation import Generation, coordinate_of
from volumes.receipts import json_digest
from volumes.seals import NAMED, Seal, added

_STORE = ("segclr-store", 1)
_MANIFEST = ("segclr-manifest", 1)
_VERSION = ("segclr-version", 1)
_RUN = ("segclr-run", 1)

FIRST_GENERATION = "1"
"""The generation that embed writes; a new model or parameter makes the next."""

# What two versions of the same content have in common.
_SAME = ("digest", "identity", "failed_boxes", "undone_boxes", "nodes", "unplaced")


def read_store(url: str) -> dict[str, Any] | None:
    """The body of ``store.json``; None where the location is empty or absent.

    Raises:
        RequestError: Something else stands at the location.
    """
    where = objects.join(url, "store.json")
    data = objects.read(where)
    if data is not None:
        try:
            return documents.load(data, *_STORE, where)
        except RunError as e:
            raise RequestError(f"{objects.redacted(url)} is not a store to write to: {e}") from e
    path = objects.local_path(url)
    if path is not None and path.exists() and not path.is_dir():
        raise RequestError(
            f"--output {url} is a file; a store is a directory: name a new or empty one"
        )
    if others := [n for n in objects.names(url) if not _left_by_a_kill(n)]:
        raise RequestError(
            f"--output {objects.redacted(url)} is not empty and not an embedding store (it has "
            f"{', '.join(others[:3])}); nothing of it was touched: name a new or empty directory"
        )
    return None


def _left_by_a_kill(name: str) -> bool:
    """Whether a name is that of a ``store.json`` whose writer was killed before it was whole."""
    return name.startswith(".store.json.") and name.endswith(".tmp")


def read_manifest(url: str, generation: str) -> dict[str, Any] | None:
    """The body of a generation's manifest, or None where there is none."""
    where = objects.join(url, "generations", generation, "manifest.json")
    data = objects.read(where)
    return None if data is None else documents.load(data, *_MANIFEST, where)


def refuse_other_identity(url: str, generation: str, identity: dict[str, Any]) -> bool:
    """Whether the store holds this very run already; reads only.

    Args:
        url: The store.
        generation: The generation's name.
        identity: What makes a run the same run, a flat JSON object.

    Returns:
        False where there is no store yet, True where its manifest has the same identity.

    Raises:
        RequestError: Another run's store; the message names each field that differs.
    """
    if read_store(url) is None:
        return False
    manifest = read_manifest(url, generation)
    if manifest is None:
        return False
    theirs = manifest.get("identity", {})
    differing = [
        f"{key}: {theirs.get(key)!r} there, {identity.get(key)!r} asked"
        for key in sorted(theirs.keys() | identity.keys())
        if theirs.get(key) != identity.get(key)
    ]
    if differing:
        raise RequestError(
            f"--output {objects.redacted(url)} belongs to another run; it differs in "
            f"{'; '.join(differing)}. Rows of two runs are never mixed: name a new --output, or "
            "give the inputs and parameters of that store"
        )
    return True


def prepare(generation: Generation, manifest: dict[str, Any], *, replace: bool = False) -> None:
    """Write the store's and the generation's documents.

    Args:
        generation: The generation to be written.
        manifest: The run's manifest.
        replace: Whether it takes the place of another run's; otherwise its ``identity`` must be
            that of a manifest already there.
    """
    body = {"width": generation.width, "lattice": list(generation.lattice)}
    where = objects.join(generation.store, "store.json")
    first = objects.create(where, documents.dump(*_STORE, body))
    found = body if first else documents.load(objects.read(where) or b"", *_STORE, where)
    if generation.name == FIRST_GENERATION and found != body:
        raise RequestError(
            f"{objects.redacted(generation.store)} holds embeddings of width "
            f"{found.get('width')} in boxes of {found.get('lattice')}; this run makes width "
            f"{generation.width} in boxes of {list(generation.lattice)}: name a new --output"
        )
    where = objects.join(generation.url, "manifest.json")
    document = documents.dump(*_MANIFEST, manifest)
    if not objects.create(where, document):
        if replace:
            objects.write(where, document)
        else:
            refuse_other_identity(generation.store, generation.name, manifest["identity"])


def current(url: str) -> tuple[str, dict[str, Any] | None]:
    """The generation that a store is at, and its manifest; the first one's name where none is."""
    names = generations(url)
    if not names:
        return FIRST_GENERATION, None
    return names[-1], read_manifest(url, names[-1])


def generations(url: str) -> list[str]:
    """Names of a store's generations, in the order in which they were begun.

    A generation begins and ends with its manifest: a directory without one is what a start or a
    removal left that was killed.
    """
    below = objects.join(url, "generations")
    found = generation_directories(url)
    return [n for n in found if objects.exists(objects.join(below, n, "manifest.json"))]


def refuse_headless(url: str) -> None:
    """Refuse a store whose newest generation has partitions and no manifest.

    Raises:
        RunError: It is so, and what its boxes are cannot be told.
    """
    begun = generations(url)
    for name in generation_directories(url):
        if name in begun or (begun and int(name) < int(begun[-1])):
            continue
        where = objects.join(url, "generations", name)
        if objects.names(objects.join(where, "partitions")):
            raise RunError(
                f"{objects.redacted(where)} has partitions and no manifest.json, which says what "
                "its boxes are: the store is damaged, and nothing of it was changed; restore that "
                "file from a copy"
            )


def generation_directories(url: str) -> list[str]:
    """Names under which a store has anything of a generation, in their order."""
    found = objects.names(objects.join(url, "generations"))
    return sorted((n[:-1] for n in found if n.endswith("/") and n[:-1].isdigit()), key=int)


def new_run() -> str:
    """A name for a run: the time of its start in UTC, and eight random digits."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def write_run(store: str, run: str, what: str, body: dict[str, Any]) -> None:
    """Write one of a run's documents: ``run``, ``manifest``, ``walked``, ``summary``, ..."""
    where = objects.join(store, "runs", run, f"{what}.json")
    objects.write(where, documents.dump(f"{_RUN[0]}-{what}", _RUN[1], body))


def read_run(store: str, run: str, what: str) -> dict[str, Any] | None:
    """One of a run's documents, or None where it was not written."""
    where = objects.join(store, "runs", run, f"{what}.json")
    data = objects.read(where)
    return None if data is None else documents.load(data, f"{_RUN[0]}-{what}", _RUN[1], where)


def version_numbers(store: str) -> list[int]:
    """Published versions, ascending."""
    found = objects.names(objects.join(store, "versions"))
    return sorted(int(n[:-5]) for n in found if n.endswith(".json") and n[:-5].isdigit())


def read_version(store: str, number: int) -> dict[str, Any] | None:
    """The document of a published version, or None where there is none."""
    where = objects.join(store, "versions", f"{number}.json")
    data = objects.read(where)
    return None if data is None else documents.load(data, *_VERSION, where)


def latest_version(store: str) -> tuple[int, dict[str, Any]] | None:
    """The newest published version and its document; None where nothing is published."""
    numbers = version_numbers(store)
    if not numbers:
        return None
    document = read_version(store, numbers[-1])
    return None if document is None else (numbers[-1], document)


def publish(generation: Generation, seals: list[Seal], body: dict[str, Any]) -> int:
    """Publish the partitions' sealed state as a version, unless the latest says the same.

    It says the same where rows, accounting and identity are the same; what was read may differ.

    Args:
        generation: The generation the seals are of.
        seals: One seal a partition. Partitions without a box are left out.
        body: What else the version records: run, identity, time, rows without a box.

    Returns:
        The number of the version that holds exactly this content.
    """
    held = [s for s in seals if s.boxes or s.nodes]
    ordered = sorted(held, key=lambda s: coordinate_of(s.partition))
    content = json_digest([generation.name, [[s.partition, s.digest] for s in ordered]])
    document = {
        **body,
        "generation": generation.to_json() | {"store": ""},
        "digest": content,
        "inputs": json_digest([[s.partition, s.inputs] for s in ordered]),
        "identities": json_digest([[s.partition, s.identities] for s in ordered]),
        "boxes": sum(s.boxes for s in ordered),
        "nodes": sum(s.nodes for s in ordered),
        "rows": sum(s.rows for s in ordered),
        "rejected": dict(added(s.rejected for s in ordered)),
        "failed": [f for s in ordered for f in s.failed][:NAMED],
        "failed_boxes": sum(s.failed_boxes for s in ordered),
        "failed_nodes": sum(s.failed_nodes for s in ordered),
        "undone_boxes": sum(s.undone_boxes for s in ordered),
        "partitions": {
            s.partition: {
                "version": s.version,
                "boxes": s.boxes,
                "rows": s.rows,
                "digest": s.digest,
            }
            for s in ordered
        },
    }
    while True:
        latest = latest_version(generation.store)
        if latest is not None and all(latest[1].get(k) == document.get(k) for k in _SAME):
            return latest[0]
        number = latest[0] + 1 if latest else 1
        where = objects.join(generation.store, "versions", f"{number}.json")
        if objects.create(where, documents.dump(*_VERSION, document)):
            return number


def partitions_present(generation: Generation) -> Iterator[str]:
    """Names of the partitions that exist now, by listing; for work under way."""
    for name in objects.names(objects.join(generation.url, "partitions")):
        if name.endswith("/"):
            yield name[:-1]
