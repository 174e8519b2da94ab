"""A short run of everything at once: see soak.py, which `make soak` runs for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.soak import soak


@pytest.mark.slow
def test_hopping_clients_under_all_faults_at_once_see_nothing_that_the_contract_forbids(tmp_path: Path) -> None:
    """SPEC P1 to P5, 2.8; issue 4: no violation, all equal within 10 s of the heal, 99% of requests answered."""
    lines: list[str] = []
    run = soak(25, replicas=4, directory=tmp_path / "soak", say=lines.append)
    told = "\n".join([*lines, run.report(), *run.problems])
    assert run.problems == [], told
    assert run.tally.acknowledged > 300, told
    assert sum(run.tally.faults.values()) > 8, told
    fine = run.tally.requests
    assert fine["answered"] >= 0.99 * (fine["answered"] + fine["error"]), told
