"""The job ``verify``: planned against committed, digests against bytes, from storage alone."""

from pipelines.verify.job import (
    Result,
    VerifyConfig,
    VerifyPlan,
    boxes_text,
    build,
    finish,
    plan,
    prepare,
)
from pipelines.verify.volume import (
    VolumeCheckPlan,
    VolumeResult,
    build_volume,
    finish_volume,
    plan_volume,
)

__all__ = [
    "Result",
    "VerifyConfig",
    "VerifyPlan",
    "VolumeCheckPlan",
    "VolumeResult",
    "boxes_text",
    "build",
    "build_volume",
    "finish",
    "finish_volume",
    "plan",
    "plan_volume",
    "prepare",
]
