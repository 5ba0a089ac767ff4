"""
Owns tests of bench/swarm against the real world: a run of two daemons, links of two machines.

Knows nothing of speeds: counts and settings are looked at, never seconds.
Invariants: what was made is gone afterwards.
Source: docs/how-to/measure-a-swarm.md.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from bench.model import make_model
from bench.netns import LinkRate, ShapedNetwork, open_network
from bench.outcome import find_misses
from bench.scenarios import SCENARIOS, Goal
from bench.swarmrun import run_scenario
from tests.discovery.link import find_obstacle

OBSTACLE = find_obstacle()
MIB = 1 << 20
BRIDGE_SETTINGS = "/proc/sys/net/bridge"


def test_run_on_loopback_has_a_whole_outcome(tmp_path: Path) -> None:
    """Two daemons and a hub: both ready, all files right, bytes counted on both sides."""
    model = make_model(tmp_path / "models", 2 * MIB)
    scenario = SCENARIOS[0].with_peers(2)
    outcome = run_scenario(
        scenario, model, tmp_path / "run", is_shaped=False, logs=tmp_path / "logs"
    )
    # Each once at least, and nobody gets more than twice what there is: here only the sums matter.
    assert find_misses(outcome, Goal(upstream_max=2.0, extra_max=None)) == []
    assert outcome.upstream_bytes >= model.size_bytes
    assert [peer.name for peer in outcome.needed] == ["p1", "p2"]
    for peer in outcome.needed:
        assert (peer.bytes_from_peers or 0) + (peer.bytes_from_upstream or 0) == model.size_bytes
    assert outcome.bound_s is None
    assert sorted(path.name for path in (tmp_path / "logs" / "cold").iterdir()) == [
        "p1.log",
        "p2.log",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.netns
@pytest.mark.skipif(OBSTACLE is not None, reason=OBSTACLE or "")
def test_shaped_machines_have_their_rates_and_go_at_the_end() -> None:
    """Both ends of a link are shaped, bytes are counted, and no namespace is left."""
    with open_network(["a", "b"], is_shaped=True) as network:
        assert isinstance(network, ShapedNetwork)
        near, far = network.machines["a"], network.machines["b"]
        network.shape("a", LinkRate(up_mbit_s=200.0, down_mbit_s=100.0))
        assert "rate 200Mbit" in show_queues(near.namespace)
        switch = f"p2pswarm-{os.getpid()}-sw"
        assert "rate 100Mbit" in show_queues(switch)
        assert "1" not in show_filters(switch)
        listener = far.run(socket.create_server, (far.address, 0))
        before = near.count_sent_bytes() or 0
        with near.run(socket.create_connection, listener.getsockname()) as sender:
            receiver, _ = listener.accept()
            sender.sendall(bytes(50_000))
            sender.shutdown(socket.SHUT_WR)
            received = 0
            while piece := receiver.recv(65536):
                received += len(piece)
        receiver.close()
        listener.close()
        assert received == 50_000
        assert (near.count_sent_bytes() or 0) - before > 50_000
        network.shape("a", LinkRate())
        assert "tbf" not in show_queues(near.namespace)
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert f"p2pswarm-{os.getpid()}-" not in listed.stdout


def show_queues(namespace: str) -> str:
    """Return what tc(8) says of a namespace."""
    command = ["tc", "-n", namespace, "qdisc", "show"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def show_filters(switch: str) -> str:
    """Return, for each kind of frame, whether a switch's packet filter sees it; "" without one."""
    command = ["ip", "netns", "exec", switch, "sh", "-c", f"cat {BRIDGE_SETTINGS}/*-call-*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
