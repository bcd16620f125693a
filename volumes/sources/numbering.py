"""The numbers of sections: their place in z, those that are missing, and what stands for these."""

import bisect
import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

MissingSections = Literal["refuse", "blank", "nearest"]
"""What a missing section is: an error, zeros, or a copy of the nearest one there is."""

MISSING_SECTIONS: tuple[MissingSections, ...] = ("refuse", "blank", "nearest")

LISTED = 10
"""Runs of missing sections that are listed; the others are counted."""

_FILLED = {
    "blank": "filled with zeros",
    "nearest": "filled with copies of the nearest section, the one before where two are as near",
}


def number_of(name: str) -> int:
    """A section's number: the last run of digits in its name's stem; -1 where there is none."""
    digits = re.findall(r"[0-9]+", os.path.splitext(name)[0])
    return int(digits[-1]) if digits else -1


def order(name: str) -> tuple[int, str]:
    """What sorts names by number."""
    return (number_of(name), name)


def gaps(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of numbers missing between others, which ascend."""
    return ((a + 1, b - 1) for a, b in itertools.pairwise(numbers) if b > a + 1)


def told(runs: Sequence[tuple[int, int]], more: int) -> str:
    """Runs of numbers for people: ``7, 10-11 and 3 more gaps``."""
    named = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return named + (f" and {more} more gaps" if more else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """The sections that are missing; small, however many they are.

    Attributes:
        policy: What stands for them.
        count: How many they are.
        runs: The first runs of their numbers, first and last.
        more: How many runs there are besides.
        digest: Digest of all of them; empty where there are none.
    """

    policy: MissingSections
    count: int = 0
    runs: tuple[tuple[int, int], ...] = ()
    more: int = 0
    digest: str = ""

    @classmethod
    def of(cls, numbers: Sequence[int], policy: MissingSections) -> "Missing":
        """Those missing among ascending numbers."""
        count, more = 0, 0
        listed: list[tuple[int, int]] = []
        digest = hashlib.sha256()
        for first, last in gaps(numbers):
            count += last - first + 1
            digest.update(f"{first}-{last}\n".encode())
            if len(listed) < LISTED:
                listed.append((first, last))
            else:
                more += 1
        return cls(policy, count, tuple(listed), more, digest.hexdigest()[:32] if count else "")

    def line(self) -> str:
        """The sections for people."""
        sections = "1 section" if self.count == 1 else f"{self.count} sections"
        return f"missing: {sections} ({told(self.runs, self.more)}), {_FILLED[self.policy]}"

    def to_json(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "policy": self.policy,
            "count": self.count,
            "ranges": [list(run) for run in self.runs],
            "more_ranges": self.more,
            "digest": self.digest,
        }


def standing_for(numbers: Sequence[int], number: int, policy: MissingSections) -> int | None:
    """Where, among ascending numbers, the section is that is read for a number.

    Returns:
        The section's own index if it is there; else that of the nearest, the lower one where two
        are as near, or None for a blank.
    """
    after = bisect.bisect_left(numbers, number)
    if after < len(numbers) and numbers[after] == number:
        return after
    if policy != "nearest":
        return None
    if after == 0 or after == len(numbers):
        return min(after, len(numbers) - 1)
    return after if numbers[after] - number < number - numbers[after - 1] else after - 1
