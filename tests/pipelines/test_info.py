import json
import os
import pathlib
import time

import numpy as np
import pytest

from pipelines.info import InfoConfig, Report, look
from segclr.model import resolve_model
from tests.launch.served import served
from tests.pipelines import versioned
from tests.segclr.checkpoints import NARROW, write_public_checkpoint
from tests.volumes import sample_volumes as made
from tests.volumes.keyed_volumes import MAKERS, precomputed, sharding
from volumes import store
from volumes.errors import RequestError
from volumes.writing import Target, VolumeLayout, create_levels, open_for_writing, write_box

SIZE = (8.0, 8.0, 40.0)
HUGE = 2**63 + 1
MADE = {
    "source": "/data/em.npy",
    "time": "2026-11-22T10:00:00+00:00",
    "version": "1.2.3",
    "command": "segclr-beam ingest --source em.npy",
    "parameters": {"chunk": [16, 16, 16]},
}
LAYOUTS = {
    "zarr3": {"shard": (32, 32, 32)},
    "zarr2": {"axes": ("z", "y", "x")},
    "ome-zarr": {"axes": ("z", "y", "x"), "shard": (32, 32, 32)},
    "n5": {},
    "precomputed": {"kind": "segmentation", "dtype": "uint64"},
}


def found(path: object) -> Report:
    report = look(InfoConfig(str(path)))
    text = json.dumps(report.body, allow_nan=False)
    assert json.loads(text) == report.body
    assert all(line == line.rstrip() and "\n" not in line for line in report.lines)
    return report


def layout(form: str, shape=(40, 32, 20), size=SIZE, origin=(5, 6, 7), **other) -> VolumeLayout:
    stated = {"kind": "image", "dtype": "uint8", "shard": None} | LAYOUTS[form] | other
    return VolumeLayout(
        shape,
        stated.pop("dtype"),
        stated.pop("kind"),
        size,
        origin,
        (16, 16, 16),
        stated.pop("shard"),
        form,
        **stated,
    )


def written(path: pathlib.Path, form: str) -> pathlib.Path:
    """A volume that this package writes."""
    target = Target(str(path), layout(form))
    create_levels([target], MADE, name="brain")
    volume = open_for_writing(target)
    box = volume.spec.domain
    write_box(volume, box, made.noise(box.shape, target.layout.dtype))
    return path


def value(report: Report, name: str) -> str:
    """What a line of the text says after a name."""
    (line,) = [x for x in report.lines if x.split(maxsplit=1)[:1] == [name]]
    return line.split(maxsplit=1)[1]


# Volumes


@pytest.mark.parametrize("form", LAYOUTS)
def test_a_volume_that_we_write_tells_all_that_was_stored_with_it(tmp_path, form):
    report = found(written(tmp_path / "v", form))
    body = report.body
    (scale,) = body["scales"]
    assert (report.what, body["kind"]) == ("volume", LAYOUTS[form].get("kind", "image"))
    assert scale["voxel_size_nm"] == list(SIZE)
    assert (scale["origin_vx"], scale["shape"]) == ([5, 6, 7], [40, 32, 20])
    assert scale["chunk"] == [16, 16, 16]
    assert scale["shard"] == ([32, 32, 32] if "shard" in LAYOUTS[form] else None)
    stored = scale["stored"]
    assert (stored["objects_missing"], stored["chunks"], stored["chunks_stored"]) == (0, 12, 12)
    assert stored["decoded_bytes"] == 40 * 32 * 20 * np.dtype(scale["dtype"]).itemsize
    assert stored["compression"] == pytest.approx(stored["decoded_bytes"] / stored["bytes"])
    provenance = body["provenance"]
    assert provenance["attributes"] == MADE
    assert provenance["source"] == "/data/em.npy"
    assert provenance["by"] == "segclr-beam 1.2.3, 2026-11-22T10:00:00+00:00"
    assert value(report, "source") == "/data/em.npy"
    assert value(report, "command") == MADE["command"]
    assert value(report, "missing") == "nothing"
    kind = "a segmentation" if form == "precomputed" else "an image"
    assert report.lines[0].startswith(f"{tmp_path / 'v'}: {kind}, ")
    assert "8 x 8 x 40" in " ".join(report.lines)
    expected = {"version": "0.5", "name": "brain", "type": None} if form == "ome-zarr" else None
    assert body["ome"] == expected


def test_a_sharded_volume_reads_at_a_glance(tmp_path):
    path = written(tmp_path / "em.zarr", "zarr3")
    size = sum(p.stat().st_size for p in (path / "c").rglob("*") if p.is_file())
    head, *lines = found(path).lines
    assert head == f"{path}: an image, zarr3"
    assert lines[:5] == [
        "  voxels  uint8",
        "  axes    x, y, z as stored; lengths below are x, y, z",
        "  extent  0.32 x 0.256 x 0.8 um",
        "  codec   sharding 32x32x32 of 16x16x16: bytes, zstd 1, crc32c",
        "",
    ]
    assert lines[5].split() == [
        *("voxel", "nm", "shape", "origin", "chunk", "shard", "stored", "bytes", "ratio")
    ]
    assert lines[6].startswith(
        "  8 x 8 x 40  40 x 32 x 20  5, 6, 7  16 x 16 x 16  32 x 32 x 32  2 "
    )
    assert "2 of 2 shards, 12 of 12 chunks  " in lines[6]
    assert f"{size / 1000:.3g} kB" in lines[6]


def test_a_pyramid_has_a_row_a_scale_and_names_what_is_missing(tmp_path):
    path = tmp_path / "v"
    for i in range(3):
        shape, resolution = (40 >> i, 32 >> i, 20 >> i), (8 << i, 8 << i, 40 << i)
        made.precomputed(path, made.noise(shape), (16, 16, 16), resolution=resolution)
    (path / "8_8_40" / "16-32_0-16_16-20").unlink()
    report = found(path)
    assert report.lines[0].endswith(": an image, neuroglancer precomputed, 3 scales")
    names = ("8_8_40", "16_16_80", "32_32_160")
    rows = [line.split() for line in report.lines if line.split()[:1] in [[n] for n in names]]
    assert [r[0] for r in rows] == list(names)
    assert value(report, "missing") == "8_8_40: 1 chunk: [16:32, 0:16, 16:20)"
    one, two, three = (s["stored"] for s in report.body["scales"])
    assert (one["objects"], one["objects_missing"]) == (12, 1)
    assert one["missing"] == [
        {
            "key": "8_8_40/16-32_0-16_16-20",
            "box": {"start": [16, 0, 16], "stop": [32, 16, 20]},
        }
    ]
    assert (two["objects_missing"], three["objects_missing"]) == (0, 0)


def test_a_provenance_file_of_others_is_told(tmp_path):
    path = made.precomputed(tmp_path / "v", made.noise((20, 15, 10)), (16, 16, 16))
    document = {
        "description": "",
        "owners": ["owner@lab"],
        "sources": ["gs://lab/em"],
        "processing": [
            {"method": {"task": "TransferTask"}, "by": "me@lab", "date": "2020-01-01"},
            {"method": {"task": "DownsampleTask"}, "by": "you@lab", "date": "2020-01-02"},
        ],
    }
    (path / "provenance").write_text(json.dumps(document))
    report = found(path)
    assert report.body["provenance"]["file"] == document
    assert report.body["provenance"]["attributes"] is None
    assert value(report, "source") == "gs://lab/em"
    assert value(report, "made").split(maxsplit=1) == ["by", "you@lab, 2020-01-02"]
    assert value(report, "processing") == '{"task":"TransferTask"}'
    (path / "provenance").write_text(json.dumps({"owners": [], "sources": 3, "processing": "x"}))
    assert found(path).body["provenance"]["source"] is None


def test_keys_of_the_json_are_the_same_for_every_format(tmp_path):
    keys, scales, stored = set(), set(), set()
    for name, maker in MAKERS.items():
        body = found(maker(tmp_path / name.replace(" ", "-"))).body
        keys.add(tuple(body))
        scales.add(tuple(body["scales"][0]))
        stored.add(tuple(body["scales"][0]["stored"]))
    assert (len(keys), len(scales), len(stored)) == (1, 1, 1)
    assert keys == {
        ("path", "url", "format", "kind", "ome", "scales", "provenance", "view", "checks"),
    }


def test_a_volume_over_the_web_is_told_without_what_needs_a_list(tmp_path):
    written(tmp_path / "v", "zarr3")
    with served(tmp_path) as server:
        report = found(f"{server.url}/v")
        missing = value(report, "missing")
        with pytest.raises(RequestError, match=f"^{server.url}/w is nothing known here: look"):
            look(InfoConfig(f"{server.url}/w"))
    (scale,) = report.body["scales"]
    assert (scale["stored"]["objects"], scale["stored"]["objects_stored"]) == (2, None)
    assert missing.startswith(f"unknown: {server.url}/v/ cannot be listed")
    assert report.body["provenance"]["source"] == "/data/em.npy"
    assert "unknown of 2 shards" in " ".join(report.lines)


def test_a_query_string_is_never_told(tmp_path):
    written(tmp_path / "v", "zarr3")
    with served(tmp_path) as server:
        report = found(f"{server.url}/v?token=SECRET")
    assert "SECRET" not in json.dumps(report.body) + "".join(report.lines)


# Views


def test_a_view_is_told_by_its_volumes_and_steps(tmp_path):
    path = written(tmp_path / "em.zarr", "zarr3")
    document = {
        "format": "segclr-beam-view",
        "format_version": 1,
        "of": "em.zarr",
        "steps": [{"op": "crop", "start": [10, 10, 10]}, {"op": "stride", "step": [2, 2, 1]}],
    }
    file = tmp_path / "view.json"
    file.write_text(json.dumps(document))
    for given in (file, f"@{file}"):
        report = found(given)
        assert (report.what, report.body["format"]) == ("volume", "view")
        assert tuple(report.body) == tuple(found(path).body)
        assert report.body["view"]["document"] == document
        (volume,) = report.body["view"]["volumes"]
        assert volume["volume"]["source"] == str(path)
        (scale,) = report.body["scales"]
        assert (scale["voxel_size_nm"], scale["shape"]) == ([16.0, 16.0, 40.0], [18, 14, 17])
        assert tuple(scale) == tuple(found(path).body["scales"][0])
        assert report.lines[0].endswith(
            "view.json: an image, a view; it stores nothing and is computed as it is read"
        )
        made_of = [line.split(maxsplit=2) for line in report.lines if "made of" in line]
        assert made_of[0][2] == f"{path} (zarr3, uint8, 40 x 32 x 20)"
        steps = [line.strip() for line in report.lines[-2:]]
        assert steps[0].startswith("1. crop ")
        assert steps[1].startswith("2. stride ")


def test_a_view_that_cannot_be_opened_is_told_with_the_reason(tmp_path):
    document = {"format": "segclr-beam-view", "format_version": 1, "of": "gone.zarr"}
    (tmp_path / "view.json").write_text(json.dumps(document))
    report = found(tmp_path / "view.json")
    assert report.body["view"]["document"] == document
    assert report.body["scales"] == []
    (reason,) = report.body["checks"]
    assert "gone.zarr does not exist" in reason
    assert value(report, "notice") == reason


# What is noticed


def notices(path: object) -> list[str]:
    noticed = found(path).body["checks"]
    assert isinstance(noticed, list)
    return noticed


def ome(path: pathlib.Path, axes: str, scales, units: bool = True) -> pathlib.Path:
    """An OME-Zarr image whose axes are named by letters."""
    types = {"t": "time", "c": "channel"}
    document = [{"name": a, "type": types.get(a, "space")} for a in axes]
    for axis in document if units else []:
        if axis["type"] == "space":
            axis["unit"] = "nanometer"
    group = made.ome_group(path, made.multiscale(scales, [None] * len(scales), document), "0.5")
    for i in range(len(scales)):
        shape = tuple(1 if a in "tc" else 16 for a in axes)
        made.zarr3(group / f"s{i}", made.noise(shape), shape, names=tuple(axes))
    return path


def test_the_order_of_ome_axes_is_checked(tmp_path):
    assert not [n for n in notices(ome(tmp_path / "a", "czyx", [[1, 8, 8, 8]])) if "OME" in n]
    (turned,) = [n for n in notices(ome(tmp_path / "b", "xyz", [[8, 8, 8]])) if "OME" in n]
    assert turned.startswith("OME-Zarr 0.5: the axes are stored as x, y, z; z, y, x is what it rec")
    (wrong,) = [n for n in notices(ome(tmp_path / "c", "zyxc", [[8, 8, 8, 1]])) if "OME" in n]
    assert wrong == ("OME-Zarr 0.5: the axes z, y, x, c must be ordered time, channel, space")
    coarse = notices(ome(tmp_path / "d", "zyx", [[16, 16, 16], [8, 8, 8]]))
    assert "OME-Zarr 0.5: levels must be listed from the finest to the coarsest" in coarse
    same = notices(ome(tmp_path / "e", "zyx", [[8, 8, 8], [8, 8, 8]]))
    assert "s1: another level has the same voxel size, so --scale cannot tell them apart" in same
    bare = notices(ome(tmp_path / "f", "zyx", [[8, 8, 8]], units=False))
    assert "OME-Zarr 0.5: the axes z, y, x have no unit" in bare
    assert "s0: no voxel size is stated; jobs need --voxel-size X,Y,Z (nm)" in bare


def test_what_will_surprise_is_told(tmp_path):
    path = made.zarr2(tmp_path / "bare", made.noise((20, 15, 10)), (16, 16, 16))
    assert notices(path) == [
        "no voxel size is stated; jobs need --voxel-size X,Y,Z (nm)",
        "no axes are stated; the stored order is taken as x, y, z",
        "chunks carry no checksum, so a flipped bit is read as another voxel",
        "it takes more than its voxels do (8.19 kB for 3 kB)",
    ]
    attributes = {"resolution": [8, 8, 8, 1], "voxel_offset": [0.5, 0, 0, 0], "axes": list("xyzc")}
    path = made.zarr2(tmp_path / "c", made.noise((16, 16, 16, 3)), (16, 16, 16, 1), attributes)
    assert notices(path)[:2] == [
        "the origin (0.5, 0.0, 0.0) lies between voxels, so jobs refuse this level",
        "it has 3 of channel; a volume has 1, so jobs refuse it",
    ]
    path = MAKERS["precomputed"](tmp_path / "p")
    (path / "8_8_40" / "x.gz").write_bytes(b"")
    assert notices(path) == [
        "8_8_40: 1 among the files of its chunks are no chunk's, such as 8_8_40/x.gz; they are not "
        "read"
    ]
    path = MAKERS["zarr3 sharded"](tmp_path / "s")
    (path / "c" / "0" / "0" / "0").write_bytes(b"")
    (damaged,) = [n for n in notices(path) if "damaged" in n]
    assert damaged.startswith("shards that are damaged: 1; the shard c/0/0/0 has a damaged index")


def test_a_level_that_cannot_be_opened_is_told_beside_the_others(tmp_path):
    path = ome(tmp_path / "v", "zyx", [[8, 8, 8], [16, 16, 16]])
    (path / "s1" / "zarr.json").unlink()
    report = found(path)
    whole, gone = report.body["scales"]
    assert whole["stored"]["objects_missing"] == 0
    assert list(gone) == ["path", "error"]
    assert report.body["checks"][0].startswith("s1: NOT_FOUND")
    assert [line for line in report.lines if line.startswith("  s1 ")]


def test_an_exabyte_is_told_in_seconds(tmp_path):
    kind = sharding(9, 6, 40, "identity")
    writer = precomputed(tmp_path / "v", [10**6] * 3, [64] * 3, kind)
    writer[500_000, 500_000, 500_000, 0] = 7
    began = time.monotonic()
    report = found(tmp_path / "v")
    assert time.monotonic() - began < 10
    (scale,) = report.body["scales"]
    assert scale["stored"]["chunks"] == 15625**3
    assert scale["stored"]["chunks_stored"] == 1
    assert "1 of 3,814,697,265,625 chunks" in " ".join(report.lines)


# Stores and models


def test_a_store_is_told_by_its_documents(tmp_path):
    generation = versioned.generation_of(tmp_path)
    report = found(generation.store)
    assert report.what == "store"
    assert (report.body["rows"], report.body["model"]) == (None, None)
    assert value(report, "embeddings") == "no version is published yet"
    versioned.publish(generation, {"0_0_0": [(HUGE, 1, 1), (1, 2, 2)], "1_0_0": []}, "first")
    model = resolve_model("untrained:width=2,input=17,embedding=4")
    store.write_run(generation.store, "first", "manifest", {"model": model.to_json()})
    report = found(generation.store)
    body = report.body
    assert (body["name"], body["width"], body["lattice"]) == ("store", 4, [8, 8, 8])
    assert (body["rows"], body["runs"], body["model"]) == (2, 1, model.title)
    assert [v["version"] for v in body["versions"]] == [1]
    assert [g["name"] for g in body["generations"]] == ["1"]
    assert value(report, "embeddings") == "2 in 2 boxes, version 1"
    assert value(report, "lattice") == "boxes of 8 x 8 x 8 voxels"
    assert report.lines[-2].split()[:3] == ["version", "published", "job"]


def test_models_are_told_however_they_are_named(tmp_path):
    prefix = write_public_checkpoint(tmp_path / "model", NARROW, 0)
    for path in (tmp_path / "model", prefix, f"{prefix}.index"):
        report = found(path)
        assert report.what == "model"
        assert (report.body["file"], report.body["step"]) == (prefix, 1234)
        assert report.body["kind"] == "tf2-public"
        assert report.body["embedding_width"] == 3
        assert value(report, "embeddings") == "3 numbers each"
        assert report.body["fingerprint"] in value(report, "fingerprint")
    untrained = found("untrained:width=2,input=17,embedding=4")
    assert untrained.lines[0].endswith(
        ": a model, untrained network (seed 0, ResNet-18, width 2, D=4)"
    )


# What is nothing known


def test_what_is_nothing_known_is_told_with_what_was_looked_for(tmp_path):
    (tmp_path / "notes").mkdir()
    for name in "abcde":
        (tmp_path / "notes" / name).write_text("x")
    with pytest.raises(RequestError) as error:
        look(InfoConfig(str(tmp_path / "notes")))
    assert str(error.value) == (
        f"{tmp_path}/notes is nothing known here: looked in it for store.json (an embedding "
        "store), zarr.json, .zarray, .zgroup, .zattrs, info or attributes.json (a volume) and "
        "*.index or checkpoint (a model) and found none (it holds a, b, c, d, ...); give a "
        "volume's directory or URL, a view or TensorStore spec (inline, or @file.json), an "
        "embedding store, a checkpoint's prefix or directory, or a .keras file"
    )
    for name, said in [
        ("nowhere", "nowhere does not exist; give a volume's directory or URL"),
        ("notes/a", "notes/a is a file that is no model (.keras, or a checkpoint's .index)"),
        ("none.keras", "there is no model at .*none.keras: no such file"),
    ]:
        with pytest.raises(RequestError, match=said.replace("(", r"\(").replace(")", r"\)")):
            look(InfoConfig(str(tmp_path / name)))
    with pytest.raises(RequestError, match="^the path of info was empty; give a volume's"):
        InfoConfig(" ")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"found none \(it is empty\)"):
        look(InfoConfig(str(tmp_path / "empty")))


@pytest.mark.parametrize("given", ["{", '{"driver": 3}', "@nothing.json", "gopher://a/b"])
def test_a_spec_that_is_none_is_refused(given):
    with pytest.raises(RequestError):
        look(InfoConfig(given))


def test_nothing_is_written(tmp_path):
    path = written(tmp_path / "v", "precomputed")
    before = sorted((str(p), os.stat(p).st_mtime_ns) for p in path.rglob("*"))
    found(path)
    assert sorted((str(p), os.stat(p).st_mtime_ns) for p in path.rglob("*")) == before
