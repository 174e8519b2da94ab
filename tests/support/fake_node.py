"""A fake node, for tests of the edge, the API and the dashboard."""

from __future__ import annotations

from typing import Any

from replication.errors import BadMessage, TableFull
from replication.rejected_senders import RejectedSenders
from store.address import parse_address
from store.clock import replica_id


class FakeNode:
    """A node without peers and threads. It is its own inspector.

    It keeps the addresses of the view in ``addresses``. Its reply to a peer is the message reversed. A message that
    does not begin with ``b"\\x93"`` is invalid.
    """

    id = replica_id(parse_address("127.0.0.1:21500"), 1)

    def __init__(self) -> None:
        self.inspector = self  # One fake has the methods of the node and of its inspector.
        self.rejected_senders = RejectedSenders()
        self.address = "127.0.0.1:21500"
        self.addresses = [self.address]
        self.max_addresses = 3
        self.ready = True
        self.not_ready_reason = ""
        self.state = "serving"
        self.key_count = 7
        self.others: dict[str, dict[str, Any]] = {}
        """Address -> fields of the status of that member, such as its ``state``."""
        self.undrained_polls = 2
        """``status`` reports "drained" at the call with this number after the removal of its own address."""

    def view(self) -> list[str]:
        return list(self.addresses)

    def members(self) -> list[str]:
        return list(self.addresses)

    def holds_address(self, text: str) -> bool:
        return text in self.addresses

    def add_member(self, address: str) -> bool:
        if address in self.addresses:
            return False
        if len(self.addresses) == self.max_addresses:
            raise TableFull(f"more than {self.max_addresses} addresses in the membership table")
        self.addresses.append(address)
        return True

    def remove_member(self, address: str) -> bool:
        if address not in self.addresses:
            if len(self.addresses) == self.max_addresses:
                raise TableFull(f"more than {self.max_addresses} addresses in the membership table")
            return False
        self.addresses.remove(address)
        return True

    def exchange(self, body: bytes) -> bytes:
        if not body.startswith(b"\x93"):
            raise BadMessage("not a message of this protocol")
        return body[::-1]

    snapshot = exchange

    def status(self, **_options: Any) -> dict[str, Any]:
        is_removed = self.address not in self.addresses
        if is_removed:
            self.undrained_polls -= 1
        is_drained = not is_removed or self.undrained_polls <= 0  # A member can be drained, too.
        state = "removed" if is_removed else "serving"
        own = {"address": self.address, "self": True, "replica_id": self.id, "state": "left" if is_removed else "alive"}
        others = [each for each in self.addresses if each != self.address]
        view = [
            own,
            *(
                {"address": each, "self": False, "replica_id": None, "state": "alive"} | self.others.get(each, {})
                for each in others
            ),
        ]
        return {
            "address": self.address,
            "state": state,
            "ready": self.ready and not is_removed,
            "keys": self.key_count,
            "drained": is_drained,
            "clock": {"a@1": 2},
            "view": view,
        }

    def explain(self, key: str, _max_values_bytes: int = 0) -> dict[str, Any]:
        return {"key": key, "versions": [], "version_count": 0, "pending": [], "merged": None, "note": ""}
