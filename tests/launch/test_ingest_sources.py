"""Ingest of each kind of source through the command line."""

import json

import h5py
import numpy as np
import pytest
import tifffile

from launch.cli import main
from tests.volumes.section_files import write_sections
from volumes.opening import open_volume, resolve_volume
from volumes.reading import read_box


def _read(path, kind):
    spec = resolve_volume(str(path), kind=kind)
    return spec, read_box(open_volume(spec), spec.domain, missing="error").array


def _ingest(*words):
    return main(["ingest", "--quiet", "--json", *words])


@pytest.fixture
def em():
    """An image, XYZ."""
    return np.random.default_rng(4).integers(1, 255, (70, 40, 9), np.uint8)


def test_a_tiff_stack_of_imagej(tmp_path, em, capsys):
    tifffile.imwrite(
        tmp_path / "em.tif",
        em.T,
        imagej=True,
        resolution=(1 / 0.009, 1 / 0.004),
        metadata={"spacing": 0.04, "unit": "um", "axes": "ZYX"},
    )
    words = [f"--source={tmp_path}/em.tif", "--kind=image", f"--output={tmp_path}/em.zarr"]
    assert _ingest(*words) == 0
    spec, found = _read(tmp_path / "em.zarr", "image")
    assert spec.voxel_size_nm == (9.0, 4.0, 40.0)
    assert spec.origin_vx == (0, 0, 0)
    np.testing.assert_array_equal(found, em)
    assert _ingest(*words) == 0
    first, again = (json.loads(x) for x in capsys.readouterr().out.splitlines() if x[:1] == "{")
    assert (first["units_written"], again["units_written"]) == (first["units"], 0)
    assert again["digest"] == first["digest"]


def test_a_file_of_cremis_layout(tmp_path, em):
    labels = np.random.default_rng(5).integers(0, 2**63, (50, 30, 7)).astype(np.uint64)
    with h5py.File(tmp_path / "cremi.h5", "w") as file:
        raw = file.create_dataset("volumes/raw", data=em.T)
        raw.attrs["resolution"] = [40.0, 4.0, 4.0]
        ids = file.create_dataset("volumes/labels/neuron_ids", data=labels.T, chunks=(3, 16, 16))
        ids.attrs["resolution"] = [40.0, 4.0, 4.0]
        ids.attrs["offset"] = [40.0, 20.0, 40.0]
    source = f"--source={tmp_path}/cremi.h5"
    assert _ingest(
        source, "--dataset=volumes/raw", "--kind=image", f"--output={tmp_path}/em"
    ) == 0  # fmt: skip
    assert _ingest(
        source, "--dataset=volumes/labels/neuron_ids", "--kind=segmentation",
        f"--output={tmp_path}/seg",
    ) == 0  # fmt: skip
    image, found_image = _read(tmp_path / "em", "image")
    ids_spec, found = _read(tmp_path / "seg", "segmentation")
    np.testing.assert_array_equal(found_image, em)
    np.testing.assert_array_equal(found, labels)
    assert image.voxel_size_nm == ids_spec.voxel_size_nm == (4.0, 4.0, 40.0)
    assert (image.origin_vx, ids_spec.origin_vx) == ((0, 0, 0), (10, 5, 1))


def test_missing_sections_are_in_the_volumes_records(tmp_path, em, capsys):
    paths = write_sections(tmp_path / "em", em, name="em.{}.tif")
    for z in (3, 4, 6):
        paths[z].unlink()
    words = [
        f"--source={tmp_path}/em", "--kind=image", "--voxel-size=4,4,40",
        "--missing-sections=nearest", f"--output={tmp_path}/out",
    ]  # fmt: skip
    assert _ingest(*words) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["voxels_missing"] == 3 * 70 * 40
    _, found = _read(tmp_path / "out", "image")
    expected = em.copy()
    expected[:, :, [3, 4, 6]] = em[:, :, [2, 5, 5]]
    np.testing.assert_array_equal(found, expected)
    manifest = json.loads((tmp_path / "out/segclr-beam/ingest.json").read_bytes())
    missing = manifest["source"]["missing"]
    assert (missing["policy"], missing["count"]) == ("nearest", 3)
    assert missing["ranges"] == [[4, 5], [7, 7]]
    assert main(["ingest", "--quiet", *words[:3], "--missing-sections=blank", words[4]]) == 2
    told = capsys.readouterr().err
    assert "missing_sections: nearest there, blank asked" in told


def test_a_label_that_a_narrower_dtype_does_not_hold(tmp_path, capsys):
    labels = np.zeros((20, 10, 3), np.uint64)
    labels[4, 5, 2] = 70_000
    np.save(tmp_path / "ids.npy", labels)
    words = [
        f"--source={tmp_path}/ids.npy", "--axes=xyz", "--kind=segmentation", "--voxel-size=4,4,40"
    ]  # fmt: skip
    assert _ingest(*words, "--dtype=uint16", f"--output={tmp_path}/a") == 1
    told = capsys.readouterr().err
    assert "ids.npy holds 70000 at voxel (4, 5, 2) (x, y, z)" in told
    assert "Traceback" not in told
    assert _ingest(*words, "--dtype=uint32", f"--output={tmp_path}/b") == 0
    spec, found = _read(tmp_path / "b", "segmentation")
    assert spec.dtype == "uint32"
    np.testing.assert_array_equal(found, labels)
