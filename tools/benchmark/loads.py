"""Loads: lists of complete HTTP requests as bytes.

Requests are prepared before the measurement, and are the same for every driver. A driver sends the list in a loop. Keys
are random with a fixed seed. Requests for Causeway carry causal metadata as those of a session do.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

KEY_BYTES: Final = 16
DISTINCT: Final = 2000
"""Number of different requests in a load."""

OPERATIONS: Final = ("get", "put", "mix", "txn")
"""The operations that are measured. ``mix``: 90 % GET, 10 % PUT; ``txn``: a transaction of two reads and two writes."""

SEED: Final = 1


VALUE_BYTES: Final = 32
"""Characters of a value. As JSON it has two bytes more, for the quotes."""


@dataclass(frozen=True, slots=True)
class Load:
    """The ``requests`` for the server at ``address`` (host:port). ``name`` is for messages."""

    name: str
    address: str
    requests: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Shape:
    """The data of a load: number of keys, length of the values, and the causal metadata of requests (None: none).

    ``concern``: the write concern ``w`` of PUTs; empty: none, as with ``w`` 1.
    """

    keys: int = 1000
    value_bytes: int = VALUE_BYTES
    metadata: Mapping[str, int] | None = None
    concern: str = ""

    def value(self, rng: random.Random) -> str:
        """Return a random value of ``value_bytes`` characters."""
        return f"{rng.getrandbits(4 * self.value_bytes):0{self.value_bytes}x}"


def key(number: int) -> str:
    """Return the key with this number; its length is ``KEY_BYTES``."""
    return f"bench:{number:010d}"


def http(method: str, path: str, address: str, body: Any = None, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return one HTTP/1.1 request. A string ``body`` is sent as plain text, anything else as JSON."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address}", *(f"{name}: {value}" for name, value in headers)]
    content = b""
    if body is not None:
        is_text = isinstance(body, str)
        content = body.encode() if is_text else compact(body).encode()
        lines += [f"Content-Type: {'text/plain' if is_text else 'application/json'}", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


def compact(value: Any) -> str:
    """Return JSON without whitespace."""
    return json.dumps(value, separators=(",", ":"))


# ---------------------------------------------------------------------------------------------------------- Causeway


def causeway(operation: str, address: str, shape: Shape, count: int = DISTINCT) -> Load:
    """Return the load of ``operation`` (one of ``OPERATIONS``) for a replica of Causeway."""
    rng = random.Random(SEED)  # the same requests in every run
    make = {"get": _get, "put": _put, "mix": _mix, "txn": _txn}[operation]
    return Load(operation, address, [make(address, shape, rng, i) for i in range(count)])


def fill(address: str, shape: Shape, first: int = 0) -> Load:
    """Return one PUT for each of ``shape.keys`` keys, from number ``first`` on. Send it once."""
    rng = random.Random(SEED)
    numbers = range(first, first + shape.keys)
    return Load("fill", address, [_put_key(address, shape, rng, key(i)) for i in numbers])


def _get(address: str, shape: Shape, rng: random.Random, _: int) -> bytes:
    headers = [] if shape.metadata is None else [("X-Causal-Metadata", compact(shape.metadata))]
    return http("GET", f"/kvs/{key(rng.randrange(shape.keys))}", address, headers=headers)


def _put(address: str, shape: Shape, rng: random.Random, _: int) -> bytes:
    return _put_key(address, shape, rng, key(rng.randrange(shape.keys)))


def _put_key(address: str, shape: Shape, rng: random.Random, name: str) -> bytes:
    body = {"value": shape.value(rng)} | _metadata(shape) | ({"w": shape.concern} if shape.concern else {})
    return http("PUT", f"/kvs/{name}", address, body)


def _mix(address: str, shape: Shape, rng: random.Random, number: int) -> bytes:
    return (_put if number % 10 == 9 else _get)(address, shape, rng, number)


def _txn(address: str, shape: Shape, rng: random.Random, _: int) -> bytes:
    reads = [key(rng.randrange(shape.keys)) for _ in range(2)]
    writes = [{"key": key(rng.randrange(shape.keys)), "value": shape.value(rng)} for _ in range(2)]
    return http("POST", "/kvs", address, {"reads": reads, "writes": writes} | _metadata(shape))


def _metadata(shape: Shape) -> dict[str, Any]:
    return {} if shape.metadata is None else {"causal-metadata": shape.metadata}


# -------------------------------------------------------------------------------------------------------------- peers


def etcd(operation: str, address: str, shape: Shape, count: int = DISTINCT) -> Load:
    """Return the load of ``operation`` (not ``txn``) for etcd's HTTP gateway. Reads are serializable (the fastest)."""
    rng = random.Random(SEED)
    requests = []
    for i in range(count):
        name = _base64(key(rng.randrange(shape.keys)))
        if operation == "put" or (operation == "mix" and i % 10 == 9):
            body: dict[str, Any] = {"key": name, "value": _base64(shape.value(rng))}
            requests.append(http("POST", "/v3/kv/put", address, body))
        else:
            requests.append(http("POST", "/v3/kv/range", address, {"key": name, "serializable": True}))
    return Load(operation, address, requests)


def etcd_fill(address: str, shape: Shape) -> Load:
    """Return one put for each key. Send it once."""
    rng = random.Random(SEED)
    bodies = [{"key": _base64(key(i)), "value": _base64(shape.value(rng))} for i in range(shape.keys)]
    return Load("fill", address, [http("POST", "/v3/kv/put", address, body) for body in bodies])


def webdis(operation: str, address: str, shape: Shape, count: int = DISTINCT) -> Load:
    """Return the load of ``operation`` (not ``txn``) for Redis behind webdis."""
    rng = random.Random(SEED)
    requests = []
    for i in range(count):
        name = key(rng.randrange(shape.keys))
        if operation == "put" or (operation == "mix" and i % 10 == 9):
            requests.append(http("PUT", f"/SET/{name}", address, shape.value(rng)))
        else:
            requests.append(http("GET", f"/GET/{name}", address))
    return Load(operation, address, requests)


def webdis_fill(address: str, shape: Shape) -> Load:
    """Return one SET for each key. Send it once."""
    rng = random.Random(SEED)
    return Load("fill", address, [http("PUT", f"/SET/{key(i)}", address, shape.value(rng)) for i in range(shape.keys)])


def redis_wait(address: str, shape: Shape, count: int = DISTINCT) -> Load:
    """Return the load for Redis itself (not HTTP): a SET, and a WAIT until one replica has it, in one piece each."""
    rng = random.Random(SEED)
    requests = []
    for _ in range(count):
        words = ["SET", key(rng.randrange(shape.keys)), shape.value(rng)]
        requests.append(_redis_command(*words) + _redis_command("WAIT", "1", "5000"))
    return Load("put", address, requests)


def _redis_command(*words: str) -> bytes:
    parts = [f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]
    return "".join(parts).encode()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# ---------------------------------------------------------------------------------------------------------- the file


def write_file(path: Path, requests: Sequence[bytes]) -> None:
    """Write ``requests`` to a file for a driver: each after a line with its length in bytes."""
    path.write_bytes(b"".join(b"%d\n%b" % (len(request), request) for request in requests))


def read_file(path: Path) -> list[bytes]:
    """Return the requests in a file of ``write_file``."""
    content, requests, at = path.read_bytes(), [], 0
    while at < len(content):
        start = content.index(b"\n", at) + 1
        at = start + int(content[at : start - 1])
        requests.append(content[start:at])
    return requests
