"""Run ``manage.py`` with a wrong wall clock, whose offset can be changed while it runs.

    python -m tools.netns.skewed_clock OFFSET_FILE run_replica …

``OFFSET_FILE`` contains one signed 64-bit number: microseconds to add to the machine's wall clock. The file is mapped
into memory. Another process changes the clock of this one by writing to the file (``Offset``).

Only Python's wall clock changes, the only wall clock that a replica reads (``store.engine.read_clocks``). The monotonic
clock stays right, as on a machine whose wall clock is set. libfaketime is not used: it breaks ``time.sleep`` of Python
3.11 (EINVAL from clock_nanosleep).
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

from tools.paths import MANAGE

_NUMBER = struct.Struct("<q")


class Offset:
    """A number of microseconds that processes share through the file ``path``. A new file starts with 0."""

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
        # One aligned store of eight bytes: readers see the old number or the new one, never a mixture.
        self._map[:] = _NUMBER.pack(value)


def skew_clock(offset: Offset) -> None:
    """Add ``offset`` to what ``time.time`` and ``time.time_ns`` return in this process."""
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + offset.us / 1e6
    time.time_ns = lambda: real_time_ns() + offset.us * 1000


def main() -> None:
    """Skew the clock of this process, then run ``manage.py`` with the remaining arguments."""
    skew_clock(Offset(Path(sys.argv[1])))
    sys.argv = [str(MANAGE), *sys.argv[2:]]
    sys.path.insert(0, str(MANAGE.parent))
    runpy.run_path(str(MANAGE), run_name="__main__")


if __name__ == "__main__":
    main()
