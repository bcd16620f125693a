"""Volumes that ``convert`` and ``downsample`` write open in Neuroglancer, in headless Chromium.

A bright ball in a grey image is one segment: both layers are drawn, together and alone, and each
pixel is compared with the voxel that lies under it by the volumes' own sizes and origins.
"""

import importlib.metadata
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.cli import main
from pipelines.demo.job import DemoConfig, make_sample
from pipelines.demo.phantom import make_phantom
from tests.interop.browser import Pixels, Window, window
from tests.interop.cors import served
from tests.interop.oracle import HUGE

pytestmark = pytest.mark.slow

SHAPE = (96, 80, 40)
SIZE = (8.0, 8.0, 16.0)
ORIGIN = (100, -50, 7)
CENTRE = (141, -7, 29)
RADIUS_NM = 200.0
PICTURE = (480, 400)
COLOUR = (255, 0, 0)

# What Neuroglancer takes as the place of the first voxel's corner, in voxels. To it an OME-Zarr
# translation is a voxel's centre; a plain Zarr array has no place at all.
STARTS: dict[str, tuple[float, float, float]] = {
    "precomputed": ORIGIN,
    "ome-zarr": (ORIGIN[0] - 0.5, ORIGIN[1] - 0.5, ORIGIN[2] - 0.5),
    "zarr3": (0, 0, 0),
    "n5": (0, 0, 0),
}
# neuroglancer 2.40, the newest that agrees with Beam's dependencies below Python 3.13, knows no
# OME-Zarr 0.5. CI puts 2.41 beside Beam all the same.
OLD = importlib.metadata.version("neuroglancer").startswith("2.40.")
NO_OME = pytest.mark.skipif(OLD, reason="neuroglancer 2.40 does not read OME-Zarr 0.5")
FORMS = [pytest.param(f, marks=NO_OME) if f == "ome-zarr" else f for f in STARTS]
SCHEMES = {"precomputed": "precomputed", "ome-zarr": "zarr3", "zarr3": "zarr3", "n5": "n5"}


def ball() -> Any:
    """Whether a voxel lies in the ball, bool, XYZ."""
    axes = [
        (np.arange(n) + o - c) * s for n, o, c, s in zip(SHAPE, ORIGIN, CENTRE, SIZE, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < RADIUS_NM**2


@pytest.fixture(scope="module")
def browser() -> Any:
    with window() as opened:
        yield opened


@pytest.fixture(scope="module")
def place(browser: Window, tmp_path_factory: Any) -> Any:
    """The URL of the volumes, named ``em-FORMAT`` and ``seg-FORMAT``, and what is asked for."""
    folder: pathlib.Path = tmp_path_factory.mktemp("neuroglancer")
    grey = np.where(ball(), 230, 60) + np.arange(SHAPE[0])[:, None, None] % 7
    np.save(folder / "em.npy", grey.astype(np.uint8))
    np.save(folder / "seg.npy", np.where(ball(), HUGE, 0).astype(np.uint64))
    for name, kind in (("em", "image"), ("seg", "segmentation")):
        words = ["ingest", f"--source={folder}/{name}.npy", "--axes=xyz", f"--kind={kind}"]
        words += [f"--output={folder}/{name}", f"--voxel-size={numbers(SIZE)}"]
        run([*words, f"--origin={numbers(ORIGIN)}", "--chunk=32,32,16"])
        for form in STARTS:
            words = ["convert", f"--input={folder}/{name}", f"--output={folder}/{name}-{form}"]
            run([*words, f"--format={form}"])
        run(["downsample", f"--volume={folder}/{name}-ome-zarr", "--levels=1", "--factors=2,2,1"])
    (folder / "again").symlink_to(folder)  # a name by which the page has seen nothing yet
    with served(folder) as found:
        yield found


def run(words: list[str]) -> None:
    assert main([*words, "--quiet"]) == 0, words


def numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{v:g}" for v in values)


def layers(url: str, form: str) -> dict[str, dict[str, Any]]:
    """Both layers, without the box around them."""
    sources = {
        name: {
            "url": f"{SCHEMES[form]}://{url}/{name}-{form}",
            "subsources": {"default": True},
            "enableDefaultSubsources": False,
        }
        for name in ("em", "seg")
    }
    ids = str(HUGE)
    return {
        "em": {"type": "image", "name": "em", "source": sources["em"]},
        "seg": {
            "type": "segmentation",
            "name": "seg",
            "source": sources["seg"],
            "segments": [ids],
            "segmentColors": {ids: "#ff0000"},
            "selectedAlpha": 1.0,
        },
    }


def state(shown: list[dict[str, Any]], form: str, layout: str, voxels_a_pixel: float) -> Any:
    """What the viewer is asked to show, its middle at the ball's centre."""
    return {
        "dimensions": {a: [s * 1e-9, "m"] for a, s in zip("xyz", SIZE, strict=True)},
        "position": list(middle(form)),
        "crossSectionScale": voxels_a_pixel,
        "crossSectionBackgroundColor": "#000000",
        "layout": layout,
        "showAxisLines": False,
        "showScaleBar": False,
        "layers": shown,
    }


def middle(form: str) -> tuple[float, ...]:
    """The middle of the voxel in the ball's middle, in Neuroglancer's coordinates."""
    places = zip(STARTS[form], CENTRE, ORIGIN, strict=True)
    return tuple(s + c - o + 0.5 for s, c, o in places)


def expected(form: str, layout: str, voxels_a_pixel: float) -> Any:
    """Which pixels lie on the ball, bool ``[height, width]``, from sizes and origins alone."""
    (across, down), found = ["xyz".index(a) for a in layout], ball()
    index: list[Any] = [c - o for c, o in zip(CENTRE, ORIGIN, strict=True)]
    for axis, count, shape in ((across, PICTURE[0], (1, -1)), (down, PICTURE[1], (-1, 1))):
        step = voxels_a_pixel * min(SIZE) / SIZE[axis]
        pixels = middle(form)[axis] + (np.arange(count) + 0.5 - count / 2) * step
        index[axis] = np.floor(pixels - STARTS[form][axis]).astype(int).reshape(shape)
    inside = np.ones((1, 1), bool)
    for axis in (across, down):
        inside = inside & (index[axis] >= 0) & (index[axis] < SHAPE[axis])
        index[axis] = index[axis].clip(0, SHAPE[axis] - 1)
    return found[tuple(index)] & inside


def bright(picture: Pixels) -> Any:
    """The pixels of the image's ball."""
    return picture[..., 1] > 150


def coloured(picture: Pixels) -> Any:
    """The pixels of the segment."""
    return np.abs(picture[..., :3].astype(int) - COLOUR).max(axis=-1) < 40


def overlap(first: Any, second: Any) -> float:
    """Intersection over union; 0 where there is nothing."""
    return float((first & second).sum() / max(1, (first | second).sum()))


@pytest.mark.parametrize("layout", ["xy", "xz"])
@pytest.mark.parametrize("form", FORMS)
def test_image_and_segmentation_lie_where_they_are_stored(browser, place, form, layout):
    url, asked = place
    found = layers(url, form)
    taken = {
        name: browser.picture(state([layer], form, layout, 0.25), PICTURE)
        for name, layer in found.items()
    }
    on_ball = expected(form, layout, 0.25)
    assert 0.1 < on_ball.mean() < 0.5
    grey = taken["em"][..., :3]
    assert len(np.unique(grey)) > 10
    assert overlap(bright(taken["em"]), on_ball) > 0.995
    assert overlap(coloured(taken["seg"]), on_ball) > 0.995
    assert overlap(coloured(taken["seg"]), bright(taken["em"])) > 0.995
    if form == "precomputed":
        assert any(path.endswith(".shard") for path in asked)


@pytest.mark.parametrize("form", FORMS)
def test_both_layers_are_seen_at_once(browser, place, form, tmp_path):
    url, _ = place
    found = layers(url, form)
    found["seg"]["selectedAlpha"] = 0.4
    taken = browser.picture(state(list(found.values()), form, "xy", 0.25), PICTURE)
    keep(taken, form, tmp_path)
    on_ball = expected(form, "xy", 0.25)
    inside = taken[on_ball][:, :3].astype(int).mean(axis=0)
    # Grey 230 under two fifths of red; the tissue around it is grey alone.
    np.testing.assert_allclose(inside, [240, 140, 140], atol=12)
    around = taken[~on_ball][:, :3]
    tissue = around[around.max(axis=1) > 30]
    assert len(tissue) > len(around) / 2
    assert np.ptp(tissue.astype(int), axis=1).max() <= 2


@NO_OME
def test_the_coarser_level_lies_where_the_finest_does(browser, place):
    url, asked = place
    form = "ome-zarr"
    for name, layer in layers(f"{url}/again", form).items():
        taken = browser.picture(state([layer], form, "xy", 2.0), PICTURE)
        seen = bright(taken) if name == "em" else coloured(taken)
        on_ball = expected(form, "xy", 2.0)
        assert on_ball.sum() > 400
        assert overlap(seen, on_ball) > 0.9
        rows, columns = (np.nonzero(mask) for mask in (seen, on_ball))
        drift = np.abs(np.mean(rows, axis=1) - np.mean(columns, axis=1))
        assert drift.max() < 0.3, "in pixels of two voxels: half a voxel is a quarter"
        chunks = [p for p in asked if p.startswith(f"/again/{name}-ome-zarr/") and "/c/" in p]
        assert chunks
        assert all("/1/c/" in path for path in chunks)


def test_the_volumes_of_the_demo_lie_on_each_other(browser, tmp_path):
    """Each pixel of a section is a voxel: of the image its grey, of a segment its colour."""
    config = DemoConfig(output=str(tmp_path))
    assert make_sample(config)
    for ingest in config.ingests():
        words = ["ingest", f"--source={ingest.source}", f"--output={ingest.output}"]
        words += [f"--kind={ingest.kind}", f"--voxel-size={numbers(ingest.voxel_size_nm)}"]
        run([*words, *(["--dataset=stack", "--axes=zyx"] if ingest.dataset else [])])
    phantom = make_phantom(config.phantom)
    width, height, depth = config.phantom.shape
    grey, ids = phantom.image[:, :, depth // 2].T, phantom.labels[:, :, depth // 2].T
    known, counts = np.unique(ids[ids > 2**53], return_counts=True)
    chosen = known[counts.argmax()]
    assert (ids == chosen).mean() > 0.005
    with served(tmp_path) as (url, _):
        em = {"type": "image", "name": "em", "source": f"zarr3://{url}/em.zarr"}
        seg = {
            "type": "segmentation",
            "name": "seg",
            "source": f"zarr3://{url}/segmentation.zarr",
            "segments": [str(chosen)],
            "segmentColors": {str(chosen): "#ff0000"},
            "selectedAlpha": 1.0,
        }
        shown = {
            "dimensions": {"xyz"[i]: [s * 1e-9, "m"] for i, s in enumerate(ingest.voxel_size_nm)},
            "position": [width / 2, height / 2, depth // 2 + 0.5],
            "crossSectionScale": 1.0,
            "layout": "xy",
            "showAxisLines": False,
            "showScaleBar": False,
            "showDefaultAnnotations": False,
        }
        size = (width, height)
        grey_seen = browser.picture(shown | {"layers": [em]}, size)[..., :3].astype(int)
        ids_seen = coloured(browser.picture(shown | {"layers": [seg]}, size))
        everything = seg | {"segments": [], "selectedAlpha": 0.3, "notSelectedAlpha": 0.3}
        keep(browser.picture(shown | {"layers": [em, everything]}, size), "demo", tmp_path)
    assert np.ptp(grey_seen) > 100
    assert np.abs(grey_seen - grey[..., None]).max() <= 1
    np.testing.assert_array_equal(ids_seen, ids == chosen)


def keep(picture: Pixels, name: str, folder: pathlib.Path) -> None:
    """Save a picture, where a person can look at it if NEUROGLANCER_PICTURES names a folder."""
    target = pathlib.Path(os.environ.get("NEUROGLANCER_PICTURES") or folder)
    Image.fromarray(picture).save(target / f"neuroglancer-{name}.png")
