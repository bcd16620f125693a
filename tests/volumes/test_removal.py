import os
import pathlib
import time

import pytest
import tensorstore as ts

from volumes import objects, removal
from volumes.errors import RequestError, RunError


def test_a_local_object_is_removed_once(tmp_path: pathlib.Path) -> None:
    url = str(tmp_path / "a.json")
    objects.write(url, b"x")
    assert removal.remove(f"file://{url}")
    assert objects.read(url) is None
    assert not removal.remove(url)


def test_a_local_tree_is_removed_with_all_below_it(tmp_path: pathlib.Path) -> None:
    for name in ("t/a", "t/b/c", "tt"):
        objects.write(str(tmp_path / name), b"x")
    removal.remove_tree(str(tmp_path / "t"))
    assert objects.names(str(tmp_path)) == ["tt"]
    removal.remove_tree(str(tmp_path / "t"))


def test_what_is_no_tree_is_not_removed(tmp_path: pathlib.Path) -> None:
    objects.write(str(tmp_path / "kept" / "a"), b"x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(RunError, match=r"cannot remove .*/link: "):
        removal.remove_tree(str(tmp_path / "link"))
    with pytest.raises(RunError, match=r"cannot remove .*/kept: "):
        removal.remove(str(tmp_path / "kept"))
    assert objects.read(str(tmp_path / "kept" / "a")) == b"x"


def test_a_remote_tree_is_all_keys_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = ts.KvStore.open({"driver": "memory"}).result()
    opened = []

    def kv(url: str) -> ts.KvStore:
        opened.append(url)
        return memory / f"{url.removeprefix('s3://b/')}/"

    monkeypatch.setattr(removal, "keyed", kv)
    for key in ("s/t/a", "s/t/b/c", "s/tt", "s/u"):
        memory.write(key, b"x").result()
    removal.remove_tree("s3://b/s/t")
    assert sorted(memory.list().result()) == [b"s/tt", b"s/u"]
    assert removal.remove("s3://b/s/u")
    assert not removal.remove("s3://b/s/u")
    assert memory.list().result() == [b"s/tt"]
    assert opened == ["s3://b/s/t", "s3://b/s", "s3://b/s"]


def test_a_bucket_answers_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = {"gs://b/a"}

    class Blob:
        def __init__(self, url: str) -> None:
            self.url = url

        def delete(self) -> None:
            if self.url not in blobs:
                raise removal.api_exceptions.NotFound("no such object")
            blobs.remove(self.url)

    monkeypatch.setattr(removal, "blob", Blob)
    assert removal.remove("gs://b/a")
    assert not removal.remove("gs://b/a")


@pytest.mark.parametrize("remove", [removal.remove, removal.remove_tree])
def test_nothing_is_removed_through_a_web_server(remove) -> None:
    with pytest.raises(RequestError, match="http://h/x: nothing can be removed through a web"):
        remove("http://h/x?token=TOKEN")


def test_only_old_files_of_the_names_that_writers_give_are_stale(tmp_path: pathlib.Path) -> None:
    stale = ("versions/.3.json.ab_12xyz.tmp", ".store.json.00000000.tmp", "t/.a.parquet.123.tmp")
    other = (
        "versions/3.json",
        ".store.json.tmp",
        ".profile",
        "t/a.123.tmp",
        "t/.a.UPPER123.tmp",
        "generations/1/partitions/0_0_0/d/.x.abcdefgh.tmp",
    )
    for name in (*stale, *other, "runs/r/.young.json.abcdefgh.tmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        if "young" not in name:
            os.utime(path, (time.time() - 101,) * 2)
    found = removal.stale_temporaries(str(tmp_path), 100)
    assert found == sorted(str(tmp_path / name) for name in stale)
    assert removal.stale_temporaries("gs://bucket/store", 100) == []
    assert removal.stale_temporaries(str(tmp_path / "absent"), 100) == []
