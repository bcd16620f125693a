"""Embedding what views show equals embedding what they show, written out."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from pipelines import embed
from tests.pipelines import embed_case
from tests.pipelines.embed_case import Case, make_volumes, rows_by_node, run
from volumes.errors import RequestError
from volumes.views.functions import imported

SOURCE = """
import numpy as np


def gamma(voxels, voxel_size_nm, parameters):
    smooth = (voxels[:-2] // 3 + voxels[1:-1] // 3 + voxels[2:] // 3).astype(np.uint8)
    return np.maximum(smooth, parameters["least"]).astype(np.uint8)
"""
PACKAGE = "users_filters_of_embed"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return embed_case.make_case(tmp_path_factory.mktemp("views"))


@pytest.fixture
def package(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "site" / PACKAGE).mkdir(parents=True)
    (tmp_path / "site" / PACKAGE / "__init__.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    imported.cache_clear()
    return PACKAGE


def view(of: pathlib.Path, *steps: dict) -> str:
    head = {"format": "segclr-beam-view", "format_version": 1}
    return json.dumps(head | {"of": str(of), "steps": list(steps)})


def views(case: Case, package: str) -> dict[str, str]:
    """The grey values smoothed by a user's function, and one id instead of another."""
    call = {"op": "function", "function": f"{package}:gamma", "dtype": "uint8"}
    call |= {"margin_vx": [1, 0, 0], "parameters": {"least": 9}}
    new = {str(embed_case.IDS[3]): str(embed_case.IDS[2])}
    return {
        "image": view(case.folder / "image", call),
        "segmentation": view(case.folder / "labels", {"op": "relabel", "map": new}),
    }


def written_out(case: Case, folder: pathlib.Path) -> dict[str, str]:
    """The same by NumPy, as volumes."""
    thirds = np.pad(case.image // 3, ((1, 1), (0, 0), (0, 0)))
    image = np.maximum(thirds[:-2] + thirds[1:-1] + thirds[2:], 9)
    ids = np.where(case.labels == embed_case.IDS[3], embed_case.IDS[2], case.labels)
    made = make_volumes(folder, image.astype(np.uint8), ids)
    return {"image": str(made / "image"), "segmentation": str(made / "labels")}


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_views_are_embedded_as_what_they_show(case, package, tmp_path, cache_mb) -> None:
    how = {"nodes": "auto:60", "cache_mb": cache_mb}
    found = []
    for name, volumes in (
        ("views", views(case, package) | {"allow_functions": (package,)}),
        ("plain", written_out(case, tmp_path / "made")),
    ):
        plan = embed.plan(case.config(str(tmp_path / name), **volumes, **how))
        run(plan)
        assert embed.finish(plan).failed_boxes == 0
        found.append(rows_by_node(str(tmp_path / name)))
    assert found[0]
    assert found[0] == found[1]
    (manifest,) = (tmp_path / "views/generations").glob("*/manifest.json")
    assert f"{package}:gamma" in manifest.read_text()


def test_a_function_of_a_package_that_is_not_listed_is_refused(case, package, tmp_path) -> None:
    config = case.config(str(tmp_path / "store"), **views(case, package))
    with pytest.raises(RequestError, match=f"--allow-functions {package}"):
        embed.plan(config)
    other = dataclasses.replace(config, allow_functions=("numpy",))
    with pytest.raises(RequestError, match=f"--allow-functions {package}"):
        embed.plan(other)
    assert not (tmp_path / "store").exists()
