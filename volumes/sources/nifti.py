"""NIfTI files (``.nii``, ``.nii.gz``): headers by nibabel, voxels from the map or the gzip stream.

A gzip stream can only be read from its beginning. The reader goes on from where it stands, so
slabs in ascending order are decompressed once; a step back begins anew.
"""

import dataclasses
import gzip
import io
import math
import zlib
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec, Vec3, vec
from volumes.sources.base import Stamp, check_dtype, file_stamp, stated_size
from volumes.sources.flat import (
    FlatArray,
    FlatSource,
    check_whole,
    described_again,
    resolve_flat,
    settled_axes,
)
from volumes.spec import Kind

HEADER_BYTES = 544
"""Bytes from the start of a file that hold its header, of either version."""

GZIP = b"\x1f\x8b"
"""The first bytes of a gzip file."""

_MAGICS: dict[tuple[int, bytes], Any] = {(344, b"n+1\0"): Nifti1Header, (4, b"n+2\0"): Nifti2Header}
_UNITS_NM = {"meter": 1e9, "mm": 1e6, "micron": 1e3}
_NOISE = 1e-4


def is_nifti(head: bytes) -> bool:
    """Whether a file that begins with these (decompressed) bytes is a single NIfTI file."""
    return any(head[at : at + 4] == magic for at, magic in _MAGICS)


def unzipped_head(path: str) -> bytes:
    """The first decompressed bytes of a gzip file; none where it is damaged."""
    try:
        with gzip.open(path) as file:
            return file.read(HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def describe_nifti(path: str) -> FlatArray:
    """The array of a NIfTI file, given its absolute path.

    Axes are the stored ones: i = x, j = y, k = z. Space is asked to be an axis-aligned scaling; an
    axis that runs against it keeps its stored order, and is told of. The voxel size needs a unit.

    Raises:
        RequestError: The file is cut short or damaged, holds more than one number a voxel or
            scaled ones, or lies askew in space.
    """
    header = _header(path)
    shape = tuple(int(n) for n in header.get_data_shape())
    extra = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or extra:
        raise RequestError(
            f"{path} has shape {shape} (x, y, z, ...); a volume has three axes and one number a "
            "voxel: write the wanted part to a file of its own"
        )
    slope, inter = header.get_slope_inter()
    if slope not in (None, 1.0) or inter not in (None, 0.0):
        raise RequestError(
            f"{path} scales its values (by {slope:g}, plus {inter:g}), which would be lost; write "
            "the values themselves to a file and give that"
        )
    size, origin, notes = _space(header, path)
    offset, dtype = int(header.get_data_offset()), header.get_data_dtype().str
    array = FlatArray(offset, dtype, shape[:3], "F", "xyz", size, origin, notes)
    return array if _zipped(path) else check_whole(path, array)


def _header(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror}") from e
    if head.startswith(GZIP):
        head = unzipped_head(path)
    for (at, magic), kind in _MAGICS.items():
        if head[at : at + 4] == magic:
            try:
                return kind.from_fileobj(io.BytesIO(head))
            except (nibabel.spatialimages.HeaderDataError, OSError, ValueError, KeyError) as e:
                raise RequestError(
                    f"{path} has a damaged NIfTI header: {e}; supply the file again"
                ) from e
    raise RequestError(f"{path} is no single NIfTI file any more; give one")


def _zipped(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == GZIP


def _space(header: Any, path: str) -> tuple[Vec3 | None, Vec | None, tuple[str, ...]]:
    """Voxel size and origin, and what to say of the affine transform."""
    factor = _UNITS_NM.get(header.get_xyzt_units()[0])
    affine = header.get_sform(coded=True)[0]
    if affine is None:
        affine = header.get_qform(coded=True)[0]
    if affine is None:
        zooms = [float(v) for v in header.get_zooms()[:3]]
        return (
            (None if factor is None else stated_size([v * factor for v in zooms], path)),
            None,
            (),
        )
    linear = np.asarray(affine, np.float64)[:3, :3]
    scales = np.diag(linear)
    askew = np.abs(linear - np.diag(scales)).max()
    if not np.isfinite(linear).all() or askew > _NOISE * np.abs(scales).min():
        rows = "; ".join(", ".join(f"{v:g}" for v in row) for row in linear)
        raise RequestError(
            f"{path} has an affine transform that is no axis-aligned scaling ({rows}); its voxels "
            "lie askew or with their axes exchanged: resample or reorient it"
        )
    against = "".join(a for a, v in zip("xyz", scales, strict=True) if v < 0)
    notes = (f"its {', '.join(against)} axis runs against space; voxels keep their stored order",)
    size = None
    if factor is not None:
        size = stated_size([abs(float(v)) * factor for v in scales], path)
    if against:
        return size, None, notes
    voxels = [float(v) for v in np.asarray(affine)[:3, 3] / scales]
    if size is None or not any(voxels):
        return size, None, ()
    if all(abs(v - round(v)) < _NOISE for v in voxels):
        return size, vec(round(v) for v in voxels), ()
    told = ", ".join(f"{v:g}" for v in voxels)
    return size, None, (f"its origin of {told} voxels (x, y, z) is not whole and is left out",)


def resolve_nifti(
    path: str, axes: str | None, kind: Kind, asked: str | None = None
) -> "FlatSource | ZippedSource":
    """A source of a NIfTI file, given its absolute path.

    Raises:
        RequestError: The file cannot be read, or holds what no volume is made of.
    """
    if not _zipped(path):
        return resolve_flat("NIfTI", path, describe_nifti, axes, kind, asked)
    array = describe_nifti(path)
    check_dtype(np.dtype(array.dtype), kind, path, asked)
    settled_axes(array, axes, path)
    return ZippedSource(path, array)


@dataclasses.dataclass(frozen=True, slots=True)
class ZippedSource:
    """The array of a ``.nii.gz`` file.

    Attributes:
        url: Absolute path of the file.
        array: What its header says.
    """

    url: str
    array: FlatArray

    @property
    def shape(self) -> Vec:
        """Voxels, XYZ."""
        return vec(self.array.stored)

    @property
    def dtype(self) -> str:
        """Name of the dtype in native byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=").name

    @property
    def piece(self) -> Vec:
        """One plane of z."""
        return (self.shape[0], self.shape[1], 1)

    @property
    def plane_bytes(self) -> int:
        """Bytes of one plane of z."""
        return math.prod(self.piece) * np.dtype(self.array.dtype).itemsize

    @property
    def scratch_bytes(self) -> int:
        """A plane, as bytes and as it is taken apart."""
        return 2 * self.plane_bytes

    @property
    def voxel_size_nm(self) -> Vec3 | None:
        """The voxel size that the file states, XYZ."""
        return self.array.voxel_size_nm

    @property
    def origin_vx(self) -> Vec | None:
        """The frame voxel that the file states for its first voxel, XYZ."""
        return self.array.origin_vx

    def open(self) -> "ZippedReader":
        """Open the file."""
        return ZippedReader(self)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "type": "nifti",
            "url": self.url,
            "axes": "xyz",
            "shape": list(self.shape),
            "dtype": self.dtype,
            "compression": "gzip",
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        return (
            f"NIfTI file {self.url}, axes xyz",
            "it is one gzip stream, which each worker decompresses from its beginning up to each "
            "unit: gunzip it first to read it by several",
            *self.array.notes,
        )


class ZippedReader:
    """An open gzip stream, at the beginning of some plane."""

    absent = 0

    def __init__(self, source: ZippedSource) -> None:
        """Check that the file still is what was planned; the stream is opened when it is read."""
        self._source = source
        self._stream: gzip.GzipFile | None = None
        self._plane = 0
        described_again(source.url, describe_nifti, source.array)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        source = self._source
        nx, ny, nz = source.shape
        out = np.empty(box.shape, source.dtype, order="F")
        try:
            for z in range(box.start[2], box.stop[2]):
                plane = self._read_plane(z)
                plane = plane.reshape((nx, ny), order="F")
                out[:, :, z - box.start[2]] = plane[
                    box.start[0] : box.stop[0], box.start[1] : box.stop[1]
                ]
            if box.stop[2] == nz:
                self._check_sum()
        except (OSError, EOFError, zlib.error) as e:
            self.close()
            raise RunError(
                f"{source.url} cannot be read at {box} (x, y, z): {e}; repair or replace the file "
                "and run the same command again"
            ) from e
        return out

    def _read_plane(self, z: int) -> npt.NDArray[Any]:
        source = self._source
        if self._stream is None or self._plane > z:
            self.close()
            self._stream = gzip.open(source.url)
            self._skip(source.array.offset)
            self._plane = 0
        while self._plane < z:
            self._skip(source.plane_bytes)
            self._plane += 1
        data = self._stream.read(source.plane_bytes)
        if len(data) < source.plane_bytes:
            raise EOFError(f"it ends within plane {z}")
        self._plane += 1
        return np.frombuffer(data, source.array.dtype)

    def _skip(self, size: int) -> None:
        assert self._stream is not None
        if len(self._stream.read(size)) < size:
            raise EOFError(f"it ends within plane {self._plane}")

    def _check_sum(self) -> None:
        """Read to the end, where the stream's checksum is."""
        assert self._stream is not None
        while self._stream.read(1 << 20):
            pass

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamp of the file."""
        return (file_stamp(self._source.url),)

    def close(self) -> None:
        """Close the stream."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
