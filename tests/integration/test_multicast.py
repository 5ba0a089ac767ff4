"""
Owns that two machines on one LAN find each other by mDNS and share, with no configuration.

Knows nothing of how discovery works.
Invariants: two network namespaces on one switch, real multicast; the hub is reachable from the
first machine alone.
Source: design.md §2.6 and §9.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess, wait_until
from tests.discovery.link import bridged_hosts, find_obstacle
from tests.hub import HubProcess
from tests.integration.conftest import MODEL, MakeDaemon, assert_same_files

OBSTACLE = find_obstacle()


def list_peers(daemon: DaemonProcess) -> list[str]:
    """Return the names of the peers that a daemon sees."""
    shown = daemon.run("peers", "--json")
    assert shown.returncode == 0, shown.stderr
    return [peer["name"] for peer in json.loads(shown.stdout)["peers"]]


@pytest.mark.netns
@pytest.mark.skipif(OBSTACLE is not None, reason=OBSTACLE or "")
def test_machines_on_one_lan_share_without_configuration(
    models: Path, model_bytes: int, make_daemon: MakeDaemon
) -> None:
    """B, which never reaches the hub, finds A by multicast and has the model from it."""
    with bridged_hosts(2) as (near, far):
        enter = [["ip", "netns", "exec", host.namespace] for host in (near, far)]
        with HubProcess(models, prefix=enter[0]) as hub:
            shared = {"upstream": hub.url, "discover": "mdns", "listen": "0.0.0.0:0"}
            first = make_daemon("a", prefix=enter[0], **shared).start()
            second = make_daemon("b", prefix=enter[1], trust_peers=True, **shared).start()
            wait_until(lambda: list_peers(second) == ["a"], "b finds a")
            wait_until(lambda: list_peers(first) == ["b"], "a finds b")
            pulled = first.pull(MODEL)
            assert pulled.returncode == 0, pulled.stderr
            result = second.pull(MODEL, "--json")
            assert result.returncode == 0, result.stderr
            job = json.loads(result.stdout)
            assert job["bytes_from_peers"] == model_bytes
            assert_same_files(Path(job["path"]), models)
            first.kill()
            wait_until(lambda: not list_peers(second), "b drops a", timeout_s=10.0)
            second.stop()
