"""A view as it was resolved: a tree of volumes and steps, which travels and opens nothing.

A ``VolumeSpec`` of the format ``view`` holds the tree in the place of a TensorStore spec, as JSON::

    {"driver": "segclr-beam-view",
     "inputs": [{"volume": VolumeSpec} | {"array": Raw} | {"inputs": ..., "steps": ...}, ...],
     "steps": [{"op": ..., ..., "inputs": [...] where it has volumes of its own}, ...]}

What each step makes is computed from the inputs' metadata, and not kept.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence

import tensorstore as ts

from volumes.errors import RequestError
from volumes.geometry import Box, vec
from volumes.levels import SPATIAL
from volumes.spec import FORMATS, VIEW, VIEW_DRIVER, Kind, VolumeSpec, canonical
from volumes.views.arrays import Array, Axis, Part, box_of, checked, part_of, said, voxel_size
from volumes.views.functions import Function
from volumes.views.members import Json
from volumes.views.operations import JOINING, Step, step_of

Need = tuple[VolumeSpec | None, Box | None]
"""A volume that is stored and what is read of it; None where no ``VolumeSpec`` can say it."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """A volume as it is used anywhere: x, y and z."""

    spec: VolumeSpec

    @functools.cached_property
    def array(self) -> Array:
        """What it is."""
        spec = self.spec
        return Array(
            tuple(
                Axis(n, *ends)
                for n, *ends in zip(
                    SPATIAL,
                    spec.domain.start,
                    spec.domain.stop,
                    spec.read_chunk,
                    spec.read_grid.anchor,
                    spec.voxel_size_nm,
                    strict=True,
                )
            ),
            spec.dtype,
            spec.kind,
        )

    def to_json(self) -> Json:
        """As JSON."""
        return {"volume": self.spec.to_json()}

    def needs(self, part: Part) -> list[Need]:
        """What a part is made of."""
        return [(self.spec, box_of(self.array, part))]

    def compose(self, leaf: "OpenLeaf") -> ts.TensorStore:
        """The array."""
        return leaf(self)


@dataclasses.dataclass(frozen=True)
class Raw:
    """A stored array that is no volume yet: with channels to pick from, or a section.

    Attributes:
        source: What the user gave, for messages.
        tensorstore: TensorStore spec, canonical JSON text.
        format: Name of the format.
        pinned: Version of its database, as in ``VolumeSpec``.
        first: Stored index of the first voxel by axis.
        array: What it is, in the stored order of the axes.
    """

    source: str
    tensorstore: str
    format: str
    pinned: int | None
    first: tuple[int, ...]
    array: Array

    def to_json(self) -> Json:
        """As JSON."""
        array = {
            "axes": [dataclasses.asdict(a) for a in self.array.axes],
            "dtype": self.array.dtype,
            "kind": self.array.kind,
        }
        own = {f: getattr(self, f) for f in ("source", "format", "pinned")}
        document = json.loads(self.tensorstore)
        return {"array": {**own, "tensorstore": document, "first": list(self.first), **array}}

    @classmethod
    def from_json(cls, document: Json) -> "Raw":
        """The record that ``to_json`` wrote."""
        axes = tuple(Axis(**a) for a in document["axes"])
        return cls(
            document["source"],
            canonical(document["tensorstore"]),
            document["format"],
            document["pinned"],
            tuple(document["first"]),
            Array(axes, document["dtype"], document["kind"]),
        )

    def needs(self, part: Part) -> list[Need]:
        """What a part is made of: a volume for each index of the axes that are not x, y or z."""
        document = json.loads(self.tensorstore)
        if self.format not in FORMATS.values() or "transform" in document:
            return [(None, None)]
        others = [
            range(*ends) if a.name not in SPATIAL else range(1)
            for a, ends in zip(self.array.axes, part, strict=True)
        ]
        own = dict(zip(self.array.names, part, strict=True))
        ends = [own.get(n, (0, 1)) for n in SPATIAL]
        box = Box(vec(a for a, _ in ends), vec(b for _, b in ends))
        return [(self._volume(document, index), box) for index in itertools.product(*others)]

    def _volume(self, document: Json, index: Sequence[int]) -> VolumeSpec:
        """The voxels at an index of the axes that are not x, y or z, as a volume."""
        none = {n: Axis(n, 0, 1, 1, 0, 1.0) for n in SPATIAL}
        axes = [(none | {a.name: a for a in self.array.axes})[n] for n in SPATIAL]
        output = []
        for axis, first, i in zip(self.array.axes, self.first, index, strict=True):
            offset = first - axis.start
            if axis.name in SPATIAL:
                output.append({"input_dimension": SPATIAL.index(axis.name), "offset": offset})
            else:
                output.append({"offset": offset + i})
        transform = {
            "input_inclusive_min": [a.start for a in axes],
            "input_exclusive_max": [a.stop for a in axes],
            "input_labels": list(SPATIAL),
            "output": output,
        }
        chunk = vec(a.chunk for a in axes)
        x, y, z = (a.nm or 1.0 for a in axes)
        return VolumeSpec(
            source=self.source,
            tensorstore=canonical(document | {"transform": transform}),
            axes=SPATIAL,
            voxel_size_nm=(x, y, z),
            origin_vx=vec(a.start for a in axes),
            kind=self.array.kind,
            dtype=self.array.dtype,
            domain=Box(vec(a.start for a in axes), vec(a.stop for a in axes)),
            read_chunk=chunk,
            write_chunk=chunk,
            format=self.format,
            anchor_vx=vec(a.anchor for a in axes),
            pinned=self.pinned,
        )

    def compose(self, leaf: "OpenLeaf") -> ts.TensorStore:
        """The array."""
        return leaf(self)


Leaf = Plain | Raw

OpenLeaf = Callable[[Leaf], ts.TensorStore]
"""Opens a stored array over the domain that it was planned with."""


@dataclasses.dataclass(frozen=True)
class Applied:
    """A step and the volumes of its own, such as a mask."""

    step: Step
    inputs: "tuple[Node, ...]" = ()


@dataclasses.dataclass(frozen=True)
class Chain:
    """Volumes, and what is done to them step by step."""

    inputs: "tuple[Node, ...]"
    steps: tuple[Applied, ...]

    @functools.cached_property
    def stages(self) -> tuple[tuple[Array, ...], ...]:
        """What each step is applied to; then, alone, what comes out.

        Raises:
            RequestError: A step does not fit; the message says which.
        """
        stages = [tuple(n.array for n in self.inputs)]
        for i, applied in enumerate(self.steps):
            stages[-1] += tuple(n.array for n in applied.inputs)
            with_steps = f"step {i + 1} ({applied.step.op})"
            stages.append((_result(applied.step, stages[-1], with_steps),))
        return tuple(stages)

    @property
    def array(self) -> Array:
        """What comes out."""
        return self.stages[-1][0]

    @functools.cached_property
    def depth(self) -> int:
        """How many views lie in one another, this one counted."""
        inner = [*self.inputs, *(n for a in self.steps for n in a.inputs)]
        return 1 + max((n.depth for n in inner if isinstance(n, Chain)), default=0)

    def check(self) -> None:
        """Refuse steps that do not fit.

        Raises:
            RequestError: The message says which.
        """
        _ = self.stages

    def to_json(self) -> Json:
        """As JSON."""
        return {
            "inputs": [n.to_json() for n in self.inputs],
            "steps": [
                {
                    "op": a.step.op,
                    **a.step.to_json(),
                    **({"inputs": [n.to_json() for n in a.inputs]} if a.inputs else {}),
                }
                for a in self.steps
            ],
        }

    def needs(self, part: Part) -> list[Need]:
        """What a part is made of."""
        found: list[Need] = []
        asked: tuple[Part | None, ...] = (part,)
        for applied, arrays in zip(reversed(self.steps), reversed(self.stages[:-1]), strict=True):
            asked = self._before(applied.step, asked[0], arrays)
            own = len(arrays) - len(applied.inputs)
            found += _needs(applied.inputs, asked[own:])
            asked = asked[:own]
        return _needs(self.inputs, asked) + found

    @staticmethod
    def _before(step: Step, part: Part | None, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        return (None,) * len(arrays) if part is None else step.needs(part, arrays)

    def compose(self, leaf: OpenLeaf) -> ts.TensorStore:
        """The array."""
        stores = [n.compose(leaf) for n in self.inputs]
        for i, applied in enumerate(self.steps):
            stores += [n.compose(leaf) for n in applied.inputs]
            made = applied.step.compose(stores, self.stages[i])
            stores = [made[ts.d[:].label[list(self.stages[i + 1][0].names)]]]
        return stores[0]


Node = Plain | Raw | Chain


def _needs(nodes: Sequence[Node], parts: Sequence[Part | None]) -> list[Need]:
    return [
        need
        for node, part in zip(nodes, parts, strict=True)
        if part is not None
        for need in node.needs(part)
    ]


def _result(step: Step, arrays: Sequence[Array], what: str) -> Array:
    try:
        return checked(step.result(arrays))
    except RequestError as e:
        raise RequestError(f"{what}: {e}") from e


def extended(
    node: Node, document: Json, inputs: tuple[Node, ...] = (), joined: tuple[Node, ...] = ()
) -> Chain:
    """A node with one step more.

    Args:
        node: A volume, an array or a view.
        document: The step, resolved.
        inputs: The step's own volumes.
        joined: For a step that joins, the volumes after the first.

    Raises:
        RequestError: The step is wrong, or does not fit.
    """
    applied = Applied(step_of(document), inputs)
    if joined or applied.step.op in JOINING or not isinstance(node, Chain):
        return Chain((node, *joined), (applied,))
    return Chain(node.inputs, (*node.steps, applied))


def node_of(document: Json) -> Node:
    """The node that ``to_json`` wrote."""
    if "volume" in document:
        return Plain(VolumeSpec.from_json(document["volume"]))
    if "array" in document:
        return Raw.from_json(document["array"])
    steps = []
    for step in document["steps"]:
        own = {k: v for k, v in step.items() if k != "inputs"}
        steps.append(Applied(step_of(own), tuple(node_of(n) for n in step.get("inputs", ()))))
    return Chain(tuple(node_of(n) for n in document["inputs"]), tuple(steps))


def spec_of(node: Chain, source: str, kind: Kind | None) -> VolumeSpec:
    """A view as a volume.

    Args:
        node: The view.
        source: What the user gave, for messages.
        kind: What it is taken as; None for what its volumes are.

    Raises:
        RequestError: What comes out has no x, y and z, or besides them axes of more than one index.
    """
    array = node.array
    over = tuple(a.name for a in array.axes if a.name not in SPATIAL and a.extent > 1)
    if not set(SPATIAL) <= set(array.names) or over:
        raise RequestError(
            f"what comes out has the axes {said(array.names)}"
            f"{', of more than one index along ' + said(over) if over else ''}; a volume has x, y "
            "and z, and besides them axes of extent 1: use stack, broadcast, channel or label"
        )
    axes = [array.axis(n) for n in SPATIAL]
    start = vec(a.start for a in axes)
    chunk, anchor = vec(a.chunk for a in axes), vec(a.anchor for a in axes)
    return VolumeSpec(
        source=source,
        tensorstore=canonical({"driver": VIEW_DRIVER, **node.to_json()}),
        axes=SPATIAL,
        voxel_size_nm=voxel_size(array),
        origin_vx=start,
        kind=kind or array.kind,
        dtype=array.dtype,
        domain=Box(start, vec(a.stop for a in axes)),
        read_chunk=chunk,
        write_chunk=chunk,
        format=VIEW,
        anchor_vx=None if anchor == start else anchor,
        assumed=_assumed(node),
    )


def _assumed(node: Chain) -> tuple[str, ...]:
    """What neither a volume of a view nor the view states."""
    found = {what for v in leaves(node) if isinstance(v, Plain) for what in v.spec.assumed}
    return tuple(sorted(found))


def node_in(spec: VolumeSpec) -> Plain | Chain:
    """The node of a volume: its view, or the volume itself."""
    if spec.format != VIEW:
        return Plain(spec)
    return _chain(spec.tensorstore)


@functools.lru_cache(maxsize=64)
def _chain(text: str) -> Chain:
    found = node_of(json.loads(text))
    assert isinstance(found, Chain)  # only a view has its driver
    return found


def needs(spec: VolumeSpec, box: Box) -> list[Need]:
    """What is read of stored volumes for a box, from geometry alone.

    Nothing else of them bears on the voxels of the box. A volume may stand there several times.

    Args:
        spec: Any volume; one that is no view needs itself.
        box: Frame voxels, XYZ; only what lies in the domain counts.
    """
    node = node_in(spec)
    inside = spec.domain.intersection(box)
    return node.needs(part_of(node.array, inside)) if inside.size else []


@functools.lru_cache(maxsize=64)
def read_per_voxel(spec: VolumeSpec) -> float:
    """Bytes of stored volumes that are read for each byte of a chunk of a view, at least 1."""
    if spec.format != VIEW:
        return 1.0
    chunk = Box.of(spec.read_grid.cell(spec.read_grid.first).start, spec.read_chunk)
    whole = chunk.intersection(spec.domain)
    read = sum(
        spec.itemsize if s is None or b is None else b.size * s.itemsize
        for s, b in needs(spec, whole)
    )
    return max(1.0, read / (whole.size * spec.itemsize))


def functions_in(spec: VolumeSpec) -> tuple[str, ...]:
    """Names of the functions of the user's that a volume runs when it is read, in order."""
    return tuple(sorted(_functions(node_in(spec))))


def _functions(node: Node) -> set[str]:
    if not isinstance(node, Chain):
        return set()
    found = {a.step.function for a in node.steps if isinstance(a.step, Function)}
    inner = [*node.inputs, *(n for a in node.steps for n in a.inputs)]
    return found.union(*(_functions(n) for n in inner))


def leaves(node: Node) -> list[Leaf]:
    """The stored arrays of a node, in the order in which they stand there."""
    if not isinstance(node, Chain):
        return [node]
    inner = [*node.inputs, *(n for a in node.steps for n in a.inputs)]
    return [leaf for n in inner for leaf in leaves(n)]
