import csv
import pathlib

import h5py
import numpy as np
import pytest
from PIL import Image

from pipelines.demo.files import write_kinds_csv, write_sections, write_segmentation_h5
from pipelines.demo.phantom import SMALL, Phantom, PhantomConfig, make_phantom


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(SMALL)


def test_sections_have_rows_y_and_columns_x(phantom: Phantom, tmp_path: pathlib.Path) -> None:
    assert write_sections(phantom, tmp_path / "em") == 64
    names = sorted(path.name for path in (tmp_path / "em").iterdir())
    assert names == [f"section.{z:04d}.png" for z in range(64)]
    with Image.open(tmp_path / "em" / "section.0005.png") as section:
        pixels = np.array(section)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, phantom.image[:, :, 5].T)


def test_segmentation_is_zyx_compressed_and_exact(phantom: Phantom, tmp_path: pathlib.Path) -> None:
    write_segmentation_h5(phantom, tmp_path / "labels.h5")
    with h5py.File(tmp_path / "labels.h5") as file:
        stack = file["stack"]
        assert (stack.dtype, stack.compression) == (np.uint64, "gzip")
        assert np.array_equal(stack[:], phantom.labels.transpose(2, 1, 0))


def test_sections_of_an_uneven_volume(tmp_path: pathlib.Path) -> None:
    made = make_phantom(PhantomConfig(shape=(40, 36, 70), neurites=4))
    assert write_sections(made, tmp_path) == 70
    with Image.open(tmp_path / "section.0069.png") as section:
        assert section.size == (40, 36)
    write_segmentation_h5(made, tmp_path / "labels.h5")
    with h5py.File(tmp_path / "labels.h5") as file:
        assert np.array_equal(file["stack"][69], made.labels[:, :, 69].T)


def test_kinds_table_is_exact(phantom: Phantom, tmp_path: pathlib.Path) -> None:
    write_kinds_csv(phantom, tmp_path / "kinds.csv")
    with open(tmp_path / "kinds.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["segment_id", "kind"]
    assert tuple((int(i), name) for i, name in rows[1:]) == phantom.kinds
