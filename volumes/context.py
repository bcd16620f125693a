"""The one process-wide TensorStore context, and the one builder of OCDBT specs.

Two contexts, or two spellings of one database's options, make an "atomic" transaction fall apart
without a word: half of it is committed on a conflict. So every ``ts.open`` of the project takes its
context from here, and every OCDBT database is named by ``ocdbt``.
"""

import functools
from typing import Any

import tensorstore as ts

# Bounded, so that a dead endpoint is an error within minutes instead of hours.
_RETRIES = {"max_retries": 8, "initial_delay": "200ms", "max_delay": "8s"}


@functools.cache
def process_context() -> ts.Context:
    """The context that everything in this process shares; made at the first call.

    The cache pool stays at TensorStore's default of 0 bytes: a box is read once, by one batch.
    """
    drivers = ("gcs", "http", "s3")
    return ts.Context({f"{driver}_request_retries": _RETRIES for driver in drivers})


def ocdbt(base: dict[str, Any], path: str = "", version: int | None = None) -> dict[str, Any]:
    """The kvstore spec of an OCDBT database: the only place where one is spelled.

    Args:
        base: TensorStore kvstore spec of the database's directory.
        path: A path inside the database, ending in ``/`` for a directory.
        version: Generation number to pin for reading; None for the newest, which can be written.
    """
    spec: dict[str, Any] = {"driver": "ocdbt", "base": base}
    if path:
        spec["path"] = path
    if version is not None:
        spec["version"] = version
    return spec
