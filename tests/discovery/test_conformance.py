"""
Owns the promises of the Discovery boundary, checked against every implementation.

Knows nothing of how an implementation keeps them.
Invariants: a new kind of discovery is one more site here; each kind of site is a private network.
Source: p2pcache/discovery/base.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from p2pcache.discovery.base import Announcement, Candidate, Discovery
from p2pcache.discovery.mdns import MdnsDiscovery
from p2pcache.discovery.memory import MemoryDiscovery, MemoryNetwork
from p2pcache.discovery.static import StaticDiscovery
from tests.discovery.conftest import Recorder, wait_until

PORTS = (17_001, 17_002, 17_003)


class Site:
    """Makes discoveries that can find each other, and stops them at the end."""

    def __init__(self, kind: str, make: Callable[[], Discovery]) -> None:
        self.kind = kind
        self._make = make
        self._made: list[Discovery] = []

    def make(self) -> Discovery:
        """Return a new discovery on this site's network."""
        discovery = self._make()
        self._made.append(discovery)
        return discovery

    async def join(self, index: int, recorder: Recorder) -> Discovery:
        """Make and start the peer of this number."""
        discovery = self.make()
        await discovery.start(peer(index), recorder.found.append, recorder.lost.append)
        return discovery

    async def close(self) -> None:
        """Stop everything; all of it at once, since a goodbye by mDNS takes a while."""
        await asyncio.gather(*(discovery.stop() for discovery in self._made))


def peer(index: int) -> Announcement:
    """The announcement of the peer of this number."""
    return Announcement(f"peer-{index}", f"box {index}", PORTS[index])


@pytest.fixture(
    params=["memory", "static", pytest.param("mdns", marks=pytest.mark.netns)],
)
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A network of each kind."""
    kind: str = request.param
    if kind == "mdns":
        request.getfixturevalue("own_network")
    network = MemoryNetwork()
    everybody = [f"127.0.0.1:{port}" for port in PORTS]
    makers: dict[str, Callable[[], Discovery]] = {
        "memory": lambda: MemoryDiscovery(network),
        "static": lambda: StaticDiscovery(everybody),
        "mdns": MdnsDiscovery,
    }
    site = Site(kind, makers[kind])
    yield site
    await site.close()


async def test_discovery_two_peers_find_each_other(site: Site) -> None:
    """Each reports the other, with the kind that found it and an IP address."""
    one, two = Recorder(), Recorder()
    await site.join(0, one)
    await site.join(1, two)
    await wait_until(lambda: PORTS[1] in one.found_ports, "0 finds 1")
    await wait_until(lambda: PORTS[0] in two.found_ports, "1 finds 0")
    assert Candidate("127.0.0.1", PORTS[1], site.kind) in one.found


async def test_discovery_late_peer_finds_those_who_were_there(site: Site) -> None:
    """Order of start does not matter."""
    early, late = Recorder(), Recorder()
    await site.join(0, early)
    await site.join(1, early)
    await wait_until(lambda: set(PORTS[:2]) <= early.found_ports, "the early two")
    await site.join(2, late)
    await wait_until(lambda: set(PORTS[:2]) <= late.found_ports, "the late one finds both")
    await wait_until(lambda: PORTS[2] in early.found_ports, "the early two find the late one")
    assert set(late.found) >= {Candidate("127.0.0.1", port, site.kind) for port in PORTS[:2]}
    assert (early.lost, late.lost) == ([], [])


async def test_discovery_announcing_kind_never_reports_itself(site: Site) -> None:
    """A daemon is not its own peer; a list is the operator's word, and the engine finds out."""
    if site.kind == "static":
        pytest.skip("a list does not know which of its entries is us")
    one, two = Recorder(), Recorder()
    await site.join(0, one)
    await site.join(1, two)
    await wait_until(lambda: PORTS[1] in one.found_ports, "0 finds 1")
    assert PORTS[0] not in one.found_ports


async def test_discovery_stop_is_reported_as_lost(site: Site) -> None:
    """Whoever withdraws is lost to the others."""
    if site.kind == "static":
        pytest.skip("nobody withdraws from a list")
    one, two = Recorder(), Recorder()
    await site.join(0, one)
    leaving = await site.join(1, two)
    await wait_until(lambda: PORTS[1] in one.found_ports, "0 finds 1")
    await leaving.stop()
    await wait_until(lambda: PORTS[1] in one.lost_ports, "0 loses 1")
    assert two.lost == []


async def test_discovery_stopped_one_reports_nothing_more(site: Site) -> None:
    """After stop no callback runs, also not for what still arrives."""
    one, two, three = Recorder(), Recorder(), Recorder()
    stopped = await site.join(0, one)
    await site.join(1, two)
    await wait_until(lambda: PORTS[1] in one.found_ports, "0 finds 1")
    await stopped.stop()
    before = (list(one.found), list(one.lost))
    await site.join(2, three)
    await wait_until(lambda: PORTS[1] in three.found_ports, "2 finds 1")
    await wait_until(lambda: PORTS[2] in two.found_ports, "1 finds 2")
    assert (one.found, one.lost) == before


async def test_discovery_start_twice_reports_once(site: Site) -> None:
    """A second start changes nothing."""
    one, two = Recorder(), Recorder()
    first = await site.join(0, one)
    await first.start(peer(0), one.found.append, one.lost.append)
    await site.join(1, two)
    await wait_until(lambda: PORTS[0] in two.found_ports, "1 finds 0")
    await wait_until(lambda: PORTS[1] in one.found_ports, "0 finds 1")
    assert len(one.found) == len(set(one.found))


async def test_discovery_stop_twice_or_unstarted_is_harmless(
    site: Site, recorder: Recorder
) -> None:
    """Stop needs no start and may be repeated."""
    before = asyncio.all_tasks()
    await site.make().stop()
    joined = await site.join(0, recorder)
    await joined.stop()
    await joined.stop()
    await wait_until(lambda: asyncio.all_tasks() <= before, "no task is left")
    assert (recorder.found, recorder.lost) == ([], [])


async def test_discovery_restarted_peer_is_found_again(site: Site) -> None:
    """The same peer that stops and comes back is reported again."""
    if site.kind == "static":
        pytest.skip("a list reports each entry once")
    one, two = Recorder(), Recorder()
    await site.join(0, one)
    leaving = await site.join(1, two)
    await wait_until(lambda: PORTS[1] in one.found_ports, "0 finds 1")
    await leaving.stop()
    await wait_until(lambda: PORTS[1] in one.lost_ports, "0 loses 1")
    one.found.clear()
    await site.join(1, two)
    await wait_until(lambda: PORTS[1] in one.found_ports, "0 finds 1 again")
    assert set(one.found) == {Candidate("127.0.0.1", PORTS[1], site.kind)}
    assert one.lost_ports == {PORTS[1]}
