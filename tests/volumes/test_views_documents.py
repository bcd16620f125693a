import json

import pytest

from tests.volumes import sample_volumes as made
from tests.volumes.view_cases import DATA, DOMAIN, IDS, a_zarr, resolved, view
from volumes.errors import RequestError
from volumes.opening import resolve_volume


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return a_zarr(tmp_path_factory.mktemp("views") / "em")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return a_zarr(tmp_path_factory.mktemp("views") / "ids", IDS)


BAD = [
    (
        {"op": "crop", "start": [0, 0, 0]},
        r"step 1 \(crop\): gives x 0:25, and the volume has x 5:25",
    ),
    ({"op": "crop", "stop": {"w": 3}}, r"\(crop\): there is no axis 'w', but x, y, z; name one"),
    (
        {"op": "crop", "start": [1, 2]},
        r"has start \[1, 2\]; three values \[x, y, z\], or an object",
    ),
    ({"op": "crop", "begin": 1}, r"\(crop\): has no member 'begin'; it has op, start, stop"),
    ({"op": "crop", "strat": [1, 1, 1]}, r"has no member 'strat'; did you mean 'start'\?"),
    ({"op": "crpo"}, r"\(crpo\): there is no such operation; did you mean crop\?"),
    ({}, r"step 1 \(None\): needs the member 'op', which is not there"),
    ("crop", r"step 1 \(None\): has a step 'crop'; an object is needed"),
    ({"op": "stride", "step": [0, 1, 1]}, r"step along x, 0; a whole number of at least 1"),
    ({"op": "stride", "step": {"z": 18}}, r"multiples of 18 along z, and there is none in 7:17"),
    ({"op": "translate"}, "gives neither by nor to"),
    ({"op": "translate", "by": [2**62, 0, 0]}, r"reaches over x .*, and indices end at 2\*\*62"),
    ({"op": "transpose", "axes": "zzx"}, "has axes z,z,x; x, y and z are needed, each once"),
    ({"op": "cast", "dtype": "complex64"}, "has dtype 'complex64'; a type of integers or floats"),
    ({"op": "cast", "dtype": "uint8", "rule": "round"}, "rule 'round'; one of exact, clip, wrap"),
    ({"op": "downsample", "factors": [2, 2, 2]}, "needs the member 'method'"),
    ({"op": "stack", "axis": "z"}, r"stacks along z, along which a volume has 7:17; only sections"),
    ({"op": "relabel"}, 'needs either "table", a file, or "map"'),
    (
        {"op": "relabel", "table": "absent.csv"},
        r"relabel\): /.*absent\.csv cannot be read: No such file",
    ),
    ({"op": "mask"}, r"\(mask\): needs the member 'by', which is not there"),
    ({"op": "mask", "by": 7}, "is made of '7', which is no volume; give a path"),
    ({"op": "contrast", "low": 9, "high": 3}, "has low 9 and high 3; low must be below high"),
    ({"op": "contrast", "method": "clahe", "clip": 0}, "has clip 0.0; a share of the voxels"),
    ({"op": "label", "axes": {"x": "y"}}, "has the axes y, y, z; each name may stand for one axis"),
    (
        {"op": "label", "axes": {"x": "w"}},
        "comes out has the axes w, y, z, of more than one index along w; a vol",
    ),
    ({"op": "label", "voxel_size_nm": {"x": 9}}, "voxels of 9 nm along x, and they have 8"),
    ({"op": "broadcast", "axis": "channel", "size": 3}, "of more than one index along channel"),
    ({"op": "function", "function": "os"}, "has function 'os'; a function is named package.mod"),
]


@pytest.mark.parametrize(("step", "message"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_step_is_told(image, step, message):
    with pytest.raises(RequestError, match=message):
        resolved(image, step)


def test_a_bad_document_is_told(image):
    good = json.loads(view(image))
    for change, message in (
        ({"format": "view"}, "has format 'view', and a view has 'segclr-beam-view'"),
        ({"format_version": 2}, "is a view of version 2, made for newer software; this one reads"),
        ({"format_version": "1"}, "has format_version '1'; it is 1 here"),
        ({"step": []}, "the view has no member 'step'; did you mean 'steps'?"),
        ({"steps": {}}, r"the view has steps \{\}; a list is needed"),
        ({"of": []}, "is made of 0 volumes and its first step is None; several are joined first"),
        ({"of": [str(image)] * 2}, "made of 2 volumes and its first step is None"),
        ({"of": 3}, "is made of '3', which is no volume"),
        ({"of": {"volume": str(image), "sale": 1}}, "a volume of it has no member 'sale'; did you"),
        ({"of": {"volume": good, "kind": "image"}}, "states kind beside a view, which has its own"),
        ({"steps": [{"op": "crop"}] * 257}, "has 257 steps, and 256 are the most"),
        (
            {"steps": [{"op": "crop"}, {"op": "stack", "axis": "z"}]},
            r"step 2 \(stack\): joins several volumes, and stands after another step",
        ),
    ):
        with pytest.raises(RequestError, match=message.replace("?", r"\?")):
            resolve_volume(json.dumps(good | change), kind=None)
    with pytest.raises(RequestError, match="needs the member 'of'"):
        resolve_volume(json.dumps({k: v for k, v in good.items() if k != "of"}), kind=None)


def test_volumes_that_do_not_fit_together_are_told(tmp_path, image, labels):
    coarse = json.loads(view(image, {"op": "stride", "step": [2, 2, 2]}))
    wide = json.loads(view(image, {"op": "cast", "dtype": "uint16"}))
    shifted = json.loads(view(image, {"op": "translate", "by": [0, 1, 0]}))
    join = {"op": "concat", "axis": "x"}
    for other, message in (
        (coarse, "joins voxels of 8.0 nm along x and, as number 2, of 16.0 nm"),
        (wide, "joins voxels of uint8 and, as number 2, of uint16; all must be of one"),
        (str(labels), "joins voxels of uint8 and, as number 2, of uint64"),
        (shifted, "along all axes but x they must have the same voxels"),
    ):
        with pytest.raises(RequestError, match=message):
            resolved([image, other], join)
    section = made.zarr3(tmp_path / "s", DATA[:, :, 0], (8, 8), names=("x", "y"))
    with pytest.raises(
        RequestError, match="axes x, y, z and|with x, y, z and, as number 2, one wi"
    ):
        resolved([image, section], join)
    with pytest.raises(RequestError, match="no voxel size along x, y, z, and a volume needs"):
        resolved([section, section], {"op": "stack", "axis": "z"})


def test_a_view_that_refers_to_itself_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    a, b = tmp_path / "a.json", tmp_path / "sub" / "b.json"
    (tmp_path / "sub" / "link.json").symlink_to(a)
    for back in ("@../a.json", {"file": "link.json"}, {"volume": "@../sub/../a.json"}, f"@{a}"):
        a.write_text(view("@sub/b.json"))
        b.write_text(view(back))
        circle = f"{a} -> {b} -> {a}"
        with pytest.raises(RequestError, match=f"refers to itself: {circle}; a view is made of"):
            resolve_volume("@a.json", kind=None)
    a.write_text(view({"file": "a.json"}))
    with pytest.raises(RequestError, match=f"@a.json refers to itself: {a} -> {a};"):
        resolve_volume("@a.json", kind=None)
    a.write_text(view("@absent.json"))
    with pytest.raises(RequestError, match="there is no file .*absent.json"):
        resolve_volume("@a.json", kind=None)


def test_views_too_deep_or_too_many_are_told(tmp_path, image):
    inner = str(image)
    for _ in range(33):
        inner = json.loads(view(inner))
    with pytest.raises(
        RequestError, match="views are 33 deep in one another, and 32 are the most; put"
    ):
        resolve_volume(json.dumps(inner), kind=None)
    with pytest.raises(RequestError, match="nested too deep"):
        resolve_volume('{"format": ' + '{"a": ' * 20_000 + "1" + "}" * 20_001, kind=None)
    (tmp_path / "v0.json").write_text(view(str(image)))
    for i in range(1, 30):  # twice as many volumes each time
        of = [f"@v{i - 1}.json"] * 2
        (tmp_path / f"v{i}.json").write_text(view(of, {"op": "overlay"}))
    with pytest.raises(RequestError, match="is made of more than 100,000 volumes"):
        resolve_volume(f"@{tmp_path}/v29.json", kind=None)
    (tmp_path / "w0.json").write_text(view("@v2.json"))
    for i in range(1, 30):  # the files that were read before lie deeper here
        (tmp_path / f"w{i}.json").write_text(view(f"@w{i - 1}.json"))
    both = [f"@{tmp_path}/{name}.json" for name in ("v2", "w27")]
    assert resolved(both, {"op": "overlay"}).domain == DOMAIN
    with pytest.raises(RequestError, match="views are 33 deep in one another"):
        resolved([both[0], f"@{tmp_path}/w28.json"], {"op": "overlay"})
