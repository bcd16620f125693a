"""What is freed stays with the process, where there is a glibc."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from launch.allocator import keep_freed_memory

assert keep_freed_memory() and keep_freed_memory()
np.ones(50_000_000, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(50_000_000, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_memory_that_is_freed_serves_the_next_array() -> None:
    run = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 1000, "pages of 5 arrays of 50 MB, which are 12,000 each"
