"""``--config FILE``: a YAML or JSON file whose keys are flags."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import yaml

from launch.parsers import UsageError


def config_words(path: str) -> list[str]:
    """A file's content as words of a command line, each ``--flag=value``.

    A key may be written with ``-`` or ``_``; a list becomes ``X,Y,Z``; ``true`` is a flag without a
    value; ``false`` and ``null`` leave a flag out.

    Raises:
        UsageError: It cannot be read, or does not map flags to values.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise UsageError(
            f"--config {path} cannot be read ({e.strerror}); give a YAML or JSON file of flags"
        ) from e
    except UnicodeDecodeError as e:
        raise UsageError(f"--config {path} is no text, so neither YAML nor JSON ({e})") from e
    document = _parsed(path, text)
    if not isinstance(document, dict):
        found = "nothing" if document is None else f"a {type(document).__name__}"
        raise UsageError(
            f"--config {path} must map flags to values, as in `box: [128, 128, 128]`; it holds "
            f"{found}"
        )
    return [word for name, value in document.items() for word in _words(path, str(name), value)]


def _parsed(path: str, text: str) -> Any:
    """The document; JSON first, since YAML takes no tabs and JSON does."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        where = " ".join(str(e).split())
        raise UsageError(f"--config {path} is neither YAML nor JSON ({where}); correct it") from e


def _words(path: str, name: str, value: Any) -> Iterator[str]:
    flag = f"--{name.removeprefix('--')}"
    if flag == "--config":
        raise UsageError(f"--config {path} names another --config; give one file")
    if value is True:
        yield flag
        return
    if value is None or value is False:
        return
    listed = value if isinstance(value, list) else [value]
    if any(isinstance(v, dict | list) for v in listed):
        raise UsageError(
            f"--config {path}: {name} is nested; a value is a text, a number, true or false, or a "
            "list of these"
        )
    yield f"{flag}={','.join(str(v) for v in listed)}"
