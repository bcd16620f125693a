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

__all__ = [
    "Result",
    "VerifyConfig",
    "VerifyPlan",
    "boxes_text",
    "build",
    "finish",
    "plan",
    "prepare",
]
