"""Wrong requests: one message, status 2, and nothing on disk is changed."""

import json
import pathlib

import h5py
import numpy as np
import pytest
import tifffile

from launch.cli import main
from tests.launch import place
from tests.launch.place import EMBED, ingest
from tests.segclr.checkpoints import NARROW, write_public_checkpoint
from tests.volumes import sample_volumes
from tests.volumes.section_files import write_sections

NEW = "--output=new"


@pytest.fixture(scope="module")
def workshop(embedded: pathlib.Path) -> pathlib.Path:
    """The embedded place with a folder ``wrong`` of things to be refused."""
    wrong = embedded / "wrong"
    wrong.mkdir()
    for make in (wrong_volumes, wrong_nodes, wrong_models, wrong_sources, wrong_outputs, configs):
        make(wrong)
    return embedded


def wrong_volumes(wrong: pathlib.Path) -> None:
    image, labels = place.voxels()

    def volume(name: str, data: np.ndarray, size: str | None = "10 nm", x: int = 0) -> None:
        units = {} if size is None else {"dimension_units": [size] * 3}
        sample_volumes.zarr3(
            wrong / name,
            data,
            (16, 16, 16),
            names=("x", "y", "z"),
            attributes=units | {"voxel_offset": [x, 0, 0]},
        )

    volume("coarse", labels, "20 nm")
    volume("far", labels, x=1000)
    volume("near", image, x=1000)
    volume("sizeless", image, None)
    volume("zero", image, "0 nm")
    volume("sixteen", image.astype(np.uint16))
    volume("floats", labels.astype(np.float32))
    for size in (10.0, 20.0):
        part = image if size == 10 else image[::2, ::2, ::2]
        sample_volumes.precomputed(wrong / "scales", part, (16, 16, 16), resolution=(size,) * 3)
    (wrong / "plain").mkdir()
    (wrong / "plain" / "readme.txt").write_text("no volume")
    (wrong / "file.txt").write_text("no volume either")


def wrong_nodes(wrong: pathlib.Path) -> None:
    (wrong / "bare.csv").write_text("segment_id,x,y,z\n7,1,2,3\n")
    (wrong / "idless.csv").write_text("x_nm,y_nm,z_nm\n1,2,3\n")
    (wrong / "rowless.csv").write_text("segment_id,x_nm,y_nm,z_nm\n")
    (wrong / "textual.csv").write_text("segment_id,x_nm,y_nm,z_nm\nseven,1,2,3\n")
    place.write_nodes(wrong / "away.csv", [(7, 1, 9e5, 1, 1), (7, 2, 9e5, 2, -4e3)])
    # In the second volume, whose domain begins at 10,000 nm, these are in reach as voxels only.
    place.write_nodes(wrong / "voxels.csv", [(7, 1, 1001, 3, 3), (7, 2, 1040, 31, 31)])


def wrong_models(wrong: pathlib.Path) -> None:
    for name in ("lacking", "empty", "two"):
        (wrong / name).mkdir()
    lost = "base_model_0/resnet18/stage_1/conv1/kernel"
    write_public_checkpoint(wrong / "lacking", NARROW, 1, drop=[f"{lost[:-6]}bias"])
    for name in ("a", "b"):
        (wrong / "two" / f"{name}.index").write_bytes(b"")
    (wrong / "garbage.index").write_bytes(
        b"not a checkpoint at all, but long enough to be read" * 9
    )
    (wrong / "garbage.keras").write_bytes(b"not a zip")


def wrong_sources(wrong: pathlib.Path) -> None:
    image, labels = place.voxels()
    with h5py.File(wrong / "two.h5", "w") as file:
        file["volumes/raw"] = image
        file["volumes/labels"] = labels
        file["table"] = np.arange(5)
    np.save(wrong / "floats.npy", labels.astype(np.float32))
    write_sections(wrong / "unequal", image[:, :, :3])
    write_sections(wrong / "unequal", image[:20, :, :1], first=4)
    write_sections(wrong / "gap", image[:, :, :3])
    write_sections(wrong / "gap", image[:, :, :2], first=7)
    write_sections(wrong / "cut", image[:, :, :3])[1].write_bytes(b"")
    place_attributes = {"resolution": [40.0, 4.0, 4.0], "offset": [40.0, 6.0, 4.0]}
    with h5py.File(wrong / "cubes.h5", "w") as file:
        for name in ("volumes/half", "volumes/lost"):
            file[name] = labels.T
        file["volumes/half"].attrs.update(place_attributes)
        file["volumes/lost"].attrs["resolution"] = place_attributes["resolution"]
    stack = {"photometric": "minisblack", "compression": "zlib"}
    tifffile.imwrite(wrong / "stack.tif", image.T, **stack)
    whole = (wrong / "stack.tif").read_bytes()
    (wrong / "short.tif").write_bytes(whole[: len(whole) // 2])
    meta = {"axes": "ZYX", "spacing": 0.04, "unit": "um"}
    tifffile.imwrite(
        wrong / "sized.tif", image.T, imagej=True, resolution=(250, 250), metadata=meta
    )
    tifffile.imwrite(wrong / "colour.tif", np.zeros((4, 5, 6, 3), np.uint8), photometric="rgb")


def wrong_outputs(wrong: pathlib.Path) -> None:
    (wrong / "foreign").mkdir()
    (wrong / "foreign" / "thesis.tex").write_text("precious")
    (wrong / "posing").mkdir()
    (wrong / "posing" / "_manifest.json").write_text('{"of": "another tool"}')
    (wrong / "begun").mkdir()
    (wrong / "begun" / "store.json").write_bytes(
        b'{"format": "segclr-store", "format_version": 1, "lattice": [16, 16, 16], "width": 4}'
    )


def configs(wrong: pathlib.Path) -> None:
    for name, text in {
        "list.yaml": "- image\n- segmentation\n",
        "empty.yaml": "",
        "broken.yaml": "image: [unclosed\n",
        "unknown.yaml": "imgae: em.zarr\n",
        "nested.yaml": "box:\n  x: 16\n",
        "value.yaml": "box: [16, 16]\n",
        "recursive.yaml": "config: list.yaml\n",
        "beam.yaml": "num_workers: several\n",
    }.items():
        (wrong / name).write_text(text)
    (wrong / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")


def embed(**changes: str) -> list[str]:
    """The words of a right embed request, with these flags instead."""
    values = dict(word.removeprefix("--").split("=", 1) for word in EMBED[1:])
    values |= {"output": "new"} | {k.replace("_", "-"): v for k, v in changes.items()}
    return ["embed", *(f"--{k}={v}" for k, v in values.items() if v)]


def sections(folder: str, *words: str) -> list[str]:
    made = ["ingest", f"--source=wrong/{folder}", "--kind=image", "--voxel-size=10,10,10", NEW]
    return [*made, *words]


H5 = ["ingest", "--source=wrong/two.h5", "--kind=image", "--voxel-size=10,10,10", NEW]
CUBES = ["ingest", "--source=wrong/cubes.h5", "--kind=segmentation", NEW]

# Name, words, and what the message must hold, in this order.
WRONG: list[tuple[str, list[str], list[str]]] = [
    # The command line itself.
    ("unknown job", ["embedd"], ["there is no job 'embedd'", "did you mean embed?", "export"]),
    (
        "flag first",
        ["--quiet", "embed"],
        ["the job comes first", "ingest, convert, downsample, embed, reprocess, export, verify"],
    ),
    (
        "unknown flag",
        [*embed(), "--zzyzx=3"],
        ["unknown flag --zzyzx", "neither this job nor Beam"],
    ),
    ("misspelt flag", [*embed(), "--wrokers=2"], ["unknown flag --wrokers", "mean --workers?"]),
    ("misspelt long flag", ["embed", "--segmentaton=x"], ["--segmentaton;", "--segmentation?"]),
    ("misspelt Beam flag", [*embed(), "--job_nam=x"], ["--job_nam;", "mean --job_name?"]),
    (
        "Beam flag of another type",
        [*embed(), "--num_workers=few"],
        ["--num_workers", "'few'", "Beam's"],
    ),
    ("stray word", [*embed(), "more"], ["'more' is not a flag", "follows its flag"]),
    ("no value", ["embed", "--image"], ["--image", "expected one argument", "embed --help"]),
    (
        "nothing given",
        ["embed"],
        ["embed needs --image, --segmentation, --nodes, --model, --output"],
    ),
    ("one missing", embed(nodes=""), ["embed needs --nodes; for example", "segclr-beam embed"]),
    ("ingest bare", ["ingest"], ["needs --source, --kind, --output; for example"]),
    ("export bare", ["export"], ["export needs --store, --output"]),
    ("empty value", [*embed(), "--image="], ["--image was empty"]),
    ("no workers", embed(workers="0"), ["--workers", "at least 1 process", "got 0"]),
    ("no workers to export", ["export", "--workers=0"], ["at least 1 process", "got 0"]),
    ("half a worker", embed(workers="1.5"), ["--workers", "an integer is needed", "'1.5'"]),
    ("unknown runner", embed(runner="Dierct"), ["--runner Dierct", "DirectRunner"]),
    (
        "runner of a lost module",
        embed(runner="no.such.Runner"),
        ["--runner no.such.Runner", "'no'"],
    ),
    ("Dataflow without a project", embed(runner="DataflowRunner"), ["DataflowRunner", "project"]),
    (
        "workers elsewhere",
        embed(runner="DataflowRunner", workers="3"),
        ["--workers 3", "this machine", "DataflowRunner runs elsewhere", "--num_workers"],
    ),
    # --config.
    ("config lost", embed(config="lost.yaml"), ["--config lost.yaml cannot be read (No such file"]),
    ("config last", [*embed(), "--config"], ["--config needs a file"]),
    (
        "config a list",
        embed(config="wrong/list.yaml"),
        ["must map flags to values", "holds a list"],
    ),
    ("config empty", embed(config="wrong/empty.yaml"), ["must map flags", "holds nothing"]),
    ("config broken", embed(config="wrong/broken.yaml"), ["neither YAML nor JSON", "line 2"]),
    ("config no text", embed(config="wrong/bytes.yaml"), ["wrong/bytes.yaml is no text"]),
    (
        "config unknown key",
        embed(config="wrong/unknown.yaml"),
        ["--config wrong/unknown.yaml: unknown flag --imgae; did you mean --image?"],
    ),
    ("config nested", embed(config="wrong/nested.yaml"), ["box is nested", "a list of these"]),
    ("config value", embed(config="wrong/value.yaml"), ["value.yaml: ", "--box", "got '16,16'"]),
    ("config in config", embed(config="wrong/recursive.yaml"), ["names another --config"]),
    ("config Beam value", embed(config="wrong/beam.yaml"), ["beam.yaml: ", "'several'"]),
    # Volumes.
    ("no such path", embed(image="lost.zarr"), ["lost.zarr does not exist", "segclr-beam ingest"]),
    ("a file", embed(image="wrong/file.txt"), ["wrong/file.txt is a file", "segclr-beam ingest"]),
    ("no volume", embed(image="wrong/plain"), ["wrong/plain", "zarr.json"]),
    (
        "a table",
        embed(segmentation="nodes.csv"),
        ["nodes.csv is a file", "a volume is a directory"],
    ),
    (
        "other voxel size",
        embed(segmentation="wrong/coarse"),
        ["em.zarr has voxels of 10,10,10 nm", "wrong/coarse of 20,20,20 nm", "--scale"],
    ),
    (
        "no overlap",
        embed(segmentation="wrong/far"),
        ["[0:80, 0:32, 0:32)", "[1000:1080, 0:32, 0:32)", "do not overlap", "--origin"],
    ),
    ("image of uint16", embed(image="wrong/sixteen"), ["wrong/sixteen has uint16", "is uint8"]),
    ("image of ids", embed(image="seg.zarr"), ["seg.zarr has uint64", "--segmentation"]),
    ("floating ids", embed(segmentation="wrong/floats"), ["float32", "integer type", "uint64"]),
    ("no voxel size", embed(image="wrong/sizeless"), ["no voxel size", "--voxel-size X,Y,Z"]),
    ("voxel size 0 stated", embed(image="wrong/zero"), ["wrong/zero", "voxel size of 0,0,0"]),
    ("voxel size 0 given", embed(voxel_size="0,10,10"), ["--voxel-size 0,10,10", "three positive"]),
    ("scale 0", embed(scale="10,0,10"), ["--scale 10,0,10", "three positive"]),
    ("voxel size of two", embed(voxel_size="10,10"), ["--voxel-size", "three numbers", "'10,10'"]),
    (
        "several scales",
        embed(image="wrong/scales"),
        ["2 levels and no --scale", "--scale 10,10,10  80 x 32 x 32", "--scale 20,20,20"],
    ),
    (
        "a scale it lacks",
        embed(image="wrong/scales", scale="40,40,40"),
        ["--scale 40,40,40 names none", "--scale 10,10,10", "--scale 20,20,20"],
    ),
    # Nodes.
    ("nodes lost", embed(nodes="lost.csv"), ["--nodes lost.csv", ".csv, .parquet or .swc"]),
    ("nodes bare", embed(nodes="wrong/bare.csv"), ["segment_id, x, y, z", "x_nm", "in nm"]),
    ("nodes without ids", embed(nodes="wrong/idless.csv"), ["segment_id is missing"]),
    ("nodes without rows", embed(nodes="wrong/rowless.csv"), ["rowless.csv", "no rows"]),
    (
        "nodes textual",
        embed(nodes="wrong/textual.csv"),
        ["textual.csv", "seven", "unsigned 64-bit"],
    ),
    (
        "all outside",
        embed(nodes="wrong/away.csv"),
        ["none of the 2 positions", "900000", "-4000", "(800, 320, 320) nm", "in nm in its frame"],
    ),
    (
        "voxels for nm",
        embed(nodes="wrong/voxels.csv", image="wrong/near", segmentation="wrong/far"),
        ["none of the 2 positions", "look like voxels", "multiply by the voxel size (10, 10, 10)"],
    ),
    ("spacing of a table", embed(spacing_nm="500"), ["500", "nodes.csv", "SWC"]),
    ("auto and spacing", embed(nodes="auto:9", spacing_nm="500"), ["--spacing-nm 500", "auto:500"]),
    ("auto:word", embed(nodes="auto:wide"), ["--nodes auto:wide", "'wide' is no spacing", "nm"]),
    ("auto:", embed(nodes="auto:"), ["--nodes auto:", "'' is no spacing"]),
    ("auto:0", embed(nodes="auto:0"), ["--nodes auto:0", "spacing"]),
    ("auto:-3", embed(nodes="auto:-3"), ["--nodes auto:-3", "spacing"]),
    ("auto:nan", embed(nodes="auto:nan"), ["--nodes auto:nan", "spacing"]),
    ("auto below a voxel", embed(nodes="auto:9"), ["--nodes auto:9", "10"]),
    # Models.
    ("model lost", embed(model="lost"), ["--model lost", "there is no model at", "untrained"]),
    ("no checkpoint in it", embed(model="wrong/empty"), ["holds no checkpoint", "no *.index file"]),
    ("two checkpoints", embed(model="wrong/two"), ["holds 2 checkpoints", "a, b", "prefix of one"]),
    ("tensor missing", embed(model="wrong/lacking"), ["stage_1/conv1/bias"]),
    ("garbage index", embed(model="wrong/garbage"), ["garbage.index is damaged or not one"]),
    ("garbage keras", embed(model="wrong/garbage.keras"), ["wrong/garbage.keras"]),
    ("unknown untrained", embed(model="untrained:wdth=2"), ["no 'wdth'", "width, depth, input"]),
    (
        "batch 1",
        embed(batch="1"),
        ["--batch 1: a batch of 1 was asked for, at least 2", "last bit"],
    ),
    (
        "input too small",
        embed(model="untrained", input_size="5"),
        ["--input-size 5: crops of 5 voxels", "17"],
    ),
    # Parameters.
    ("box 0", embed(box="0"), ["--box 0,0,0 has an axis without a voxel", "at least 1"]),
    ("box of two", embed(box="16,16"), ["--box", "three integers X,Y,Z", "'16,16'"]),
    ("box of words", embed(box="large"), ["--box", "integer is needed, got 'large'"]),
    ("halo too small", embed(halo="7"), ["--halo 7,7,7 is smaller than 8", "17 voxels", "8,8,8"]),
    ("nothing to read with", embed(read_mb="0"), ["--read-mb 0 is too few", "1 or more"]),
    ("unknown policy", embed(missing_image="skip"), ["--missing-image", "'skip'", "zero"]),
    (
        "box beyond memory",
        embed(box="16", workers="9999999"),
        ["9999999 worker(s)", "smaller --box"],
    ),
    # Outputs.
    (
        "another box",
        embed(output="store", box="32"),
        ["--output", "store belongs to another run", "box: [16, 16, 16] there, [32, 32, 32] asked"],
    ),
    (
        "another model and policy",
        embed(output="store", model="untrained:width=1,input=17", missing_image="zero"),
        ["missing_image: 'error' there, 'zero' asked", "model: ", "name a new --output"],
    ),
    ("a foreign directory", embed(output="wrong/foreign"), ["is not empty", "thesis.tex"]),
    (
        "a file to write to",
        embed(output="wrong/file.txt"),
        ["wrong/file.txt is a file", "directory"],
    ),
    ("over the image", embed(output="em.zarr"), ["em.zarr is not empty", "new or empty"]),
    # Sources of an ingest.
    ("source lost", ingest("lost.npy", "image", "new"), ["--source lost.npy does not exist"]),
    ("source of text", ingest("nodes.csv", "image", "new"), ["neither an HDF5 nor an NPY file"]),
    ("no dataset", H5, ["two.h5", "give --dataset", "volumes/labels", "volumes/raw"]),
    (
        "dataset lost",
        [*H5, "--dataset=raw"],
        ["--dataset raw is not in the file", "volumes/labels", "volumes/raw"],
    ),
    ("no axes", [*H5, "--dataset=volumes/raw"], ["(80, 32, 32)", "--axes", "zyx"]),
    ("axes twice", [*H5, "--dataset=volumes/raw", "--axes=xxz"], ["--axes xxz", "x, y, z once"]),
    ("rank 1", [*H5, "--dataset=table", "--axes=x", "--kind=segmentation"], ["rank 1", "(5,)"]),
    (
        "floating segmentation",
        ingest("wrong/floats.npy", "segmentation", "new"),
        ["float32", "ids are integers", "uint64"],
    ),
    ("unequal sections", sections("unequal"), ["em.4.png is 20 x 32", "em.1.png is 80 x 32"]),
    (
        "gap",
        sections("gap"),
        ["sections 4-6 are missing between 1 and 8", "shift", "--missing-sections blank"],
    ),
    (
        "unknown policy for missing sections",
        sections("gap", "--missing-sections=skip"),
        ["--missing-sections", "'skip'", "nearest"],
    ),
    (
        "policy for a file",
        sections("stack.tif", "--missing-sections=blank"),
        ["--missing-sections blank", "stack.tif", "is a file"],
    ),
    ("short stack", sections("short.tif"), ["short.tif is cut short", "supply the file again"]),
    ("colour stack", sections("colour.tif"), ["colour.tif is RGB with 3 samples", "grey"]),
    (
        "stack without a voxel size",
        ["ingest", "--source=wrong/stack.tif", "--kind=image", NEW],
        ["stack.tif states no voxel size", "--voxel-size X,Y,Z in nm"],
    ),
    (
        "stack of another voxel size",
        sections("sized.tif"),
        ["--voxel-size 10,10,10 was given", "states 4,4,40 nm", "leave --voxel-size out"],
    ),
    (
        "wide image",
        sections("stack.tif", "--dtype=uint64"),
        ["--dtype uint64 is no dtype of a volume of kind image", "uint8, uint16"],
    ),
    (
        "offset within a voxel",
        [*CUBES, "--dataset=volumes/half"],
        ["an offset of 4,6,40 nm", "1,1.5,1 voxels of 4,4,40 nm"],
    ),
    (
        "cube without a place",
        [*CUBES, "--dataset=volumes/half,volumes/lost"],
        ["/volumes/lost has no attributes resolution and offset"],
    ),
    (
        "ingest of a volume",
        ["ingest", "--source=em.zarr", "--kind=image", NEW],
        ["em.zarr is a volume (zarr3) already", "use convert"],
    ),
    ("empty section", sections("cut"), ["em.2.png", "supply the section again"]),
    ("no sections", sections("plain"), ["holds no PNG, JPEG or TIFF files", "1 others"]),
    ("axes of sections", sections("gap", "--axes=zyx"), ["--axes zyx", "leave it out"]),
    ("voxel size 0", sections("gap", "--voxel-size=0,10,10"), ["--voxel-size 0,10,10", "positive"]),
    (
        "negative size",
        sections("gap", "--voxel-size", "-1,9,9"),
        ["--voxel-size -1,9,9", "positive"],
    ),
    ("unknown kind", sections("gap", "--kind=both"), ["--kind", "'both'", "segmentation"]),
    (
        "odd shard",
        ingest("em.npy", "image", "new") + ["--shard=100,64,64"],
        ["(100, 64, 64)", "multiple of chunk"],
    ),
    (
        "another ingest's",
        [*ingest("em.npy", "image", "em.zarr"), "--origin=1,2,3"],
        ["made by another ingest", "origin_vx: [0, 0, 0] there, [1, 2, 3] asked"],
    ),
    ("ingest over a store", ingest("em.npy", "image", "store"), ["store is not empty"]),
    # Exports.
    ("no store", ["export", "--store=lost", NEW], ["lost is not an embedding store", "store.json"]),
    ("not a store", ["export", "--store=em.zarr", NEW], ["em.zarr is not an embedding store"]),
    ("unfinished store", ["export", "--store=wrong/begun", NEW], ["no published version yet"]),
    (
        "version lost",
        ["export", "--store=store", "--version=7", NEW],
        ["no version 7", "that it has: 1"],
    ),
    ("version of words", ["export", "--store=store", "--version=new", NEW], ["--version", "'new'"]),
    ("unknown format", ["export", "--store=store", "--format=xls", NEW], ["'xls'", "parquet"]),
    (
        "foreign export",
        ["export", "--store=store", "--output=wrong/foreign"],
        ["is not empty (it has thesis.tex)", "nothing of it was touched"],
    ),
    (
        "another tool's manifest",
        ["export", "--store=store", "--output=wrong/posing"],
        ["is not empty (it has _manifest.json)"],
    ),
    (
        "export to a file",
        ["export", "--store=store", "--output=nodes.csv"],
        ["nodes.csv is a file"],
    ),
    ("export over its store", ["export", "--store=store", "--output=store"], ["is not empty"]),
]


# Jobs that make volumes of volumes, and their checks.
TO_NEW = ["convert", "--input=em.zarr", NEW]
COARSER = ["downsample", "--volume=em.zarr", NEW, "--levels=1"]
WRONG += [
    ("convert bare", ["convert"], ["convert needs --input, --output; for example"]),
    ("nothing to convert", ["convert", "--input=lost", NEW], ["lost does not exist"]),
    ("unknown volume format", [*TO_NEW, "--format=tiff"], ["--format", "'tiff'", "zarr3"]),
    ("unknown codec", [*TO_NEW, "--codec=lzma"], ["--codec lzma is no codec known here", "zstd"]),
    ("codec level", [*TO_NEW, "--codec=zstd:99"], ["--codec zstd:99", "1 to 22", "zstd:3"]),
    (
        "codec of another format",
        [*TO_NEW, "--codec=png"],
        ["--codec png:6 does not fit", "zarr3 has no png", "raw, zstd, gzip"],
    ),
    (
        "codec of other voxels",
        ["convert", "--input=seg.zarr", NEW, "--format=precomputed", "--codec=jpeg"],
        ["jpeg holds uint8 voxels and these are uint64", "raw, gzip, compressed_segmentation"],
    ),
    (
        "lossy ids",
        [*TO_NEW, "--kind=segmentation", "--format=precomputed", "--codec=jpeg"],
        ["--codec jpeg:90 changes voxels, and ids must stay"],
    ),
    (
        "crop outside",
        [*TO_NEW, "--crop=-1:9,0:9,0:9"],
        ["--crop [-1:9, 0:9, 0:9) is not within em.zarr", "[0:80, 0:32, 0:32)"],
    ),
    ("crop backwards", [*TO_NEW, "--crop=9:3,0:9,0:9"], ["--crop 9:3,0:9,0:9 has no voxel"]),
    ("crop of words", [*TO_NEW, "--crop=1,2,3"], ["--crop", "X0:X1,Y0:Y1,Z0:Z1", "'1,2,3'"]),
    ("axes twice in a volume", [*TO_NEW, "--axes=xxz"], ["--axes xxz is no order of x, y and z"]),
    (
        "order that precomputed lacks",
        [*TO_NEW, "--axes=zyx", "--format=precomputed"],
        ["--axes zyx: precomputed stores x, y, z and no other order"],
    ),
    ("unknown dtype", [*TO_NEW, "--dtype=complex64"], ["--dtype complex64", "uint8, uint16"]),
    (
        "dtype that precomputed lacks",
        [*TO_NEW, "--dtype=int64", "--format=precomputed"],
        ["precomputed has no voxels of int64", "give --dtype"],
    ),
    (
        "shards of n5",
        [*TO_NEW, "--format=n5", "--shard=64"],
        ["n5 has no shards", "--format zarr3"],
    ),
    ("odd shard of a volume", [*TO_NEW, "--shard=65,64,64"], ["(65, 64, 64)", "multiple of chunk"]),
    (
        "no Morton shard",
        [*TO_NEW, "--format=precomputed", "--chunk=8", "--shard=8,16,8"],
        ["--shard 8,16,8 is no shard", "Morton order", "16,8,8; 16,16,8; 16,16,16"],
    ),
    ("chunk 0", [*TO_NEW, "--chunk=0"], ["--chunk 0,0,0 has an axis without a voxel"]),
    (
        "a chunk beyond memory",
        [*TO_NEW, "--chunk=99999999999,99999999999,99999999999"],
        ["a memory budget of 2,048 MB does not hold", "99999999999", "--memory-mb"],
    ),
    ("no memory", [*TO_NEW, "--memory-mb=0"], ["--memory-mb 0 is less than 1"]),
    ("unknown way", [*TO_NEW, "--rechunk=both"], ["--rechunk", "'both'", "staged"]),
    ("origin too far", [*TO_NEW, "--origin=9223372036854775807,0,0"], ["--origin 92233720368"]),
    ("scale it lacks", [*TO_NEW, "--scale=8,8,8"], ["--scale 8,8,8 names none", "10,10,10"]),
    (
        "convert in place",
        ["convert", "--input=em.zarr", "--output=em.zarr"],
        ["em.zarr is not empty"],
    ),
    (
        "convert into the input",
        ["convert", "--input=em.zarr", "--output=em.zarr/c"],
        ["em.zarr/c lies inside the input em.zarr", "give a directory elsewhere"],
    ),
    (
        "floats for ids",
        ["convert", "--input=wrong/floats", NEW, "--kind=segmentation"],
        ["--kind segmentation: wrong/floats has float32", "ids are integers"],
    ),
    ("staging with a password", [*TO_NEW, "--staging=s3://me:pw@b/x"], ["--staging s3://b/x"]),
    ("downsample bare", ["downsample"], ["downsample needs --volume; for example"]),
    (
        "levels for plain zarr3",
        ["downsample", "--volume=em.zarr"],
        ["em.zarr is zarr3", "takes no levels", "give --output for a new one"],
    ),
    ("levels 0", [*COARSER, "--levels=0"], ["--levels 0 is no number of levels", "1 to 30"]),
    ("factors 1", [*COARSER, "--factors=1,1,1"], ["--factors 1,1,1 makes nothing coarser"]),
    ("factors of two", [*COARSER, "--factors=2,2/2"], ["--factors", "three integers", "'2,2'"]),
    (
        "factors beyond counting",
        [*COARSER, "--factors=100000,100000,100000"],
        ["--factors 100000,100000,100000 makes one voxel of", "several steps"],
    ),
    (
        "mean of ids",
        ["downsample", "--volume=seg.zarr", NEW, "--levels=1", "--method=mean"],
        ["--method mean of seg.zarr", "the id of another segment", "mode or sparse-mode"],
    ),
    (
        "mode of floats",
        ["downsample", "--volume=wrong/floats", NEW, "--levels=1", "--method=mode"],
        ["--method mode of wrong/floats, which is float32", "give mean"],
    ),
    (
        "lossy levels of ids",
        [
            *("downsample", "--volume=seg.zarr", NEW, "--levels=1"),
            *("--format=precomputed", "--codec=jpeg"),
        ],
        ["--codec jpeg:90 changes voxels, and ids must stay"],
    ),
    (
        "level in a file",
        [*COARSER[:2], "--output=nodes.csv", "--levels=1"],
        ["nodes.csv is a file"],
    ),
    (
        "check of a volume that is not ours",
        ["verify", "--volume=wrong/near"],
        ["--volume wrong/near has no record of a job", "segclr-beam info"],
    ),
]


@pytest.mark.parametrize(("words", "told"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_request_gets_one_message_and_changes_nothing(
    workshop: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: list[str],
) -> None:
    monkeypatch.chdir(workshop)
    before = place.snapshot(workshop)
    assert main([words[0], "--json", *words[1:]]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("segclr-beam: ")
    assert err.count("segclr-beam: ") == 1
    assert "Traceback" not in err
    message = err.removeprefix("segclr-beam: ").rstrip("\n")
    at = 0
    for part in told:
        assert part in message[at:], (part, message)
        at = message.index(part, at)
    assert json.loads(out) == {"status": 2, "error": message}
    assert place.snapshot(workshop) == before


def test_names_of_the_table_are_unique() -> None:
    names = [name for name, _, _ in WRONG]
    assert len(set(names)) == len(names)
