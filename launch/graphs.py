"""``--graph FILE``: a job's Beam graph as text and as a picture, before it runs.

The text names every transform as it is in the graph that is handed to an engine: its unique name,
its URN, what it consists of, what it reads and what it gives. It holds no address, no path and no
pickled code, and keeps the order in which the graph was built, so the graphs of two engines, or of
two days, are compared with ``diff``.

A file of a graph is replaced by the next one; any other file is left alone, and the job refused.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import apache_beam as beam

from launch import drawing
from launch.drawing import Item, Use
from pipelines.request import refuse_empty, refuse_secrets, refuse_unwritable
from volumes import objects
from volumes.errors import RequestError

MARK = "segclr-beam graph"
"""Stands at the beginning of both files; what has it may be replaced."""

_TEXT, _PICTURE = ".txt", ".svg"

# The mark of a picture stands behind the tag that its kind of file begins with.
_MARKED_WITHIN = 200

# Beam prefixes the name of a collection with the length of its producer's.
_LENGTH = re.compile(r"^\d+")

_GROUPS = "beam:transform:group_by_key:v1"
_FLATTENS = "beam:transform:flatten:v1"
_PAR_DO = "beam:transform:pardo:v1"
_IMPULSE = "beam:transform:impulse:v1"
_SIDE = "python_side_input"

# The picture shows a job's transforms and the steps of each; what those consist of has no box.
_LEVELS = 2


@dataclasses.dataclass(slots=True, eq=False)
class GraphFiles:
    """Where the graph of a job is written.

    Attributes:
        job: The job.
        text: Location of the text, or None.
        picture: Location of the picture, or None.
        written: Whether they are written.
    """

    job: str
    text: str | None
    picture: str | None
    written: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The locations."""
        return tuple(f for f in (self.text, self.picture) if f is not None)

    def told(self, say: Callable[[str], None]) -> list[str]:
        """Say where the graph is, or that there is none; the files there are."""
        if self.written:
            say(f"graph: {', '.join(self.files)}")
            return list(self.files)
        say("graph: none was built, since there is nothing to do")
        return []

    def write(self, pipeline: beam.Pipeline) -> None:
        """Write the graph of a pipeline that is built."""
        proto = pipeline.to_runner_api()
        if self.text is not None:
            objects.write(self.text, text(proto, self.job).encode())
        if self.picture is not None:
            objects.write(self.picture, picture(proto, self.job).encode())
        self.written = True


def graph_files(job: str, given: str) -> GraphFiles:
    """What ``--graph FILE`` asks for: by its suffix one file, without one both.

    Raises:
        RequestError: It is no name of a graph's file, or another file has the name.
    """
    refuse_empty(graph=given)
    refuse_secrets("into the summary", graph=given)
    refuse_unwritable(graph=given)
    where = objects.absolute(given)
    suffix = pathlib.PurePosixPath(where).suffix
    if given.endswith("/") or suffix not in ("", _TEXT, _PICTURE):
        raise RequestError(
            f"--graph {given} says no form: FILE{_TEXT} is text, FILE{_PICTURE} is a picture, and "
            "FILE without a suffix stands for both; give one of these"
        )
    base = where.removesuffix(suffix)
    found = GraphFiles(
        job,
        base + _TEXT if suffix in ("", _TEXT) else None,
        base + _PICTURE if suffix in ("", _PICTURE) else None,
    )
    for file in found.files:
        path = objects.local_path(file)
        if path is not None and path.is_dir():
            raise RequestError(f"--graph {given} names the directory {file}; give another name")
        standing = objects.read(file)
        if standing is not None and MARK.encode() not in standing[:_MARKED_WITHIN]:
            raise RequestError(
                f"--graph {given} would replace {file}, which is not the file of a graph; only "
                "those are replaced: give another name, or remove the file"
            )
    return found


def text(proto: Any, job: str) -> str:
    """A graph as text, each transform in the order of building, before its parts.

    Args:
        proto: The pipeline as it is submitted, a ``beam_runner_api_pb2.Pipeline``.
        job: The job.
    """
    transforms = proto.components.transforms
    names = {
        key: _LENGTH.sub("", each.unique_name)
        for key, each in proto.components.pcollections.items()
    }
    lines = [f"# {MARK}: {job}"]
    for key in _ordered(proto):
        each = transforms[key]
        lines += ["", each.unique_name, f"  urn: {each.spec.urn}"]
        lines += [f"  part: {transforms[part].unique_name}" for part in each.subtransforms]
        lines += [f"  in: {tag} <- {names[c]}" for tag, c in sorted(each.inputs.items())]
        lines += [f"  out: {tag} -> {names[c]}" for tag, c in sorted(each.outputs.items())]
    return "\n".join(lines) + "\n"


def picture(proto: Any, job: str) -> str:
    """A graph as SVG: the job's transforms and the steps of each.

    Args:
        proto: The pipeline as it is submitted, a ``beam_runner_api_pb2.Pipeline``.
        job: The job.
    """
    tops = _tops(proto)
    consumed: dict[str, set[str]] = {}
    for key in _leaves(proto, tops):
        for collection in proto.components.transforms[key].inputs.values():
            consumed.setdefault(collection, set()).add(key)
    items = [_item(proto, key, consumed, 1) for key in tops]
    names = {key: _tag(each.unique_name) for key, each in proto.components.pcollections.items()}
    return drawing.svg(f"{MARK}: {job}", [i for i in items if i is not None], names)


def _tag(unique_name: str) -> str:
    """The tag of an output that is not the main one."""
    tag = unique_name.rpartition(".")[2]
    return "" if tag == "None" else tag


def _tops(proto: Any) -> list[str]:
    """The transforms that the job applied; the root of all is the pipeline itself."""
    found: list[str] = []
    for key in proto.root_transform_ids:
        root = proto.components.transforms[key]
        found += [key] if root.spec.urn else root.subtransforms
    return found


def _ordered(proto: Any) -> list[str]:
    """All transforms but the root, each before its parts."""
    found: list[str] = []
    waiting = _tops(proto)[::-1]
    while waiting:
        key = waiting.pop()
        found.append(key)
        waiting += list(proto.components.transforms[key].subtransforms)[::-1]
    return found


def _leaves(proto: Any, tops: list[str]) -> list[str]:
    """Transforms without parts that give something new."""
    found: list[str] = []
    waiting = list(tops)
    while waiting:
        key = waiting.pop()
        each = proto.components.transforms[key]
        waiting += each.subtransforms
        # What gives back its input does nothing, such as a Reshuffle that was turned off.
        if not each.subtransforms and set(each.outputs.values()) - set(each.inputs.values()):
            found.append(key)
    return found


def _item(proto: Any, key: str, consumed: dict[str, set[str]], level: int) -> Item | None:
    """What the picture shows of a transform; None for one that does nothing.

    Args:
        proto: The pipeline.
        key: The transform.
        consumed: The leaves that read each collection.
        level: How deep the transform lies; 1 for the job's own.
    """
    transforms = proto.components.transforms
    each = transforms[key]
    leaves = sorted(_leaves(proto, [key]))
    if not leaves:
        return None
    gives = {c for leaf in leaves for c in transforms[leaf].outputs.values()}
    reads: set[Use] = set()
    for leaf in leaves:
        for tag, collection in transforms[leaf].inputs.items():
            if collection not in gives:
                reads.add(Use(collection, tag.startswith(_SIDE)))
    parts = []
    if level < _LEVELS:
        parts = [_item(proto, part, consumed, level + 1) for part in each.subtransforms]
    return Item(
        name=each.unique_name.rpartition("/")[2] if "(" not in each.unique_name else _last(each),
        kind=_kind(proto, key, leaves),
        parts=tuple(p for p in parts if p is not None),
        reads=tuple(sorted(reads)),
        gives=tuple(sorted(c for c in gives if consumed.get(c, set()) - set(leaves))),
    )


def _last(each: Any) -> str:
    """The last part of a name whose brackets may hold a slash."""
    whole = str(each.unique_name)
    return whole[whole.rfind("/", 0, whole.index("(")) + 1 :]


def _kind(proto: Any, key: str, leaves: list[str]) -> drawing.Kind:
    """What a transform does, for the picture."""
    urns = {proto.components.transforms[leaf].spec.urn for leaf in leaves}
    if _GROUPS in urns:
        return "shuffle"
    if _IMPULSE in urns:
        return "start"
    if urns == {_FLATTENS}:
        return "flatten"
    return "work" if urns <= {_PAR_DO, _FLATTENS} else "other"
