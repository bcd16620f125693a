import dataclasses
import json
import pickle

import pytest

from volumes.geometry import Box
from volumes.spec import VolumeSpec, redacted_source

SECRET = "hunter2"


def a_spec(**changes: object) -> VolumeSpec:
    spec = VolumeSpec(
        source="gs://bucket/em",
        tensorstore='{"kvstore": {"driver": "gcs", "bucket": "bucket", "path": "em/"}, '
        '"driver": "zarr3"}',
        axes=("z", "y", "x"),
        voxel_size_nm=(8.0, 8.0, 33.5),
        origin_vx=(-3, 0, 7),
        kind="image",
        dtype="uint8",
        domain=Box((-3, 0, 7), (97, 80, 60)),
        read_chunk=(32, 32, 16),
        write_chunk=(64, 64, 16),
        format="zarr3",
    )
    return dataclasses.replace(spec, **changes)


@pytest.mark.parametrize(
    "spec", [a_spec(), a_spec(anchor_vx=(-10, 0, 0), assumed=("axes", "origin"))]
)
def test_a_spec_survives_json_and_pickle(spec):
    text = json.dumps(spec.to_json(), allow_nan=False)
    assert VolumeSpec.from_json(json.loads(text)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(VolumeSpec.from_json(json.loads(text))) == hash(spec)


def test_equal_documents_have_equal_text_however_they_were_spelled():
    turned = '{"driver":"zarr3","kvstore":{"path":"em/","driver":"gcs","bucket":"bucket"}}'
    assert a_spec(tensorstore=turned) == a_spec()


def test_grids_begin_where_the_chunks_begin():
    spec = a_spec()
    assert spec.read_grid.box(0) == Box((-3, 0, 7), (29, 32, 23))
    assert spec.write_grid.box(0) == Box((-3, 0, 7), (61, 64, 23))
    assert a_spec(anchor_vx=(-10, 0, 0)).read_grid.box(0) == Box((-3, 0, 7), (22, 32, 16))
    assert (spec.driver, spec.itemsize, a_spec(dtype="uint64").itemsize) == ("zarr3", 1, 8)


@pytest.mark.parametrize(
    ("tensorstore", "where"),
    [
        ({"driver": "zarr3", "kvstore": "gs://bucket/em/"}, "gs://bucket/em/|zarr3:"),
        (
            {
                "driver": "neuroglancer_precomputed",
                "kvstore": {"driver": "http", "base_url": "https://host/a", "path": "b/"},
                "scale_index": 2,
            },
            "https://host/a/b/|neuroglancer_precomputed:2",
        ),
        (
            {"driver": "n5", "kvstore": {"driver": "s3", "bucket": "b-1", "endpoint": "http://h"}},
            '{"driver":"n5","kvstore":{"bucket":"b-1","driver":"s3","endpoint":"http://h"}}',
        ),
    ],
)
def test_where_names_the_place(tensorstore, where):
    assert a_spec(tensorstore=json.dumps(tensorstore)).where() == where


@pytest.mark.parametrize(
    ("source", "tensorstore"),
    [
        (
            f"https://host/em?token={SECRET}",
            {
                "driver": "n5",
                "kvstore": {"driver": "http", "base_url": f"https://host?token={SECRET}"},
            },
        ),
        (
            f"https://me:{SECRET}@host/em|n5:",
            {"driver": "n5", "kvstore": f"https://me:{SECRET}@host/em/"},
        ),
        (
            json.dumps({"driver": "n5", "context": {"aws_credentials": {"key": SECRET}}}),
            {
                "driver": "n5",
                "kvstore": {"driver": "s3", "bucket": "b-1", "aws_credentials": {"secret": SECRET}},
            },
        ),
        (
            "https://host/em",
            {
                "driver": "n5",
                "kvstore": {
                    "driver": "http",
                    "base_url": "https://host/em",
                    "headers": [f"Authorization: Bearer {SECRET}"],
                },
            },
        ),
    ],
)
def test_no_secret_is_kept_whatever_a_spec_is_made_from(source, tensorstore):
    spec = a_spec(source=source, tensorstore=json.dumps(tensorstore))
    kept = (json.dumps(spec.to_json()), repr(spec), spec.where(), str(pickle.dumps(spec)))
    assert all(SECRET not in text for text in kept)
    assert "host" in spec.where() or "b-1" in spec.where()


def test_a_source_that_is_no_json_is_not_shown():
    assert redacted_source('{"token": "' + SECRET) == "the inline JSON spec"
    assert redacted_source("/data/em.zarr") == "/data/em.zarr"
