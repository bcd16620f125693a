"""Reads the members of a JSON object of a view, with a message for each way to get them wrong."""

import difflib
import json
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from volumes.errors import RequestError
from volumes.levels import SPATIAL

Json = dict[str, Any]

ByAxis = tuple[tuple[str, int], ...]
"""A whole number for some axes, by name."""

_D = TypeVar("_D")
_T = TypeVar("_T")


class Members:
    """The members of an object, taken one by one; ``done`` refuses what is left.

    Args:
        document: The object.
    """

    def __init__(self, document: Json) -> None:
        """Nothing is taken yet."""
        self._rest = dict(document)
        self._asked: list[str] = []

    def take(self, name: str, read: Callable[[Any, str], _T]) -> _T:
        """A member, read by ``read(value, name)``.

        Raises:
            RequestError: It is absent, or no such value.
        """
        self._asked.append(name)
        if name not in self._rest:
            raise RequestError(f"needs the member {name!r}, which is not there")
        return read(self._rest.pop(name), name)

    def maybe(self, name: str, read: Callable[[Any, str], _T], default: _D) -> _T | _D:
        """A member that may be left out.

        Raises:
            RequestError: It is no such value.
        """
        self._asked.append(name)
        return read(self._rest.pop(name), name) if name in self._rest else default

    def done(self) -> None:
        """Refuse members that nothing asked for."""
        if self._rest:
            name = sorted(self._rest)[0]
            near = difflib.get_close_matches(name, self._asked, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self._asked)}"
            raise RequestError(f"has no member {name!r}; {hint}")


def refused(value: Any, name: str, needed: str) -> RequestError:
    """What to say of a value that is none."""
    shown = repr(value)
    return RequestError(f"has {name} {shown[:200]}; {needed} is needed")


def whole(value: Any, name: str) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise refused(value, name, "a whole number")
    return value


def positive(value: Any, name: str) -> int:
    """A whole number of at least 1."""
    if whole(value, name) < 1:
        raise refused(value, name, "a whole number of at least 1")
    return int(value)


def number(value: Any, name: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise refused(value, name, "a number")
    return float(value)


def length(value: Any, name: str) -> float:
    """A length in nm."""
    if number(value, name) <= 0:
        raise refused(value, name, "a positive length in nm")
    return float(value)


def text(value: Any, name: str) -> str:
    """A text of at least one letter."""
    if not isinstance(value, str) or not value:
        raise refused(value, name, "a text")
    return value


def flag(value: Any, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise refused(value, name, "true or false")
    return value


def obj(value: Any, name: str) -> Json:
    """An object."""
    if not isinstance(value, dict):
        raise refused(value, name, "an object")
    return value


def one_of(*choices: str) -> Callable[[Any, str], str]:
    """One of some words."""

    def read(value: Any, name: str) -> str:
        if value not in choices:
            raise refused(value, name, f"one of {', '.join(choices)}")
        return str(value)

    return read


def dtype(value: Any, name: str) -> str:
    """The NumPy name of an integer or floating point type."""
    try:
        found = np.dtype(text(value, name))
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "iuf" or found.itemsize > 8:
        raise refused(value, name, "a type of integers or floats, such as uint8 or float32,")
    return found.name


def names(value: Any, name: str) -> tuple[str, ...]:
    """Names of axes: a list, or ``zyx``, or ``z,y,x``."""
    if isinstance(value, str):
        value = value.split(",") if "," in value else list(value)
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise refused(value, name, 'a list of names, such as ["z", "y", "x"],')
    return tuple(value)


def by_axis(value: Any, name: str) -> ByAxis:
    """A whole number an axis: ``[x, y, z]``, or an object by axis."""
    return tuple((a, whole(v, f"{name} along {a},")) for a, v in _axes(value, name))


def positive_by_axis(value: Any, name: str) -> ByAxis:
    """A whole number of at least 1 an axis."""
    return tuple((a, positive(v, f"{name} along {a},")) for a, v in _axes(value, name))


def lengths_by_axis(value: Any, name: str) -> tuple[tuple[str, float], ...]:
    """A length in nm an axis."""
    return tuple((a, length(v, f"{name} along {a},")) for a, v in _axes(value, name))


def _axes(value: Any, name: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return sorted(value.items())
    if isinstance(value, (list, tuple)) and len(value) == len(SPATIAL):
        return zip(SPATIAL, value, strict=True)
    raise refused(value, name, 'three values [x, y, z], or an object by axis such as {"z": 1},')


def an_id(value: Any, name: str) -> int:
    """An id: a whole number from 0 to 2**64 - 1, or its decimal digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise refused(value, name, "an id from 0 to 2**64 - 1")
    return value


def ids(value: Any, name: str) -> tuple[int, ...]:
    """A list of ids, ascending, each once."""
    if not isinstance(value, list) or not value:
        raise refused(value, name, "a list of ids")
    return tuple(sorted({an_id(v, name) for v in value}))


def loads(text: str) -> Any:
    """The value of a canonical JSON text."""
    return json.loads(text)
