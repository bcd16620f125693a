"""Failures at run time: status 1, what failed and where, and a rerun that goes on."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from launch.cli import main
from tests.launch import place
from tests.launch.place import EMBED, LAST_SHARD, ingest, last_json, tables
from tests.volumes.section_files import cut, write_sections


def failed(
    capsys: pytest.CaptureFixture[str], words: list[str], *parts: str, status: int = 1
) -> str:
    """Run a command that fails with one message, which holds these parts; gives the message."""
    capsys.readouterr()
    assert main([*words, "--json", "--quiet"]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert err.count("\n") == 1
    message = err.removeprefix("segclr-beam: ").rstrip("\n")
    said = last_json(out)
    assert (said["status"], said["error"]) == (status, message)
    assert "while running" not in message
    for part in parts:
        assert part in message, (part, message)
    return message


def done(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict[str, object]:
    """Run a command that succeeds; gives its summary."""
    capsys.readouterr()
    assert main([*words, "--json", "--quiet"]) == 0
    return last_json(capsys.readouterr().out)


def test_a_corrupt_chunk_is_named_with_its_box_and_the_rest_is_kept(
    home: pathlib.Path, embedded: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = LAST_SHARD.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 3] ^= 0xFF
    LAST_SHARD.write_bytes(damaged)
    words = [*EMBED, "--output=store"]
    message = failed(
        capsys,
        words,
        "1 box is set aside: box 4_1_1 [64:80, 16:32, 16:32)",
        "the image em.zarr cannot be read",
        "em.zarr/c/0/0/4",
        "Digest mismatch",
        "Version 1 has all the others; when the cause is mended, run the same command with "
        "--retry-failed",
    )
    # It is known, and not tried again unless that is asked for.
    assert failed(capsys, words) == message
    assert failed(capsys, [*words, "--retry-failed"], "box 4_1_1") != ""
    LAST_SHARD.write_bytes(whole)
    assert failed(capsys, words) == message
    summary = done(capsys, [*words, "--retry-failed"])
    assert (summary["boxes"], summary["boxes_skipped"], summary["failed"]) == (1, 3, 0)
    assert (summary["embeddings"], summary["embeddings_total"]) == (1, 4)
    assert summary["version"] == 2
    done(capsys, ["export", "--store=store", "--output=tables"])
    assert tables(home / "tables") == tables(embedded / "tables")


def test_a_missing_image_chunk_under_a_mask_is_refused_unless_it_is_to_be_black(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LAST_SHARD.unlink()
    failed(
        capsys,
        [*EMBED, "--output=store"],
        "box 4_1_1 [64:80, 16:32, 16:32)",
        "em.zarr is not stored",
        "node 4 of segment 9",
        "--missing-image zero",
    )
    summary = done(capsys, [*EMBED, "--output=black", "--missing-image=zero"])
    assert summary["embeddings"] == 4


def test_a_missing_segmentation_chunk_is_background_unless_it_is_a_loss(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pathlib.Path("seg.zarr", "c", "0", "0", "4").unlink()
    failed(
        capsys,
        [*EMBED, "--output=store", "--missing-segmentation=error"],
        "box 4_1_1",
        "seg.zarr are not stored",
        "--missing-segmentation background",
    )
    summary = done(capsys, [*EMBED, "--output=other"])
    assert summary["embeddings"] == 3
    assert summary["rejected"] == {"empty_mask": 2, "outside": 1}


def test_an_unreadable_section_is_named_and_a_rerun_does_the_rest(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = place.voxels()
    sections = write_sections(home / "sections", np.tile(image, (2, 3, 3)))
    words = ["ingest", "--source=sections", "--kind=image", "--voxel-size=10,10,10"]
    words += ["--chunk=16", "--shard=16", "--memory-mb=1"]
    undisturbed = done(capsys, [*words, "--output=whole.zarr"])
    assert undisturbed["units"] == undisturbed["units_written"] == 6
    whole = cut(sections[80], 200)
    words.append("--output=new.zarr")
    failed(capsys, words, "sections/em.81.png", "repair or replace it", "same command again")
    sections[80].write_bytes(whole)
    summary = done(capsys, words)
    assert summary["units_written"] + summary["units_skipped"] == 6
    assert 0 < summary["units_written"] < 6
    assert summary["digest"] == undisturbed["digest"]


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, free: int) -> Iterator[pathlib.Path]:
    """A file system of its own with this many bytes free; gives the file that fills the rest."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a full disk needs leave to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        filler = folder / "filler"
        left = os.statvfs(folder)
        filler.write_bytes(bytes(left.f_bavail * left.f_frsize - free))
        yield filler
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_an_ingest_that_a_rerun_completes(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("large.npy", np.random.default_rng(1).integers(0, 256, (64, 64, 64), dtype=np.uint8))
    undisturbed = done(capsys, ingest("large.npy", "image", "whole.zarr"))
    with small_disk(home / "disk", free=120_000) as filler:
        words = [*ingest("large.npy", "image", "disk/large.zarr"), "--memory-mb=1"]
        failed(capsys, words, "disk/large.zarr", "No space left on device")
        filler.unlink()
        summary = done(capsys, words)
        assert summary["digest"] == undisturbed["digest"]


@pytest.mark.parametrize("free", [8_192, 40_960])
def test_a_full_disk_stops_an_embed_that_a_rerun_completes(
    home: pathlib.Path, embedded: pathlib.Path, capsys: pytest.CaptureFixture[str], free: int
) -> None:
    with small_disk(home / "disk", free) as filler:
        words = [*EMBED, "--output=disk/store"]
        failed(capsys, words, "disk/store", "No space left on device")
        filler.unlink()
        assert done(capsys, words)["embeddings_total"] == 4
        done(capsys, ["export", "--store=disk/store", "--output=tables"])
    assert tables(home / "tables") == tables(embedded / "tables")


def test_a_full_disk_stops_an_export_that_a_rerun_completes(
    home: pathlib.Path, embedded: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(home / "disk", free=0) as filler:
        words = ["export", f"--store={embedded / 'store'}", "--output=disk/tables"]
        failed(capsys, words, "disk/tables", "No space left on device")
        filler.unlink()
        assert done(capsys, words)["embeddings_total"] == 4
        assert tables(home / "disk" / "tables") == tables(embedded / "tables")
