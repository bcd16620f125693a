"""``verify --volume``: every kind of damage is found with its box, and mended by the job again."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from launch.cli import main
from pipelines import writing
from pipelines.convert import ConvertConfig
from pipelines.convert import plan as plan_convert
from pipelines.verify import plan_volume
from tests.pipelines.volume_case import (
    converted,
    downsampled,
    levels_of,
    noise,
    read,
    stored,
    tree,
    volume,
)
from volumes.errors import RequestError

_DATA = noise((32, 32, 16))


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A working directory with a volume ``em``."""
    monkeypatch.chdir(tmp_path)
    volume(tmp_path / "em", _DATA, size=(4.0, 4.0, 4.0))
    return tmp_path


def _convert(form: str = "zarr3", *words: str) -> list[str]:
    """A conversion in four units of 16 x 16 x 16 voxels: each a shard, or two chunks."""
    shard = [] if form in ("zarr2", "n5") else ["--shard=16,16,16"]
    axes = [] if form == "precomputed" else ["--axes=xyz"]
    made = ["convert", "--input=em", "--output=out", f"--format={form}", "--chunk=8"]
    return [*made, *shard, *axes, *words]


def _verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    """Status, summary and message of a check of ``out``."""
    capsys.readouterr()
    status = main(["verify", "--volume=out", "--json", *words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, json.loads(out.splitlines()[-1]), err


def _named(summary: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(f["kind"], f["key"], f["box"] and f["box"]["start"]) for f in summary["faulty"]]


# Each damages one file and gives what is told of it.


def _deleted(path: pathlib.Path) -> str:
    path.unlink()
    return "are gone"


def _truncated(path: pathlib.Path) -> str:
    path.write_bytes(path.read_bytes()[:-7])
    return "were written"


def _emptied(path: pathlib.Path) -> str:
    path.write_bytes(b"")
    return "it has 0 bytes"


def _flipped(path: pathlib.Path) -> str:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return "its bytes are not those written"


def _appended(path: pathlib.Path) -> str:
    path.write_bytes(path.read_bytes() + b"junk")
    return "were written"


def _swapped(path: pathlib.Path) -> str:
    other = next(p for p in path.parent.parent.rglob("*") if p.is_file() and p != path)
    path.write_bytes(other.read_bytes() + b"")
    return "written"


_CASES: list[tuple[str, str, list[int]]] = [
    ("zarr3", "c/1/0/0", [19, 5, -7]),
    ("ome-zarr", "0/c/1/1/0", [19, 21, -7]),
    ("zarr2", "3/1/1", [27, 13, 1]),
    ("n5", "3/1/1", [27, 13, 1]),
    ("precomputed", "4_4_4/1.shard", [19, 5, -7]),
]


@pytest.mark.parametrize(("form", "file", "start"), _CASES, ids=[c[0] for c in _CASES])
@pytest.mark.parametrize("damage", [_deleted, _truncated, _emptied, _flipped, _appended, _swapped])
def test_a_damaged_object_is_found_with_its_box_and_mended(
    home, capsys, form, file, start, damage: Callable[[pathlib.Path], str]
):
    assert main([*_convert(form), "--quiet"]) == 0
    status, clean, _ = _verify(capsys)
    assert (status, clean["faults"], clean["faulty"]) == (0, {}, [])
    whole = stored(home / "out")
    told = damage(home / "out" / file)
    before = tree(home)
    status, found, err = _verify(capsys)
    kind = "missing" if damage is _deleted else "damaged"
    assert (status, found["faults"]) == (1, {kind: 1})
    assert _named(found) == [(kind, file.removeprefix("0/") if form == "ome-zarr" else file, start)]
    assert told in found["faulty"][0]["says"]
    assert f"out: 1 {kind}. To go on: run verify again with --repair, then the same conv" in err
    assert tree(home) == before
    assert main([*_convert(form), "--quiet"]) == 0  # which has its records, and looks no further
    status, repaired, err = _verify(capsys, "--repair")
    assert (status, repaired["repaired"]) == (1, 1)
    assert "To go on: the same convert command again" in err
    assert main([*_convert(form), "--quiet"]) == 0
    np.testing.assert_array_equal(read(home / "out"), _DATA)
    assert _verify(capsys)[0] == 0
    after = stored(home / "out")
    assert {k for k in whole if not k.startswith("segclr-beam")} <= after.keys()
    assert after[file] == whole[file]


def _records(home: pathlib.Path) -> list[pathlib.Path]:
    found = sorted((home / "out/segclr-beam/convert").glob("*.json"))
    assert found
    return found


@pytest.mark.parametrize(
    ("damage", "kind", "says"),
    [
        (lambda p: p.unlink(), "unwritten", "it has no record"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "record", "its record is damaged: "),
        (lambda p: p.write_bytes(b""), "record", "its record is damaged: "),
        (lambda p: p.write_bytes(b"\xff\xfe"), "record", "its record is damaged: "),
        (lambda p: p.write_bytes(b"[]"), "record", "its record is damaged: "),
        (lambda p: p.write_bytes(b'{"format": "x"}'), "record", "its record is damaged: "),
        (
            lambda p: p.write_text(p.read_text().replace('"stored"', '"stowed"')),
            "record",
            "its record is damaged: ",
        ),
        (
            lambda p: p.write_text(p.read_text().replace('"stop": [', '"stop": [1')),
            "record",
            "by a run with other units",
        ),
    ],
)
def test_a_damaged_record_is_found_with_the_box_of_its_unit_and_mended(
    home, capsys, damage, kind, says
):
    assert main([*_convert("zarr2"), "--quiet"]) == 0
    records = _records(home)
    damage(records[0])
    status, found, _ = _verify(capsys)
    assert (status, found["faults"]) == (1, {kind: 1})
    assert _named(found) == [(kind, records[0].stem, [3, 5, -7])]
    assert says in found["faulty"][0]["says"]
    assert _verify(capsys, "--repair")[0] == 1
    assert main([*_convert("zarr2"), "--quiet"]) == 0
    assert _verify(capsys)[0] == 0
    np.testing.assert_array_equal(read(home / "out"), _DATA)


_METADATA = [
    ("zarr3", "zarr.json"),
    ("zarr2", ".zarray"),
    ("zarr2", ".zattrs"),
    ("n5", "attributes.json"),
    ("ome-zarr", "zarr.json"),
    ("ome-zarr", "0/zarr.json"),
    ("precomputed", "info"),
]


@pytest.mark.parametrize(("form", "file"), _METADATA)
def test_metadata_that_are_gone_are_found_and_written_again(home, capsys, form, file):
    assert main([*_convert(form), "--quiet"]) == 0
    whole = (home / "out" / file).read_bytes()
    (home / "out" / file).unlink()
    status, found, err = _verify(capsys)
    assert (status, found["faults"]) == (1, {"metadata": 1})
    assert "1 metadata" in err
    assert found["faulty"][0]["box"] == {"start": [3, 5, -7], "stop": [35, 37, 9]}
    assert _verify(capsys, "--repair")[0] == 1
    assert main([*_convert(form), "--quiet"]) == 0
    assert _verify(capsys)[0] == 0
    assert json.loads((home / "out" / file).read_bytes()) == json.loads(whole)
    np.testing.assert_array_equal(read(home / "out"), _DATA)


@pytest.mark.parametrize(("form", "file"), _METADATA)
@pytest.mark.parametrize("damage", ["cut", "voxels", "garbage"])
def test_metadata_that_are_damaged_are_found(home, capsys, form, file, damage):
    assert main([*_convert(form), "--quiet"]) == 0
    path = home / "out" / file
    text = path.read_text()
    if damage == "voxels":
        # Another place, or where the file has none that counts, another shape.
        turned = {"-28": "-36"} if "-28" in text else {"-7": "-9"}
        if file == "0/zarr.json":
            turned = {"[32,32,16]": "[32,32,24]"}
        elif file == ".zarray":
            turned = {"[32,32,16]": "[32,32,24]"}
        for old, new in turned.items():
            assert old in text
            path.write_text(text.replace(old, new))
    else:
        path.write_text(text[:-20] if damage == "cut" else "\x00garbage")
    status, found, err = _verify(capsys)
    assert status == 1
    assert "metadata" in found["faults"]
    assert "Traceback" not in err


# Whole volumes


def test_levels_of_a_pyramid_are_checked_too(home, capsys):
    for form in ("ome-zarr", "precomputed"):
        assert main([*_convert(form), "--quiet"]) == 0
        assert main(["downsample", "--volume=out", "--levels=2", "--quiet"]) == 0
        assert _verify(capsys)[1]["faults"] == {}
        level = levels_of(home / "out")[1]
        assert level.voxel_size_nm == (8.0, 8.0, 8.0)
        below = "1/c" if form == "ome-zarr" else "8_8_8"
        path = next(p for p in sorted((home / "out" / below).rglob("*")) if p.is_file())
        _flipped(path)
        status, found, err = _verify(capsys, "--repair")
        assert (status, found["faults"]) == (1, {"damaged": 1})
        below = found["faulty"][0]["volume"].removeprefix(str(home / "out"))
        assert below == {"ome-zarr": "/1", "precomputed": ""}[form]
        assert "then the same" not in err
        assert main(["downsample", "--volume=out", "--levels=2", "--quiet"]) == 0
        assert _verify(capsys)[0] == 0
        shutil.rmtree(home / "out")


def test_lossy_volumes_are_whole(home, capsys):
    words = ["--codec=jpeg:50"]
    assert main([*_convert("precomputed", *words), "--quiet"]) == 0
    assert _verify(capsys)[:2][0] == 0
    assert np.abs(read(home / "out", "zero").astype(int) - _DATA).max() > 0
    path = next((home / "out/4_4_4").glob("*.shard"))
    _flipped(path)
    assert _verify(capsys)[1]["faults"] == {"damaged": 1}


def test_an_unfinished_conversion_says_what_is_unwritten(home, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.writing.plan.TARGET_BYTES", 1 << 12)
    fields = {"format": "zarr3", "chunk": (8, 8, 8), "shard": (16, 16, 16)}
    writing.prepare(plan_convert(ConvertConfig("em", "out", **fields)), "test")
    status, found, err = _verify(capsys)
    assert (status, found["faults"]) == (1, {"unwritten": 4})
    starts = sorted(f["box"]["start"] for f in found["faulty"])
    assert starts == [[3, 5, -7], [3, 21, -7], [19, 5, -7], [19, 21, -7]]
    assert "4 unwritten" in err
    assert _verify(capsys, "--repair")[1]["repaired"] == 0
    converted(home / "em", home / "out", **fields)
    assert _verify(capsys)[0] == 0


def test_another_memory_since_is_no_fault(home, capsys, monkeypatch):
    fields = {"format": "zarr3", "chunk": (8, 8, 8), "shard": (16, 16, 16)}
    converted(home / "em", home / "out", **fields)
    monkeypatch.setattr("pipelines.writing.plan.TARGET_BYTES", 1 << 12)
    assert converted(home / "em", home / "out", **fields) == [4]
    status, found, _ = _verify(capsys)
    assert (status, found["units"]) == (0, 4)


def test_a_volume_that_was_moved_or_copied_is_checked_where_it_is(home, capsys):
    assert main([*_convert("ome-zarr"), "--quiet"]) == 0
    downsampled(home / "out", levels=1)
    shutil.copytree(home / "out", home / "copy")
    _flipped(home / "out/0/c/0/0/0")
    (home / "out").rename(home / "first")
    (home / "copy").rename(home / "out")
    assert _verify(capsys)[0] == 0
    (home / "out").rename(home / "copy")
    (home / "first").rename(home / "out")
    assert _verify(capsys)[1]["faults"] == {"damaged": 1}


def test_what_is_not_stored_on_purpose_is_no_fault(home, capsys):
    (home / "em/c/1/0/0").unlink()
    assert main([*_convert("zarr2", "--missing=keep"), "--quiet"]) == 0
    assert _verify(capsys)[0] == 0
    _deleted(home / "out/0/0/0")
    assert _named(_verify(capsys)[1]) == [("missing", "0/0/0", [3, 5, -7])]


def test_a_volume_that_is_not_ours_is_refused(home, capsys):
    before = tree(home)
    told = "--volume em has no record of a job of this package, so there is nothing to compare with"
    with pytest.raises(RequestError, match=told):
        plan_volume("em", repair=True)
    for name in ("em", "lost"):
        assert main(["verify", f"--volume={name}", "--quiet"]) == 2
        err = capsys.readouterr().err
        assert f"--volume {name} has no record" in err
        assert "segclr-beam info" in err
    assert tree(home) == before


def test_a_damaged_manifest_is_named(home, capsys):
    assert main([*_convert(), "--quiet"]) == 0
    path = home / "out/segclr-beam/convert.json"
    whole = path.read_bytes()
    for data in (whole[:-9], b"", b"[]"):
        path.write_bytes(data)
        status, _, err = _verify(capsys)
        assert status == 1
        assert "convert.json" in err
