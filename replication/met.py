"""Met members: how many members of this cluster have ever known each other, and how many must. Pure.

A replica that starts alone because of a mistake (a wrong address in ``VIEW``, another network) would serve alone: it
would take writes that the cluster never sees. Nobody refuses it, so nothing in the protocol can tell this case from the
first start of a cluster. The operator can: ``expected`` says how many members have to meet before any of them serves.

``most`` is the highest number of members with a known incarnation that the membership table of any replica has had, as
far as this replica knows. Replicas send it to each other, and take the maximum. It never falls, so

* members that are down count: they have met the others before;
* a replica that serves goes on serving, whatever happens to the others;
* a replica that restarts learns it from any single live member, and does not wait for those that are down or were
  removed since. Only if all replicas were stopped do they have to meet again: then there is no data to wait for either.

Source: the idea is that of Consul's ``bootstrap_expect``.
"""

from __future__ import annotations


class MetMembers:
    """How many members have met. ``expected``: how many have to, this replica included. ``most``: see the module."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.most = 1

    def observe(self, count: int) -> None:
        """Note that ``count`` members have met, here or elsewhere."""
        self.most = max(self.most, count)

    @property
    def reason(self) -> str:
        """Why this replica has to wait for others; empty if it does not."""
        if self.most >= self.expected:
            return ""
        met = "this replica has met no other" if self.most == 1 else f"only {self.most} have met, this one included"
        return f"KV_EXPECT asks for {self.expected} members, and {met}"
