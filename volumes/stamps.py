"""Stamps: whether what is stored under a box may have changed, told without reading a voxel.

The stamp of a box is a digest of the storage keys that hold its voxels (chunks, or shards where
sharded), each with the generation that TensorStore gives it: device, inode and time on file,
generation on GCS, ETag on S3 and HTTP, place or content in an OCDBT database. A key that is not
stored has a generation of its own, so a chunk that appears or vanishes moves the stamp. Equal
stamps mean equal stored bytes, as far as the storage tells; other stamps mean that something may
have been written: a file that is copied, or written again with the same bytes, has another
generation. Metadata is not part of a stamp. A volume that is open at one version of an OCDBT
database has the stamps of that version; open it anew to see what came after. The stamp of a view is
a digest of the stamps of the volumes that the box needs of it.

Where there is no generation there is no stamp, which is None and never a text that could look
unchanged: a JSON spec of another driver or with a transform, a web server without strong ETags, a
view with one of these.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator

from volumes.errors import RunError
from volumes.formats import TS_ERRORS, told
from volumes.geometry import Box
from volumes.keys import keys_of, keys_under
from volumes.opening import Volume, open_volume
from volumes.spec import VIEW, VolumeSpec
from volumes.views.tree import needs

__all__ = ["keys_under", "stamp", "stamped"]

_IN_FLIGHT = 4096
_ABSENT = b"\x02"
# A generation is a byte of flags and what the storage gave; where it gave nothing, the byte alone.
_FLAGS = 1
# What a web server answers that tells of no file without sending it.
_NO_HEAD = re.compile(r"HTTP code (405|501)\]|http_response_code='(405|501)'")
_METADATA = {
    "zarr2": ".zarray",
    "zarr3": "zarr.json",
    "n5": "attributes.json",
    "neuroglancer_precomputed": "info",
}


def stamp(volume: Volume, box: Box) -> str | None:
    """The stamp of a box: hex digest of the keys under it and their generations.

    Args:
        volume: Open volume.
        box: Frame voxels, XYZ; only what lies in the domain counts, and a box outside it has the
            digest of nothing.

    Returns:
        The digest, or None where the volume's storage gives no generations.

    Raises:
        RunError: The storage fails, or a volume of a view has changed since it was planned.
    """
    if volume.spec.format == VIEW:
        return _view_stamp(volume.spec, box)
    keys = keys_of(volume)
    if keys is None:
        return None
    digest = hashlib.sha256()
    try:
        for key, generation in _generations(volume, keys.under(box)):
            if generation is None:
                return None
            digest.update(f"{key}\0{generation.hex()}\n".encode())
    except TS_ERRORS as e:
        raise _failure(volume, f"voxels {box}", e) from e
    return digest.hexdigest()


def stamped(volume: Volume) -> bool:
    """Whether the volume has stamps: its format is known and its storage gives generations.

    The storage is judged by the volume's metadata file.

    Raises:
        RunError: The storage fails, or a volume of a view has changed since it was planned.
    """
    if volume.spec.format == VIEW:
        wanted = {spec for spec, _ in needs(volume.spec, volume.spec.domain)}
        return all(spec is not None and stamped(open_volume(spec)) for spec in wanted)
    if keys_of(volume) is None:
        return False
    metadata = _METADATA[volume.spec.format]
    try:
        generations = [g for _, g in _generations(volume, iter((metadata,)))]
    except TS_ERRORS as e:
        raise _failure(volume, metadata, e) from e
    return generations[0] not in (None, _ABSENT)


def _view_stamp(spec: VolumeSpec, box: Box) -> str | None:
    """The stamp of a view: digest of the stamps of what it is made of, in its own order."""
    known: dict[VolumeSpec, Volume] = {}
    digest = hashlib.sha256()
    for wanted, part in needs(spec, box):
        if wanted is None or part is None:
            return None
        volume = known.get(wanted) or open_volume(wanted)
        known[wanted] = volume
        found = stamp(volume, part)
        if found is None:
            return None
        digest.update(f"{found}\n".encode())
    return digest.hexdigest()


def _failure(volume: Volume, what: str, error: Exception) -> RunError:
    """What to say of a generation that cannot be read."""
    spec = volume.spec
    return RunError(
        f"{what} of the {spec.kind} {spec.source}: the stamp, by which a change is told, cannot be "
        f"read: {told(error)}; check that this process may read the volume, or try again"
    )


def _generations(volume: Volume, keys: Iterator[str]) -> Iterator[tuple[str, bytes | None]]:
    """Each key with its generation; None where the storage gives none."""
    store = volume.store.kvstore
    assert store is not None  # the formats with known keys all have one
    while some := list(itertools.islice(keys, _IN_FLIGHT)):
        reads = [store.read(key, byte_range=slice(0, 0)) for key in some]
        for key, read in zip(some, reads, strict=True):
            try:
                result = read.result()
            except (ValueError, NotImplementedError) as e:
                if _NO_HEAD.search(str(e)) is None:
                    raise
                yield key, None
                continue
            generation = bytes(result.stamp.generation)
            if result.state == "missing":
                yield key, _ABSENT
            else:
                yield key, generation if len(generation) > _FLAGS else None
