"""How failing storage is told."""

import contextlib
from collections.abc import Iterator

from volumes.errors import RequestError, RunError
from volumes.formats import TS_ERRORS, told
from volumes.redaction import redacted_text


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turns what TensorStore raises into a ``RunError`` that says what was being done."""
    try:
        yield
    except (RequestError, RunError):
        raise
    except TS_ERRORS as e:
        raise RunError(f"cannot {redacted_text(doing)}: {told(e)}") from e
