"""Replicas that refuse each other, messages that are rejected, and addresses that were never reached: in words.

One wrong setting makes a replica refuse several others, and be refused by them; each of them sees it as down. This is
one fault. ``Disagreements`` says which pairs refuse each other and which replica is the odd one, so that the fault is
said once, and no other finding gives the remedy of another fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import ClusterState, ObservedReplica, StatedRefusal, Status, UnreachedAddress
from kvsite.dashboard.findings import Finding
from kvsite.dashboard.formatting import counted, listed

MAX_REFUSED = 3
"""Replicas for which a finding says who refuses them. The others are counted."""

MAX_MISSED = 5
"""Addresses that were never reached and that a finding says why. The others are counted."""

MAX_CLAIMS = 3
"""Claimed addresses of rejected senders that the finding names. The others are counted."""

ODD_TEXTS: Mapping[str, tuple[str, str]] = {
    "secret": (
        "has another KV_CLUSTER_SECRET than the others",
        "Start {address} again with the KV_CLUSTER_SECRET of the others.",
    ),
    "clock": ("has another time than the others", "Set the clock of the machine of {address}."),
    "protocol": (
        "has a release whose protocol is too far from that of the others",
        "Start {address} again with a release next to theirs: upgrade one release at a time.",
    ),
}
"""Kind of a refusal -> what is wrong with a replica that most others refuse, and what to do."""

VIEW_ADVICE = (
    "If the address is wrong: correct {setting}, or remove it from {setting}, and start {address} again.",
    "If it is right: start the replica there. {address} asks again by itself.",
)
CLAIM_ADVICE = (
    "If this is a replica of yours: correct the setting there, and start it again.",
    "If not: somebody reaches the port of a replica. What is rejected changes nothing.",
)


@dataclass(frozen=True, slots=True)
class Disagreements:
    """``pairs``: who and who refuse each other -> why. ``odd``: the replicas that most others refuse -> kind."""

    pairs: Mapping[frozenset[str], StatedRefusal]
    odd: Mapping[str, str]

    def involves(self, address: str) -> bool:
        """Return whether a live replica and the one at ``address`` refuse each other."""
        return any(address in pair for pair in self.pairs)

    def between(self, one: str, other: str) -> bool:
        """Return whether the two replicas refuse each other."""
        return frozenset((one, other)) in self.pairs


def disagreements(cluster: ClusterState) -> Disagreements:
    """Return who refuses whom, as the replicas that respond say.

    A replica is odd if more than half of all replicas that are known to live refuse it, and are not odd themselves.
    """
    live = {replica.address for replica in cluster.replicas if replica.is_reachable}
    pairs: dict[frozenset[str], StatedRefusal] = {}
    for replica, status in _stating(cluster):
        for refusal in status.refusals:
            if refusal.address != replica.address:
                pairs.setdefault(frozenset((replica.address, refusal.address)), refusal)
    opponents: dict[str, set[str]] = {}
    for one, other in map(tuple, pairs):
        opponents.setdefault(one, set()).add(other)
        opponents.setdefault(other, set()).add(one)
    size = len(live | opponents.keys())
    suspects = {address for address, by in opponents.items() if 2 * len(by) > size}
    odd = sorted(address for address in suspects if 2 * len(opponents[address] - suspects) > size)
    return Disagreements(pairs, {address: _kind(address, pairs) for address in odd})


def _kind(address: str, pairs: Mapping[frozenset[str], StatedRefusal]) -> str:
    kinds = Counter(refusal.kind for pair, refusal in pairs.items() if address in pair)
    return kinds.most_common(1)[0][0]


def _stating(cluster: ClusterState) -> list[tuple[ObservedReplica, Status]]:
    """Return the replicas that have just returned their status."""
    return [(replica, replica.status) for replica in cluster.replicas if replica.is_reachable and replica.status]


def refusals(cluster: ClusterState, found: Disagreements) -> Iterator[Finding]:
    """Report each odd replica, then replicas that live peers keep from being ready, then the other pairs."""
    by_address = {replica.address: replica for replica in cluster.replicas}
    for address, kind in list(found.odd.items())[:MAX_REFUSED]:
        yield _odd_one(address, kind, by_address.get(address), found)
    if len(found.odd) > MAX_REFUSED:
        yield Finding("bad", f"{counted(len(found.odd) - MAX_REFUSED, 'more replica')} refused by most others.")
    refused = [
        (at.address, status) for at, status in _stating(cluster) if status.refusals and at.address not in found.odd
    ]
    not_ready = {address: status for address, status in refused if status.not_ready_reason}
    for address, status in list(not_ready.items())[:MAX_REFUSED]:
        fault = f"{address} is not ready"
        yield Finding("bad", f"{fault}. {status.not_ready_reason}.", fault)
    said = {*found.odd, *not_ready}
    left: dict[str, list[StatedRefusal]] = {}
    for address, status in refused:
        others = [refusal for refusal in status.refusals if refusal.address not in said and refusal.address not in left]
        if others and address not in said:
            left[address] = others
    for address, others in list(left.items())[:MAX_REFUSED]:
        more = f", and {len(others) - 1} more" if len(others) > 1 else ""
        who = f"{address} and {others[0].address}{more} refuse each other"
        yield Finding("bad", f"{who}: {others[0].text}.", who)
    omitted = max(0, len(not_ready) - MAX_REFUSED) + max(0, len(left) - MAX_REFUSED)
    if omitted:
        yield Finding("bad", f"{counted(omitted, 'more replica')} refused by others.")


def _odd_one(address: str, kind: str, replica: ObservedReplica | None, found: Disagreements) -> Finding:
    what, remedy = ODD_TEXTS.get(kind, ("and the other replicas refuse each other", ""))
    fault = f"{address} {what}"
    advice = (remedy.format(address=address),) if remedy else ()
    status = replica.status if replica is not None and replica.is_reachable else None
    if kind == "secret":
        serves = "" if status is None else " It serves alone." if status.state == "serving" else " It does not serve."
        return Finding("bad", f"{fault}, so they refuse each other.{serves}", fault, advice)
    reason = next(refusal.text for pair, refusal in found.pairs.items() if address in pair)
    text = (
        f"{fault}: {reason}."
        if status is None or not status.not_ready_reason
        else f"{fault}. {status.not_ready_reason}."
    )
    return Finding("bad", text, fault, advice)


def rejected_senders(cluster: ClusterState, found: Disagreements) -> Iterator[Finding]:
    """Report the messages that replicas reject, in one finding. The sender is a claim that nothing proves.

    A claim says nothing new if a refusal has the address, or if the replica there serves and nobody refuses it.
    """
    healthy = {replica.address for replica in cluster.replicas if replica.is_reachable and replica.state == "serving"}
    rejected_by: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for replica, status in _stating(cluster):
        for claim in status.rejected_senders:
            address = claim.claimed_address
            if address not in healthy and not found.involves(address):
                rejected_by.setdefault(address, []).append(replica.address)
                texts.setdefault(address, claim.text)
    if not texts:
        return
    named = sorted(texts)[:MAX_CLAIMS]
    parts = [
        f"{listed(rejected_by[address])} {'rejects' if len(rejected_by[address]) == 1 else 'reject'} messages of "
        f"somebody who calls itself {address}: {texts[address]}."
        for address in named
    ]
    if len(texts) > len(named):
        parts.append(f"{counted(len(texts) - len(named), 'more name')} claimed by others.")
    yield Finding("warn", " ".join(parts), "messages of an unknown sender are rejected", CLAIM_ADVICE)


def never_reached(cluster: ClusterState, found: Disagreements) -> Iterator[Finding]:
    """Report addresses of ``VIEW`` that were never reached, and replicas that wait for members to meet."""
    missed = []
    for replica, status in _stating(cluster):
        others = [each for each in status.never_reached if not found.between(replica.address, each.address)]
        if others and is_alone(status):
            yield _alone_with(replica.address, others)
        else:
            missed += [(replica.address, each) for each in others]
    for address, each in missed[:MAX_MISSED]:
        fault = f"{address} has never reached {each.address}"
        text = f"{fault}, which {each.setting} names: {each.text}."
        yield Finding("warn", text, fault, _view_advice(address, each.setting))
    if len(missed) > MAX_MISSED:
        yield Finding("warn", f"{len(missed) - MAX_MISSED:,} more of these were never reached.")
    for replica, status in _stating(cluster):
        if status.state == "joining" and status.met_members < status.expected_members and not status.refusals:
            fault = f"{replica.address} is not ready"
            yield Finding("warn", f"{fault}. {status.not_ready_reason}.", fault)


def is_alone(status: Status) -> bool:
    """Return whether the replica has reached none of the addresses that it was told to contact, and has no peer."""
    others = [member for member in status.view if member.address != status.address and member.state != "left"]
    return bool(status.never_reached) and not others


def _alone_with(address: str, missed: list[UnreachedAddress]) -> Finding:
    setting = listed(list(dict.fromkeys(each.setting for each in missed)))
    fault = f"{address} is alone: it has reached no other replica in {setting}"
    why = listed([f"{each.address} ({each.text})" for each in missed])
    return Finding("warn", f"{fault}. Never reached: {why}.", fault, _view_advice(address, setting))


def _view_advice(address: str, setting: str) -> tuple[str, ...]:
    return tuple(sentence.format(address=address, setting=setting) for sentence in VIEW_ADVICE)
