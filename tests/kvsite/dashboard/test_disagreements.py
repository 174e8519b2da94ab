"""Wrong settings: one fault is said once, with its own remedy, and names the odd replica where it is known."""

from __future__ import annotations

from typing import Any

import pytest

from kvsite.dashboard.disagreements import CLAIM_ADVICE, disagreements
from replication.refusals import Refusal, describe_one
from replication.rejected_senders import MAX_REJECTED_SENDERS
from tests.kvsite.dashboard.support import A, B, C, page_of, state_of, texts
from tests.support.statuses import Cluster, cluster_of, id_of, member, silent

D, E = "10.0.0.4:8090", "10.0.0.5:8090"
SECRETS = describe_one(Refusal("secret"))
OTHER_FAULTS = ("network", "goes on serving", "catching up", "start it again at the same address", "Views differ")


def refusal(address: str, kind: Any = "secret") -> dict[str, str]:
    return {"address": address, "kind": kind, "text": describe_one(Refusal(kind))}


def refuse(cluster: Cluster, *pairs: tuple[str, str], kind: Any = "secret") -> Cluster:
    """Let both of each pair state that they refuse each other, and see each other as down."""
    for pair in pairs:
        for one, other in (pair, pair[::-1]):
            content = cluster[one]["status"]
            content.setdefault("refusals", []).append(refusal(other, kind))
            content["view"] = [
                member(other, "down", last_contact_s=9.0) if each["address"] == other else each
                for each in content["view"]
            ]
    return cluster


def restarted_with_another_secret() -> Cluster:
    """The third replica was killed and runs again with another secret. It has asked only the first one."""
    cluster = refuse(cluster_of(3), (A, C), (B, C))
    missed = {"address": A, "kind": "secret", "text": SECRETS, "since_s": 5.0}
    cluster[C]["status"].update(
        replica_id=id_of(C, 2),
        state="joining",
        not_ready_reason="Replica and live peers refuse each other",
        refusals=[refusal(A)],
        never_reached=[missed],
        clock={},
        view=[member(C, self=True)],
    )
    return cluster


def words_of(page: Any) -> str:
    return " ".join([page.health.headline, *(f"{each.text} {each.advice}" for each in page.health.findings)])


@pytest.mark.parametrize("is_fetched", [True, False])
def test_a_replica_that_the_others_refuse_is_the_only_fault_and_has_its_own_remedy(is_fetched: bool) -> None:
    cluster = restarted_with_another_secret()
    if not is_fetched:  # Its response does not prove our secret.
        cluster[C] = silent(cluster[C], None)
    page = page_of(cluster, lag_s={C: 4.0})
    alive = 3 if is_fetched else 2
    fault = f"{C} has another KV_CLUSTER_SECRET than the others"
    assert page.health.headline == f"{fault}, {alive} of 3 replicas alive"
    first = page.health.findings[0]
    assert first.text.startswith(f"{fault}, so they refuse each other.")
    assert first.advice == (f"Start {C} again with the KV_CLUSTER_SECRET of the others.",)
    assert not [words for words in OTHER_FAULTS if words in words_of(page)]
    assert not [each for each in page.health.findings[1:] if each.headline or each.advice]


def test_of_two_replicas_neither_is_called_the_wrong_one() -> None:
    page = page_of(refuse(cluster_of(2), (A, B)))
    assert page.health.headline == f"{A} and {B} refuse each other, 2 of 2 replicas alive"
    cluster = refuse(cluster_of(2), (A, B))
    cluster[B] = silent(cluster[B], None)
    page = page_of(cluster)
    assert page.health.headline == f"{A} and {B} refuse each other, 1 of 2 replicas alive", "nobody calls it down"
    assert not [words for words in OTHER_FAULTS if words in words_of(page)]


def test_which_replica_is_the_odd_one_is_decided_by_a_majority_only() -> None:
    def odd(size: int, *pairs: tuple[str, str]) -> list[str]:
        return list(disagreements(state_of(refuse(cluster_of(size), *pairs))).odd)

    assert odd(3, (A, C)) == []
    assert odd(3, (A, B), (B, C), (A, C)) == [], "three secrets"
    assert odd(4, (A, C), (A, D), (B, C), (B, D)) == [], "two and two"
    both = [(one, other) for one in (A, B, C) for other in (D, E)]
    assert odd(5, *both) == odd(5, *both, (D, E)) == [D, E]


@pytest.mark.parametrize("kind", ["clock", "protocol", "name", "full", "message", "of a later release", ""])
def test_an_odd_replica_has_the_remedy_of_its_own_fault(kind: str) -> None:
    cluster = cluster_of(3)
    stated = {"kind": kind, "text": "the reason"}
    cluster[B]["status"]["refusals"] = [stated | {"address": A}, stated | {"address": C}]
    page = page_of(cluster)
    assert page.health.headline.startswith(B)
    assert "the reason" in texts(page)[0]
    assert "KV_CLUSTER_SECRET" not in words_of(page)


def test_a_cut_between_replicas_that_do_not_refuse_each_other_is_still_found() -> None:
    cluster = refuse(cluster_of(4), (A, D), (B, D), (C, D))
    cluster[A]["status"]["view"][1] = member(B, "down", last_contact_s=9.0)
    assert f"Views differ: {A} does not reach {B}." in texts(page_of(cluster))


def test_a_joining_replica_that_is_behind_is_not_said_to_serve() -> None:
    cluster = cluster_of(3)
    cluster[A]["status"]["clock"][id_of(A)] = 150
    cluster[B]["status"]["state"] = "joining"
    page = page_of(cluster, lag_s={B: 20.0})
    assert f"{B} is behind" in page.health.headline
    assert "goes on serving" not in words_of(page)
    cluster[B]["status"]["state"] = "serving"
    assert "goes on serving" in words_of(page_of(cluster, lag_s={B: 20.0}))


# -- senders that are rejected ----------------------------------------------------------------------------------------


def claim(address: str) -> dict[str, Any]:
    return {"claimed_address": address, "kind": "secret", "text": SECRETS, "source": "10.9.9.9", "last_s": 3.0}


def test_a_replica_in_nobodys_view_whose_messages_are_rejected_is_said_to_exist() -> None:
    cluster = cluster_of(2)
    for address in (A, B):
        cluster[address]["status"]["rejected_senders"] = [claim(C)]
    page = page_of(cluster)
    assert page.health.level == "warn"
    assert page.health.headline == "messages of an unknown sender are rejected, 2 of 2 replicas alive"
    assert texts(page) == [f"{A} and {B} reject messages of somebody who calls itself {C}: {SECRETS}."]
    assert page.health.findings[0].advice == CLAIM_ADVICE


def test_claims_are_one_finding_and_say_nothing_about_healthy_members() -> None:
    cluster = cluster_of(2)
    flood = [claim(f"10.9.9.9:{n + 1}") for n in range(MAX_REJECTED_SENDERS - 1)]
    cluster[A]["status"]["rejected_senders"] = [claim(B), *flood]
    page = page_of(cluster)
    (found,) = page.health.findings
    assert (found.level, len(found.text) < 700) == ("warn", True)
    assert found.text.endswith("12 more names claimed by others.")
    assert B not in found.text
    cluster[A]["status"]["rejected_senders"] = [claim(B)]
    assert page_of(cluster).health.level == "good"


def test_a_fault_is_not_said_again_by_the_messages_that_it_rejects() -> None:
    cluster = restarted_with_another_secret()
    before = texts(page_of(cluster))
    cluster[A]["status"]["rejected_senders"] = [claim(C)]
    assert texts(page_of(cluster)) == before


# -- a replica that is alone ------------------------------------------------------------------------------------------


def missed(address: str, **more: Any) -> dict[str, Any]:
    return {"address": address, "kind": "closed", "text": "nobody listens there", "since_s": 60.0, **more}


def test_a_replica_that_reached_nobody_is_alone_and_not_green() -> None:
    cluster = cluster_of(1)
    cluster[A]["status"]["never_reached"] = [missed("10.0.0.8:8090"), missed("10.0.0.9:8090")]
    page = page_of(cluster)
    fault = f"{A} is alone: it has reached no other replica in VIEW"
    assert page.health.headline == f"{fault}, 1 of 1 replica alive"
    named = "10.0.0.8:8090 (nobody listens there) and 10.0.0.9:8090 (nobody listens there)"
    assert texts(page) == [f"{fault}. Never reached: {named}."]
    advice = page.health.findings[0].advice[0]
    assert advice == f"If the address is wrong: correct VIEW, or remove it from VIEW, and start {A} again."
    assert (page.cards[0].state, page.cards[0].tone) == ("alone", "warn")
    cluster[A]["status"]["view"].append(member(B, "left"))
    assert page_of(cluster).health.headline.startswith(fault), "a removed replica is no company"


def test_the_setting_that_names_the_address_is_named() -> None:
    cluster = cluster_of(1)
    cluster[A]["status"]["never_reached"] = [missed("replicas:8090", setting="KV_VIEW_DNS")]
    page = page_of(cluster)
    assert page.health.headline.startswith(f"{A} is alone: it has reached no other replica in KV_VIEW_DNS")
    assert "correct KV_VIEW_DNS" in page.health.findings[0].advice[0]
