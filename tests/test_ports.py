"""
Owns that the ports of tests are nobody else's.

Knows nothing of daemons.
Invariants: none of its own.
Source: none.
"""

from __future__ import annotations

import socket
from pathlib import Path

from tests import ports
from tests.ports import pick_port

LOCAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_port_is_not_given_twice_and_is_none_of_the_kernels() -> None:
    """A daemon's address means that daemon until its test ends, even when it is dead."""
    drawn = [pick_port() for _ in range(100)]
    assert len(set(drawn)) == len(drawn)
    last = ports.FIRST + ports.PORTS_PER_PROCESS * ports.PROCESSES_MAX - 1
    assert all(ports.FIRST <= port <= last for port in drawn)
    if LOCAL_RANGE.exists():
        assert last < int(LOCAL_RANGE.read_text().split()[0])


def test_port_that_somebody_has_is_not_given() -> None:
    """Whoever it is: another run of the tests, or a service of the machine."""
    taken = pick_port() + 1
    with socket.create_server(("127.0.0.1", taken)):
        assert pick_port() != taken
