"""Layouts of every format and small volumes of them, for tests."""

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from volumes.geometry import vec
from volumes.opening import Volume
from volumes.writing import Target, VolumeLayout, create_levels, open_for_writing
from volumes.writing.codecs import FORMATS
from volumes.writing.layout import PRECOMPUTED_DTYPES
from volumes.writing.morton import legal_shards

PROVENANCE = {
    "source": "em",
    "time": "2026-01-02T03:04:05+00:00",
    "version": "1",
    "parameters": {},
}

DTYPES = (*PRECOMPUTED_DTYPES, "int64", "float64")

SEVERAL_CHUNKS = ("zarr3", "ome-zarr", "precomputed")
"""The formats that know shards."""


def layout_of(**changes: Any) -> VolumeLayout:
    """A layout with an origin, a voxel size and a shape that differ on each axis."""
    fields = {
        "shape": (11, 7, 5),
        "dtype": "uint8",
        "kind": "image",
        "voxel_size_nm": (4.0, 4.0, 33.5),
        "origin_vx": (100, -20, 3),
        "chunk": (4, 2, 3),
        "shard": (4, 4, 3),
    }
    fields |= changes
    if "shard" not in changes and fields.get("format", "zarr3") not in ("zarr3", "ome-zarr"):
        fields["shard"] = None
    return VolumeLayout(**fields)


def voxels_of(layout: VolumeLayout, seed: int = 5) -> npt.NDArray[Any]:
    """Voxels over the whole range of the dtype, none of which is 0."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(layout.dtype)
    if dtype.kind == "f":
        return rng.normal(size=layout.shape).astype(dtype)
    info = np.iinfo(dtype)
    found = rng.integers(info.min, info.max, layout.shape, dtype, endpoint=True)
    return np.where(found == 0, dtype.type(1), found)


def made(path: pathlib.Path, layout: VolumeLayout) -> Volume:
    """A new volume of a layout, open for writing."""
    target = Target(str(path), layout)
    create_levels([target], PROVENANCE)
    return open_for_writing(target)


@st.composite
def layouts(draw: st.DrawFn) -> VolumeLayout:
    """Layouts of any format: small volumes of any shape, place, type, stored order and shards."""
    form = draw(st.sampled_from(FORMATS))
    shape = draw(st.tuples(*[st.integers(1, 17)] * 3))
    chunk = draw(st.tuples(*[st.integers(1, 6)] * 3))
    shard = None
    if form in SEVERAL_CHUNKS and draw(st.booleans()):
        if form == "precomputed":
            shard = draw(st.sampled_from(legal_shards(shape, chunk)))
        else:
            shard = vec(c * draw(st.integers(1, 3)) for c in chunk)
    dtype = draw(st.sampled_from(PRECOMPUTED_DTYPES if form == "precomputed" else DTYPES))
    ids = np.dtype(dtype).kind == "u" and draw(st.booleans())
    axes = tuple("xyz") if form == "precomputed" else tuple(draw(st.permutations("xyz")))
    return VolumeLayout(
        shape=shape,
        dtype=dtype,
        kind="segmentation" if ids else "image",
        voxel_size_nm=draw(st.tuples(*[st.sampled_from([1.0, 4.0, 33.5, 0.125, 1000.0])] * 3)),
        origin_vx=draw(st.tuples(*[st.integers(-(10**6), 10**6)] * 3)),
        chunk=chunk,
        shard=shard,
        format=form,
        axes=axes,
    )
