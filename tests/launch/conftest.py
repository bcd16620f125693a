import pathlib
import shutil

import pytest

from launch.cli import main
from tests.launch import place


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A place with volumes and nodes; copied, never written to."""
    folder = tmp_path_factory.mktemp("furnished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        place.furnish(folder)
    return folder


@pytest.fixture(scope="session")
def embedded(furnished: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A place with a complete store and its export, besides; copied, never written to."""
    folder = tmp_path_factory.mktemp("embedded") / "place"
    shutil.copytree(furnished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*place.EMBED, "--output=store", "--quiet"]) == 0
        assert main(["export", "--store=store", "--output=tables", "--quiet"]) == 0
    return folder


@pytest.fixture
def home(
    furnished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """A copy of the furnished place as working directory."""
    folder = tmp_path / "home"
    shutil.copytree(furnished, folder)
    monkeypatch.chdir(folder)
    return folder
