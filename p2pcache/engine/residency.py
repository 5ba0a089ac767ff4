"""
Owns the answer to a scheduler: how much of a model is here, where the rest is, how long it takes.

Knows nothing of HTTP; store/lookup.py looks, core/ computes, this brings them together.
Invariants: the hub is never asked, but by learn(); a look waits for no write to the index and for
no bulk thread; of what is not public the peers hear nothing.
Source: design.md §8 (residency); docs/decisions/0023-residency.md.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.digest import BlobDigest
from p2pcache.core.eviction import Step
from p2pcache.core.forecast import forecast_running, forecast_start
from p2pcache.core.holdings import Eta, HoldingsAnswer, HoldingsQuestion
from p2pcache.core.residency import State
from p2pcache.core.selection import get_selection
from p2pcache.engine.fetches import ActiveFetch
from p2pcache.engine.holdings import Holdings, PeerHolding
from p2pcache.engine.speeds import ALL, Speeds
from p2pcache.engine.weighing import Weighing
from p2pcache.errors import DaemonBusyError
from p2pcache.store.lookup import Look, Question, ResidencyReader

if TYPE_CHECKING:
    from p2pcache.engine.cache import Cache

T = TypeVar("T")

# A model that was here before its heads were of interest: they are read now, once, and who asks
# first waits so long for that.
CATCH_UP_S = 1.0
# Who waits for a model looks this often, and whenever a file became whole.
WAIT_LOOK_S = 1.0
# Files become whole in bursts; looks come at this distance at least.
WAIT_PAUSE_S = 0.1
# Long polls at once: one for each pod of a large node, and then some.
WAITERS_MAX = 256


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What is known of a snapshot. `missing_from_peers`: of the missing bytes, those that a peer
    holds; `eta`: None where no rate was measured; `peers`: None where they were not asked;
    `evictions`: what a pull would take out for it.
    """

    look: Look
    disk_free: int
    fits_disk: bool
    missing_from_peers: int
    eta: Eta | None
    evictions: tuple[Step, ...] = ()
    peers: tuple[PeerHolding, ...] | None = None


class Residencies:
    """Answers about residency. Event loop only; open() before use."""

    def __init__(self, cache: Cache) -> None:
        context = cache.context
        self._cache = cache
        self._context = context
        self.weighing = Weighing(context, cache.swarm)
        self._holdings = Holdings(context, cache.swarm)
        self._speeds = Speeds(context, cache.fetches.iter_active)
        # One thread of its own: neither fsyncs of the index nor hashing hold it up.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="residency")
        self._reader: ResidencyReader | None = None
        self._waiter_count = 0
        self._change = asyncio.Event()

    def open(self) -> None:
        """Begin to measure rates, and to notice files that become whole."""
        shelf, before = self._cache.shelf, self._cache.shelf.on_put

        def note_whole(blob: BlobDigest) -> None:
            before(blob)
            self.weighing.note_whole(blob)
            self._change.set()
            self._change = asyncio.Event()

        shelf.on_put = note_whole
        self._speeds.open()

    async def close(self) -> None:
        """Stop. Safe to call twice."""
        await self._speeds.close()
        await self._holdings.close()
        await self.weighing.close()
        if self._reader is not None:
            await self._in_thread(self._reader.close)
            self._reader = None
        self._thread.shutdown()

    # --- looking ---

    async def look(self, question: Question) -> Look | None:
        """
        Look at what is here; None when nothing is known of the model.

        Raises:
            InputError: No file matches the patterns.
            StoreError: The index cannot be read.
        """
        look = await self._in_thread(self._look, question)
        if look is None or not look.unread:
            return look
        here = [blob for blob in look.unread if str(blob) in look.facts.proven]
        for blob in here:
            self.weighing.note_whole(blob)
        if here:
            await self.weighing.catch_up(CATCH_UP_S)
            return await self._in_thread(self._look, question)
        return look

    async def find(self, question: Question, *, is_cluster: bool = False) -> Finding | None:
        """
        Answer a question; None when nothing is known of the model.

        Args:
            question: Which model, which files of it.
            is_cluster: Ask every peer, whether something is missing here or not.

        Raises:
            InputError: No file matches the patterns.
            StoreError: The disk failed.
        """
        look = await self.look(question)
        return None if look is None else await self.judge(question, look, is_cluster=is_cluster)

    async def judge(self, question: Question, look: Look, *, is_cluster: bool = False) -> Finding:
        """
        Add to a look that was just taken what it alone does not tell: peers, time, room.

        Raises:
            StoreError: The disk failed.
        """
        if look.residency.state is State.RESIDENT and look.path is None:
            # Links may be missing; the cache makes them.
            await self._cache.find_path(look.snapshot)
            again: Look | None = await self._in_thread(self._look, question)
            look = again or look
        peers = await self._ask_peers(look, question, is_cluster=is_cluster)
        fits, evictions = await self._forecast_room(look)
        from_peers = self._count_at_peers(look, peers or ())
        return Finding(
            look,
            shutil.disk_usage(self._context.settings.store).free,
            fits,
            from_peers,
            self._forecast(look, from_peers),
            evictions,
            None if not is_cluster else tuple(peers or ()),
        )

    async def wait(
        self, question: Question, timeout_s: float, *, is_cluster: bool = False
    ) -> Finding | None:
        """
        Return once a model is resident, or as it is when the time is over.

        Raises:
            DaemonBusyError: Too many wait.
            InputError, StoreError: As find().
        """
        if self._waiter_count >= WAITERS_MAX:
            raise DaemonBusyError(f"{WAITERS_MAX} wait for models, the most there may be.")
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        self._waiter_count += 1
        try:
            while True:
                change = self._change
                look = await self.look(question)
                is_over = loop.time() >= end_s
                is_there = look is not None and look.residency.state is State.RESIDENT
                if is_over or is_there:
                    return await self.find(question, is_cluster=is_cluster)
                await asyncio.sleep(min(WAIT_PAUSE_S, max(0.0, end_s - loop.time())))
                try:
                    async with asyncio.timeout(min(WAIT_LOOK_S, max(0.0, end_s - loop.time()))):
                        await change.wait()
                except TimeoutError:
                    continue
        finally:
            self._waiter_count -= 1

    async def learn(self, question: Question, credentials: Credentials) -> None:
        """
        Ask the hub what a model is: its commit, its files, and the heads of its weights.

        Raises:
            NotFoundError, SourceError: The hub does not say.
            InputError: No file matches the patterns.
            StoreError: The disk failed.
        """
        resolved = await self._cache.librarian.resolve(question.reference, credentials)
        snapshot = resolved.snapshot
        is_public = await self._cache.access.check_may_read(snapshot, credentials)
        chosen = get_selection(snapshot, question.include, question.exclude).chosen
        asker = ANONYMOUS if is_public else credentials
        await self.weighing.learn(snapshot, chosen, asker)

    def _look(self, question: Question) -> Look | None:
        """Look, in the thread of its own."""
        if self._reader is None:
            self._reader = ResidencyReader(self._context.settings.store)
        now_s = self._context.clock.monotonic_s()
        is_damaged = self._cache.checkup.healer.is_damaged
        return self._reader.look(question, now_s=now_s, is_damaged=is_damaged)

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # --- peers ---

    async def answer(self, question: HoldingsQuestion) -> HoldingsAnswer:
        """Say what a peer may have of some blobs, and when the rest will be here."""
        held = await self._in_thread(self._find_held, question.blobs)
        for blob, _ in question.blobs:
            active = self._cache.fetches.find(blob)
            if active is not None and active.is_open.is_set() and blob not in held:
                state = active.fetch.state
                if state.order.is_public:
                    held[blob] = state.order.layout.measure(state.find_shareable())
        counted = [min(held.get(blob, 0), size) for blob, size in question.blobs]
        missing = sum(size for _, size in dict(question.blobs).items()) - sum(
            min(held.get(blob, 0), size) for blob, size in dict(question.blobs).items()
        )
        return HoldingsAnswer(tuple(counted), self._forecast_for(question, missing))

    def _find_held(self, blobs: tuple[tuple[BlobDigest, int], ...]) -> dict[BlobDigest, int]:
        if self._reader is None:
            self._reader = ResidencyReader(self._context.settings.store)
        return self._reader.find_held(blobs)

    def _forecast_for(self, question: HoldingsQuestion, missing_bytes: int) -> Eta | None:
        active = [a for blob, _ in question.blobs if (a := self._cache.fetches.find(blob))]
        if active:
            return self._forecast_active(active, missing_bytes)
        return forecast_start([(missing_bytes, self._speeds.read("upstream"))])

    async def _ask_peers(
        self, look: Look, question: Question, *, is_cluster: bool
    ) -> list[PeerHolding] | None:
        """Ask the peers for what nobody fetches here; None when there is nothing to ask."""
        if not look.facts.is_public:
            return None
        blobs = {entry.digest: entry.size_bytes for entry in look.files}
        if not is_cluster:
            blobs = {
                blob: blobs[blob]
                for blob, presence in look.presences.items()
                if not presence.is_whole and self._cache.fetches.find(blob) is None
            }
        if not blobs:
            return None
        key = look.snapshot.id, question.include, question.exclude, is_cluster
        return await self._holdings.ask(key, list(blobs.items()), is_patient=is_cluster)

    def _count_at_peers(self, look: Look, peers: Sequence[PeerHolding]) -> int:
        """Return how many of the missing bytes a peer holds, by what the swarm knows."""
        if not look.facts.is_public:
            return 0
        sizes = {entry.digest: entry.size_bytes for entry in look.files}
        total = 0
        for blob, presence in look.presences.items():
            missing = 0 if presence.is_whole else sizes[blob] - presence.held_bytes
            if missing <= 0:
                continue
            active = self._cache.fetches.find(blob)
            if active is not None and active.is_open.is_set():
                total += min(missing, self._count_in_swarm(blob, active))
                continue
            # Which chunks a peer has of a part is not asked: taken to be those that miss here.
            held = [h.held.get(blob, 0) for h in peers if h.held is not None]
            total += min(missing, max(held, default=0))
        return total

    def _count_in_swarm(self, blob: BlobDigest, active: ActiveFetch) -> int:
        state = active.fetch.state
        held = None
        for peer in self._cache.swarm.iter_up():
            entry = peer.find_entry(blob)
            if entry is None or peer.is_gone or entry.layout != state.order.layout.id:
                continue
            held = entry.have.copy() if held is None else held | entry.have
        return 0 if held is None else state.order.layout.measure(held & state.missing)

    # --- time and room ---

    def _forecast(self, look: Look, from_peers: int) -> Eta | None:
        missing = look.residency.bytes_missing
        fetches = self._cache.fetches
        active = [a for blob in look.presences if (a := fetches.find(blob)) is not None]
        if active and missing:
            return self._forecast_active(active, missing)
        needs = [
            (from_peers, self._speeds.read("peer")),
            (missing - from_peers, self._speeds.read("upstream")),
        ]
        return forecast_start(needs)

    def _forecast_active(self, active: list[ActiveFetch], missing_bytes: int) -> Eta | None:
        """Estimate what arrives now: of all that arrives, its part of the files."""
        is_open = [a for a in active if a.is_open.is_set()]
        all_count = sum(a.is_open.is_set() for a in self._cache.fetches.iter_active())
        share = len(is_open) / all_count if all_count else 1.0
        # Off the wire, though their chunk is not whole yet.
        under_way = sum(a.fetch.partial.count_prefix_bytes() for a in is_open)
        speed = self._speeds.read(ALL).scaled(share or 1.0)
        return forecast_running(max(1, missing_bytes - under_way) if missing_bytes else 0, speed)

    async def _forecast_room(self, look: Look) -> tuple[bool, tuple[Step, ...]]:
        """Return whether a pull would find room, and what would have to go for it."""
        if not look.need_bytes:
            return True, ()
        settings, rooms = self._context.settings, self._cache.space.rooms
        is_alone = not self._cache.space.holds.list_granted()
        if settings.quota_bytes is None and is_alone:
            free = shutil.disk_usage(settings.store).free
            if free - settings.free_floor_bytes >= look.need_bytes:
                return True, ()
        forecast = await rooms.forecast(look.snapshot.id, look.files)
        return forecast.fits, forecast.steps
