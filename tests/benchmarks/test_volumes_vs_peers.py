"""The comparison with igneous runs on tiny volumes; its figures are not looked at."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEER = ROOT / ".venv-igneous"


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.volumes_vs_peers", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.mark.slow
def test_both_programs_write_the_same_voxels(tmp_path: pathlib.Path) -> None:
    if not (PEER / "bin" / "igneous").exists():
        pytest.skip("needs igneous: python -m benchmarks.volumes_vs_peers --quick installs it")
    done = run("--quick", "--cases", "segmentation", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["case"])
    rows = {line.split("  ")[1]: line.split() for line in lines[header + 1 :]}
    assert list(rows) == [
        f"{job} segmentation compressed_segmentation{more}"
        for job in ("convert", "downsample")
        for more in (" chunks", "+gzip shards")
    ]
    shares = {name: float(cells[-1]) for name, cells in rows.items()}
    for name, share in shares.items():
        assert share == 1 if name.startswith("convert") else share > 0.95
    assert not list(tmp_path.iterdir())


def test_an_unknown_case_is_refused() -> None:
    done = run("--cases", "video")
    assert done.returncode == 2
    assert "no case holds 'video'; there are convert image raw chunks, " in done.stderr
