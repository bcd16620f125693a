"""Kill -9 at random moments: what was committed stays, and the same command goes on from there."""

import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from launch.cli import main
from tests.launch import place
from tests.launch.place import last_json, tables
from volumes import partition, runs, store
from volumes.generation import Generation
from volumes.receipts import Receipt

WORDS = [
    *("embed", "--image=em.zarr", "--segmentation=seg.zarr", "--nodes=auto:60", "--box=16"),
    *("--model=untrained:width=6,input=33,embedding=4", "--commit-seconds=0.2"),
    *("--workers=2", "--json"),
]
KILLS = 20


def started(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *WORDS, f"--output={url}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=place.environment(),
        start_new_session=True,
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """Its worker processes."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "-s", str(process.pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.split(None, 1) for line in listed.stdout.splitlines()]
    return [int(pid) for pid, args in lines if "sdk_worker" in args and "sh -c" not in args]


def generation_of(url: str) -> Generation | None:
    """The generation of a store, once it has begun."""
    if not pathlib.Path(url, "store.json").exists():
        return None
    _, manifest = store.current(url)
    return manifest and Generation.from_json(manifest["generation"] | {"store": url})


def committed(url: str) -> int:
    """How many boxes are committed now."""
    generation = generation_of(url)
    parts = [] if generation is None else store.partitions_present(generation)
    return sum(len(partition.listed(generation.partition(p), "receipts")) for p in parts)


def receipts(url: str) -> dict[str, Receipt]:
    """What is committed now, by box."""
    generation = generation_of(url)
    if generation is None:
        return {}
    found: dict[str, Receipt] = {}
    for part in store.partitions_present(generation):
        where = generation.partition(part)
        for box in partition.listed(where, "receipts"):
            receipt = partition.read_receipt(where, box)
            assert receipt is not None
            found[box] = receipt
    return found


def killed(process: subprocess.Popen[str], what: str, url: str, boxes: int, late: float) -> str:
    """Kill a part of a run some moments after it has so many boxes; gives what it printed."""
    while committed(url) < boxes and process.poll() is None:
        time.sleep(0.05)
    end = time.monotonic() + late
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    if process.poll() is None:
        victims = children(process) if what == "a worker" else []
        if victims:
            os.kill(random.choice(victims), signal.SIGKILL)
        elif what == "the launcher":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    for pid in children(process):  # who outlived the launcher must not outlive the test
        end = time.monotonic() + 60
        while pathlib.Path(f"/proc/{pid}").exists() and time.monotonic() < end:
            time.sleep(0.1)
    return out


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_do_nothing_twice(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = started("undisturbed")
    out, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0
    whole = last_json(out)
    assert main(["export", "--store=undisturbed", "--output=tables", "--quiet"]) == 0
    expected = tables(home / "tables")

    rng = random.Random(20)
    moments: collections.Counter[str] = collections.Counter()
    kills = done = 0
    before: dict[str, Receipt] = {}
    while kills < KILLS or before:
        url = str(home / f"store{done}")
        what = rng.choice(["everything", "the launcher", "a worker"])
        process = started(url)
        # Some boxes further on, and at a random moment of the work on the next; sometimes before.
        # The last run of all is left alone.
        boxes = len(before) + rng.randint(0, 5) if kills < KILLS else int(str(whole["boxes"])) + 1
        late = rng.uniform(0, 1.5 if boxes > len(before) else 12)
        out = killed(process, what, url, boxes, late)
        after = receipts(url)
        # What was committed before the kill is there, receipt by receipt.
        assert {box: after[box] for box in before} == before
        moments["in the middle" if 0 < len(after) < int(str(whole["boxes"])) else "at an end"] += 1
        if process.returncode == 0:
            summary = last_json(out)
            assert summary["boxes_skipped"] == len(before)
            assert int(str(summary["boxes"])) + len(before) == whole["boxes"]
            assert summary["embeddings_total"] == whole["embeddings_total"]
        else:
            kills += 1
            if after:
                capsys.readouterr()
                status = main(["verify", f"--store={url}", "--json", "--quiet"])
                found = last_json(capsys.readouterr().out)
                # Nothing is wrong but that boxes are undone.
                faults = {k for k, n in dict(found["faults"]).items() if n}  # type: ignore
                assert faults <= {"undone", "unfinished"}, found
                assert status == (1 if faults else 0)
        before = after
        if process.returncode == 0 or len(after) == whole["boxes"]:
            assert main([*WORDS, f"--output={url}", "--quiet"]) == 0
            assert main(["verify", f"--store={url}", "--quiet"]) == 0
            assert main(["export", f"--store={url}", f"--output=tables{done}", "--quiet"]) == 0
            assert tables(home / f"tables{done}") == expected
            assert runs.living(url) == []
            done += 1
            before = {}
    print(dict(moments), done)
    assert moments["in the middle"] >= KILLS // 2
    assert done >= 1
