"""The job ``embed``: image, segmentation and nodes to an embedding store.

``plan`` looks at metadata and nodes and refuses what cannot work; ``prepare`` writes what is
written once; ``build`` makes the graph; ``finish`` reads how the run ended.
"""

from pipelines.embed.config import EmbedConfig
from pipelines.embed.graph import Result, build, finish, found_complete, prepare
from pipelines.embed.plan import EmbedPlan, plan
from pipelines.embed.resolving import default_box

__all__ = [
    "EmbedConfig",
    "EmbedPlan",
    "Result",
    "build",
    "default_box",
    "finish",
    "found_complete",
    "plan",
    "prepare",
]
