"""The namespace harness itself: each fault does what it says and nothing else, and no run leaves anything behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tools.netns import user_namespace
from tools.netns.__main__ import main
from tools.netns.cluster import Network, command_in, existing_networks, remove_leftovers, run_checked
from tools.netns.errors import NetnsError
from tools.netns.skewed_clock import Offset
from tools.paths import REPOSITORY

MAKE_A_NETWORK = """
import os, sys
from pathlib import Path
from tools.netns.cluster import Network, existing_networks
network = Network(2)
network.set_loss(0.5)
names = sorted(os.listdir("/run/netns"))
print(os.geteuid(), len(existing_networks()), names == sorted([network.hub, *network.namespaces]))
network.close()
Path(sys.argv[1]).touch()
"""


def connects(network: Network, a: int, b: int) -> bool:
    """Return whether packets pass from a to b and back: a connection to a closed port is refused, not ignored."""
    probe = (
        "import socket,sys\n"
        "try: socket.create_connection((sys.argv[1], 9), 0.3)\n"
        "except ConnectionRefusedError: print('refused')\n"
        "except OSError: print('no answer')"
    )
    command = command_in(network.namespaces[a], sys.executable, "-c", probe, network.hosts[b])
    return "refused" in run_checked(*command)


def test_a_cut_drops_packets_one_way_and_a_heal_ends_it() -> None:
    network = Network(3)
    try:
        assert connects(network, 0, 1)
        network.set_cuts({(0, 1): "packets"})
        assert not connects(network, 0, 1)
        assert not connects(network, 1, 0), "the reply was not dropped"
        assert connects(network, 0, 2)
        assert connects(network, 2, 1)
        network.set_cuts({(0, 1): "requests"})  # only those to the replicas' port
        assert connects(network, 0, 1)
        network.set_loss(1.0)
        assert not connects(network, 0, 2)
        network.set_loss(0.0)
        assert connects(network, 0, 2)
    finally:
        network.close()
    assert network.prefix not in existing_networks()


def test_the_next_run_removes_what_a_killed_run_left_behind() -> None:
    script = (
        "import subprocess, signal; from tools.netns.cluster import Network, command_in; n = Network(2);"
        "p = subprocess.Popen(command_in(n.namespaces[0], 'sleep', '60'));"
        "print(n.prefix, p.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as killed_run:
        assert killed_run.stdout is not None
        prefix, sleeper = killed_run.stdout.readline().split()
        assert prefix in existing_networks()
        killed_run.send_signal(signal.SIGKILL)
    remove_leftovers()
    assert prefix not in existing_networks()
    state = Path(f"/proc/{sleeper}/stat")
    wait_until(lambda: not state.exists() or state.read_text().split()[2] == "Z", what="its process has ended")


def test_a_user_namespace_gives_the_right_to_make_networks_and_shares_none_of_them(tmp_path: Path) -> None:
    """This is how an ordinary user runs these tests. Root can enter a user namespace as well."""
    before = existing_networks()
    command = [sys.executable, "-c", MAKE_A_NETWORK, str(tmp_path / "written")]
    done = subprocess.run(
        user_namespace.command_in_user_namespace(command), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout == "0 1 True\n", done
    assert existing_networks() == before
    assert (tmp_path / "written").owner() == tmp_path.owner()


def test_root_runs_a_command_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert user_namespace.command_with_rights(["a", "b"]) == ["a", "b"]


def test_an_ordinary_user_runs_it_in_a_user_namespace_or_learns_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert user_namespace.command_with_rights(["a", "b"])[:2] == ["unshare", "--user"]
    monkeypatch.setattr(user_namespace, "_ENTER", ["sh", "-c", "echo not permitted >&2; exit 1"])
    assert main(["a", "b"]) == 1
    message = capsys.readouterr().err
    assert "may not make user namespaces (not permitted)" in message
    assert "sudo sysctl" in message


def test_without_root_a_network_names_the_command_that_gives_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NetnsError, match=r"python -m tools\.netns"):
        Network(2)


def test_a_missing_program_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_namespace, "TOOLS", {"no-such-tool": "its-package"})
    with pytest.raises(NetnsError, match="sudo apt-get install its-package"):
        user_namespace.require_tools()


def test_an_offset_is_shared_between_processes(tmp_path: Path) -> None:
    one, other = Offset(tmp_path / "clock"), Offset(tmp_path / "clock")
    one.us = -5_000_000
    assert other.us == -5_000_000
