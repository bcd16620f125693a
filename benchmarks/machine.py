"""What a figure was measured on."""

import os
import pathlib
import platform
from collections.abc import Sequence

from volumes import provenance


def describe() -> str:
    """Processor, cores, memory and software, in a line each."""
    models = [
        line.partition(":")[2].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    software = ", ".join(f"{name} {v}" for name, v in provenance.software().items())
    return (
        f"machine: {models[0] if models else platform.processor()}, {os.cpu_count()} cores, "
        f"{memory / 2**30:.0f} GiB\nsoftware: {software}"
    )


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table."""
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]
    print(f"\n{title}")
    for row in (header, *rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def met(reached: bool) -> str:
    """Whether a goal was reached, in a word."""
    return "met" if reached else "MISSED"


class Peak:
    """The resident memory that the body of a ``with`` adds at most to this process, in bytes."""

    def __enter__(self) -> "Peak":
        """Begin to watch: Linux forgets the highest mark so far."""
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmRSS")
        self.bytes = 0
        return self

    def __exit__(self, *_: object) -> None:
        """Read the mark."""
        self.bytes = max(0, _resident("VmHWM") - self._before)


def _resident(name: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
