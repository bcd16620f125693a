import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.volumes import sample_volumes as made
from tests.volumes.view_cases import DATA, ORIGIN, SHAPE, a_zarr, made_of, resolved
from volumes.geometry import ChunkGrid
from volumes.opening import open_volume
from volumes.reading import read_box


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return a_zarr(tmp_path_factory.mktemp("views") / "em")


def _centre_weights(v, cell, low, high):
    """The two cells between whose centres a voxel lies, and the weight of the second."""
    u = (v + 0.5) / cell - 0.5
    i = int(np.floor(u))
    first, last = low // cell, (high - 1) // cell
    return min(max(i, first), last), min(max(i + 1, first), last), u - i


def _clahe(section, start, cell, clip):
    """What CLAHE makes of a section, voxel by voxel."""

    def table(i, j):
        low = [max(n * cell - s, 0) for n, s in zip((i, j), start, strict=True)]
        high = [(n + 1) * cell - s for n, s in zip((i, j), start, strict=True)]
        voxels = section[low[0] : high[0], low[1] : high[1]]
        counts = np.bincount(voxels.reshape(-1), minlength=256).astype(float)
        most = max(1.0, clip * voxels.size)
        above = np.maximum(counts - most, 0).sum()
        return np.cumsum(np.minimum(counts, most) + above / 256) * 255 / voxels.size

    tables = {}
    out = np.zeros(section.shape)
    for x, y in np.ndindex(section.shape):
        ends = [s + n for s, n in zip(start, section.shape, strict=True)]
        a, b, u = _centre_weights(x + start[0], cell, start[0], ends[0])
        c, d, v = _centre_weights(y + start[1], cell, start[1], ends[1])
        for i, p in ((a, 1 - u), (b, u)):
            for j, q in ((c, 1 - v), (d, v)):
                if (i, j) not in tables:
                    tables[i, j] = table(i, j)
                out[x, y] += p * q * tables[i, j][section[x, y]]
    return out


@settings(deadline=None, max_examples=10)
@given(cell=st.integers(2, 9), clip=st.sampled_from([0.01, 0.2, 1.0]))
def test_clahe_is_what_it_says_and_has_no_seams(image, cell, clip):
    step = {"op": "contrast", "method": "clahe", "cell": cell, "clip": clip}
    found = made_of(image, step).astype(float)
    for k in (0, 7):
        expected = _clahe(DATA[:, :, k], ORIGIN[:2], cell, clip)
        assert np.abs(found[:, :, k] - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    "step",
    [
        {"op": "contrast", "method": "clahe", "cell": 7},
        {"op": "contrast", "method": "percentile", "low": 5, "high": 90, "cell": 5},
        {"op": "contrast", "method": "percentile", "low": 0, "high": 99, "cell": 6, "plane": "yz"},
        {"op": "contrast", "low": 20, "high": 200},
    ],
)
def test_contrast_is_the_same_however_it_is_read(tmp_path, step):
    data = made.noise((60, 50, 4))
    spec = resolved(a_zarr(tmp_path / "v", data), step)
    volume = open_volume(spec)
    whole = read_box(volume, spec.domain).array
    assert (spec.dtype, whole.shape) == ("uint8", data.shape)
    assert len(np.unique(whole)) > 50
    for grid in (ChunkGrid(spec.domain, (13, 9, 3)), ChunkGrid(spec.domain, (31, 50, 1))):
        for i in range(grid.size):
            box = grid.box(i)
            found = read_box(volume, box).array
            np.testing.assert_array_equal(found, whole[box.slices(spec.domain)])
    if "low" in step and "method" not in step:
        span = np.clip((data.astype(float) - 20) / 180, 0, 1)
        np.testing.assert_array_equal(whole, np.floor(span * 255 + 0.5))


def test_percentile_windows_of_one_cell_are_the_sections_own(image):
    step = {"op": "contrast", "method": "percentile", "low": 2, "high": 98, "cell": 1000}
    found = made_of(image, {"op": "translate", "to": [0, 0, 0]}, step)
    for k in range(SHAPE[2]):
        low, high = np.percentile(DATA[:, :, k], [2, 98])
        span = np.clip((DATA[:, :, k] - low) / (high - low), 0, 1)
        np.testing.assert_array_equal(found[:, :, k], np.floor(span * 255 + 0.5))
