"""Runs that meet on one store: equal ones work side by side, the others give way or are refused."""

import pathlib
import subprocess

import pytest

from launch.cli import main
from tests.launch.place import FIRST_SHARD, last_json, tables
from tests.launch.served import served
from tests.launch.test_processes import over_http, started
from volumes import EmbeddingStore, runs, store


def finished(process: "subprocess.Popen[str]") -> dict[str, object]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return last_json(out)


@pytest.mark.slow
def test_two_identical_runs_started_together_leave_one_set_of_rows(
    home: pathlib.Path, embedded: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("embed", "--image=em.zarr", "--segmentation=seg.zarr", "--nodes=auto:60", "--box=16"),
        *("--model=untrained:width=2,input=17,embedding=4", "--commit-seconds=0", "--json"),
    ]
    both = [started([*words, "--output=store"]) for _ in range(2)]
    summaries = [finished(p) for p in both]
    total = {int(str(s["boxes"])) + int(str(s["boxes_skipped"])) for s in summaries}
    boxes = EmbeddingStore.open("store").document["boxes"]
    # Each looked at every box; each box was committed by exactly one of them.
    assert total == {boxes}
    assert sum(int(str(s["boxes"])) for s in summaries) == boxes
    assert {s["version"] for s in summaries} == {1}
    assert store.version_numbers("store") == [1]
    assert main(["verify", "--store=store", "--quiet"]) == 0
    assert main([*words, "--output=alone", "--quiet"]) == 0
    capsys.readouterr()
    for name in ("store", "alone"):
        assert main(["export", f"--store={name}", f"--output=of-{name}", "--quiet"]) == 0
    assert tables(home / "of-store") == tables(home / "of-alone")


@pytest.mark.slow
def test_who_must_be_alone_waits_for_a_living_run(
    home: pathlib.Path, embedded: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(home, stall=str(FIRST_SHARD)) as server:
        process = started(over_http(server, workers=1))
        assert server.stalled.wait(120)
        assert [r.job for r in runs.living("store")] == ["embed"]
        capsys.readouterr()
        for words in (["reprocess", "--store=store"], ["compact", "--store=store"]):
            assert main([*words, "--json", "--quiet"]) == 1
            message = str(last_json(capsys.readouterr().out)["error"])
            assert "in use by the embed run" in message
            assert f"pid {process.pid} on" in message
            assert "wait for the other's end, or stop it" in message
            assert main([*words, "--scheduled", "--json", "--quiet"]) == 0
            out = capsys.readouterr().out
            assert last_json(out)["gave_way"] is True
            assert "nothing done" in out
        again = [*over_http(server, workers=1), "--scheduled", "--quiet"]
        assert main(again) == 0
        assert last_json(capsys.readouterr().out)["gave_way"] is True
        assert store.version_numbers("store") == []
        server.go_on.set()
        assert finished(process)["boxes"] == 4
    # With nobody at work, a scheduled start works.
    assert main(["reprocess", "--store=store", "--image=em.zarr", "--scheduled", "--quiet"]) == 0
    assert runs.living("store") == []
    assert main(["export", "--store=store", "--output=tables", "--quiet"]) == 0
    assert tables(home / "tables") == tables(embedded / "tables")
