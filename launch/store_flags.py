"""Flags of the jobs that look after a store."""

from launch.parsers import Job

STORE_JOBS: tuple[Job, ...] = ()
"""The jobs, in the order in which a user meets them."""
