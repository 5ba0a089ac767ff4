"""
Owns the tests of mDNS on a network that has only loopback: privacy, floods, malformed packets.

Knows nothing of links between machines; test_mdns_link.py has those.
Invariants: each test runs in a namespace of its own; packets are sent as an enemy would.
Source: p2pcache/discovery/mdns.py; threats T11 to T14 of the threat model.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from zeroconf import DNSOutgoing, IPVersion  # type: ignore[attr-defined]
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import _FLAGS_AA, _FLAGS_QR_RESPONSE

from p2pcache.discovery import mdns as mdns_module
from p2pcache.discovery.base import Announcement, Candidate
from p2pcache.discovery.mdns import CANDIDATES_MAX, SERVICE_TYPE, MdnsDiscovery
from p2pcache.errors import ConfigError
from tests.discovery.conftest import Recorder, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("own_network")]

GROUP = ("224.0.0.251", 5353)
LONG_TTL_S = 2_000_000_000  # a flood that means to stay in every cache
US = Announcement("watcher-id", "watcher", 7278)
REAL = Announcement("real-id", "real box/with: odd name", 17_777)
GOOD = Candidate("127.0.0.1", 29_999, "mdns")


@pytest.fixture
def enemy() -> Iterator[socket.socket]:
    """A socket that can send any packet to the group."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.connect(GROUP)
        yield sender


@pytest.fixture
async def watcher(own_network: None, recorder: Recorder) -> AsyncIterator[MdnsDiscovery]:
    """A started discovery that reports to the recorder."""
    discovery = MdnsDiscovery()
    await discovery.start(US, recorder.found.append, recorder.lost.append)
    yield discovery
    await discovery.stop()


def spoof(
    name: str, *, port: int = 20_000, host: str = "127.0.0.1", text: bytes = b"\x03v=1\x04id=x",
    ttl_s: int = LONG_TTL_S,
) -> bytes:  # fmt: skip
    """Build the packet that announces a name as a daemon would."""
    service = AsyncServiceInfo(
        SERVICE_TYPE,
        f"{name}.{SERVICE_TYPE}",
        port=port,
        properties=text,
        server=f"{name}.local.",
        parsed_addresses=[host],
        host_ttl=ttl_s,
        other_ttl=ttl_s,
    )
    packet = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
    for record in (service.dns_pointer(), service.dns_service(), service.dns_text()):
        packet.add_answer_at_time(record, 0)
    for address in service.dns_addresses():
        packet.add_answer_at_time(address, 0)
    return packet.packets()[0]


async def flood(enemy: socket.socket, count: int) -> None:
    """Announce that many names; asyncio reads one packet a turn, so one a turn loses none."""
    for i in range(count):
        enemy.send(spoof(f"fake-{i}", port=20_000 + i % 40_000))
        await asyncio.sleep(0)


async def test_mdns_txt_holds_version_and_id_only(watcher: MdnsDiscovery) -> None:
    """What another program on the link reads has no more than that, and no odd name."""
    other = AsyncZeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only)
    names: list[str] = []

    def note(zeroconf: object, service_type: str, name: str, state_change: object) -> None:
        names.append(name)

    browser = AsyncServiceBrowser(other.zeroconf, SERVICE_TYPE, handlers=[note])
    await wait_until(lambda: bool(names), "the announcement")
    service = await other.async_get_service_info(SERVICE_TYPE, names[0])
    await browser.async_cancel()
    await other.async_close()
    assert service is not None
    assert service.properties == {b"v": b"1", b"id": b"watcher-id"}
    assert service.text == b"\x03v=1\x0did=watcher-id"
    assert (service.port, service.parsed_addresses()) == (7278, ["127.0.0.1"])
    assert names[0].startswith("watcher-")


async def test_mdns_flood_stays_under_the_cap_and_hides_nobody(
    watcher: MdnsDiscovery,
    recorder: Recorder,
    enemy: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """5,000 spoofed names, meant to fill every cache, are bounded, and a real peer is found."""
    # As if pointers to nowhere kept every question slot busy: zeroconf's cache, full of records
    # that outlive those of real peers, must not be needed either.
    monkeypatch.setattr(mdns_module, "REQUESTS_INFLIGHT_MAX", 0)
    await flood(enemy, 5_000)
    await wait_until(lambda: len(recorder.found) > CANDIDATES_MAX, "more names than the cap")
    assert len(watcher._table) <= CANDIDATES_MAX
    assert recorder.lost == [], "being forgotten for lack of room is not a departure"
    real = MdnsDiscovery()
    await real.start(REAL, lambda _: None, lambda _: None)
    await wait_until(lambda: REAL.port in recorder.found_ports, "the real peer in the flood")
    await real.stop()
    assert len(watcher._table) <= CANDIDATES_MAX


async def test_mdns_flood_renews_the_browser_and_still_watches(
    watcher: MdnsDiscovery,
    recorder: Recorder,
    enemy: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What zeroconf's browser remembers per name is thrown away, and departures are still seen."""
    monkeypatch.setattr(mdns_module, "BROWSER_NAMES_MAX", 50)
    before = watcher._browser
    await flood(enemy, 100)
    await wait_until(lambda: watcher._browser is not before, "another browser")
    real = MdnsDiscovery()
    await real.start(REAL, lambda _: None, lambda _: None)
    await wait_until(lambda: REAL.port in recorder.found_ports, "the real peer")
    await real.stop()
    await wait_until(lambda: REAL.port in recorder.lost_ports, "its goodbye")
    assert set(recorder.lost) == {Candidate("127.0.0.1", REAL.port, "mdns")}, "nobody else left"


@pytest.mark.parametrize(
    ("port", "host", "text"),
    [
        (22, "127.0.0.1", b"\x03v=1\x04id=x"),
        (20_000, "8.8.8.8", b"\x03v=1\x04id=x"),
        (20_000, "169.254.169.254", b"\x03v=1\x04id=x"),
        (20_000, "224.0.0.1", b"\x03v=1\x04id=x"),
        (20_000, "0.0.0.0", b"\x03v=1\x04id=x"),
        (20_000, "127.0.0.1", b"\x03v=9\x04id=x"),
        (20_000, "127.0.0.1", b"\xffv=1"),
        (20_000, "127.0.0.1", b"\x03v=1\x0did=watcher-id"),
        (7_278, "127.0.0.1", b"\x03v=1\x04id=x"),
    ],
)
async def test_mdns_forbidden_announcement_is_not_reported(
    watcher: MdnsDiscovery,
    recorder: Recorder,
    enemy: socket.socket,
    port: int,
    host: str,
    text: bytes,
) -> None:
    """The bad packet is followed by a good one: once that is reported, the bad one was dropped."""
    enemy.send(spoof("bad", port=port, host=host, text=text))
    enemy.send(spoof("good", port=29_999))
    await wait_until(lambda: bool(recorder.found), "the good announcement")
    assert recorder.found == [Candidate("127.0.0.1", 29_999, "mdns")]


async def test_mdns_malformed_packets_do_not_end_the_watch(
    watcher: MdnsDiscovery, recorder: Recorder, enemy: socket.socket
) -> None:
    """Garbage, truncations and long names are survived."""
    good = spoof("good", port=29_999)
    for junk in [b"", b"\0", b"\xff" * 12, b"\xff" * 1_400, *(good[:n] for n in range(0, 90, 7))]:
        enemy.send(junk)
    enemy.send(good)
    await wait_until(lambda: 29_999 in recorder.found_ports, "the good announcement")
    assert (set(recorder.found), recorder.lost) == ({GOOD}, [])


async def test_mdns_forged_goodbye_is_only_a_report(
    watcher: MdnsDiscovery, recorder: Recorder, enemy: socket.socket
) -> None:
    """A goodbye that anybody sent reports a loss; the peer is found again when it speaks."""
    enemy.send(spoof("box", port=29_999))
    await wait_until(lambda: 29_999 in recorder.found_ports, "the box")
    enemy.send(spoof("box", port=29_999, ttl_s=0))
    await wait_until(lambda: 29_999 in recorder.lost_ports, "the goodbye")
    recorder.found.clear()
    enemy.send(spoof("box", port=29_999, ttl_s=4_500))
    await wait_until(lambda: 29_999 in recorder.found_ports, "the box again")
    assert (set(recorder.found), set(recorder.lost)) == ({GOOD}, {GOOD})


async def test_mdns_split_records_are_asked_for(
    watcher: MdnsDiscovery, recorder: Recorder, enemy: socket.socket
) -> None:
    """A pointer that came alone is followed by a question, which the owner of the name answers."""
    owner = AsyncZeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only)
    service = AsyncServiceInfo(
        SERVICE_TYPE,
        f"quiet.{SERVICE_TYPE}",
        port=29_999,
        properties={"v": "1", "id": "quiet"},
        server="quiet.local.",
        parsed_addresses=["127.0.0.1"],
    )
    service.set_server_if_missing()
    await owner.zeroconf.async_wait_for_start()
    owner.zeroconf.registry.async_add(service)  # answers, and never announces by itself
    packet = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
    packet.add_answer_at_time(service.dns_pointer(), 0)
    enemy.send(packet.packets()[0])
    await wait_until(lambda: 29_999 in recorder.found_ports, "the answer")
    await owner.async_close()
    assert set(recorder.found) == {GOOD}


async def test_mdns_without_interface_is_a_config_error() -> None:
    """The message says what to use instead, and nothing stays open."""
    discovery = MdnsDiscovery(interfaces=list)
    with pytest.raises(ConfigError, match=r"--peer HOST:PORT or --discover none"):
        await discovery.start(US, lambda _: None, lambda _: None)
    await discovery.stop()


async def test_mdns_port_that_is_not_shared_is_a_config_error() -> None:
    """The message names the port that another program keeps for itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
        selfish.bind(("127.0.0.1", 5353))
        discovery = MdnsDiscovery()
        with pytest.raises(ConfigError, match=r"5353 .*in use.*; use --peer HOST:PORT"):
            await discovery.start(US, lambda _: None, lambda _: None)


async def test_mdns_address_of_nobody_is_a_config_error() -> None:
    """An address that no interface has cannot multicast."""
    discovery = MdnsDiscovery(interfaces=lambda: ["10.255.255.1"])
    with pytest.raises(ConfigError, match=r"--peer HOST:PORT or --discover none"):
        await discovery.start(US, lambda _: None, lambda _: None)
    await discovery.stop()
