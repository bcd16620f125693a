"""What is kept, read ahead and copied changes no row; what it saves stands in the counters."""

import pathlib
import time

import pytest

from pipelines import embed
from pipelines.io import io_line, io_summary
from tests.pipelines import embed_case
from tests.pipelines.embed_case import Case, rows_by_node, run
from tests.volumes.caching.place import remote
from transforms import boxes
from volumes.errors import RequestError
from volumes.generation import coordinate_of
from volumes.store import current

PLAIN = {"read_ahead": 0, "cache_mb": 0}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return embed_case.make_case(tmp_path_factory.mktemp("caching"))


@pytest.fixture(scope="module")
def plain(case: Case) -> tuple[dict, dict[str, int]]:
    """The rows without any of it, and what was counted."""
    plan = embed.plan(case.config("plain", **PLAIN))
    counts = run(plan)
    return rows_by_node(plan.work.generation.store), counts


def stored_bytes(folder: pathlib.Path) -> int:
    return sum(f.stat().st_size for f in (folder / "c").rglob("*") if f.is_file())


@pytest.mark.parametrize("nodes", ["nodes.csv", "auto:60"])
def test_a_pool_saves_reading_and_changes_nothing(case: Case, tmp_path, plain, nodes) -> None:
    named = nodes if nodes.startswith("auto") else str(case.folder / nodes)
    counts, rows = [], []
    for name, how in (("a", PLAIN), ("b", {"read_ahead": 2, "cache_mb": 64})):
        plan = embed.plan(case.config(str(tmp_path / name), nodes=named, **how))
        counts.append(run(plan))
        assert embed.finish(plan).failed_boxes == 0
        rows.append(rows_by_node(plan.work.generation.store))
    assert rows[0] == rows[1]
    assert counts[1]["cache_hits"] > counts[0].get("cache_hits", 0)
    assert counts[1]["bytes_read_file"] < 0.7 * counts[0]["bytes_read_file"]
    assert counts[0]["bytes_read"] == counts[1]["bytes_read"]
    if nodes == "nodes.csv":
        assert rows[0] == plain[0]


def test_how_it_is_read_is_no_part_of_the_run(case: Case, tmp_path) -> None:
    first = embed.plan(case.config(str(tmp_path / "store"), **PLAIN))
    run(first)
    again = embed.plan(case.config(str(tmp_path / "store"), read_ahead=1, cache_mb=5))
    assert again.identity == first.identity
    assert again.complete is not None


def over_http(case: Case, url: str, store: pathlib.Path, **how) -> embed.EmbedConfig:
    volumes = {"image": f"{url}/image", "segmentation": f"{url}/labels"}
    return case.config(str(store), **volumes, **how)


def test_copies_serve_the_next_run_without_a_byte(case: Case, tmp_path, plain) -> None:
    copies = tmp_path / "copies"
    with remote(case.folder) as place:
        counts = []
        for name in ("cold", "warm"):
            how = {"disk_cache": str(copies), "disk_cache_gb": 0.1}
            plan = embed.plan(over_http(case, place.url, tmp_path / name, **how))
            counts.append(run(plan))
            assert rows_by_node(str(tmp_path / name)) == plain[0]
        cold, warm = counts
        # Every stored object once, whatever the overlap of boxes, also of those read at once.
        assert 0 < cold["bytes_read_http"]
        fetched = stored_bytes(case.folder / "image") + stored_bytes(case.folder / "labels")
        assert cold["bytes_read_http"] <= fetched
        assert warm.get("bytes_read_http", 0) == 0
        assert warm.get("disk_misses", 0) == 0
        assert warm["disk_hits"] == cold.get("disk_hits", 0) + cold["disk_misses"]
        lines = plan.lines()
    (line,) = [line for line in lines if line.startswith("copies: ")]
    assert line.endswith("; image: yes; segmentation: yes")
    assert f"at most 100 MB in {copies}" in line


def test_the_plan_says_what_has_no_copy(case: Case, tmp_path) -> None:
    with remote(case.folder, etags=False) as place:
        config = over_http(case, place.url, tmp_path / "s", disk_cache=str(tmp_path / "c"))
        plan = embed.plan(config)
        assert plan.to_json()["guards"] == {"image": "none", "segmentation": "none"}
        (line,) = [line for line in plan.lines() if line.startswith("copies: ")]
        assert "image: none, since its storage gives no generations (ETags)" in line
    local = embed.plan(case.config(str(tmp_path / "s"), disk_cache=str(tmp_path / "c")))
    (line,) = [line for line in local.lines() if line.startswith("copies: ")]
    assert "image: none, since it is not read over a network" in line
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_that_changes_between_two_boxes_is_in_the_second(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first box was read a shard is replaced; a reprocess then does what differs."""
    moving = embed_case.make_case(tmp_path)
    other = embed_case.make_case(_made(tmp_path / "other"), seed=3)
    shard = pathlib.Path("image", "c", "0", "0", "0")
    real, read = boxes.read_input, []

    def replacing(work, inputs, box):
        found = real(work, inputs, box)
        read.append(box.index)
        if len(read) == 1:
            (tmp_path / "new").write_bytes((other.folder / shard).read_bytes())
            (tmp_path / "new").replace(moving.folder / shard)
        return found

    monkeypatch.setattr(boxes, "read_input", replacing)
    plan = embed.plan(moving.config("store", read_ahead=0, cache_mb=64))
    run(plan)
    assert embed.finish(plan).failed_boxes == 0
    found = rows_by_node(plan.work.generation.store)
    monkeypatch.undo()
    plan = embed.plan(moving.config("after", **PLAIN))
    run(plan)
    after = rows_by_node(plan.work.generation.store)
    differ = {key for key in after if after[key] != found[key]}
    # Only nodes of the one box that was read before.
    grid = plan.work.grid
    first = grid.index(coordinate_of(plan.work.key(read[0])))
    owners = {
        grid.index_at(tuple(round(v / s) for v, s in zip(xyz, embed_case.SIZE_NM, strict=True)))
        for segment, node, *xyz in moving.nodes
        if (segment, node) in differ
    }
    assert owners == {first}


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    return folder


def test_reads_overlap_with_encoding(case: Case, tmp_path, monkeypatch) -> None:
    """Storage that is slow to answer is waited for once, not once a box."""
    real_read, real_embed = boxes.read_input, boxes.embed_box

    def slow_read(*args):
        time.sleep(0.05)
        return real_read(*args)

    def slow_embed(*args):
        time.sleep(0.05)
        return real_embed(*args)

    monkeypatch.setattr(boxes, "read_input", slow_read)
    monkeypatch.setattr(boxes, "embed_box", slow_embed)
    waits = {}
    for ahead in (0, 2):
        plan = embed.plan(case.config(str(tmp_path / f"{ahead}"), read_ahead=ahead))
        assert plan.work.read_ahead == ahead
        counts = run(plan)
        waits[ahead] = counts["wait_ms_sum"]
        assert counts["boxes"] == plan.estimate.boxes
        assert counts["read_ms_sum"] >= 50 * counts["boxes"]
    assert waits[0] >= 50 * plan.estimate.boxes
    assert waits[2] < 0.5 * waits[0]


def test_what_was_asked_of_storage_is_summed_up(plain) -> None:
    counts = plain[1]
    io = io_summary(counts)
    assert io["bytes_read"].keys() == {"file"}
    assert io["bytes_read"]["file"] == counts["bytes_read_file"] > 0
    assert io["bytes_written"]["file"] > 0
    assert io["requests"] > 0
    assert io["retries"] == 0
    assert io["disk_cache"] == dict.fromkeys(io["disk_cache"], 0)
    assert io["wait_seconds"] >= io["read_seconds"] > 0
    assert io_line(counts).startswith("read ")
    found = {"bytes_read_http": 2_500_000, "bytes_read_disk": 10, "requests": 1234, "retries": 2}
    found |= {"cache_hits": 3, "cache_misses": 1, "disk_hits": 1, "disk_misses": 1}
    assert io_line(found | {"wait_ms_sum": 1500, "read_ms_sum": 20_000}) == (
        "read 2.5 MB from http, 10 B from disk in 1,234 requests; 2 tried again; 75% of chunks "
        "from the cache; 50% of copies from the cache; waited 1.5 s for reads of 20.0 s"
    )
    assert io_line({}).startswith("read nothing in 0 requests; waited 0.0 s")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"read_ahead": -1}, "--read-ahead -1 is less than nothing; give 0 for none"),
        ({"cache_mb": -5}, "--cache-mb -5 is less than nothing"),
        ({"disk_cache": "gs://b/c"}, "--disk-cache gs://b/c is not on this machine"),
        ({"disk_cache_gb": 0}, "--disk-cache-gb 0 leaves no room"),
        ({"disk_cache_gb": float("nan")}, "--disk-cache-gb nan leaves no room"),
    ],
)
def test_what_cannot_be_is_refused(case: Case, changes, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        case.config("s", **changes)
    assert message in str(caught.value)


def test_a_file_in_the_way_of_copies_is_refused_by_the_plan(case: Case, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"--disk-cache .*file/x: .* is no directory"):
        embed.plan(case.config(str(tmp_path / "s"), disk_cache=str(tmp_path / "file" / "x")))


def test_memory_has_the_pool_and_what_is_ahead(case: Case, tmp_path) -> None:
    def peak(**how) -> int:
        return embed.plan(case.config(str(tmp_path / "s"), **how)).estimate.peak_bytes

    base = peak(read_ahead=0, cache_mb=0)
    assert peak(read_ahead=1, cache_mb=0) > base
    assert peak(read_ahead=2, cache_mb=0) > peak(read_ahead=1, cache_mb=0)
    # With a pool no transaction holds chunks; what is in flight is bounded.
    assert base < peak(read_ahead=0, cache_mb=100) <= base + 100 * 10**6
    assert current(str(tmp_path / "s"))[1] is None
