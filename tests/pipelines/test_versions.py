import pathlib

import pytest

from pipelines import versions
from segclr.model import resolve_model
from tests.pipelines import versioned
from volumes import objects, store
from volumes.errors import RequestError

MODEL = "untrained:width=2,input=17,embedding=4"


def test_versions_are_told_with_what_made_them(tmp_path: pathlib.Path) -> None:
    generation = versioned.generation_of(tmp_path)
    url = generation.store
    config = versions.VersionsConfig(url)
    assert versions.listed(config) == []
    boxes = {"0_0_0": [(1, 1, 1), (1, 2, 2)], "1_0_0": []}
    versioned.publish(generation, boxes, "first")
    other = versioned.generation_of(tmp_path, "2")
    versioned.publish(other, boxes | {"9_0_0": [(3, 3, 3)]}, "second")
    store.write_run(url, "second", "run", {"job": "reprocess"})
    store.write_run(url, "second", "manifest", {"model": resolve_model(MODEL).to_json()})
    one, two = versions.listed(config)
    assert (one.version, one.job, one.run) == (1, "not recorded", "first")
    assert (one.generation, one.model) == ("1", "not recorded")
    assert (one.rows, one.boxes, one.nodes, one.failed_boxes, one.undone_boxes) == (2, 2, 2, 0, 0)
    assert (two.version, two.job, two.run) == (2, "reprocess", "second")
    assert (two.generation, two.rows) == ("2", 3)
    assert two.model.startswith("untrained network (seed 0, ResNet-18, width 2")
    assert two.to_json()["published"] == "2027-01-15T08:00:00+00:00"
    head, *lines = versions.table([one, two])
    assert head.split() == [
        *("version", "published", "job", "run", "generation", "rows", "boxes", "nodes"),
        *("failed", "undone", "model"),
    ]
    assert lines[1].split("  ")[0] == "2"
    assert lines[1].index("untrained") == head.index("model")


def test_a_model_of_other_software_is_no_hindrance(tmp_path: pathlib.Path) -> None:
    generation = versioned.generation_of(tmp_path)
    versioned.publish(generation, {"0_0_0": [(1, 1, 1)]}, "first")
    store.write_run(generation.store, "first", "manifest", {"model": {"kind": "of tomorrow"}})
    (one,) = versions.listed(versions.VersionsConfig(generation.store))
    assert (one.version, one.model) == (1, "not recorded")


def test_what_is_no_store_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RequestError, match=r"--store .*/x is not an embedding store: it has no st"):
        versions.listed(versions.VersionsConfig(str(tmp_path / "x")))
    with pytest.raises(RequestError, match="--store was empty"):
        versions.VersionsConfig("")
    assert objects.names(str(tmp_path)) == []
