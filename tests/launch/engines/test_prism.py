"""The same jobs by Prism and in process; Prism's program is built from its Go module."""

import os
import pathlib
import shutil
import subprocess
import sys

import apache_beam
import pytest

from launch import runner
from launch.cli import main
from launch.engines import Asked
from launch.parsers import UsageError
from tests.launch import place

PACKAGE = "github.com/apache/beam/sdks/v2/go/cmd/prism"
BUILDING_S = 1500
RUNNING_S = 300


@pytest.fixture(scope="session")
def prism() -> str:
    """Prism's program, built once a machine."""
    version = apache_beam.__version__
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    folder = cache / "segclr-beam-tests" / f"prism-{version}"
    if not (folder / "prism").exists():
        go = shutil.which("go")
        if go is None and "SEGCLR_BEAM_CI" not in os.environ:
            pytest.skip("Go, which builds Prism, is not on this machine")
        assert go is not None, "CI needs Go, to build Prism"
        words = [go, "install", f"{PACKAGE}@v{version}"]
        environment = os.environ | {"GOBIN": str(folder)}
        built = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=BUILDING_S, check=False
        )
        assert built.returncode == 0, built.stderr[-2000:]
    return str(folder / "prism")


def run(*words: str) -> dict[str, object]:
    """A command in a process of its own; its summary."""
    done = subprocess.run(
        [sys.executable, "-m", "launch", *words, "--quiet", "--json"],
        capture_output=True,
        text=True,
        timeout=RUNNING_S,
        env=place.environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return place.last_json(done.stdout)


@pytest.mark.slow
def test_exports_are_identical_whatever_the_engine(
    prism: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place.furnish(tmp_path)
    engines = {
        "one": ["--workers=1"],
        "two": ["--workers=2"],
        "prism": ["--runner=PrismRunner", f"--prism_location={prism}"],
    }
    summaries, first = {}, {}
    for name, words in engines.items():
        summaries[name] = run(*place.EMBED, f"--output={name}", *words)
        assert main(["export", f"--store={name}", f"--output={name}-1", "--quiet"]) == 0
        first[name] = place.tables(tmp_path / f"{name}-1")
    assert first["two"] == first["prism"] == first["one"]
    counts = ("boxes", "nodes", "embeddings", "embeddings_total", "rejected", "failed")
    for key in counts:
        assert summaries["two"][key] == summaries["prism"][key] == summaries["one"][key]
    assert summaries["prism"]["embeddings"] == 4

    place.write_nodes(tmp_path / "nodes.csv", [*place.NODES[1:], (7, 9, 100.0, 60.0, 90.0)])
    second = {}
    for name, words in engines.items():
        again = run("reprocess", f"--store={name}", *words)
        assert again["embeddings_total"] == 4
        assert main(["export", f"--store={name}", f"--output={name}-2", "--quiet"]) == 0
        second[name] = place.tables(tmp_path / f"{name}-2")
    assert second["two"] == second["prism"] == second["one"] != first["one"]
    checked = run("verify", "--store=prism", *engines["prism"])
    assert (checked["failed"], checked["undone"], checked["faults"]) == (0, 0, {})


def test_without_its_program_prism_is_refused_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no prism on the PATH.*go install github.com/apache/b"):
        runner.ready(Asked("PrismRunner", 1, ()))
    for words in ((f"--prism_location={tmp_path / 'p'}",), ("--prism_location", "p")):
        with pytest.raises(UsageError, match=r"--prism_location .*p is no file; give Prism's prog"):
            runner.ready(Asked("PrismRunner", 1, words))


def test_a_program_on_the_path_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "prism").write_text("#!/bin/sh\n")
    (tmp_path / "prism").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    options = runner.ready(Asked("prism", 1, ())).options.get_all_options()
    assert options["runner"] == "PrismRunner"
    assert options["prism_location"] == str(tmp_path / "prism")


def test_processes_are_refused() -> None:
    with pytest.raises(UsageError, match="--workers 2 is a number of processes, and with --runner"):
        runner.ready(Asked("PrismRunner", 2, ()))
