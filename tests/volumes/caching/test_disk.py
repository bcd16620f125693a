"""Copies on disk: whole or nothing, within their budget, whoever else is at work."""

import multiprocessing
import os
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volumes.caching import disk, tally
from volumes.caching.disk import Copies, Entry, Shelf, evict, packed, unpacked
from volumes.errors import RequestError


def copies(folder: pathlib.Path, budget: int = 10**6) -> Copies:
    return Copies(str(folder), budget)


def files(made: Copies) -> list[pathlib.Path]:
    return sorted(p for p in made.shelves().rglob("*") if p.is_file())


def size(made: Copies) -> int:
    return sum(p.stat().st_size for p in files(made))


def counted(name: tally.Name, since: dict[str, int]) -> int:
    return tally.look()[name] - since[name]


@given(data=st.binary(max_size=100), generation=st.binary(max_size=20), place=st.text(max_size=20))
def test_an_entry_is_read_as_it_was_written(data: bytes, generation: bytes, place: str) -> None:
    entry = unpacked(packed(place, Entry(generation, data)), place)
    assert entry is not None
    assert (entry.generation, entry.data) == (generation, data)
    assert unpacked(packed(place, Entry(generation, data)), place + "!") is None


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_an_entry_that_is_damaged_anywhere_is_none(at: int, bit: int, cut: bool) -> None:
    whole = packed("place", Entry(b"\x01gen", bytes(range(256))))
    broken = bytearray(whole)
    at %= len(whole)
    if cut:
        del broken[at:]
    else:
        broken[at] ^= 1 << bit
    found = unpacked(bytes(broken), "place")
    # A flipped bit of the generation alone makes another generation, which no storage has.
    assert found is None or found.generation != b"\x01gen"


def test_what_is_put_is_found_by_another_process_of_the_same_directory(tmp_path) -> None:
    made = copies(tmp_path / "new" / "place")
    assert Shelf(made).get("a") is None
    assert files(made) == []
    assert Shelf(made).put("a", Entry(b"\x011", b"one"))
    found = Shelf(made).get("a")
    assert found is not None
    assert (found.generation, found.data) == (b"\x011", b"one")
    assert Shelf(made).put("a", Entry(b"\x012", b"two"))
    found = Shelf(made).get("a")
    assert found is not None
    assert found.data == b"two"
    assert len(files(made)) == 1
    Shelf(made).drop("a")
    assert Shelf(made).get("a") is None
    Shelf(made).drop("a")


def test_a_damaged_entry_is_removed(tmp_path) -> None:
    made, before = copies(tmp_path), tally.look()
    shelf = Shelf(made)
    shelf.put("a", Entry(b"\x011", b"one" * 100))
    (file,) = files(made)
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    assert shelf.get("a") is None
    assert files(made) == []
    assert counted("disk_corrupt", before) == 1


def test_those_used_longest_ago_go_first_and_the_budget_holds(tmp_path) -> None:
    made, before = copies(tmp_path, 100_000), tally.look()
    shelf = Shelf(made)
    now = time.time()
    for i in range(60):
        assert shelf.put(f"{i}", Entry(b"\x011", bytes(2000)))
        os.utime(shelf._path(f"{i}"), (now - 1000 + i, now - 1000 + i))
        assert size(made) <= made.budget_bytes
        # The first is used again and again, and stays.
        assert shelf.get("0") is not None
    assert counted("disk_evictions", before) > 10
    assert shelf.get("59") is not None
    assert shelf.get("1") is None
    # What is too large for the budget is not kept, and drives nothing out.
    kept = files(made)
    assert not shelf.put("huge", Entry(b"\x011", bytes(30_000)))
    assert files(made) == kept


def test_leftovers_of_killed_writers_go_and_those_at_work_stay(tmp_path) -> None:
    made = copies(tmp_path)
    shelf = Shelf(made)
    shelf.put("a", Entry(b"\x011", b"one"))
    folder = files(made)[0].parent
    old, new = folder / "left.tmp", folder / "at-work.tmp"
    for path in (old, new):
        path.write_bytes(bytes(1000))
    then = time.time() - 2 * disk._ABANDONED_S
    os.utime(old, (then, then))
    assert evict(made.shelves(), made.budget_bytes) == size(made)
    assert (old.exists(), new.exists()) == (False, True)
    assert shelf.get("a") is not None


def test_a_disk_that_takes_nothing_is_done_without(tmp_path, monkeypatch) -> None:
    before = tally.look()
    shelf = Shelf(copies(tmp_path))

    def full(source, target) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "replace", full)
    assert not shelf.put("a", Entry(b"\x011", b"one"))
    assert counted("disk_unwritten", before) == 1
    assert files(copies(tmp_path)) == []


def test_a_directory_that_cannot_be_one_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"--disk-cache .*file/x: .*/file is no directory"):
        copies(tmp_path / "file" / "x").check()
    copies(tmp_path / "not" / "yet").check()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def _work(made: Copies, seed: int, ends) -> None:
    """Puts and gets in a process of its own; every copy that is found is that of its place."""
    shelf, wrong, most = Shelf(made), 0, 0
    for i in range(300):
        name = f"{(i * 7 + seed) % 40}"
        found = shelf.get(name)
        if found is None:
            shelf.put(name, Entry(name.encode(), name.encode() * 1000))
        elif found.data != name.encode() * 1000:
            wrong += 1
        if i % 10 == 0:
            most = max(most, evict(made.shelves(), 10**9))
    ends.put((wrong, most))


@pytest.mark.slow
def test_processes_share_a_directory_without_a_lock(tmp_path) -> None:
    made = copies(tmp_path, 40_000)
    spawn = multiprocessing.get_context("spawn")
    ends = spawn.Queue()
    processes = [spawn.Process(target=_work, args=(made, seed, ends)) for seed in range(3)]
    for process in processes:
        process.start()
    found = [ends.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert [wrong for wrong, _ in found] == [0, 0, 0]
    assert max(most for _, most in found) <= made.budget_bytes
    assert not [p for p in files(made) if p.suffix == ".tmp"]
