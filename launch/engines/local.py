"""The engine in this process, with one worker or with several processes below it."""

import dataclasses
from collections.abc import Sequence

from launch.engines.base import Asked

# Beam's ``DirectRunner`` would look for, and download, another engine; ours is the one in process.
_IN_PROCESS = "FnApiRunner"


@dataclasses.dataclass(frozen=True, slots=True)
class LocalEngine:
    """Beam's in-process Python runner; ``DirectRunner`` means this one."""

    names: tuple[str, ...] = ("direct", "directrunner", "fnapi", "fnapirunner")
    local: bool = True

    def words(self, asked: Asked) -> Sequence[str]:
        """Beam's flags: one worker in this process, or as many processes as were asked for."""
        mode = "in_memory" if asked.workers == 1 else "multi_processing"
        return (
            f"--runner={_IN_PROCESS}",
            f"--direct_running_mode={mode}",
            f"--direct_num_workers={asked.workers}",
            *asked.words,
        )

    def check(self, asked: Asked) -> Sequence[str]:
        """Nothing: what a local run needs, its plan finds out."""
        return ()
