"""The summary and the plan of a small case, counted by hand."""

import json
import pathlib

import pytest

from launch.cli import main
from tests.launch import place
from tests.launch.place import EMBED, last_json

AGREED = {
    *("embeddings", "boxes_skipped", "embeddings_total", "boxes", "nodes", "rejected", "failed"),
    *("bytes_read", "seconds", "store", "version"),
}

# What an ingest says of a volume, whoever wrote it.
DONE = ("voxels", "bytes_raw", "bytes_stored", "voxels_missing", "digest")

# Read boxes are a core of 16 and a halo of 8, in chunks of 16 on each axis: 0_0_0 and 0_0_1 read
# 2 x 2 x 2 of them, 1_1_0 reads 3 x 2 x 2, 4_1_1 at the far end 2 x 2 x 2; a voxel has 1 + 8 bytes.
CHUNKS = 8 + 8 + 12 + 8
BYTES_READ = CHUNKS * 16**3 * (1 + 8)


@pytest.fixture
def run(home: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command that succeeds; gives what it said, and the summary."""

    def runs(*words: str) -> tuple[str, dict]:
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        out = capsys.readouterr().out
        return out, last_json(out)

    return runs


def test_the_counts_of_a_run_of_its_repeat_and_of_its_export(run, home: pathlib.Path) -> None:
    out, first = run(*EMBED, "--output=store")
    assert first.keys() >= AGREED
    assert first["seconds"] > 0
    wanted = {
        "job": "embed",
        "store": str(home / "store"),
        "version": 1,
        "boxes": 4,
        "boxes_skipped": 0,
        "nodes": 6,
        "embeddings": 4,
        "embeddings_total": 4,
        "rejected": {"empty_mask": 1, "outside": 1},
        "failed": 0,
        "bytes_read": BYTES_READ,
    }
    assert {k: first[k] for k in wanted} == wanted
    assert "rejected now: 1 empty_mask, 1 outside" in out
    assert "untrained network" in first["model"]

    before = place.snapshot(home)
    out, second = run(*EMBED, "--output=store")
    nothing = {"boxes": 0, "boxes_skipped": 4, "embeddings": 0, "rejected": {}, "bytes_read": 0}
    assert {k: second[k] for k in wanted} == wanted | nothing
    assert f"nothing to do: {home / 'store'} has all of this run as version 1" in out
    assert "reprocess" in out
    assert place.snapshot(home) == before

    _, exported = run("export", "--store=store", "--output=tables")
    assert exported.keys() >= AGREED
    # Two ids, a position, four floats, the mask's size and a crop digest.
    row = 2 * 8 + 3 * 8 + 4 * 4 + 4 + 16
    assert {k: exported[k] for k in ("embeddings", "embeddings_total", "boxes", "bytes_read")} == {
        "embeddings": 0,
        "embeddings_total": 4,
        "boxes": 4,
        "bytes_read": 4 * row,
    }
    before = place.snapshot(home)
    out, again = run("export", "--store=store", "--output=tables")
    assert (again["boxes"], again["boxes_skipped"], again["bytes_read"]) == (0, 4, 0)
    assert "nothing to do" in out
    assert place.snapshot(home) == before


@pytest.mark.parametrize("lost", ["*.parquet", "_manifest.json"])
def test_an_export_that_lost_a_file_is_completed(
    run, embedded, home: pathlib.Path, lost: str
) -> None:
    words = ("export", f"--store={embedded / 'store'}", "--output=tables")
    run(*words)
    before = place.snapshot(home)
    (parquet,) = pathlib.Path("tables").glob("*.parquet")
    next(pathlib.Path("tables").glob(lost)).unlink()
    # What a killed writer leaves beside the files is in nobody's way.
    left = [f"tables/._manifest.json.{'a' * 8}.tmp", f"tables/.{parquet.name}.1234.tmp"]
    for name in left:
        pathlib.Path(name).write_bytes(b"half")
    out, _ = run(*words)
    assert "nothing to do" not in out
    for name in left:
        pathlib.Path(name).unlink()
    assert place.snapshot(home) == before


def test_an_ingest_counts_what_it_writes_and_its_repeat_nothing(run, home: pathlib.Path) -> None:
    words = place.ingest("em.npy", "image", "new.zarr")
    _, first = run(*words)
    assert (first["units"], first["units_written"], first["units_skipped"]) == (1, 1, 0)
    assert first["voxels"] == first["bytes_read"] == first["bytes_raw"] == 80 * 32 * 32
    assert first["voxels_missing"] == 0
    stored = (p.stat().st_size for p in (home / "new.zarr/c").rglob("*") if p.is_file())
    assert first["bytes_stored"] == sum(stored) > 0
    before = place.snapshot(home)
    out, second = run(*words)
    keys = ("units", "units_written", "units_skipped", "bytes_read")
    assert [second[key] for key in keys] == [1, 0, 1, 0]
    assert {k: second[k] for k in DONE} == {k: first[k] for k in DONE}
    assert "nothing to do: all 1 units are written" in out
    assert place.snapshot(home) == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, home: pathlib.Path) -> None:
    before = place.snapshot(home)
    out, summary = run(*EMBED, "--output=store", "--dry-run")
    assert place.snapshot(home) == before
    assert summary["dry_run"] is True
    plan = summary["plan"]["estimate"]
    assert (plan["boxes"], plan["nodes"], plan["bytes_to_read"]) == (4, 5, BYTES_READ)
    # Image and segmentation share their chunks: 36 reads of each, of 5 x 2 x 2.
    assert plan["chunk_reads"] == pytest.approx(CHUNKS / 20)
    for line in (
        "plan:",
        "  nodes: 6 from 1 csv file(s), 5 inside, 1 outside, 0 nan",
        "  boxes: 4 of 20, each 16 x 16 x 16 voxels and a halo of 8 x 8 x 8",
        "  to read: 1.33 MB decoded, each chunk about 1.8 times",
        "dry run: nothing was written",
    ):
        assert line in out.splitlines()
    assert any(line.startswith("  time: about 1 min (") for line in out.splitlines())
    assert any(line.startswith("  memory: at most about ") for line in out.splitlines())


@pytest.mark.parametrize(
    "words",
    [
        place.ingest("em.npy", "image", "new"),
        ["export", "--store=store", "--output=new"],
        ["demo", "--output=new"],
    ],
    ids=lambda words: words[0],
)
def test_every_job_has_a_dry_run(
    embedded: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(embedded)
    before = place.snapshot(embedded)
    assert main([*words, "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert last_json(out)["dry_run"] is True
    assert json.dumps(last_json(out)["plan"]) != "{}"
    assert out.startswith("plan:\n  ")
    assert err == ""
    assert place.snapshot(embedded) == before


def test_a_dry_run_tells_that_a_store_is_complete(
    embedded: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(embedded)
    assert main([*EMBED, "--output=store", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"store: {embedded / 'store'}, which has all of this run as version 1: nothing" in out
