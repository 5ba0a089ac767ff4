"""
Owns the tests of mDNS between machines: real multicast through a bridge between namespaces.

Knows nothing of how packets look.
Invariants: each machine is a process in its own namespace; all of it goes when the test ends.
Source: RFC 6762; p2pcache/discovery/mdns.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.discovery.conftest import DEADLINE_S
from tests.discovery.link import Host, bridged_hosts, private_network, run_ip

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
Event = dict[str, object]


class Neighbour:
    """A running neighbour.py, and the lines that it has printed."""

    def __init__(self, host: Host, process: asyncio.subprocess.Process) -> None:
        self.host = host
        self._process = process
        self._said: list[Event] = []

    async def wait_for(self, **expected: object) -> None:
        """Read until a line has these fields; lines read before count too."""
        async with asyncio.timeout(DEADLINE_S):
            while not any(expected.items() <= event.items() for event in self._said):
                assert self._process.stdout is not None
                line = await self._process.stdout.readline()
                assert line, f"{self.host} ended; waiting for {expected}, it said {self._said}"
                self._said.append(json.loads(line))

    def forget(self) -> None:
        """Drop what was said so far."""
        self._said.clear()

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        if self._process.returncode is None:
            self._process.send_signal(number)
        async with asyncio.timeout(DEADLINE_S):
            return await self._process.wait()


@pytest.fixture
def hosts(namespaces: None) -> Iterator[list[Host]]:
    """Two machines on one switch."""
    with bridged_hosts(2) as made:
        yield made


@contextlib.asynccontextmanager
async def neighbour(host: Host, peer_id: str, port: int) -> AsyncIterator[Neighbour]:
    """Run neighbour.py on a machine until the end of the block, and kill it there."""
    process = await asyncio.create_subprocess_exec(
        # `ip netns exec` replaces itself, so that signals reach Python.
        *("ip", "netns", "exec", host.namespace),
        *(sys.executable, "-m", "tests.discovery.neighbour", peer_id, str(port)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    started = Neighbour(host, process)
    try:
        await started.wait_for(event="ready")
        yield started
    finally:
        await started.end(signal.SIGKILL)


async def test_mdns_machines_on_a_link_find_and_lose_each_other(hosts: list[Host]) -> None:
    """By real multicast, each at its own address; SIGTERM withdraws."""
    async with neighbour(hosts[0], "one", 7278) as one, neighbour(hosts[1], "two", 7278) as two:
        await one.wait_for(event="found", host=hosts[1].address, port=7278)
        await two.wait_for(event="found", host=hosts[0].address, port=7278)
        assert await two.end(signal.SIGTERM) == 0
        await one.wait_for(event="lost", host=hosts[1].address, port=7278)


async def test_mdns_two_daemons_of_one_machine_find_each_other(hosts: list[Host]) -> None:
    """At the address that neighbours use as well."""
    async with neighbour(hosts[0], "one", 7278) as one, neighbour(hosts[0], "two", 7279) as two:
        await one.wait_for(event="found", host=hosts[0].address, port=7279)
        await two.wait_for(event="found", host=hosts[0].address, port=7278)


async def test_mdns_killed_machine_leaves_the_watcher_running(hosts: list[Host]) -> None:
    """kill -9 sends no goodbye; the watcher goes on, and finds the machine's next daemon."""
    async with neighbour(hosts[0], "one", 7278) as one:
        async with neighbour(hosts[1], "two", 7278) as two:
            await one.wait_for(event="found", host=hosts[1].address, port=7278)
            assert await two.end(signal.SIGKILL) == -signal.SIGKILL
        async with neighbour(hosts[1], "two", 7300) as two:
            await one.wait_for(event="found", host=hosts[1].address, port=7300)
            await one.wait_for(event="lost", host=hosts[1].address, port=7278)
        assert await one.end(signal.SIGTERM) == 0


async def test_mdns_interface_that_comes_up_later_is_used(hosts: list[Host]) -> None:
    """A daemon that started before its network announces itself once there is one."""
    run_ip("link", "set", "eth0", "down", in_namespace=hosts[1].namespace)
    async with neighbour(hosts[0], "one", 7278) as one, neighbour(hosts[1], "two", 7278) as two:
        run_ip("link", "set", "eth0", "up", in_namespace=hosts[1].namespace)
        await one.wait_for(event="found", host=hosts[1].address, port=7278)
        await two.wait_for(event="found", host=hosts[0].address, port=7278)


def test_namespaces_are_removed_upon_failure(namespaces: None) -> None:
    """A test that fails leaves no namespace behind, and a thread that left comes home."""
    home = Path("/proc/thread-self/ns/net").readlink()
    away: list[Path] = []
    names: list[str] = []

    def fail_halfway() -> None:
        with bridged_hosts(1) as made, private_network():
            names.extend(host.namespace for host in made)
            away.append(Path("/proc/thread-self/ns/net").readlink())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert away != [home]
    assert Path("/proc/thread-self/ns/net").readlink() == home
    assert not [name for name in names if (Path("/run/netns") / name).exists()]
