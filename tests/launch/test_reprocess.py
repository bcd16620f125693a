"""The job reprocess as its user sees it: statuses, messages and summaries."""

import csv
import pathlib
import shutil

import numpy as np
import pytest

from launch.cli import main
from tests.launch import place
from tests.launch.place import EMBED, NODES, ingest, last_json, snapshot, tables
from volumes import store

STORE = "--store=store"


@pytest.fixture
def work(
    embedded: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """A place with volumes of its own and a store that was made from them."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    place.furnish(folder)
    assert main([*EMBED, "--output=store", "--quiet"]) == 0
    return folder


def ran(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict:
    capsys.readouterr()
    assert main([*words, "--json", "--quiet"]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return last_json(out)


def test_a_summary_has_the_keys_of_embed_and_counts_of_this_invocation(
    work: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = ran(capsys, *EMBED, "--output=other")
    nothing = ran(capsys, "reprocess", STORE)
    assert nothing.keys() == done.keys()
    assert (nothing["job"], nothing["embeddings"], nothing["boxes"]) == ("reprocess", 0, 0)
    assert (nothing["boxes_skipped"], nothing["version"], nothing["bytes_read"]) == (4, 1, 0)
    place.write_nodes(work / "nodes.csv", [NODES[0], (7, 9, 130.0, 80.0, 120.0), *NODES[2:]])
    changed = ran(capsys, "reprocess", STORE)
    assert (changed["embeddings"], changed["boxes"], changed["boxes_skipped"]) == (1, 1, 3)
    assert (changed["embeddings_total"], changed["version"]) == (4, 2)
    diff = ran(capsys, "diff", STORE)
    assert (diff["added"], diff["removed"], diff["changed"]) == (1, 1, 0)


def test_the_result_is_that_of_a_new_store(
    work: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, labels = place.voxels()
    image[70:, 20:, 20:] = 200
    np.save("em.npy", image)
    np.save("seg.npy", np.where(labels == 7, np.uint64(9), labels))
    for name, kind in (("em", "image"), ("seg", "segmentation")):
        shutil.rmtree(f"{name}.zarr")
        ran(capsys, *ingest(f"{name}.npy", kind, f"{name}.zarr"))
    summary = ran(capsys, "reprocess", STORE)
    assert summary["rejected"] == {"empty_mask": 2, "outside": 1}
    ran(capsys, *EMBED, "--output=anew")
    for name in ("store", "anew"):
        ran(capsys, "export", f"--store={name}", f"--output=of-{name}")
    assert tables(work / "of-store") == tables(work / "of-anew")
    assert ran(capsys, "verify", STORE)["faults"] == {}


def test_a_dry_run_says_what_it_would_compare_and_writes_nothing(
    work: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(work)
    capsys.readouterr()
    assert main(["reprocess", STORE, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "generation 1: what is committed is compared with the inputs as they are now" in out
    model = "--model=untrained:width=3,input=17,embedding=6"
    assert main(["reprocess", STORE, model, "--dry-run"]) == 0
    assert "as its new generation 2; older versions stay" in capsys.readouterr().out
    assert snapshot(work) == before


def test_supervoxels_are_embedded_by_body(
    work: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (work / "bodies.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("supervoxel", "body"), (9, 7), (place.HUGE, 7)])
    nodes = [(7, *n[1:]) if n[0] != 5 else n for n in NODES]
    place.write_nodes(work / "nodes.csv", nodes)
    summary = ran(capsys, "reprocess", STORE, "--agglomeration=bodies.csv")
    assert summary["embeddings_total"] == 5
    ran(capsys, *EMBED, "--agglomeration=bodies.csv", "--output=anew")
    for name in ("store", "anew"):
        ran(capsys, "export", f"--store={name}", f"--output=of-{name}")
    assert tables(work / "of-store") == tables(work / "of-anew")
    assert list((work / "store" / "agglomerations").glob("*.parquet"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--store=nowhere"], "nowhere is not an embedding store: it has no store.json"),
        (["--store=em.zarr"], "em.zarr is not an embedding store"),
        ([STORE, "--nodes=nowhere.csv"], "nowhere.csv"),
        ([STORE, "--image=nowhere.zarr"], "nowhere.zarr"),
        ([STORE, "--image=seg.zarr"], "an image is uint8"),
        ([STORE, "--model=nowhere"], "--model nowhere"),
        ([STORE, "--agglomeration=nodes.csv"], "supervoxel"),
        ([STORE, "--halo=2"], "--halo 2,2,2 is smaller than 8"),
        ([STORE, "--commit-seconds=-1"], "--commit-seconds -1 is none to work with"),
        ([STORE, "--batch=1"], "batch"),
        ([STORE, "--nodes="], "--nodes was empty"),
        ([], "reprocess needs --store"),
        ([STORE, "--output=x"], "unknown flag --output"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests_have_one_message_and_change_nothing(
    embedded: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    home = tmp_path / "home"
    shutil.copytree(embedded, home)
    monkeypatch.chdir(home)
    before = snapshot(home)
    capsys.readouterr()
    assert main(["reprocess", *words, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("segclr-beam: ")
    assert "Traceback" not in err + out
    assert snapshot(home) == before


def test_a_store_whose_first_run_did_not_begin_is_refused(
    embedded: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(embedded / "store", tmp_path / "store")
    (tmp_path / "store" / "generations" / "1" / "manifest.json").unlink()
    assert store.current(str(tmp_path / "store")) == ("1", None)
    said = ran(capsys, "reprocess", f"--store={tmp_path}/store", status=2)
    assert "has no manifest, so there is nothing to bring up to date" in str(said["error"])
