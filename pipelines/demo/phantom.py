"""The sample volume of the demo: synthetic electron microscopy of packed neurites of three kinds.

Representation: arrays are XYZ; voxel ``(i, j, k)`` has its centre at ``(i, j, k) * voxel size``.
Everything is drawn in nm, so that a config of another voxel size samples tissue of the same make.
The recipe is frozen, because networks are trained on its output: a test holds the digest of a small
volume.

Same config, same bits: each stage has its own PCG64 stream, seeded by ``(seed, name of the stage as
a little-endian integer)``. Floating point is used for elementwise ``+ - * /``, square roots,
comparisons, interpolation and sums in array order alone, so that neither the number of threads nor
the width of vector registers matters.

The recipe, with the numbers that shape it (lengths in nm). Step 1 is in ``kinds``, 2 in ``lines``,
3 in ``labels``, 5 in ``organelles``, 4 and 6 to 8 in ``grey``; they share the ``canvas``:

1. *Kinds.* 18 % of the neurites are dendrites, 26 % glia, the rest axons.
2. *Centre lines.* A straight line through a uniform point of the inner 92 % of each axis, in a
   uniform direction, cut off 400 outside the volume, sampled every 96 and bent by uniform offsets
   up to 240 at knots 900 apart. The base radius is uniform in 68 to 110 (axon), 150 to 240
   (dendrite), 100 to 160 (glia), modulated by 12 % (glia: 45 %) at knots 500 apart; axons swell to
   1.5 to 2.1 times their radius in boutons 960 to 2,112 apart. 60 rounds of relaxation pack the
   lines: samples of different neurites closer than the sum of their radii push each other apart by
   0.3 of what is missing, the thinner giving way more; each line is smoothed by a quarter of its
   second difference; nothing leaves the cut.
3. *Labels.* A voxel belongs to the neurite of least cost: the squared distance to a sample of its
   centre line over the squared radius there. Dendrites have spines, a thin neck with a head, every
   576. Glia's cost grows only 0.22 times as fast but begins at 0.5, give or take a random field of
   grain 130: it fills what the tubes leave, in ragged sheets. Where no cost is below 1.7, and in
   whatever is not connected to the longest unbroken stretch of its own centre line, the label is
   0. Identities are random uint64; a third are above 2**53, in pairs that differ by 1 and that
   float64 therefore cannot tell apart.
4. *Cytoplasm.* Level 150 (background: 165), plus a fine (grain 26) and a coarse (grain 110) random
   field, each with an amplitude that depends on the kind: axons are grainy, dendrites smooth, glia
   is patchy. A field is a quadratic B-spline over uniform values at knots one grain apart.
5. *Organelles.* Mitochondria in axons and, larger, in dendrites: dark capsules 480 to 1,056 long
   beside the centre line, with a darker rim and stripes across every 80. Vesicles in the boutons of
   axons: 70 to 169 dark rings of radius 18. Microtubules in dendrites: 12 to 17 dark lines along
   the centre line. Granules in the darker patches of glia: dark dots of radius 30.
6. *Membranes.* Voxels within 16 of a change of label (at least one voxel), softened, at level 62.
7. *Mean grey.* The cytoplasm of each neurite is shifted until the neurite's mean grey is one drawn
   from a normal distribution of deviation 6 about 131 (axon), 135 (dendrite) or 133 (glia): the
   kinds overlap in it, and texture, organelles and shape tell them apart.
8. *Microscope.* A slight blur, an offset of deviation 1 per section, and normal noise of variance
   12 + 0.1 times the grey level; rounded to uint8.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from pipelines.demo.canvas import Canvas
from pipelines.demo.grey import microscope, tissue
from pipelines.demo.kinds import KINDS, kinds_of_tubes
from pipelines.demo.labels import assign, identities
from pipelines.demo.lines import centre_lines, relaxed
from volumes.errors import RequestError
from volumes.geometry import Vec, Vec3

_MOST_VOXELS = 2**26


@dataclasses.dataclass(frozen=True, slots=True)
class PhantomConfig:
    """What sample volume is asked for.

    Attributes:
        shape: Voxels, XYZ; at least 32 on each axis and at most 2**26 in all.
        voxel_size_nm: Voxel size in nm, XYZ; 4 to 40 on each axis.
        neurites: Number of neurites, 3 to 4,096. The default fills the default volume; one of twice
            its size on each axis wants four times as many.
        seed: Seed of every random stream, not negative.
    """

    shape: Vec = (256, 256, 192)
    voxel_size_nm: Vec3 = (16.0, 16.0, 16.0)
    neurites: int = 240
    seed: int = 7

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if min(self.shape) < 32 or math.prod(self.shape) > _MOST_VOXELS:
            raise RequestError(
                f"a sample volume of shape {self.shape} cannot be drawn: it needs at least 32 "
                f"voxels on each axis to hold a neurite and at most {_MOST_VOXELS} in all, "
                "because it is made in memory; ask for another shape."
            )
        if not all(4 <= s <= 40 for s in self.voxel_size_nm):
            raise RequestError(
                f"a sample volume with voxels of {self.voxel_size_nm} nm cannot be drawn: its "
                "finest structures are 36 nm wide, which wants voxels of 4 to 40 nm on each axis; "
                "give a size in that range."
            )
        if not 3 <= self.neurites <= 4096:
            raise RequestError(
                f"a sample volume of {self.neurites} neurites cannot be drawn: it takes 3, one of "
                "each kind, to 4096, the most that were tried; give a number in that range."
            )
        if self.seed < 0:
            raise RequestError(f"the seed {self.seed} is negative; give one of at least 0.")


SMALL = PhantomConfig(shape=(64, 64, 64), neurites=14)
"""A config for tests, made in well under a second. Its volume holds 13 of its 14 neurites."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A sample volume.

    Attributes:
        image: uint8, XYZ.
        labels: uint64, XYZ: the segment of each voxel, 0 for background.
        kinds: Every segment of ``labels`` with the name of its kind, ascending by segment. A
            neurite that was crowded out of the volume is not among them.
        config: What was asked.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint64]
    kinds: tuple[tuple[int, str], ...]
    config: PhantomConfig

    def kind_of(self, segment_id: int) -> str:
        """Name of a segment's kind; a segment that is not in the volume is a ``KeyError``."""
        return dict(self.kinds)[int(segment_id)]


def make_phantom(config: PhantomConfig) -> Phantom:
    """The sample volume of a config; see the module's text for the recipe."""
    axes = tuple(
        np.arange(n, dtype=np.float32) * np.float32(s)
        for n, s in zip(config.shape, config.voxel_size_nm, strict=True)
    )
    owner = np.full(config.shape, -1, dtype=np.int16)
    canvas = Canvas(
        config.shape, config.voxel_size_nm, config.seed, (axes[0], axes[1], axes[2]), owner
    )
    kind = kinds_of_tubes(config.neurites)
    lines = relaxed(centre_lines(canvas, kind), canvas)
    assign(canvas, lines, kind)
    image = microscope(canvas, tissue(canvas, lines, kind))
    ids = identities(canvas.rng("ids"), config.neurites)
    present = np.flatnonzero(np.bincount(canvas.owner.ravel() + 1)[1:])
    return Phantom(
        image=image,
        labels=np.concatenate([np.zeros(1, np.uint64), ids])[canvas.owner + np.int16(1)],
        kinds=tuple(sorted((int(ids[t]), KINDS[kind[t]].name) for t in present)),
        config=config,
    )
