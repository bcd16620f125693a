import http.server
import pathlib
import threading

import pytest

from volumes import objects
from volumes.errors import RequestError, RunError
from volumes.redaction import redacted, redacted_text


def test_a_local_object_is_whole_and_created_once(tmp_path: pathlib.Path) -> None:
    url = str(tmp_path / "a" / "b.json")
    assert objects.read(url) is None
    assert not objects.exists(url)
    assert objects.create(url, b"one")
    assert not objects.create(url, b"two")
    assert objects.read(url) == b"one"
    objects.write(url, b"three")
    assert objects.read(f"file://{url}") == b"three"
    assert objects.exists(url)
    assert objects.names(str(tmp_path)) == ["a/"]
    assert objects.names(str(tmp_path / "a")) == ["b.json"]
    assert objects.names(str(tmp_path / "absent")) == []


def test_of_many_creators_one_wins(tmp_path: pathlib.Path) -> None:
    url = str(tmp_path / "won")
    won: list[int] = []

    def compete(i: int) -> None:
        if objects.create(url, str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=compete, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert len(won) == 1
    assert objects.read(url) == str(won[0]).encode()


def test_a_file_is_uploaded_whole(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    objects.upload(source, str(tmp_path / "to" / "target"))
    assert (tmp_path / "to" / "target").read_bytes() == source.read_bytes()
    assert objects.names(str(tmp_path / "to")) == ["target"]


@pytest.mark.parametrize(
    ("url", "spec"),
    [
        ("gs://b/p/q", {"driver": "gcs", "bucket": "b", "path": "p/q/"}),
        ("s3://b", {"driver": "s3", "bucket": "b", "path": ""}),
        ("http://h/p", {"driver": "http", "base_url": "http://h/p/"}),
        ("/a/b/", {"driver": "file", "path": "/a/b/"}),
        ("file:///a%20b", {"driver": "file", "path": "/a b/"}),
    ],
)
def test_locations_name_their_store(url: str, spec: dict, monkeypatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert objects.kvstore(url) == spec


def test_joining_and_absolute() -> None:
    assert objects.join("gs://b/p/", "q", "/r/") == "gs://b/p/q/r"
    assert objects.join("/", "x") == "/x"
    assert objects.absolute("gs://b/p/") == "gs://b/p"
    assert objects.absolute("x/") == str(pathlib.Path.cwd() / "x")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(RequestError, match="no store is known for ftp://"):
        objects.kvstore("ftp://host/x")


def test_what_cannot_be_written_says_where(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*/file/x: "):
        objects.write(str(tmp_path / "file" / "x"), b"")


def test_a_web_server_is_read_and_not_listed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.json").write_bytes(b"{}")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        try:
            assert objects.read(f"{base}/x.json") == b"{}"
            assert objects.read(f"{base}/y.json") is None
            assert objects.exists(f"{base}/x.json")
            with pytest.raises(RequestError, match="gives no list of its files"):
                objects.names(base)
        finally:
            server.shutdown()


def test_secrets_are_taken_out_of_text_and_json() -> None:
    text = "read https://me:pass@host/p?sig=TOKEN|zarr3: and gs://b/x?token=TOKEN."
    assert redacted_text(text) == "read https://host/p|zarr3: and gs://b/x"
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "http", "base_url": "http://h/?t=TOKEN", "headers": ["A: TOKEN"]},
        "aws_credentials": {"key": "TOKEN"},
        "list": [{"access_token": "TOKEN", "kept": 1}],
    }
    assert redacted(spec) == {
        "driver": "zarr3",
        "kvstore": {"driver": "http", "base_url": "http://h/"},
        "list": [{"kept": 1}],
    }
