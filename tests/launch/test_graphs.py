"""``--graph``: what is written, when, and over what."""

import pathlib
import re
import xml.etree.ElementTree as ET

import pytest

from launch.cli import main
from tests.launch import place

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        place.furnish(folder)
        assert main([*place.EMBED, "--output=store", "--quiet"]) == 0
    return folder


@pytest.fixture(autouse=True)
def there(furnished: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(furnished)


def blocks(path: pathlib.Path) -> dict[str, list[str]]:
    """The lines of each transform, by its name."""
    first, *rest = path.read_text().split("\n\n")
    assert first.startswith("# segclr-beam graph: ")
    found = {}
    for block in rest:
        name, *lines = block.strip("\n").split("\n")
        assert name not in found
        found[name] = lines
    return found


# Each job's words, and a step of its graph.
JOBS = {
    "ingest": ([*place.ingest("em.npy", "image", "new.zarr")], "WriteUnit"),
    "convert": (["convert", "--input=em.zarr", "--output=new.zarr", "--format=n5"], "WriteUnit"),
    "downsample": (["downsample", "--volume=seg.zarr", "--output=new.zarr"], "WriteUnit"),
    "embed": ([*place.EMBED, "--output=new"], "EncodeBox"),
    "reprocess": (["reprocess", "--store=store"], "ListStanding"),
    "verify": (["verify", "--store=store"], ""),
    "verify volume": (["verify", "--volume=em.zarr"], ""),
    "export": (["export", "--store=store", "--output=new"], ""),
    "compact": (["compact", "--store=store"], ""),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_dry_run_writes_the_graph_and_nothing_else(job: str, tmp_path: pathlib.Path) -> None:
    words, step = JOBS[job]
    before = place.snapshot(pathlib.Path.cwd())
    assert main([*words, "--dry-run", f"--graph={tmp_path / 'g'}", "--quiet"]) == 0
    assert place.snapshot(pathlib.Path.cwd()) == before
    found = blocks(tmp_path / "g.txt")
    assert all(lines[0].startswith("  urn: ") for lines in found.values())
    parts = [line[8:] for lines in found.values() for line in lines if line.startswith("  part: ")]
    assert set(parts) <= set(found)
    assert any(name.endswith(step) for name in found)
    assert not any(str(tmp_path) in line for lines in found.values() for line in lines)
    root = ET.parse(tmp_path / "g.svg").getroot()
    assert root.tag == f"{SVG}svg"
    shown = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert any(step in text for text in shown)


def test_no_line_of_a_picture_crosses_a_box(tmp_path: pathlib.Path) -> None:
    """Lines are Bezier curves between rows, so it is enough that none ends inside a box."""
    assert main(["reprocess", "--store=store", "--dry-run", f"--graph={tmp_path / 'g.svg'}"]) == 0
    root = ET.parse(tmp_path / "g.svg").getroot()
    boxes = []
    for rect in root.iter(f"{SVG}rect"):
        if rect.get("rx") == "5" and rect.get("fill") != "#f6f8fb":
            x, y, w, h = (float(rect.get(k, "0")) for k in ("x", "y", "width", "height"))
            boxes.append((x, y, x + w, y + h))
    assert len(boxes) > 15
    for path in root.iter(f"{SVG}path"):
        p = [float(v) for v in path.get("d", "").replace("M", "").replace("C", "").split()]
        for t in (i / 50 for i in range(1, 50)):
            x, y = (
                (1 - t) ** 3 * p[a] + 3 * (1 - t) ** 2 * t * p[a + 2]
                + 3 * (1 - t) * t**2 * p[a + 4] + t**3 * p[a + 6]
                for a in (0, 1)
            )  # fmt: skip
            inside = [b for b in boxes if b[0] < x < b[2] and b[1] + 0.1 < y < b[3] - 0.1]
            assert inside == []


def test_a_run_writes_its_graph_and_replaces_it(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*place.EMBED, f"--output={tmp_path / 's'}", f"--graph={tmp_path / 'g.txt'}", "--json"]
    (tmp_path / "g.txt").write_text("# segclr-beam graph: of an earlier run\n")
    assert main(words) == 0
    assert place.last_json(capsys.readouterr().out)["graph"] == [str(tmp_path / "g.txt")]
    assert "Embed/EncodeBox" in blocks(tmp_path / "g.txt")
    assert not (tmp_path / "g.svg").exists()
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert place.last_json(out)["graph"] == []
    assert "graph: none was built, since there is nothing to do" in out + err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("g.png", r"--graph g.png says no form: FILE.txt is text, FILE.svg is a picture"),
        ("em.npy", r"--graph em.npy says no form"),
        ("folder/", r"--graph folder/ says no form"),
        ("notes.txt", r"--graph notes.txt would replace .*notes.txt, which is not the file of a"),
        ("notes", r"would replace .*notes.txt"),
        ("taken.txt", r"--graph taken.txt names the directory"),
        ("http://127.0.0.1:9/g.txt", r"127.0.0.1"),
    ],
)
def test_what_is_no_graph_stays(
    given: str,
    said: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = pathlib.Path.cwd()
    monkeypatch.chdir(tmp_path)
    pathlib.Path("notes.txt").write_text("mine")
    pathlib.Path("taken.txt").mkdir()
    words = ["reprocess", f"--store={here / 'store'}", "--dry-run", f"--graph={given}"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert re.search(said, err)
    assert pathlib.Path("notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "taken.txt"]


def test_jobs_without_a_graph_have_no_such_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["versions", "--store=store", "--graph=g"]) == 2
    assert "unknown flag --graph" in capsys.readouterr().err
