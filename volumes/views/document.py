"""The view document, as a person writes it, and how its volumes are found.

::

    {"format": "segclr-beam-view", "format_version": 1,
     "of": VOLUME | [VOLUME, ...],
     "steps": [{"op": "crop", "start": [0, 0, 0], "stop": [64, 64, 64]}, ...]}

A VOLUME is a path or URL, a TensorStore URL, a TensorStore JSON spec, another view, ``{"file":
"x.json"}`` (the same as ``"@x.json"``), or ``{"volume": VOLUME, ...}`` with what it does not state
itself: ``kind``, ``scale``, ``voxel_size_nm``, ``origin_vx``, ``axes``. Several volumes are first
joined: by ``stack``, ``concat`` or ``overlay``. Paths in a file are relative to that file.

Inside a view an array may have any axes, such as the channels of an image; what comes out has x, y
and z.
"""

import dataclasses
import json
import os
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from volumes import objects
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3, vec
from volumes.levels import SPATIAL, floats, named_axes
from volumes.redaction import redacted
from volumes.spec import Kind, canonical
from volumes.views import functions, members, values
from volumes.views.members import Json, Members
from volumes.views.operations import JOINING, step_of
from volumes.views.tree import Applied, Chain, Leaf, Node

FORMAT = "segclr-beam-view"
FORMAT_VERSION = 1

DEPTH = 32
"""Views inside views, at most."""

_VOLUMES = 100_000
_STEPS = 256
_SHOWN = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Stated:
    """What a view says of a volume beside its place."""

    kind: Kind | None = None
    scale: Vec3 | None = None
    voxel_size_nm: Vec3 | None = None
    origin_vx: Vec | None = None
    axes: tuple[str, ...] | None = None


ResolveLeaf = Callable[[str, Stated], Leaf]
"""Finds out what a volume that is no view is, from its metadata."""


def is_view(document: Any) -> bool:
    """Whether a JSON value is a view, and not a TensorStore spec."""
    return isinstance(document, dict) and "format" in document and "driver" not in document


def view_in(volume: str) -> Json | None:
    """The view that a VOLUME is, inline or as ``@file.json``; None where it is something else."""
    text: str | bytes | None = None
    if volume.startswith("@"):
        text = objects.read(volume[1:])
    elif volume.lstrip().startswith("{"):
        text = volume
    try:
        document = None if text is None else redacted(json.loads(text))
    except RecursionError as e:
        raise RequestError(
            f"{volume[:_SHOWN]} is nested too deep; views may lie {DEPTH} deep in one another"
        ) from e
    except ValueError:  # which is told where a TensorStore spec is read
        return None
    return document if is_view(document) else None


class Documents:
    """Reads a view with all that it is made of.

    Args:
        resolve: For the volumes that are no views.
        allow_functions: Packages whose functions may run.
    """

    def __init__(self, resolve: ResolveLeaf, allow_functions: Sequence[str] = ()) -> None:
        """Nothing is read yet."""
        self._resolve = resolve
        self._allow = tuple(allow_functions)
        self._known: dict[tuple[str, Stated], Leaf] = {}
        self._views: dict[str, tuple[Chain, int]] = {}
        self._count = 0

    def read(self, volume: str, name: str) -> Chain:
        """The view that a VOLUME is.

        Args:
            volume: As the user gave it.
            name: The same, as messages have it.

        Raises:
            RequestError: It is wrong, refers to itself, or a volume of it is.
        """
        found = self._text(volume, "", (), _Place(_short(name), 0))
        assert isinstance(found, Chain)  # the caller asked view_in
        return found

    def step(self, document: Json, base: str = "") -> tuple[Json, tuple[Node, ...]]:
        """A step as it is kept, and the volumes of its own.

        Raises:
            RequestError: It is wrong.
        """
        return self._step(document, base, (), _Place("the step", 0))

    def volume(self, value: Any, base: str = "") -> Node:
        """A VOLUME inside a view: a text or an object."""
        return self._volume(value, base, (), _Place("the volume", 0))

    def _text(self, volume: str, base: str, above: tuple[str, ...], place: "_Place") -> Node:
        if volume.startswith("@"):
            file = _placed(volume[1:], base)
            identity = _identity(file)
            if identity in above:
                circle = " -> ".join([*above[above.index(identity) :], identity])
                raise RequestError(
                    f"{place.name} refers to itself: {circle}; a view is made of volumes that are "
                    "there without it: take the reference out"
                )
            if identity in self._views:
                return self._again(identity, place)
            document = view_in(f"@{file}")
            if document is None:
                return self._leaf(f"@{file}", Stated())
            before = self._count
            below = dataclasses.replace(place, name=f"@{redacted(file)}")
            found = self._view(document, posixpath.dirname(file), (*above, identity), below)
            self._views[identity] = (found, self._count - before)
            return found
        document = view_in(volume)
        if document is not None:
            return self._view(document, base, above, place)
        if volume.lstrip().startswith("{"):
            return self._leaf(volume, Stated())
        return self._leaf(_placed(volume, base), Stated())

    def _again(self, identity: str, place: "_Place") -> Chain:
        """A view in a file that was read before, counted as often as it is used."""
        found, count = self._views[identity]
        self._counted(count, place)
        _check_depth(place.depth + found.depth, place.name)
        return found

    def _counted(self, count: int, place: "_Place") -> None:
        self._count += count
        if self._count > _VOLUMES:
            raise _ToldError(
                f"{place.name} is made of more than {_VOLUMES:,} volumes, each counted as often "
                "as it is used; convert the inner views to volumes first"
            )

    def _view(self, document: Json, base: str, above: tuple[str, ...], place: "_Place") -> Chain:
        _check_depth(place.depth + 1, place.name)
        inner = dataclasses.replace(place, depth=place.depth + 1)
        steps, inputs = _parts(document, place.name)
        nodes = tuple(self._volume(v, base, above, inner) for v in inputs)
        applied = []
        for i, step in enumerate(steps):
            try:
                kept, own = self._step(members.obj(step, "a step"), base, above, inner)
                if i and kept["op"] in JOINING:
                    raise RequestError(
                        "joins several volumes, and stands after another step; it must be the "
                        'first: make the view before it one of the volumes in "of"'
                    )
                applied.append(Applied(step_of(kept), own))
            except _ToldError:
                raise
            except RequestError as e:
                op = step.get("op") if isinstance(step, dict) else None
                raise _ToldError(f"{place.name}: step {i + 1} ({op}): {e}") from e
        chain = Chain(nodes, tuple(applied))
        try:
            chain.check()
        except RequestError as e:
            raise _ToldError(f"{place.name}: {e}") from e
        return chain

    def _step(
        self, step: Json, base: str, above: tuple[str, ...], place: "_Place"
    ) -> tuple[Json, tuple[Node, ...]]:
        kept = dict(step)
        nodes: tuple[Node, ...] = ()
        op = Members(kept).take("op", members.text)
        if op == "mask":
            by = Members(kept).take("by", lambda v, _: v)
            nodes = (self._volume(by, base, above, place),)
            del kept["by"]
        elif op == "relabel" and "table" in kept:
            url = objects.absolute(_placed(members.text(kept["table"], "table"), base))
            kept["table"] = {"url": url, "digest": values.digest_of(url)}
        elif op == "function":
            if "source" in kept:
                raise RequestError("has no member 'source'; it is found where the view is read")
            function = members.text(kept.get("function", ""), "function")
            functions.allowed(function, self._allow)
            kept["source"] = functions.source_of(function)
        return kept, nodes

    def _volume(self, value: Any, base: str, above: tuple[str, ...], place: "_Place") -> Node:
        self._counted(1, place)
        if isinstance(value, str) and value:
            return self._text(value, base, above, place)
        if not isinstance(value, dict):
            raise _ToldError(
                f"{place.name} is made of {str(value)[:_SHOWN]!r}, which is no volume; give a "
                "path, a URL, a TensorStore spec or another view"
            )
        if "volume" in value:
            return self._stated(value, base, above, place)
        if value.keys() == {"file"}:
            return self._text(f"@{members.text(value['file'], 'file')}", base, above, place)
        if is_view(value):
            return self._view(value, base, above, place)
        return self._leaf(canonical(value), Stated())

    def _stated(self, value: Json, base: str, above: tuple[str, ...], place: "_Place") -> Node:
        given = Members(value)
        try:
            volume = given.take("volume", lambda v, _: v)
            stated = Stated(
                kind=given.maybe("kind", _kind, None),
                scale=given.maybe("scale", _three, None),
                voxel_size_nm=given.maybe("voxel_size_nm", _three, None),
                origin_vx=given.maybe("origin_vx", _voxel, None),
                axes=given.maybe("axes", _axes, None),
            )
            given.done()
        except RequestError as e:
            raise _ToldError(f"{place.name}: a volume of it {e}") from e
        if isinstance(volume, dict) and "driver" in volume:
            return self._leaf(canonical(volume), stated)
        if isinstance(volume, str) and view_in(_at(volume, base)) is None:
            place_of = f"@{_placed(volume[1:], base)}" if volume.startswith("@") else None
            inline = volume.lstrip().startswith("{")
            return self._leaf(place_of or (volume if inline else _placed(volume, base)), stated)
        if stated != Stated():
            raise _ToldError(
                f"{place.name} states {', '.join(k for k in value if k != 'volume')} beside a "
                "view, which has its own; state it where that names its volumes"
            )
        return self._volume(volume, base, above, place)

    def _leaf(self, volume: str, stated: Stated) -> Leaf:
        if (volume, stated) not in self._known:
            self._known[volume, stated] = self._resolve(volume, stated)
        return self._known[volume, stated]


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where in the views one is: the name for messages, and how deep."""

    name: str
    depth: int


class _ToldError(RequestError):
    """A message that already says where."""


def _parts(document: Json, name: str) -> tuple[list[Any], list[Any]]:
    """The steps and the volumes of a view document, checked."""
    if document.get("format") != FORMAT:
        raise _ToldError(
            f"{name} has format {document.get('format')!r}, and a view has {FORMAT!r}; correct it"
        )
    version = document.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise _ToldError(f"{name} has format_version {version!r}; it is {FORMAT_VERSION} here")
    if version > FORMAT_VERSION:
        raise _ToldError(
            f"{name} is a view of version {version}, made for newer software; this one reads up to "
            f"version {FORMAT_VERSION}: upgrade segclr-beam to read it"
        )
    given = Members({k: v for k, v in document.items() if k not in ("format", "format_version")})
    try:
        of = given.take("of", lambda v, _: v)
        steps = given.maybe("steps", _list, [])
        given.done()
    except RequestError as e:
        raise _ToldError(f"{name}: the view {e}") from e
    volumes = of if isinstance(of, list) else [of]
    first = steps[0].get("op") if steps and isinstance(steps[0], dict) else None
    if not volumes or (len(volumes) > 1 and first not in JOINING):
        raise _ToldError(
            f"{name} is made of {len(volumes)} volumes and its first step is {first}; several are "
            f"joined first, by {', '.join(JOINING)}, and one at least is needed"
        )
    if len(steps) > _STEPS:
        raise _ToldError(f"{name} has {len(steps)} steps, and {_STEPS} are the most")
    return steps, volumes


def _check_depth(depth: int, name: str) -> None:
    if depth > DEPTH:
        raise _ToldError(
            f"{name} lies so that views are {depth} deep in one another, and {DEPTH} are the most; "
            "put the steps of inner views into outer ones"
        )


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."


def _at(volume: str, base: str) -> str:
    return f"@{_placed(volume[1:], base)}" if volume.startswith("@") else volume


def _placed(volume: str, base: str) -> str:
    """A path in a view's file, from where this process is; a URL or absolute path as it is."""
    head, bar, rest = volume.partition("|")
    if not base or "://" in head or os.path.isabs(head):
        return volume
    joined = objects.join(base, head) if "://" in base else posixpath.normpath(f"{base}/{head}")
    return f"{joined}{bar}{rest}"


def _identity(file: str) -> str:
    """A file's one name, through whatever links it is reached."""
    path = objects.local_path(file)
    return redacted(file) if path is None else os.path.realpath(path)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise members.refused(value, name, "a list")
    return value


def _kind(value: Any, name: str) -> Kind:
    return (
        "image"
        if members.one_of("image", "segmentation")(value, name) == "image"
        else ("segmentation")
    )


def _three(value: Any, name: str) -> Vec3:
    found = floats(value)
    if found is None or len(found) != 3:
        raise members.refused(value, name, "three numbers [x, y, z]")
    return (found[0], found[1], found[2])


def _voxel(value: Any, name: str) -> Vec:
    found = members.by_axis(value, name)
    if tuple(n for n, _ in found) != SPATIAL:
        raise members.refused(value, name, "three whole numbers [x, y, z]")
    return vec(v for _, v in found)


def _axes(value: Any, name: str) -> tuple[str, ...]:
    found = named_axes(members.names(value, name))
    if found is None or len(set(found)) != len(found):
        raise members.refused(value, name, "a different name for each stored dimension, such as yx")
    return found
