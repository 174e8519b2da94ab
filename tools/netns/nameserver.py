"""A name server for the namespaces of ``netns.py``: A records of a few names, over UDP, as a cluster's DNS gives them.

    with NameServer("10.77.0.254") as dns, resolving(cluster.network.namespaces, dns.host):
        dns.records["peers.test"] = ["10.77.0.1", "10.77.0.2"]

``ip netns exec`` shows ``/etc/netns/NAME/resolv.conf`` as ``/etc/resolv.conf`` to what it runs: ``resolving`` makes it.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PORT = 53
TTL_S = 0
A, IN = 1, 1
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3
ETC_NETNS = Path("/etc/netns")


class NameServer:
    """Answers for ``records`` (name -> IPv4 addresses) at ``host``; other names do not exist, other types are empty.

    ``failing``: every answer is "server failure". ``asked``: how often for which name.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.records: Mapping[str, Sequence[str]] = {}
        self.failing = False
        self.asked: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve, name="nameserver", daemon=True)

    def __enter__(self) -> Self:
        self._socket.bind((self.host, PORT))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing alone does not wake a thread that waits in recvfrom: an empty packet does.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (self.host, PORT))
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self.answer(query), sender)

    def answer(self, query: bytes) -> bytes:
        """Return the response to one query (RFC 1035, 4.1)."""
        name, end = _question(query)
        number, asked_type = query[:2], struct.unpack_from("!H", query, end)[0]
        self.asked[name] += 1
        hosts = self.records.get(name)
        code = SERVER_FAILURE if self.failing else NO_ERROR if hosts else NO_SUCH_NAME
        told = list(hosts or ()) if code == NO_ERROR and asked_type == A else []
        flags = 0x8580 | code  # a response, authoritative, recursion wanted and available
        header = number + struct.pack("!5H", flags, 1, len(told), 0, 0)
        return header + query[12 : end + 4] + b"".join(_record(host) for host in told)


def _question(query: bytes) -> tuple[str, int]:
    """Return the name that is asked for, in lower case, and where it ends."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    return ".".join(labels), at + 1


def _record(host: str) -> bytes:
    the_name_asked_for = 0xC00C  # a pointer to byte 12
    return struct.pack("!HHHIH", the_name_asked_for, A, IN, TTL_S, 4) + socket.inet_aton(host)


def _remove_leftovers() -> None:
    """Remove what runs left that were killed: their namespaces carry their process ids (netns.py)."""
    for directory in ETC_NETNS.glob("cw*p*r*"):
        if not Path("/proc", directory.name.rpartition("p")[2].partition("r")[0]).exists():
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def resolving(namespaces: Iterable[str], server: str) -> Iterator[None]:
    """Let what is run in ``namespaces`` (``ip netns exec``) ask ``server`` for names."""
    directories = [ETC_NETNS / namespace for namespace in namespaces]
    _remove_leftovers()
    try:
        for directory in directories:
            directory.mkdir(parents=True)
            (directory / "resolv.conf").write_text(f"nameserver {server}\noptions timeout:1 attempts:2\n")
        yield
    finally:
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            ETC_NETNS.rmdir()  # only where nobody else uses it
