"""How glibc keeps memory in processes that write volumes.

A unit's arrays and TensorStore's chunks are of some hundred kilobytes to a hundred megabytes. As it
comes, glibc maps each anew and gives it back when it is freed, so that every unit begins with pages
that the kernel must clear: a third of the processor time of a conversion. Here freed memory stays
with the process and serves the next unit, which is as large. One arena, since memory that threads
free into arenas of their own serves nobody else; that counts for a process that has no threads yet.

"""

import ctypes

# From malloc.h; the numbers are part of glibc's binary interface.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, from now on and for the whole process.

    Returns:
        Whether it does; False where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    wanted = ((_MMAP_THRESHOLD, _NEVER), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in wanted])
