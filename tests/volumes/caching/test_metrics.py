"""What storage was asked for, by difference, and handed out once."""

import pathlib
import threading

import pytest

from tests.launch.served import served
from tests.volumes import sample_volumes
from volumes.caching import metrics, tally
from volumes.caching.metrics import NAMES, Account, Io
from volumes.geometry import Box
from volumes.opening import open_volume, resolve_volume
from volumes.reading import read_box

BOX = Box((0, 0, 0), (32, 32, 32))


def stored_bytes(folder: pathlib.Path) -> int:
    return sum(f.stat().st_size for f in (folder / "c").rglob("*") if f.is_file())


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    stated = {"names": ("x", "y", "z"), "attributes": {"dimension_units": ["8 nm"] * 3}}
    return sample_volumes.zarr3(
        tmp_path / "v", sample_volumes.noise((32, 32, 32)), (16, 16, 16), **stated
    )


def test_bytes_are_those_of_the_stored_chunks(folder: pathlib.Path) -> None:
    volume = open_volume(resolve_volume(str(folder), kind="image"))
    before = metrics.look()
    read_box(volume, BOX)
    io = Io.between(before, metrics.look())
    assert io["bytes_read_file"] == stored_bytes(folder)
    assert io["requests"] == 8
    assert io["bytes_read_http"] == io["retries"] == io["cache_hits"] == 0
    assert dict(io).keys() <= set(NAMES)
    with pytest.raises(KeyError):
        io["bytes_read_tape"]


def test_http_is_a_source_of_its_own(folder: pathlib.Path) -> None:
    with served(folder.parent) as server:
        volume = open_volume(resolve_volume(f"{server.url}/v", kind="image"))
        before, asked = metrics.look(), len(server.requests)
        read_box(volume, BOX)
        io = Io.between(before, metrics.look())
    assert io["bytes_read_http"] == stored_bytes(folder)
    assert io["bytes_read_file"] == 0
    assert io["requests"] == len(server.requests) - asked == 8


def test_every_difference_is_handed_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads take, their sum is what was counted."""
    account, taken, lock = Account(), [], threading.Lock()
    with pytest.raises(RuntimeError, match="not open"):
        account.take()
    tally.add("disk_hits", 1000)
    account.open("run")

    def worker() -> None:
        for _ in range(200):
            tally.add("disk_hits")
            io = account.take()
            with lock:
                taken.append(io)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(io["disk_hits"] for io in taken) == 800
    # The same run opens it again in another step, and nothing is lost; another run begins anew.
    tally.add("disk_hits", 5)
    account.open("run")
    assert account.take()["disk_hits"] == 5
    tally.add("disk_hits", 7)
    account.open("another")
    assert account.take()["disk_hits"] == 0


def test_what_does_not_change_is_not_in_it() -> None:
    zero = dict.fromkeys(NAMES, 3)
    assert Io.between(zero, zero) == Io(())
    assert Io.between({}, zero)["requests"] == 3
