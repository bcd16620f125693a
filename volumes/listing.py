"""Lists what is stored of a volume: keys and, where the storage tells them, sizes.

Nothing is read but names: a volume of any extent costs what is stored of it. Local directories are
walked with sizes, ``gs://`` is listed with sizes, other stores tell names alone, and web servers
cannot be listed.
"""

import os
import urllib.parse
from collections.abc import Iterator

import tensorstore as ts

from volumes import objects
from volumes.errors import RunError
from volumes.keys import keys_of
from volumes.opening import Volume
from volumes.redaction import redacted_text

# What TensorStore writes beside a file while it writes it, and never lists.
_LOCK = ".__lock"

Stored = tuple[str, int | None]
"""A key and its bytes; None where the storage does not tell them."""


def stored_objects(store: ts.KvStore, prefix: str = "") -> Iterator[Stored]:
    """What is stored below a directory, in no order.

    Args:
        store: The directory.
        prefix: What the wanted keys begin with.

    Raises:
        RunError: The store cannot be listed.
    """
    spec = store.spec().to_json()
    if spec["driver"] == "file":
        yield from _files(spec["path"], prefix)
    elif spec["driver"] == "gcs":
        yield from _blobs(spec["bucket"], spec.get("path", ""), prefix)
    else:
        for key in _names(store, prefix):
            yield key.decode(errors="surrogateescape"), None


def stored_keys(volume: Volume) -> Iterator[str]:
    """The keys of the volume's chunks (shards, where sharded) that are stored, in no order.

    Raises:
        RunError: They cannot be told: the store cannot be listed, or the format's keys are not
            known.
    """
    keys, store = keys_of(volume), volume.store.kvstore
    if keys is None or store is None:
        raise RunError(
            f"{volume.spec.source} is a {volume.spec.format} volume, whose keys are not known, so "
            "what is stored of it cannot be told; name the stored volume itself"
        )
    for key, _ in stored_objects(store, keys.prefix):
        if keys.holds(key):
            yield key


def _files(root: str, prefix: str) -> Iterator[Stored]:
    """Files below a local directory, each with its size."""
    with objects.telling(root, "list"):
        first = prefix[: prefix.rfind("/") + 1]
        directories = [first]
        while directories:
            below = directories.pop()
            try:
                entries = os.scandir(os.path.join(root, below))
            except FileNotFoundError:
                continue
            with entries:
                for entry in entries:
                    key = below + entry.name
                    if entry.is_dir():
                        directories.append(key + "/")
                    elif key.startswith(prefix) and not key.endswith(_LOCK):
                        try:
                            yield key, entry.stat().st_size
                        except FileNotFoundError:  # removed, or replaced, since
                            continue


def _blobs(bucket: str, path: str, prefix: str) -> Iterator[Stored]:
    """Objects below a place on GCS, each with its size."""
    url = f"gs://{bucket}/{urllib.parse.quote(path)}"
    with objects.telling(url, "list"):
        for blob in objects.blob(url).bucket.list_blobs(prefix=path + prefix):
            yield blob.name[len(path) :], blob.size


def _names(store: ts.KvStore, prefix: str) -> list[bytes]:
    """Keys as TensorStore lists them."""
    where = redacted_text(_where(store))
    with objects.telling(where, "list"):
        try:
            found: list[bytes] = store.list(_range(prefix)).result()
        except NotImplementedError:
            raise RunError(
                f"{where} cannot be listed (a web server gives no list of its files), so what is "
                "stored and what is missing cannot be told; look at a copy in a directory or bucket"
            ) from None
    return found


def _range(prefix: str) -> ts.KvStore.KeyRange:
    """The keys that begin with a prefix."""
    if not prefix:
        return ts.KvStore.KeyRange()
    return ts.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))


def _where(store: ts.KvStore) -> str:
    """The store's place for messages."""
    try:
        return str(store.url)
    except NotImplementedError:
        return f"the {store.spec().to_json()['driver']} store"
