import hashlib
import json
import pathlib
import shutil

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from launch.runner import counted
from pipelines import diff
from pipelines.diff import job
from tests.pipelines import versioned
from volumes import objects, store
from volumes.errors import RequestError, RunError
from volumes.generation import Generation

HUGE = 2**64 - 1

FIRST = {
    "0_0_0": [(1, 1, 1), (1, 2, 2), (HUGE, 3, 3)],
    "1_0_0": [(2, 4, 4)],
    "9_0_0": [(3, 5, 5)],
    "-9_0_0": [(4, 6, 6)],
}
# Of node (1, 1) the row is another, (HUGE, 3) is in another box, (2, 4) is gone, (2, 7) is new.
SECOND = FIRST | {"0_0_0": [(1, 1, 9), (1, 2, 2)], "1_0_0": [(2, 7, 7), (HUGE, 3, 3)]}

TABLE = f"segment_id,added,removed,changed\n1,0,0,1\n2,1,1,0\n{HUGE},0,0,1\n"


@pytest.fixture
def generation(tmp_path: pathlib.Path) -> Generation:
    generation = versioned.generation_of(tmp_path)
    for boxes in (FIRST, SECOND):
        versioned.publish(generation, boxes)
    return generation


def planned(generation: Generation, output: object = None, **changes) -> diff.DiffPlan:
    where = None if output is None else str(output)
    return diff.plan(diff.DiffConfig(generation.store, output=where, **changes))


def run(plan: diff.DiffPlan) -> tuple[diff.Result, dict[str, int]]:
    diff.prepare(plan)
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
    diff.build(pipeline, plan)
    result = pipeline.run()
    result.wait_until_finish()
    return diff.finish(plan), counted(result)


def test_a_table_of_the_segments_that_differ(generation, tmp_path) -> None:
    plan = planned(generation, tmp_path / "out" / "changes.csv")
    assert plan.to_json() == {
        "job": "diff",
        "store": generation.store,
        "from": 1,
        "to": 2,
        "output": str(tmp_path / "out" / "changes.csv"),
        "partitions": 1,
        "partitions_equal": 2,
        "rows": 8,
        "complete": False,
    }
    result, counts = run(plan)
    assert (tmp_path / "out" / "changes.csv").read_text() == TABLE
    assert (result.added, result.removed, result.changed, result.segments) == (1, 1, 2, 3)
    assert result.largest == (("2", 1, 1, 0), ("1", 0, 0, 1), (str(HUGE), 0, 0, 1))
    assert result.table() == [
        "             segment  added  removed  changed",
        "                   2      1        1        0",
        "                   1      0        0        1",
        "18446744073709551615      0        0        1",
    ]
    names = ("partitions_compared", "boxes_compared", "rows_read", "added", "removed", "changed")
    assert [counts[n] for n in names] == [1, 2, 8, 1, 1, 2]
    document = json.loads((tmp_path / "out" / "changes.csv.json").read_text())
    assert (document["format"], document["format_version"]) == ("segclr-diff", 1)
    assert document["result"]["files"] == [
        {
            "name": "changes.csv",
            "segments": 3,
            "sha256": hashlib.sha256(TABLE.encode()).hexdigest(),
        }
    ]


def test_partitions_that_are_equal_are_not_opened(generation, tmp_path) -> None:
    # An unreadable partition is no hindrance where both versions record the same of it.
    for name in ("4_0_0", "-5_0_0"):
        shutil.rmtree(pathlib.Path(generation.partition(name).url))
    result, _ = run(planned(generation, tmp_path / "changes.csv"))
    assert result.segments == 3


def test_the_way_back_and_a_version_with_itself(generation, tmp_path) -> None:
    versioned.publish(generation, SECOND | {"0_0_0": []})
    up, _ = run(planned(generation, tmp_path / "c.csv", from_version=3, to_version=2))
    assert (up.added, up.removed, up.changed) == (2, 0, 0)
    same, counts = run(planned(generation, tmp_path / "d.csv", from_version=2, to_version=2))
    assert (same.added, same.removed, same.changed, same.segments) == (0, 0, 0, 0)
    assert same.table() == []
    assert "partitions_compared" not in counts
    assert (tmp_path / "d.csv").read_text() == "segment_id,added,removed,changed\n"


def test_many_shards_and_parts_say_the_same(generation, tmp_path, monkeypatch) -> None:
    whole, _ = run(planned(generation, tmp_path / "whole.csv"))
    monkeypatch.setattr(job, "_ROWS_A_SHARD", 2)
    monkeypatch.setattr(job, "_NODES_A_PART", 3)
    plan = planned(generation, tmp_path / "parts" / "x.csv")
    assert (plan.work.shards, plan.work.parts) == (4, 3)
    result, _ = run(plan)
    names = [f"x-{i:05d}-of-00003.csv" for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [*names, "x.csv.json"]
    parts = [(tmp_path / "parts" / name).read_text().splitlines() for name in names]
    assert {part[0] for part in parts} == {"segment_id,added,removed,changed"}
    rows = sorted((line for part in parts for line in part[1:]), key=lambda r: int(r.split(",")[0]))
    assert rows == TABLE.splitlines()[1:]
    assert (result.added, result.removed, result.changed, result.largest) == (
        *(whole.added, whole.removed, whole.changed),
        whole.largest,
    )


def test_two_generations_are_compared_whole(generation, tmp_path) -> None:
    wider = versioned.generation_of(tmp_path, "2", width=5)
    versioned.publish(wider, SECOND)
    plan = planned(generation, tmp_path / "x.csv")
    assert (plan.generations, plan.pairs, plan.equal, plan.rows) == (True, 6, 0, 12)
    result, _ = run(plan)
    assert (result.added, result.removed, result.changed) == (0, 0, 6)


def test_the_same_diff_again_has_nothing_to_do_and_an_interrupted_one_goes_on(
    generation, tmp_path
) -> None:
    output = tmp_path / "changes.csv"
    first, _ = run(planned(generation, output))
    again = planned(generation, output)
    assert again.complete is not None
    assert diff.finish(again) == first
    before = (output.read_bytes(), pathlib.Path(f"{output}.json").read_bytes())
    # Killed before the end: the document says what it is of, and files may be there or not.
    pathlib.Path(f"{output}.json").unlink()
    output.unlink()
    diff.prepare(planned(generation, output))
    unfinished = planned(generation, output)
    assert unfinished.complete is None
    with pytest.raises(RunError, match=r"changes.csv.json has no result: .* same command again"):
        diff.finish(unfinished)
    output.write_text("half")
    run(unfinished)
    assert (output.read_bytes(), pathlib.Path(f"{output}.json").read_bytes()) == before
    # A lost file is written again.
    output.unlink()
    run(planned(generation, output))
    assert output.read_bytes() == before[0]


def test_an_output_that_is_something_else_is_refused(generation, tmp_path) -> None:
    (tmp_path / "thesis.csv").write_text("x")
    with pytest.raises(RequestError, match=r"thesis.csv is not free: thesis.csv is there and is n"):
        planned(generation, tmp_path / "thesis.csv")
    (tmp_path / "y.csv.json").write_text("{}")
    with pytest.raises(RequestError, match=r"y.csv is not free: y.csv.json is there"):
        planned(generation, tmp_path / "y.csv")
    with pytest.raises(RequestError, match="is a directory; name the table"):
        planned(generation, tmp_path)
    run(planned(generation, tmp_path / "x.csv"))
    before = (tmp_path / "x.csv").read_bytes()
    with pytest.raises(RequestError, match="not of the diff from version 2 to version 1 of"):
        planned(generation, tmp_path / "x.csv", from_version=2, to_version=1)
    assert (tmp_path / "x.csv").read_bytes() == before
    raced = planned(generation, tmp_path / "z.csv")
    objects.write(raced.work.document, b"{}")
    with pytest.raises(RunError, match="was written by another run meanwhile"):
        diff.prepare(raced)


def test_versions_that_are_not_there_are_refused(generation, tmp_path) -> None:
    for number in (0, 99, -1):
        for changes in ({"from_version": number}, {"to_version": number}):
            with pytest.raises(
                RequestError, match=f"has no version {number}; give one that it has: 1, 2"
            ):
                planned(generation, **changes)
    with pytest.raises(RequestError, match=r"has no version before 1 \(it has 1, 2\), and a diff"):
        planned(generation, to_version=1)
    with pytest.raises(RequestError, match="is not an embedding store"):
        diff.plan(diff.DiffConfig(str(tmp_path)))
    with pytest.raises(RequestError, match="--output was empty"):
        diff.DiffConfig("store", output="")
    with pytest.raises(RequestError, match="--store https://host/s was given with a password"):
        diff.DiffConfig("https://host/s?token=TOKEN")
    assert store.version_numbers(generation.store) == [1, 2]
