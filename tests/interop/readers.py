"""Volumes as other software reads them: zarr-python, ome-zarr-models, TensorStore.

CloudVolume reads in a process of its own, see ``cloudvolume_side``. Each function takes the folder
of a volume and gives arrays XYZ; nothing of this project's own reading is used.
"""

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts
import zarr
from ome_zarr_models.v05 import Image

Array = npt.NDArray[Any]


def zarr_python(folder: pathlib.Path) -> tuple[Array, dict[str, Any]]:
    """A Zarr array of either version, by its dimension names, and its attributes."""
    array = zarr.open_array(folder, mode="r")
    attributes = dict(array.attrs)
    stated: Any = attributes.get("_ARRAY_DIMENSIONS")
    if array.metadata.zarr_format == 3:
        stated = array.metadata.dimension_names
    return _xyz(np.asarray(array[...]), stated), attributes


def ome_zarr(folder: pathlib.Path) -> list[tuple[Array, tuple[float, ...], tuple[float, ...]]]:
    """Levels of an OME-Zarr 0.5 group that passes the validator: array, scale, translation."""
    group = zarr.open_group(folder, mode="r")
    image = Image.from_zarr(group)
    assert image.ome_attributes.version == "0.5"
    (multiscale,) = image.ome_attributes.multiscales
    names = [a.name for a in multiscale.axes]
    assert {a.unit for a in multiscale.axes} == {"nanometer"}
    levels = []
    for dataset in multiscale.datasets:
        scale, translation = dataset.coordinateTransformations
        array: Any = group[dataset.path]
        assert list(array.metadata.dimension_names) == names
        by_axis = [
            tuple(float(values[names.index(a)]) for a in "xyz")
            for values in (scale.scale, translation.translation)
        ]
        levels.append((_xyz(np.asarray(array[...]), names), by_axis[0], by_axis[1]))
    return levels


def tensorstore(folder: pathlib.Path, driver: str, scale_index: int | None = None) -> Array:
    """An array as TensorStore opens it, by the driver's name alone."""
    spec: dict[str, Any] = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/"}}
    if scale_index is not None:
        spec["scale_index"] = scale_index
    store = ts.open(spec, open=True).result()
    read = np.asarray(store.read().result())
    if driver == "neuroglancer_precomputed":
        assert store.domain.labels[:3] == ("x", "y", "z")
        return read[..., 0]
    return _xyz(read, [label or None for label in store.domain.labels])


def _xyz(array: Array, names: Any) -> Array:
    """The array turned by the names of its dimensions; none but x, y and z are taken."""
    if names is None or not any(names):
        return array
    assert sorted(names) == ["x", "y", "z"]
    return array.transpose([list(names).index(a) for a in "xyz"])
