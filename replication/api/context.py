"""What the views of this floor talk to: one node, bound once at the start (see store/api/context.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replication.node import Node

_node: Node | None = None


def bind(node: Node) -> None:
    """Make the views serve ``node``; a later call replaces it (tests do that)."""
    global _node  # noqa: PLW0603 - one process is one replica
    _node = node


def node() -> Node:
    """Return the bound node. Raises ``RuntimeError`` before the server has bound one."""
    if _node is None:
        raise RuntimeError("No node is bound: call replication.api.context.bind() before serving requests.")
    return _node


def own_id() -> str:
    """Return this replica's id, incarnation included; empty before there is a node."""
    return "" if _node is None else _node.id


def bound() -> bool:
    """Return whether there is a node yet; health checks may come before."""
    return _node is not None
