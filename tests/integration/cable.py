"""
Owns a host behind a cable that a test may pull: its packets stop, and nobody is told.

Knows nothing of p2pcache.
Invariants: whatever was made is removed, also when making it failed half-way.
Source: network_namespaces(7), veth(4).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from tests.discovery.link import find_obstacle, private_network, run_ip

OBSTACLE = find_obstacle() or (None if shutil.which("tc") else "the command `tc` is missing")
CABLE_NAMESPACE = f"p2pc-half-{os.getpid()}"


@contextlib.contextmanager
def cabled_host() -> Iterator[list[str]]:
    """
    Make a private network of ours, 10.78.0.1, and a host on a switch in it, 10.78.0.2.

    Yields:
        What runs a command on that host.
    """
    with private_network(), contextlib.ExitStack() as cleanup:
        run_ip("netns", "add", CABLE_NAMESPACE)
        cleanup.callback(run_ip, "netns", "del", CABLE_NAMESPACE)
        run_ip("link", "add", "switch", "type", "bridge")
        # Keeps the switch up when the cable is out: we notice nothing but silence.
        run_ip("link", "add", "other", "type", "veth", "peer", "name", "other-end")
        run_ip("link", "set", "other", "master", "switch", "up")
        run_ip("link", "set", "other-end", "up")
        run_ip("link", "add", "cable", "type", "veth", "peer", "eth0", "netns", CABLE_NAMESPACE)
        run_ip("link", "set", "cable", "master", "switch", "up")
        run_ip("addr", "add", "10.78.0.1/24", "dev", "switch")
        run_ip("link", "set", "switch", "up")
        run_ip("addr", "add", "10.78.0.2/24", "dev", "eth0", in_namespace=CABLE_NAMESPACE)
        for device in ("lo", "eth0"):
            run_ip("link", "set", device, "up", in_namespace=CABLE_NAMESPACE)
        yield ["ip", "netns", "exec", CABLE_NAMESPACE]
