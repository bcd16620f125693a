"""What volumes of other software are compared with: arrays, and reading by this project."""

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.geometry import Vec, Vec3
from volumes.opening import open_volume, resolve_volume
from volumes.reading import read_box

Array = npt.NDArray[Any]

SIZE: Vec3 = (8.0, 8.0, 40.0)
"""Of the finest voxels, anisotropic."""

HUGE = 2**63 + 1
"""An id that no float holds."""


def image(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Noise of which no voxel is 0, so that one that was not read is told."""
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def smooth(shape: tuple[int, ...]) -> Array:
    """Grey values that a lossy codec keeps nearly."""
    parts = [np.sin(np.linspace(0, 3, n)) for n in shape]
    waves = parts[0][:, None, None] * parts[1][None, :, None] * parts[2][None, None, :]
    return (40 + 180 * waves).astype(np.uint8)


def labels(shape: tuple[int, ...], dtype: str = "uint64", seed: int = 0) -> Array:
    """Blocks of ids, those of uint64 beyond 2**53, with background."""
    coarse = tuple(-(-n // 5) for n in shape)
    ids = np.random.default_rng(seed).integers(0, 40, coarse).astype(np.uint64)
    if dtype == "uint64":
        ids = np.where(ids == 0, ids, ids + np.uint64(HUGE))
    for axis in range(3):
        ids = ids.repeat(5, axis)
    return ids[: shape[0], : shape[1], : shape[2]].astype(dtype)


def strided(finest: Array, factors: list[tuple[int, int, int]]) -> list[Array]:
    """Levels that take every n-th voxel; each begins at the first voxel of the one before."""
    levels = [finest]
    for x, y, z in factors:
        levels.append(np.ascontiguousarray(levels[-1][::x, ::y, ::z]))
    return levels


def read_by_us(
    volume: pathlib.Path | str, kind: Any, scale: Vec3 | None = None, **stated: Any
) -> tuple[Array, Vec3, Vec]:
    """Voxels, voxel size and origin of a volume as read here; nothing may be missing."""
    spec = resolve_volume(str(volume), kind=kind, scale=scale, **stated)
    part = read_box(open_volume(spec), spec.domain, missing="error")
    assert part.missing == ()
    return part.array, spec.voxel_size_nm, spec.origin_vx


def assert_coarser(
    coarse: Array, finer: Array, start: Vec, factors: Vec, kind: Any
) -> tuple[int, ...]:
    """Each coarse voxel is the mean (image) or a most frequent id of the finer ones that it covers.

    Coarse voxels are counted from the frame's voxel 0, so one at the edge may cover fewer finer
    ones. A mean may be rounded either way where it lies in the middle, and of ids that are equally
    frequent any may stand.

    Returns:
        The coarse level's first voxel.
    """
    blocks, first = _blocks(finer, start, factors)
    assert coarse.shape == blocks.shape[:3]
    if kind == "image":
        mean = np.ma.mean(blocks.astype(np.float64), axis=-1)
        assert np.abs(coarse - mean).max() <= 0.5
        assert (coarse != finer[: coarse.shape[0], : coarse.shape[1], : coarse.shape[2]]).any()
        return first
    same = [(blocks == blocks[..., i : i + 1]).sum(axis=-1) for i in range(blocks.shape[-1])]
    most = np.ma.stack(same).max(axis=0)
    np.testing.assert_array_equal((blocks == coarse[..., None]).sum(axis=-1), most)
    return first


def _blocks(finer: Array, start: Vec, factors: Vec) -> tuple[np.ma.MaskedArray, Vec]:
    """The finer voxels under each coarse one, along a fourth axis, and the first coarse voxel."""
    before = [a % f for a, f in zip(start, factors, strict=True)]
    counts = [-(-(b + n) // f) for b, n, f in zip(before, finer.shape, factors, strict=True)]
    whole = np.ma.masked_all([n * f for n, f in zip(counts, factors, strict=True)], finer.dtype)
    inner = (slice(b, b + n) for b, n in zip(before, finer.shape, strict=True))
    whole[tuple(inner)] = finer
    nx, ny, nz = counts
    fx, fy, fz = factors
    turned = whole.reshape(nx, fx, ny, fy, nz, fz).transpose(0, 2, 4, 1, 3, 5)
    first = tuple(a // f for a, f in zip(start, factors, strict=True))
    return turned.reshape(nx, ny, nz, -1), (first[0], first[1], first[2])
