"""The one door for whole files: local paths, ``gs://``, ``s3://`` and ``http(s)://``.

A location is a local path (relative or absolute), a ``file://`` URL or one of the remote URLs.
``gs://`` goes through google-cloud-storage, ``s3://`` and ``http(s)://`` through TensorStore's
key-value drivers. Whatever the store answers other than "absent" becomes a ``RunError`` that names
the location.
"""

import contextlib
import errno
import functools
import os
import pathlib
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import Any

import requests
import tensorstore as ts
from google.api_core import exceptions as api_exceptions
from google.auth import exceptions as auth_exceptions
from google.cloud import storage

from volumes.context import process_context
from volumes.errors import RequestError, RunError
from volumes.redaction import redacted, redacted_text

__all__ = [
    "absolute",
    "blob",
    "create",
    "exists",
    "join",
    "keyed",
    "kvstore",
    "local_path",
    "names",
    "read",
    "redacted",
    "split",
    "telling",
    "upload",
    "write",
]

# TensorStore's and GCS's word for "the key must not exist yet".
_ABSENT_TS = b"\x02"
_ABSENT_GS = 0


def local_path(url: str) -> pathlib.Path | None:
    """The path of a local location, or None for a remote one."""
    if url.startswith("file://"):
        return pathlib.Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    return None if "://" in url else pathlib.Path(url)


def absolute(url: str) -> str:
    """The location with a local path made absolute, without a slash at the end."""
    path = local_path(url)
    return url.rstrip("/") if path is None else os.path.abspath(path)


def join(url: str, *parts: str) -> str:
    """The location of something below a directory."""
    return "/".join([url.rstrip("/"), *(p.strip("/") for p in parts)])


def kvstore(url: str) -> dict[str, Any]:
    """TensorStore's kvstore spec of a directory location.

    Raises:
        RequestError: The URL has a scheme that no store is known for.
    """
    path = local_path(url)
    if path is not None:
        return {"driver": "file", "path": os.path.abspath(path).rstrip("/") + "/"}
    parts = urllib.parse.urlsplit(url)
    key = urllib.parse.unquote(parts.path).strip("/")
    key = key + "/" if key else ""
    if parts.scheme == "gs":
        return {"driver": "gcs", "bucket": parts.netloc, "path": key}
    if parts.scheme == "s3":
        spec = {"driver": "s3", "bucket": parts.netloc, "path": key}
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        return spec | ({"endpoint": endpoint} if endpoint else {})
    if parts.scheme in ("http", "https"):
        return {"driver": "http", "base_url": url.rstrip("/") + "/"}
    raise RequestError(
        f"{redacted_text(url)}: no store is known for {parts.scheme}://; "
        "give a local path or a gs://, s3:// or http(s):// URL"
    )


def read(url: str) -> bytes | None:
    """The bytes of an object, or None where there is none."""
    with telling(url, "read"):
        path = local_path(url)
        if path is not None:
            return path.read_bytes() if path.is_file() else None
        if url.startswith("gs://"):
            try:
                return bytes(blob(url).download_as_bytes())
            except api_exceptions.NotFound:
                return None
        directory, name = split(url)
        result = keyed(directory).read(name).result()
        return bytes(result.value) if result.state == "value" else None


def write(url: str, data: bytes) -> None:
    """Write an object whole, replacing what is there; a reader sees the old bytes or the new."""
    with telling(url, "write"):
        path = local_path(url)
        if path is not None:
            with _temporary(path, data) as temporary:
                os.replace(temporary, path)
        elif url.startswith("gs://"):
            blob(url).upload_from_string(data)
        else:
            directory, name = split(url)
            keyed(directory).write(name, data).result()


def upload(source: pathlib.Path, url: str) -> None:
    """Write a local file as an object, replacing what is there; like ``write``, whole or not."""
    with telling(url, "write"):
        path = local_path(url)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                shutil.copyfile(source, beside)
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
        elif url.startswith("gs://"):
            blob(url).upload_from_filename(str(source))
        else:
            directory, name = split(url)
            keyed(directory).write(name, source.read_bytes()).result()


def create(url: str, data: bytes) -> bool:
    """Write an object unless there is one; of several writers exactly one gets True."""
    with telling(url, "create"):
        path = local_path(url)
        if path is not None:
            with _temporary(path, data) as temporary:
                return _publish(temporary, path)
        if url.startswith("gs://"):
            try:
                blob(url).upload_from_string(data, if_generation_match=_ABSENT_GS)
            except api_exceptions.PreconditionFailed:
                return False
            return True
        directory, name = split(url)
        stamp = keyed(directory).write(name, data, if_equal=_ABSENT_TS).result()
        return bool(stamp.generation)


def exists(url: str) -> bool:
    """Whether there is an object, or a local directory, at the location."""
    path = local_path(url)
    if path is not None:
        return path.exists()
    with telling(url, "look up"):
        if url.startswith("gs://"):
            return bool(blob(url).exists())
        directory, name = split(url)
        return bool(keyed(directory).read(name, byte_range=slice(0, 0)).result().state == "value")


def names(url: str) -> list[str]:
    """Sorted names of what lies directly in a directory; a directory's name ends in ``/``.

    An absent directory has no names. ``http(s)://`` cannot be listed.
    """
    with telling(url, "list"):
        path = local_path(url)
        if path is not None:
            if not path.is_dir():
                return []
            with os.scandir(path) as entries:
                return sorted(e.name + "/" if e.is_dir() else e.name for e in entries)
        if url.startswith(("http://", "https://")):
            raise RequestError(
                f"{redacted_text(url)}: a web server gives no list of its files; "
                "give the single file, or copy the directory to a store that can be listed"
            )
        if url.startswith("gs://"):
            bucket, prefix = _bucket_and_key(url)
            prefix = prefix.rstrip("/") + "/" if prefix else ""
            blobs = _client().list_blobs(bucket, prefix=prefix, delimiter="/")
            found = {b.name[len(prefix) :] for b in blobs}
            return sorted((found | {p[len(prefix) :] for p in blobs.prefixes}) - {""})
        keys = (k.decode() for k in keyed(url).list().result())
        return sorted({k.split("/", 1)[0] + ("/" if "/" in k else "") for k in keys})


@contextlib.contextmanager
def telling(url: str, doing: str) -> Iterator[None]:
    """Turns what a store raises into a ``RunError`` that says where and what."""
    try:
        yield
    except (
        OSError,
        api_exceptions.GoogleAPIError,
        auth_exceptions.GoogleAuthError,
        requests.RequestException,
    ) as e:
        raise RunError(f"cannot {doing} {redacted_text(url)}: {redacted_text(str(e))}") from e
    except ValueError as e:
        if isinstance(e, RequestError):
            raise
        raise RunError(f"cannot {doing} {redacted_text(url)}: {redacted_text(str(e))}") from e


@contextlib.contextmanager
def _temporary(path: pathlib.Path, data: bytes) -> Iterator[str]:
    """The data in a synced file beside ``path``, gone at the end unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _publish(temporary: str, path: pathlib.Path) -> bool:
    """Give the file its name unless the name is taken; False where it is.

    A hard link is whole at once and fails where the name exists. A file system without hard links
    gets an exclusive rename of the same effect for one writer: the name is claimed, then replaced.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(temporary, path)
    return True


@functools.cache
def _umask() -> int:
    """This process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def split(url: str) -> tuple[str, str]:
    """The location of an object's directory, and the object's name in it."""
    directory, _, name = url.rstrip("/").rpartition("/")
    return directory, urllib.parse.unquote(name)


def keyed(url: str) -> ts.KvStore:
    """TensorStore's key-value store of a directory location."""
    return ts.KvStore.open(kvstore(url), context=process_context()).result()


def _bucket_and_key(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.netloc, urllib.parse.unquote(parts.path).lstrip("/")


@functools.cache
def _client() -> storage.Client:
    """The GCS client: default credentials, anonymous for public data where there are none."""
    try:
        return storage.Client()
    except auth_exceptions.DefaultCredentialsError:
        return storage.Client.create_anonymous_client()


def blob(url: str) -> storage.Blob:
    """The GCS object at a ``gs://`` location."""
    bucket, key = _bucket_and_key(url)
    return _client().bucket(bucket).blob(key)
