"""The graph that is *submitted* is the same to every engine.

Comparing pipelines before they run would show nothing, since no runner has been asked by then. So
what each runner hands on is caught where it leaves: the argument of the in-process runner, the
pipeline that Dataflow's client stages, and the request that a job server on loopback receives.
"""

import concurrent.futures
import contextlib
import io
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import (
    beam_job_api_pb2,
    beam_job_api_pb2_grpc,
    beam_runner_api_pb2,
)
from apache_beam.runners.dataflow.internal import apiclient
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

import volumes
from launch import jobs, runner
from launch.cli import main
from launch.engines import Asked
from tests.launch import place

Graph = dict[str, tuple[str, tuple[str, ...]]]

# Beam would otherwise reorder what it submits to Dataflow.
AS_BUILT = "--experiments=pre_optimize=none"


class Caught(Exception):
    """The graph is here; nothing runs."""


def shape(proto: Any) -> Graph:
    """Each transform by its unique name: its URN, and the names of its parts."""
    transforms = proto.components.transforms
    return {
        t.unique_name: (t.spec.urn, tuple(transforms[s].unique_name for s in t.subtransforms))
        for t in transforms.values()
        if t.spec.urn
    }


def to_in_process(build: Callable[[Any], Any]) -> Any:
    """What Beam's in-process runner is asked to run."""
    found = []

    def caught(self: FnApiRunner, proto: Any, options: Any) -> None:
        found.append(proto)
        raise Caught

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FnApiRunner, "run_via_runner_api", caught)
        with pytest.raises(Caught):
            runner.built(build, Asked("DirectRunner", 1, (AS_BUILT,))).run()
    return found[0]


def to_dataflow(build: Callable[[Any], Any]) -> Any:
    """The pipeline that Dataflow's client stages, before it sends the job."""
    staged: dict[str, bytes] = {}

    def stage(self: Any, location: str, name: str, stream: io.BytesIO, *more: Any, **also: Any):
        staged[name] = stream.read()

    def submit(self: Any, job: Any) -> None:
        raise Caught

    words = (
        AS_BUILT,
        "--project=project-1",
        "--region=us-central1",
        "--temp_location=gs://bucket/temp",
        "--staging_location=gs://bucket/staging",
        "--no_auth",
        "--dataflow_endpoint=http://localhost:1",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apiclient.DataflowApplicationClient, "stage_file", stage)
        patch.setattr(apiclient.DataflowApplicationClient, "submit_job_description", submit)
        with pytest.raises(Caught):
            runner.built(build, Asked("DataflowRunner", 1, words)).run()
    return beam_runner_api_pb2.Pipeline.FromString(staged["pipeline.pb"])


class JobServer(beam_job_api_pb2_grpc.JobServiceServicer):
    """Takes one job in, and refuses to run it."""

    def __init__(self) -> None:
        self.received: list[Any] = []

    def DescribePipelineOptions(self, request: Any, context: Any) -> Any:
        return beam_job_api_pb2.DescribePipelineOptionsResponse()

    def Prepare(self, request: Any, context: Any) -> Any:
        self.received.append(request.pipeline)
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nothing runs here")


@contextlib.contextmanager
def job_server() -> Iterator[tuple[JobServer, str]]:
    server, service = grpc.server(concurrent.futures.ThreadPoolExecutor(2)), JobServer()
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield service, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(5)


def to_job_server(build: Callable[[Any], Any]) -> Any:
    """What a portable job server is asked to prepare."""
    with job_server() as (service, address):
        words = (AS_BUILT, f"--job_endpoint={address}", "--environment_type=LOOPBACK")
        with pytest.raises(grpc.RpcError, match="nothing runs here"):
            runner.built(build, Asked("PortableRunner", 1, words)).run()
    return service.received[0]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("same-graph")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        place.furnish(folder)
        assert main([*place.EMBED, "--output=store", "--quiet"]) == 0
        (folder / "nodes.csv").rename(folder / "first.csv")
        place.write_nodes(folder / "nodes.csv", place.NODES[1:])
        assert main(["reprocess", "--store=store", "--quiet"]) == 0
    return folder


JOBS = {
    "ingest": [*place.ingest("em.npy", "image", "new1.zarr")],
    "convert": ["convert", "--input=em.zarr", "--output=new2.zarr", "--format=n5"],
    "downsample": ["downsample", "--volume=seg.zarr", "--output=new3.zarr"],
    "embed": [*place.EMBED, "--output=new4"],
    "embed sampled": [*place.EMBED, "--nodes=auto:100", "--output=new5"],
    "reprocess": ["reprocess", "--store=store"],
    "verify": ["verify", "--store=store"],
    "verify volume": ["verify", "--volume=em.zarr"],
    "export": ["export", "--store=store", "--output=new6"],
    "diff": ["diff", "--store=store", "--output=new7.csv"],
    "compact": ["compact", "--store=store"],
}


@pytest.mark.parametrize("job", JOBS)
def test_every_engine_is_handed_the_same_graph(
    job: str, furnished: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(furnished)
    graphs: dict[str, Any] = {}

    def submitted(build: Any, asked: Asked, graph: Any = None) -> Any:
        graphs["in process"] = to_in_process(build)
        graphs["dataflow"] = to_dataflow(build)
        graphs["job server"] = to_job_server(build)
        raise Caught

    monkeypatch.setattr(jobs.runner, "run", submitted)
    with pytest.raises(Caught):
        main([*JOBS[job], "--quiet"])
    assert set(graphs) == {"in process", "dataflow", "job server"}
    first = shape(graphs["in process"])
    assert len(first) > 5
    assert shape(graphs["dataflow"]) == first
    assert shape(graphs["job server"]) == first
    check_functions(graphs["in process"])


def check_functions(proto: Any) -> None:
    """No step of ours is a lambda, which Beam names by its line; those at core.py are Beam's."""
    steps = {t.unique_name for t in proto.components.transforms.values()}
    assert not [name for name in steps if "lambda" in name and "at core.py" not in name]


def test_what_is_submitted_does_not_grow_with_the_boxes(
    furnished: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(furnished)
    sizes: list[int] = []

    def submitted(build: Any, asked: Asked, graph: Any = None) -> Any:
        sizes.append(to_dataflow(build).ByteSize())
        raise Caught

    monkeypatch.setattr(jobs.runner, "run", submitted)
    for side in (160, 1600):  # 10**3 and 10**6 boxes of 16 voxels
        for kind, dtype in (("image", "uint8"), ("segmentation", "uint64")):
            shape = (side, side, side)
            stated = {"voxel_size_nm": (10, 10, 10), "chunk": (16, 16, 16), "dtype": dtype}
            volumes.create(tmp_path / f"{kind}{side}", shape, **stated)
        words = [*place.EMBED, f"--output={tmp_path / f'store{side}'}", "--quiet"]
        words += [f"--image={tmp_path / f'image{side}'}"]
        words += [f"--segmentation={tmp_path / f'segmentation{side}'}"]
        with pytest.raises(Caught):
            main(words)
    few, many = sizes
    assert few < 1_000_000  # Dataflow takes 10 MB
    assert abs(many - few) < 500


def test_a_graph_of_another_job_is_told_apart(
    furnished: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail: one step more, and one step less."""
    monkeypatch.chdir(furnished)
    found: list[Graph] = []

    def submitted(build: Any, asked: Asked, graph: Any = None) -> Any:
        found.append(shape(to_in_process(build)))
        raise Caught

    monkeypatch.setattr(jobs.runner, "run", submitted)
    for nodes in ("nodes.csv", "auto:100"):
        with pytest.raises(Caught):
            main([*place.EMBED, f"--nodes={nodes}", f"--output=other-{nodes[:4]}", "--quiet"])
    assert found[0] != found[1]
