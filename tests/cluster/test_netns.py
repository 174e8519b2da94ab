"""The harness itself: its faults do what they say and nothing else, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.netns import cluster as netns
from tools.netns.cluster import REPOSITORY, Network, run
from tools.netns.skewed_clock import Offset


def pings(network: Network, a: int, b: int) -> bool:
    """Whether a TCP connection from a to b is refused, which is an answer, and not met with silence."""
    probe = (
        "import socket,sys\n"
        "try: socket.create_connection((sys.argv[1], 9), 0.3)\n"
        "except ConnectionRefusedError: print('answered')\n"
        "except OSError: print('silence')"
    )
    where = network.namespaces[a]
    return "answered" in run("ip", "netns", "exec", where, sys.executable, "-c", probe, network.hosts[b])


def test_a_cut_drops_packets_one_way_and_a_heal_ends_it() -> None:
    network = Network(3)
    try:
        assert pings(network, 0, 1)
        network.set_cuts({(0, 1): "packets"})
        assert not pings(network, 0, 1)
        assert not pings(network, 1, 0), "the answer does not come through"
        assert pings(network, 0, 2)
        assert pings(network, 2, 1)
        network.set_cuts({(0, 1): "requests"})  # those are to the replicas' port only
        assert pings(network, 0, 1)
        network.set_loss(1.0)
        assert not pings(network, 0, 2)
        network.set_loss(0.0)
        assert pings(network, 0, 2)
    finally:
        network.close()
    assert not [name for name in netns._taken() if name == network.prefix]


def test_what_a_killed_run_leaves_behind_is_removed_by_the_next() -> None:
    script = (
        "import subprocess, time; from tools.netns.cluster import Network; n = Network(2);"
        "p = subprocess.Popen(['ip', 'netns', 'exec', n.namespaces[0], 'sleep', '60']);"
        "print(n.prefix, p.pid, flush=True); time.sleep(60)"
    )
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": path},
    ) as made:
        assert made.stdout is not None
        prefix, sleeper = made.stdout.readline().split()
        assert prefix in netns._taken()
        made.send_signal(signal.SIGKILL)
    netns.remove_leftovers()
    assert prefix not in netns._taken()
    time.sleep(0.1)
    state = Path(f"/proc/{sleeper}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_without_the_tools_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "TOOLS", {"no-such-tool": "its-package"})
    monkeypatch.setattr(netns, "SYSTEM_PATH", "/nowhere")
    with pytest.raises(netns.NetnsError, match="its-package"):
        netns.require_tools()


def test_an_offset_is_shared_between_processes(tmp_path: Path) -> None:
    one, other = Offset(tmp_path / "clock"), Offset(tmp_path / "clock")
    one.us = -5_000_000
    assert other.us == -5_000_000
