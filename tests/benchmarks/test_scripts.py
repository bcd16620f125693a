"""The scripts run on their smallest sizes; their figures are not looked at."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def printed(*words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_reprocess_finds_what_differs_and_nothing_else() -> None:
    lines = printed("benchmarks.reprocess", "--quick")
    header = next(i for i, line in enumerate(lines) if line.split()[:2] == ["changed", "s"])
    cases = lines[header + 1 :]
    assert len(cases) == 6
    assert all(c.split()[-2:] == ["met", "identical"] for c in cases)
    computed = [int(c.split()[-4]) for c in cases]
    assert computed[:2] == [0, 0]
    assert min(computed[2], computed[3], computed[5]) > 0


@pytest.mark.slow
def test_commit_prints_its_three_tables() -> None:
    lines = printed("benchmarks.commit", "--quick")
    titles = [line for line in lines if line[:1].isalpha()]
    assert [t.split()[0] for t in titles] == ["machine:", "software:", "a", "commits", "a"] + [
        "simulated:"
    ]
    # Two commit sizes, two numbers of databases, two of writers.
    at = lines.index(titles[3])
    assert len(lines[at + 2 : lines.index("", at)]) == 8


@pytest.mark.slow
def test_access_prints_each_part_beside_its_baseline() -> None:
    lines = printed("benchmarks.access", "--quick", "--parts", "views,latency,batch,random")
    header = "what this baseline ratio goal".split()
    assert sum(line.split() == header for line in lines) == 4
    titles = [line.split()[0] for line in lines if line[:1].isalpha()]
    assert titles[2:] == ["views", "latency", "batch", "random"]


@pytest.mark.slow
def test_storage_compares_every_way_of_both_kinds() -> None:
    lines = printed("benchmarks.storage", "--quick")
    titles = [line for line in lines if line.startswith("synthetic, ")]
    assert [t.split(",")[1].strip() for t in titles] == ["image", "segmentation"]
    lossless = [line for line in lines if " same " in f"{line} " and "jpeg" not in line]
    assert len(lossless) == 7 + 8
    assert sum(line.lstrip().startswith(("jpeg", "asked")) for line in lines) == 2


@pytest.mark.slow
def test_the_comparison_with_igneous_runs_our_side_alone() -> None:
    words = ["--alone", "--quick", "--cases", "segmentation compressed_segmentation chunks"]
    lines = printed("benchmarks.volumes_vs_peers", *words)
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["case"])
    cases = [line.split() for line in lines[header + 1 :]]
    assert [c[0] for c in cases] == ["convert", "downsample"]
    assert all(float(c[-3]) > 0 and float(c[-2]) > 10 for c in cases)


@pytest.mark.slow
def test_scale_sets_engines_beside_each_other() -> None:
    added = ["--engine", "again=--runner FnApiRunner"]
    lines = printed("benchmarks.scale", "--quick", "--parts", "engines", *added)
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["engine"])
    named = [line.split("  ")[1] for line in lines[header + 1 :]]
    assert named == ["in process", "2 processes", "again"]


def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.commit", "--parts", "everything"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "there is no part 'everything'; give share, table, simulation" in done.stderr
