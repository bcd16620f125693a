"""Flags of the jobs that look after a store."""

import argparse

from launch.parsers import Job, integer, scheduled, store


def _verify(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to check")
    store(group)
    group.add_argument(
        "--volume", metavar="URL", help="a volume that ingest, convert or downsample wrote"
    )
    group.add_argument(
        "--version",
        type=integer,
        metavar="N",
        help="a published version (default: what is committed now, work under way included)",
    )
    group = parser.add_argument_group("what to write")
    group.add_argument(
        "--repair",
        action="store_true",
        help="put damaged boxes back in the queue, so that the same command does them again",
    )


def _versions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to list")
    store(group)


def _diff(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to compare")
    store(group)
    group.add_argument(
        "--from",
        dest="from_version",
        type=integer,
        metavar="N",
        help="a published version (default: the one before --to)",
    )
    group.add_argument(
        "--to",
        dest="to_version",
        type=integer,
        metavar="N",
        help="a published version (default: the latest)",
    )
    group = parser.add_argument_group("what to write")
    group.add_argument(
        "--output",
        metavar="FILE",
        help="a new CSV file for all segments that differ; FILE.json beside it says what it is of",
    )


def _compact(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to remove")
    store(group)
    group.add_argument(
        "--keep",
        type=integer,
        default=2,
        metavar="N",
        help="published versions that stay, the newest ones (default 2); older ones are removed",
    )
    scheduled(group)


STORE_JOBS: tuple[Job, ...] = (
    Job(
        "verify",
        "is every row of a store, or every object of a volume, what was written?",
        "segclr-beam verify --store store",
        (),
        _verify,
        "launch.verifying",
    ),
    Job(
        "versions",
        "the published versions of an embedding store, a line each",
        "segclr-beam versions --store store",
        ("store",),
        _versions,
        "launch.keeping",
        beam=False,
    ),
    Job(
        "diff",
        "the nodes that differ between two versions of an embedding store, by segment",
        "segclr-beam diff --store store --from 1 --to 2 --output changes.csv",
        ("store",),
        _diff,
        "launch.keeping",
    ),
    Job(
        "compact",
        "remove what the newest versions of an embedding store do not need",
        "segclr-beam compact --store store --keep 2",
        ("store",),
        _compact,
        "launch.keeping",
    ),
)
"""The jobs, in the order in which a user meets them."""
