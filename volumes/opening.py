"""From a ``VolumeSpec`` to an open volume; ``volumes.resolving`` makes the former.

A stored volume is one TensorStore array. A view is composed of the arrays of its volumes; nothing
of them is read before a voxel of the view is.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import tensorstore as ts

from volumes import pinning
from volumes.errors import RequestError, RunError
from volumes.formats import TS_ERRORS, open_array, told
from volumes.framing import box_in, framed
from volumes.geometry import Box, same_voxel_size
from volumes.resolving import resolve_levels, resolve_volume
from volumes.spec import FORMATS, VIEW, VolumeSpec, numbers
from volumes.views.tree import Leaf, Plain, Raw, needs, node_in

__all__ = [
    "Filled",
    "Volume",
    "framed",
    "open_volume",
    "resolve_levels",
    "resolve_volume",
    "shared_domain",
    "stored_under",
]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """An open volume.

    Attributes:
        spec: What it was planned as.
        store: The array with dimensions x, y, z over ``spec.domain``, in frame voxels. Reading a
            chunk that is not stored is an error, where the driver can tell.
        filled: Of a view: the same, where a stored chunk that is absent is the fill value of its
            volume; opened when it is first needed. None for a stored volume.
        pooled: Whether decoded chunks stay in the process's pool: see ``volumes.caching.pool``.
    """

    spec: VolumeSpec
    store: ts.TensorStore
    filled: "Filled | None" = None
    pooled: bool = False


Opener = Callable[[dict[str, Any]], ts.TensorStore]
"""Opens the stored array of a JSON spec for reading; TensorStore's exceptions pass."""


class Filled:
    """A view over volumes in which a chunk that is not stored is their fill value."""

    def __init__(self, spec: VolumeSpec, opener: Opener) -> None:
        """Open nothing yet."""
        self._spec = spec
        self._opener = opener

    @functools.cached_property
    def store(self) -> ts.TensorStore:
        """The array, as ``Volume.store``.

        Raises:
            RunError: It cannot be opened.
        """
        return _view_store(self._spec, self._opener, fill=True)


def open_volume(spec: VolumeSpec, opener: Opener = open_array) -> Volume:
    """Open a volume for reading and check that it still is what was planned.

    Args:
        spec: From ``resolve_volume``.
        opener: What opens its arrays.

    Raises:
        RunError: It cannot be opened, or its type or extent has changed since.
    """
    if spec.format == VIEW:
        store = _view_store(spec, opener, fill=False)
        return Volume(spec, store, Filled(spec, opener))
    return Volume(spec, _stored(spec, opener, fill=False))


def _stored(spec: VolumeSpec, opener: Opener, *, fill: bool) -> ts.TensorStore:
    """A stored volume, framed."""
    try:
        stored = opener(_document(spec.tensorstore, spec.pinned, fill=fill))
        fits = stored.rank == len(spec.axes)
        store = framed(stored, spec.axes, spec.origin_vx) if fits else stored
    except TS_ERRORS as e:
        raise _unopened(spec.source, e) from e
    found = f"{stored.dtype.name} {stored.domain}"
    if not fits or stored.dtype.name != spec.dtype or box_in(store) != spec.domain:
        raise _changed(spec.source, f"{spec.dtype} over {spec.domain}", found)
    return store


def _raw(leaf: Raw, opener: Opener, *, fill: bool) -> ts.TensorStore:
    """A stored array of whatever axes, over the domain that it was planned with."""
    array = leaf.array
    try:
        stored = opener(_document(leaf.tensorstore, leaf.pinned, fill=fill))
        shape = tuple(a.extent for a in array.axes)
        if tuple(stored.shape) != shape or stored.dtype.name != array.dtype:
            found = f"{stored.dtype.name} {stored.domain}"
            raise _changed(leaf.source, f"{array.dtype} of shape {shape}", found)
        starts = [a.start for a in array.axes]
        return stored[ts.d[:].translate_to[starts].label[list(array.names)]]
    except TS_ERRORS as e:
        raise _unopened(leaf.source, e) from e


def _document(tensorstore: str, version: int | None, *, fill: bool) -> dict[str, Any]:
    document = pinning.pinned(json.loads(tensorstore), version)
    if document["driver"] in FORMATS:
        document |= {"fill_missing_data_reads": fill, "recheck_cached_data": "open"}
    return document


def _view_store(spec: VolumeSpec, opener: Opener, *, fill: bool) -> ts.TensorStore:
    """A view, framed."""
    node = node_in(spec)
    known: dict[Leaf, ts.TensorStore] = {}

    def leaf(wanted: Leaf) -> ts.TensorStore:
        if wanted not in known:
            if isinstance(wanted, Plain):
                known[wanted] = _stored(wanted.spec, opener, fill=fill)
            else:
                known[wanted] = _raw(wanted, opener, fill=fill)
        return known[wanted]

    try:
        store = framed(node.compose(leaf), node.array.names, spec.origin_vx)
    except TS_ERRORS as e:
        raise _unopened(spec.source, e) from e
    if store.dtype.name != spec.dtype or box_in(store) != spec.domain:
        found = f"{store.dtype.name} over {box_in(store)}"
        raise _changed(spec.source, f"{spec.dtype} over {spec.domain}", found)
    return store


def _unopened(source: str, error: Exception) -> RunError:
    return RunError(
        f"{source} was planned as a volume and cannot be opened now: {told(error)}; "
        "check that it is still there and that this process may read it"
    )


def _changed(source: str, planned: str, found: str) -> RunError:
    return RunError(
        f"{source} has changed since the plan: {planned} was "
        f"planned and {found} is stored now; plan the run again on the volume as it is"
    )


def stored_under(volume: Volume, box: Box) -> list[tuple[Volume, Box]] | None:
    """The stored volumes of which a box is made, and which frame box of each.

    Nothing else that is stored bears on the voxels of the box; what a view says of its own, such as
    a table or a function, is part of its spec.

    Args:
        volume: Open volume.
        box: Frame voxels, XYZ; only what lies in the domain counts.

    Returns:
        For a volume that is no view the volume itself; None where a view has an array that is no
        volume, such as one of a driver that stores nothing itself.

    Raises:
        RunError: A volume cannot be opened.
    """
    if volume.spec.format != VIEW:
        return [(volume, box)]
    found = []
    for spec, part in needs(volume.spec, box):
        if spec is None or part is None:
            return None
        found.append((_opened(spec), part))
    return found


@functools.lru_cache(maxsize=256)
def _opened(spec: VolumeSpec) -> Volume:
    """A volume of a view, opened once for all that look at it."""
    return open_volume(spec)


def shared_domain(image: VolumeSpec, segmentation: VolumeSpec) -> Box:
    """The frame voxels that image and segmentation share.

    Raises:
        RequestError: Their voxel sizes differ, or they share nothing.
    """
    if not same_voxel_size(image.voxel_size_nm, segmentation.voxel_size_nm):
        raise RequestError(
            f"the image {image.source} has voxels of {numbers(image.voxel_size_nm)} nm and the "
            f"segmentation {segmentation.source} of {numbers(segmentation.voxel_size_nm)} nm; one "
            "lattice is needed, so pick levels of one voxel size with --scale"
        )
    shared = image.domain.intersection(segmentation.domain)
    if shared.size == 0:
        raise RequestError(
            f"the image {image.source} covers voxels {image.domain} and the segmentation "
            f"{segmentation.source} covers {segmentation.domain}, which do not overlap; "
            "check their origins (--origin X,Y,Z at ingest, voxel_offset or offset in metadata)"
        )
    return shared
