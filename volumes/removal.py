"""Removal of objects: the counterpart of what ``volumes.objects`` writes.

What is not there is as good as removed, so a removal that was killed can be done again.
"""

import os
import re
import shutil
import time

import tensorstore as ts
from google.api_core import exceptions as api_exceptions

from volumes.errors import RequestError
from volumes.objects import blob, keyed, local_path, split, telling
from volumes.redaction import redacted_text

__all__ = ["remove", "remove_tree", "stale_temporaries"]

# ``.NAME.RANDOM.tmp`` and ``.NAME.PID.tmp``, as objects are written under before they have a name.
_TEMPORARY = re.compile(r"\..+\.(?:[a-z0-9_]{8}|\d+)\.tmp")

# Databases have leftovers of other names, which their compaction knows.
_DATABASES = "partitions"


def remove(url: str) -> bool:
    """Remove one object; whether there was one.

    Of several that remove it at once, more than one may be told so on ``s3://``.

    Raises:
        RequestError: Nothing can be removed there.
        RunError: The storage fails.
    """
    _refuse_web(url)
    with telling(url, "remove"):
        path = local_path(url)
        if path is not None:
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            return True
        if url.startswith("gs://"):
            try:
                blob(url).delete()
            except api_exceptions.NotFound:
                return False
            return True
        directory, name = split(url)
        store = keyed(directory)
        there = store.read(name, byte_range=slice(0, 0)).result().state == "value"
        store.write(name, None).result()
        return bool(there)


def remove_tree(url: str) -> None:
    """Remove a directory and all that is below it; one that is not there is none to remove.

    Killed in the middle it leaves some of it.

    Raises:
        RequestError: Nothing can be removed there.
        RunError: The storage fails, or a local path is a file or a link.
    """
    _refuse_web(url)
    with telling(url, "remove"):
        path = local_path(url)
        if path is None:
            keyed(url).delete_range(ts.KvStore.KeyRange()).result()
        elif os.path.lexists(path):
            shutil.rmtree(path)


def stale_temporaries(url: str, age_s: float) -> list[str]:
    """Files that writers killed long ago left below a local directory, sorted.

    They are told by their names, which ``volumes.objects`` gives a file that is not whole yet, and
    by their age. Databases of partitions are not looked into. A remote store has none.

    Args:
        url: The directory.
        age_s: Seconds since a file was last written to, from which its writer counts as dead.

    Raises:
        RunError: The directory cannot be read.
    """
    top = local_path(url)
    if top is None:
        return []
    before = time.time() - age_s
    found = []
    with telling(url, "look through"):
        for directory, inner, files in os.walk(top):
            inner[:] = [name for name in inner if name != _DATABASES]
            for name in filter(_TEMPORARY.fullmatch, files):
                path = os.path.join(directory, name)
                try:
                    written = os.lstat(path).st_mtime
                except FileNotFoundError:  # its writer lives, and has given it its name
                    continue
                if written < before:
                    found.append(path)
    return sorted(found)


def _refuse_web(url: str) -> None:
    if url.startswith(("http://", "https://")):
        raise RequestError(
            f"{redacted_text(url)}: nothing can be removed through a web server; give the "
            "location that the server's files are at"
        )
