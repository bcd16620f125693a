"""Arrays whose voxels are computed when they are read.

TensorStore asks for a cell of the array's chunks and waits, without a thread, until it is filled: a
function that waited for other reads in TensorStore's own threads could take all of them and never
end. Reading goes on in one event loop a process; computing, in as many threads as there are cores.
"""

import asyncio
import concurrent.futures
import dataclasses
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes.context import process_context
from volumes.views.arrays import Array, Part, index_of

Voxels = npt.NDArray[Any]

_T = TypeVar("_T")


class Filler(Protocol):
    """Gives the voxels of a part of an array."""

    async def voxels(self, part: Part) -> Voxels:
        """The voxels of a part, of its shape and of the array's type."""


def computed(array: Array, filler: Filler) -> ts.TensorStore:
    """The array, computed by a filler."""
    layout = ts.ChunkLayout(
        grid_origin=[a.anchor for a in array.axes], chunk_shape=[a.chunk for a in array.axes]
    )
    return ts.virtual_chunked(
        _Fill(filler).fill,
        dtype=ts.dtype(array.dtype),
        domain=array.domain,
        chunk_layout=layout,
        loop=_loop(),
        context=process_context(),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Fill:
    filler: Filler

    async def fill(
        self, domain: ts.IndexDomain, out: Voxels, parameters: ts.VirtualChunkedReadParameters
    ) -> None:
        ends = zip(domain.inclusive_min, domain.exclusive_max, strict=True)
        out[...] = await self.filler.voxels(tuple(ends))


@dataclasses.dataclass(frozen=True, eq=False)
class EachVoxel:
    """Gives what a function makes of each voxel alone."""

    store: ts.TensorStore
    change: Callable[[Voxels], Voxels]

    async def voxels(self, part: Part) -> Voxels:
        """The voxels of a part."""
        return await away(self.change, await read(self.store, part))


async def read(store: ts.TensorStore, part: Part) -> Voxels:
    """The voxels of a part of an array."""
    return np.asarray(await store[index_of(part)].read())


async def away(function: Callable[..., _T], *arguments: Any) -> _T:
    """What a function returns, computed in another thread."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), function, *arguments)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop in which views read, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="views", daemon=True).start()
    return loop


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "views-compute")
