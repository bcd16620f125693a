"""Functions of the user's, run on the boxes of a view: the one door through which they come in.

A function is named ``package.module:name`` and is called as ``name(voxels, voxel_size_nm,
parameters)``: ``voxels [x, y, z]`` are a box grown by the margin on each side, 0 outside the
volume; it returns the voxels of the box, without the margin. What it makes of a voxel may depend on
those within the margin alone, since the boxes may be cut in any way.

It runs only if its package is one that the caller lists, and a module is not imported before that
is known. The plan keeps the module, the version of its distribution and the digest of its source
file; where it is opened, the digest is compared before the module is imported. Modules that it
imports in turn are not part of the digest.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorstore as ts

from volumes.errors import DataError, RequestError, RunError
from volumes.levels import SPATIAL
from volumes.spec import Kind, canonical
from volumes.views import members
from volumes.views.arrays import Array, Part, meet, said, voxel_size
from volumes.views.computing import Voxels, away, computed, read
from volumes.views.members import Json, Members

_NAMED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
# What is read at once is at least this, and so many margins, a side.
_AT_LEAST = 64
_MARGINS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """What a function of the user's makes of each box.

    Attributes:
        function: ``package.module:name``.
        dtype: Type of what it returns.
        kind: Kind of what it returns; None for that of what it is given.
        margin_vx: By how much the boxes that it is given are larger, on each side, XYZ.
        parameters: What it is given besides, as canonical JSON.
        digest: Hex SHA-256 of the module's source file.
        version: Version of its distribution; empty where it has none.
    """

    op: ClassVar[str] = "function"
    function: str
    dtype: str
    kind: Kind | None
    margin_vx: tuple[int, ...]
    parameters: str
    digest: str
    version: str

    @classmethod
    def read(cls, given: Members) -> "Function":
        """From its members, the source with its digest."""
        function = given.take("function", members.text)
        dtype = given.take("dtype", members.dtype)
        kind = given.maybe("kind", members.one_of("image", "segmentation"), None)
        margin = dict(given.maybe("margin_vx", members.by_axis, ()))
        margins = tuple(margin.pop(n, 0) for n in SPATIAL)
        if margin or min(margins) < 0:
            raise RequestError(
                f"has margin_vx {list(margins)}{' and of ' + said(tuple(margin)) if margin else ''}"
                "; x, y and z have one each, at least 0"
            )
        parameters = canonical(given.maybe("parameters", members.obj, {}))
        source = given.take("source", members.obj)
        return cls(
            function,
            dtype,
            None if kind is None else ("image" if kind == "image" else "segmentation"),
            margins,
            parameters,
            str(source["sha256"]),
            str(source["version"]),
        )

    def to_json(self) -> Json:
        """Its members."""
        kind = {} if self.kind is None else {"kind": self.kind}
        return {
            "function": self.function,
            "dtype": self.dtype,
            **kind,
            "margin_vx": list(self.margin_vx),
            "parameters": members.loads(self.parameters),
            "source": {"sha256": self.digest, "version": self.version},
        }

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array = arrays[0]
        if sorted(array.names) != sorted(SPATIAL):
            raise RequestError(
                f"is given x, y and z, and the array has {said(array.names)}; pick one with channel"
            )
        voxel_size(array)
        found = dataclasses.replace(array, dtype=self.dtype, kind=self.kind or array.kind)
        for name, margin in zip(SPATIAL, self.margin_vx, strict=True):
            axis = array.axis(name)
            least = max(min(_AT_LEAST, axis.extent), _MARGINS * margin)
            chunk = -(-least // axis.chunk) * axis.chunk
            found = found.with_axis(dataclasses.replace(axis, chunk=chunk))
        return found

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        return (meet(self.grown(part, arrays[0]), arrays[0].part),)

    def grown(self, part: Part, array: Array) -> Part:
        """A part with the margin."""
        by = dict(zip(SPATIAL, self.margin_vx, strict=True))
        return tuple((a - by[n], b + by[n]) for (a, b), n in zip(part, array.names, strict=True))

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        # A function that is not what was planned is told now and not at the first box.
        imported(self.function, self.digest)
        return computed(self.result(arrays), _Called(self, stores[0], arrays[0]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Called:
    step: Function
    store: ts.TensorStore
    array: Array

    async def voxels(self, part: Part) -> Voxels:
        """The voxels of a part."""
        grown = self.step.grown(part, self.array)
        inside = meet(grown, self.array.part)
        assert inside is not None  # a part lies in the array
        found = await read(self.store, inside)
        around = [(i - a, b - j) for (a, b), (i, j) in zip(grown, inside, strict=True)]
        return await away(self._call, np.pad(found, around), part)

    def _call(self, found: Voxels, part: Part) -> Voxels:
        turn = [self.array.index(n) for n in SPATIAL]
        shape = tuple(part[i][1] - part[i][0] for i in turn)
        step = self.step
        function = imported(step.function, step.digest)
        where = f"the function {step.function}"
        at = ", ".join(f"{n} {part[i][0]}:{part[i][1]}" for n, i in zip(SPATIAL, turn, strict=True))
        given = np.ascontiguousarray(found.transpose(turn))
        try:
            made = function(given, voxel_size(self.array), members.loads(step.parameters))
        except Exception as e:
            raise DataError(f"{where} failed on voxels {at}: {type(e).__name__}: {e}") from e
        wanted = np.dtype(step.dtype)
        if not isinstance(made, np.ndarray) or made.shape != shape or made.dtype != wanted:
            what = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made)
            raise RunError(
                f"{where} returned {what} for voxels {at}, and {wanted} {shape} was expected, the "
                f"box without the margin {step.margin_vx}; correct the function or the view"
            )
        return made.transpose(np.argsort(turn))


def allowed(function: str, packages: Sequence[str]) -> None:
    """Refuse a function that is not named as one, or whose package the caller does not list.

    Raises:
        RequestError: It is not allowed; the message names the flag.
    """
    match = _NAMED.fullmatch(function)
    if match is None:
        raise RequestError(f"has function {function!r}; a function is named package.module:name")
    module = match.group(1)
    if not any(module == p or module.startswith(f"{p}.") for p in packages):
        listed = f" ({', '.join(packages)} are listed)" if packages else ""
        raise RequestError(
            f"runs the function {function}, and code is run only of packages that are listed"
            f"{listed}; if you trust it, add --allow-functions {module.split('.')[0]}"
        )


def source_of(function: str) -> Json:
    """Digest and version of a function, which must exist; its package must be allowed.

    Raises:
        RequestError: There is no such module or function.
    """
    module, _, _ = function.partition(":")
    path = _source(module)
    if path is None:
        raise RequestError(
            f"runs the function {function}, and there is no module {module} with a source file; "
            "install its package here and on the workers"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        imported(function, digest)
    except RunError as e:
        raise RequestError(str(e)) from e
    return {"sha256": digest, "version": _version(module.split(".")[0])}


@functools.lru_cache(maxsize=64)
def imported(function: str, digest: str) -> Callable[..., Any]:
    """A function, imported if its source still is what was planned.

    Raises:
        RunError: It is not, or it cannot be imported.
    """
    module, _, name = function.partition(":")
    path = _source(module)
    if path is None:
        raise RunError(
            f"the function {function} was planned, and there is no module {module} here; install "
            "its package wherever the view is read"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise RunError(
            f"the function {function} is not what was planned: its source file had the digest "
            f"{digest} and {path.name} has {found} here; install the same version, or plan again"
        )
    try:
        loaded = getattr(importlib.import_module(module), name, None)
    except Exception as e:
        raise RunError(
            f"the module of the function {function} cannot be imported: {type(e).__name__}: {e}"
        ) from e
    if not callable(loaded):
        raise RunError(f"the module {module} has no function {name}; correct the view")
    return loaded  # type: ignore[no-any-return]


def _source(module: str) -> pathlib.Path | None:
    """The source file of a module, found without importing anything."""
    places: Sequence[str] | None = None
    spec = None
    parts = module.split(".")
    for i in range(len(parts)):
        spec = _found(".".join(parts[: i + 1]), places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return pathlib.Path(spec.origin)


def _found(name: str, places: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    """A module, looked up where its parent says; the topmost one wherever Python looks."""
    if places is not None:
        return importlib.machinery.PathFinder.find_spec(name, places)
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # such as __main__
        return None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """The distributions of each package; finding them out takes a second."""
    return importlib.metadata.packages_distributions()


def _version(package: str) -> str:
    """Version of the distribution that has a package; empty where none has."""
    names = _distributions().get(package, [])
    return importlib.metadata.version(names[0]) if names else ""
