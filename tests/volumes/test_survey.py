import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segclr.skeletons import thin
from tests.support import shared
from volumes.errors import RequestError
from volumes.geometry import Box, ChunkGrid
from volumes.survey import check_inside, outside_message, survey
from volumes.tables import resolve_nodes

BIG = 2**63 + 1
DOMAIN = Box((10, 10, 10), (30, 30, 30))
SIZE_NM = (10.0, 10.0, 40.0)


def table(path, positions, row_group_size=None):
    positions = np.array(positions, np.float64).reshape(-1, 3)
    columns = {c: positions[:, a] for a, c in enumerate(("x_nm", "y_nm", "z_nm"))}
    ids = pa.array([BIG] * len(positions), pa.uint64())
    pq.write_table(pa.table({"segment_id": ids} | columns), path, row_group_size=row_group_size)
    return resolve_nodes(str(path), None)


POSITIONS = [
    (105, 105, 405),
    (299.5, 105, 405),
    (106, 105, 405),
    (np.nan, 105, 405),
    (np.inf, 105, 405),
    (5, 105, 405),
    (105, 295, 1195),
]


def test_every_row_is_counted_by_where_it_lies(tmp_path):
    source = table(tmp_path / "n.parquet", POSITIONS)
    grid = ChunkGrid(DOMAIN, (16, 16, 16))
    found = survey(source, DOMAIN, SIZE_NM, grid)
    assert found.exact
    assert (found.rows, found.inside, found.outside, found.nan) == (7, 4, 2, 1)
    assert found.bounds_nm == ((5.0, 105.0, 405.0), (299.5, 295.0, 1195.0))
    expected = [grid.index_at(v) for v in ((10, 10, 10), (29, 10, 10), (10, 29, 29))]
    assert found.box_index.tolist() == sorted(expected)
    assert dict(zip(found.box_index.tolist(), found.box_nodes.tolist(), strict=True)) == dict(
        zip(expected, (2, 1, 1), strict=True)
    )
    assert found.boxes == 3
    check_inside(found, DOMAIN, SIZE_NM)
    assert survey(source, DOMAIN, SIZE_NM).boxes is None


def test_boxes_are_counted_alike_over_many_batches(tmp_path):
    rng = np.random.default_rng(0)
    positions = rng.uniform(50, 350, (70_000, 3))
    source = table(tmp_path / "n.parquet", positions, 7_000)
    domain = Box((0, 0, 0), (30, 30, 30))
    grid = ChunkGrid(domain, (4, 4, 4))
    found = survey(source, domain, (10.0, 10.0, 10.0), grid)
    voxels = np.floor(positions / 10 + 1 / 64).astype(np.int64)
    inside = voxels[(voxels < 30).all(axis=1)]
    index, nodes = np.unique(grid.indices_at(inside), return_counts=True)
    assert found.inside == len(inside) == nodes.sum()
    assert found.box_index.tolist() == index.tolist()
    assert found.box_nodes.tolist() == nodes.tolist()


def test_a_long_csv_is_judged_by_its_first_rows(tmp_path):
    path = tmp_path / "n.csv"
    lines = [f"{BIG},{x},100,400" for x in (0, 0, 100, 100, 100)]
    path.write_text("\n".join(["segment_id,x_nm,y_nm,z_nm", *lines]))
    source = resolve_nodes(str(path), None)
    found = survey(source, DOMAIN, SIZE_NM, ChunkGrid(DOMAIN, (8, 8, 8)), limit=3)
    assert (found.basis, found.exact, found.boxes) == ("first", False, None)
    assert (found.rows, found.inside, found.outside) == (3, 1, 2)
    check_inside(survey(source, DOMAIN, SIZE_NM, limit=2), DOMAIN, SIZE_NM)
    whole = survey(source, DOMAIN, SIZE_NM, limit=5)
    assert (whole.basis, whole.rows, whole.inside) == ("all", 5, 3)


def test_a_long_parquet_table_is_judged_by_its_statistics(tmp_path):
    source = table(tmp_path / "n.parquet", POSITIONS[:3] + [(5, 105, 405)] * 3, 3)
    found = survey(source, DOMAIN, SIZE_NM, limit=5)
    assert (found.basis, found.exact) == ("statistics", False)
    assert (found.rows, found.inside, found.outside) == (6, 3, 3)
    assert found.bounds_nm == ((5.0, 105.0, 405.0), (299.5, 105.0, 405.0))
    far = table(tmp_path / "far.parquet", [(5, 5, 5), (6, 6, 6), (300, 105, 405)], 2)
    none = survey(far, DOMAIN, SIZE_NM, limit=1)
    assert (none.basis, none.inside, none.outside) == ("statistics", 0, 3)
    with pytest.raises(RequestError, match="none of the 3 positions"):
        check_inside(none, DOMAIN, SIZE_NM)


def test_statistics_that_do_not_tell_are_not_used(tmp_path):
    source = table(tmp_path / "n.parquet", [(105, 105, 405), (np.nan, np.nan, np.nan)], 1)
    found = survey(source, DOMAIN, SIZE_NM, limit=1)
    assert (found.basis, found.rows, found.inside) == ("first", 1, 1)


def test_positions_outside_are_refused_with_both_extents(tmp_path):
    source = table(tmp_path / "n.parquet", [(1e7, 105, 405), (12345678.5, 2000, 405)])
    found = survey(source, DOMAIN, SIZE_NM)
    with pytest.raises(RequestError) as caught:
        check_inside(found, DOMAIN, SIZE_NM)
    assert str(caught.value) == (
        f"{tmp_path}/n.parquet: none of the 2 positions lies in the domain; they run from"
        " (10000000, 105, 405) to (12345678.5, 2000, 405) nm, the domain from (100, 100, 400) to"
        " (300, 300, 1200) nm (voxels [10:30, 10:30, 10:30) of (10, 10, 40) nm). Check that the"
        " nodes belong to this volume and are in nm in its frame"
    )


def test_positions_in_voxels_are_recognised(tmp_path):
    found = survey(table(tmp_path / "n.parquet", [(10, 11, 29.5), (29, 12, 13)]), DOMAIN, SIZE_NM)
    with pytest.raises(RequestError, match=r"look like voxels: multiply .* \(10, 10, 40\) nm$"):
        check_inside(found, DOMAIN, SIZE_NM)
    at_the_edge = survey(table(tmp_path / "m.parquet", [(10, 11, 30)]), DOMAIN, SIZE_NM)
    assert "look like voxels" not in outside_message(at_the_edge, DOMAIN, SIZE_NM)


def test_positions_that_are_all_nan_are_refused(tmp_path):
    found = survey(table(tmp_path / "n.parquet", [(np.nan, 1, 2)] * 3), DOMAIN, SIZE_NM)
    assert (found.nan, found.inside, found.bounds_nm) == (3, 0, None)
    with pytest.raises(RequestError, match="none of the 3 positions is a finite number"):
        check_inside(found, DOMAIN, SIZE_NM)


def test_real_skeletons_are_surveyed_as_they_will_be_thinned():
    folder = str(shared("data", "fib25", "skeletons"))
    domain = Box((0, 0, 0), (250, 250, 250))
    size_nm = (10.0, 10.0, 10.0)
    grid = ChunkGrid(domain, (128, 128, 128))
    found = survey(resolve_nodes(folder, None), domain, size_nm, grid)
    assert (found.basis, found.rows, found.inside) == ("all", 42_213, 42_213)
    assert found.boxes == 8
    assert found.box_nodes.sum() == 42_213
    thinned = survey(resolve_nodes(folder, 500.0), domain, size_nm, grid, thin)
    assert 209 <= thinned.rows == thinned.inside < 2_000
    with pytest.raises(ValueError, match="to thin to 500 nm, a survey needs the rule"):
        survey(resolve_nodes(folder, 500.0), domain, size_nm)


def test_skeletons_without_samples_and_foreign_grids_are_refused(tmp_path):
    (tmp_path / "5.swc").write_text("# nothing\n")
    source = resolve_nodes(str(tmp_path), None)
    with pytest.raises(RequestError, match=f"{tmp_path} holds no nodes"):
        survey(source, DOMAIN, SIZE_NM)
    with pytest.raises(ValueError, match="not the domain"):
        survey(source, DOMAIN, SIZE_NM, ChunkGrid(Box((0, 0, 0), (9, 9, 9)), (8, 8, 8)))
