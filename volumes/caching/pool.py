"""One pool of decoded chunks a process, and how a volume is read through it.

A chunk in the pool is looked at again before it is used: one conditional request, which brings no
bytes where nothing changed. So a volume that is written to meanwhile never passes as unchanged: the
two looks at its stamps, between which a box is read (``volumes.snapshots``), would else find the
new generation twice and the old voxels. A volume at one version of a database cannot change, and
its chunks are taken from the pool without a request.

A volume that is read through a pool is never read in a repeatable-read transaction: measured with
TensorStore 0.1.86, the transaction's end leaves the chunk in the pool as one that is not stored,
and whoever asks for it next gets zeros. ``volumes.snapshots`` asks ``has_pool``, and takes the
stamps instead.
"""

import dataclasses
import functools
import json
import re
from typing import Any, Literal

import tensorstore as ts

from volumes.context import pooled_context
from volumes.formats import open_array
from volumes.opening import Volume, open_volume
from volumes.pinning import database
from volumes.spec import FORMATS, VIEW

_LIMIT = re.compile(r'"total_bytes_limit": *([0-9]+)')

Recheck = Literal["always", "never"]
"""Whether a chunk in the pool is looked at again before it is used."""


def pooled(volume: Volume, cache_bytes: int, recheck: Recheck | None = None) -> Volume:
    """The volume, read through the process's pool; of a view, the volumes that it is made of.

    Args:
        volume: Open volume. One of a driver that stores nothing itself is given back as it is, and
            so is one that has a pool of its own.
        cache_bytes: What the pool may hold, decoded; 0 for no pool.
        recheck: None for what is safe. ``never`` is for who knows that nobody writes; a box that is
            read through it is not surely of one moment.

    Raises:
        RunError: It cannot be opened again, or has changed since it was opened.
    """
    known = volume.spec.format == VIEW or volume.spec.driver in FORMATS
    if cache_bytes == 0 or not known or has_pool(volume):
        return volume
    opener = functools.partial(_opened, cache_bytes, recheck)
    return dataclasses.replace(open_volume(volume.spec, opener), pooled=True)


def _opened(cache_bytes: int, recheck: Recheck | None, document: dict[str, Any]) -> ts.TensorStore:
    """An array, through the pool where its driver is known to tell what it stores."""
    if document["driver"] not in FORMATS:
        return open_array(document)
    # Nothing is needed to keep chunks true where they cannot change.
    fixed = "version" in (database(document) or {})
    again = (recheck or ("never" if fixed else "always")) == "always"
    document = document | {"recheck_cached_data": True if again else "open"}
    context = pooled_context(cache_bytes)
    return ts.open(document, context=context, open=True, read=True, write=False).result()


def has_pool(volume: Volume) -> bool:
    """Whether what is read of a volume stays in a pool, this process's or one that its spec names.

    The latter is told for the formats that ``volumes.formats`` knows.
    """
    if volume.pooled or volume.spec.driver not in FORMATS:
        return volume.pooled
    document = volume.store.spec(retain_context=True).to_json()
    return any(int(limit) > 0 for limit in _LIMIT.findall(json.dumps(document)))
