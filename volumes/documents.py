"""JSON documents: each names its format and format version; a newer one is refused, not guessed at.

The bytes are canonical (sorted keys, no spaces but after separators), so that equal documents have
equal digests. Ids are written as decimal strings by those who make the body, since JSON readers
round integers above 2**53.
"""

import json
from typing import Any

from volumes.errors import DataError, RunError
from volumes.redaction import redacted, redacted_text


def dump(kind: str, version: int, body: dict[str, Any]) -> bytes:
    """The document as bytes, secrets removed."""
    document = {"format": kind, "format_version": version, **redacted(body)}
    return json.dumps(document, sort_keys=True, allow_nan=False).encode()


def load(data: bytes, kind: str, version: int, where: str) -> dict[str, Any]:
    """The body of a document.

    Raises:
        DataError: It is no JSON object, or of another format; ``where`` says which document.
        RunError: It is of a newer version than this software reads.
    """
    where = redacted_text(where)
    try:
        document = json.loads(data)
    except ValueError as e:
        raise DataError(f"{where} is not a JSON document ({e}); it is damaged") from e
    if not isinstance(document, dict) or document.get("format") != kind:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise DataError(f"{where} has format {found!r} where {kind!r} was expected")
    found = document.get("format_version")
    if not isinstance(found, int) or found > version:
        raise RunError(
            f"{where} has {kind} version {found}, written by newer software; this one reads up to "
            f"version {version}: upgrade segclr-beam to read it"
        )
    return {k: v for k, v in document.items() if k not in ("format", "format_version")}
