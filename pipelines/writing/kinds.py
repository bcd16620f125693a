"""What the voxels of a volume are taken for, where the user says."""

import dataclasses

import numpy as np

from volumes.errors import RequestError
from volumes.spec import Kind, VolumeSpec


def of_kind(spec: VolumeSpec, kind: Kind | None) -> VolumeSpec:
    """The volume with the kind that the user gives, of any type that holds voxels of the kind.

    Raises:
        RequestError: Ids are no integers.
    """
    if kind == "segmentation" and np.dtype(spec.dtype).kind not in "iu":
        raise RequestError(
            f"--kind segmentation: {spec.source} has {spec.dtype} voxels, and ids are integers, "
            "which floats round; leave --kind out, or convert it with --kind image and an integer "
            "--dtype first"
        )
    return spec if kind is None else dataclasses.replace(spec, kind=kind)
