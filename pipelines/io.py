"""What a run asked of storage, from Beam's counters: for the summary, and as a line for people."""

from collections.abc import Mapping
from typing import Any

from pipelines.text import bytes_text
from volumes.caching.metrics import SOURCES

_DISK = "disk"


def io_summary(counts: Mapping[str, int]) -> dict[str, Any]:
    """What stands under ``io`` in a run's summary.

    Args:
        counts: Beam's counters by name, distributions as ``name_sum``.

    Returns:
        Bytes by source, copies on disk among them, without sources that nothing came from; requests
        and retries; hits, misses and evictions of the pool and of the copies; and seconds: how long
        boxes were waited for, and how long their reads and commits took, whoever waited.
    """
    sources = (*SOURCES, _DISK)

    def by_source(what: str) -> dict[str, int]:
        found = {source: counts.get(f"{what}_{source}", 0) for source in sources}
        return {source: n for source, n in found.items() if n}

    def named(prefix: str, *names: str) -> dict[str, int]:
        return {name: counts.get(f"{prefix}_{name}", 0) for name in names}

    def seconds(name: str) -> float:
        return counts.get(f"{name}_ms_sum", 0) / 1000

    return {
        "bytes_read": by_source("bytes_read"),
        "bytes_written": by_source("bytes_written"),
        "requests": counts.get("requests", 0),
        "retries": counts.get("retries", 0),
        "cache": named("cache", "hits", "misses", "evictions"),
        "disk_cache": named(_DISK, "hits", "misses", "evictions", "corrupt", "unwritten"),
        "wait_seconds": seconds("wait"),
        "read_seconds": seconds("read"),
        "commit_seconds": seconds("commit"),
    }


def io_line(counts: Mapping[str, int]) -> str:
    """The same for people, in one line."""
    io = io_summary(counts)
    sources = ", ".join(f"{bytes_text(n)} from {source}" for source, n in io["bytes_read"].items())
    parts = [f"read {sources or 'nothing'} in {io['requests']:,} requests"]
    if io["retries"]:
        parts.append(f"{io['retries']:,} tried again")
    for what, name in (("chunks", "cache"), ("copies", "disk_cache")):
        used, looked = io[name]["hits"], io[name]["hits"] + io[name]["misses"]
        if looked:
            parts.append(f"{used / looked:.0%} of {what} from the cache")
    waited, took = io["wait_seconds"], io["read_seconds"]
    parts.append(f"waited {waited:.1f} s for reads of {took:.1f} s")
    return "; ".join(parts)
