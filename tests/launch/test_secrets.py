"""A planted token is nowhere in what a run prints or leaves."""

import json
import pathlib

import pytest

from launch.cli import main
from launch.jobs import recorded
from tests.launch.place import EMBED
from tests.launch.served import served
from volumes import partition, store
from volumes.generation import Generation

TOKEN = "pl4nted-t0ken"


def values_in(generation: Generation) -> list[bytes]:
    """Every key and value of every partition, decoded: OCDBT may compress them on disk."""
    found = []
    for name in store.partitions_present(generation):
        keys = partition.keys(generation.partition(name))
        for key in keys.list().result():
            found += [key, keys.read(key).result().value]
    return found


def without_token(folder: pathlib.Path) -> int:
    """Check the bytes and the names of every file; gives how many there are."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    for path in files:
        assert TOKEN not in str(path)
        assert TOKEN.encode() not in path.read_bytes(), path
    return len(files)


def test_a_token_in_a_url_is_nowhere(home: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(home) as server:
        host = server.url.removeprefix("http://")
        inline = {
            "driver": "zarr3",
            "kvstore": {"driver": "http", "base_url": f"{server.url}/seg.zarr/?key={TOKEN}"},
            "credentials": {"api_key": TOKEN},
        }
        words = [
            *(w for w in EMBED if not w.startswith(("--image", "--segm"))),
            f"--image=http://user:{TOKEN}@{host}/em.zarr?signature={TOKEN}",
            f"--segmentation={json.dumps(inline)}",
            "--output=store",
            "--json",
        ]
        assert main([*words, "--dry-run"]) == 0
        assert main(words) == 0
        assert main(["export", "--store=store", "--output=tables", "--json"]) == 0
        # Messages about wrong requests are clean as well.
        assert main([*words, "--box=32"]) == 2
        assert main([*words, f"http://h/x?t={TOKEN}"]) == 2
        assert main([*words, f"--job_nam=http://h/?t={TOKEN}"]) == 2
        assert main([*words, f"--image=http://{TOKEN}@{host}/lost?t={TOKEN}"]) == 2
        asked = server.requests
    assert asked
    assert not [r for r in asked if TOKEN in r]
    said = "".join(capfd.readouterr())
    assert "/em.zarr" in said
    assert "version 1, 4 embeddings" in said
    assert TOKEN not in said
    assert without_token(home / "store") > 8
    assert without_token(home / "tables") == 2
    url = str(home / "store")
    manifest = store.read_manifest(url, "1")
    assert manifest is not None
    assert "em.zarr" in manifest["command"]
    generation = Generation.from_json(manifest["generation"] | {"store": url})
    values = values_in(generation)
    assert len(values) > 20
    assert not [v for v in values if TOKEN.encode() in v]


def test_the_recorded_command_can_be_typed_again_and_holds_no_secret() -> None:
    spec = {"driver": "s3", "aws_credentials": {"key": TOKEN}, "bucket": "b"}
    found = recorded(
        [
            "embed",
            f"--image=http://user:{TOKEN}@h/em?sig={TOKEN}",
            "--nodes",
            "my nodes.csv",
            f"--segmentation={json.dumps(spec)}",
            f"--s3_secret_access_key={TOKEN}",
            "--s3_session_token",
            TOKEN,
            "--dry-run",
        ]
    )
    assert found == (
        "segclr-beam embed --image=http://h/em --nodes 'my nodes.csv' "
        """'--segmentation={"bucket":"b","driver":"s3"}' --s3_secret_access_key=REMOVED """
        "--s3_session_token REMOVED --dry-run"
    )


@pytest.mark.parametrize("flag", ["--output", "--store"])
def test_a_location_to_be_written_down_may_hold_no_secret(
    furnished: pathlib.Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    words = {"--store": "store", "--output": "tables"} | {flag: f"s3://b/x?token={TOKEN}"}
    assert main(["export", *(f"{k}={v}" for k, v in words.items())]) == 2
    err = capsys.readouterr().err
    assert f"{flag} s3://b/x was given with a password or a query string" in err
    assert TOKEN not in err
