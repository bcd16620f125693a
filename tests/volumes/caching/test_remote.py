"""Reading through copies gives what the storage has now, and asks for no more than it must."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorstore as ts

from tests.volumes import sample_volumes
from tests.volumes.caching.place import Place, remote
from volumes.caching import remote as remote_module
from volumes.caching import tally
from volumes.caching.disk import Copies
from volumes.caching.remote import copied, read_through, refusal
from volumes.errors import DataError, RunError
from volumes.geometry import Box
from volumes.opening import Volume, open_volume, resolve_volume
from volumes.reading import Request
from volumes.snapshots import MovedError, Snapshot, read_snapshot
from volumes.stamps import stamp

SHAPE = (48, 16, 16)
LEFT, RIGHT = Box((0, 0, 0), (32, 16, 16)), Box((16, 0, 0), (48, 16, 16))
STATED = {"names": ("x", "y", "z"), "attributes": {"dimension_units": ["8 nm"] * 3}}
N5_STATED = {"resolution": [8, 8, 8], "units": ["nm"] * 3, "axes": ["x", "y", "z"]}
FORMATS = ("zarr3", "sharded", "zarr2", "n5", "precomputed", "precomputed sharded")


def make(folder: pathlib.Path, kind: str) -> None:
    data = sample_volumes.noise(SHAPE)
    match kind:
        case "zarr3":
            sample_volumes.zarr3(folder, data, (8, 8, 8), **STATED)
        case "sharded":
            sample_volumes.zarr3(folder, data, (8, 8, 8), shard=(16, 16, 16), **STATED)
        case "zarr2":
            units = {"resolution": [8, 8, 8], "units": ["nm"] * 3}
            sample_volumes.zarr2(folder, data, (8, 8, 8), units)
        case "n5":
            sample_volumes.n5(folder, data, (8, 8, 8), N5_STATED)
        case _:
            sample_volumes.precomputed(
                folder, data, (8, 8, 8), offset=(3, 4, 5), sharded="sharded" in kind
            )


def opened(place: Place, name: str = "v") -> Volume:
    return open_volume(resolve_volume(f"{place.url}/{name}", kind="image"))


def through(tmp_path: pathlib.Path, volume: Volume, box: Box, budget: int = 10**8) -> Snapshot:
    return read_through(Copies(str(tmp_path / "copies"), budget), [Request(volume, box)])


def same(found: Snapshot, volume: Volume, box: Box) -> bool:
    whole = read_snapshot([Request(volume, box)])
    part, expected = found.parts[0], whole.parts[0]
    return (
        found.stamps == whole.stamps
        and np.array_equal(part.array, expected.array)
        and (part.missing, part.bytes_decoded) == (expected.missing, expected.bytes_decoded)
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_alike_and_the_second_time_for_nothing(tmp_path, kind: str) -> None:
    make(tmp_path / "v", kind)
    with remote(tmp_path) as place:
        volume = opened(place)
        box = Box((5, 4, 6), (30, 19, 15)) if "precomputed" in kind else LEFT
        assert same(through(tmp_path, volume, box), volume, box)
        place.forget()
        before = tally.look()
        found = through(tmp_path, volume, box)
        assert {n for _, _, n in place.sent} == {0}
        assert {status for _, status, _ in place.sent} <= {200, 304, 404}
        after = tally.look()
        assert after["disk_hits"] > before["disk_hits"]
        assert after["disk_misses"] == before["disk_misses"]
        assert same(found, volume, box)


def test_boxes_that_overlap_share_copies_and_so_do_runs(tmp_path) -> None:
    make(tmp_path / "v", "zarr3")
    with remote(tmp_path) as place:
        volume = opened(place)
        through(tmp_path, volume, LEFT)
        all_of_it = place.body_bytes()
        place.forget()
        remote_module.shelf_of.cache_clear()  # as another process would begin
        through(tmp_path, volume, RIGHT)
        assert place.body_bytes() == pytest.approx(all_of_it / 2, rel=0.1)


@pytest.mark.parametrize("kind", ["zarr3", "sharded"])
@pytest.mark.parametrize("change", ["written", "vanished", "appeared"])
def test_a_chunk_that_changed_is_fetched_again(tmp_path, kind: str, change: str) -> None:
    make(tmp_path / "v", kind)
    driver = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/v/"}
    writer = ts.open(driver, read=True, write=True, context=ts.Context()).result()
    if change == "appeared":
        writer[16:32] = 0
    with remote(tmp_path) as place:
        volume = opened(place)
        before = through(tmp_path, volume, LEFT)
        writer[16:32] = 0 if change == "vanished" else 7
        after = through(tmp_path, volume, LEFT)
        assert same(after, volume, LEFT)
        assert after.stamps != before.stamps
        assert (after.parts[0].array[16:] == (0 if change == "vanished" else 7)).all()
        assert np.array_equal(after.parts[0].array[:16], before.parts[0].array[:16])


def test_a_change_between_the_two_looks_is_noticed(tmp_path, monkeypatch) -> None:
    make(tmp_path / "v", "zarr3")
    chunk = tmp_path / "v" / "c" / "0" / "0" / "0"
    real = remote_module.read_boxes

    def replaced(requests, **options):
        found = real(requests, **options)
        chunk.write_bytes((tmp_path / "v" / "c" / "1" / "0" / "0").read_bytes())
        return found

    with remote(tmp_path) as place:
        volume = opened(place)
        monkeypatch.setattr(remote_module, "read_boxes", replaced)
        with pytest.raises(MovedError, match=r"voxels \[0:32.* changed while they were read"):
            through(tmp_path, volume, LEFT)
        monkeypatch.undo()
        assert same(through(tmp_path, volume, LEFT), volume, LEFT)


def test_a_damaged_copy_is_fetched_again_and_a_damaged_chunk_is_an_error(tmp_path) -> None:
    make(tmp_path / "v", "zarr3")
    with remote(tmp_path) as place:
        volume = opened(place)
        through(tmp_path, volume, LEFT)
        copies = [p for p in (tmp_path / "copies").rglob("*") if p.is_file()]
        for path in copies[:3]:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
        place.forget()
        assert same(through(tmp_path, volume, LEFT), volume, LEFT)
        assert sum(1 for path, status, n in place.sent if n and status == 200) >= 3
        # What is damaged where it is stored is told as ever, and is well when it is mended.
        chunk = tmp_path / "v" / "c" / "1" / "1" / "1"
        whole = chunk.read_bytes()
        chunk.write_bytes(whole[: len(whole) // 2])
        for _ in range(2):
            with pytest.raises(DataError, match=f"image {place.url}/v cannot be read"):
                through(tmp_path, volume, LEFT)
        chunk.write_bytes(whole)
        assert same(through(tmp_path, volume, LEFT), volume, LEFT)


def test_copies_that_vanish_at_any_moment_change_nothing(tmp_path, monkeypatch) -> None:
    """Another process evicts all that there is, each time something was brought."""
    make(tmp_path / "v", "sharded")
    real = remote_module._fetched

    def evicted(*args):
        found = real(*args)
        for path in (tmp_path / "copies").rglob("*"):
            if path.is_file():
                path.unlink()
        return found

    monkeypatch.setattr(remote_module, "_fetched", evicted)
    with remote(tmp_path) as place:
        volume = opened(place)
        for box in (LEFT, RIGHT, LEFT):
            assert same(through(tmp_path, volume, box), volume, box)


def test_a_budget_that_holds_next_to_nothing_is_kept(tmp_path) -> None:
    make(tmp_path / "v", "zarr3")
    with remote(tmp_path) as place:
        volume = opened(place)
        for box in (LEFT, RIGHT, LEFT):
            assert same(through(tmp_path, volume, box, 5000), volume, box)
        kept = [p.stat().st_size for p in (tmp_path / "copies").rglob("*") if p.is_file()]
        assert 0 < sum(kept) <= 5000


def test_what_may_have_no_copies_is_read_without(tmp_path) -> None:
    make(tmp_path / "v", "zarr3")
    local = open_volume(resolve_volume(str(tmp_path / "v"), kind="image"))
    assert refusal(local.spec) == "it is not read over a network"
    with remote(tmp_path, etags=False) as place:
        bare = opened(place)
        assert refusal(bare.spec) is None
        assert not copied(bare)
        requests = [Request(local, LEFT), Request(bare, LEFT)]
        found = read_through(Copies(str(tmp_path / "copies"), 10**8), requests)
        assert np.array_equal(found.parts[0].array, found.parts[1].array)
        assert found.stamps == (stamp(local, LEFT), None)
    assert not (tmp_path / "copies").exists()


def test_one_with_copies_and_one_without_are_of_one_moment(tmp_path) -> None:
    make(tmp_path / "v", "zarr3")
    with remote(tmp_path) as place:
        far, near = opened(place), open_volume(resolve_volume(str(tmp_path / "v"), kind="image"))
        found = read_through(
            Copies(str(tmp_path / "copies"), 10**8), [Request(near, LEFT), Request(far, RIGHT)]
        )
        assert found.stamps == (stamp(near, LEFT), stamp(far, RIGHT))
        assert np.array_equal(found.parts[0].array[16:], found.parts[1].array[:16])
        assert [p.box for p in found.parts] == [LEFT, RIGHT]


def test_large_objects_and_other_drivers_are_refused_by_name(tmp_path) -> None:
    make(tmp_path / "v", "zarr3")
    with remote(tmp_path) as place:
        spec = opened(place).spec
        metadata = json.loads((tmp_path / "v" / "zarr.json").read_text())
        metadata["shape"] = [2048] * 3
        metadata["chunk_grid"]["configuration"]["chunk_shape"] = [1024] * 3
        (tmp_path / "huge").mkdir()
        (tmp_path / "huge" / "zarr.json").write_text(json.dumps(metadata))
        assert refusal(spec) is None
        assert "1,073,741,824 bytes decoded" in str(refusal(opened(place, "huge").spec))
        inline = json.dumps({"driver": "zarr3", "kvstore": f"{place.url}/v/"})
        assert refusal(resolve_volume(inline, kind="image")) is None
    stack = json.dumps({"driver": "zarr3", "kvstore": f"file://{tmp_path}/v/|ocdbt:"})
    lying = dataclasses.replace(spec, tensorstore=stack)
    assert refusal(lying) == "it lies in a database"
    cast = {"driver": "cast", "dtype": "uint8", "base": json.loads(inline)}
    lying = dataclasses.replace(spec, tensorstore=json.dumps(cast))
    assert refusal(lying) == "its driver stores nothing itself"


def test_a_storage_that_fails_is_told(tmp_path) -> None:
    make(tmp_path / "v", "zarr3")
    with remote(tmp_path) as place:
        volume = opened(place)
        assert copied(volume)
        place.refuses = 403
        with pytest.raises(
            RunError, match=r"voxels \[0:32.*cannot be read: .*(?:403|Forbidden).*try again"
        ):
            through(tmp_path, volume, LEFT)


@pytest.mark.slow
def test_a_warm_copy_is_read_in_the_time_of_two_requests(tmp_path) -> None:
    """Both looks ask for all chunks at once, so that latency counts twice and bytes not at all."""
    make(tmp_path / "v", "zarr3")
    with remote(tmp_path, delay_s=0.05) as place:
        volume = opened(place)
        through(tmp_path, volume, LEFT)
        began = time.monotonic()
        through(tmp_path, volume, LEFT)
        took = time.monotonic() - began
    # 16 chunks, two looks: one after the other they would take 1.6 s.
    assert took < 0.8
    assert os.listdir(tmp_path / "copies") == ["segclr-beam-copies"]


def test_threads_that_want_the_same_at_once_fetch_it_once(tmp_path) -> None:
    make(tmp_path / "v", "zarr3")
    with remote(tmp_path, delay_s=0.02) as place:
        volume = opened(place)
        assert copied(volume)
        with ThreadPoolExecutor(3) as pool:
            boxes = [LEFT, RIGHT, LEFT]
            found = list(pool.map(lambda box: through(tmp_path, volume, box), boxes))
        fetched = [path for path, _, n in place.sent if n and "/c/" in path]
        assert len(fetched) == len(set(fetched)) == 24
        assert all(same(f, volume, box) for f, box in zip(found, boxes, strict=True))
    stored = [p for p in (tmp_path / "copies").rglob("*") if p.is_file()]
    assert len(stored) == 24


def _read_for_ever(url: str, copies: Copies) -> None:
    volume = open_volume(resolve_volume(url, kind="image"))
    while True:
        for box in (LEFT, RIGHT):
            with contextlib.suppress(MovedError):
                read_through(copies, [Request(volume, box)])


@pytest.mark.slow
def test_processes_that_share_copies_and_are_killed_leave_nothing_wrong(tmp_path) -> None:
    """A budget that is always full, chunks that change, and a kill -9 in the middle of it."""
    make(tmp_path / "v", "zarr3")
    copies = Copies(str(tmp_path / "copies"), 20_000)
    driver = {"driver": "zarr3", "kvstore": f"file://{tmp_path}/v/"}
    writer = ts.open(driver, read=True, write=True, context=ts.Context()).result()
    spawn = multiprocessing.get_context("spawn")
    with remote(tmp_path) as place:
        volume = opened(place)
        others = [
            spawn.Process(target=_read_for_ever, args=(f"{place.url}/v", copies)) for _ in range(2)
        ]
        for process in others:
            process.start()
        try:
            deadline = time.monotonic() + 60
            while not any(copies.shelves().rglob("*")) and time.monotonic() < deadline:
                time.sleep(0.01)
            for i in range(30):
                writer[16 : 16 + 8 * (i % 3 + 1)] = i + 1
                found = read_through(copies, [Request(volume, (LEFT, RIGHT)[i % 2])])
                assert same(found, volume, (LEFT, RIGHT)[i % 2])
                if i == 15:
                    assert others[0].is_alive()
                    others[0].kill()
        finally:
            for process in others:
                process.kill()
                process.join()
        kept = [p for p in copies.shelves().rglob("*") if p.is_file()]
        assert 0 < sum(p.stat().st_size for p in kept) <= copies.budget_bytes
        assert same(read_through(copies, [Request(volume, LEFT)]), volume, LEFT)
