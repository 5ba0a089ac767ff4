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
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Iterable

import aiohttp

from p2pcache import __version__
from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import (
    ENTRIES_PER_EXCHANGE_MAX,
    MESSAGE_BYTES_MAX,
    Exchange,
    Hello,
    SwarmEntry,
)
from p2pcache.core.rendezvous import find_owner
from p2pcache.discovery.base import Candidate
from p2pcache.engine.context import Context
from p2pcache.engine.peer import Peer
from p2pcache.errors import (
    P2PCacheError,
    PeerProtocolError,
    PeerRefusedError,
    PeerUnreachableError,
)

log = logging.getLogger(__name__)

# A probe every 2 s and 6 s of patience: a peer that vanished is gone from every plan within 8 s.
PROBE_INTERVAL_S = 2.0
PROBE_TIMEOUT_S = 2.0
PEER_SILENCE_S = 6.0
# While a blob is active, changes are told at most this often, and repeated at least this often.
EXCHANGE_INTERVAL_MIN_S = 0.05
EXCHANGE_INTERVAL_MAX_S = 1.0
# A start waits this long for the first round of exchanges, and no longer.
START_ROUND_S_MAX = 1.0
# mDNS answers within a second; a fetch right after start waits for it once.
SETTLE_S = 1.5
PEERS_MAX = 1024

Reporter = Callable[[], SwarmEntry | None]
Describer = Callable[[list[BlobDigest]], Awaitable[list[SwarmEntry]]]


def is_private_address(host: str) -> bool:
    """Return whether an address belongs to a local network: the only ones we share with."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (address.is_private or address.is_link_local) and not (
        address.is_multicast or address.is_unspecified
    )


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
        self.port = 0
        self._context = context
        self._describe = describe
        self._reporters: dict[BlobDigest, Reporter] = {}
        self._listeners: dict[BlobDigest, Callable[[], None]] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._candidates: dict[tuple[str, int], Candidate] = {}
        self._visited_s: dict[tuple[str, int], float] = {}
        self._greeted: set[tuple[str, int]] = set()
        self._wakes: dict[tuple[str, int], asyncio.Event] = {}
        self._rounds: dict[tuple[str, int], int] = {}
        self._round = 0
        self._visited = asyncio.Event()
        self._started_s = 0.0
        self._session: aiohttp.ClientSession | None = None

    # --- life ---

    def open(self, port: int) -> None:
        """Begin; `port` is where our own peer endpoint listens."""
        self.port = port
        self._started_s = self._context.clock.monotonic_s()
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S),
            headers={"Accept-Encoding": "identity"},
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def close(self) -> None:
        """Stop probing and forget everybody. Safe to call twice."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def add_candidate(self, candidate: Candidate) -> None:
        """Begin to probe an address that discovery named."""
        key = (candidate.host, candidate.port)
        if key in self._tasks or len(self._tasks) >= PEERS_MAX or self._session is None:
            return
        self._candidates[key] = candidate
        self._wakes[key] = asyncio.Event()
        self._rounds[key] = -1
        self._tasks[key] = asyncio.create_task(self._watch(candidate))

    def drop_candidate(self, candidate: Candidate) -> None:
        """Probe at once an address that discovery withdrew; a goodbye alone is only a hint."""
        wake = self._wakes.get((candidate.host, candidate.port))
        if wake is not None:
            wake.set()

    # --- what fetches use ---

    def register(self, blob: BlobDigest, report: Reporter, listen: Callable[[], None]) -> None:
        """Speak of a blob while it is being fetched, and say when a peer spoke of it."""
        self._reporters[blob] = report
        self._listeners[blob] = listen

    def unregister(self, blob: BlobDigest) -> None:
        """Stop speaking of a blob; tells the peers once more, so that they know it is whole."""
        self._reporters.pop(blob, None)
        self._listeners.pop(blob, None)

    def note_change(self) -> None:
        """Tell the peers soon: something was received, begun or given up."""
        for wake in self._wakes.values():
            wake.set()

    async def ask_about(self, blobs: Iterable[tuple[BlobDigest, Layout]]) -> None:
        """
        Tell every peer, in one exchange, of all blobs that are about to be fetched; hear what
        they have of them. Bounded in time; a peer that does not answer is left to its probe.
        """
        settle_s = self._started_s + SETTLE_S - self._context.clock.monotonic_s()
        if settle_s > 0 and self._tasks:
            await self._settle(settle_s)
        entries = [
            SwarmEntry(
                blob,
                layout,
                Bitfield(layout.chunk_count),
                Bitfield(layout.chunk_count),
                is_fetching=True,
                can_fetch_upstream=True,
            )
            for blob, layout in blobs
        ]
        message = Exchange(self.hello(), self.port, tuple(entries[:ENTRIES_PER_EXCHANGE_MAX]))
        await asyncio.gather(*(self._ask_peer(peer, message) for peer in list(self.iter_up())))

    async def _ask_peer(self, peer: Peer, message: Exchange) -> None:
        try:
            answer = await self._request(peer.url, "POST", "/v1/swarm", message.to_json())
            self._hear(peer.peer_id, Exchange.from_json(answer).entries)
        except P2PCacheError as error:
            log.debug("peer %s: %s", peer.name, error)

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

    async def begin_round(self) -> None:
        """Exchange with every peer that is up, once, and wait for it a bounded time."""
        now_s = self._context.clock.monotonic_s()
        settle_s = self._started_s + SETTLE_S - now_s
        self._round += 1
        wanted = self._round
        self.note_change()
        deadline_s = max(settle_s, 0.0) + START_ROUND_S_MAX
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                if settle_s > 0 and self._tasks:
                    await self._settle(settle_s)
                while any(n < wanted for key, n in self._rounds.items() if self._is_up_at(key)):
                    await self._visited.wait()

    async def _settle(self, settle_s: float) -> None:
        """Wait until every address was tried once, a second and a half after start at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settle_s):
                while any(number < 0 for number in self._rounds.values()):
                    await self._visited.wait()

    def list_unreachable(self) -> list[Candidate]:
        """Return the configured or announced addresses where nobody answers."""
        return [c for key, c in self._candidates.items() if key not in self._greeted]

    def iter_up(self) -> Iterable[Peer]:
        """Iterate over the peers that answer and are not banned."""
        now_s = self._context.clock.monotonic_s()
        for peer in self.peers.values():
            if peer.is_up and self._context.blame.find_ban(peer.peer_id, now_s=now_s) is None:
                yield peer

    # --- what the peer endpoint uses ---

    def hello(self) -> Hello:
        """Return who we are."""
        settings = self._context.settings
        return Hello(settings.peer_id, settings.name, __version__, ("chunks", "swarm"))

    async def answer(self, exchange: Exchange, remote_host: str) -> Exchange:
        """Take in what a peer says, and say what we have of the same blobs."""
        peer_id = exchange.hello.peer_id
        if peer_id != self._context.settings.peer_id and exchange.port:
            self.add_candidate(Candidate(remote_host, exchange.port, "introduced"))
            self._meet(exchange.hello, remote_host, exchange.port, "introduced")
            self._hear(peer_id, exchange.entries)
        return await self._our_side([entry.blob for entry in exchange.entries])

    async def _our_side(self, blobs: Iterable[BlobDigest]) -> Exchange:
        asked = list(blobs)
        idle = [blob for blob in asked if blob not in self._reporters]
        entries = await self._describe(idle) if idle else []
        reports = [self._reporters[blob]() for blob in asked if blob in self._reporters]
        entries += [entry for entry in reports if entry is not None]
        return Exchange(self.hello(), self.port, tuple(entries))

    # --- asking peers ---

    async def ask(self, peer: Peer, path: str) -> object:
        """
        GET a JSON document of a peer.

        Raises:
            PeerUnreachableError, PeerRefusedError, PeerProtocolError: It gave none.
        """
        return await self._request(peer.url, "GET", path)

    async def _request(
        self, url: str, method: str, path: str, message: object | None = None
    ) -> object:
        assert self._session is not None, "open() comes first"
        try:
            async with self._session.request(
                method, url + path, json=message, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise PeerRefusedError(f"{url}{path} answered {response.status}.")
                body = await response.content.read(MESSAGE_BYTES_MAX)
                while chunk := await response.content.read(MESSAGE_BYTES_MAX):
                    body += chunk
                    if len(body) > MESSAGE_BYTES_MAX:
                        raise PeerProtocolError(f"{url}{path} has no end.")
                return json.loads(body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PeerUnreachableError(f"{url} does not answer ({error!r}).") from error
        except (ValueError, RecursionError) as error:
            raise PeerProtocolError(f"{url}{path} is not JSON.") from error

    # --- one task per address ---

    async def _watch(self, candidate: Candidate) -> None:
        """Exchange often while there is something to say, now and then while there is not."""
        key = (candidate.host, candidate.port)
        while True:
            is_gone = False
            try:
                peer_id = await self._visit(candidate)
                self._greeted.add(key)
                if peer_id is None:
                    return  # it is ourselves
                if candidate.via != "introduced" and peer_id in self.peers:
                    self.peers[peer_id].via = candidate.via
            except P2PCacheError as error:
                log.debug("peer %s:%s: %s", *key, error)
                self._greeted.discard(key)
                is_gone = self._note_silence(key) and candidate.via == "introduced"
            finally:
                self._rounds[key] = max(self._rounds[key], 0)
                self._visited_s[key] = self._context.clock.monotonic_s()
                self._visited.set()
                self._visited = asyncio.Event()
            if is_gone:
                self._forget_candidate(key)
                return
            await self._pause(key)

    def _forget_candidate(self, key: tuple[str, int]) -> None:
        """Stop probing an address that only a peer's own word named, and nobody answers at."""
        del self._tasks[key], self._candidates[key], self._wakes[key]
        del self._rounds[key], self._visited_s[key]

    async def _pause(self, key: tuple[str, int]) -> None:
        wake = self._wakes[key]
        is_busy = bool(self._reporters) and self._is_up_at(key)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXCHANGE_INTERVAL_MAX_S if is_busy else PROBE_INTERVAL_S):
                await wake.wait()
        since_s = self._context.clock.monotonic_s() - self._visited_s.get(key, 0.0)
        await asyncio.sleep(max(0.0, EXCHANGE_INTERVAL_MIN_S - since_s) if is_busy else 0.0)
        wake.clear()

    async def _visit(self, candidate: Candidate) -> str | None:
        key = (candidate.host, candidate.port)
        number = self._round
        host = f"[{candidate.host}]" if ":" in candidate.host else candidate.host
        url = f"http://{host}:{candidate.port}"
        entries: tuple[SwarmEntry, ...] = ()
        is_second_address = key in self._greeted and not self._is_up_at(key)
        if is_second_address:
            hello = Hello.from_json(await self._request(url, "GET", "/v1/hello"))
        else:
            ours = await self._our_side(list(self._reporters))
            answer = await self._request(url, "POST", "/v1/swarm", ours.to_json())
            theirs = Exchange.from_json(answer)
            hello, entries = theirs.hello, theirs.entries
        if hello.peer_id == self._context.settings.peer_id:
            return None
        self._meet(hello, candidate.host, candidate.port, candidate.via)
        peer = self.peers.get(hello.peer_id)
        if peer is not None:
            peer.last_seen_s = self._context.clock.monotonic_s()
        self._hear(hello.peer_id, entries)
        self._rounds[key] = number
        return hello.peer_id

    def _meet(self, hello: Hello, host: str, port: int, via: str) -> None:
        """Put a peer into the table. One that has several addresses keeps the first."""
        for other in list(self.peers.values()):
            if (other.host, other.port) == (host, port) and other.peer_id != hello.peer_id:
                self.drop(other.peer_id)
        peer = self.peers.get(hello.peer_id)
        if peer is None:
            peer = Peer(hello.peer_id, hello.name, host, port, hello.version, via)
            peer.last_seen_s = self._context.clock.monotonic_s()
            self.peers[hello.peer_id] = peer
            log.info("peer %s found at %s:%s (%s)", hello.name, host, port, via)
        peer.name, peer.version = hello.name, hello.version

    def _hear(self, peer_id: str, entries: Iterable[SwarmEntry]) -> None:
        peer = self.peers.get(peer_id)
        if peer is None:
            return
        now_s = self._context.clock.monotonic_s()
        for entry in entries:
            peer.hear(entry, now_s=now_s)
            listener = self._listeners.get(entry.blob)
            if listener is not None:
                listener()

    def _is_up_at(self, key: tuple[str, int]) -> bool:
        return any(p.is_up and (p.host, p.port) == key for p in self.peers.values())

    def _note_silence(self, key: tuple[str, int]) -> bool:
        """Drop the peer at an address once it was silent too long; returns whether it is gone."""
        now_s = self._context.clock.monotonic_s()
        for peer in list(self.peers.values()):
            if (peer.host, peer.port) == key and now_s - peer.last_seen_s >= PEER_SILENCE_S:
                self.drop(peer.peer_id)
        return not self._is_up_at(key)

    def drop(self, peer_id: str) -> None:
        """Take a peer out of every plan; its address goes on being probed."""
        peer = self.peers.pop(peer_id, None)
        if peer is not None:
            peer.is_up = False
            log.info("peer %s at %s:%s is gone", peer.name, peer.host, peer.port)
            for listener in self._listeners.values():
                listener()
