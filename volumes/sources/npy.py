"""``.npy`` files: what their headers say. They are never unpickled."""

from typing import Any

import numpy as np
import numpy.typing as npt

from volumes.errors import RequestError
from volumes.sources.base import check_dtype
from volumes.sources.flat import FlatArray

MAGIC = b"\x93NUMPY"
"""The first bytes of every ``.npy`` file."""


def describe_npy(path: str) -> FlatArray:
    """The array of a ``.npy`` file, given its absolute path.

    Raises:
        RequestError: The file is no whole NPY file, or holds Python objects.
    """
    try:
        array = _mapped(path)
    except ValueError as e:
        if "Python objects" in str(e):
            check_dtype(np.dtype(object), "image", path)
        raise RequestError(f"{path} is not a whole NPY file: {e}") from e
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror or e}") from e
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    return FlatArray(array.offset, array.dtype.str, array.shape, order="F" if turned else "C")


def _mapped(path: str) -> "np.memmap[Any, np.dtype[Any]]":
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap):
        raise ValueError("it is an archive of arrays")
    return array
