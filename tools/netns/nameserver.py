"""A small DNS server for the replicas of a ``NetnsCluster``: A records over UDP.

cluster.resolv_conf = write_resolv_conf(directory, "10.77.0.254")
with NameServer("10.77.0.254") as dns:
dns.records = {"peers.test": ["10.77.0.1", "10.77.0.2"]}
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PORT = 53
TTL_S = 0
A, IN = 1, 1
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3


class NameServer:
    """Serves ``records`` (name -> IPv4 addresses) at ``host``. Other names do not exist; other record types are empty.

    ``failing``: answer every query with "server failure". ``queries`` counts queries by name.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.records: Mapping[str, Sequence[str]] = {}
        self.failing = False
        self.queries: Counter[str] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve, name="nameserver", daemon=True)

    def __enter__(self) -> Self:
        self._socket.bind((self.host, PORT))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing the socket does not wake a thread in recvfrom. An empty packet does.
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
        """Return the response to one query (RFC 1035, section 4.1)."""
        name, end = _question(query)
        number, record_type = query[:2], struct.unpack_from("!H", query, end)[0]
        self.queries[name] += 1
        hosts = self.records.get(name)
        code = SERVER_FAILURE if self.failing else NO_ERROR if hosts else NO_SUCH_NAME
        found = list(hosts or ()) if code == NO_ERROR and record_type == A else []
        flags = 0x8580 | code  # response, authoritative, recursion desired, recursion available
        header = number + struct.pack("!5H", flags, 1, len(found), 0, 0)
        return header + query[12 : end + 4] + b"".join(_record(host) for host in found)


def _question(query: bytes) -> tuple[str, int]:
    """Return the name in the question, in lower case, and the offset after it."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    return ".".join(labels), at + 1


def _record(host: str) -> bytes:
    name_in_question = 0xC00C  # a pointer to byte 12 of the message
    return struct.pack("!HHHIH", name_in_question, A, IN, TTL_S, 4) + socket.inet_aton(host)


def write_resolv_conf(directory: Path, server: str) -> Path:
    """Write a resolv.conf that names ``server``, for ``NetnsCluster.resolv_conf``; return its path."""
    path = directory / "resolv.conf"
    path.write_text(f"nameserver {server}\noptions timeout:1 attempts:2\n")
    return path
