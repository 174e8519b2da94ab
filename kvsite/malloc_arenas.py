"""Lets the C library's allocator use few arenas, so that freed memory is used again (docs/memory.md).

glibc gives a thread an *arena* of its own, a heap from which the thread allocates, until there are eight for each
processor of the machine. What is freed goes back to its arena, and other arenas cannot use it. A replica has thousands
of threads on a machine that may have many processors, and most values that clients replace were allocated by another
thread. So each arena would keep free memory of its own, together more than the data.

Few arenas cost a replica no time. Small objects come from Python's own allocator, and Python runs one thread at a time,
so threads seldom allocate from the C library at the same moment.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

MAX_ARENAS: Final = 2
"""One is the main arena, from which the first thread allocates. With two, a thread that finds one of them locked takes
the other one."""

VARIABLE: Final = "MALLOC_ARENA_MAX"
"""glibc reads the number of arenas from this variable, if it is set."""

_M_ARENA_MAX: Final = -8  # malloc.h of glibc


def limit_arenas() -> bool:
    """Limit the arenas of this process, and return whether that was possible. Call it before other threads start.

    Does nothing if ``MALLOC_ARENA_MAX`` is set, or if the C library is not glibc.
    """
    if os.environ.get(VARIABLE):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_ARENA_MAX, MAX_ARENAS))
