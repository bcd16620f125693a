"""Writes boxes of voxels: whole write chunks, a transaction a shard, every future held.

A write whose future is dropped is lost without a word, also in a transaction that commits.
"""

import collections
import contextlib
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes.errors import RequestError, RunError
from volumes.formats import TS_ERRORS
from volumes.geometry import Box, ChunkGrid, Vec
from volumes.keys import keys_of
from volumes.opening import Volume
from volumes.writing.arrays import is_sharded
from volumes.writing.errors import storage_errors

SHARDS_IN_FLIGHT = 2
"""Shards that a worker encodes and stores at a time."""

PIECE_BYTES = 16 << 20
"""Where there are no shards: bytes of the chunks that are encoded and stored at a time."""

# How TensorStore tells of a chunk, or shard, that sticks out of the volume and so is read before it
# is written, and that cannot be decoded.
_DAMAGED = ("DATA_LOSS", "FAILED_PRECONDITION: Error reading ")


def write_box(volume: Volume, box: Box, voxels: npt.NDArray[Any]) -> None:
    """Write a box of whole write chunks; when this returns, every voxel of it is stored.

    A shard is there as a whole or not at all; one that is damaged is replaced.

    Args:
        volume: What ``open_for_writing`` returned.
        box: The box, in frame voxels: on each axis it begins at a write chunk and ends at one or at
            the end of the volume.
        voxels: Its voxels, ``[x, y, z]``, of the volume's dtype.

    Raises:
        RequestError: The box is not made of whole write chunks.
        RunError: The store refuses; the box is named. Other parts of the box may be written.
    """
    spec = volume.spec
    check_whole(box, spec.domain, spec.write_chunk)
    if voxels.shape != box.shape or voxels.dtype != volume.store.dtype.numpy_dtype:
        raise RunError(
            f"{voxels.dtype} voxels of shape {voxels.shape} do not fill {box} of a "
            f"{volume.store.dtype.name} volume"
        )
    sharded = spec.write_chunk != spec.read_chunk
    piece = spec.write_chunk if sharded else _piece(box, spec.write_chunk, voxels.itemsize)
    grid = ChunkGrid(box, piece, spec.domain.start)
    pending: collections.deque[_Write] = collections.deque()
    try:
        for index in range(grid.size):
            part = grid.box(index)
            pending.append(_Write(volume, part, voxels[part.slices(box)]))
            if len(pending) == SHARDS_IN_FLIGHT:
                pending.popleft().finish()
        while pending:
            pending.popleft().finish()
    finally:
        for write in pending:
            write.settle()


def check_whole(box: Box, domain: Box, chunk: Vec) -> None:
    """Refuse a box that does not begin and end at write chunks or at the end of the domain.

    Raises:
        RequestError: It does not, so that two workers could write one object.
    """
    whole = all(
        (a - o) % s == 0 and ((b - o) % s == 0 or b == end)
        for a, b, s, o, end in zip(
            box.start, box.stop, chunk, domain.start, domain.stop, strict=True
        )
    )
    if box.size == 0 or not domain.encloses(box) or not whole:
        raise RequestError(
            f"box {box} is not made of whole shards of {chunk} in the volume {domain}; two workers "
            "would write one shard: give a multiple of the shard on each axis"
        )


def _piece(box: Box, chunk: Vec, itemsize: int) -> Vec:
    """Whole chunks of a box that are at most ``PIECE_BYTES``, cut in z, then y, then x."""
    shape = [-(-n // c) * c for n, c in zip(box.shape, chunk, strict=True)]
    for axis in (2, 1, 0):
        layer = math.prod(shape) // shape[axis] * chunk[axis] * itemsize
        shape[axis] = min(shape[axis], max(1, PIECE_BYTES // layer) * chunk[axis])
    return (shape[0], shape[1], shape[2])


class _Write:
    """A part of a box on its way, with every future held until it is committed."""

    def __init__(self, volume: Volume, box: Box, voxels: npt.NDArray[Any]) -> None:
        self._volume, self._box, self._voxels = volume, box, voxels
        self._begin()

    def _begin(self) -> None:
        with storage_errors(self._doing()):
            transaction = ts.Transaction()
            ends = zip(self._box.start, self._box.stop, strict=True)
            index = tuple(itertools.starmap(slice, ends))
            target = self._volume.store.with_transaction(transaction)[index]
            self._written = target.write(self._voxels)
            self._written.copy.result()
            self._commit = transaction.commit_async()

    def finish(self) -> None:
        """Wait until it is committed; replace what is damaged."""
        try:
            self._wait()
        except ValueError as e:
            with storage_errors(self._doing()):
                if not str(e).startswith(_DAMAGED):
                    raise
                self._clear()
            self._begin()
            with storage_errors(self._doing()):
                self._wait()

    def settle(self) -> None:
        """Wait until nothing is under way any more, whatever comes of it."""
        with contextlib.suppress(*TS_ERRORS):
            self._wait()

    def _wait(self) -> None:
        self._commit.result()
        self._written.result()
        if self._volume.spec.format == "neuroglancer_precomputed" and is_sharded(self._volume):
            self._clear_zeros()

    def _clear(self) -> None:
        """Remove what is damaged, unless another worker has replaced it since."""
        store = self._volume.store.kvstore
        if store is None:
            raise RunError(f"a {self._volume.spec.format} volume lies in no key-value store")
        keys = keys_of(self._volume)
        for key in () if keys is None else keys.under(self._box):
            found = store.read(key, byte_range=slice(0, 0)).result()
            store.write(key, None, if_equal=found.stamp.generation).result()

    def _clear_zeros(self) -> None:
        """Remove precomputed shards of nothing but zeros, whose write leaves what was there."""
        keys, store = keys_of(self._volume), self._volume.store.kvstore
        if keys is None or store is None:
            raise RunError(f"the keys of {self._volume.spec.source} are not known")
        for key in keys.under(self._box):
            held = keys.box(key)
            if held is None or self._voxels[held.intersection(self._box).slices(self._box)].any():
                continue
            found = store.read(key, byte_range=slice(0, 0)).result()
            if found.state == "value":
                store.write(key, None, if_equal=found.stamp.generation).result()

    def _doing(self) -> str:
        return f"write voxels {self._box} of {self._volume.spec.source}"


def as_type(voxels: npt.NDArray[Any], dtype: str, where: str) -> npt.NDArray[Any]:
    """The same numbers in another type.

    Raises:
        RunError: The type does not hold one of them; the message says which and where.
    """
    wanted = np.dtype(dtype)
    if voxels.dtype == wanted:
        return voxels
    with np.errstate(all="ignore"):
        out = voxels.astype(wanted)
        back = out.astype(voxels.dtype)
    wrong = back != voxels
    if voxels.dtype.kind == out.dtype.kind == "f":
        wrong &= ~np.isnan(voxels)
    if voxels.dtype.kind == "f" and out.dtype.kind in "iu":  # what is too large may be cut off
        wrong |= voxels >= 2.0 ** _bits(out.dtype)
    if voxels.dtype.kind in "iu" and out.dtype.kind == "f":
        wrong |= out >= 2.0 ** _bits(voxels.dtype)
    if out.dtype.kind == "u" and voxels.dtype.kind in "if":
        wrong |= voxels < 0
    elif out.dtype.kind == "i" and voxels.dtype.kind == "u":
        wrong |= out < 0
    if wrong.any():
        value = voxels[wrong].ravel()[0]
        raise RunError(
            f"{where} holds {value}, which {dtype} does not hold exactly; give a wider --dtype, or "
            "a view that casts it by a rule of yours"
        )
    return out


def _bits(dtype: np.dtype[Any]) -> int:
    """Bits of a type of integers that tell how large they get."""
    return int(np.iinfo(dtype).max).bit_length()
