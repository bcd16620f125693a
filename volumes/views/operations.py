"""The operations of a view, by name."""

import difflib
from collections.abc import Sequence
from typing import ClassVar, Protocol

import tensorstore as ts

from volumes.errors import RequestError
from volumes.views import members
from volumes.views.arrays import Array, Part
from volumes.views.axes import Label, Merge, Split, Transpose
from volumes.views.contrast import Contrast
from volumes.views.functions import Function
from volumes.views.joining import Concat, Overlay, Stack
from volumes.views.masking import Mask
from volumes.views.members import Json, Members
from volumes.views.shaping import Broadcast, Channel, Crop, Stride, Translate
from volumes.views.values import Cast, Downsample, Relabel


class Step(Protocol):
    """An operation with its parameters, which hold no volume.

    ``arrays`` are what it is applied to: one; for ``stack``, ``concat`` and ``overlay`` all volumes
    of the view; for ``mask`` one and the mask.
    """

    op: ClassVar[str]

    def to_json(self) -> Json:
        """The parameters as JSON, from which ``step_of`` makes the operation again."""

    def result(self, arrays: Sequence[Array]) -> Array:
        """What becomes of arrays, from their metadata alone.

        Raises:
            RequestError: The operation does not fit them.
        """

    def needs(self, part: Part, arrays: Sequence[Array]) -> tuple[Part | None, ...]:
        """What a part of the result is made of, in each array; None where of nothing there.

        No voxel outside these parts bears on the part.
        """

    def compose(self, stores: Sequence[ts.TensorStore], arrays: Sequence[Array]) -> ts.TensorStore:
        """The result as an array that reads when it is read; labels are not looked at."""


_STEPS = (
    *(Crop, Stride, Translate, Transpose, Channel, Label, Broadcast, Split, Merge),
    *(Stack, Concat, Overlay),
    *(Cast, Downsample, Relabel, Mask, Contrast, Function),
)
_READERS = {step.op: step.read for step in _STEPS}

OPERATIONS = tuple(_READERS)
"""Names of the operations."""

JOINING = (Stack.op, Concat.op, Overlay.op)
"""Those that make one array of several."""


def step_of(document: Json) -> Step:
    """The operation of a JSON object with the member ``op``.

    Raises:
        RequestError: There is none of that name, or its members are wrong.
    """
    given = Members(document)
    op = given.take("op", members.text)
    if op == "reshape":
        raise RequestError(
            "a general reshape would move voxels across rows, so that a chunk of the result is "
            "made of single voxels all over the volume; split and merge are the reshapes that are "
            "exact on chunks: give these"
        )
    if op not in _READERS:
        near = difflib.get_close_matches(op, OPERATIONS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OPERATIONS)}"
        raise RequestError(f"there is no such operation; {hint}")
    step: Step = _READERS[op](given)
    given.done()
    return step
