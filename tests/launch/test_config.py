"""``--config FILE``, the spelling of flags, and flags that are Beam's."""

import json
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from launch.cli import main
from launch.config_file import config_words
from launch.flags import JOBS
from launch.parsers import UsageError, flag_names, job_parser, spelled
from launch.runner import _beam_parser
from tests.launch import place
from tests.launch.place import last_json

OWN = flag_names(job_parser(JOBS["embed"]))


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """The plan of a dry run."""
    capsys.readouterr()
    assert main([*words, "--dry-run", "--json"]) == 0
    plan = last_json(capsys.readouterr().out)["plan"]
    assert isinstance(plan, dict)
    return plan


ASKED = {
    "image": "em.zarr",
    "segmentation": "seg.zarr",
    "nodes": "nodes.csv",
    "model": place.MODEL,
    "output": "store",
}


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_gives_flags_and_the_command_line_wins(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    document = ASKED | {"box": [16, 32, 16], "missing_image": "zero", "read-mb": 7, "halo": None}
    if suffix == "json":
        text = json.dumps(document, indent="\t")
    else:
        text = "\n".join(f"{k}: {json.dumps(v)}" for k, v in document.items())
    file = home / f"run.{suffix}"
    file.write_text(text)
    plan = planned(capsys, "embed", f"--config={file}")
    assert plan["identity"]["box"] == [16, 32, 16]
    assert plan["missing_image"] == "zero"
    assert plan["bytes_in_flight"] == 7 * 10**6
    plan = planned(capsys, "embed", "--box=32", "--config", str(file), "--read-mb=9")
    assert plan["identity"]["box"] == [32, 32, 32]
    assert plan["missing_image"] == "zero"
    assert plan["bytes_in_flight"] == 9 * 10**6


def test_a_file_may_ask_for_a_dry_run_and_give_beams_flags(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.snapshot(home)
    document = ASKED | {"dry_run": True, "json": True, "quiet": False, "job_name": "x"}
    file = home.parent / "run.json"
    file.write_text(json.dumps(document | {"experiments": ["a", "b"]}))
    assert main(["embed", "--config", str(file)]) == 0
    assert last_json(capsys.readouterr().out)["dry_run"] is True
    assert place.snapshot(home) == before
    # A wrong request in it is told as JSON too, since the file asks for that.
    assert main(["embed", "--config", str(file), "--box=0"]) == 2
    assert last_json(capsys.readouterr().out)["status"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: [1, 2.5, x]\nc: true\nd: false\ne:\n", ["--a=1", "--b=1,2.5,x", "--c"]),
        ('{"--origin": "-8,0,0",\t"n": null}', ["--origin=-8,0,0"]),
        ("when: 2024-01-02\nnodes: auto:1500\n", ["--when=2024-01-02", "--nodes=auto:1500"]),
        ("{}", []),
    ],
)
def test_words_of_a_file(tmp_path: pathlib.Path, text: str, words: list[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert config_words(str(file)) == words


@pytest.mark.parametrize("runner", ["DirectRunner", "FnApiRunner"])
def test_beams_flags_pass_through_beside_ours(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str], runner: str
) -> None:
    words = place.ingest("em.npy", "image", "new.zarr")
    beams = ["--job_name", "x", "--experiments=a,b", f"--runner={runner}"]
    assert main([*words, *beams, "--quiet"]) == 0
    assert (home / "new.zarr" / "zarr.json").is_file()
    assert capsys.readouterr().err == ""


def test_our_flags_may_be_spelled_with_underscores(home: pathlib.Path) -> None:
    # Beam has a --dry_run of its own, for Dataflow: without this the run would be a real one.
    before = place.snapshot(home)
    assert main([*place.EMBED, "--output=store", "--dry_run", "--missing_image", "zero"]) == 0
    assert place.snapshot(home) == before


def test_a_negative_value_may_follow_its_flag(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(capsys, *place.ingest("em.npy", "image", "new"), "--origin", "-8,0,5")
    assert plan["identity"]["origin_vx"] == [-8, 0, 5]


WORDS = st.one_of(
    st.sampled_from([*OWN, "--job_name", "--dry_run=", "-1,2,3", "-.5", "value", "--", "-x"]),
    st.text(max_size=8),
)


@hypothesis.given(st.lists(WORDS, max_size=6))
def test_spelling_changes_no_value_and_is_done_once(words: list[str]) -> None:
    once = spelled(words, OWN)
    assert spelled(once, OWN) == once
    joined = "".join(once).replace("=", "").replace("_", "-")
    assert joined == "".join(words).replace("=", "").replace("_", "-")
    assert [w for w in words if not w.startswith("-")] == [w for w in once if not w.startswith("-")]


def test_a_flag_of_ours_hides_none_of_beams_but_these() -> None:
    beams = {s.replace("_", "-") for a in _beam_parser()._actions for s in a.option_strings}
    assert "--job-name" in beams
    for job in JOBS.values():
        own = set(flag_names(job_parser(job)))
        assert own & beams == {"--runner", "--dry-run"}, job.name


def test_the_parser_raises_instead_of_ending_the_process() -> None:
    with pytest.raises(UsageError, match="--box.*three integers.*embed --help"):
        job_parser(JOBS["embed"]).parse_args(["--box=1,2"])
