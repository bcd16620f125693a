import hashlib
import json
import pathlib

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import export
from tests.volumes.test_store import Generation, all_sealed, commit, filled
from transforms.export import MANIFEST
from volumes import store
from volumes.errors import RequestError, RunError


@pytest.fixture
def generation(tmp_path: pathlib.Path) -> Generation:
    generation = Generation(str(tmp_path / "store"), "1", 4, (8, 8, 8), (2, 2, 2))
    filled(generation)
    store.publish(generation, all_sealed(generation), {"run": "r"})
    return generation


def run(generation: Generation, output: pathlib.Path) -> dict:
    plan = export.plan(export.ExportConfig(generation.store, str(output)))
    with beam.Pipeline(runner="FnApiRunner") as root:
        export.build(root, plan)
    return export.finish(plan)


def digests(folder: pathlib.Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_a_file_a_partition_with_the_rows_of_the_store(generation, tmp_path) -> None:
    body = run(generation, tmp_path / "out")
    assert [f["rows"] for f in body["files"]] == [705, 3]
    assert body["rows"] == 708
    found = digests(tmp_path / "out")
    assert {f["name"]: f["sha256"] for f in body["files"]} == {
        n: d for n, d in found.items() if n != MANIFEST
    }
    table = pa.concat_tables([pq.read_table(tmp_path / "out" / f["name"]) for f in body["files"]])
    types = [str(f.type) for f in table.schema]
    assert table.schema.names == [
        *("segment_id", "node_id", "x_nm", "y_nm", "z_nm", "embedding", "mask_voxels")
    ]
    assert types[:5] == ["uint64", "uint64", "double", "double", "double"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 4)
    assert types[6] == "uint32"
    rows = [
        r
        for name, v in export.plan(
            export.ExportConfig(generation.store, str(tmp_path / "new"))
        ).store.partitions
        for r in _all(generation, name, v)
    ]
    assert table["segment_id"].to_pylist() == [int(i) for r in rows for i in r.segment_id]
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert vectors.tobytes() == np.concatenate([r.embedding for r in rows]).tobytes()
    assert table["z_nm"].to_pylist() == [float(p[2]) for r in rows for p in r.position_nm]


def _all(generation, name, version):
    return store_of(generation).rows_of(name, version)


def store_of(generation):
    return export.plan(export.ExportConfig(generation.store, "unused")).store


def test_equal_exports_are_equal_files(generation, tmp_path) -> None:
    run(generation, tmp_path / "a")
    run(generation, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 3


def test_the_same_export_again_has_nothing_to_do(generation, tmp_path) -> None:
    run(generation, tmp_path / "out")
    assert export.plan(export.ExportConfig(generation.store, str(tmp_path / "out"))).complete


def test_an_interrupted_export_goes_on(generation, tmp_path) -> None:
    run(generation, tmp_path / "whole")
    run(generation, tmp_path / "out")
    (tmp_path / "out" / MANIFEST).unlink()
    sorted((tmp_path / "out").glob("*.parquet"))[0].unlink()
    run(generation, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_an_output_with_something_else_is_refused(generation, tmp_path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    with pytest.raises(RequestError, match=r"is not empty \(it has thesis.tex\)"):
        export.plan(export.ExportConfig(generation.store, str(tmp_path / "foreign")))
    run(generation, tmp_path / "out")
    before = digests(tmp_path / "out")
    commit(generation, "0_1_0", 9)
    store.publish(generation, all_sealed(generation), {"run": "s"})
    with pytest.raises(RequestError, match="holds the export of version 1 of"):
        export.plan(export.ExportConfig(generation.store, str(tmp_path / "out")))
    assert digests(tmp_path / "out") == before
    older = export.ExportConfig(generation.store, str(tmp_path / "out"), version=1)
    assert export.plan(older).complete


def test_a_lost_file_of_an_export_is_told(generation, tmp_path) -> None:
    run(generation, tmp_path / "out")
    lost = sorted((tmp_path / "out").glob("*.parquet"))[0]
    lost.unlink()
    plan = export.plan(export.ExportConfig(generation.store, str(tmp_path / "out")))
    with pytest.raises(RunError, match=f"lacks {lost.name}"):
        export.finish(plan)


def test_the_manifest_is_a_document(generation, tmp_path) -> None:
    run(generation, tmp_path / "out")
    body = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert (body["format"], body["format_version"], body["version"]) == ("segclr-export", 1, 1)


def test_another_format_is_refused(generation) -> None:
    with pytest.raises(RequestError, match="--format csv: only parquet"):
        export.ExportConfig(generation.store, "out", "csv")
