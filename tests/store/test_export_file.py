"""The format of an export: what is no complete export is found, wherever it ends and whatever is wrong with it."""

from __future__ import annotations

import hashlib
import io
import json
from random import Random
from typing import Any

import pytest

from store import export_file
from store.client import export as client_export
from store.client.errors import BadExport as BadExportOfClient
from store.client.export import ExportCheck
from store.export_file import BadExport, ExportReader, ExportWriter, failure_line
from store.merging import Entry, EntryName, State
from store.values import store_bytes, store_state
from store.versions import Version, Versions


def version(value: bytes, timestamp: int = 5, expires: int | None = None, origin: str = "a") -> Version:
    return Version(value, origin, 1, timestamp, {}, expires)


CONTENT: dict[str, Versions] = {
    "plain": (version(b'{"n":[1,1.0,1e5,"\xc3\xa9"]}'),),
    'quo"ted\n': (version(b"null", expires=1_795_391_360_636_245),),
    "bytes": (version(store_bytes(bytes(range(256)))),),
    "counter": (version(store_state(State("counter", {EntryName("a", 1): Entry(1, 7)}))),),
    "siblings": (version(b"2", 9, origin="b"), version(store_bytes(b"\x00"), 8)),
    "large": (version(store_bytes(b"x" * 100_000)), version(b'"' + b"y" * 100_000 + b'"', 4, origin="b")),
}


def made(content: dict[str, Versions] = CONTENT, **facts: Any) -> bytes:
    writer = ExportWriter()
    head = writer.begin({"keys": len(content), "prefix": "", "replica": "r", "causal-metadata": {"a": 3}, **facts})
    return head + b"".join(writer.lines(content.items())) + writer.end()


def read(data: bytes) -> dict[str, Any]:
    reader = ExportReader(io.BytesIO(data))
    return {line.key: line.versions for line in reader.lines()}


def checked(data: bytes, sizes: Random) -> int:
    check = ExportCheck()
    at = 0
    while at < len(data):
        size = sizes.choice([1, 2, 50, 1000, 100_000])
        check.feed(data[at : at + size])
        at += size
    check.end()
    return check.count


def judged(data: bytes) -> str:
    """Return the verdict of both readers, which must agree: empty, or the error of the one that reads the keys."""
    check_error = ""
    try:
        assert checked(data, Random(1)) >= 0
    except BadExportOfClient as exc:
        check_error = str(exc)
    try:
        read(data)
    except BadExport as exc:
        return str(exc)
    assert not check_error
    return ""


def test_an_export_is_lines_of_json_with_values_as_clients_see_them() -> None:
    first, *lines, last = [json.loads(line) for line in made().decode().splitlines()]
    assert (first["causeway-export"], first["keys"], first["causal-metadata"]) == (1, 6, {"a": 3})
    found = {line["key"]: line["versions"] for line in lines}
    assert found["plain"] == [{"value": {"n": [1, 1.0, 1e5, "é"]}, "timestamp": 5}]
    assert b'[1,1.0,1e5,"' in made(), "values stay as they were sent"
    assert found['quo"ted\n'] == [{"value": None, "timestamp": 5, "expires": 1_795_391_360.636245}]
    assert found["bytes"][0]["encoding"] == "base64"
    assert found["counter"] == [{"value": 7, "type": "counter", "timestamp": 5}]
    assert [each["value"] for each in found["siblings"]] == [2, "AA=="]
    assert last == {"count": 6, "sha256": hashlib.sha256(made().rsplit(b"\n", 2)[0] + b"\n").hexdigest()}


def test_what_was_written_is_read() -> None:
    found = read(made())
    assert found.keys() == CONTENT.keys()
    assert found["bytes"][0].content() == bytes(range(256))
    assert bytes(found["plain"][0].value) == CONTENT["plain"][0].value
    assert checked(made(), Random(2)) == 6
    assert read(made({})) == {}
    assert checked(made({}), Random(2)) == 0


def test_pieces_are_bounded_however_long_a_value_is() -> None:
    pieces = list(ExportWriter().lines(CONTENT.items()))
    assert max(map(len, pieces)) < 100_000 + 2 * export_file.PIECE_BYTES
    assert len(pieces) > 2


def test_an_export_that_is_cut_off_anywhere_is_not_complete() -> None:
    small = {key: each for key, each in CONTENT.items() if key != "large"}
    data = made(small)
    for end in range(len(data)):
        assert judged(data[:end]), end
        with pytest.raises(BadExportOfClient):
            checked(data[:end], Random(end))


def test_a_changed_byte_anywhere_is_found() -> None:
    """Of the header, only the facts may change: the checksum covers them, but the reader needs them first."""
    small = {key: each for key, each in CONTENT.items() if key != "large"}
    data, random = made(small), Random(3)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << random.randrange(7)
        if damaged != data:
            assert judged(bytes(damaged)), at
            with pytest.raises(BadExportOfClient):
                checked(bytes(damaged), random)


def with_checksum(*lines: bytes, count: int | None = None) -> bytes:
    body = b"".join(line + b"\n" for line in lines)
    end = {"count": len(lines) - 1 if count is None else count, "sha256": hashlib.sha256(body).hexdigest()}
    return body + json.dumps(end).encode() + b"\n"


HEAD = b'{"causeway-export":1,"keys":1}'
LINE = b'{"key":"k","versions":[{"value":1}]}'


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no export of Causeway"),
        (b"key\t1\n", "no export of Causeway"),
        (b"\xff\xfe\n", "no export of Causeway"),
        (b'{"causeway-export":2,"keys":0}\n', "no export of Causeway"),
        (b'{"causeway-export":1}\n', "no export of Causeway"),
        (b"[" * 100_000 + b"\n", "no export of Causeway"),
        (HEAD + b"\n" + LINE + b"\n", "ends after 1 of 1"),
        (HEAD + b"\n" + failure_line("too slow"), "could not be completed: too slow"),
        (with_checksum(HEAD, LINE) + b"\n", "goes on after its last line"),
        (with_checksum(HEAD, LINE) + LINE + b"\n", "goes on after its last line"),
        (with_checksum(HEAD, LINE, LINE), "the export has 2 keys"),
        (with_checksum(HEAD), "the export has 0 keys"),
        (with_checksum(HEAD, LINE, count=2), "the export has 1 keys, and says 2"),
        (with_checksum(HEAD, b'{"key":"k"}'), "line 2 is no line of an export"),
        (with_checksum(HEAD, b'{"key":"","versions":[{"value":1}]}'), "line 2"),
        (with_checksum(HEAD, b'{"key":"k","versions":[]}'), "line 2"),
        (with_checksum(HEAD, b'{"key":"k","versions":[{"timestamp":1}]}'), "line 2"),
        (with_checksum(HEAD, b'{"key":"k","versions":[{"value":nul}]}'), "line 2"),
        (with_checksum(HEAD, b'{"key":"k","versions":[{"value":"\xff"}]}'), "line 2"),
        (with_checksum(HEAD, b'{"key":"k","versions":[{"value":' + b"[" * 100_000 + b"}]}"), "line 2"),
        (with_checksum(HEAD, b"5"), "line 2"),
        (with_checksum(HEAD, b""), "line 2"),
    ],
)
def test_what_is_no_export_is_rejected_with_the_reason(data: bytes, says: str) -> None:
    with pytest.raises(BadExport, match=says):
        read(data)


def test_a_line_that_is_too_long_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_file, "MAX_LINE_BYTES", 1000)
    source = io.BytesIO(HEAD + b"\n" + b'{"key":"' + b"k" * 10_000)
    with pytest.raises(BadExport, match="line 2 is no line of an export: it is longer than 1000 bytes"):
        list(ExportReader(source).lines())
    assert source.tell() < 2000


def test_the_command_export_takes_every_line_that_an_import_takes() -> None:
    assert client_export.MAX_LINE_BYTES == export_file.MAX_LINE_BYTES
