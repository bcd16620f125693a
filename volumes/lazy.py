"""Volumes in a notebook: opened, viewed, read, created and written without a job.

::

    em = volumes.open("/data/em.zarr").crop(start=[0, 0, 0], stop=[512, 512, 64])
    half = em.downsample([2, 2, 1], "mean")
    voxels = await half.read()
    out = volumes.create("/data/half.zarr", half.shape, voxel_size_nm=half.voxel_size_nm)
    await out.write(out.domain, voxels)

Every operation gives a new volume and reads nothing. What ``save`` writes is a VOLUME for any job.
"""

import asyncio
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volumes import objects
from volumes.errors import RequestError
from volumes.geometry import Box, Vec, Vec3
from volumes.opening import Volume, open_volume
from volumes.reading import LIMIT_BYTES, MissingChunks, Request, read_boxes
from volumes.resolving import resolve_leaf, view_spec
from volumes.spec import Kind, VolumeSpec, canonical
from volumes.views.arrays import Array
from volumes.views.document import FORMAT, FORMAT_VERSION, Documents
from volumes.views.tree import Chain, Node, Plain, extended

Voxels = npt.NDArray[Any]
Values = Sequence[int] | Mapping[str, int]
"""Whole numbers for x, y and z, or by name of an axis."""

_Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LazyVolume:
    """A volume or a view of volumes, of which nothing is read before it is asked for.

    It may stand for an array that is no volume yet, such as one with channels: then ``domain`` and
    what reads tell so, and an operation makes it one.

    Attributes:
        node: What it is, resolved.
        document: The same as the user may write it: the volumes of a view and its steps, as JSON.
        allow_functions: Packages whose functions may run.
    """

    node: Node
    document: str
    allow_functions: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without what is open."""
        return type(self), tuple(getattr(self, f.name) for f in dataclasses.fields(self))

    @property
    def view(self) -> _Json:
        """The view document, a VOLUME for every job."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **json.loads(self.document)}

    @functools.cached_property
    def spec(self) -> VolumeSpec:
        """What travels to a worker.

        Raises:
            RequestError: It is no volume: it has other axes than x, y and z.
        """
        if isinstance(self.node, Plain):
            return self.node.spec
        node = self.node if isinstance(self.node, Chain) else Chain((self.node,), ())
        return view_spec(node, canonical(self.view), None)

    @property
    def array(self) -> Array:
        """What it is, with axes of any number."""
        return self.node.array

    @property
    def domain(self) -> Box:
        """Frame voxels that it has."""
        return self.spec.domain

    @property
    def shape(self) -> Vec:
        """Voxels, XYZ."""
        return self.spec.domain.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return np.dtype(self.array.dtype)

    @property
    def kind(self) -> Kind:
        """Image or segmentation."""
        return self.array.kind

    @property
    def voxel_size_nm(self) -> Vec3:
        """Voxel size, XYZ."""
        return self.spec.voxel_size_nm

    # Reading

    @functools.cached_property
    def _open(self) -> Volume:
        return open_volume(self.spec)

    def read_many(
        self,
        boxes: Sequence[Box],
        *,
        missing: MissingChunks = "zero",
        limit_bytes: int = LIMIT_BYTES,
    ) -> list[Voxels]:
        """The voxels of boxes, read in common batches.

        Args:
            boxes: Frame voxels, XYZ; 0 is what lies outside the volume.
            missing: What a chunk that is not stored is.
            limit_bytes: The most bytes that may be allocated.

        Raises:
            DataError: A chunk is damaged, or missing where that is an error.
            RunError: Storage fails, or the limit is passed.
        """
        requests = [Request(self._open, box, missing) for box in boxes]
        return [part.array for part in read_boxes(requests, limit_bytes=limit_bytes)]

    def read_sync(self, box: Box | None = None, *, missing: MissingChunks = "zero") -> Voxels:
        """The voxels of a box, all of it unless told otherwise; as ``read_many``."""
        return self.read_many([self.domain if box is None else box], missing=missing)[0]

    async def read(self, box: Box | None = None, *, missing: MissingChunks = "zero") -> Voxels:
        """The voxels of a box, while others are read or computed; as ``read_many``."""
        return await asyncio.to_thread(self.read_sync, box, missing=missing)

    async def write(self, box: Box, voxels: Voxels) -> None:
        """Refused: only what ``create`` made is written.

        Raises:
            RequestError: Always.
        """
        raise RequestError(
            f"{self.document} is open for reading, and a view stores nothing of its own; write "
            "into a volume that volumes.create made, or convert the view"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the view document; ``@path`` is then a VOLUME for every job.

        Raises:
            RunError: The place does not take it.
        """
        objects.write(os.fspath(path), json.dumps(self.view, indent=1).encode())

    # Operations; what they do and refuse stands in ``volumes.views``

    def then(self, step: Mapping[str, Any]) -> "LazyVolume":
        """The volume with a further step, given as in a view document.

        Raises:
            RequestError: The step is wrong, or does not fit.
        """
        documents = Documents(resolve_leaf, self.allow_functions)
        plain = _plain(step)
        kept, own = documents.step(plain)
        node = extended(self.node, kept, own)
        node.check()
        document = json.loads(self.document)
        document["steps"] = [*document["steps"], plain]
        return LazyVolume(node, canonical(document), self.allow_functions)

    def crop(
        self, box: Box | None = None, *, start: Values = (), stop: Values = ()
    ) -> "LazyVolume":
        """A part: a box, or from ``start`` to ``stop``; every voxel keeps its place."""
        ends = {"start": start, "stop": stop} if box is None else box.to_json()
        return self.then({"op": "crop", **{k: v for k, v in ends.items() if len(v)}})

    def stride(self, step: Values) -> "LazyVolume":
        """Every n-th voxel: those at multiples of n in the frame."""
        return self.then({"op": "stride", "step": step})

    def translate(self, by: Values = (), *, to: Values = ()) -> "LazyVolume":
        """The same voxels elsewhere in the frame."""
        ends = {"by": by, "to": to}
        return self.then({"op": "translate", **{k: v for k, v in ends.items() if len(v)}})

    def transpose(self, axes: str | Sequence[str]) -> "LazyVolume":
        """Other axes as x, y and z."""
        return self.then({"op": "transpose", "axes": axes})

    def channel(self, index: int, axis: str = "channel") -> "LazyVolume":
        """One index of an axis, which is then gone."""
        return self.then({"op": "channel", "index": index, "axis": axis})

    def label(
        self,
        axes: Mapping[str, str] | None = None,
        voxel_size_nm: Mapping[str, float] | None = None,
    ) -> "LazyVolume":
        """Other names of axes, and voxel sizes where nothing states one."""
        return self.then(
            {"op": "label", "axes": dict(axes or {}), "voxel_size_nm": dict(voxel_size_nm or {})}
        )

    def broadcast(
        self,
        axis: str,
        size: int,
        *,
        start: int | None = None,
        voxel_size_nm: float | None = None,
    ) -> "LazyVolume":
        """The one index of an axis, or a new axis, repeated."""
        own = {"start": start, "voxel_size_nm": voxel_size_nm}
        given = {k: v for k, v in own.items() if v is not None}
        return self.then({"op": "broadcast", "axis": axis, "size": size, **given})

    def split(self, axis: str, into: Sequence[str], inner_size: int) -> "LazyVolume":
        """One axis as two: index = outer * inner_size + inner."""
        return self.then(
            {"op": "split", "axis": axis, "into": list(into), "inner_size": inner_size}
        )

    def merge(self, axes: Sequence[str], into: str) -> "LazyVolume":
        """Two axes, outer and inner, as one."""
        return self.then({"op": "merge", "axes": list(axes), "into": into})

    def cast(
        self, dtype: npt.DTypeLike, rule: Literal["exact", "clip", "wrap"] = "exact"
    ) -> "LazyVolume":
        """The same numbers in another type."""
        return self.then({"op": "cast", "dtype": np.dtype(dtype).name, "rule": rule})

    def downsample(
        self,
        factors: Values,
        method: Literal["mean", "median", "mode", "min", "max", "stride"] | None = None,
    ) -> "LazyVolume":
        """Coarser voxels; by the mean of an image and the mode of a segmentation."""
        usual = "mode" if self.kind == "segmentation" else "mean"
        return self.then({"op": "downsample", "factors": factors, "method": method or usual})

    def relabel(
        self,
        table: str | Mapping[int, int],
        others: Literal["keep", "zero"] = "keep",
    ) -> "LazyVolume":
        """Ids replaced: by a file of supervoxel and body, or new ids by old ones."""
        if isinstance(table, str):
            return self.then({"op": "relabel", "table": absolute(table)})
        pairs = {str(a): str(b) for a, b in table.items()}
        return self.then({"op": "relabel", "map": pairs, "others": others})

    def mask(
        self, by: "LazyVolume", ids: Sequence[int] = (), *, invert: bool = False
    ) -> "LazyVolume":
        """The voxels where another volume is not 0, or one of ``ids``; all others 0."""
        own = {"ids": [str(i) for i in ids]} if len(ids) else {}
        return self.then({"op": "mask", "by": by.view, **own, "invert": invert})

    def contrast(self, low: float, high: float) -> "LazyVolume":
        """Grey values as uint8, ``low`` at 0 and ``high`` at 255."""
        return self.then({"op": "contrast", "low": low, "high": high})

    def percentiles(
        self, low: float, high: float, *, cell: int = 64, plane: str = "xy"
    ) -> "LazyVolume":
        """Grey values as uint8, percentiles of the cells around at 0 and 255."""
        own = {"low": low, "high": high, "cell": cell, "plane": plane}
        return self.then({"op": "contrast", "method": "percentile", **own})

    def clahe(self, clip: float = 0.01, *, cell: int = 64, plane: str = "xy") -> "LazyVolume":
        """Grey values equalised by those of the cells around."""
        own = {"clip": clip, "cell": cell, "plane": plane}
        return self.then({"op": "contrast", "method": "clahe", **own})

    def apply(
        self,
        function: str | Callable[..., Any],
        dtype: npt.DTypeLike,
        *,
        margin_vx: Values = (0, 0, 0),
        parameters: Mapping[str, Any] | None = None,
        kind: Kind | None = None,
    ) -> "LazyVolume":
        """What a function makes of each box; see ``volumes.views.functions``.

        Args:
            function: The function itself, of a module that can be imported, which lets it run; or
                ``package.module:name`` of a package in ``allow_functions``.
            dtype: Type of what it returns.
            margin_vx: By how much the boxes that it is given are larger, on each side, XYZ.
            parameters: What it is given besides, as JSON.
            kind: Kind of what it returns; that of what it is given unless told otherwise.
        """
        name, allow = function, self.allow_functions
        if not isinstance(function, str):
            name = f"{function.__module__}:{getattr(function, '__qualname__', '')}"
            allow = (*allow, function.__module__)
        own = {"kind": kind} if kind is not None else {}
        step: _Json = {"op": "function", "function": name, "dtype": np.dtype(dtype).name, **own}
        step |= {"margin_vx": margin_vx, "parameters": dict(parameters or {})}
        allowed = tuple(dict.fromkeys(allow))
        return LazyVolume(self.node, self.document, allowed).then(step)


def open(
    volume: str | os.PathLike[str] | Mapping[str, Any],
    *,
    kind: Kind | None = None,
    scale: Vec3 | None = None,
    voxel_size_nm: Vec3 | None = None,
    origin_vx: Vec | None = None,
    axes: str | None = None,
    allow_functions: Sequence[str] = (),
) -> LazyVolume:
    """A volume, of which only metadata is read.

    Args:
        volume: Path, URL, TensorStore URL or JSON spec, view, or ``@file.json``.
        kind: What the voxels are, where the volume does not say.
        scale: Voxel size in nm, XYZ, of the level to take; needed where there are several.
        voxel_size_nm: Voxel size, XYZ, where the volume states none.
        origin_vx: Frame voxel of the first voxel, XYZ, where the volume states none.
        axes: Stored order of the dimensions, where the volume states none.
        allow_functions: Packages whose functions a view may run.

    Raises:
        RequestError: It is no volume, cannot be opened, or does not fit what was stated.
    """
    given: Any = dict(volume) if isinstance(volume, Mapping) else absolute(os.fspath(volume))
    own = {
        "kind": kind,
        "scale": None if scale is None else list(scale),
        "voxel_size_nm": None if voxel_size_nm is None else list(voxel_size_nm),
        "origin_vx": None if origin_vx is None else list(origin_vx),
        "axes": axes,
    }
    stated = {k: v for k, v in own.items() if v is not None}
    of = {"volume": given, **stated} if stated else given
    allow = tuple(allow_functions)
    node = Documents(resolve_leaf, allow).volume(of)
    return LazyVolume(node, canonical({"of": of, "steps": []}), allow)


def stack(
    volumes: Sequence[LazyVolume],
    axis: str = "z",
    *,
    start: int | None = None,
    voxel_size_nm: float | None = None,
) -> LazyVolume:
    """Sections of one domain as a volume."""
    own = {"start": start, "voxel_size_nm": voxel_size_nm}
    given = {k: v for k, v in own.items() if v is not None}
    return _joined(volumes, {"op": "stack", "axis": axis, **given})


def concat(volumes: Sequence[LazyVolume], axis: str, *, move: bool = False) -> LazyVolume:
    """Volumes one behind the other; ``move`` puts each where the one before ends."""
    return _joined(volumes, {"op": "concat", "axis": axis, "move": move})


def overlay(
    volumes: Sequence[LazyVolume], *, gaps: Literal["refuse", "zero"] = "refuse"
) -> LazyVolume:
    """Volumes over one another; where several have a voxel, the last one's counts."""
    return _joined(volumes, {"op": "overlay", "gaps": gaps})


def _joined(volumes: Sequence[LazyVolume], step: _Json) -> LazyVolume:
    """Volumes as one."""
    if not volumes:
        raise RequestError(f"{step['op']} of no volume at all; give one or more")
    allow = tuple(dict.fromkeys(a for v in volumes for a in v.allow_functions))
    node = extended(volumes[0].node, step, (), tuple(v.node for v in volumes[1:]))
    node.check()
    document = {"of": [v.view for v in volumes], "steps": [step]}
    return LazyVolume(node, canonical(document), allow)


def _plain(value: Any) -> Any:
    """A value as JSON has it: tuples and NumPy's numbers become lists and numbers."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def absolute(volume: str) -> str:
    """A VOLUME that means the same wherever its document is kept."""
    if volume.lstrip().startswith("{"):
        return volume
    if volume.startswith("@"):
        return f"@{objects.absolute(volume[1:])}"
    head, bar, rest = volume.partition("|")
    return f"{objects.absolute(head) if '://' not in head else head}{bar}{rest}"
