"""Operations that change what voxels hold.

====================  =============================================================================
operation             members
====================  =============================================================================
``cast``              ``dtype``; ``rule``: ``exact`` (a value that does not fit is an error),
                      ``clip`` or ``wrap``
``downsample``        ``factors``; ``method``: mean, median, mode, min, max or stride
``relabel``           ``table``: a file of supervoxel and body, or ``map``: bodies by id;
                      ``others``: ``keep`` or ``zero``
====================  =============================================================================
"""

import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import tensorstore as ts

from volumes import agglomeration
from volumes.agglomeration import Table
from volumes.errors import RequestError, RunError
from volumes.formats import TS_ERRORS
from volumes.views import members
from volumes.views.arrays import Array, Part, meet
from volumes.views.computing import EachVoxel, Voxels, computed
from volumes.views.members import ByAxis, Json, Members

Method = Literal["mean", "median", "mode", "min", "max", "stride"]

_METHODS: tuple[Method, ...] = ("mean", "median", "mode", "min", "max", "stride")
# What makes ids that no segment has.
_BLENDING = ("mean", "median")
_MANTISSA = {"float16": 11, "float32": 24, "float64": 53}


@dataclasses.dataclass(frozen=True, slots=True)
class Cast:
    """The same numbers in another type."""

    op: ClassVar[str] = "cast"
    dtype: str
    rule: str

    @classmethod
    def read(cls, given: Members) -> "Cast":
        """From its members."""
        dtype = given.take("dtype", members.dtype)
        return cls(dtype, given.maybe("rule", members.one_of("exact", "clip", "wrap"), "exact"))

    def to_json(self) -> Json:
        """Its members."""
        return dataclasses.asdict(self)

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array = arrays[0]
        if array.kind == "segmentation" and np.dtype(self.dtype).kind == "f":
            raise RequestError(
                f"makes {self.dtype} of a segmentation, and ids of segments are integers; give an "
                "integer type"
            )
        return dataclasses.replace(array, dtype=self.dtype)

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        return (part,)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        if self.rule == "wrap" or holds(self.dtype, arrays[0].dtype):
            return ts.cast(stores[0], ts.dtype(self.dtype))
        change = exactly if self.rule == "exact" else clipped
        filler = EachVoxel(stores[0], functools.partial(change, dtype=self.dtype))
        return computed(self.result(arrays), filler)


def holds(wide: str, narrow: str) -> bool:
    """Whether a type holds every number of another exactly."""
    if np.dtype(narrow).kind in "iu" and wide in _MANTISSA:
        bits = 8 * np.dtype(narrow).itemsize - (np.dtype(narrow).kind == "i")
        return bits <= _MANTISSA[wide] and wide != "float16"
    return bool(np.can_cast(narrow, wide, "safe"))


def exactly(voxels: Voxels, dtype: str) -> Voxels:
    """The same numbers in another type.

    Raises:
        RunError: The type does not hold one of them.
    """
    with np.errstate(all="ignore"):
        cast = voxels.astype(dtype)
        same = (cast.astype(voxels.dtype) == voxels) & ((cast < 0) == (voxels < 0))
    if voxels.dtype.kind == "f":
        same |= np.isnan(voxels) & (cast.dtype.kind == "f")
        # Where 2**64 or so becomes the largest integer, the way back rounds up to it again.
        if cast.dtype.kind in "iu":
            same &= voxels < float(np.iinfo(cast.dtype).max) + 1
    elif cast.dtype.kind == "f":
        same &= np.abs(cast) < 2.0 ** (8 * voxels.itemsize - (voxels.dtype.kind == "i"))
    if not same.all():
        value = voxels[~same].reshape(-1)[0]
        raise RunError(
            f"a voxel is {value}, which {dtype} does not hold; give the cast a wider type, or the "
            'rule "clip" or "wrap"'
        )
    return cast


def clipped(voxels: Voxels, dtype: str) -> Voxels:
    """The nearest numbers of another type; what is no number becomes 0 where there is none."""
    wanted = np.dtype(dtype)
    if wanted.kind == "f":
        with np.errstate(over="ignore"):
            cast = voxels.astype(wanted)
        top = np.finfo(wanted).max
        inf = np.isinf(cast) & np.isfinite(voxels)
        return np.where(inf, np.copysign(top, cast), cast).astype(wanted)
    limits = np.iinfo(wanted)
    if voxels.dtype.kind == "f":
        rounded = np.rint(np.nan_to_num(voxels.astype(np.float64), posinf=np.inf, neginf=-np.inf))
        low, high = rounded <= float(limits.min), rounded >= float(limits.max)
        with np.errstate(invalid="ignore"):
            cast = rounded.astype(wanted)
        return np.where(low, limits.min, np.where(high, limits.max, cast)).astype(wanted)
    own = np.iinfo(voxels.dtype)
    return np.clip(voxels, max(limits.min, own.min), min(limits.max, own.max)).astype(wanted)


@dataclasses.dataclass(frozen=True, slots=True)
class Downsample:
    """Coarser voxels; voxel i is made of the voxels [i * factor, (i + 1) * factor) that exist."""

    op: ClassVar[str] = "downsample"
    factors: ByAxis
    method: Method

    @classmethod
    def read(cls, given: Members) -> "Downsample":
        """From its members."""
        factors = given.take("factors", members.positive_by_axis)
        asked = given.take("method", members.one_of(*_METHODS))
        return cls(factors, next(m for m in _METHODS if m == asked))

    def to_json(self) -> Json:
        """Its members."""
        return {"factors": dict(self.factors), "method": self.method}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        array = arrays[0]
        if array.kind == "segmentation" and self.method in _BLENDING:
            raise RequestError(
                f"takes the {self.method} of ids, which is no id; give mode, min, max or stride"
            )
        if not _reduces(array.dtype, self.method):
            raise RequestError(f"has no {self.method} of {array.dtype} voxels; cast them before")
        if self.method == "stride":
            for name, n in self.factors:
                axis = array.axis(name)
                if -(-axis.start // n) * n >= axis.stop:
                    raise RequestError(
                        f"takes the multiples of {n} along {name}, and there is none in "
                        f"{axis.start}:{axis.stop}; give a smaller factor"
                    )
        found = array
        for name, n in self.factors:
            axis = array.axis(name)
            start = -(-axis.start // n) if self.method == "stride" else axis.start // n
            found = found.with_axis(axis.coarser(n, start, (axis.stop - 1) // n + 1))
        return found

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        by = self._factors(arrays[0])
        whole = tuple((a * n, b * n) for (a, b), n in zip(part, by, strict=True))
        return (meet(whole, arrays[0].part),)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array.

        TensorStore 0.1.86 returns bytes that it never wrote for a cell whose first and last voxels
        are both beyond the array's; one that is alone on its axis is moved to where it begins.
        """
        array, by = arrays[0], self._factors(arrays[0])
        starts = [
            a.start // n * n if a.start // n == (a.stop - 1) // n else a.start
            for a, n in zip(array.axes, by, strict=True)
        ]
        moved = stores[0][ts.d[:].translate_to[starts]]
        return ts.downsample(moved, by, method=self.method)

    def _factors(self, array: Array) -> list[int]:
        by = dict(self.factors)
        return [by.get(n, 1) for n in array.names]


@functools.cache
def _reduces(dtype: str, method: Method) -> bool:
    """Whether voxels of a type can be reduced so."""
    some = ts.array(np.zeros(2, ts.dtype(dtype).numpy_dtype))
    try:
        ts.downsample(some, [2], method=method).read().result()
    except TS_ERRORS:
        return False
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class Relabel:
    """Ids replaced by others, as uint64.

    Attributes:
        table: Place and digest of an agglomeration table, or None.
        pairs: Ids and what they become, where there is no table.
        others: What becomes of an id that is not listed: ``keep`` or ``zero``.
    """

    op: ClassVar[str] = "relabel"
    table: tuple[str, str] | None
    pairs: tuple[tuple[int, int], ...]
    others: str

    @classmethod
    def read(cls, given: Members) -> "Relabel":
        """From its members, the table with its digest."""
        table = given.maybe("table", members.obj, None)
        mapping = given.maybe("map", members.obj, None)
        if (table is None) == (mapping is None):
            raise RequestError('needs either "table", a file, or "map", new ids by old ones')
        pairs = tuple(
            (members.an_id(k, "map, its name,"), members.an_id(v, f"map, {k},"))
            for k, v in (mapping or {}).items()
        )
        others = given.maybe("others", members.one_of("keep", "zero"), "keep")
        if table is not None and others == "zero":
            raise RequestError('has others "zero", which goes with a map; leave it out')
        named = None if table is None else (str(table["url"]), str(table["digest"]))
        found = cls(named, tuple(sorted(pairs)), others)
        _inline(found.pairs)
        return found

    def to_json(self) -> Json:
        """Its members."""
        if self.table is not None:
            return {"table": {"url": self.table[0], "digest": self.table[1]}, "others": self.others}
        return {"map": {str(a): str(b) for a, b in self.pairs}, "others": self.others}

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of an array."""
        if arrays[0].kind != "segmentation" or np.dtype(arrays[0].dtype).kind not in "iu":
            raise RequestError(
                f"replaces ids, and the voxels are {arrays[0].dtype} of an {arrays[0].kind}; give "
                'a segmentation, or state "kind": "segmentation" beside its "volume"'
            )
        return dataclasses.replace(arrays[0], dtype="uint64")

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part is made of."""
        return (part,)

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The array."""
        return computed(self.result(arrays), EachVoxel(stores[0], self.apply))

    def apply(self, labels: Voxels) -> Voxels:
        """The labels with ids replaced.

        Raises:
            RunError: The table is no longer what it was, or a label is negative.
        """
        table = _inline(self.pairs) if self.table is None else _TABLES.get(*self.table)
        try:
            found = table.apply(labels)
        except ValueError as e:
            raise RunError(f"ids cannot be replaced: {e}") from e
        if self.others == "zero":
            listed = np.array([a for a, _ in self.pairs], np.uint64)
            found[~np.isin(labels.astype(np.uint64), listed)] = 0
        return found


@functools.lru_cache(maxsize=16)
def _inline(pairs: tuple[tuple[int, int], ...]) -> Table:
    old, new = (np.array([p[i] for p in pairs], np.uint64) for i in (0, 1))
    return Table.of_pairs(old, new, "map")


def digest_of(url: str) -> str:
    """The digest of a table's pairs; the table stays in memory for who needs it next.

    Raises:
        RequestError: There is none, or it is no mapping.
    """
    return _TABLES.read(url)


class _Tables:
    """The tables read last, each once however many threads ask for it."""

    _KEPT = 4

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[tuple[str, str], Table] = {}

    def read(self, url: str) -> str:
        with self._lock:
            return self._read(url)

    def get(self, url: str, digest: str) -> Table:
        with self._lock:
            if (url, digest) not in self._tables:
                found = self._read_again(url)
                if found != digest:
                    raise RunError(
                        f"the table {url} has changed since the plan: its pairs had the digest "
                        f"{digest} and have {found}; put it back, or plan again with it as it is"
                    )
            return self._tables[url, digest]

    def _read_again(self, url: str) -> str:
        try:
            return self._read(url)
        except RequestError as e:
            raise RunError(f"a table that was there at the plan cannot be read now: {e}") from e

    def _read(self, url: str) -> str:
        try:
            table = agglomeration.read_table(url)
        except RequestError as e:
            raise RequestError(str(e).removeprefix("--agglomeration ")) from e
        digest = table.digest()
        self._tables[url, digest] = table
        while len(self._tables) > self._KEPT:
            del self._tables[next(iter(self._tables))]
        return digest


_TABLES = _Tables()
