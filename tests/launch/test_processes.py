"""Whole runs in processes of their own: what stands on stderr, and what an interrupt leaves."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from launch.cli import main
from tests.launch import place
from tests.launch.place import EMBED, FIRST_SHARD, LAST_SHARD, last_json, tables
from tests.launch.served import Served, served
from volumes import EmbeddingStore

OURS = re.compile(r"  \S.*|[\d,]+ of [\d,]+ boxes, \d\d:\d\d gone(, .* boxes/s, .* left)?")


def started(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=place.environment(),
        start_new_session=True,
    )


def ran(words: list[str]) -> tuple[int, str, list[str]]:
    """Status, stdout and the lines of stderr."""
    process = started(words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err.splitlines()


def damage(path: pathlib.Path) -> bytes:
    """Flip a byte; gives what the file held."""
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[len(broken) // 3] ^= 0xFF
    path.write_bytes(broken)
    return whole


def test_stderr_of_a_run_that_fails_holds_our_lines_alone(home: pathlib.Path) -> None:
    damage(LAST_SHARD)
    status, out, err = ran([*EMBED, "--output=store", "--json"])
    assert status == 1
    message = str(last_json(out)["error"])
    assert message.startswith("1 box is set aside: box 4_1_1 [64:80, 16:32, 16:32): voxels ")
    assert err[-1] == f"segclr-beam: {message}"
    assert [line for line in err[:-1] if not OURS.fullmatch(line)] == []
    # TensorFlow was at work, so that its lines would have been there.
    assert len(EmbeddingStore.open(str(home / "store"), "live")) == 3


@pytest.mark.slow
def test_two_workers_fail_with_one_message_and_finish_with_our_lines_alone(
    home: pathlib.Path, embedded: pathlib.Path
) -> None:
    words = [*EMBED, "--output=store", "--json", "--workers=2"]
    whole = {path: damage(path) for path in (FIRST_SHARD, LAST_SHARD)}
    status, out, err = ran(words)
    assert status == 1
    message = str(last_json(out)["error"])
    named = re.findall(r"box \d_\d_\d \[.*?\): voxels \[.*?\) of the image em.zarr cannot", message)
    assert len(named) == 4
    assert "Traceback" not in message
    assert err[-1] == f"segclr-beam: {message}"
    assert [line for line in err[:-1] if not OURS.fullmatch(line)] == []

    for path, data in whole.items():
        path.write_bytes(data)
    status, out, err = ran([*words, "--retry-failed"])
    assert status == 0
    assert [line for line in err if not OURS.fullmatch(line)] == []
    assert "  boxes: 4 of 20, each 16 x 16 x 16 voxels and a halo of 8 x 8 x 8" in err
    assert last_json(out)["embeddings_total"] == 4
    assert main(["export", "--store=store", "--output=tables", "--quiet"]) == 0
    assert tables(home / "tables") == tables(embedded / "tables")


def over_http(server: Served, workers: int) -> list[str]:
    """The words that read the image from a server."""
    return [
        *(w for w in EMBED if not w.startswith("--image")),
        f"--image={server.url}/em.zarr",
        *("--output=store", "--json", f"--workers={workers}"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "shard"), [(1, LAST_SHARD), (2, FIRST_SHARD)], ids=["1", "2"])
def test_an_interrupt_is_told_and_a_rerun_goes_on(
    home: pathlib.Path,
    embedded: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    workers: int,
    shard: pathlib.Path,
) -> None:
    with served(home, stall=str(shard)) as server:
        process = started(over_http(server, workers))
        assert server.stalled.wait(120)
        # As a terminal does: to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        *lines, message = err.splitlines()
        assert message.startswith("segclr-beam: interrupted; what is committed stays: run the same")
        assert [line for line in lines if not OURS.fullmatch(line)] == []
        assert last_json(out)["status"] == 130
        server.go_on.set()
        assert main(over_http(server, workers=1)) == 0
    summary = last_json(capsys.readouterr().out)
    # Boxes that were waiting to share a commit are done again, those that were committed are not.
    assert int(summary["boxes"]) >= 1
    assert int(summary["boxes"]) + int(summary["boxes_skipped"]) == 4
    assert main(["export", "--store=store", "--output=tables", "--quiet"]) == 0
    assert tables(home / "tables") == tables(embedded / "tables")


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_and_is_told(home: pathlib.Path) -> None:
    with served(home, stall=str(FIRST_SHARD)) as server:
        process = started(over_http(server, workers=2))
        assert server.stalled.wait(120)
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "-s", str(process.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        workers = [line.split()[0] for line in listed.stdout.splitlines() if "sdk_worker" in line]
        assert len(workers) >= 2
        for pid in workers:
            os.kill(int(pid), signal.SIGKILL)
        out, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "a worker process ended by itself (signal 9)" in err.splitlines()[-1]
    assert "fewer --workers" in str(last_json(out)["error"])
