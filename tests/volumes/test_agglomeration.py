import functools
import http.server
import json
import pathlib
import pickle
import threading
import zlib

import h5py
import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.support import shared
from volumes import agglomeration, objects
from volumes.agglomeration import (
    Agglomeration,
    Table,
    affected,
    keep,
    load,
    moved,
    pack_ids,
    read_table,
    unpack_ids,
)
from volumes.errors import RequestError, RunError

BIG = 2**63 + 2**53 + 1
TOP = 2**64 - 1
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", ">u8", ">i4")

# Few ids, so that labels, supervoxels and bodies meet; and neighbours that a float confuses.
IDS = st.sampled_from([*range(7), 127, 2**53, 2**53 + 1, BIG, BIG + 1, TOP - 1, TOP])
MAPPINGS = st.dictionaries(IDS.filter(bool), IDS, max_size=10)
OPTIONAL = st.none() | MAPPINGS
quick = hypothesis.settings(deadline=None, max_examples=100)


def u64(ids):
    return np.array(list(ids), np.uint64)


def table_of(mapping):
    return Table.of_pairs(u64(mapping), u64(mapping.values()), "the table")


def bodies_of(mapping):
    """Brute force: the set of supervoxels of each body, for all ids that occur."""
    return lambda s: s if mapping is None else mapping.get(s, s)


def csv_file(path, rows, header="supervoxel,body"):
    path.write_text("\n".join([header, *(",".join(map(str, r)) for r in rows)]) + "\n")
    return str(path)


def parquet_file(path, supervoxel, body, **others):
    columns = {"supervoxel": supervoxel, "body": body}
    pq.write_table(pa.table({k: v for k, v in (columns | others).items() if v is not None}), path)
    return str(path)


def ids(values, kind="uint64"):
    return pa.array(values, getattr(pa, kind)())


def pairs(table):
    return dict(zip(table.supervoxel.tolist(), table.body.tolist(), strict=True))


def refusal(path):
    with pytest.raises(RequestError) as caught:
        read_table(str(path))
    return str(caught.value)


def outcome(call, *args):
    """What a call returns, or None and the text of its ``RunError``."""
    try:
        return call(*args), ""
    except RunError as e:
        return None, str(e)


@pytest.fixture
def empty_cache(monkeypatch):
    monkeypatch.setattr(agglomeration, "_cache", agglomeration._Cache())


@pytest.fixture
def reads(monkeypatch, empty_cache):
    """The locations that were read, in order."""
    seen = []
    read = objects.read

    def counted(url):
        seen.append(url)
        return read(url)

    monkeypatch.setattr(objects, "read", counted)
    return seen


class TestApply:
    @quick
    @hypothesis.given(MAPPINGS, st.sampled_from(DTYPES), st.booleans(), st.data())
    def test_it_equals_a_lookup_of_every_voxel(self, mapping, dtype, transposed, data):
        top = np.iinfo(dtype).max
        shape = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)
        fitting = IDS.map(lambda i: i if i <= top else i % 7)
        labels = data.draw(hnp.arrays(np.dtype(dtype), shape, elements=fitting))
        labels = labels.T if transposed else labels
        before = labels.copy()
        bodies = table_of(mapping).apply(labels)
        assert (bodies.dtype, bodies.shape) == (np.uint64, labels.shape)
        assert bodies.flags.c_contiguous
        assert bodies.ravel().tolist() == [mapping.get(s, s) for s in labels.ravel().tolist()]
        np.testing.assert_array_equal(labels, before)
        assert not np.shares_memory(bodies, labels)

    @pytest.mark.parametrize("longest", [1, 1000])
    def test_blocks_meet_without_a_seam(self, longest, monkeypatch):
        monkeypatch.setattr(agglomeration, "_BLOCK_VOXELS", 64)
        rng = np.random.default_rng(0)
        runs = rng.integers(0, 20, 400).astype(np.uint64)
        labels = np.repeat(runs, rng.integers(1, longest + 1, 400))
        mapping = {s: BIG + s // 2 for s in range(1, 20, 3)}
        expected = [mapping.get(s, s) for s in labels.tolist()]
        assert table_of(mapping).apply(labels).tolist() == expected

    def test_the_mapping_is_applied_once(self):
        table = table_of({5: 7, 7: 9, 9: 0})
        assert table.apply(np.array([5, 7, 9, 0, 6])).tolist() == [7, 9, 0, 0, 6]

    @pytest.mark.parametrize("mapping", [{}, {5: 6}])
    def test_labels_that_are_no_ids_are_refused(self, mapping):
        table = table_of(mapping)
        with pytest.raises(ValueError, match=r"^the labels hold -3; an id is never negative$"):
            table.apply(np.array([[5, -3], [1, -1]], np.int16))
        for bad in ("float32", "float64", "bool"):
            with pytest.raises(ValueError, match=f"^labels must be integers, not {bad}$"):
                table.apply(np.zeros((2, 2), bad))

    def test_ids_of_another_type_are_refused_and_not_rounded(self):
        with pytest.raises(ValueError, match="^ids must be uint64, not int64$"):
            table_of({2**53 + 1: 5}).bodies_of(np.array([2**53]))
        assert table_of({2**53 + 1: 5}).bodies_of(u64([2**53, 2**53 + 1])).tolist() == [2**53, 5]

    def test_without_pairs_labels_are_their_own_bodies(self):
        table = table_of({})
        assert table.apply(np.array([[3, 0]], np.int8)).tolist() == [[3, 0]]
        given_ids = u64([TOP, 1])
        found = table.bodies_of(given_ids)
        assert found.tolist() == [TOP, 1]
        assert not np.shares_memory(found, given_ids)


class TestTable:
    @quick
    @hypothesis.given(MAPPINGS, st.randoms(), st.lists(IDS))
    def test_it_is_the_same_whatever_the_rows_are_like(self, mapping, random, identities):
        rows = [*mapping.items(), *((i, i) for i in identities if i not in mapping)]
        rows += random.sample(rows, len(rows) // 2)
        random.shuffle(rows)
        table = Table.of_pairs(u64(r[0] for r in rows), u64(r[1] for r in rows), "the table")
        assert pairs(table) == {s: b for s, b in mapping.items() if s != b}
        assert table.supervoxel.tolist() == sorted(pairs(table))
        assert table.digest() == table_of(mapping).digest()

    @quick
    @hypothesis.given(MAPPINGS, MAPPINGS)
    def test_digests_are_equal_just_where_mappings_are(self, one, other):
        a, b = table_of(one), table_of(other)
        assert (a.digest() == b.digest()) == (pairs(a) == pairs(b))

    def test_the_digest_tells_supervoxels_from_bodies(self):
        one, other = table_of({1: 2, 3: 4}), table_of({2: 1, 4: 3})
        assert len({one.digest(), other.digest(), table_of({1: 2}).digest()}) == 3
        assert one.digest() == "9f8034fb4a1635e4ffbcdc42d3bf253b63099b654ea2d3e4b26e2d1d00d1b314"

    def test_it_is_read_only_and_leaves_the_given_arrays_alone(self):
        supervoxel, body = u64([1, 2]), u64([3, 3])
        table = Table(supervoxel, body)
        for array in (table.supervoxel, table.body):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 9
        supervoxel[0] = 0
        assert supervoxel.flags.writeable

    @pytest.mark.parametrize(
        ("supervoxel", "body"),
        [
            (u64([2, 1]), u64([3, 3])),
            (u64([1, 1]), u64([3, 3])),
            (u64([1, 2]), u64([1, 3])),
            (u64([0, 2]), u64([1, 3])),
            (u64([1, 2]), u64([3])),
            (np.array([1, 2]), u64([3, 3])),
        ],
    )
    def test_other_arrays_make_no_table(self, supervoxel, body):
        with pytest.raises(ValueError, match="are no pairs$|none 0 or its own body$"):
            Table(supervoxel, body)


class TestFiles:
    @hypothesis.settings(deadline=None, max_examples=25)
    @hypothesis.given(MAPPINGS)
    def test_csv_and_parquet_agree_and_are_exact(self, tmp_path_factory, mapping):
        folder = tmp_path_factory.mktemp("tables")
        rows = list(mapping.items())
        one = read_table(csv_file(folder / "t.csv", rows))
        columns = ids([r[0] for r in rows]), ids([r[1] for r in rows])
        other = read_table(parquet_file(folder / "t.parquet", *columns))
        assert pairs(one) == pairs(other) == {s: b for s, b in rows if s != b}
        assert one.digest() == other.digest() == table_of(mapping).digest()

    def test_columns_come_in_any_order_and_others_are_not_read(self, tmp_path):
        text = (
            f'\ufeffbody,note,"supervoxel"\r\n{BIG},"a, ""b""\r\nc",{TOP}\r\n\r\n{BIG + 1},,5\r\n'
        )
        (tmp_path / "t.CSV").write_text(text, newline="")
        assert pairs(read_table(str(tmp_path / "t.CSV"))) == {TOP: BIG, 5: BIG + 1}
        note = pa.array([1.5, None])
        path = parquet_file(tmp_path / "t.parquet", ids([TOP, 5]), ids([BIG, BIG + 1]), note=note)
        assert pairs(read_table(path)) == {TOP: BIG, 5: BIG + 1}

    def test_long_tables_are_read_whole(self, tmp_path):
        n = 200_000
        supervoxel = np.arange(1, n + 1, dtype=np.uint64)[::-1]
        body = supervoxel + np.uint64(BIG)
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({"supervoxel": supervoxel, "body": body}), path, row_group_size=700)
        table = read_table(str(path))
        np.testing.assert_array_equal(table.supervoxel, supervoxel[::-1])
        np.testing.assert_array_equal(table.body, body[::-1])

    def test_supervoxels_may_be_removed_and_rows_repeated(self, tmp_path):
        path = csv_file(tmp_path / "t.csv", [(5, 0), (0, 0), (7, 8), (7, 8), (9, 9), (5, 0)])
        assert pairs(read_table(path)) == {5: 0, 7: 8}

    def test_a_table_without_rows_maps_nothing(self, tmp_path):
        assert len(read_table(csv_file(tmp_path / "t.csv", []))) == 0
        (tmp_path / "u.csv").write_text("supervoxel,body")
        assert len(read_table(str(tmp_path / "u.csv"))) == 0
        assert len(read_table(parquet_file(tmp_path / "t.parquet", ids([]), ids([])))) == 0

    @pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "uint32", "int64"])
    def test_every_integer_type_is_an_id(self, tmp_path, kind):
        path = parquet_file(tmp_path / "t.parquet", ids([5, 127], kind), ids([6, 5], kind))
        assert pairs(read_table(path)) == {5: 6, 127: 5}

    def test_supervoxels_of_two_bodies_are_refused(self, tmp_path):
        rows = [(9, 1), (BIG, 5), (8, 1), (BIG, TOP), (9, 1)]
        path = csv_file(tmp_path / "t.csv", rows)
        assert refusal(path) == (
            f"{path}: supervoxel {BIG} is listed with body 5 and with body {TOP}, and a voxel is"
            " part of one body only; remove one of the rows"
        )
        path = csv_file(tmp_path / "u.csv", [(4, 4), (4, 6)])
        assert f"{path}: supervoxel 4 is listed with body 4 and with body 6" in refusal(path)

    def test_background_has_no_body(self, tmp_path):
        path = csv_file(tmp_path / "t.csv", [(5, 6), (0, 7)])
        assert refusal(path) == (
            f"{path}: supervoxel 0 is listed with body 7, but 0 is background, which belongs to no"
            " body; remove the row"
        )

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("5,-3", "Row #3: CSV conversion error to uint64: invalid value '-3' (rows are"),
            ("1.0,5", "Row #3: CSV conversion error to uint64: invalid value '1.0' (rows are"),
            ("5,1e3", "Row #3: CSV conversion error to uint64: invalid value '1e3' (rows are"),
            ("5,cell", "Row #3: CSV conversion error to uint64: invalid value 'cell' (rows are"),
            (f"5,{2**64}", f"conversion error to uint64: invalid value '{2**64}' (rows are"),
            ("5,6,7", "Row #3: Expected 2 columns, got 3: 5,6,7 (rows are"),
            ("5,", "row 1 (counted from 0, without the header) has no body, and a row is of no"),
            (",5", "row 1 (counted from 0, without the header) has no supervoxel, and a row is"),
        ],
    )
    def test_csv_rows_that_are_no_ids_are_named(self, tmp_path, row, message):
        path = csv_file(tmp_path / "t.csv", [(1, 2), row.split(","), (3, 4)])
        text = refusal(path)
        assert text.startswith(f"{path}: ")
        assert message in text

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                ids([1, -3], "int64"),
                "row 1 (counted from 0, without the header) has the {} -3; ids",
            ),
            (ids([1, None]), "row 1 (counted from 0, without the header) has no {}, and a row is"),
            (ids([1.0, 2.0], "float64"), "the column {} is double, ids must be integers: above"),
            (ids(["1", "2"], "string"), "the column {} is string, ids must be integers: above"),
            (ids([True, False], "bool_"), "the column {} is bool, ids must be integers: above"),
        ],
    )
    @pytest.mark.parametrize("column", ["supervoxel", "body"])
    def test_parquet_columns_that_are_no_ids_are_named(self, tmp_path, values, message, column):
        columns = {"supervoxel": ids([7, 8]), "body": ids([7, 8])} | {column: values}
        path = parquet_file(tmp_path / "t.parquet", **columns)
        assert f"{path}: {message.format(column)}" in refusal(path)

    def test_missing_and_repeated_columns_are_refused_with_what_is_there(self, tmp_path):
        path = csv_file(tmp_path / "t.csv", [(1, 2)], header="supervoxel_id,body")
        message = "{}: found the columns {}, needed are supervoxel, body, each once"
        assert refusal(path) == message.format(path, "supervoxel_id, body")
        path = csv_file(tmp_path / "u.csv", [(1, 2, 3)], header="supervoxel,body,body")
        assert refusal(path) == message.format(path, "supervoxel, body, body")
        path = parquet_file(tmp_path / "t.parquet", ids([1]), None, x=ids([1]))
        assert refusal(path) == message.format(path, "supervoxel, x")
        (tmp_path / "v.csv").touch()
        assert refusal(tmp_path / "v.csv") == message.format(tmp_path / "v.csv", "none")

    def test_files_that_are_no_tables_are_refused(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"not a table, not at all")
        assert f"{tmp_path}/a.parquet: this is no whole Parquet file: " in refusal(
            tmp_path / "a.parquet"
        )
        (tmp_path / "b.parquet").mkdir()
        assert refusal(tmp_path / "b.parquet") == (
            f"--agglomeration {tmp_path}/b.parquet cannot be read: Is a directory; give a .csv or"
            " .parquet file with the columns supervoxel and body"
        )
        assert f"{tmp_path}/c.csv cannot be read: No such file" in refusal(tmp_path / "c.csv")
        assert refusal(tmp_path / "d.txt") == (
            f"--agglomeration {tmp_path}/d.txt: a table is one .csv or .parquet file, told apart by"
            " its name; give such a file with the columns supervoxel and body"
        )

    def test_a_torn_parquet_file_is_refused(self, tmp_path):
        path = parquet_file(tmp_path / "t.parquet", ids(range(5000)), ids(range(5000)))
        whole = (tmp_path / "t.parquet").read_bytes()
        (tmp_path / "t.parquet").write_bytes(whole[:4] + bytes(400) + whole[404:])
        assert "(the Parquet file cannot be read whole; write it anew)" in refusal(path)

    def test_a_file_on_a_web_server_is_read_without_its_query_string(self, tmp_path):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        csv_file(tmp_path / "t.csv", [(BIG, 5)])
        csv_file(tmp_path / "u.csv", [(BIG, -5)])
        handler = functools.partial(Quiet, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            url = f"http://127.0.0.1:{server.server_port}"
            assert pairs(read_table(f"{url}/t.csv?token=SECRET")) == {BIG: 5}
            bad, absent = refusal(f"{url}/u.csv?token=SECRET"), refusal(f"{url}/v.csv?token=SECRET")
            server.shutdown()
            thread.join()
        assert bad.startswith(f"{url}/u.csv: ")
        assert absent == (
            f"--agglomeration {url}/v.csv: no such file; give a .csv or .parquet file with the"
            " columns supervoxel and body"
        )
        assert "SECRET" not in bad + absent


class TestKept:
    def test_a_table_is_kept_under_its_digest(self, tmp_path, monkeypatch, empty_cache):
        monkeypatch.chdir(tmp_path)
        table = table_of({BIG: 5, TOP: 0, 3: TOP})
        ref = keep("store", table)
        path = tmp_path / "store" / "agglomerations" / f"{table.digest()}.parquet"
        assert ref == Agglomeration(str(path), table.digest(), 3)
        assert pairs(load(ref)) == pairs(read_table(ref.url)) == pairs(table)
        assert Agglomeration.from_json(json.loads(json.dumps(ref.to_json()))) == ref
        assert pickle.loads(pickle.dumps(ref)) == ref
        assert pairs(load(keep("store", table_of({})))) == {}

    def test_it_is_written_once(self, tmp_path):
        first = keep(str(tmp_path), table_of({1: 2}))
        (folder,) = tmp_path.iterdir()
        (file,) = folder.iterdir()
        before = file.stat()
        rows = u64([1, 7, 1]), u64([2, 7, 2])
        assert keep(f"{tmp_path}/", Table.of_pairs(*rows, "the table")) == first
        assert list(folder.iterdir()) == [file]
        after = file.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def test_the_latest_table_stays_in_memory(self, tmp_path, reads):
        one, other = (keep(str(tmp_path), table_of({1: b})) for b in (2, 3))
        assert load(one) is load(pickle.loads(pickle.dumps(one)))
        assert reads == [one.url]
        assert pairs(load(other)) == {1: 3}
        assert load(other) is load(other)
        assert pairs(load(one)) == {1: 2}
        assert reads == [one.url, other.url, one.url]

    def test_threads_share_one_load(self, tmp_path, reads):
        ref = keep(str(tmp_path), table_of({1: 2}))
        gate = threading.Barrier(8)
        found = []

        def ask():
            gate.wait()
            found.append(load(ref))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(found) == 8
        assert all(t is found[0] for t in found)
        assert reads == [ref.url]

    def test_a_missing_table_is_told_with_what_to_do(self, tmp_path, empty_cache):
        table = table_of({1: 2})
        ref = keep(str(tmp_path), table)
        (path,) = (tmp_path / "agglomerations").iterdir()
        path.unlink()
        with pytest.raises(RunError) as caught:
            load(ref)
        assert str(caught.value) == (
            f"{path} is missing, and without it supervoxels cannot be told to bodies; start the job"
            " again with the same --agglomeration FILE, from which it is written anew"
        )
        assert keep(str(tmp_path), table) == ref
        assert pairs(load(ref)) == {1: 2}

    def test_no_damage_goes_unnoticed(self, tmp_path, empty_cache):
        table = table_of({BIG + i: i // 3 for i in range(400)})
        ref = keep(str(tmp_path), table)
        (path,) = (tmp_path / "agglomerations").iterdir()
        whole = path.read_bytes()
        noticed = 0
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            agglomeration._cache = agglomeration._Cache()
            found, text = outcome(load, ref)
            if found is not None:  # a byte that bears nothing
                assert pairs(found) == pairs(table)
                continue
            noticed += 1
            assert text.startswith(f"{path} is damaged")
            assert "remove it, then start the job again with the same --agglomeration" in text
        assert noticed > len(whole) // 14

    def test_another_table_under_the_name_is_refused(self, tmp_path, empty_cache):
        one, other = (keep(str(tmp_path), table_of({1: b})) for b in (2, 3))
        objects.write(one.url, objects.read(other.url))
        with pytest.raises(RunError) as caught:
            load(one)
        digests = f"its pairs have the digest {other.digest}, not {one.digest}; remove it, then"
        assert f"{one.url} is damaged: {digests}" in str(caught.value)
        objects.write(one.url, b"")
        with pytest.raises(RunError, match=r"is damaged \(.* no whole Parquet file: .*\); remove"):
            load(one)

    def test_no_secret_is_in_the_name(self, monkeypatch):
        written = {}
        monkeypatch.setattr(objects, "exists", written.__contains__)
        monkeypatch.setattr(objects, "create", written.__setitem__)
        table = table_of({1: 2})
        ref = keep("gs://user:SECRET@bucket/store/?token=SECRET", table)
        assert ref.url == f"gs://bucket/store/agglomerations/{table.digest()}.parquet"
        assert list(written) == [ref.url]


class TestChanges:
    @quick
    @hypothesis.given(OPTIONAL, OPTIONAL)
    def test_they_equal_brute_force(self, old, new):
        tables = [None if m is None else table_of(m) for m in (old, new)]
        listed = {*(old or {}), *(new or {})}
        every = listed | {*(old or {}).values(), *(new or {}).values()}
        was, is_now = (bodies_of(m) for m in (old, new))
        expected = sorted(s for s in every if was(s) != is_now(s))
        found = moved(*tables)
        assert (found.dtype, found.tolist()) == (np.uint64, expected)

        changed = [
            b
            for b in sorted(every - {0})
            if {s for s in every if was(s) == b} != {s for s in every if is_now(s) == b}
        ]
        found = affected(*tables)
        assert (found.dtype, found.tolist()) == (np.uint64, changed)

    def test_a_merge_and_a_split(self):
        old, new = table_of({1: 10, 2: 10, 3: 30, 4: 30}), table_of({1: 10, 2: 10, 3: 10, 4: 40})
        assert moved(old, new).tolist() == [3, 4]
        assert affected(old, new).tolist() == [10, 30, 40]
        assert moved(old, old).tolist() == affected(None, None).tolist() == []
        assert affected(None, table_of({5: 0})).tolist() == [5]
        assert affected(table_of({5: 6}), None).tolist() == [5, 6]


class TestPackedIds:
    @quick
    @hypothesis.given(st.sets(st.integers(0, TOP) | IDS, max_size=40))
    def test_ids_come_back(self, some):
        data = pack_ids(u64(sorted(some)))
        found = unpack_ids(data, "ids")
        assert (found.dtype, found.tolist()) == (np.uint64, sorted(some))
        assert data[0] == 1

    @quick
    @hypothesis.given(st.sets(IDS, min_size=1), st.data())
    def test_damage_is_told(self, some, data):
        packed = pack_ids(u64(sorted(some)))
        at = data.draw(st.integers(0, len(packed) - 1))
        flip = data.draw(st.integers(1, 255))
        damaged = packed[:at] + bytes([packed[at] ^ flip]) + packed[at + 1 :]
        for bad in (packed[:at], packed + b"x", damaged):
            found, text = outcome(unpack_ids, bad, "box 1_2_3")
            if found is not None:  # a bit of the header that bears nothing
                assert found.tolist() == sorted(some)
                assert bad is damaged
            else:
                assert "box 1_2_3 is " in text
                assert f"is damaged: its {len(bad)} bytes are no set of ids" in text or (
                    f"version {bad[0]}, written by newer software or damaged; this one reads up to"
                    " version 1" in text
                )

    def test_ids_out_of_order_are_refused(self):
        for bad in (u64([2, 1]), u64([1, 1]), np.array([1, 2]), u64([[1, 2]])):
            with pytest.raises(ValueError, match=r"ids must be uint64 \[n\], ascending, each once"):
                pack_ids(bad)

    def test_a_wrapped_sum_is_damage(self):
        steps = np.array([[5, TOP]], "<u8")
        planes = steps.view(np.uint8).reshape(-1, 8).T.tobytes()
        with pytest.raises(RunError, match="^ids is damaged: its [0-9]+ bytes are no set of ids$"):
            unpack_ids(b"\1" + zlib.compress(planes), "ids")


class TestRealData:
    @pytest.fixture
    def labels(self):
        with h5py.File(shared("data", "fib25", "groundtruth.h5")) as file:
            return np.ascontiguousarray(file["stack"][:100, :100, :100].T)

    def test_merged_bodies_are_one(self, labels, tmp_path):
        bodies = np.unique(labels)
        merged = {int(b): int(bodies[1]) for b in bodies[2:12]}
        path = csv_file(tmp_path / "t.csv", merged.items())
        found = load(keep(str(tmp_path), read_table(path))).apply(labels)
        expected = np.where(np.isin(labels, list(merged)), bodies[1], labels)
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found)) == len(bodies) - 10
        assert affected(None, read_table(path)).tolist() == bodies[1:12].tolist()

    def test_ids_of_a_box_are_small(self, labels):
        present = np.unique(labels)
        data = pack_ids(present)
        assert unpack_ids(data, "ids").tolist() == present.tolist()
        assert len(data) < present.nbytes // 3


@hypothesis.given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(1, 5))
def test_distinct_ids_are_those_that_occur(ids: list[int], repeats: int) -> None:
    labels = np.repeat(np.array(ids + ids[:3], np.uint64), repeats)
    assert agglomeration.distinct(labels).tolist() == sorted(set(ids))


def test_a_store_names_a_table_before_it_has_it(tmp_path: pathlib.Path) -> None:
    table = agglomeration.Table.of_pairs(np.array([5], np.uint64), np.array([9], np.uint64), "t")
    name = agglomeration.named(str(tmp_path), table)
    assert agglomeration.keep(str(tmp_path), table) == name
    known = agglomeration.kept(str(tmp_path), table.digest())
    assert agglomeration.load(known).body.tolist() == [9]
