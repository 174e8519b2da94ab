"""Compare every replica with the Unicode character database, over HTTP.

    python -m tools.demo.audit [--limit N] HOST:PORT...

An independent program: it shares no code with the writer, not even the client. It knows the key format, the database of
its own Python, and the listing (docs/contract.md, section 2.4). It prints one JSON object per replica. The exit code is
1 if a key is missing, unexpected or out of order, if a record differs, or if a replica cannot be read.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
import unicodedata as ucd
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

PAGE = 1000
EXAMPLES = 5


def expected_keys(limit: int | None) -> list[str]:
    """Return the keys that must exist, in the order of a listing (by text, not by code point)."""
    code_points = (n for n in range(0x110000) if ucd.name(chr(n), ""))
    keys = [f"U+{n:04X}" for n in code_points]
    return sorted(keys[:limit])


def expected_value(key: str) -> dict[str, Any]:
    """Return the value that ``key`` must have."""
    char = chr(int(key.lstrip("U+"), 16))
    value = {
        name: getattr(ucd, name)(char)
        for name in ("name", "category", "bidirectional", "combining", "east_asian_width")
    }
    value |= {name: getattr(ucd, name)(char, None) for name in ("decimal", "digit", "numeric")}
    value |= {"character": char, "mirrored": ucd.mirrored(char) == 1, "revision": 1}
    if decomposition := ucd.decomposition(char):
        parts = [ucd.name(part, f"U+{ord(part):04X}") for part in ucd.normalize("NFKD", char)]
        value |= {"revision": 2, "decomposition": decomposition, "parts": parts}
    return value


def listing(address: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield every (key, value) under ``prefix`` in the order of the listing, page by page."""
    connection = http.client.HTTPConnection(address, timeout=30)
    after: str | None = ""
    while after is not None:
        query = urlencode({"prefix": prefix, "limit": PAGE, "values": "true"} | ({"after": after} if after else {}))
        connection.request("GET", f"/kvs?{query}")
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise SystemExit(f"{address} returned {response.status}: {content[:200]!r}")
        page = json.loads(content)
        for key in page["keys"]:
            yield key, page["items"][key]
        after = page["next"]
    connection.close()


def audit(address: str, keys: list[str]) -> dict[str, Any]:
    """Read all records of a replica; return counts of missing, unexpected and differing keys, with examples."""
    started = time.monotonic()
    found = dict(listing(address, "U+"))
    missing = [key for key in keys if key not in found]
    expected = set(keys)
    unexpected = [key for key in found if key not in expected] + [key for key, _ in listing(address, "loading:")]
    differing = [key for key in keys if key in found and found[key] != expected_value(key)]
    # Look up the characters by name, in another table of the database.
    misnamed = [
        key for key in keys if key in found and ucd.lookup(found[key]["name"]) != chr(int(key.lstrip("U+"), 16))
    ]
    ordered = list(found) == sorted(found)
    problems = [*missing, *unexpected, *differing, *misnamed]
    return {
        "replica": address,
        "keys": len(found),
        "seconds": round(time.monotonic() - started, 3),
        "missing": len(missing),
        "unexpected": len(unexpected),
        "differing": len(differing) + len(misnamed),
        "ordered": ordered,
        "examples": problems[:EXAMPLES],
        "ok": ordered and not problems,
    }


def main() -> int:
    """Audit the replicas named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("replicas", nargs="+", metavar="HOST:PORT", help="a replica")
    parser.add_argument("--limit", type=int, help="expect only the first N named characters")
    options = parser.parse_args()
    keys = expected_keys(options.limit)
    results = [audit(address, keys) for address in options.replicas]
    for result in results:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
