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
import json
import re
from typing import Any, Literal

import tensorstore as ts

from volumes.context import pooled_context
from volumes.errors import RunError
from volumes.formats import TS_ERRORS, told
from volumes.opening import Volume, framed
from volumes.pinning import database, pinned
from volumes.spec import FORMATS

_LIMIT = re.compile(r'"total_bytes_limit": *([0-9]+)')

Recheck = Literal["always", "never"]
"""Whether a chunk in the pool is looked at again before it is used."""


def recheck_of(volume: Volume) -> Recheck:
    """What keeps a volume's cached chunks true: nothing is needed where it cannot change."""
    document = pinned(json.loads(volume.spec.tensorstore), volume.spec.pinned)
    return "never" if "version" in (database(document) or {}) else "always"


def pooled(volume: Volume, cache_bytes: int, recheck: Recheck | None = None) -> Volume:
    """The volume, read through the process's pool.

    Args:
        volume: Open volume. One of a driver that stores nothing itself is given back as it is, and
            so is one that has a pool of its own.
        cache_bytes: What the pool may hold, decoded; 0 for no pool.
        recheck: None for what is safe. ``never`` is for who knows that nobody writes; a box that is
            read through it is not surely of one moment.

    Raises:
        RunError: It cannot be opened again.
    """
    spec = volume.spec
    if cache_bytes == 0 or spec.driver not in FORMATS or has_pool(volume):
        return volume
    again = (recheck or recheck_of(volume)) == "always"
    document: dict[str, Any] = pinned(json.loads(spec.tensorstore), spec.pinned)
    document["recheck_cached_data"] = True if again else "open"
    document["fill_missing_data_reads"] = False
    context = pooled_context(cache_bytes)
    try:
        stored = ts.open(document, context=context, open=True, read=True, write=False).result()
        store = framed(stored, spec.axes, spec.origin_vx)
    except TS_ERRORS as e:
        raise RunError(
            f"{spec.source} was opened and cannot be opened again to be read through a "
            f"cache: {told(e)}; check that it is still there and that this process may read it"
        ) from e
    was, now = (f"{s.dtype.name} {s.domain}" for s in (volume.store, store))
    if was != now:
        raise RunError(
            f"{spec.source} has changed since it was opened: it was {was} and is {now} now; plan "
            "the run again on the volume as it is"
        )
    return dataclasses.replace(volume, store=store)


def has_pool(volume: Volume) -> bool:
    """Whether what is read of a volume stays in a pool, this process's or one that its spec names.

    It is told for the formats that ``volumes.formats`` knows.
    """
    if volume.spec.driver not in FORMATS:
        return False
    document = volume.store.spec(retain_context=True).to_json()
    return any(int(limit) > 0 for limit in _LIMIT.findall(json.dumps(document)))
