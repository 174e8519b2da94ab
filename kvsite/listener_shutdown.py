"""How a server that is about to end closes its door, so that nobody who has knocked is left without an answer.

A listening socket that is closed resets the connections in its queue: those whose handshake is done, and that nobody
has accepted yet. Their clients may have sent a request already, and cannot know what has become of it. So on Linux the
door is closed in two steps: first no handshake begins any more (a filter drops the packets that ask for one; TCP asks
again after a second, and is refused then), and once all that had begun have been accepted, the socket is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
import time

SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python's socket module has no name for it

# Classic BPF, as a TCP socket runs it: byte 0 is the first one of the TCP header (linux/filter.h; RFC 9293, 3.1).
_DROP_SYN = [
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # yes: drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # no: take all of it
]


def stop_listening(descriptor: int, settle_s: float) -> None:
    """Let the socket behind ``descriptor`` listen no more; connections that were accepted from it go on.

    ``settle_s``: for how long handshakes that have begun may end, and somebody else accepts what comes of them. Then a
    socket that listens nowhere takes its place: ``descriptor`` stays one for whoever waits to accept from it.
    """
    if _begin_no_handshake(descriptor):
        time.sleep(settle_s)
    with socket.socket() as deaf:
        os.dup2(deaf.fileno(), descriptor, inheritable=False)


def _begin_no_handshake(descriptor: int) -> bool:
    """Drop what asks for a connection; return False where the system cannot."""
    if sys.platform != "linux":
        return False
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _DROP_SYN))
    program = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(code))
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        return True
    return False
