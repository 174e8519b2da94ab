"""Run ``manage.py`` with a wall clock that is wrong, and that can be moved while it runs.

    python -m tools.netns.skewed_clock OFFSET_FILE run_replica …

``OFFSET_FILE`` holds one signed 64-bit number: microseconds to add to the machine's wall clock. It is mapped, so that
another process moves the clock of this one by writing there (``Offset``).

Only Python's wall clock is moved, which is the only one that a replica reads (``store.engine.read_clocks``); the
monotonic clock stays right, as on a machine whose wall clock is set. libfaketime would do the same one floor lower, but
it breaks ``time.sleep`` of Python 3.11 (EINVAL from clock_nanosleep), and would have to be installed.
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
_NUMBER = struct.Struct("<q")


class Offset:
    """A number of microseconds that processes share through ``path``; made as 0 where there is no such file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_NUMBER.pack(0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _NUMBER.size)

    @property
    def us(self) -> int:
        number: int = _NUMBER.unpack_from(self._map)[0]
        return number

    @us.setter
    def us(self, value: int) -> None:
        # One aligned store of eight bytes: a reader sees the old number or the new one.
        self._map[:] = _NUMBER.pack(value)


def move_clock(offset: Offset) -> None:
    """Let ``time.time`` and ``time.time_ns`` of this process read ``offset`` more from now on."""
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + offset.us / 1e6
    time.time_ns = lambda: real_time_ns() + offset.us * 1000


def main() -> None:
    """Move the clock of this process, then run ``manage.py`` with the arguments that follow."""
    move_clock(Offset(Path(sys.argv[1])))
    sys.argv = [str(MANAGE), *sys.argv[2:]]
    sys.path.insert(0, str(MANAGE.parent))
    runpy.run_path(str(MANAGE), run_name="__main__")


if __name__ == "__main__":
    main()
