"""A directory of sections as a source: an image file a z, row = y, column = x.

A file is a section by what it holds (PNG, JPEG, TIFF), whatever it is called; formats may be mixed
where all sections have one size and one dtype. The last run of digits in a file's stem is the
section's number, and the numbers give the order. The description names no file: a reader lists the
directory again and compares the digest of the names, so that it stays small for any number of
sections.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import hashlib
import os
from collections import Counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from volumes import objects
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec, Vec3
from volumes.sources import images, remote
from volumes.sources.base import Stamp, check_dtype, file_stamp
from volumes.sources.headers import Header, ImageError
from volumes.sources.numbering import (
    LISTED,
    Missing,
    MissingSections,
    gaps,
    number_of,
    order,
    standing_for,
    told,
)
from volumes.sources.section_headers import below, headers_of
from volumes.spec import Kind

READ_THREADS = 4
"""Sections that are read and decoded at a time, at most."""

SCRATCH_BYTES = 256 * 2**20
"""Memory for that, unless a single section takes more."""

# Files of these names are looked at, whatever they hold: leaving one out would lose a section.
_IMAGES = {
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".btf", ".tf8", ".jp2", ".bmp", ".gif", ".webp",
    ".pgm", ".pnm", ".dm3", ".dm4",
}  # fmt: skip
_COPIES = 4


@dataclasses.dataclass(frozen=True, slots=True)
class SectionSource:
    """A directory of sections.

    Attributes:
        url: Absolute path or URL of the directory.
        shape: Voxels, XYZ; z runs from the first number to the last.
        dtype: Name of the dtype in native byte order.
        first: Number of the section at z = 0.
        names_digest: Digest of the file names in order.
        formats: Each format there is, with its number of sections.
        ignored: How many other files lie beside the sections.
        ignored_example: The first of them, or an empty string.
        missing: The sections that are not there, and what stands for them.
    """

    url: str
    shape: Vec
    dtype: str
    first: int
    names_digest: str
    formats: tuple[tuple[str, int], ...]
    ignored: int
    ignored_example: str
    missing: Missing

    @property
    def piece(self) -> Vec:
        """One section."""
        return (self.shape[0], self.shape[1], 1)

    @property
    def threads(self) -> int:
        """Sections that are read and decoded at a time."""
        return max(1, min(READ_THREADS, SCRATCH_BYTES // self._section_scratch))

    @property
    def scratch_bytes(self) -> int:
        """What the sections take that are decoded at a time."""
        return self.threads * self._section_scratch

    @property
    def _section_scratch(self) -> int:
        """The file, the decoded image and the copies on the way to an array."""
        return _COPIES * self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize

    @property
    def voxel_size_nm(self) -> Vec3 | None:
        """None: sections state no distance in z."""
        return None

    @property
    def origin_vx(self) -> Vec | None:
        """None: a section's number is its place among others, not in the frame."""
        return None

    def open(self) -> "SectionReader":
        """List the directory."""
        return SectionReader(self)

    def to_json(self) -> dict[str, Any]:
        """The description as JSON."""
        return {
            "type": "sections",
            "url": self.url,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "first": self.first,
            "names_digest": self.names_digest,
            "formats": dict(self.formats),
            "missing": self.missing.to_json(),
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        last = self.first + self.shape[2] - 1
        there = sum(n for _, n in self.formats)
        if len(self.formats) == 1:
            what = f"{there} {self.formats[0][0]} sections"
        else:
            what = f"{there} sections ({', '.join(f'{n} {name}' for name, n in self.formats)})"
        found = [f"{what} {self.first} to {last} in {self.url}"]
        if self.missing.count:
            found.append(self.missing.line())
        if self.ignored:
            files = "1 file that is" if self.ignored == 1 else f"{self.ignored} files that are"
            found.append(f"ignored: {files} no image (such as {self.ignored_example})")
        return tuple(found)


class SectionReader:
    """A directory of sections, listed."""

    def __init__(self, source: SectionSource) -> None:
        """List the sections of a source, and check that they still are the ones planned."""
        self._source = source
        self._absent = 0
        self._names, _ = _sections(source.url)
        self._numbers = [number_of(n) for n in self._names]
        if _digest(self._names) != source.names_digest:
            raise RunError(
                f"{source.url} no longer holds the sections that were planned; let nothing change "
                "it while it is read, and start again"
            )

    @property
    def absent(self) -> int:
        """Voxels of the last box read whose sections are missing."""
        return self._absent

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        source = self._source
        out = np.empty(box.shape, source.dtype, order="F")
        planes = self._planes(box)
        for z in planes.pop(None, []):
            out[:, :, z - box.start[2]] = 0
        rows = slice(box.start[1], box.stop[1])
        columns = slice(box.start[0], box.stop[0])

        def place(name: str, wanted: list[int]) -> None:
            part = self._section(name)[rows, columns].T
            for z in wanted:
                out[:, :, z - box.start[2]] = part

        with concurrent.futures.ThreadPoolExecutor(source.threads) as pool:
            futures = [pool.submit(place, cast(str, n), z) for n, z in planes.items()]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        there = range(source.first + box.start[2], source.first + box.stop[2])
        absent = len(there) - sum(1 for n in self._numbers_within(box) if n in there)
        self._absent = absent * box.shape[0] * box.shape[1]
        return out

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamp of each section that is read for the box."""
        names = [n for n in self._planes(box) if n is not None]
        path = objects.local_path(self._source.url)
        if path is not None:
            return tuple(file_stamp(os.path.join(path, n)) for n in names)
        results = remote.starts(self._source.url, names, 0)
        return tuple(
            (n, f"generation:{r.stamp.generation.hex()}")
            for n, r in zip(names, results, strict=True)
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _planes(self, box: Box) -> dict[str | None, list[int]]:
        """The section that is read for each z of a box, in order; None for a blank."""
        planes: dict[str | None, list[int]] = collections.defaultdict(list)
        policy = self._source.missing.policy
        for z in range(box.start[2], box.stop[2]):
            at = standing_for(self._numbers, self._source.first + z, policy)
            planes[None if at is None else self._names[at]].append(z)
        return dict(planes)

    def _numbers_within(self, box: Box) -> list[int]:
        first = self._source.first
        at = [bisect.bisect_left(self._numbers, first + z) for z in (box.start[2], box.stop[2])]
        return self._numbers[at[0] : at[1]]

    def _section(self, name: str) -> npt.NDArray[Any]:
        """The pixels of a section, ``[y, x]``."""
        source = self._source
        where = below(source.url, name)
        data = objects.read(where)
        if data is None:
            raise RunError(f"{where} is gone; put it back and run the same command again")
        try:
            pixels = images.decode(data)
        except ImageError as e:
            raise RunError(
                f"{where} {e}; repair or replace it and run the same command again, which reads "
                "only what is not written yet"
            ) from e
        if pixels.shape != (source.shape[1], source.shape[0]) or pixels.dtype != source.dtype:
            raise RunError(
                f"{where} now is {pixels.shape[1]} x {pixels.shape[0]} of {pixels.dtype}, planned "
                f"was {source.shape[0]} x {source.shape[1]} of {source.dtype}; put the planned "
                "section back and run the same command again"
            )
        return pixels


def resolve_sections(
    url: str, kind: Kind, asked: str | None = None, missing: MissingSections = "refuse"
) -> SectionSource:
    """Describe a directory of sections from the headers of all of them.

    Args:
        url: Absolute path or URL of the directory.
        kind: What the volume is to hold.
        asked: The dtype that the volume is to have; None for the sections' own.
        missing: What a missing section is.

    Raises:
        RequestError: There are no sections, numbers repeat or are missing, or a header is no image
            header, not of one number a pixel, or unlike the first.
    """
    names, others = _listed(url, missing)
    headers = headers_of(url, names)
    for name, header in zip(names, headers, strict=True):
        _check_plain(below(url, name), header, kind)
    _check_alike(url, names, headers)
    first = headers[0]
    numbers = [number_of(n) for n in names]
    return SectionSource(
        url=url,
        shape=(first.width, first.height, numbers[-1] - numbers[0] + 1),
        dtype=check_dtype(np.dtype(first.dtype), kind, url, asked),
        first=numbers[0],
        names_digest=_digest(names),
        formats=tuple(sorted(Counter(h.format for h in headers).items())),
        ignored=len(others),
        ignored_example=others[0] if others else "",
        missing=Missing.of(numbers, missing),
    )


def _listed(url: str, missing: MissingSections) -> tuple[list[str], list[str]]:
    """The sections of a directory in order, and the other files that lie there."""
    sections, others = _sections(url)
    if not sections:
        raise RequestError(
            f"{url} holds no PNG, JPEG or TIFF files ({len(others)} others); give a directory of "
            "sections NAME.NUMBER.png, or a file: HDF5, NPY, TIFF, MRC or NIfTI"
        )
    for name in sections:
        if number_of(name) < 0:
            raise RequestError(
                f"{below(url, name)} has no number in its name; the last digits of a section's "
                "name give its place in z: rename it, or move it away"
            )
    _check_numbers(url, sections, missing)
    return sections, others


def _sections(url: str) -> tuple[list[str], list[str]]:
    """The names of a directory's sections in order of number, and those of other files."""
    files = [n for n in objects.names(url) if not n.endswith("/") and not n.startswith(".")]
    sections = {n for n in files if os.path.splitext(n)[1].lower() in _IMAGES}
    rest = [n for n in files if n not in sections]
    path = objects.local_path(url)
    if path is not None:
        heads = [_head(os.path.join(path, n)) for n in rest]
    else:
        size = images.SIGNATURE_BYTES
        heads = [bytes(r.value) for r in remote.starts(url, rest, size)] if rest else []
    sections |= {
        n for n, head in zip(rest, heads, strict=True) if images.format_of(head) is not None
    }
    return sorted(sections, key=order), [n for n in rest if n not in sections]


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(images.SIGNATURE_BYTES)
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror}; make it readable") from e


def _check_numbers(url: str, names: list[str], missing: MissingSections) -> None:
    """Refuse numbers that repeat and, unless something stands for them, numbers that lack."""
    numbers = [number_of(n) for n in names]
    repeated = [n for n, count in Counter(numbers).items() if count > 1]
    if repeated:
        number = repeated[0]
        same = ", ".join(n for n, k in zip(names, numbers, strict=True) if k == number)
        more = f" (and {len(repeated) - 1} more numbers repeat)" if len(repeated) > 1 else ""
        raise RequestError(
            f"{url}: number {number} is borne by {same}{more}; a section's number is its place in "
            "z: move the others away"
        )
    runs = list(gaps(numbers))
    if runs and missing == "refuse":
        named = told(runs[:LISTED], max(0, len(runs) - LISTED))
        count = sum(b - a + 1 for a, b in runs)
        verb = "section {} is" if count == 1 else "sections {} are"
        raise RequestError(
            f"{url}: {verb.format(named)} missing between {numbers[0]} and {numbers[-1]}; leaving "
            "them out would shift all that follow in z: supply them, or say what stands for them "
            "with --missing-sections blank (zeros) or nearest (a copy of the nearest section)"
        )


def _check_plain(where: str, header: Header, kind: Kind) -> None:
    if kind == "segmentation" and header.format == "JPEG":
        raise RequestError(
            f"{where} is JPEG, which changes values a little; ids would become others: give the "
            "ids as PNG or TIFF sections, or as an HDF5 or NPY file of integers"
        )
    if header.dtype is not None:
        return
    remedy = "convert the sections to 8-bit or 16-bit grey"
    if kind == "segmentation":
        remedy += ", or give the ids as an HDF5 or NPY file of integers"
    raise RequestError(
        f"{where} is {header.colour} with {header.depth} bits a sample; a section is grey with "
        f"whole bytes (mode L or I;16), since a voxel holds one number: {remedy}"
    )


def _check_alike(url: str, names: list[str], headers: list[Header]) -> None:
    """Refuse sections that differ in size or dtype from the first."""
    first = headers[0]
    for name, header in zip(names, headers, strict=True):
        wanted = (first.width, first.height, first.dtype)
        if (header.width, header.height, header.dtype) != wanted:
            raise RequestError(
                f"{below(url, name)} is {header}, but {names[0]} is {first}; all sections of a "
                "volume are alike: pad or crop them to one size, in one depth"
            )


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]
