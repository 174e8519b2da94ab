"""Stops a listening socket without resetting connections that clients have opened already.

Closing a listening socket resets the connections in its queue: their handshake is complete, but the server has not
accepted them yet. Their clients may have sent a request already, and cannot know whether it was applied. So on Linux
the socket is stopped in two steps. First a packet filter drops the packets that begin a handshake. (TCP repeats them
after a second, and the connection is refused then.) After the server has accepted the connections in the queue, the
socket is closed.
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

# Classic BPF on a TCP socket: byte 0 is the first byte of the TCP header (linux/filter.h; RFC 9293, section 3.1).
_DROP_SYN = [
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x45, 0, 1, 0x02),  # test SYN
    (0x06, 0, 0, 0),  # SYN set: drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # else: accept the whole packet
]


def stop_listening(descriptor: int, settle_s: float) -> None:
    """Stop the listening socket behind ``descriptor``. Connections accepted from it stay open.

    ``settle_s``: time for handshakes in progress to complete; another thread must keep accepting connections. Then a
    socket that does not listen replaces it, so that ``descriptor`` stays valid for the thread that accepts.
    """
    if _drop_new_handshakes(descriptor):
        time.sleep(settle_s)
    with socket.socket() as replacement:
        os.dup2(replacement.fileno(), descriptor, inheritable=False)


def _drop_new_handshakes(descriptor: int) -> bool:
    """Drop packets that begin a handshake. Return False if the system does not support this."""
    if sys.platform != "linux":
        return False
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _DROP_SYN))
    program = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(code))
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        return True
    return False
