"""The pure functions of a box, with voxels made by hand and a network that is easy to check."""

import dataclasses
import pickle

import numpy as np
import pytest

from segclr.encoder import Encoder
from segclr.errors import ModelError
from segclr.model import resolve_model
from segclr.nodes import Nodes
from transforms import embedding
from transforms.accounts import SumDone, SumWalks, Tally, WalkTotal
from transforms.embedding import check_image
from transforms.nodes import place_nodes
from transforms.walk import Walked
from transforms.work import BoxInput, BoxNodes, Done, EmbedWork, check_labels
from volumes.commits import Change, standing_digest
from volumes.errors import DataError, RunError
from volumes.generation import Generation
from volumes.geometry import Box, ChunkGrid
from volumes.reading import Part, Subvolume
from volumes.receipts import Failure, Receipt, Rows
from volumes.spec import VolumeSpec

SIZE = 17
DOMAIN = Box((0, 0, 0), (32, 24, 20))


def volume(name: str, kind: str, dtype: str) -> VolumeSpec:
    return VolumeSpec(
        source=name,
        tensorstore='{"driver": "zarr3", "kvstore": "memory://"}',
        axes=("x", "y", "z"),
        voxel_size_nm=(8.0, 8.0, 8.0),
        origin_vx=(0, 0, 0),
        kind=kind,  # type: ignore[arg-type]
        dtype=dtype,
        domain=DOMAIN,
        read_chunk=(8, 8, 8),
        write_chunk=(8, 8, 8),
        format="zarr3",
    )


@pytest.fixture
def work() -> EmbedWork:
    return EmbedWork(
        image=volume("em.zarr", "image", "uint8"),
        segmentation=volume("seg.zarr", "segmentation", "uint64"),
        grid=ChunkGrid(DOMAIN, (16, 16, 16)),
        generation=Generation("store", "1", 4, (16, 16, 16), (2, 2, 2)),
        model=resolve_model(f"untrained:width=2,input={SIZE},embedding=4"),
        identity="identity",
        inputs="where",
        recipe="recipe",
        run="run",
        halo=(8, 8, 8),
        missing_image="error",
        missing_segmentation="background",
        spacing_nm=None,
        bytes_in_flight=10**8,
    )


def mean_encoder(work: EmbedWork, broken: bool = False) -> Encoder:
    """Gives mean, maximum, occupied voxels and 1 of a crop."""

    def forward(pixels: np.ndarray) -> np.ndarray:
        flat = pixels.reshape(len(pixels), -1).astype(np.float32)
        columns = [flat.mean(1), flat.max(1), (flat > 0).sum(1), np.ones(len(flat))]
        out = np.stack(columns, axis=1).astype(np.float32)
        return out * np.float32(np.nan if broken else 1)

    return Encoder(work.model, forward)


def box_input(work: EmbedWork, nodes: Nodes, missing: tuple[Box, ...] = ()) -> BoxInput:
    box = work.read_box(0)
    labels = np.zeros(box.shape, np.uint64)
    labels[:10] = 2**63 + 5
    labels[10:] = 7
    image = np.full(box.shape, 50, np.uint8)
    image[10:] = 90
    voxels = Subvolume(box, image, box, labels, missing, (), 1234)
    return BoxInput(0, nodes, None, voxels, "image stamp", None, None)


@dataclasses.dataclass(frozen=True)
class Embedded:
    rows: Rows
    receipt: Receipt
    bytes_read: int


def embed_box(work: EmbedWork, encoder: Encoder, box: BoxInput) -> Embedded:
    """What becomes of a box that is not committed yet."""
    output = embedding.embed_box(work, lambda: encoder, box, lambda: None)
    change = output.change
    assert change.rows is not None
    assert change.receipt is not None
    assert change.replaces is None
    return Embedded(change.rows, change.receipt, output.bytes_read)


def nodes(*rows: tuple[int, int, float, float, float]) -> Nodes:
    return Nodes(
        np.array([r[0] for r in rows], np.uint64),
        np.array([r[1] for r in rows], np.uint64),
        np.array([r[2:] for r in rows], np.float64).reshape(-1, 3),
    )


def test_rows_are_sorted_masked_and_accounted_for(work: EmbedWork) -> None:
    given = nodes(
        (2**63 + 5, 2, 40.0, 40.0, 40.0),
        (7, 9, 80.0, 40.0, 40.0),
        (0, 1, 0.0, 0.0, 0.0),
        (99, 1, 40.0, 40.0, 40.0),
        (7, 9, 88.0, 40.0, 40.0),
    )
    output = embed_box(work, mean_encoder(work), box_input(work, given))
    assert output.rows.segment_id.tolist() == [7, 2**63 + 5]
    # The crop of node 9 begins at x = 10 - 8; its own segment begins at voxel 10: 9 of 17 columns,
    # of which y and z show 5 + 9 voxels each from the volume's edge on.
    seen = 9 * 14 * 14
    assert output.rows.mask_voxels.tolist()[0] == seen
    assert output.rows.embedding[0].tolist() == [
        pytest.approx(90 * seen / SIZE**3),
        90.0,
        float(seen),
        1.0,
    ]
    assert output.rows.embedding[1][1] == 50.0
    receipt = output.receipt
    assert dict(receipt.rejected) == {"background": 1, "duplicate": 1, "empty_mask": 1}
    assert receipt.planned == receipt.committed + sum(n for _, n in receipt.rejected) == 5
    assert receipt.rows_digest == output.rows.digest()
    assert receipt.identities == given.identity_digest()
    assert output.bytes_read == 1234


def test_a_box_of_rejected_nodes_has_a_receipt_and_no_rows(work: EmbedWork) -> None:
    output = embed_box(work, mean_encoder(work), box_input(work, nodes((0, 1, 0.0, 0.0, 0.0))))
    assert (len(output.rows), output.receipt.planned, output.receipt.committed) == (0, 1, 0)
    assert output.rows.embedding.shape == (0, 4)
    assert output.rows.crop_digest.shape == (0, 16)


def test_the_fingerprint_is_of_the_recipe_and_the_boxs_nodes(work: EmbedWork) -> None:
    def fingerprint(work: EmbedWork, *rows) -> str:
        return embed_box(
            work, mean_encoder(work), box_input(work, nodes(*rows))
        ).receipt.fingerprint

    one, other = (7, 1, 80.0, 8.0, 8.0), (7, 1, 88.0, 8.0, 8.0)
    same = dataclasses.replace(work, run="another", bytes_in_flight=1, identity="elsewhere")
    assert fingerprint(work, one) == fingerprint(same, one)
    assert fingerprint(work, one) != fingerprint(work, other)
    assert fingerprint(work, one) != fingerprint(dataclasses.replace(work, recipe="i"), one)


def test_a_missing_image_chunk_matters_under_a_mask_alone(work: EmbedWork) -> None:
    given = nodes((7, 3, 120.0, 40.0, 40.0))
    away, under = Box((0, 0, 0), (8, 8, 8)), Box((16, 0, 0), (24, 8, 8))
    check_image(work, box_input(work, given, (away,)))
    with pytest.raises(
        DataError,
        match=r"box 0_0_0 \[0:16, 0:16, 0:16\): the image chunk \[16:24, 0:8, 0:8\) of em.zarr is "
        r"not stored, and node 3 of segment 7 has its mask there.*--missing-image zero",
    ):
        check_image(work, box_input(work, given, (away, under)))
    zero = dataclasses.replace(work, missing_image="zero")
    check_image(zero, box_input(zero, given, (under,)))


def test_missing_segmentation_is_background_or_an_error(work: EmbedWork) -> None:
    box = work.read_box(0)
    part = Part(box, np.zeros(box.shape, np.uint64), (Box((0, 0, 0), (8, 8, 8)),), 0)
    check_labels(work, 0, part)
    strict = dataclasses.replace(work, missing_segmentation="error")
    with pytest.raises(DataError, match=r"1 chunks of seg.zarr are not stored, the first at \[0:8"):
        check_labels(strict, 0, part)


def test_vectors_that_are_no_numbers_are_an_error_of_their_box(work: EmbedWork) -> None:
    given = box_input(work, nodes((7, 1, 120.0, 40.0, 40.0)))
    with pytest.raises(RunError, match=r"box 0_0_0 .*not finite") as caught:
        embed_box(work, mean_encoder(work, broken=True), given)
    assert isinstance(caught.value.__cause__, ModelError)


def test_crops_are_cut_as_they_are_encoded(work: EmbedWork, monkeypatch) -> None:
    """No more crops are alive at once than two batches have."""
    given = nodes(*((7, i, 88.0 + 8 * (i % 10), 40.0, 40.0) for i in range(40)))
    real, cut, encoded, ahead = embedding.iter_crops, [], [], []

    def watched(*args):
        for crop in real(*args):
            cut.append(1)
            ahead.append(len(cut) - len(encoded))
            yield crop

    encoder = mean_encoder(work)

    def counting(pixels: np.ndarray) -> np.ndarray:
        encoded.extend([1] * len(pixels))
        return np.zeros((len(pixels), 4), np.float32)

    monkeypatch.setattr(embedding, "iter_crops", watched)
    rows = embed_box(work, Encoder(encoder.spec, counting), box_input(work, given)).rows
    assert len(rows) == 40
    assert max(ahead) <= 2 * work.model.batch


def test_read_and_labels_boxes_are_clipped_and_hold_the_cells(work: EmbedWork) -> None:
    assert work.read_box(0) == Box((0, 0, 0), (24, 24, 20))
    sampled = dataclasses.replace(work, spacing_nm=8.0 * 30)
    assert sampled.labels_box(0) == Box((0, 0, 0), (30, 24, 20))
    assert sampled.read_box(0) == work.read_box(0)
    assert pickle.loads(pickle.dumps(sampled)) == sampled


def test_nodes_are_placed_in_the_box_of_their_voxel(work: EmbedWork) -> None:
    given = nodes(
        (1, 1, 0.0, 0.0, 0.0),
        (1, 2, 8.0 * 16, 0.0, 0.0),
        (1, 3, 8.0 * 15.9, 0.0, 0.0),
        (1, 4, np.nan, 0.0, 0.0),
        (1, 5, np.inf, 0.0, 0.0),
        (1, 6, 8.0 * 32, 0.0, 0.0),
        (1, 7, -8.0, 0.0, 0.0),
    )
    placed, rejected = place_nodes(work, given)
    assert {index: part.node_id.tolist() for index, part in placed} == {0: [1, 3], 1: [2]}
    assert rejected == {"nan": 1, "outside": 3}
    assert place_nodes(work, Nodes.empty())[0] == []


def test_receipts_add_up_in_any_order_and_grouping(work: EmbedWork) -> None:
    given = [nodes((7, i, 120.0, 40.0, 40.0), (0, i, 8.0, 8.0, 8.0)) for i in range(5)]
    outputs = [embed_box(work, mean_encoder(work), box_input(work, n)) for n in given]
    done = [
        Done(o.receipt.box, o.receipt, i == 0, 0 if i == 0 else o.bytes_read)
        for i, o in enumerate(outputs)
    ]
    failure = Failure("1_0_0", "f", 7, "an error", 3, "run")
    done += [
        Done("1_0_0", failure, False),
        Done("2_0_0", failure, True),
        Done("3_0_0", None, False),
    ]
    combine = SumDone()

    def total(*groups: list[Done]) -> Tally:
        sums = []
        for group in groups:
            tally = combine.create_accumulator()
            for each in group:
                tally = combine.add_input(tally, each)
            sums.append(tally)
        return combine.extract_output(combine.merge_accumulators(sums))

    expected = Tally(
        boxes=4,
        boxes_skipped=2,
        boxes_failed=1,
        boxes_removed=1,
        embeddings=4,
        nodes=10 + 14,
        rejected=(("background", 4),),
        bytes_read=4 * 1234,
    )
    assert total(done) == total(done[3:], done[:3]) == total(*[[d] for d in reversed(done)])
    assert total(done) == expected


def test_walks_join_where_they_meet() -> None:
    combine = SumWalks()
    walks = [Walked((0, 4, 8), 4, 1, 9), Walked((1, 0, 4), 2, 2, 0), Walked((0, 0, 4), 4, 0, 5)]
    total = combine.create_accumulator()
    for walked in walks:
        total = combine.add_input(total, walked)
    assert total == WalkTotal(((0, 0, 8), (1, 0, 4)), 10, 3, 14)


def test_boxes_with_nodes_travel(work: EmbedWork) -> None:
    box = BoxNodes(3, nodes((2**64 - 1, 2**64 - 2, 1.0, 2.0, 3.0)))
    back = pickle.loads(pickle.dumps(box))
    assert back.index == 3
    assert back.nodes == box.nodes


def again(work: EmbedWork, first: Embedded, box: BoxInput) -> tuple[Change, list[int]]:
    """What becomes of a box that is committed, and how many crops went through the network."""
    encoded: list[int] = []

    def forward(pixels: np.ndarray) -> np.ndarray:
        encoded.append(len(pixels))
        return mean_encoder(work).encode_batch(pixels)

    committed = dataclasses.replace(box, prior=first.receipt)
    encoder = Encoder(work.model, forward)
    output = embedding.embed_box(work, lambda: encoder, committed, lambda: first.rows)
    assert output.change.replaces == standing_digest(first.receipt)
    return output.change, encoded


def test_what_reads_the_same_keeps_its_rows_and_gets_new_stamps(work: EmbedWork) -> None:
    box = box_input(work, nodes((7, 1, 120.0, 40.0, 40.0)))
    first = embed_box(work, mean_encoder(work), box)
    moved = dataclasses.replace(box, image_stamp="written again")
    later = dataclasses.replace(work, run="later")
    change, encoded = again(later, first, moved)
    assert (change.rows, encoded) == (None, [])
    assert change.receipt == dataclasses.replace(
        first.receipt, image_stamp="written again", computed=0, run="later"
    )


def test_only_crops_that_differ_are_encoded_again(work: EmbedWork) -> None:
    given = nodes((7, 1, 144.0, 40.0, 40.0), (2**63 + 5, 2, 0.0, 40.0, 40.0))
    box = box_input(work, given)
    first = embed_box(work, mean_encoder(work), box)
    assert first.receipt.computed == 2
    # A voxel that only the crop of node 1 shows: segment 7, beyond the reach of node 2.
    box.subvolume.image[20, 5, 5] = 91
    change, encoded = again(work, first, box)
    assert encoded == [work.model.batch]
    assert change.receipt is not None
    assert change.rows is not None
    assert (change.receipt.computed, change.receipt.committed) == (1, 2)
    assert change.rows.digest() == embed_box(work, mean_encoder(work), box).rows.digest()
    # And one that no crop shows: another segment's, for node 1; out of reach, for node 2.
    box.subvolume.image[9, 5, 5] = 91
    change, encoded = again(work, Embedded(change.rows, change.receipt, 0), box)
    assert encoded == []
    assert change.receipt is not None
    assert change.receipt.computed == 0
    assert change.rows is not None


def test_a_node_that_is_renamed_or_new_takes_the_vector_of_its_crop(work: EmbedWork) -> None:
    one = box_input(work, nodes((7, 1, 144.0, 40.0, 40.0)))
    first = embed_box(work, mean_encoder(work), one)
    renamed = box_input(work, nodes((7, 8, 144.0, 40.0, 40.0), (7, 9, 136.0, 40.0, 40.0)))
    change, encoded = again(work, first, renamed)
    assert encoded == [work.model.batch]
    assert change.receipt is not None
    assert change.receipt.computed == 1
    assert change.rows is not None
    assert change.rows.digest() == embed_box(work, mean_encoder(work), renamed).rows.digest()
