"""Reads boxes of volumes: chunk by chunk, many at once, nothing decoded twice in a box.

A box is cut into its pieces, each what one read chunk has of it, and the pieces of all boxes asked
for together are read in a few batches of bounded size. So TensorStore merges requests of one shard,
no chunk is decoded twice for a box, and a chunk that is not stored is told by its own piece. Where
chunks stay in a pool the first piece is the whole box, which is quicker; it is cut only where it
fails, and what was read for it is in the pool.

A chunk that is not stored is zero here, whatever fill value the format states, and is reported.
TensorStore tells it for every format that ``volumes.formats`` knows, but for a whole shard of a
precomputed volume, which it may read as zeros: where there are only zeros, the shard is looked for.
It does not tell it for a JSON spec of another driver (``cast``, ``stack``, ``downsample``): there
it is the fill value.
A piece of a view may be made of several stored chunks: where one of them is absent the piece is
reported whole, and is read again with that chunk's fill value in its place.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes.errors import DataError, RunError
from volumes.formats import TS_ERRORS, told
from volumes.geometry import Box, ChunkGrid, vec
from volumes.keys import keys_of
from volumes.opening import Volume
from volumes.spec import VIEW, VolumeSpec
from volumes.views.tree import read_per_voxel

MissingChunks = Literal["error", "zero"]
"""What a chunk that is not stored is: an error of the read, or zeros that are reported."""

BYTES_IN_FLIGHT = 256 << 20
"""Decoded bytes of the chunks that are read at once, unless told otherwise."""

LIMIT_BYTES = 8 << 30
"""The most bytes that one call may allocate, unless told otherwise."""

_MISSING = re.compile(r"NOT_FOUND: .*\bis missing\b", re.DOTALL)

# What tells of the chunk, not of the storage: no status at all is an invalid argument, such as
# bytes that do not decode; a chunk that was replaced since it was read does not fit its generation.
_OF_THE_DATA = re.compile(
    r"DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION|INVALID_ARGUMENT"
    r"|ABORTED.*Generation mismatch|(?![A-Z_]+: )",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A box of a volume to be read.

    Attributes:
        volume: What to read.
        box: Which frame voxels, XYZ; it may reach outside the volume's domain.
        missing: What a chunk that is not stored is.
        order: Memory order of the array; ``F`` (x fastest) is quicker where it is stored so.
    """

    volume: Volume
    box: Box
    missing: MissingChunks = "zero"
    order: Literal["C", "F"] = "C"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A box as it was read.

    Attributes:
        box: The box, in frame voxels.
        array: Its voxels, ``box.shape``, XYZ, in the stored type; 0 outside the volume
            and where chunks are not stored.
        missing: What the box has of each chunk that is not stored.
        bytes_decoded: Bytes of the chunks that had to be decoded, whole but for the domain's edge.
    """

    box: Box
    array: npt.NDArray[Any]
    missing: tuple[Box, ...]
    bytes_decoded: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Subvolume:
    """A read box with its image and segmentation arrays.

    Attributes:
        box: The image's box, in frame voxels.
        image: Its grey values, uint8 of ``box.shape``, XYZ.
        labels_box: The segmentation's box; the image's own unless another was asked for.
        labels: Its ids, in the stored integer type, of ``labels_box.shape``, XYZ.
        missing_image: What the box has of image chunks that are not stored.
        missing_labels: What the box has of segmentation chunks that are not stored.
        bytes_decoded: Bytes of the chunks of both that had to be decoded.
    """

    box: Box
    image: npt.NDArray[np.uint8]
    labels_box: Box
    labels: npt.NDArray[Any]
    missing_image: tuple[Box, ...]
    missing_labels: tuple[Box, ...]
    bytes_decoded: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """What one chunk has of a requested box, or all of what the domain has of it.

    Attributes:
        request: Index of the request.
        box: The piece.
        cost: Bytes of the decoded chunks.
        read: Bytes that are read for it, which for a view may be more.
        whole: Whether it may be cut into what each chunk has.
    """

    request: int
    box: Box
    cost: int
    read: int
    whole: bool = False


def chunks_under(spec: VolumeSpec, box: Box) -> int:
    """Number of read chunks that meet a box, from geometry alone."""
    return spec.read_grid.count_meeting(box)


def decoded_bytes(spec: VolumeSpec, box: Box) -> int:
    """Bytes of the read chunks that meet a box, each clipped to the domain, from geometry alone.

    It is what ``read_box`` reports where every chunk is stored.
    """
    part = spec.domain.intersection(box)
    if part.size == 0:
        return 0
    grid = spec.read_grid
    touched = ChunkGrid(part, grid.chunk, grid.anchor)
    last = vec(f + n - 1 for f, n in zip(touched.first, touched.counts, strict=True))
    hull = grid.cell(touched.first).hull(grid.cell(last))
    return hull.intersection(spec.domain).size * spec.itemsize


def read_box(
    volume: Volume,
    box: Box,
    *,
    missing: MissingChunks = "zero",
    order: Literal["C", "F"] = "C",
    bytes_in_flight: int = BYTES_IN_FLIGHT,
    limit_bytes: int = LIMIT_BYTES,
) -> Part:
    """Read one box of one volume: see ``read_boxes``."""
    request = Request(volume, box, missing, order)
    return read_boxes((request,), bytes_in_flight=bytes_in_flight, limit_bytes=limit_bytes)[0]


def read_whole(volume: Volume, box: Box) -> npt.NDArray[Any] | None:
    """Read a box that is all there at once, x fastest, without cutting it into chunks.

    Quicker than ``read_box``, which tells what is wrong where this gives None: something of the box
    is not stored, damaged or outside the domain, or storage fails.
    """
    if not volume.spec.domain.encloses(box):
        return None
    try:
        voxels = np.asarray(volume.store[_index(box)].read(order="F").result())
        _check_shards(volume, box, voxels)
        return voxels
    except TS_ERRORS:
        return None


def read_subvolume(
    image: Volume,
    segmentation: Volume,
    box: Box,
    labels_box: Box | None = None,
    *,
    missing_image: MissingChunks = "zero",
    missing_labels: MissingChunks = "zero",
    bytes_in_flight: int = BYTES_IN_FLIGHT,
    limit_bytes: int = LIMIT_BYTES,
) -> Subvolume:
    """Read a box of image and segmentation together: see ``read_boxes``.

    Args:
        image: Open image.
        segmentation: Open segmentation.
        box: Frame voxels to read of the image, and of the segmentation unless told otherwise.
        labels_box: Frame voxels to read of the segmentation, where they are others.
        missing_image: What an image chunk that is not stored is.
        missing_labels: What a segmentation chunk that is not stored is.
        bytes_in_flight: Decoded bytes of the chunks read at once.
        limit_bytes: The most bytes to allocate.
    """
    labels_box = box if labels_box is None else labels_box
    requests = (
        Request(image, box, missing_image),
        Request(segmentation, labels_box, missing_labels),
    )
    grey, ids = read_boxes(requests, bytes_in_flight=bytes_in_flight, limit_bytes=limit_bytes)
    return Subvolume(
        box=box,
        image=grey.array,
        labels_box=labels_box,
        labels=ids.array,
        missing_image=grey.missing,
        missing_labels=ids.missing,
        bytes_decoded=grey.bytes_decoded + ids.bytes_decoded,
    )


def read_boxes(
    requests: Sequence[Request],
    *,
    bytes_in_flight: int = BYTES_IN_FLIGHT,
    limit_bytes: int = LIMIT_BYTES,
) -> list[Part]:
    """Read boxes of one or several volumes, in common batches.

    Args:
        requests: What to read.
        bytes_in_flight: Decoded bytes of the chunks in a batch; a chunk larger than that is read
            alone.
        limit_bytes: The most bytes that the arrays and the largest batch may take together.

    Returns:
        The boxes, in the order of the requests.

    Raises:
        DataError: A chunk is damaged, or missing where that is an error.
        RunError: Storage fails, or the limit is passed.
    """
    _check_memory(requests, bytes_in_flight, limit_bytes)
    arrays: dict[int, npt.NDArray[Any]] = {}
    missing: list[list[Box]] = [[] for _ in requests]
    decoded = [0] * len(requests)
    pieces = _pieces(requests, bytes_in_flight)
    for piece, result, absent in _read(pieces, requests, bytes_in_flight):
        if absent:
            missing[piece.request].append(piece.box)
        if result is None:
            continue
        request = requests[piece.request]
        if piece.box == request.box:
            arrays[piece.request] = result
        else:
            if piece.request not in arrays:
                arrays[piece.request] = _zeros(request)
            arrays[piece.request][piece.box.slices(request.box)] = result
        decoded[piece.request] += piece.cost
    return [
        Part(r.box, arrays[i] if i in arrays else _zeros(r), tuple(missing[i]), decoded[i])
        for i, r in enumerate(requests)
    ]


def _zeros(request: Request) -> npt.NDArray[Any]:
    """What is read of a box of which nothing is stored."""
    dtype = ts.dtype(request.volume.spec.dtype).numpy_dtype
    return np.zeros(request.box.shape, dtype, order=request.order)


def _check_memory(requests: Sequence[Request], bytes_in_flight: int, limit_bytes: int) -> None:
    """Refuse what cannot be allocated; TensorStore would end the process instead."""
    arrays = sum(r.box.size * r.volume.spec.itemsize for r in requests)
    touched = 0
    chunks = []
    for spec, box in ((r.volume.spec, r.box) for r in requests):
        if chunks_under(spec, box):
            more = _read_per_byte(spec)
            touched += round(more * decoded_bytes(spec, box))
            chunks.append(round(more * _chunk_bytes(spec)))
    needed = arrays + max(min(bytes_in_flight, touched), *chunks, 0)
    if needed > limit_bytes:
        asked = ", ".join(f"{r.box} of {r.volume.spec.source}" for r in requests)
        raise RunError(
            f"reading {asked} would take {needed:,} bytes of memory, above the limit of "
            f"{limit_bytes:,}; use a smaller --box, or a volume with smaller chunks"
        )


def _chunk_bytes(spec: VolumeSpec) -> int:
    """Bytes of one decoded chunk; precomputed alone stores chunks clipped to the domain."""
    chunk = Box.of((0, 0, 0), spec.read_chunk)
    if spec.driver == "neuroglancer_precomputed":
        chunk = chunk.intersection(Box.of((0, 0, 0), spec.domain.shape))
    return chunk.size * spec.itemsize


def _read_per_byte(spec: VolumeSpec) -> float:
    """Bytes that are read for each byte of a chunk; only for a view are they more."""
    return read_per_voxel(spec) if spec.format == VIEW else 1.0


def _pieces(requests: Sequence[Request], bytes_in_flight: int) -> Iterator[_Piece]:
    """The pieces of all boxes."""
    for index, request in enumerate(requests):
        spec = request.volume.spec
        part = spec.domain.intersection(request.box)
        cost = decoded_bytes(spec, part)
        read = round(_read_per_byte(spec) * cost)
        if request.volume.pooled and 0 < read <= bytes_in_flight:
            yield _Piece(index, part, cost, read, whole=True)
        else:
            yield from _cut(spec, index, part)


def _cut(spec: VolumeSpec, index: int, part: Box) -> Iterator[_Piece]:
    """The pieces of a request's part of the domain, cut at the volume's chunks, x fastest."""
    itemsize, more = spec.itemsize, _read_per_byte(spec)
    xs, ys, zs = (_cuts(spec, part, axis) for axis in range(3))
    for (z0, z1, nz), (y0, y1, ny), (x0, x1, nx) in itertools.product(zs, ys, xs):
        cost = nx * ny * nz * itemsize
        yield _Piece(index, Box((x0, y0, z0), (x1, y1, z1)), cost, round(more * cost))


def _cuts(spec: VolumeSpec, part: Box, axis: int) -> list[tuple[int, int, int]]:
    """Along one axis: what each chunk has of a part, as (start, stop), and its decoded extent."""
    if part.size == 0:
        return []
    start, stop = part.start[axis], part.stop[axis]
    first, end = spec.domain.start[axis], spec.domain.stop[axis]
    chunk, anchor = spec.read_chunk[axis], spec.read_grid.anchor[axis]
    cells = range((start - anchor) // chunk, -((anchor - stop) // chunk))
    ends = ((anchor + i * chunk, anchor + (i + 1) * chunk) for i in cells)
    return [(max(a, start), min(b, stop), min(b, end) - max(a, first)) for a, b in ends]


def _batches(pieces: Iterator[_Piece], bytes_in_flight: int) -> Iterator[list[_Piece]]:
    """Consecutive pieces for which no more than ``bytes_in_flight`` is read, at least one."""
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        if batch and size + piece.read > bytes_in_flight:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.read
    if batch:
        yield batch


def _read(
    pieces: Iterator[_Piece], requests: Sequence[Request], bytes_in_flight: int
) -> Iterator[tuple[_Piece, npt.NDArray[Any] | None, bool]]:
    """The voxels of each piece, None where there are none, and whether a chunk is absent."""
    for batch in _batches(pieces, bytes_in_flight):
        failed = []
        for found in _read_batch(batch, requests):
            piece, result, absent = found
            if piece.whole and result is None:
                failed.append(piece)
            else:
                yield found
        for piece in failed:
            cut = _cut(requests[piece.request].volume.spec, piece.request, piece.box)
            yield from _read(cut, requests, bytes_in_flight)


def _read_batch(
    batch: list[_Piece], requests: Sequence[Request]
) -> Iterator[tuple[_Piece, npt.NDArray[Any] | None, bool]]:
    """The pieces of one batch; one that may be cut has no voxels where it fails."""
    reads = []
    with ts.Batch() as together:
        for piece in batch:
            request = requests[piece.request]
            part = request.volume.store[_index(piece.box)]
            reads.append(part.read(batch=together, order=request.order))
    reads.reverse()
    for piece in batch:
        request = requests[piece.request]
        result: npt.NDArray[Any] | None = None
        absent = False
        try:
            read = np.asarray(reads.pop().result())
            _check_shards(request.volume, piece.box, read)
            result = read
        except TS_ERRORS as e:
            absent = _MISSING.match(str(e)) is not None
            if not piece.whole and (not absent or request.missing == "error"):
                raise _failure(request, piece.box, e, absent) from e
        if absent and not piece.whole and request.volume.filled is not None:
            result = _again(request, piece.box)
        yield piece, result, absent


def _check_shards(volume: Volume, box: Box, voxels: npt.NDArray[Any]) -> None:
    """Look whether zeros are those of a precomputed shard that is not stored.

    Raises:
        ValueError: They are; the error says so as TensorStore says it of a chunk.
    """
    spec = volume.spec
    if spec.format != "neuroglancer_precomputed" or spec.read_chunk == spec.write_chunk:
        return
    keys, store = keys_of(volume), volume.store.kvstore
    if voxels.all() or keys is None or store is None:
        return
    for key in keys.under(box):
        held = (keys.box(key) or box).intersection(box)
        if voxels[held.slices(box)].any():
            continue
        if store.read(key, byte_range=slice(0, 0)).result().state == "missing":
            raise ValueError(f"NOT_FOUND: shard {key} is missing")


def _again(request: Request, box: Box) -> npt.NDArray[Any]:
    """A piece of a view with fill values for the chunks that are not stored."""
    filled = request.volume.filled
    assert filled is not None  # the caller looked
    try:
        return np.asarray(filled.store[_index(box)].read().result())
    except TS_ERRORS as e:
        raise _failure(request, box, e, absent=False) from e


def is_of_the_data(error: Exception) -> bool:
    """Whether TensorStore's error tells of what is stored, and not of the storage."""
    return _OF_THE_DATA.match(str(error)) is not None


def _index(box: Box) -> tuple[slice, ...]:
    """A box as a TensorStore index."""
    return tuple(itertools.starmap(slice, zip(box.start, box.stop, strict=True)))


def _failure(request: Request, box: Box, error: Exception, absent: bool) -> RunError:
    """What to say of a piece that cannot be read."""
    kind = DataError if is_of_the_data(error) else RunError
    where = f"voxels {box} of the {request.volume.spec.kind} {request.volume.spec.source}"
    if absent:
        return kind(
            f"{where} are in a chunk that is not stored: {told(error)}; restore it, or let missing "
            "chunks be zero"
        )
    return kind(f"{where} cannot be read: {told(error)}; restore the chunk, or try again")
