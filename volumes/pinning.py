"""Inputs inside an OCDBT database are read at one version of it, the one that the plan saw.

The place of a volume (what an identity holds) is its spec without the version; the version stands
beside it. A version that the user gave in a spec is part of the place and is left alone.
"""

from typing import Any

import tensorstore as ts

from volumes.context import process_context
from volumes.errors import RequestError
from volumes.formats import TS_ERRORS, told

_Json = dict[str, Any]


def database(document: _Json) -> _Json | None:
    """The part of a TensorStore spec that names an OCDBT database, where it has one."""
    kvstore = document.get("kvstore")
    while isinstance(kvstore, dict):
        if kvstore.get("driver") == "ocdbt":
            return kvstore
        kvstore = kvstore.get("base")
    return None


def newest(document: _Json, name: str) -> int | None:
    """The newest version of a volume's database; None where nothing is to be pinned.

    Raises:
        RequestError: The database cannot be read.
    """
    found = database(document)
    if found is None or "version" in found:
        return None
    try:
        base = ts.KvStore.open(found["base"], context=process_context()).result()
        versions = ts.ocdbt.dump(base).result()["versions"]
    except TS_ERRORS as e:
        raise RequestError(
            f"{name} lies in an OCDBT database whose versions cannot be read: {told(e)}; check "
            "the location and this process's credentials"
        ) from e
    return int(versions[-1]["generation_number"])


def pinned(document: _Json, version: int | None) -> _Json:
    """The spec with its database at a version; the spec itself where there is none."""
    if version is None or "kvstore" not in document:
        return document
    return document | {"kvstore": _at(document["kvstore"], version)}


def _at(kvstore: _Json, version: int) -> _Json:
    if kvstore.get("driver") == "ocdbt":
        return kvstore | {"version": version}
    return kvstore | {"base": _at(kvstore["base"], version)}
