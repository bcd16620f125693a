import pathlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.demo.picture import Section, cut_section, draw_demo, knn_accuracy, project_2d


def test_projection_of_a_known_case() -> None:
    # Standardised, both columns are t / std(t): one direction holds everything.
    t = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    points, explained = project_2d(np.stack([10 + 3 * t, 5 * t], axis=1).astype(np.float32))
    np.testing.assert_allclose(points[:, 0], t, atol=1e-6)
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(explained, [1, 0], atol=1e-12)


def test_projection_of_two_directions_of_known_share() -> None:
    # Three columns follow a, one follows b, a and b are orthogonal: shares 3/4 and 1/4.
    a, b = np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])
    points, explained = project_2d(np.stack([a, a, -a, b], axis=1).astype(np.float32))
    np.testing.assert_allclose(explained, [0.75, 0.25], atol=1e-12)
    np.testing.assert_allclose(np.abs(points[:, 0]), np.sqrt(3), atol=1e-12)
    np.testing.assert_allclose(points[:, 1], b, atol=1e-12)


def test_projection_of_too_little_is_zero() -> None:
    points, explained = project_2d(np.ones((1, 8), np.float32))
    assert points.tolist() == [[0.0, 0.0]]
    assert explained.tolist() == [0.0, 0.0]
    points, explained = project_2d(np.array([[1.0], [3.0]], np.float32))
    np.testing.assert_allclose(points, [[-1, 0], [1, 0]])
    np.testing.assert_allclose(explained, [1, 0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(8, 40), width=st.integers(2, 6))
def test_projection_follows_rows_and_ignores_scale(seed: int, n: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    # Correlated columns: distinct shares, so that the components are well defined.
    mix = np.eye(width) + np.linspace(0.5, 1.5, width)[:, None]
    vectors = (rng.standard_normal((n, width)) @ mix).astype(np.float32)
    points, explained = project_2d(vectors)
    assert 1 + 1e-9 >= explained.sum() >= explained[0] >= explained[1] >= 0
    order = rng.permutation(n)
    moved, shares = project_2d(vectors[order] * np.float32(4) + np.float32(1))
    np.testing.assert_allclose(shares, explained, atol=1e-4)
    for i in range(2):
        # The components' lengths do not depend on the sign that near-ties may turn.
        np.testing.assert_allclose(
            np.sort(np.abs(moved[:, i])), np.sort(np.abs(points[order, i])), atol=0.05
        )


def test_vectors_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 1\) cannot be compared: they must be finite"):
        project_2d(np.array([[1.0], [np.nan]], np.float32))
    with pytest.raises(ValueError, match=r"shape \(0, 4\)"):
        project_2d(np.empty((0, 4), np.float32))


def labelled(
    *groups: tuple[str, int, float, int],
) -> tuple[npt.NDArray[np.float32], list[str], npt.NDArray[np.uint64]]:
    """Vectors around ``(at, at)``, from tuples of kind, segment, at and count."""
    vectors, kinds, segments = [], [], []
    for kind, segment, at, count in groups:
        for i in range(count):
            vectors.append([at + 0.01 * i, at])
            kinds.append(kind)
            segments.append(segment)
    return np.array(vectors, np.float32), kinds, np.array(segments, np.uint64)


def test_neighbours_of_other_segments_agree() -> None:
    groups = (("a", 1, 0.0, 6), ("a", 2, 0.1, 6), ("b", 3, 9.0, 6), ("b", 4, 9.1, 12))
    accuracy, majority = knn_accuracy(*labelled(*groups))
    assert accuracy == 1.0
    assert majority == 0.6


def test_a_vector_is_not_recognised_by_its_own_segment() -> None:
    # Each segment is a tight cloud of its own; the nearest other segment is of the other kind.
    groups = (("a", 1, 0.0, 9), ("b", 2, 1.0, 9), ("a", 3, 10.0, 9), ("b", 4, 11.0, 9))
    accuracy, majority = knn_accuracy(*labelled(*groups))
    assert accuracy == 0.0
    assert majority == 0.5


def test_identities_that_float64_cannot_tell_apart_are_two_segments() -> None:
    vectors, kinds, _ = labelled(("a", 1, 0.0, 3), ("a", 2, 0.0, 3))
    segments = np.array([2**53] * 3 + [2**53 + 1] * 3, np.uint64)
    assert knn_accuracy(vectors, kinds, segments) == (1.0, 1.0)


def test_fewer_neighbours_than_asked_still_vote() -> None:
    vectors, kinds, segments = labelled(("a", 1, 0.0, 2), ("b", 2, 1.0, 1), ("a", 3, 0.1, 1))
    accuracy, majority = knn_accuracy(vectors, kinds, segments, k=50)
    # Of the others: segment 1 sees b and the nearer a; b sees only a; segment 3 sees two a, one b.
    assert (accuracy, majority) == (0.75, 0.75)


def test_blocks_of_rows_give_what_one_by_one_gives() -> None:
    rng = np.random.default_rng(5)
    n = 1100
    segments = rng.integers(0, 60, n).astype(np.uint64)
    kinds = [("a", "b", "c")[int(s) % 3] for s in segments]
    shift = np.array([{"a": 0.0, "b": 1.0, "c": 2.0}[k] for k in kinds])
    vectors = (rng.standard_normal((n, 4)) + shift[:, None]).astype(np.float32)
    values = (vectors - vectors.mean(0, dtype=np.float64)) / vectors.std(0, dtype=np.float64)
    met = 0
    for i in range(n):
        others = np.flatnonzero(segments != segments[i])
        nearest = others[np.argsort(((values[others] - values[i]) ** 2).sum(1))[:1]]
        met += kinds[nearest[0]] == kinds[i]
    accuracy, _ = knn_accuracy(vectors, kinds, segments, k=1)
    assert accuracy == pytest.approx(met / n)
    assert 0.4 < accuracy < 0.95


def test_one_segment_or_uneven_input_is_refused() -> None:
    vectors, kinds, segments = labelled(("a", 1, 0.0, 3))
    with pytest.raises(ValueError, match=r"5 neighbours .* 3 vectors of 1 segment"):
        knn_accuracy(vectors, kinds, segments)
    with pytest.raises(ValueError, match="3 vectors, 2 kinds and 3 segments do not belong"):
        knn_accuracy(vectors, kinds[:2], segments)


@pytest.mark.parametrize(("axis", "kept"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_a_section_shows_its_plane_and_the_sites_near_it(axis: int, kept: tuple[int, int]) -> None:
    image = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    labels = image.astype(np.uint64) + np.uint64(2**53)
    sites = np.array([[1.0, 2, 3], [2, 2, 2], [3, 3, 3]])
    got = cut_section(image, labels, (8.0, 16.0, 32.0), sites, ["p", "q", "r"], axis, 2)
    near = np.flatnonzero(sites[:, axis] == 2)
    assert len(near) >= 1
    assert got.name.endswith(f"section at {'xyz'[axis]} = 2")
    assert np.array_equal(got.image, np.take(image, 2, axis))
    assert np.array_equal(got.labels, np.take(labels, 2, axis))
    assert got.pixel_nm == tuple((8.0, 16.0, 32.0)[a] for a in kept)
    assert np.array_equal(got.sites_vx, sites[near][:, kept])
    assert got.kinds == tuple("pqr"[i] for i in near)


def drawing() -> tuple[list[Section], npt.NDArray[np.float32], list[str]]:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 255, (40, 32, 24)).astype(np.uint8)
    labels = np.repeat(np.arange(40, dtype=np.uint64) // 8, 32 * 24).reshape(40, 32, 24)
    sites = rng.random((30, 3)) * image.shape
    kinds = [("axon", "dendrite", "glia")[i % 3] for i in range(30)]
    sections = [
        cut_section(image, labels, (16.0, 16.0, 16.0), sites, kinds, axis, 10, 4.0)
        for axis in (2, 1)
    ]
    return sections, rng.standard_normal((30, 8)).astype(np.float32), kinds


def test_the_picture_is_whole_and_the_same_each_time(tmp_path: pathlib.Path) -> None:
    sections, vectors, kinds = drawing()
    path = tmp_path / "made" / "demo.png"
    draw_demo(path, "untrained network (seed 0)", "A caption.", sections, vectors, kinds)
    first = path.read_bytes()
    draw_demo(path, "untrained network (seed 0)", "A caption.", sections, vectors, kinds)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["demo.png"]
    with Image.open(path) as picture:
        assert picture.size == (1800, 1200)
        assert len(np.unique(np.array(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 500
    draw_demo(path, "another network", "A caption.", sections, vectors, kinds)
    assert path.read_bytes() != first


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    sections, vectors, kinds = drawing()
    path = tmp_path / "demo.png"
    path.write_bytes(b"old")
    vectors[3, 2] = np.inf
    with pytest.raises(ValueError, match="must be finite"):
        draw_demo(path, "title", "caption", sections, vectors, kinds)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["demo.png"]
