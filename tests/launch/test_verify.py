"""The command line of ``verify``: statuses, messages, summaries, and the way back to clean."""

import json
import pathlib
import shutil

import pytest

from launch.cli import main
from tests.launch import place
from tests.launch.place import EMBED, last_json
from tests.transforms.test_verify import forget, put, set_value
from volumes import runs, store
from volumes.embeddings import EmbeddingStore
from volumes.generation import Generation

CLEAN = "4 boxes, 4 rows: every row is what its receipt says"


@pytest.fixture
def url(
    embedded: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """A complete store of four boxes, in a copy of the place that made it."""
    shutil.copytree(embedded, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place" / "store"


@pytest.fixture
def verify(url: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    """Runs ``verify`` with a status to expect; gives stdout, stderr and the summary."""

    def runs_it(status: int, *words: str) -> tuple[str, str, dict]:
        capsys.readouterr()
        assert main(["verify", "--store=store", "--json", "--quiet", *words]) == status
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert err.count("\n") == (status != 0)
        return out, err, last_json(out)

    return runs_it


def generation_of(url: pathlib.Path) -> Generation:
    return EmbeddingStore.open(str(url), "live").generation


def contents(url: pathlib.Path) -> dict[str, str]:
    """All but who ran."""
    return {p: d for p, d in place.snapshot(url).items() if not p.startswith(("runs", "epochs"))}


def test_a_clean_store_is_told_in_a_line(verify, url: pathlib.Path) -> None:
    before = contents(url)
    out, _, summary = verify(0)
    assert out.splitlines()[:-1] == [f"{url}: {CLEAN}"]
    assert summary.pop("seconds") > 0
    assert summary == {
        "job": "verify",
        "store": str(url),
        "version": None,
        "boxes": 4,
        "nodes": 5,
        "embeddings_total": 4,
        "failed": 0,
        "undone": 0,
        "faults": {},
        "faulty": [],
        "repaired": 0,
        "published": None,
    }
    _, _, summary = verify(0, "--version=1")
    assert (summary["version"], summary["boxes"]) == (1, 4)
    _, _, summary = verify(0, "--repair")
    assert (summary["repaired"], summary["published"]) == (0, None)
    assert contents(url) == before


def test_damage_is_listed_repaired_and_computed_again(
    verify, url: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(url)
    assert main([*EMBED, "--output=store", "--quiet"]) == 0
    rows = {box: EmbeddingStore.open(str(url)).by_box(box).digest() for box in ("0_0_0", "4_1_1")}
    generation = generation_of(url)
    set_value(generation, "0_0_0", "embedding", 1, 7.5)
    put(generation, "4_1_1", "node_id/c/L/0", None)
    out, err, summary = verify(1)
    lines = out.splitlines()
    assert lines[0] == f"{url}: 4 boxes, 4 rows; found:"
    assert lines[1].startswith("  0_0_0 (rows): its 2 rows have digest ")
    assert lines[2].startswith("  4_1_1 (lost): 1 of 7 chunks are not there: node_id/c/")
    assert err == (
        f"segclr-beam: {url}: 1 lost, 1 rows (0_0_0, 4_1_1). To go on: verify --repair puts the "
        "damaged boxes back in the queue; the same embed command computes the boxes that are "
        "undone\n"
    )
    assert (summary["status"], summary["faults"]) == (1, {"lost": 1, "rows": 1})
    assert [f["where"] for f in summary["faulty"]] == ["0_0_0", "4_1_1"]
    assert summary["error"] == err.removeprefix("segclr-beam: ").rstrip("\n")
    # What is published is another matter: its databases' versions are as they were.
    verify(0, "--version=1")

    out, err, summary = verify(1, "--repair")
    assert f"{url}: 2 boxes repaired; version 2 records what is undone" in out.splitlines()
    assert f"{url}: 2 boxes undone (0_0_0, 4_1_1). To go on: the same embed command" in err
    assert (summary["repaired"], summary["undone"], summary["published"]) == (2, 2, 2)
    assert (summary["boxes"], summary["embeddings_total"], summary["nodes"]) == (2, 1, 5)

    assert main([*EMBED, "--output=store", "--quiet", "--json"]) == 0
    embedded = last_json(capsys.readouterr().out)
    assert (embedded["boxes"], embedded["boxes_skipped"], embedded["version"]) == (2, 2, 3)
    out, _, _ = verify(0)
    assert out.splitlines()[0] == f"{url}: {CLEAN}"
    again = EmbeddingStore.open(str(url))
    assert {box: again.by_box(box).digest() for box in rows} == rows


def test_a_box_that_is_set_aside_is_shown_with_the_remedy(
    verify, url: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(url)
    whole = place.LAST_SHARD.read_bytes()
    place.LAST_SHARD.write_bytes(whole[:100])
    assert main([*EMBED, "--output=store", "--quiet"]) == 1
    out, err, summary = verify(1)
    assert "  4_1_1 (failed): it is set aside: box 4_1_1 [64:80, 16:32, 16:32)" in out
    assert f"{url}: 1 failed (4_1_1). To go on: boxes that are set aside are done again" in err
    assert "--retry-failed" in err
    assert (summary["failed"], summary["undone"], summary["boxes"]) == (1, 0, 3)
    place.LAST_SHARD.write_bytes(whole)
    assert main([*EMBED, "--output=store", "--quiet", "--retry-failed"]) == 0
    capsys.readouterr()
    verify(0)


def test_a_run_that_did_not_end_has_its_undone_boxes_named(verify, url: pathlib.Path) -> None:
    (url / "versions" / "1.json").unlink()
    forget(generation_of(url), "1_1_0")
    out, err, summary = verify(1)
    assert "  1_1_0 (undone): it owes 1 nodes, and is neither committed nor set aside" in out
    assert "  store (unfinished): nothing is published yet: the run did not come to its end" in out
    assert "the same embed command computes the boxes that are undone" in err
    assert "--repair" not in err
    assert (summary["undone"], summary["boxes"]) == (1, 3)


def test_nodes_that_stand_twice_are_reported_with_the_remedy(
    verify, url: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(url)
    # The identity of a node in 0_0_0 once more, in 1_1_0 where its segment is not far.
    place.write_nodes(pathlib.Path("nodes.csv"), [*place.NODES, (7, 1, 230.0, 150.0, 80.0)])
    assert main([*EMBED, "--output=store", "--quiet"]) == 0
    before = contents(url)
    for words in ((), ("--repair",)):
        out, err, summary = verify(1, *words)
        assert summary["faults"] == {"duplicate": 1}
        assert "  0_0_0 (duplicate): node 1 of segment 7 has a row in it, and in 1_0_0" in out
        assert "correct it and run reprocess" in err
    assert contents(url) == before


def test_a_repair_waits_for_nobody(verify, url: pathlib.Path) -> None:
    set_value(generation_of(url), "0_0_0", "embedding", 1, 7.5)
    before = contents(url)
    with runs.registered(
        str(url), store.new_run(), job="embed", exclusive=False, command="", identity=""
    ):
        _, err, _ = verify(1, "--repair")
        assert f"{url} is in use by the embed run" in err
        assert "verify's alone while verify works" in err
        assert contents(url) == before
        # To look is allowed.
        verify(1)
    verify(1, "--repair")
    assert contents(url) != before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--store=nothing"], "nothing is not an embedding store: it has no store.json"),
        (["--store=tables"], "tables is not an embedding store: it has no store.json"),
        (["--store="], "--store was empty"),
        (["--store=store", "--version=7"], "has no version 7; give one that it has: 1"),
        (["--store=store", "--version=one"], "an integer is needed, got 'one'"),
        (["--store=store", "--version=1", "--repair"], "--repair was given with --version 1"),
        (["--stoer=store"], "did you mean --store?"),
        ([], "give --store URL for an embedding store, or --volume URL"),
    ],
)
def test_wrong_requests_have_one_message_and_change_nothing(
    url: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    before = place.snapshot(url.parent)
    assert main(["verify", *words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert says in last_json(out)["error"]
    assert says in err
    assert "Traceback" not in err
    assert place.snapshot(url.parent) == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    url: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.snapshot(url)
    assert main(["verify", "--store=store", "--repair", "--dry-run", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:5] == [
        "plan:",
        f"  store: {url}, generation 1, what is committed now",
        "  to check: 1 partitions, every row of them",
        "  repair: damaged boxes are put back in the queue",
        "dry run: nothing was written",
    ]
    assert json.loads(out.splitlines()[-1])["plan"]["repair"] is True
    assert place.snapshot(url) == before
