"""The protocol under simulated faults: thousands of runs from seeds, judged by checkers that share nothing with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.tools.simulation.mutants import MUTANTS
from tools.paths import REPOSITORY
from tools.simulation.campaign import attempt, campaign, shrink

RUNS = 300
MUTANT_RUNS = 2000
OPERATIONS = 200
PRINT_HISTORIES = """
from tools.simulation.campaign import attempt, fingerprint
for seed in range(15):
    print(seed, fingerprint(attempt(seed, 200)))
"""
DIRECTED_ONLY = {"omit_delete_clock"}

CATCHING = {
    "add_removed_sender_back": (59,),
    "contain_too_much": (18,),
    "follow_every_jump_of_the_wall_clock": (12,),
    "forget_the_own_entry": (16,),
    "forget_what_was_removed_at_once": (86,),
    "ignore_joined_snapshots_in_the_feed": (103,),
    "keep_acks_of_a_former_incarnation": (10,),
    "let_removes_win": (15,),
    "let_the_earlier_set_win": (20,),
    "omit_past_of_replaced_versions": (13,),
    "remove_the_address_when_leaving": (256,),
    "serve_before_enough_have_met": (10,),
    "serve_if_as_many_peers_refuse": (481,),
    "serve_while_peers_refuse": (26,),
    "take_every_removal_for_an_old_one": (59,),
    "take_parts_for_whole_clocks": (84,),
    "use_positions_under_other_tables": (45,),
}
"""Mutant -> a seed that has caught it, to save time. If the seed does not catch it any more, all others are tried."""


@pytest.mark.slow
def test_300_runs_with_faults_of_every_kind_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()
    faulty = 0
    bad = []
    for outcome in campaign(range(RUNS), OPERATIONS, processes=1):
        counts.update(outcome.counts)
        faulty += bool(outcome.counts["crashes"] or outcome.counts["cuts"])
        bad += [f"seed {outcome.seed}: {violation}" for violation in outcome.violations[:3]]
    with capsys.disabled():
        print(  # noqa: T201  What was met is part of the result.
            f"\n  {RUNS} runs, {faulty} with a crash or a cut:", ", ".join(f"{n} {c}" for n, c in counts.most_common())
        )
    assert not bad, "\n".join(bad[:20]) + "\nreplay: python manage.py simulate --seed N"
    assert counts["operations"] >= RUNS * OPERATIONS * 0.95
    assert faulty > RUNS / 2
    # A run that meets nothing proves nothing.
    for event in (
        "deferrals",
        "pending_seen",
        "pieces",
        "lost",
        "pauses",
        "clock_jumps",
        "removals",
        "additions",
        "refused",
        "lookups",
        "forged",
        "rejected",
        "disasters",
        "visitors",
        "wrong_clocks",
        "camps",
        "expecting",
        "leaves",
        "refused_secret",
        "refused_protocol",
        "refused_full",
        "refused_clock",
        "patches",
        "patches_rejected",
        "merged_seen",
        "bases_seen",
        "folds",
        "deletes_beside_folds",
    ):
        assert counts[event] > 5, event


@pytest.mark.slow
def test_longer_runs_are_clean() -> None:
    bad = [
        f"seed {outcome.seed}: {violation}"
        for outcome in campaign(range(100_000, 100_015), 2000, processes=1)
        for violation in outcome.violations[:3]
    ]
    assert not bad, "\n".join(bad)


def test_the_same_seed_gives_the_same_history_whatever_the_hash_seed() -> None:
    def histories(hash_seed: str) -> str:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                PRINT_HISTORIES,
            ],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    first = histories("1")
    assert len(set(first.splitlines())) == 15
    assert histories("2") == first


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - DIRECTED_ONLY))
def test_a_mutant_is_caught(name: str) -> None:
    seeds = [*CATCHING.get(name, ()), *range(MUTANT_RUNS)]
    with MUTANTS[name]():
        assert any(attempt(seed, OPERATIONS).violations for seed in seeds), f"{name} survived {MUTANT_RUNS} runs"


def test_shrinking_finds_a_smaller_run_that_fails_too() -> None:
    with MUTANTS["skip_the_causality_check"]():
        seed = next(seed for seed in range(50) if attempt(seed, OPERATIONS).violations)
        operations, outcome = shrink(seed, OPERATIONS)
        assert outcome.violations
        assert operations < OPERATIONS
        assert attempt(seed, operations).violations
