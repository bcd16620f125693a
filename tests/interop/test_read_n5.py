"""N5 datasets that TensorStore writes are read here, voxel for voxel, whatever compresses them."""

import json

import numpy as np
import pytest
import tensorstore as ts

from tests.interop.oracle import SIZE, image, labels, read_by_us

SHAPE = (45, 38, 21)
ORIGIN = (-3, 40, 7)

COMPRESSIONS = {
    "raw": {"type": "raw"},
    "gzip": {"type": "gzip", "level": 1},
    "zlib": {"type": "gzip", "level": 1, "useZlib": True},
    "bzip2": {"type": "bzip2"},
    "xz": {"type": "xz"},
    "blosc": {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
    "zstd": {"type": "zstd", "level": 1},
}


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
@pytest.mark.parametrize("compression", list(COMPRESSIONS))
def test_n5(tmp_path, compression, dtype):
    kind = "image" if dtype == "uint8" else "segmentation"
    array = image(SHAPE) if kind == "image" else labels(SHAPE)
    metadata = {
        "dimensions": list(SHAPE),
        "blockSize": [16, 8, 10],
        "dataType": dtype,
        "compression": COMPRESSIONS[compression],
    }
    place = {"driver": "file", "path": f"{tmp_path}/v/"}
    spec = {"driver": "n5", "kvstore": place, "metadata": metadata, "create": True}
    ts.open(spec).result()[...] = array
    stated = {
        "axes": ["x", "y", "z"],
        "resolution": list(SIZE),
        "units": ["nm"] * 3,
        "offset": [o * s for o, s in zip(ORIGIN, SIZE, strict=True)],
    }
    file = tmp_path / "v" / "attributes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | stated))
    found, size, origin = read_by_us(tmp_path / "v", kind)
    assert (size, origin, found.dtype) == (SIZE, ORIGIN, array.dtype)
    np.testing.assert_array_equal(found, array)
