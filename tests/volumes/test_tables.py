import dataclasses
import functools
import http.server
import json
import pickle
import shutil
import threading

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from tests.support import shared
from volumes import objects, table_files
from volumes.errors import RequestError, RunError
from volumes.tables import (
    NodeSource,
    Piece,
    pieces,
    read_piece,
    read_skeletons,
    resolve_nodes,
)

BIG = 2**63 + 2**53 + 1
HEADER = "segment_id,x_nm,y_nm,z_nm"


def rows_of(source):
    """Every row: (segment_id, node_id, position), ids as exact integers."""
    out = []
    for piece in pieces(source):
        for raw in read_piece(source, piece):
            assert (raw.segment_id.dtype, raw.node_id.dtype) == (np.uint64, np.uint64)
            assert raw.position_nm.dtype == np.float64
            assert 0 < len(raw.segment_id) <= table_files.BATCH_ROWS
            out += zip(
                raw.segment_id.tolist(), raw.node_id.tolist(), raw.position_nm.tolist(), strict=True
            )
    return out


def csv_file(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def parquet_file(path, row_group_size=None, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def xyz(n):
    return {c: np.arange(n, dtype=np.float64) for c in ("x_nm", "y_nm", "z_nm")}


def resolve_and_read(nodes):
    return rows_of(resolve_nodes(str(nodes), None))


def refusal(nodes, spacing_nm=None):
    with pytest.raises(RequestError) as caught:
        resolve_nodes(str(nodes), spacing_nm)
    return str(caught.value)


def refusal_when_read(nodes):
    with pytest.raises(RequestError) as caught:
        resolve_and_read(nodes)
    return str(caught.value)


class TestCsv:
    def test_ids_positions_and_row_numbers_are_exact(self, tmp_path):
        nodes = csv_file(
            tmp_path / "nodes.csv",
            f"{HEADER}\n{BIG},1.5,-2,3e3\n{2**64 - 1},,nan,inf\n0,0.1,0,0\n",
        )
        source = resolve_nodes(nodes, None)
        assert (source.kind, source.files, source.rows) == ("csv", 1, None)
        rows = rows_of(source)
        assert [r[:2] for r in rows] == [(BIG, 0), (2**64 - 1, 1), (0, 2)]
        assert rows[0][2] == [1.5, -2.0, 3000.0]
        assert np.isnan(rows[1][2][:2]).all()
        assert rows[1][2][2] == np.inf
        assert rows[2][2] == [0.1, 0.0, 0.0]

    def test_columns_come_in_any_order_and_others_are_ignored(self, tmp_path):
        text = (
            '\ufeffnote,z_nm,node_id,"x_nm",segment_id,y_nm\r\n"a, ""b""\r\nc",3,8,1,5,2\r\n'
            "\r\n,30,9,10,6,20\r\n"
        )
        rows = rows_of(resolve_nodes(csv_file(tmp_path / "n.CSV", text), None))
        assert rows == [(5, 8, [1.0, 2.0, 3.0]), (6, 9, [10.0, 20.0, 30.0])]

    def test_a_column_that_is_not_read_may_change_its_type_midway(self, tmp_path):
        lines = [f"{i},1,2,3,{i if i < 200_000 else 'text'}" for i in range(200_100)]
        nodes = csv_file(tmp_path / "n.csv", "\n".join([f"{HEADER},extra", *lines]))
        source = resolve_nodes(nodes, None)
        batches = [b for p in pieces(source) for b in read_piece(source, p)]
        assert len(batches) > 3
        assert np.concatenate([b.node_id for b in batches]).tolist() == list(range(200_100))
        assert np.concatenate([b.segment_id for b in batches]).tolist() == list(range(200_100))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("1.5e17,1,2,3", "Row #3: CSV conversion error to uint64: invalid value '1.5e17'"),
            ("-3,1,2,3", "Row #3: CSV conversion error to uint64: invalid value '-3'"),
            (f"{2**64},1,2,3", f"uint64: invalid value '{2**64}'"),
            ("7.0,1,2,3", "uint64: invalid value '7.0'"),
            ("7,1,2,abc", "double: invalid value 'abc'"),
            ("7,1,2", "Row #3: Expected 4 columns, got 3: 7,1,2"),
            (",1,2,3", r"row 1 (counted from 0, without the header) has no segment_id"),
            ("NA,1,2,3", r"row 1 (counted from 0, without the header) has no segment_id"),
        ],
    )
    def test_a_row_that_cannot_be_read_exactly_is_named(self, tmp_path, row, message):
        nodes = csv_file(tmp_path / "nodes.csv", f"{HEADER}\n{BIG},1,2,3\n{row}\n")
        text = refusal_when_read(nodes)
        assert text.startswith(f"{nodes}: ")
        assert message in text

    def test_missing_columns_are_listed_beside_those_found(self, tmp_path):
        text = refusal(csv_file(tmp_path / "nodes.csv", "segment_id,x,y,z\n1,2,3,4\n"))
        assert "found the columns segment_id, x, y, z, needed are segment_id, x_nm," in text
        assert "x_nm, y_nm, z_nm is missing" in text
        assert "positions must be in nm and named x_nm, y_nm, z_nm" in text
        other = refusal(csv_file(tmp_path / "other.csv", "id;x_nm;y_nm\n1;2;3\n"))
        assert "found the columns id;x_nm;y_nm, needed" in other
        assert "must be in nm" not in other

    @pytest.mark.parametrize("text", [f"{HEADER}\n", f"{HEADER}\r\n\r\n", HEADER])
    def test_a_table_without_rows_is_refused(self, tmp_path, text):
        nodes = csv_file(tmp_path / "nodes.csv", text)
        assert refusal(nodes) == f"{nodes}: the table has no rows; there is nothing to do"

    def test_odd_files_are_refused(self, tmp_path):
        assert "found the columns none" in refusal(csv_file(tmp_path / "a.csv", ""))
        twice = csv_file(tmp_path / "b.csv", f"{HEADER},x_nm\n1,2,3,4,5\n")
        assert "the column x_nm is there twice" in refusal(twice)
        (tmp_path / "c.csv").write_bytes(b"\x00" * 10 + b"\xff\xfe\n" * 3)
        assert "needed are segment_id" in refusal(tmp_path / "c.csv")


class TestParquet:
    def test_row_groups_are_pieces_with_their_row_numbers(self, tmp_path):
        ids = np.arange(25, dtype=np.uint64) + np.uint64(BIG)
        nodes = parquet_file(tmp_path / "nodes.parquet", 10, segment_id=ids, **xyz(25))
        source = resolve_nodes(nodes, None)
        assert source.rows == 25
        name = ("nodes.parquet",)
        cut = list(pieces(source))
        assert cut == [Piece(name, 0, 0), Piece(name, 1, 10), Piece(name, 2, 20)]
        assert [r[:2] for r in rows_of(source)] == [(BIG + i, i) for i in range(25)]
        (alone,) = read_piece(source, pickle.loads(pickle.dumps(cut[2])))
        assert alone.node_id.tolist() == [20, 21, 22, 23, 24]
        assert alone.position_nm[:, 1].tolist() == [20.0, 21.0, 22.0, 23.0, 24.0]

    @pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "uint32", "int64"])
    def test_every_integer_type_is_an_id(self, tmp_path, kind):
        ids = pa.array([5, 127], getattr(pa, kind)())
        nodes = parquet_file(tmp_path / "n.parquet", segment_id=ids, node_id=ids, **xyz(2))
        assert [r[:2] for r in rows_of(resolve_nodes(nodes, None))] == [(5, 5), (127, 127)]

    def test_large_signed_ids_are_exact(self, tmp_path):
        ids = pa.array([2**53 + 1, 2**63 - 1], pa.int64())
        nodes = parquet_file(tmp_path / "n.parquet", segment_id=ids, node_id=ids, **xyz(2))
        assert [r[1] for r in rows_of(resolve_nodes(nodes, None))] == [2**53 + 1, 2**63 - 1]

    @pytest.mark.parametrize(
        "kind", [pa.float16(), pa.float32(), pa.float64(), pa.int16(), pa.uint64()]
    )
    def test_positions_are_floats_or_integers_and_null_is_nan(self, tmp_path, kind):
        x = pa.array([np.float16(3), None]).cast(kind)
        nodes = parquet_file(
            tmp_path / "n.parquet",
            **(xyz(2) | {"segment_id": pa.array([BIG, BIG], pa.uint64()), "x_nm": x}),
        )
        rows = rows_of(resolve_nodes(nodes, None))
        assert rows[0] == (BIG, 0, [3.0, 0.0, 0.0])
        assert np.isnan(rows[1][2][0])

    @pytest.mark.parametrize(
        ("ids", "kind"),
        [
            (pa.array([1.0, 2.0]), "double"),
            (pa.array([1.0, 2.0], pa.float32()), "float"),
            (pa.array(["1", "2"]), "string"),
            (pa.array([True, False]), "bool"),
        ],
    )
    @pytest.mark.parametrize("column", ["segment_id", "node_id"])
    def test_ids_that_are_no_integers_are_refused(self, tmp_path, ids, kind, column):
        columns = {"segment_id": pa.array([1, 2]), "node_id": pa.array([1, 2])} | {column: ids}
        text = refusal(parquet_file(tmp_path / "n.parquet", **columns, **xyz(2)))
        assert f"the column {column} is {kind}, ids must be integers: above 2**53" in text

    def test_positions_that_are_no_numbers_are_refused(self, tmp_path):
        columns = xyz(2) | {"segment_id": pa.array([1, 2]), "y_nm": pa.array(["1", "2"])}
        text = refusal(parquet_file(tmp_path / "n.parquet", **columns))
        assert "the column y_nm is string, a position is a number of nm" in text
        columns = xyz(2) | {"segment_id": pa.array([1, 2]), "y_nm": pa.array([1, 2**53 + 1])}
        text = refusal_when_read(parquet_file(tmp_path / "m.parquet", **columns))
        assert "y_nm is not a position in nm, in rows 0 to 1" in text

    @pytest.mark.parametrize(("value", "message"), [(None, "has no {}, "), (-3, "has the {} -3;")])
    @pytest.mark.parametrize("column", ["segment_id", "node_id"])
    def test_null_and_negative_ids_are_named_by_row(self, tmp_path, value, message, column):
        good, bad = pa.array(range(14), pa.int64()), pa.array([1] * 11 + [value] * 3, pa.int64())
        columns = {"segment_id": good, "node_id": good} | {column: bad}
        nodes = parquet_file(tmp_path / "n.parquet", 5, **columns, **xyz(14))
        row = "row 11 (counted from 0, without the header) "
        assert f"{nodes}: {row}{message.format(column)}" in refusal_when_read(nodes)

    def test_broken_and_empty_files_are_refused(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"not a table, not at all")
        assert "a.parquet: this is no whole Parquet file: " in refusal(tmp_path / "a.parquet")
        parquet_file(tmp_path / "b.parquet", segment_id=pa.array([1]), **xyz(1))
        (tmp_path / "c.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-20])
        assert "c.parquet: this is no whole Parquet file: " in refusal(tmp_path / "c.parquet")
        empty = parquet_file(tmp_path / "d.parquet", segment_id=pa.array([], "u8"), **xyz(0))
        assert refusal(empty) == f"{empty}: the table has no rows; there is nothing to do"
        lacking = parquet_file(tmp_path / "e.parquet", x=pa.array([1.0]), **xyz(1))
        assert "found the columns x, x_nm, y_nm, z_nm, needed" in refusal(lacking)


class TestDirectories:
    def test_parts_are_read_in_the_order_of_their_names(self, tmp_path):
        for name, first in (("part-1.csv", 10), ("part-0.csv", 20), ("part-2.csv", 30)):
            csv_file(tmp_path / name, f"{HEADER},node_id\n{BIG},1,2,3,{first}\n5,1,2,3,{first + 1}")
        (tmp_path / "_SUCCESS").touch()
        (tmp_path / "notes").mkdir()
        source = resolve_nodes(f"{tmp_path}/", None)
        assert (source.kind, source.files, source.directory) == ("csv", 3, True)
        assert [r[1] for r in rows_of(source)] == [20, 21, 10, 11, 30, 31]

    def test_a_directory_may_be_named_like_a_file(self, tmp_path):
        folder = tmp_path / "nodes.parquet"
        folder.mkdir()
        for i in range(2):
            ids = pa.array([i * 10, i * 10 + 1], pa.uint64())
            parquet_file(folder / f"part-{i}.parquet", 1, segment_id=ids, node_id=ids, **xyz(2))
        empty = pa.array([], pa.uint64())
        parquet_file(folder / "part-9.parquet", segment_id=empty, node_id=empty, **xyz(0))
        source = resolve_nodes(str(folder), None)
        assert (source.files, source.rows) == (3, 4)
        assert len(list(pieces(source))) == 4
        assert [r[0] for r in rows_of(source)] == [0, 1, 10, 11]

    def test_parts_need_node_ids(self, tmp_path):
        csv_file(tmp_path / "a.csv", f"{HEADER},node_id\n1,2,3,4,5\n")
        csv_file(tmp_path / "b.csv", f"{HEADER}\n1,2,3,4\n")
        text = refusal(tmp_path)
        assert f"{tmp_path}/b.csv: a directory of tables needs the column node_id" in text

    def test_mixed_empty_and_absent_directories_are_refused(self, tmp_path):
        assert f"{tmp_path} holds no nodes" in refusal(tmp_path)
        csv_file(tmp_path / "a.csv", f"{HEADER},node_id\n1,2,3,4,5\n")
        csv_file(tmp_path / "5.swc", "1 0 0 0 0 1 -1\n")
        assert f"{tmp_path} holds .csv and .swc: a directory" in refusal(tmp_path)
        for absent in ("absent", "absent.csv", "notes.txt"):
            (tmp_path / "notes.txt").touch()
            text = refusal(tmp_path / absent)
            assert f"--nodes {tmp_path}/{absent}: no such file or directory of nodes" in text

    def test_files_that_come_or_go_after_the_plan_are_noticed(self, tmp_path):
        csv_file(tmp_path / "a.csv", f"{HEADER},node_id\n1,2,3,4,5\n")
        source = resolve_nodes(str(tmp_path), None)
        csv_file(tmp_path / "b.csv", f"{HEADER},node_id\n1,2,3,4,6\n")
        with pytest.raises(RunError, match=r"holds 2 .csv files, but 1 when the run was planned"):
            list(pieces(source))
        (tmp_path / "a.csv").unlink()
        with pytest.raises(RunError, match=r"cannot read .*a.csv: No such file"):
            list(read_piece(source, Piece(("a.csv",))))


class TestSwc:
    def test_files_are_read_whole_as_skeletons(self, tmp_path):
        csv_file(tmp_path / f"{BIG}.swc", "# c\n7 0 1 2 3 9 -1\n18446744073709551615 0 4 5 6 9 7\n")
        csv_file(tmp_path / "5.SWC", "")
        source = resolve_nodes(str(tmp_path), 100.0)
        assert (source.kind, source.files, source.rows) == ("swc", 2, None)
        (piece,) = pieces(source)
        empty, one = read_skeletons(source, pickle.loads(pickle.dumps(piece)))
        assert (empty.segment_id, empty.position_nm.shape) == (5, (0, 3))
        assert one.segment_id == BIG
        assert one.sample.tolist() == [7, 2**64 - 1]
        assert one.position_nm.tolist() == [[1, 2, 3], [4, 5, 6]]
        assert one.parent.tolist() == [-1, 0]

    def test_names_must_be_segments_each_once(self, tmp_path):
        csv_file(tmp_path / "7.swc", "1 0 0 0 0 1 -1\n")
        csv_file(tmp_path / "007.swc", "1 0 0 0 0 1 -1\n")
        assert "007.swc and 7.swc are both segment 7" in refusal(tmp_path)
        for stem in ("cell", "-4", "1.5", str(2**64), "٣"):
            nodes = csv_file(tmp_path / f"{stem}.swc", "1 0 0 0 0 1 -1\n")
            assert f"{nodes}: an SWC file is named for its segment" in refusal(nodes)

    def test_spacings_are_checked(self, tmp_path):
        nodes = csv_file(tmp_path / "7.swc", "1 0 0 0 0 1 -1\n")
        assert resolve_nodes(nodes, 0.5).spacing_nm == 0.5
        for bad in (0.0, -2.0, float("nan"), float("inf")):
            assert f"--spacing-nm {bad}: nodes are thinned to a path" in refusal(nodes, bad)
        table = csv_file(tmp_path / "n.csv", f"{HEADER}\n1,2,3,4\n")
        assert f"--spacing-nm 500: {table} is a csv table, whose rows" in refusal(table, 500.0)

    def test_real_skeletons_come_in_pieces(self):
        source = resolve_nodes(str(shared("data", "fib25", "skeletons")), None)
        assert (source.kind, source.files) == ("swc", 209)
        cut = list(pieces(source))
        assert [len(p.names) for p in cut] == [64, 64, 64, 17]
        skeletons = [s for p in cut for s in read_skeletons(source, p)]
        assert len({s.segment_id for s in skeletons}) == 209
        assert sum(len(s.sample) for s in skeletons) == 42_213

    def test_tables_and_skeletons_have_their_own_readers(self, tmp_path):
        swc = resolve_nodes(csv_file(tmp_path / "7.swc", "1 0 0 0 0 1 -1\n"), None)
        table = resolve_nodes(csv_file(tmp_path / "n.csv", f"{HEADER}\n1,2,3,4\n"), None)
        with pytest.raises(ValueError, match="read_skeletons reads it"):
            next(read_piece(swc, next(pieces(swc))))
        with pytest.raises(ValueError, match="read_piece reads it"):
            next(read_skeletons(table, next(pieces(table))))


class TestIdentity:
    def test_the_digest_follows_names_and_contents_alone(self, tmp_path):
        first, second = tmp_path / "first", tmp_path / "second"
        for folder in (first, second):
            folder.mkdir()
            for i in (3, 1, 2):
                csv_file(folder / f"{i}.swc", f"1 0 {i} 0 0 1 -1\n")
        digest = resolve_nodes(str(first), None).digest
        assert resolve_nodes(str(second), 10.0).digest == digest
        (second / "readme.txt").touch()
        assert resolve_nodes(str(second), None).digest == digest
        (second / "3.swc").rename(second / "4.swc")
        assert resolve_nodes(str(second), None).digest != digest
        shutil.copy(first / "1.swc", first / "2.swc")
        assert resolve_nodes(str(first), None).digest != digest

    def test_a_source_travels_as_json_and_as_a_pickle(self, tmp_path, monkeypatch):
        csv_file(tmp_path / "n.csv", f"{HEADER}\n1,2,3,4\n")
        monkeypatch.chdir(tmp_path)
        source = resolve_nodes("n.csv", None)
        assert source.location == str(tmp_path / "n.csv")
        assert NodeSource.from_json(json.loads(json.dumps(source.to_json()))) == source
        assert pickle.loads(pickle.dumps(source)) == source
        assert resolve_nodes((tmp_path / "n.csv").as_uri(), None) == source

    @hypothesis.settings(deadline=None, max_examples=25)
    @hypothesis.given(
        st.lists(
            st.tuples(
                st.integers(0, 2**64 - 1),
                st.integers(0, 2**64 - 1),
                st.floats(width=64),
                st.floats(),
            ),
            min_size=1,
            max_size=30,
        ),
        st.integers(1, 8),
    )
    def test_both_tables_give_the_same_rows(self, tmp_path_factory, rows, group):
        folder = tmp_path_factory.mktemp("tables")
        columns = ("segment_id", "node_id", "x_nm", "y_nm", "z_nm")
        lines = [",".join(map(repr, (s, n, x, y, x))) for s, n, x, y in rows]
        one = csv_file(folder / "n.csv", "\n".join([",".join(columns), *lines]))
        s, n, x, y = zip(*rows, strict=True)
        arrays = [pa.array(s, pa.uint64()), pa.array(n, pa.uint64()), *map(pa.array, (x, y, x))]
        other = parquet_file(folder / "n.parquet", group, **dict(zip(columns, arrays, strict=True)))
        expected = [(s, n, [x, y, x]) for s, n, x, y in rows]
        assert repr(rows_of(resolve_nodes(one, None))) == repr(expected)
        assert repr(rows_of(resolve_nodes(other, None))) == repr(expected)


class TestRemote:
    @pytest.fixture
    def server(self, tmp_path):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        handler = functools.partial(Quiet, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    def test_a_file_on_a_web_server_is_read_without_its_query_string(self, tmp_path, server):
        ids = pa.array([BIG, 5], pa.uint64())
        parquet_file(tmp_path / "n.parquet", 1, segment_id=ids, **xyz(2))
        source = resolve_nodes(f"{server}/n.parquet?token=SECRET", None)
        assert source.location == f"{server}/n.parquet"
        assert source.rows == 2
        assert list(pieces(source)) == [Piece(("n.parquet",))]
        assert [r[:2] for r in rows_of(source)] == [(BIG, 0), (5, 1)]
        local = resolve_nodes(str(tmp_path / "n.parquet"), None)
        assert source.digest == local.digest
        assert dataclasses.replace(local, location=source.location) == source

    def test_a_directory_in_a_bucket_is_listed(self, monkeypatch):
        bucket = {"gs://b/n/1.swc": b"1 0 1 2 3 1 -1\n", "gs://b/n/2.swc": b"4 0 1 2 3 1 -1\n"}
        monkeypatch.setattr(objects, "read", bucket.get)
        monkeypatch.setattr(objects, "exists", bucket.__contains__)
        monkeypatch.setattr(
            objects, "names", lambda url: ["1.swc", "2.swc", "x/"] if url == "gs://b/n" else []
        )
        source = resolve_nodes("gs://b/n/", None)
        assert (source.kind, source.files, source.location) == ("swc", 2, "gs://b/n")
        (piece,) = pieces(source)
        assert [s.sample.tolist() for s in read_skeletons(source, piece)] == [[1], [4]]
        assert "--nodes gs://b/m: no such file or directory" in refusal("gs://b/m")
        del bucket["gs://b/n/2.swc"]
        with pytest.raises(RunError, match="cannot read gs://b/n/2.swc: it is no longer there"):
            list(read_skeletons(source, piece))
