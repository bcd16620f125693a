"""What a volume is, in a record that opens nothing.

A ``VolumeSpec`` is what travels to a worker and what a manifest keeps: small, frozen, hashable,
picklable and JSON-able, and without secrets whatever it was made from. ``volumes.opening`` makes
one from what the user typed and opens it again elsewhere.
"""

import dataclasses
import json
from typing import Any, Literal

import tensorstore as ts

from volumes.geometry import Box, ChunkGrid, Vec, Vec3, vec
from volumes.redaction import redacted

Kind = Literal["image", "segmentation"]
"""What the voxels are: grey values, or ids of segments."""

FORMATS = {
    "zarr": "zarr2",
    "zarr3": "zarr3",
    "n5": "n5",
    "neuroglancer_precomputed": "neuroglancer_precomputed",
}
"""Name of the format by TensorStore driver; any other driver is a ``json-spec``."""

VIEW = "view"
"""The format of a volume that is made of others when it is read; see ``volumes.views``."""

VIEW_DRIVER = "segclr-beam-view"
"""What stands for the driver in a view's spec, which is not TensorStore's."""


def canonical(document: Any) -> str:
    """The one JSON text of a document: sorted keys, no spaces, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def redacted_source(volume: str) -> str:
    """What the user gave as a volume, for messages: a location or an inline spec, secrets out."""
    if not volume.lstrip().startswith("{"):
        return redacted(volume)
    try:
        return canonical(redacted(json.loads(volume)))
    except (ValueError, RecursionError):
        return "the inline JSON spec"


def numbers(values: Vec | Vec3 | tuple[float, ...]) -> str:
    """``X,Y,Z`` as a flag takes it, for messages."""
    return ",".join(f"{v:.12g}" if isinstance(v, float) else str(v) for v in values)


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeSpec:
    """A volume as it was found: where it is, and all that a plan needs to know of it.

    Query strings, ``user:password@``, credential members and HTTP headers are taken out of
    ``source`` and ``tensorstore`` when the record is made, so neither its JSON nor its pickle can
    hold one.

    Attributes:
        source: What the user gave, for messages.
        tensorstore: TensorStore spec of the array, as canonical JSON text; of a view, what it is
            made of, see ``volumes.views.tree``.
        axes: Name of each stored dimension, in stored order: ``x``, ``y``, ``z``, and ``channel``
            or ``time``, which have extent 1.
        voxel_size_nm: Voxel size, XYZ.
        origin_vx: Frame voxel at which the volume's first voxel lies, XYZ; the domain's start.
        kind: Image or segmentation.
        dtype: NumPy name of the stored type.
        domain: Frame voxels that the volume has, XYZ.
        read_chunk: Shape of what is decoded at once, XYZ: the inner chunk where sharded.
        write_chunk: Shape of what is written at once, XYZ: the shard where sharded.
        format: ``zarr2``, ``zarr3``, ``n5``, ``neuroglancer_precomputed``, ``json-spec`` or
            ``view``.
        anchor_vx: A frame voxel at which a read chunk and a write chunk begin, XYZ; None for the
            domain's start, where a format begins its chunks.
        assumed: Which of ``axes`` and ``origin`` neither the volume nor the user stated, so that
            the stored order was taken as x, y, z, or the first voxel as voxel 0.
        pinned: Version of the OCDBT database in which the volume lies, at which it is read; None
            where it lies in none, or the spec has one.
    """

    source: str
    tensorstore: str
    axes: tuple[str, ...]
    voxel_size_nm: Vec3
    origin_vx: Vec
    kind: Kind
    dtype: str
    domain: Box
    read_chunk: Vec
    write_chunk: Vec
    format: str
    anchor_vx: Vec | None = None
    assumed: tuple[str, ...] = ()
    pinned: int | None = None

    def __post_init__(self) -> None:
        """Take secrets out, and give the spec its canonical text."""
        document = redacted(json.loads(self.tensorstore))
        object.__setattr__(self, "tensorstore", canonical(document))
        object.__setattr__(self, "source", redacted_source(self.source))

    @property
    def driver(self) -> str:
        """Name of the TensorStore driver."""
        return str(json.loads(self.tensorstore)["driver"])

    @property
    def itemsize(self) -> int:
        """Bytes a voxel."""
        return int(ts.dtype(self.dtype).numpy_dtype.itemsize)

    @property
    def read_grid(self) -> ChunkGrid:
        """The lattice of read chunks over the domain."""
        return ChunkGrid(self.domain, self.read_chunk, self.anchor_vx or self.domain.start)

    @property
    def write_grid(self) -> ChunkGrid:
        """The lattice of write chunks over the domain."""
        return ChunkGrid(self.domain, self.write_chunk, self.anchor_vx or self.domain.start)

    def where(self) -> str:
        """The volume's place as one line without secrets; equal for equal places.

        It is the kvstore's URL, the driver and the scale; a spec that has more to it (another
        driver, a transform, an endpoint) is given whole, as JSON. A view is given with the places
        of its volumes, whatever version of them is read.
        """
        document = json.loads(self.tensorstore)
        if self.format == VIEW:
            return canonical(_places(document))
        if not document.keys() <= {"driver", "kvstore", "scale_index"}:
            return self.tensorstore
        try:
            url = ts.KvStore.Spec(document["kvstore"]).url
        except NotImplementedError:  # such as S3 at another endpoint
            return self.tensorstore
        scale = document.get("scale_index")
        return redacted(f"{url}|{document['driver']}:" + ("" if scale is None else f"{scale}"))

    def to_json(self) -> dict[str, Any]:
        """The record as JSON; it holds no secret."""
        return {
            "source": self.source,
            "tensorstore": json.loads(self.tensorstore),
            "axes": list(self.axes),
            "voxel_size_nm": list(self.voxel_size_nm),
            "origin_vx": list(self.origin_vx),
            "kind": self.kind,
            "dtype": self.dtype,
            "domain": self.domain.to_json(),
            "read_chunk": list(self.read_chunk),
            "write_chunk": list(self.write_chunk),
            "format": self.format,
            "anchor_vx": None if self.anchor_vx is None else list(self.anchor_vx),
            "assumed": list(self.assumed),
            "pinned": self.pinned,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "VolumeSpec":
        """The record that ``to_json`` wrote."""
        x, y, z = (float(v) for v in document["voxel_size_nm"])
        anchor = document["anchor_vx"]
        return cls(
            source=document["source"],
            tensorstore=canonical(document["tensorstore"]),
            axes=tuple(document["axes"]),
            voxel_size_nm=(x, y, z),
            origin_vx=vec(document["origin_vx"]),
            kind=document["kind"],
            dtype=document["dtype"],
            domain=Box.from_json(document["domain"]),
            read_chunk=vec(document["read_chunk"]),
            write_chunk=vec(document["write_chunk"]),
            format=document["format"],
            anchor_vx=None if anchor is None else vec(anchor),
            assumed=tuple(document["assumed"]),
            pinned=document["pinned"],
        )


def _places(node: dict[str, Any]) -> dict[str, Any]:
    """A part of a view, with places for its volumes."""
    if "volume" in node:
        return {"volume": VolumeSpec.from_json(node["volume"]).where()}
    if "array" in node:
        array = node["array"]
        return {"array": {k: v for k, v in array.items() if k not in ("source", "pinned")}}
    inputs = {"inputs": [_places(n) for n in node["inputs"]]} if "inputs" in node else {}
    steps = {"steps": [_places(s) for s in node["steps"]]} if "steps" in node else {}
    return node | inputs | steps
