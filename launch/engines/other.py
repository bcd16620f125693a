"""Any other runner that Beam knows, with no more than what Beam itself checks."""

import dataclasses
from collections.abc import Sequence

from launch.engines.base import Asked, refuse_workers


@dataclasses.dataclass(frozen=True, slots=True)
class OtherEngine:
    """A runner by Beam's name for it."""

    names: tuple[str, ...] = ()
    local: bool = False

    def words(self, asked: Asked) -> Sequence[str]:
        """The flags as they were typed.

        Raises:
            UsageError: Local processes are asked for.
        """
        refuse_workers(asked)
        return (f"--runner={asked.runner}", *asked.words)

    def check(self, asked: Asked) -> Sequence[str]:
        """Nothing that is known here."""
        return ()
