"""The job info through the command line."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from launch.cli import main
from tests.launch import place
from tests.launch.place import last_json


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command; gives its status, stdout and stderr."""

    def runs(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(words))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return runs


def test_a_volume_that_ingest_made_is_told(run, home: pathlib.Path) -> None:
    before = place.snapshot(home)
    status, out, err = run("info", "em.zarr")
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head == "em.zarr: an image, zarr3"
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.strip()}
    assert said["codec"] == "sharding 16x32x32 of 16x16x16: bytes, zstd 1, crc32c"
    assert said["missing"] == "nothing"
    assert said["source"].endswith("em.npy")
    assert "5 of 5 shards, 20 of 20 chunks" in out
    assert place.snapshot(home) == before


def test_the_summary_is_one_object_on_the_last_line(run, home: pathlib.Path) -> None:
    status, out, _ = run("info", "--json", "seg.zarr")
    assert status == 0
    summary = last_json(out)
    assert (summary["job"], summary["is"], summary["kind"]) == ("info", "volume", "segmentation")
    assert summary["path"] == "seg.zarr"
    jobs = summary["provenance"]["jobs"]
    assert [(j["job"], j["complete"]) for j in jobs] == [("ingest", True)]
    assert jobs[0]["command"].startswith("segclr-beam ingest --source=seg.npy --axes=xyz")
    assert len(jobs[0]["digest"]) == 32
    assert summary["seconds"] >= 0


def test_what_was_removed_is_missing(run, home: pathlib.Path) -> None:
    (home / place.LAST_SHARD).unlink()
    status, out, _ = run("info", "em.zarr", "--json")
    assert status == 0
    assert "1 shard: [64:80, 0:32, 0:32)" in out
    stored = last_json(out)["scales"][0]["stored"]
    assert (stored["objects"], stored["objects_stored"], stored["chunks_stored"]) == (5, 4, 16)
    assert stored["missing"][0]["key"] == "c/0/0/4"


def test_a_store_is_told(run, embedded: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(embedded / "store", tmp_path / "store")
    status, out, _ = run("info", str(tmp_path / "store"), "--json")
    assert status == 0
    summary = last_json(out)
    assert (summary["is"], summary["rows"], summary["runs"]) == ("store", 4, 1)
    assert summary["generations"][0]["inputs"]["image"].endswith("em.zarr/|zarr3:")
    assert summary["generations"][0]["command"].startswith("segclr-beam embed --image=em.zarr")
    assert f"{tmp_path / 'store'}: an embedding store" in out.splitlines()[0]


def test_a_dry_run_looks_at_nothing(run, home: pathlib.Path) -> None:
    status, out, _ = run("info", "nowhere", "--dry-run", "--json")
    assert status == 0
    assert "nowhere: metadata is read and storage is listed" in out
    assert last_json(out)["plan"] == {"job": "info", "path": "nowhere"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "info needs PATH; for example:\n  segclr-beam info em.zarr"),
        (["nowhere"], "nowhere does not exist; give a volume's directory or URL"),
        (["em.npy"], "em.npy is a file that is no model (.keras, or a checkpoint's .index)"),
        (["em.zarr", "seg.zarr"], "'seg.zarr' is not a flag; every value follows its flag"),
        (["--path", "em.zarr"], "--path"),
        ([""], "the path of info was empty"),
    ],
    ids=" ".join,
)
def test_a_wrong_request_is_one_message(run, home: pathlib.Path, words, said: str) -> None:
    status, out, err = run("info", *words, "--json")
    assert status == 2
    assert said in last_json(out)["error"]
    assert last_json(out)["status"] == 2
    assert err.startswith("segclr-beam: ")


def test_help_names_the_path(run) -> None:
    status, out, _ = run("info", "--help")
    assert status == 0
    assert out.startswith("usage: segclr-beam info PATH [flags]")
    assert "  info " in run("--help")[1]


def test_a_secret_in_a_spec_is_not_told(run, home: pathlib.Path) -> None:
    spec = {"driver": "zarr3", "kvstore": f"file://{home}/em.zarr/", "token": "PLANTED"}
    status, out, err = run("info", json.dumps(spec), "--json")
    assert "PLANTED" not in out + err
    assert status == 0


def test_it_is_all_that_the_process_says(home: pathlib.Path) -> None:
    words = [sys.executable, "-m", "launch", "info", "em.zarr"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=place.environment(), check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("em.zarr: an image, zarr3\n")
