"""Takes secrets out of whatever is stored, printed or staged.

A location may carry a token in its query string or a password before its host, and a JSON spec may
carry credential members. Workers take credentials from their own environment, so nothing is lost by
leaving these out of manifests, receipts, provenance and messages.
"""

import re
from typing import Any, TypeVar

_T = TypeVar("_T")

_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?#|\"']*)\?[^\s|#\"']*")
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@\"']+@")
_SECRET_MEMBERS = re.compile(
    r"(?i)(credential|secret|passw|token|api_?key|access_?key|private_?key|authorization|^headers$)"
)


def redacted_text(text: str) -> str:
    """The text without query strings and ``user:password@`` in the URLs it holds."""
    return _USER.sub(r"\1", _QUERY.sub(r"\1", text))


def redacted(value: _T) -> _T:
    """A copy of a JSON-like value without secrets: strings cleaned, credential members removed."""
    if isinstance(value, str):
        return redacted_text(value)  # type: ignore[return-value]
    return _redacted(value)  # type: ignore[no-any-return]


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, dict):
        return {k: _redacted(v) for k, v in value.items() if not _SECRET_MEMBERS.search(str(k))}
    if isinstance(value, (list, tuple)):
        return type(value)(_redacted(v) for v in value)
    return value
