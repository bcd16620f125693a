"""Compaction of a partition: what nobody reads any more is taken out of its OCDBT database.

A database only grows: each commit leaves a data file with its values and a whole new tree.
TensorStore has no way to drop a version, so the database's own files are written here, through
``ts.ocdbt.dump`` and its inverses. Measured with TensorStore 0.1.86:

- A manifest's inline versions are those of the head's block of 16 generation numbers, gaps allowed.
  Older ones stand in version tree nodes, of which all but the topmost must end exactly where their
  block does (at a multiple of 16, 256, ...). Where that version is dropped, a tombstone stands in
  for it: an entry whose root names a file that never exists, so that reading it is NOT_FOUND, as
  for every dropped version, and never another version's rows.
- Dropping versions alone frees next to nothing where a commit is a box: nearly every data file
  has a value that the head still needs, beside a tree that nobody does. So where the kept versions
  are spread too thin, their values are copied into new, large files: oldest version first, of each
  later one only what differs, so that versions go on sharing. The copies are made as a database
  of its own, with its manifest in memory and its data files among the partition's; no reader sees
  any of it until the partition's manifest names the new trees under the versions' old numbers.
- A process that reads a pinned version goes on with the first manifest it saw. So, by default, the
  files that the earlier manifest names for the kept versions stay until the next compaction.

The order is what makes it safe to kill: new files first, which nobody names yet; then the
manifest, in one write that fails if another writer changed it; then files are deleted.
"""

import dataclasses
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import tensorstore as ts

from volumes import objects
from volumes.context import ocdbt, process_context
from volumes.errors import RunError
from volumes.partition import Partition, read_key

_MANIFEST = "manifest.ocdbt"
_DATA = "d/"

# What a killed writer leaves beside the data file it was to become.
_LEFTOVER = ".__lock"

# The root of a version that is only there because a version tree node must end with it.
_TOMBSTONE = "btreenode::d/dropped-by-compaction:0:1"

# Values held in memory at a time while they are copied: one transaction's.
_BATCH_BYTES = 64 * 2**20

# Kept versions are copied where their files have more than so many times the bytes that are needed,
# or are so many times as many as files of this size would be. A copy is well below both.
_THIN = 2
_SMALL_FILE_BYTES = 2**20

# Settings of the database that its copies must share; the others are of its own.
_ARITY = "version_tree_arity_log2"
_SETTINGS = ("compression", "max_decoded_node_bytes", "max_inline_value_bytes", _ARITY)

# A version as the manifest has it: generation_number, commit_time, root, root_height.
_Version = dict[str, Any]

# A value as a tree has it: its location, or the value itself where it is short.
_Value = str | bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did.

    Attributes:
        versions_kept: Generation numbers that stay readable, ascending; the last is the head.
        versions_dropped: Versions that were there before and are not now.
        files_removed: Data files and killed writers' leftovers that were deleted.
        bytes_before: Bytes of the database before; None where the storage gives no sizes.
        bytes_after: Bytes of the database after; None where the storage gives no sizes.
    """

    versions_kept: tuple[int, ...]
    versions_dropped: int
    files_removed: int
    bytes_before: int | None
    bytes_after: int | None


def compact(partition: Partition, keep: Iterable[int], *, readers: bool = True) -> Compacted:
    """Drop every version of a partition but those to keep and the head, and what only they need.

    No writer may live: one that does can lose what it is about to commit. Kept versions have the
    same rows under the same numbers, and the head keeps its number. Killed at any moment it
    leaves them so, and the next call clears up. Reading a dropped version is NOT_FOUND.

    Args:
        partition: The partition; one without a database is left as it is.
        keep: Generation numbers to stay readable; the head always stays.
        readers: Whether processes that opened a kept version, or the head, before may still be
            reading. What they need is then removed by the next call only, so the first call may
            leave more bytes than it found. With False they end in an error that says which file
            is missing, never in other rows.

    Raises:
        RunError: A number to keep is not there (nothing was changed), a writer committed meanwhile
            (nothing was lost), or the storage does not answer.
    """
    wanted = set(keep)
    database = _Database.of(partition)
    # Read before the rest, so that a commit after this makes the write of the manifest fail.
    generation = database.read_stamp()
    if generation is None:
        _refuse_absent(partition, wanted, [])
        return Compacted((), 0, 0, None, None)
    manifest = database.manifest()
    sizes = _sizes(partition)
    present = _data_files(database, sizes)
    versions, nodes = _versions(database, manifest)
    numbers = [v["generation_number"] for v in versions]
    _refuse_absent(partition, wanted, numbers)
    wanted.add(numbers[-1])
    kept = [v for v in versions if v["generation_number"] in wanted]
    state = _State.of(database, kept)
    needed = state.files() | set(map(_file, nodes))
    copied = _copied(database, manifest["config"], state, sizes)
    if copied is not None or len(kept) < len(versions):
        after = copied or state
        written = _new_manifest(database, manifest["config"], after.versions)
        new_nodes = _replace_manifest(database, written, generation)
        earlier = needed if readers else set()
        needed = after.files() | set(map(_file, new_nodes)) | earlier
    removed = _remove(database, [name for name in present if name not in needed])
    return Compacted(
        versions_kept=tuple(v["generation_number"] for v in kept),
        versions_dropped=len(versions) - len(kept),
        files_removed=removed,
        bytes_before=_total(sizes),
        bytes_after=_total(_sizes(partition)),
    )


def _refuse_absent(partition: Partition, wanted: set[int], numbers: list[int]) -> None:
    if absent := sorted(wanted.difference(numbers)):
        there = f"{len(numbers)}, from {numbers[0]} to {numbers[-1]}" if numbers else "none"
        raise RunError(
            f"{partition} has no version {', '.join(map(str, absent))} to keep (it has {there}): "
            "compaction keeps what is published, and a published version that is lost must be "
            "looked into first; nothing was changed"
        )


# -- reading the database's own files --


@dataclasses.dataclass(frozen=True, slots=True)
class _Database:
    """A partition's database, file by file.

    Attributes:
        partition: The partition.
        base: Its directory, as keys.
    """

    partition: Partition
    base: ts.KvStore

    @classmethod
    def of(cls, partition: Partition) -> "_Database":
        spec = objects.kvstore(partition.url)
        try:
            base = ts.KvStore.open(spec, context=process_context()).result()
        except ValueError as e:
            raise RunError(f"cannot open {partition}: {objects.redacted(str(e))}") from e
        return cls(partition, base)

    def asked(self, future: Any) -> Any:
        """The future's value; what TensorStore raises becomes a ``RunError`` that says where."""
        try:
            return future.result()
        except ValueError as e:
            raise RunError(f"cannot compact {self.partition}: {objects.redacted(str(e))}") from e

    def dump(self, location: str) -> Any:
        """The future of the node, or of the bytes, at a location."""
        return ts.ocdbt.dump(self.base, location)

    def read_stamp(self) -> bytes | None:
        """The generation of the manifest's file; None where there is no database."""
        found = self.asked(self.base.read(_MANIFEST, byte_range=slice(0, 0)))
        return bytes(found.stamp.generation) if found.state == "value" else None

    def manifest(self) -> dict[str, Any]:
        """The manifest as TensorStore dumps it, which does not say of what kind it is."""
        # "/" is the character after ".".
        prefix, end = "manifest.", "manifest/"
        if len(self.asked(self.base.list(ts.KvStore.KeyRange(prefix, end)))) > 1:
            raise RunError(
                f"{self.partition} has numbered manifests, as storage without conditional writes "
                "gets, and only a database with a single one can be compacted: no write replaces "
                "several at once; nothing was changed. Copy the store elsewhere to compact it"
            )
        manifest: dict[str, Any] = self.asked(ts.ocdbt.dump(self.base))
        return manifest


@dataclasses.dataclass(frozen=True, slots=True)
class _State:
    """Versions, ascending, with what their trees hold.

    Attributes:
        versions: The versions as a manifest has them.
        values: The values by key, a mapping for each version.
        nodes: Locations of all tree nodes.
    """

    versions: tuple[_Version, ...]
    values: tuple[dict[bytes, _Value], ...]
    nodes: frozenset[str]

    @classmethod
    def of(cls, database: _Database, versions: list[_Version]) -> "_State":
        nodes: set[str] = set()
        values = tuple(_values(database, v, nodes) for v in versions)
        return cls(tuple(versions), values, frozenset(nodes))

    def locations(self) -> set[str]:
        """Locations of the nodes and of the values that stand outside of nodes."""
        stored = (v for values in self.values for v in values.values())
        return {v for v in stored if isinstance(v, str)} | self.nodes

    def files(self) -> set[str]:
        """Names of the data files that the versions need."""
        return set(map(_file, self.locations()))


def _versions(database: _Database, manifest: dict[str, Any]) -> tuple[list[_Version], list[str]]:
    """All versions but tombstones, ascending, and the locations of the version tree nodes."""
    found = []
    nodes = [reference["location"] for reference in manifest["version_tree_nodes"]]
    # The list grows while it is walked.
    for location in nodes:
        node = database.asked(database.dump(location))
        if node["height"]:
            nodes.extend(entry["location"] for entry in node["entries"])
        else:
            found.extend(node["entries"])
    found.extend(manifest["versions"])
    real = (v for v in found if not _is_tombstone(v))
    return sorted(real, key=lambda v: int(v["generation_number"])), nodes


def _values(database: _Database, version: _Version, nodes: set[str]) -> dict[bytes, _Value]:
    """The values of a version by key; adds the locations of its tree's nodes to ``nodes``."""
    found: dict[bytes, _Value] = {}
    root = version["root"].get("location")
    level = [] if root is None else [(root, b"")]
    while level:
        nodes.update(location for location, _ in level)
        dumps = [(database.dump(location), prefix) for location, prefix in level]
        level = []
        for future, prefix in dumps:
            node = database.asked(future)
            for entry in node["entries"]:
                if node["height"]:
                    below = prefix + entry["subtree_common_prefix"]
                    level.append((entry["location"], below))
                elif "indirect_value" in entry:
                    found[prefix + entry["key"]] = entry["indirect_value"]
                else:
                    found[prefix + entry["key"]] = entry["inline_value"]
    return found


def _file(location: str) -> str:
    """The data file of a location ``kind:directory:name:offset:length``."""
    return location.split(":", 1)[1].rsplit(":", 2)[0].replace(":", "")


def _length(value: _Value) -> int:
    return int(value.rsplit(":", 1)[1]) if isinstance(value, str) else len(value)


# -- copying what the kept versions hold --


def _copied(
    database: _Database, config: dict[str, Any], state: _State, sizes: dict[str, int] | None
) -> _State | None:
    """The state with its trees copied into new files; None where they are dense enough."""
    live = sum(map(_length, state.locations()))
    files = state.files()
    dense = len(files) <= _THIN * (len(state.versions) + live // _SMALL_FILE_BYTES + 1)
    if sizes is not None:
        dense = dense and sum(sizes.get(name, 0) for name in files) <= _THIN * live
    if dense:
        return None
    memory = _memory()
    settings = {name: config[name] for name in _SETTINGS}
    spec = ocdbt(objects.kvstore(database.partition.url)) | {"manifest": memory, "config": settings}
    manifests = database.asked(ts.KvStore.open(memory, context=process_context()))
    copy = database.asked(ts.KvStore.open(spec, context=process_context()))
    earlier: dict[bytes, _Value] = {}
    root: dict[str, Any] = {}
    moved = []
    for version, values in zip(state.versions, state.values, strict=True):
        if values and values != earlier:
            _bring(database, copy, earlier, values)
            newest = database.asked(ts.ocdbt.dump(manifests))["versions"][-1]
            root = {name: newest[name] for name in ("root", "root_height")}
            earlier = values
        moved.append(version | root if values else version)
    database.asked(manifests.delete_range(ts.KvStore.KeyRange()))
    after = _State.of(database, moved)
    _check_copy(database.partition, state, after)
    return after


def _memory() -> dict[str, Any]:
    """The kvstore spec of a directory of this process's memory that nobody else has."""
    return {"driver": "memory", "path": f"compaction-{secrets.token_hex(16)}/"}


def _bring(
    database: _Database,
    copy: ts.KvStore,
    earlier: dict[bytes, _Value],
    values: dict[bytes, _Value],
) -> None:
    """Change a copy that holds ``earlier`` to hold ``values``, a bounded transaction at a time."""
    changed: dict[bytes, _Value | None] = dict.fromkeys(earlier.keys() - values.keys())
    changed |= {key: value for key, value in values.items() if earlier.get(key) != value}
    for batch in _batches(changed):
        transaction = ts.Transaction(atomic=True)
        staged = copy.with_transaction(transaction)
        reads = {key: database.dump(at) for key, at in batch.items() if isinstance(at, str)}
        found = batch | {key: database.asked(read) for key, read in reads.items()}
        # The value None deletes the key.
        for write in [staged.write(key, value) for key, value in found.items()]:
            database.asked(write)
        database.asked(transaction.commit_async())


def _batches(changed: dict[bytes, _Value | None]) -> Iterator[dict[bytes, _Value | None]]:
    """The changes in order, as many at a time as fit into ``_BATCH_BYTES``; at least one."""
    batch: dict[bytes, _Value | None] = {}
    held = 0
    for key, value in changed.items():
        length = 0 if value is None else _length(value)
        if batch and held + length > _BATCH_BYTES:
            yield batch
            batch, held = {}, 0
        batch[key] = value
        held += length
    if batch:
        yield batch


def _check_copy(partition: Partition, state: _State, after: _State) -> None:
    """Refuse a copy that does not hold the same keys with values of the same lengths."""
    for version, old, new in zip(state.versions, state.values, after.values, strict=True):
        if old.keys() != new.keys() or any(_length(old[key]) != _length(new[key]) for key in old):
            raise RunError(
                f"the copy of version {version['generation_number']} of {partition} differs from "
                "it: the storage lost what was written; nothing was changed, run compact again"
            )


# -- writing the database's own files --


def _new_manifest(
    database: _Database, config: dict[str, Any], versions: tuple[_Version, ...]
) -> dict[str, Any]:
    """A manifest of exactly these versions, its version tree nodes written as a new data file."""
    arity = config[_ARITY]
    head = versions[-1]["generation_number"]
    inline = top = (head - 1) >> arity << arity
    nodes = _NodeFile(config)
    references = []
    height = 1
    # From new to old: a node of height 1 has what lies between the last multiple of 256 and the
    # head's block, one of height 2 what lies between the last multiple of 4096 and that, and so on.
    while top:
        shift = (height + 1) * arity
        bottom = (top - 1) >> shift << shift
        mine = [v for v in versions if bottom < v["generation_number"] <= top]
        if mine:
            references.append(nodes.add(height, _with_tombstones(mine, arity, height)))
        top = bottom
        height += 1
    if nodes.content:
        database.asked(database.base.write(nodes.name, bytes(nodes.content)))
    return {
        "config": config,
        "versions": [v for v in versions if v["generation_number"] > inline],
        "version_tree_nodes": references[::-1],
    }


def _with_tombstones(versions: list[_Version], arity: int, height: int) -> list[_Version]:
    """The versions of a node, and a tombstone wherever a node below it would lack its end."""
    whole = {v["generation_number"]: v for v in versions}
    for version in versions:
        for level in range(1, height + 1):
            block = 2 ** (level * arity)
            end = -(-version["generation_number"] // block) * block
            # The newest version before the end comes last, and it gives the time.
            if end not in whole or _is_tombstone(whole[end]):
                whole[end] = _tombstone(end, version)
    return [whole[number] for number in sorted(whole)]


def _tombstone(number: int, earlier: _Version) -> _Version:
    """A tombstone that comes after a version; times grow by at least 1 ns from one to the next."""
    statistics = {"num_indirect_value_bytes": 0, "num_keys": 0, "num_tree_bytes": 0}
    return {
        "generation_number": number,
        "commit_time": earlier["commit_time"] + number - earlier["generation_number"],
        "root": {"location": _TOMBSTONE, "statistics": statistics},
        "root_height": 0,
    }


def _is_tombstone(version: _Version) -> bool:
    return bool(version["root"].get("location") == _TOMBSTONE)


class _NodeFile:
    """A data file of version tree nodes, in memory until it is written."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.name = _DATA + secrets.token_hex(16)
        self.content = bytearray()
        self._config = config

    def add(self, height: int, versions: list[_Version]) -> dict[str, Any]:
        """Add the node of these versions, nodes below it first; returns a reference to it."""
        arity = self._config[_ARITY]
        entries = versions
        if height:
            blocks: dict[int, list[_Version]] = {}
            for version in versions:
                block = (version["generation_number"] - 1) >> (height * arity)
                blocks.setdefault(block, []).append(version)
            entries = [self.add(height - 1, block) for block in blocks.values()]
        node = {_ARITY: arity, "height": height, "entries": entries}
        encoded = ts.ocdbt.undump_version_tree_node(self._config, node)
        offset = len(self.content)
        self.content += encoded
        return {
            "location": f"versionnode::{self.name}:{offset}:{len(encoded)}",
            "generation_number": versions[-1]["generation_number"],
            "height": height,
            "num_generations": len(versions),
            "commit_time": versions[0]["commit_time"],
        }


def _replace_manifest(
    database: _Database, manifest: dict[str, Any], generation: bytes
) -> list[str]:
    """Write a manifest in place of that of a generation; the locations of its version tree nodes.

    TensorStore checks what it reads and not what it encodes, so it is read back before it counts.
    """
    data = ts.ocdbt.undump_manifest(manifest)
    trial = database.asked(ts.KvStore.open(_memory(), context=process_context()))
    database.asked(trial.write(_MANIFEST, data))
    _, nodes = _versions(database, database.asked(ts.ocdbt.dump(trial)))
    database.asked(trial.delete_range(ts.KvStore.KeyRange()))
    stamp = database.asked(database.base.write(_MANIFEST, data, if_equal=generation))
    if not stamp.generation:
        raise RunError(
            f"a writer committed to {database.partition} while it was compacted: compaction is for "
            "stores that nobody writes to; nothing was lost, run it again when the writer has ended"
        )
    # Any read of the head makes this process look at the manifest again.
    read_key(database.partition, "epoch")
    return nodes


# -- files --


def _sizes(partition: Partition) -> dict[str, int] | None:
    """Bytes of the database's files by name, writers' leftovers included; None if not local."""
    path = objects.local_path(partition.url)
    if path is None:
        return None
    found: dict[str, int] = {}
    for directory, prefix in ((path, ""), (path / _DATA, _DATA)):
        try:
            with os.scandir(directory) as entries:
                found |= {prefix + e.name: e.stat().st_size for e in entries if e.is_file()}
        except FileNotFoundError:
            continue
        except OSError as e:
            raise RunError(f"cannot compact {partition}: {e}") from e
    return found


def _total(sizes: dict[str, int] | None) -> int | None:
    return None if sizes is None else sum(sizes.values())


def _data_files(database: _Database, sizes: dict[str, int] | None) -> list[str]:
    """Names of the data files; of a local database with writers' leftovers, which no list has."""
    if sizes is not None:
        return sorted(name for name in sizes if name.startswith(_DATA))
    # "0" is the character after "/".
    keys = database.asked(database.base.list(ts.KvStore.KeyRange(_DATA, _DATA[:-1] + "0")))
    return sorted(key.decode() for key in keys)


def _remove(database: _Database, names: list[str]) -> int:
    """Delete data files; returns how many."""
    leftovers = [name for name in names if name.endswith(_LEFTOVER)]
    # A leftover's name is no valid key, and only a range can hold it. It goes before the file that
    # it stands beside, whose deletion makes, and removes, a lock of the same name.
    ranges = [ts.KvStore.KeyRange(name, name + "\0") for name in leftovers]
    for cleared in [database.base.delete_range(found) for found in ranges]:
        database.asked(cleared)
    files = sorted(set(names).difference(leftovers))
    for deleted in [database.base.write(name, None) for name in files]:
        database.asked(deleted)
    return len(names)
