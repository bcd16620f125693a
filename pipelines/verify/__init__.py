"""The job ``verify``: planned against committed, digests against bytes, from storage alone."""

from pipelines.verify.job import Result, VerifyConfig, VerifyPlan, build, finish, plan, prepare

__all__ = ["Result", "VerifyConfig", "VerifyPlan", "build", "finish", "plan", "prepare"]
