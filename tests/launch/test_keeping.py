"""The jobs versions, diff and compact through the command line, on a store that was reprocessed."""

import json
import pathlib
import shutil

import pytest

from launch.cli import main
from tests.launch import place
from tests.launch.place import EMBED, HUGE, NODES, last_json
from volumes import runs, store
from volumes.embeddings import EmbeddingStore

# Version 2: node (9, 4) is gone, and (7, 2) lies elsewhere. Version 3: there is a node (HUGE, 8).
SECOND = [n for n in NODES if n[:2] not in ((9, 4), (7, 2))] + [(7, 2, 100.0, 80.0, 120.0)]
THIRD = [*SECOND, (HUGE, 8, 300.0, 180.0, 80.0)]

TABLE = "segment_id,added,removed,changed\n7,0,0,1\n9,0,1,0\n"


@pytest.fixture(scope="module")
def reprocessed(furnished: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A place with a store of three versions; its store is copied, never written to."""
    folder = tmp_path_factory.mktemp("reprocessed") / "place"
    shutil.copytree(furnished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*EMBED, "--output=kept", "--quiet"]) == 0
        for nodes in (SECOND, THIRD):
            place.write_nodes(folder / "nodes.csv", nodes)
            assert main(["reprocess", "--store=kept", "--quiet"]) == 0
    assert store.version_numbers(str(folder / "kept")) == [1, 2, 3]
    return folder


@pytest.fixture
def url(reprocessed: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> str:
    """A copy of the store; the working directory is where its inputs are."""
    monkeypatch.chdir(reprocessed)
    shutil.copytree(reprocessed / "kept", tmp_path / "store")
    return str(tmp_path / "store")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command; gives its status, what it said, and its last line."""

    def runs(*words: str) -> tuple[int, str, dict]:
        capsys.readouterr()
        status = main([*words, "--json"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, last_json(out)

    return runs


def test_versions_are_listed_with_their_counts(run, url: str) -> None:
    before = place.snapshot(pathlib.Path(url))
    status, out, summary = run("versions", f"--store={url}")
    assert status == 0
    found = summary["versions"]
    assert [v["version"] for v in found] == [1, 2, 3]
    assert [v["job"] for v in found] == ["embed", "reprocess", "reprocess"]
    assert [v["rows"] for v in found] == [4, 3, 4]
    assert [v["nodes"] for v in found] == [5, 4, 5]
    assert {(v["generation"], v["failed_boxes"], v["undone_boxes"]) for v in found} == {("1", 0, 0)}
    assert all(v["model"].startswith("untrained network") for v in found)
    assert all(v["published"].endswith("+00:00") for v in found)
    head, *lines = out.splitlines()[:4]
    assert head.split()[:3] == ["version", "published", "job"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert found[2]["run"] in lines[2]
    assert place.snapshot(pathlib.Path(url)) == before


def test_a_diff_is_a_table_and_a_summary(run, url: str, tmp_path: pathlib.Path) -> None:
    before = place.snapshot(pathlib.Path(url))
    words = ("diff", f"--store={url}", "--from=1", "--to=2")
    status, out, summary = run(*words, f"--output={tmp_path / 'changes.csv'}")
    assert status == 0
    wanted = {"from": 1, "to": 2, "added": 0, "removed": 1, "changed": 1, "segments": 2}
    assert {k: summary[k] for k in wanted} == wanted
    assert summary["files"] == [str(tmp_path / "changes.csv")]
    assert (tmp_path / "changes.csv").read_text() == TABLE
    assert "from version 1 to version 2 0 nodes added, 1 removed, 1 changed, of 2 segments" in out
    assert "      7      0        0        1" in out.splitlines()
    status, out, again = run(*words, f"--output={tmp_path / 'changes.csv'}")
    assert (status, again["segments"]) == (0, 2)
    assert "nothing to do" in out
    assert place.snapshot(pathlib.Path(url)) == before


def test_a_diff_without_output_is_of_the_last_two_versions(run, url: str) -> None:
    status, out, summary = run("diff", f"--store={url}")
    assert status == 0
    wanted = {"from": 2, "to": 3, "added": 1, "removed": 0, "changed": 0, "segments": 1}
    assert {k: summary[k] for k in wanted} == wanted
    assert summary["largest"] == [{"segment_id": str(HUGE), "added": 1, "removed": 0, "changed": 0}]
    assert summary["files"] == []
    assert (summary["boxes_compared"], summary["rows_read"]) == (1, 3)
    assert str(HUGE) in out


def test_compact_keeps_the_last_versions_and_all_goes_on(
    run, url: str, tmp_path: pathlib.Path
) -> None:
    before = {n: digests(url, n) for n in (2, 3)}
    export = ("export", f"--store={url}", "--version=2")
    run(*export, f"--output={tmp_path / 'before'}")
    status, out, summary = run("compact", f"--store={url}")
    assert status == 0
    assert (summary["versions_kept"], summary["versions_removed"]) == ([2, 3], [1])
    assert summary["partitions"] == 1
    assert summary["files_removed"] >= 0
    assert summary["bytes_before"] > 0
    assert summary["bytes_after"] > 0
    assert "versions kept: 2, 3; removed: 1" in out
    assert "1 partitions compacted" in out
    assert {n: digests(url, n) for n in (2, 3)} == before
    run(*export, f"--output={tmp_path / 'after'}")
    assert place.tables(tmp_path / "after") == place.tables(tmp_path / "before")
    status, _, ended = run("export", f"--store={url}", "--version=1", "--output=gone")
    assert status == 2
    assert "has no version 1; give one that it has: 2, 3" in ended["error"]
    status, out, _ = run(*EMBED, f"--output={url}")
    assert status == 0
    assert f"nothing to do: {url} has all of this run as version 3" in out


def digests(url: str, number: int) -> list[str]:
    return [rows.digest() for rows in EmbeddingStore.open(url, number).all()]


def test_a_reprocess_after_compact_takes_the_next_number(
    run, url: str, tmp_path: pathlib.Path
) -> None:
    assert run("compact", f"--store={url}", "--keep=1")[2]["versions_removed"] == [1, 2]
    place.write_nodes(tmp_path / "nodes.csv", SECOND)
    status, _, summary = run("reprocess", f"--store={url}", f"--nodes={tmp_path / 'nodes.csv'}")
    assert (status, summary["version"], summary["boxes"]) == (0, 4, 1)
    status, _, summary = run("diff", f"--store={url}")
    assert (status, summary["from"], summary["to"], summary["removed"]) == (0, 3, 4, 1)
    assert run("verify", f"--store={url}")[0] == 0


def test_compact_gives_way_to_a_living_writer(run, url: str) -> None:
    name = store.new_run()
    with runs.registered(url, name, job="embed", exclusive=False, command="", identity=""):
        before = {k: v for k, v in place.snapshot(pathlib.Path(url)).items() if "runs" not in k}
        status, _, ended = run("compact", f"--store={url}")
        assert status == 1
        assert f"is in use by the embed run {name}, pid " in ended["error"]
        assert "A store is compact's alone while compact works" in ended["error"]
        status, out, summary = run("compact", f"--store={url}", "--scheduled")
        assert (status, summary["gave_way"]) == (0, True)
        assert f"nothing done: {url} is being worked on by embed run {name}" in out
        after = {k: v for k, v in place.snapshot(pathlib.Path(url)).items() if "runs" not in k}
        assert after == before
    assert run("compact", f"--store={url}", "--scheduled")[2]["versions_removed"] == [1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["versions"], "its documents are read and nothing is written"),
        (["diff", "--output=new.csv"], "to compare: 1 partitions with 7 rows; 0 partitions are"),
        (["compact", "--keep=1"], "versions to remove: 1, 2"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    run, url: str, reprocessed: pathlib.Path, words: list[str], line: str
) -> None:
    before = place.snapshot(pathlib.Path(url)), place.snapshot(reprocessed)
    status, out, summary = run(*words, f"--store={url}", "--dry-run")
    assert (status, summary["dry_run"]) == (0, True)
    assert summary["plan"]["job"] == words[0]
    assert line in out
    assert "dry run: nothing was written" in out
    assert (place.snapshot(pathlib.Path(url)), place.snapshot(reprocessed)) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["diff", "--to=0"], "has no version 0; give one that it has: 1, 2, 3"),
        (["diff", "--from=99"], "has no version 99; give one that it has: 1, 2, 3"),
        (["diff", "--to=1"], "has no version before 1 (it has 1, 2, 3), and a diff is of two"),
        (["diff", "--from=x"], "an integer is needed, got 'x'"),
        (
            ["diff", "--output=nodes.csv"],
            "nodes.csv is there and is not of the diff from version 2",
        ),
        (["compact", "--keep=0"], "--keep 0: at least 1 version stays"),
        (["compact", "--store=em.zarr"], "em.zarr is not an embedding store"),
        (["versions", "--store=nowhere"], "--store nowhere is not an embedding store"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_wrong_request_is_one_message(
    run, url: str, reprocessed: pathlib.Path, words: list[str], said: str
) -> None:
    before = place.snapshot(pathlib.Path(url)), place.snapshot(reprocessed)
    given = words if any("--store" in w for w in words) else [*words, f"--store={url}"]
    status, _, ended = run(*given)
    assert status == 2
    assert said in ended["error"]
    assert (place.snapshot(pathlib.Path(url)), place.snapshot(reprocessed)) == before


def test_workers_elsewhere_need_a_place_for_the_table(
    run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.runner.ready", lambda *args: None)
    status, _, ended = run("diff", f"--store={url}", "--runner=DataflowRunner")
    assert status == 2
    assert "--runner DataflowRunner needs --output here" in ended["error"]
    assert json.dumps(ended["status"]) == "2"
