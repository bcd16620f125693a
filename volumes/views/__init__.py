"""Virtual views: volumes that are made of others when they are read, and cost nothing before."""

from volumes.views.document import FORMAT, FORMAT_VERSION, view_in
from volumes.views.tree import Need, functions_in, needs, read_per_voxel

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Need",
    "functions_in",
    "needs",
    "read_per_voxel",
    "view_in",
]
