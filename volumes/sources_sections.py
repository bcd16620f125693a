"""A directory of PNG sections as a source: one section a z, row = y, column = x.

The last run of digits in a file's stem is the section's number, and the numbers give the order. The
description names no file: a reader lists the directory again and compares the digest of the names,
so that it stays small for any number of sections.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from volumes import objects, png
from volumes.context import process_context
from volumes.errors import RequestError, RunError
from volumes.geometry import Box, Vec
from volumes.sources_base import Stamp, check_dtype, file_stamp
from volumes.spec import Kind
from volumes.writing import storage_errors

READ_THREADS = 4
"""Sections that are read and decoded at a time, at most."""

SCRATCH_BYTES = 256 * 2**20
"""Memory for that, unless a single section takes more."""

_OTHER_IMAGES = {
    ".tif", ".tiff", ".jpg", ".jpeg", ".jp2", ".bmp", ".gif", ".webp", ".pgm", ".pnm", ".dm3"
}  # fmt: skip
_AT_ONCE = 256
_COPIES = 4
_NAMED = 10


@dataclasses.dataclass(frozen=True, slots=True)
class SectionSource:
    """A directory of PNG sections.

    Attributes:
        url: Absolute path or URL of the directory.
        shape: Voxels, XYZ; z is the number of sections.
        dtype: ``uint8`` or ``uint16``.
        first: Number of the section at z = 0.
        names_digest: Digest of the file names in order.
        ignored: How many other files lie beside the sections.
        ignored_example: The first of them, or an empty string.
    """

    url: str
    shape: Vec
    dtype: str
    first: int
    names_digest: str
    ignored: int
    ignored_example: str

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
        }

    def lines(self) -> tuple[str, ...]:
        """The description for people."""
        last = self.first + self.shape[2] - 1
        found = f"{self.shape[2]} PNG sections {self.first} to {last} in {self.url}"
        if not self.ignored:
            return (found,)
        files = "1 file that is" if self.ignored == 1 else f"{self.ignored} files that are"
        return (found, f"ignored: {files} no image (such as {self.ignored_example})")


class SectionReader:
    """A directory of sections, listed."""

    def __init__(self, source: SectionSource) -> None:
        """List the sections of a source, and check that they still are the ones planned."""
        self._source = source
        self._names = sorted((n for n in objects.names(source.url) if _is_png(n)), key=_order)
        if _digest(self._names) != source.names_digest:
            raise RunError(
                f"{source.url} no longer holds the sections that were planned; let nothing change "
                "it while it is read, and start again"
            )

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box, ``[x, y, z]``."""
        out = np.empty(box.shape, self._source.dtype, order="F")

        def place(z: int) -> None:
            rows = slice(box.start[1], box.stop[1])
            columns = slice(box.start[0], box.stop[0])
            out[:, :, z - box.start[2]] = self._section(z)[rows, columns].T

        with concurrent.futures.ThreadPoolExecutor(self._source.threads) as pool:
            futures = [pool.submit(place, z) for z in range(box.start[2], box.stop[2])]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        return out

    def stamps(self, box: Box) -> tuple[Stamp, ...]:
        """The stamp of each section that meets the box."""
        names = self._names[box.start[2] : box.stop[2]]
        path = objects.local_path(self._source.url)
        if path is not None:
            return tuple(file_stamp(os.path.join(path, n)) for n in names)
        results = _read_starts(self._source.url, names, 0)
        return tuple(
            (n, f"generation:{r.stamp.generation.hex()}")
            for n, r in zip(names, results, strict=True)
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _section(self, z: int) -> npt.NDArray[Any]:
        """The pixels of a section, ``[y, x]``."""
        source = self._source
        where = _below(source.url, self._names[z])
        data = objects.read(where)
        if data is None:
            raise RunError(f"{where} is gone; put it back and run the same command again")
        try:
            pixels = png.decode(data)
        except png.PngError as e:
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


def resolve_sections(url: str, kind: Kind) -> SectionSource:
    """Describe a directory of PNG sections from the headers of all of them.

    Raises:
        RequestError: There are no sections, numbers repeat or are missing, or a header is no PNG
            header, not grey with 8 or 16 bits, or unlike the first.
    """
    names, others = _listed(url)
    headers = _headers(url, names)
    for name, header in zip(names, headers, strict=True):
        _check_grey(_below(url, name), header, kind)
    _check_alike(url, names, headers)
    first = headers[0]
    dtype = check_dtype(np.dtype(first.dtype), kind, url)
    return SectionSource(
        url=url,
        shape=(first.width, first.height, len(names)),
        dtype=dtype,
        first=_number(names[0]),
        names_digest=_digest(names),
        ignored=len(others),
        ignored_example=others[0] if others else "",
    )


def _listed(url: str) -> tuple[list[str], list[str]]:
    """The sections of a directory in order, and the other files that lie there."""
    files = [n for n in objects.names(url) if not n.endswith("/") and not n.startswith(".")]
    images = [n for n in files if os.path.splitext(n)[1].lower() in _OTHER_IMAGES]
    if images:
        raise RequestError(
            f"{url} holds {len(images)} image files that are not PNG (such as {images[0]}); "
            "sections are read from PNG only so far, and a mixed directory would lose some of "
            "them: convert them to grey PNG, or move them away"
        )
    sections = [n for n in files if _is_png(n)]
    if not sections:
        raise RequestError(
            f"{url} holds no PNG files ({len(files)} others); give a directory of sections "
            "NAME.NUMBER.png, an HDF5 file or an NPY file"
        )
    for name in sections:
        if _number(name) < 0:
            raise RequestError(
                f"{_below(url, name)} has no number in its name; the last digits of a section's "
                "name give its place in z: rename it, or move it away"
            )
    sections.sort(key=_order)
    _check_numbers(url, sections)
    return sections, [n for n in files if not _is_png(n)]


def _check_numbers(url: str, names: list[str]) -> None:
    """Refuse numbers that repeat and numbers that are missing, with the list."""
    numbers = [_number(n) for n in names]
    repeated = [n for n, count in Counter(numbers).items() if count > 1]
    if repeated:
        number = repeated[0]
        same = ", ".join(n for n, k in zip(names, numbers, strict=True) if k == number)
        more = f" (and {len(repeated) - 1} more numbers repeat)" if len(repeated) > 1 else ""
        raise RequestError(
            f"{url}: number {number} is borne by {same}{more}; a section's number is its place in "
            "z: move the others away"
        )
    gaps = [(a + 1, b - 1) for a, b in itertools.pairwise(numbers) if b > a + 1]
    if gaps:
        named = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in gaps[:_NAMED])
        more = f" and {len(gaps) - _NAMED} more gaps" if len(gaps) > _NAMED else ""
        count = sum(b - a + 1 for a, b in gaps)
        verb = "section {} is" if count == 1 else "sections {} are"
        raise RequestError(
            f"{url}: {verb.format(named + more)} missing between {numbers[0]} and {numbers[-1]}; "
            "leaving them out would shift all that follow in z: supply them, or copies of a "
            "neighbour or black sections in their place"
        )


def _check_grey(where: str, header: png.Header, kind: Kind) -> None:
    if header.dtype is not None:
        return
    remedy = "convert the sections to 8-bit or 16-bit grey"
    if kind == "segmentation":
        remedy += ", or give the ids as an HDF5 or NPY file of integers"
    raise RequestError(
        f"{where} is {header.colour} with {header.depth} bits a sample; a section is grey with 8 "
        f"or 16 bits (mode L or I;16), since a voxel holds one number: {remedy}"
    )


def _check_alike(url: str, names: list[str], headers: list[png.Header]) -> None:
    """Refuse sections that differ in size or depth from the first."""
    first = headers[0]
    for name, header in zip(names, headers, strict=True):
        if header != first:
            raise RequestError(
                f"{_below(url, name)} is {_look(header)}, but {names[0]} is {_look(first)}; all "
                "sections of a volume are alike: pad or crop them to one size, in one depth"
            )


def _look(header: png.Header) -> str:
    return f"{header.width} x {header.height} pixels of {header.depth} bits"


def _headers(url: str, names: list[str]) -> list[png.Header]:
    """The header of each section; only the first bytes of a file are read."""
    path = objects.local_path(url)
    heads: Iterable[bytes]
    if path is not None:
        heads = (_head(os.path.join(path, n)) for n in names)
    else:
        heads = (bytes(r.value) for r in _read_starts(url, names, png.HEADER_BYTES))
    found = []
    for name, head in zip(names, heads, strict=True):
        try:
            found.append(png.parse_header(head))
        except png.PngError as e:
            raise RequestError(
                f"{_below(url, name)} {e}; supply the section again, since leaving it out would "
                "shift all that follow in z"
            ) from e
    return found


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(png.HEADER_BYTES)
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror}; make it readable") from e


def _read_starts(url: str, names: list[str], size: int) -> list[ts.KvStore.ReadResult]:
    """The first ``size`` bytes, with the generation, of each of many remote files.

    A file shorter than that gives all it has.
    """
    out: list[ts.KvStore.ReadResult] = []
    with storage_errors(f"read the sections in {url}"):
        store = ts.KvStore.open(objects.kvstore(url), context=process_context()).result()
        for i in range(0, len(names), _AT_ONCE):
            part = names[i : i + _AT_ONCE]
            futures = [store.read(n, byte_range=slice(0, size)) for n in part]
            out.extend(_start(store, n, f) for n, f in zip(part, futures, strict=True))
    for name, result in zip(names, out, strict=True):
        if result.state != "value":
            raise RunError(f"{_below(url, name)} is gone; put it back and start again")
    return out


def _start(
    store: ts.KvStore, name: str, future: ts.Future[ts.KvStore.ReadResult]
) -> ts.KvStore.ReadResult:
    try:
        return future.result()
    except ValueError as e:
        if not str(e).startswith("OUT_OF_RANGE"):
            raise
        return store.read(name).result()


def _is_png(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(".png")


def _number(name: str) -> int:
    """The section's number; -1 where the name has none."""
    digits = re.findall(r"[0-9]+", os.path.splitext(name)[0])
    return int(digits[-1]) if digits else -1


def _order(name: str) -> tuple[int, str]:
    return (_number(name), name)


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]


def _below(url: str, name: str) -> str:
    """Where a file of the directory is; names are quoted in URLs."""
    remote = objects.local_path(url) is None
    return objects.join(url, urllib.parse.quote(name) if remote else name)
