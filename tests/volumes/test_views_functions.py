import json
import subprocess
import sys

import numpy as np
import pytest

from tests.volumes.view_cases import DATA, SIZE, a_zarr, read, resolved, view
from volumes.errors import DataError, RequestError, RunError
from volumes.geometry import Box, ChunkGrid
from volumes.opening import open_volume, resolve_volume
from volumes.reading import read_box
from volumes.spec import VolumeSpec
from volumes.views.functions import imported
from volumes.views.tree import functions_in

SOURCE = '''
import pathlib
import numpy as np

pathlib.Path(__file__).with_name("imported").touch()
NOT_A_FUNCTION = 3


def blurred(voxels, voxel_size_nm, parameters):
    """The mean of 3 along x, times a factor."""
    assert voxel_size_nm == (8.0, 8.0, 40.0)
    sums = voxels[:-2].astype("uint16") + voxels[1:-1] + voxels[2:]
    return (sums * parameters["factor"]).astype("uint16")


def failing(voxels, voxel_size_nm, parameters):
    return voxels / voxels[1:0].max()


def too_small(voxels, voxel_size_nm, parameters):
    return voxels[1:]
'''


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """A package of the user's, with a name that no other test imports."""
    name = f"users_{abs(hash(request.node.name))}"
    directory = tmp_path / "site" / name
    (directory / "inner").mkdir(parents=True)
    (directory / "__init__.py").write_text("")
    (directory / "inner" / "__init__.py").write_text("")
    (directory / "inner" / "filters.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    imported.cache_clear()
    return directory


def step(package, function="blurred", **more):
    call = {"op": "function", "function": f"{package.name}.inner.filters:{function}"}
    return call | {"dtype": "uint16", "margin_vx": [1, 0, 0], "parameters": {"factor": 2}} | more


def ran(package):
    return (package / "inner" / "imported").exists()


def test_a_function_of_a_listed_package_runs_the_same_however_it_is_read(tmp_path, package):
    path = a_zarr(tmp_path / "v")
    spec = resolved(path, step(package), allow=(package.name,))
    padded = np.pad(DATA.astype("uint16"), ((1, 1), (0, 0), (0, 0)))
    expected = 2 * (padded[:-2] + padded[1:-1] + padded[2:])
    assert (spec.dtype, spec.kind) == ("uint16", "image")
    volume = open_volume(spec)
    np.testing.assert_array_equal(read(spec).array, expected)
    grid = ChunkGrid(spec.domain, (7, 5, 10))
    for i in range(grid.size):
        box = grid.box(i)
        np.testing.assert_array_equal(
            read_box(volume, box).array, expected[box.slices(spec.domain)]
        )
    turned = resolved(
        path,
        {"op": "transpose", "axes": "yxz"},
        step(package, margin_vx={"x": 1}),
        {"op": "transpose", "axes": "yxz"},
        allow=(f"{package.name}.inner",),
    )
    sideways = np.pad(DATA.astype("uint16"), ((0, 0), (1, 1), (0, 0)))
    np.testing.assert_array_equal(
        read(turned).array, 2 * (sideways[:, :-2] + sideways[:, 1:-1] + sideways[:, 2:])
    )


@pytest.mark.parametrize("listed", [(), ("other",), ("users",), ("inner",)])
def test_a_function_that_is_not_listed_is_refused_and_not_imported(tmp_path, package, listed):
    path = a_zarr(tmp_path / "v")
    with pytest.raises(RequestError) as error:
        resolved(path, step(package), allow=listed)
    text = str(error.value)
    assert f"runs the function {package.name}.inner.filters:blurred" in text
    assert f"add --allow-functions {package.name}" in text
    assert not ran(package)
    hidden = step(package) | {"source": {"sha256": "0", "version": ""}}
    with pytest.raises(RequestError, match="has no member 'source'"):
        resolved(path, hidden, allow=(package.name,))
    nested = json.loads(view(path, step(package)))
    with pytest.raises(RequestError, match="--allow-functions"):
        resolved(path, {"op": "mask", "by": nested}, allow=listed)
    assert not ran(package)


def test_the_plan_keeps_digest_and_names_and_another_source_is_not_run(tmp_path, package):
    path = a_zarr(tmp_path / "v")
    spec = resolved(path, step(package), allow=(package.name,))
    assert functions_in(spec) == (f"{package.name}.inner.filters:blurred",)
    assert functions_in(resolved(path)) == ()
    kept = json.loads(spec.tensorstore)["steps"][0]["source"]
    assert len(kept["sha256"]) == 64
    assert kept["version"] == ""
    assert VolumeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    file = package / "inner" / "filters.py"
    file.write_text(SOURCE.replace("factor", "divisor"))
    imported.cache_clear()
    with pytest.raises(RunError, match=r"is not what was planned: its source file had the digest"):
        open_volume(spec)
    other = resolved(path, step(package), allow=(package.name,))
    assert other.where() != spec.where()
    file.unlink()
    imported.cache_clear()
    with pytest.raises(RunError, match=r"there is no module users_\d+\.inner\.filters here"):
        open_volume(spec)


def test_another_process_runs_it_where_it_is_installed(tmp_path, package):
    spec = resolved(a_zarr(tmp_path / "v"), step(package), allow=(package.name,))
    (package / "inner" / "imported").unlink()
    program = (
        "import json, sys\n"
        "from volumes import VolumeSpec, open_volume\n"
        "spec = VolumeSpec.from_json(json.load(sys.stdin))\n"
        "print(int(open_volume(spec).store[6, 0, 8].read().result()))\n"
    )
    text = json.dumps(spec.to_json())
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{package.parent}:{':'.join(p for p in sys.path if p)}"},
    )
    assert int(done.stdout) == 2 * int(DATA[0:3, 6, 1].astype(int).sum())
    assert ran(package)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"function": "NAME.absent:f"}, r"there is no module users_\d+\.absent with a source file"),
        ({"function": "NAME.inner.filters:f"}, r"filters has no function f; correct the view"),
        ({"function": "NAME.inner.filters:NOT_A_FUNCTION"}, "has no function NOT_A_FUNCTION"),
        ({"function": "NAME.inner.filters"}, "a function is named package.module:name"),
        ({"margin_vx": [-1, 0, 0]}, r"has margin_vx \[-1, 0, 0\]; x, y and z have one each"),
        ({"margin_vx": {"w": 1}}, r"has margin_vx \[0, 0, 0\] and of w; x, y and z"),
        ({"parameters": 3}, "has parameters 3; an object is needed"),
    ],
)
def test_a_bad_function_is_told(tmp_path, package, more, message):
    more = {
        k: v.replace("NAME", package.name) if isinstance(v, str) else v for k, v in more.items()
    }
    with pytest.raises(RequestError, match=message):
        resolved(a_zarr(tmp_path / "v"), step(package) | more, allow=(package.name,))


def test_a_function_that_fails_names_its_box(tmp_path, package):
    path = a_zarr(tmp_path / "v")
    failing = resolved(path, step(package, "failing"), allow=(package.name,))
    with pytest.raises(
        DataError, match=r"filters:failing failed on voxels x 5:25, .*: ValueError: ze"
    ):
        read(failing)
    small = resolved(path, step(package, "too_small", dtype="uint8"), allow=(package.name,))
    wanted = (
        r"too_small returned uint8 \(21, 15, 12\) for voxels x 5:25.*\(20, 15, 12\)|too_small retu"
    )
    with pytest.raises(RunError, match=wanted):
        read(small)


def test_a_module_that_does_not_import_is_told(tmp_path, package):
    (package / "inner" / "filters.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(RequestError, match="cannot be imported: ModuleNotFoundError: No module"):
        resolved(a_zarr(tmp_path / "v"), step(package), allow=(package.name,))


def test_a_function_by_a_view_file(tmp_path, package):
    file = tmp_path / "view.json"
    file.write_text(view(a_zarr(tmp_path / "v"), step(package)))
    with pytest.raises(RequestError, match="step 1 .function.: runs the function"):
        resolve_volume(f"@{file}", kind=None)
    spec = resolve_volume(f"@{file}", kind=None, allow_functions=(package.name,))
    assert spec.voxel_size_nm == SIZE
    assert read(spec, Box((5, -6, 7), (6, -5, 8))).array.shape == (1, 1, 1)
