"""The import direction: launch -> pipelines -> transforms -> {volumes, segclr}."""

import ast
import importlib
import pathlib
import pkgutil

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOMS = ("volumes", "segclr", "transforms", "pipelines", "launch")

MAY_IMPORT = {
    "volumes": {"volumes"},
    "segclr": {"segclr"},
    "transforms": {"transforms", "volumes", "segclr"},
    "pipelines": {"pipelines", "transforms", "volumes", "segclr"},
    "launch": {"launch", "pipelines", "transforms", "volumes", "segclr"},
}
# What a room may import of another room, module by module.
ALSO = {"segclr": {"volumes.geometry"}}

ONLY_IN = {
    "apache_beam": {"launch", "pipelines", "transforms"},
    "tensorstore": {"volumes"},
    "keras": {"segclr"},
    "tensorflow": {"segclr"},
}

# The doors through which something is imported late, each with the reason in its docstring.
DOORS = {"launch/cli.py", "segclr/runtime.py", "volumes/views/functions.py"}


def modules() -> list[pathlib.Path]:
    return sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their package"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_direction(room: str, names: set[str]) -> list[str]:
    wrong = []
    for name in names:
        top = name.split(".")[0]
        if top in ROOMS and top not in MAY_IMPORT[room]:
            if not any(name == m or name.startswith(m + ".") for m in ALSO.get(room, ())):
                wrong.append(name)
        if room not in ONLY_IN.get(top, {room}):
            wrong.append(name)
    return sorted(wrong)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_in_the_right_direction_and_at_its_top(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text())
    where = str(path.relative_to(ROOT))
    assert wrong_direction(where.split("/")[0], imported(tree)) == []
    inside = [
        f"{where}:{node.lineno}"
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inside == []
    if "importlib.import_module" in path.read_text():
        assert where in DOORS


def test_the_check_itself_finds_a_wrong_direction() -> None:
    tree = ast.parse("import tensorstore\nfrom launch import cli\nfrom volumes import geometry\n")
    assert wrong_direction("volumes", imported(tree)) == ["launch.cli"]
    assert wrong_direction("segclr", imported(tree)) == ["launch.cli", "tensorstore"]
    assert wrong_direction("segclr", {"volumes.geometry.Box"}) == []
    assert wrong_direction("segclr", {"volumes.store"}) == ["volumes.store"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_imports_and_states_what_it_is(room: str) -> None:
    package = importlib.import_module(room)
    names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{room}.")]
    # ``__main__`` runs the command line when it is imported; test_cli starts it.
    loaded = [importlib.import_module(n) for n in names if not n.endswith("__main__")]
    assert loaded
    assert [m.__name__ for m in [package, *loaded] if not m.__doc__] == []


def test_public_names_of_packages_exist() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("__init__.py"):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            package = importlib.import_module(name)
            missing = [n for n in getattr(package, "__all__", []) if not hasattr(package, n)]
            assert missing == [], name
