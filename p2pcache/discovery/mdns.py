"""
Owns discovery on one link by multicast: announce, withdraw and watch by mDNS and DNS-SD.

Knows nothing of which peer is real; any machine on the link may say anything here.
Invariants: TXT holds version and peer id only; candidates_max bounds all; stop ends reports.
Source: RFC 6762 and 6763; threats T11 to T14 of the threat model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from zeroconf import BadTypeInNameException, RecordUpdate, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2pcache.discovery.answer import (
    is_peer_id,
    parse_answer,
    peer_tag,
    service_label,
    txt_properties,
)
from p2pcache.discovery.base import Announcement, Candidate
from p2pcache.discovery.interface import find_addresses
from p2pcache.discovery.multicast import AnswerListener, open_multicast
from p2pcache.discovery.table import CandidateTable, TableChange

SERVICE_TYPE = "_p2pcache._tcp.local."

# Candidates. The largest link that anybody runs flat is a /22, and zeroconf itself delivered
# 20,000 of 20,000 spoofed names to us (threat T11): the bound has to be ours.
CANDIDATES_MAX = 1_024

# Names read per packet. A daemon announces one; a reflector may join the answers of a few hosts.
# A 9 KB packet holds 750 records, and each name read costs a walk over all of them.
NAMES_PER_PACKET_MAX = 16

# Questions for the records of a name that came without them, at any one time.
REQUESTS_INFLIGHT_MAX = 16
REQUEST_TIMEOUT_S = 3.0

# Names heard before the browser is replaced. zeroconf's cache is bounded, but its browser keeps a
# scheduled query per name for as long as the name's TTL says, which the sender chooses. Above
# zeroconf's 10,000 cached records, all of which the next browser starts with.
BROWSER_NAMES_MAX = 16_384

# A network that comes up after the daemon (DHCP at boot, a laptop that wakes) is used within this.
INTERFACES_INTERVAL_S = 15.0

_log = logging.getLogger(__name__)


class MdnsDiscovery:
    """Finds the daemons on the same link, and those on the same machine."""

    def __init__(
        self,
        *,
        candidates_max: int = CANDIDATES_MAX,
        interfaces: Callable[[], list[str]] = find_addresses,
        interfaces_interval_s: float = INTERFACES_INTERVAL_S,
    ) -> None:
        """
        Make an instance; no socket is opened before start.

        Args:
            candidates_max: Candidates tracked at once; beyond it the oldest name is forgotten.
            interfaces: Gives the IPv4 addresses to announce and to multicast on.
            interfaces_interval_s: How often they are asked for again.
        """
        self._table = CandidateTable(candidates_max)
        self._candidates_max = candidates_max
        self._interfaces = interfaces
        self._interfaces_interval_s = interfaces_interval_s
        self._addresses: list[str] = []
        self._mdns: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._names_heard = 0
        self._requests: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self,
        announcement: Announcement,
        on_found: Callable[[Candidate], None],
        on_lost: Callable[[Candidate], None],
    ) -> None:
        """
        Announce ourselves and watch; returns once sockets are open and a packet is on its way.

        Raises:
            ConfigError: No interface can multicast, or port 5353 cannot be shared. This does not
                degrade to silence: a daemon that seems to search and cannot find is worse to
                debug than one that says so. Whether to go on without is the caller's decision.
                Loopback suffices, so that in practice only a locked-down container gets here.
        """
        if self._mdns is not None:
            return
        assert is_peer_id(announcement.peer_id), "no TXT record can carry this peer id"
        self._announcement = announcement
        self._on_found = on_found
        self._on_lost = on_lost
        self._addresses = await asyncio.to_thread(self._interfaces)
        self._mdns = await open_multicast(self._addresses)
        service = self._make_service()
        self._own_name = service.name
        zeroconf = self._mdns.zeroconf
        zeroconf.async_add_listener(AnswerListener(SERVICE_TYPE, self._hear), None)
        self._browser = self._make_browser(zeroconf)
        # No probing for a free name: ours holds a digest of the peer id, and a host that answers
        # every probe would keep us from ever announcing.
        sent = await self._mdns.async_register_service(service, cooperating_responders=True)
        self._spawn(_await_quietly(sent))
        self._spawn(self._follow_interfaces())

    async def stop(self) -> None:
        """Say goodbye, close every socket and end every task. Safe to call twice."""
        mdns, self._mdns = self._mdns, None
        if mdns is None:
            return
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        await mdns.async_close()
        self._table = CandidateTable(self._candidates_max)

    def _make_service(self) -> AsyncServiceInfo:
        """Describe ourselves. The host name is ours alone, so that a goodbye withdraws only us."""
        own = self._announcement
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{service_label(own.name, own.peer_id)}.{SERVICE_TYPE}",
            port=own.port,
            properties=txt_properties(own.peer_id),
            server=f"p2pcache-{peer_tag(own.peer_id)}.local.",
            parsed_addresses=self._addresses,
        )

    def _make_browser(self, zeroconf: Zeroconf) -> AsyncServiceBrowser:
        """Start to ask who is there; the browser also tells who withdrew or expired."""
        return AsyncServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[self._on_state])

    def _on_state(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Take note of a name that withdrew; what was added is heard by the listener."""
        if self._mdns is not None and state_change is ServiceStateChange.Removed:
            self._tell(self._table.remove(name))

    def _hear(
        self, zeroconf: Zeroconf, now_ms: float, records: list[RecordUpdate], names: list[str]
    ) -> None:
        """
        Read the names that one packet speaks of, from that packet where it says all.

        The packet comes before zeroconf's cache, since a flood of long-lived records makes the
        cache evict the short-lived ones of real peers. Real daemons send all of their records
        in one packet, so that a flood which keeps every request slot busy hides none of them.
        """
        if self._mdns is None:
            return
        self._names_heard += len(names)
        if self._names_heard > BROWSER_NAMES_MAX:
            self._names_heard = 0
            self._spawn(self._renew_browser(zeroconf))
        for name in names[:NAMES_PER_PACKET_MAX]:
            if name.lower() == self._own_name.lower():
                continue
            try:
                service = AsyncServiceInfo(SERVICE_TYPE, name)
            except BadTypeInNameException:
                continue
            # Twice, because an address counts only once the SRV record has named its host, and
            # their order in the packet is the sender's choice.
            service.async_update_records(zeroconf, now_ms, records)
            service.async_update_records(zeroconf, now_ms, records)
            if _is_complete(service) or service.load_from_cache(zeroconf, now_ms):
                self._take(service)
            elif len(self._requests) < REQUESTS_INFLIGHT_MAX and name not in self._requests:
                self._requests.add(name)
                self._spawn(self._request(zeroconf, service))

    async def _request(self, zeroconf: Zeroconf, service: AsyncServiceInfo) -> None:
        """Ask for the records of a name that came without them; no answer is no peer."""
        name = service.name
        try:
            if await service.async_request(zeroconf, REQUEST_TIMEOUT_S * 1_000):
                self._take(service)
        finally:
            self._requests.discard(name)

    def _take(self, service: AsyncServiceInfo) -> None:
        """Remember what a name announces, unless it is malformed, forbidden or us."""
        own = self._announcement
        # On a machine that has only loopback, loopback is where its other daemons are.
        loopback = all(address.startswith("127.") for address in self._addresses)
        answer = parse_answer(
            service.text, service.port, service.parsed_addresses(), loopback=loopback
        )
        if answer is None or answer.peer_id == own.peer_id:
            return
        self._tell(
            self._table.replace(
                service.name,
                [
                    Candidate(host, answer.port, "mdns")
                    for host in answer.hosts
                    # An address that many machines have, such as that of docker0, leads home.
                    if not (host in self._addresses and answer.port == own.port)
                ],
            )
        )

    def _tell(self, change: TableChange) -> None:
        """Pass a change on; what is new first, so that a peer that moved is never nowhere."""
        for candidate in change.found:
            self._on_found(candidate)
        for candidate in change.lost:
            self._on_lost(candidate)

    async def _renew_browser(self, zeroconf: Zeroconf) -> None:
        """Replace the browser, and with it whatever a flood made it remember."""
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = self._make_browser(zeroconf)

    async def _follow_interfaces(self) -> None:
        """Announce on the interfaces of now, not of the start."""
        while self._mdns is not None:
            await asyncio.sleep(self._interfaces_interval_s)
            addresses = await asyncio.to_thread(self._interfaces)
            # None at all is a cable that was pulled: keep what we have until there is another.
            if not addresses or set(addresses) == set(self._addresses):
                continue
            _log.info("announcing %s instead of %s", addresses, self._addresses)
            try:
                await self._mdns.async_update_interfaces(addresses)
                self._addresses = addresses
                await (await self._mdns.async_update_service(self._make_service()))
            except OSError as error:
                _log.warning("cannot announce on %s: %s; trying again later", addresses, error)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a task that ends with us at the latest."""
        task = asyncio.create_task(coroutine, name="mdns")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_complete(service: AsyncServiceInfo) -> bool:
    """Tell whether a packet had all three kinds of record. An empty TXT is of no use to us."""
    return bool(service.text and service.port and service.parsed_addresses())


async def _await_quietly(sent: Any) -> None:
    """Wait for the repeated announcements; a link that went away is not the end of the watch."""
    with contextlib.suppress(OSError):
        await sent
