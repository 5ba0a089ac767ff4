"""
Owns the table of peers and the exchange of have and intent with them.

Knows nothing of fetching: it asks reporters what to say and tells listeners what it heard.
Invariants: a peer is up only while it answers; who is silent for PEER_SILENCE_S is dropped; the
table, a peer's entries and a message are bounded; nothing but public content is spoken of.
Source: design.md §6.1; docs/reference/peer-protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from p2pcache import __version__
from p2pcache.core.bitfield import Bitfield
from p2pcache.core.cadence import Visits, find_pause_s
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import ENTRIES_PER_EXCHANGE_MAX, Exchange, Hello, SwarmEntry
from p2pcache.core.neighbours import Neighbourhood
from p2pcache.core.rendezvous import find_owner
from p2pcache.discovery.base import Candidate
from p2pcache.engine.context import Context
from p2pcache.engine.earshot import Earshot
from p2pcache.engine.gossip import (
    add_crew,
    find_fetching,
    hear_crew,
    is_worth_a_look,
)
from p2pcache.engine.peer import Peer
from p2pcache.engine.peerlink import REQUEST_S_MAX, PeerLink
from p2pcache.errors import P2PCacheError, PeerGoneError

log = logging.getLogger(__name__)

# With a probe every 2 s: a peer that vanished is gone from every plan within 8 s.
PEER_SILENCE_S = 6.0
# A visit that took so long was not in want of an answer alone: this process was stopped meanwhile.
STOOD_STILL_S = 2 * REQUEST_S_MAX
# Who is near changes when peers come, go or start to fetch: often enough for a lease.
NEIGHBOURS_INTERVAL_S = 0.5
# A start waits this long for the first round of exchanges, and no longer.
START_ROUND_S_MAX = 1.0
# mDNS answers within a second; a fetch right after start waits for it once.
SETTLE_S = 1.5
PEERS_MAX = 1024

Reporter = Callable[[], SwarmEntry | None]
Describer = Callable[[list[BlobDigest]], Awaitable[list[SwarmEntry]]]


@functools.lru_cache(maxsize=PEERS_MAX)
def is_private_address(host: str) -> bool:
    """Return whether an address belongs to a local network: the only ones we share with."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (address.is_private or address.is_link_local) and not (
        address.is_multicast or address.is_unspecified
    )


@dataclass(slots=True)
class _Address:
    """One address where a peer may listen, and the task that visits it."""

    candidate: Candidate
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    visits: Visits = field(default_factory=Visits)
    # Who answered last; None while nobody does.
    peer_id: str | None = None
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.candidate.host, self.candidate.port

    @property
    def url(self) -> str:
        host = self.candidate.host
        return f"http://[{host}]:{self.key[1]}" if ":" in host else f"http://{host}:{self.key[1]}"


class Swarm:
    """The peers of this daemon. Event loop only."""

    def __init__(self, context: Context, describe: Describer) -> None:
        """
        Args:
            context: The engine's shared parts.
            describe: Says what we hold of blobs that are not being fetched, leaving out those
                of which nothing is here or nothing may be shared.
        """
        self.peers: dict[str, Peer] = {}
        self.link = PeerLink()
        self._context = context
        self._describe = describe
        self.port = 0
        self._started_s = 0.0
        self._addresses: dict[tuple[str, int], _Address] = {}
        self._reporters: dict[BlobDigest, Reporter] = {}
        self._listeners: dict[BlobDigest, Callable[[], None]] = {}
        self._round = 0
        self._visited = asyncio.Event()
        self._neighbourhood = Neighbourhood(context.settings.peer_id)
        self._neighbourhood_s = -NEIGHBOURS_INTERVAL_S
        self._earshot = Earshot()

    # --- life ---

    def open(self, port: int) -> None:
        """Begin; `port` is where our own peer endpoint listens."""
        self.port = port
        self._started_s = self._context.clock.monotonic_s()
        self.link.open()

    async def close(self) -> None:
        """Stop visiting and forget everybody. Safe to call twice."""
        tasks = [address.task for address in self._addresses.values() if address.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._addresses.clear()
        await self.link.close()

    def add_candidate(self, candidate: Candidate) -> None:
        """Begin to visit an address that discovery, or a peer about itself, named."""
        key = (candidate.host, candidate.port)
        if key in self._addresses or len(self._addresses) >= PEERS_MAX or not self.link.is_open:
            return
        address = self._addresses[key] = _Address(candidate)
        address.task = asyncio.create_task(self._watch(address))
        address.task.add_done_callback(_report_failure)

    def drop_candidate(self, candidate: Candidate) -> None:
        """Visit at once an address that discovery withdrew; a goodbye alone is only a hint."""
        address = self._addresses.get((candidate.host, candidate.port))
        if address is not None:
            address.wake.set()

    def list_unreachable(self) -> list[Candidate]:
        """Return the addresses that were named, and where nobody answers."""
        return [a.candidate for a in self._addresses.values() if a.peer_id is None]

    # --- what fetches use ---

    def register(
        self, blob: BlobDigest, report: Reporter | None, listen: Callable[[], None]
    ) -> None:
        """
        Speak of a blob while it is being fetched, and say when its fetch should look again.

        Args:
            blob: What is fetched.
            report: Says what peers may hear of it; None if they may hear nothing.
            listen: Called when a peer spoke of it, or a place is free where it was waited for.
        """
        if report is not None:
            self._reporters[blob] = report
        self._listeners[blob] = listen

    def unregister(self, blob: BlobDigest) -> None:
        """Stop speaking of a blob; who asks is told what is on the shelf."""
        self._reporters.pop(blob, None)
        self._listeners.pop(blob, None)
        self._earshot.forget(blob)

    def nudge(self, blob: BlobDigest) -> None:
        """Let a blob's fetch look again: somebody it may be waiting for has news, or is free."""
        listen = self._listeners.get(blob)
        if listen is not None:
            listen()

    def note_change(self) -> None:
        """Tell the neighbours soon: something was received, begun or given up."""
        near = self.neighbourhood.near
        for address in self._addresses.values():
            if address.peer_id is None or address.peer_id in near:
                address.wake.set()

    @property
    def neighbourhood(self) -> Neighbourhood:
        """Return who is near, as it was a moment ago."""
        now_s = self._context.clock.monotonic_s()
        if now_s - self._neighbourhood_s >= NEIGHBOURS_INTERVAL_S:
            self._neighbourhood_s = now_s
            peers = self.peers.values()
            fetching = {blob: find_fetching(blob, peers) for blob in self._reporters}
            self._neighbourhood.update(self.peers, fetching)
        return self._neighbourhood

    async def begin_round(self) -> None:
        """Exchange with every peer that is up, once, and wait for it a bounded time."""
        await self._settle()
        self._round += 1
        wanted = self._round
        for address in self._addresses.values():
            address.wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_ROUND_S_MAX):
                while any(
                    a.visits.round < wanted and self._is_home(a) for a in self._addresses.values()
                ):
                    await self._visited.wait()
        # Who fetches the same is known now: not half a second later.
        self._neighbourhood_s = -NEIGHBOURS_INTERVAL_S

    async def ask_about(self, blobs: Iterable[tuple[BlobDigest, Layout]]) -> None:
        """
        Tell every peer, in one exchange, of all blobs that are about to be fetched; hear what
        they have of them. Bounded in time; a peer that does not answer is left to its visits.
        """
        await self._settle()
        entries = [
            SwarmEntry(
                blob,
                layout.id,
                Bitfield(layout.chunk_count),
                Bitfield(layout.chunk_count),
                is_fetching=True,
                can_fetch_upstream=True,
            )
            for blob, layout in blobs
        ]
        message = Exchange(self.hello(), self.port, tuple(entries[:ENTRIES_PER_EXCHANGE_MAX]))
        await asyncio.gather(*(self._ask_peer(peer, message) for peer in list(self.iter_up())))

    def is_mine(self, blob: BlobDigest) -> bool:
        """Return whether the first chunk of a blob is ours among those that are fetching it."""
        own_id = self._context.settings.peer_id
        members = [
            peer.peer_id
            for peer in self.iter_up()
            if (entry := peer.find_entry(blob)) is not None and entry.is_fetching
        ]
        return find_owner(blob, 0, [own_id, *members]) == own_id

    def has_whole(self, blob: BlobDigest) -> bool:
        """Return whether a peer that is up said that it holds all of a blob."""
        said = (peer.find_entry(blob) for peer in self.iter_up())
        return any(entry is not None and entry.have.is_full() for entry in said)

    def iter_up(self) -> Iterable[Peer]:
        """Iterate over the peers that answer and are not banned."""
        banned = self._context.blame.find_banned(now_s=self._context.clock.monotonic_s())
        peers = self.peers.values()
        return (p for p in peers if p.peer_id not in banned) if banned else peers

    def iter_heard(self, blob: BlobDigest) -> Iterable[Peer]:
        """Iterate over those of them whose word on a blob counts."""
        now_s, hood = self._context.clock.monotonic_s(), self.neighbourhood
        banned = self._context.blame.find_banned(now_s=now_s)
        return self._earshot.find(blob, self.peers, banned, hood, now_s=now_s)

    def is_distrusted(self) -> bool:
        """Return whether most peers have banned us: a disk or a memory of ours is damaged."""
        peers = list(self.iter_up())
        return sum(peer.bans_us for peer in peers) > max(1, len(peers) / 2)

    def _is_banned(self, peer_id: str) -> bool:
        now_s = self._context.clock.monotonic_s()
        return self._context.blame.find_ban(peer_id, now_s=now_s) is not None

    # --- what the peer endpoint uses ---

    def hello(self) -> Hello:
        """Return who we are."""
        settings = self._context.settings
        return Hello(settings.peer_id, settings.name, __version__, ("chunks", "swarm"))

    async def answer(self, exchange: Exchange, remote_host: str) -> Exchange:
        """Take in what a peer says, and say what we have of the same blobs."""
        hello = exchange.hello
        if hello.peer_id != self._context.settings.peer_id and exchange.port:
            introduced = Candidate(remote_host, exchange.port, "introduced")
            self.add_candidate(introduced)
            self._meet(hello, introduced)
            if self._lives_at(hello.peer_id, remote_host):
                self._hear(hello.peer_id, exchange.entries)
                if self._reporters.keys() <= {entry.blob for entry in exchange.entries}:
                    # Who asks about something else does not hear our news.
                    self._note_visitor(hello.peer_id)
                if (known := self.peers.get(hello.peer_id)) is not None:
                    known.bans_us = exchange.is_banned
        ours = await self._our_side([entry.blob for entry in exchange.entries])
        return replace(ours, is_banned=self._is_banned(hello.peer_id))

    # --- one task for each address ---

    async def _watch(self, address: _Address) -> None:
        """Exchange often while there is something to say, now and then while there is not."""
        while True:
            number, answered = self._round, None
            begun_s = self._context.clock.monotonic_s()
            try:
                address.peer_id = await self._visit(address)
                answered = number
                if address.peer_id == self._context.settings.peer_id:
                    return  # it is ourselves
            except P2PCacheError as error:
                log.debug("%s: %s", address.url, error)
                if self._context.clock.monotonic_s() - begun_s > STOOD_STILL_S:
                    address.wake.set()  # the silence was ours
                else:
                    self._note_silence(address, is_gone=isinstance(error, PeerGoneError))
                    address.peer_id = None
            finally:
                address.visits.note_visit(answered, now_s=self._context.clock.monotonic_s())
                self._visited.set()
                self._visited = asyncio.Event()
            if address.peer_id is None and self._is_forgotten(address):
                del self._addresses[address.key]
                return
            await self._pause(address)

    async def _visit(self, address: _Address) -> str:
        """Ask who is there; exchange, unless it is the second address of a peer we know."""
        entries: tuple[SwarmEntry, ...] = ()
        begun_s, is_exchange = self._context.clock.monotonic_s(), True
        if address.peer_id is not None and not self._is_home(address):
            hello = await self.link.greet(address.url)
            is_exchange = False
        else:
            ours = await self._our_side(list(self._reporters))
            ours = replace(ours, is_banned=self._is_banned(address.peer_id or ""))
            self._context.exchanges_begun += 1
            theirs = await self.link.exchange(address.url, ours)
            hello, entries = theirs.hello, theirs.entries
            if (known := self.peers.get(hello.peer_id)) is not None:
                known.bans_us = theirs.is_banned
        if hello.peer_id != self._context.settings.peer_id:
            self._meet(hello, address.candidate)
            peer = self.peers.get(hello.peer_id)
            # An answer at a second address does not keep a dead first one in use.
            if peer is not None and (peer.host, peer.port) == address.key:
                peer.last_seen_s = self._context.clock.monotonic_s()
            if peer is not None and is_exchange:
                peer.answered_s = begun_s
            self._hear(hello.peer_id, entries)
        return hello.peer_id

    async def _pause(self, address: _Address) -> None:
        interval_s = find_pause_s(
            self.neighbourhood,
            address.peer_id if self._is_home(address) else None,
            is_busy=bool(self._reporters),
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await address.wake.wait()
        # Anew after each visit to us: who visits us meanwhile knows what we know. Not for ever:
        # whether it can still be reached, only a visit of ours tells.
        visits, clock, visited_s = address.visits, self._context.clock, float("nan")
        while visits.visited_s != visited_s and not visits.is_due(now_s=clock.monotonic_s()):
            visited_s = visits.visited_s
            wait_s = visits.find_wait_s(
                self.neighbourhood,
                has_smaller_id=self._context.settings.peer_id < (address.peer_id or ""),
                current_round=self._round,
                now_s=clock.monotonic_s(),
            )
            await asyncio.sleep(wait_s)
        address.wake.clear()

    def _note_visitor(self, peer_id: str) -> None:
        """Count an exchange that a peer began like one that we began."""
        peer = self.peers.get(peer_id)
        address = None if peer is None else self._addresses.get((peer.host, peer.port))
        if peer is not None and address is not None and address.peer_id == peer_id:
            address.visits.note_visitor(now_s=self._context.clock.monotonic_s())

    async def _settle(self) -> None:
        """Wait until every address was visited once, SETTLE_S after start at most."""
        left_s = self._started_s + SETTLE_S - self._context.clock.monotonic_s()
        if left_s <= 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                while any(address.visits.round < 0 for address in self._addresses.values()):
                    await self._visited.wait()

    async def _ask_peer(self, peer: Peer, message: Exchange) -> None:
        self._context.exchanges_begun += 1
        try:
            self._hear(peer.peer_id, (await self.link.exchange(peer.url, message)).entries)
        except P2PCacheError as error:
            log.debug("peer %s: %s", peer.name, error)

    async def _our_side(self, blobs: list[BlobDigest]) -> Exchange:
        idle = [blob for blob in blobs if blob not in self._reporters]
        entries = await self._describe(idle) if idle else []
        reports = [self._reporters[blob]() for blob in blobs if blob in self._reporters]
        now_s = self._context.clock.monotonic_s()
        entries += [
            add_crew(entry, self.neighbourhood, self.peers, now_s=now_s)
            for entry in reports
            if entry is not None
        ]
        return Exchange(self.hello(), self.port, tuple(entries))

    # --- the table ---

    def _meet(self, hello: Hello, candidate: Candidate) -> None:
        """Put a peer into the table. One that has several addresses keeps the first."""
        place = (candidate.host, candidate.port)
        for other in list(self.peers.values()):
            if (other.host, other.port) == place and other.peer_id != hello.peer_id:
                self._drop(other)
        peer = self.peers.get(hello.peer_id)
        if peer is None and len(self.peers) < PEERS_MAX:
            peer = Peer(hello.peer_id, hello.name, *place, hello.version, candidate.via)
            peer.last_seen_s = self._context.clock.monotonic_s()
            self.peers[hello.peer_id] = peer
            log.info("peer %s found at %s:%s (%s)", hello.name, *place, candidate.via)
        if peer is not None:
            peer.name, peer.version = hello.name, hello.version
            if peer.via == "introduced":
                peer.via = candidate.via

    def _hear(self, peer_id: str, entries: Iterable[SwarmEntry]) -> None:
        peer = self.peers.get(peer_id)
        if peer is None:
            return
        now_s = self._context.clock.monotonic_s()
        may_ask = is_worth_a_look(peer, len(self.peers), limits=self._context.limits)
        for entry in entries:
            is_news = peer.hear(entry, now_s=now_s)
            self._earshot.note(entry.blob, peer)
            hear_crew(entry, self.neighbourhood, self.peers, now_s=now_s)
            if is_news and may_ask:
                self.nudge(entry.blob)

    def _is_home(self, address: _Address) -> bool:
        """Return whether a peer of the table is reached at this address."""
        return any((p.host, p.port) == address.key for p in self.peers.values())

    def _lives_at(self, peer_id: str, host: str) -> bool:
        """Return whether a host may speak for a peer: it answered there, or came from there."""
        hosts = {a.candidate.host for a in self._addresses.values() if a.peer_id == peer_id}
        peer = self.peers.get(peer_id)
        return host in hosts or (peer is not None and peer.host == host)

    def _note_silence(self, address: _Address, *, is_gone: bool) -> None:
        """Expect nothing of a peer where nobody listens; drop one that was silent too long."""
        now_s = self._context.clock.monotonic_s()
        for peer in list(self.peers.values()):
            is_here = (peer.host, peer.port) == address.key
            if is_here and is_gone:
                peer.is_gone = True
                for listener in self._listeners.values():
                    listener()
            if is_here and now_s - peer.last_seen_s >= PEER_SILENCE_S:
                self._drop(peer)

    def _is_forgotten(self, address: _Address) -> bool:
        """Return whether only a peer's own word named an address, and nobody is there."""
        return address.candidate.via == "introduced" and not self._is_home(address)

    def _drop(self, peer: Peer) -> None:
        """Take a peer out of every plan; its address goes on being visited."""
        self.peers.pop(peer.peer_id, None)
        log.info("peer %s at %s:%s is gone", peer.name, peer.host, peer.port)
        for listener in self._listeners.values():
            listener()


def _report_failure(task: asyncio.Task[None]) -> None:
    """Log a fault of ours that ended a visit; peers cannot cause one."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("visiting a peer failed", exc_info=error)
