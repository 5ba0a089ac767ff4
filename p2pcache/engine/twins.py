"""
Owns taking chunks of a blob from other files that are here, instead of fetching them.

Knows nothing of planning: chunks under consideration count as asked for until they are taken or
given back.
Invariants: a chunk whose digest a table promises is taken only if the copy has that digest; one
that is taken on likeness alone, or out of a restricted blob, is given to nobody before the proof,
and is the first to be dropped when the proof fails; a body that has begun never meets a chunk
that has to wait for the proof.
Source: design.md §4 ("copied from it, never downloaded again"); docs/decisions/0010.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.fetchevents import ChunkStored
from p2pcache.core.layout import FIXED_LAYOUT
from p2pcache.core.likeness import FIRST_PROBES, Likeness, Place, find_likenesses
from p2pcache.core.tensors import TensorMap
from p2pcache.engine.context import Context
from p2pcache.engine.fetchstate import FetchState
from p2pcache.engine.layouts import LOOK_INTERVAL_S, FoundLayout, Layouts
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import P2PCacheError, StoreError, UpstreamRateLimitedError
from p2pcache.store.base import BlobFile
from p2pcache.store.bloblist import TwinPlace
from p2pcache.store.disk import CopyPlace
from p2pcache.store.filelayout import find_tensors, read_bytes
from p2pcache.store.index import Index
from p2pcache.store.partial import LIKENESS_SOURCE, FilePartial
from p2pcache.transfer.upstream import UpstreamSource

log = logging.getLogger(__name__)

# Files whose heads are read for likeness: the shards of a few models. A vocabulary makes a head
# long, and nothing is fetched meanwhile: after a while those must do that were read.
DONORS_MAX = 64
HEADS_S_MAX = 2.0
# Chunks looked up in one go: other questions to the index wait meanwhile.
LOOKUP_CHUNKS_MAX = 512
# Peers asked for their table; the second one if the first gives none.
TABLE_PEERS_MAX = 2
# Probes under way at once: a share of what one blob may ask of the hub.
PROBES_INFLIGHT_MAX = 4
# A hub that fails is not asked for more; whoever fetches the chunks has the patience.
PROBE_FAILURES_MAX = 3
# Chunks that are copied on likeness hold a reader up until the proof. Below this share of what was
# looked at, it is served sooner if all is fetched.
READER_SHARE_MIN = 0.5
# Marks chunks under consideration among those that are in flight.
HERE = "here"


@dataclass(frozen=True, slots=True)
class _Twin:
    """A chunk, and where its bytes may be: in another blob, at an offset."""

    chunk_index: int
    blob: BlobDigest
    offset: int
    expected: ChunkDigest | None
    source_id: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the file that may have a twin, and those of its chunks that are wanted."""

    likeness: Likeness
    chunk_indexes: tuple[int, ...]


class Twins:
    """One fetch's search for its chunks in what is here. Event loop only; find(), then take()."""

    def __init__(
        self,
        context: Context,
        swarm: Swarm,
        state: FetchState,
        partial: FilePartial,
        on_change: Callable[[], None],
    ) -> None:
        self._context = context
        self._swarm = swarm
        self._state = state
        self._partial = partial
        self._on_change = on_change
        self._layouts = Layouts(context, swarm)
        self._source = UpstreamSource(
            state.order.location,
            context.upstream_pool,
            on_answer=context.budget.note_bulk_answer,
        )
        self._is_stopped = False
        self._promised: list[_Twin] = []
        self._likely: list[_Part] = []
        self._probe_failures = 0

    async def find(self, found: FoundLayout) -> None:
        """Look for twins, and keep the planner from the chunks that may have one."""
        state = self._state
        if state.order.layout.chunk_count < 2 or not state.missing:
            return
        known = await self._find_promised()
        if state.streaming_count == 0 and any(i not in known for i in state.missing):
            await self._find_likely(found, known)
        for twin in self._promised:
            state.machine.note_asked(twin.chunk_index, HERE)
        for part in self._likely:
            for index in part.chunk_indexes:
                state.machine.note_asked(index, HERE)
        # From now on, not from the first step of take(): hope must not end in between.
        state.is_looking_here = bool(state.machine.asked)
        is_restricted = any(twin.source_id == LIKENESS_SOURCE for twin in self._promised)
        state.is_guessing = is_restricted or bool(self._likely)

    async def take(self) -> None:
        """Copy what is promised, then what a look at the hub's bytes confirms."""
        try:
            await self._copy(self._promised)
            await self._take_likely()
        except StoreError as error:
            self._state.failure = error
        except Exception:
            # What was not copied is fetched.
            log.exception("looking for %s in files here failed", self._state.order.location.what)
        finally:
            self._source.close()
            self._state.is_looking_here = self._state.is_guessing = False
            for index in list(self._state.machine.asked):
                self._state.machine.note_answered(index, HERE)
            self._on_change()

    def stop(self) -> None:
        """End soon: take() returns once no thread of it writes any more."""
        self._is_stopped = True
        self._source.close()

    # --- promised by a table ---

    async def _find_promised(self) -> set[int]:
        """Find twins by digest; returns the chunks whose digest is known."""
        state, order = self._state, self._state.order
        count, _ = await self._context.index.call(lambda index: index.blobs.measure())
        peers = [
            (len(entry.have), peer.peer_id, peer)
            for peer in (self._swarm.iter_up() if order.is_public and count else ())
            if (entry := peer.find_entry(order.blob)) is not None
            and entry.layout == order.layout.id
            and entry.have
        ]
        for _, peer_id, peer in sorted(peers, key=lambda p: (-p[0], p[1]))[:TABLE_PEERS_MAX]:
            table = await self._layouts.try_get_table(peer, order)
            if table is not None and table.layout == order.layout:
                known = [
                    i for i in state.missing - state.machine.inflight if table.find(i) is not None
                ]
                self._promised = await self._look_up(table, known, peer_id)
                return set(known)
        return set()

    async def _look_up(self, table: ChunkTable, known: list[int], peer_id: str) -> list[_Twin]:
        twins: list[_Twin] = []
        for start in range(0, len(known), LOOKUP_CHUNKS_MAX):
            batch = known[start : start + LOOKUP_CHUNKS_MAX]

            def look_up(index: Index, batch: list[int] = batch) -> list[TwinPlace]:
                return index.blobs.find_twins(table, batch)

            for place in await self._context.index.call(look_up):
                index, expected = place.chunk_index, table.find(place.chunk_index)
                # Whoever says that public content has a chunk of a restricted blob learns nothing
                # of it from us before the hub's digest says so too.
                source_id = peer_id if place.is_public else LIKENESS_SOURCE
                twins.append(_Twin(index, place.blob, place.offset, expected, source_id))
        return twins

    # --- likely by the names of tensors ---

    async def _find_likely(self, found: FoundLayout, known: set[int]) -> None:
        """Compare the names of tensors with those of files that are here."""
        order = self._state.order
        if order.layout.name == FIXED_LAYOUT:
            return
        size_bytes = order.layout.size_bytes
        blobs = await self._context.index.call(
            lambda index: index.blobs.list_with_tensors(size_bytes, DONORS_MAX)
        )
        here = await self._context.in_bulk(self._read_heads, blobs) if blobs else {}
        wanted = found.tensors if here else None
        if here and wanted is None and 0 in self._state.have:
            wanted = await self._context.in_bulk(self._read_own_head)
        if here and wanted is None:
            wanted = await self._try_read_head()
        if wanted is None or wanted.layout() != order.layout:
            return
        is_free = self._state.missing - self._state.machine.inflight
        for likeness in find_likenesses(wanted, here, random=self._context.random):
            last = order.layout.index_at(likeness.start + likeness.length - 1)
            chunks = range(order.layout.index_at(likeness.start), last + 1)
            free = tuple(i for i in chunks if i in is_free and i not in known)
            if free:
                self._likely.append(_Part(likeness, free))

    def _read_heads(self, blobs: Sequence[BlobDigest]) -> dict[BlobDigest, TensorMap]:
        heads: dict[BlobDigest, TensorMap] = {}
        clock = self._context.clock
        until_s = clock.monotonic_s() + HEADS_S_MAX
        for blob in blobs:
            file = self._try_open(blob) if clock.monotonic_s() < until_s else None
            if file is None:
                continue
            try:
                tensors = find_tensors(file.fd, file.stamp.size_bytes)
            except OSError:
                continue  # a check will say that it cannot be read
            finally:
                os.close(file.fd)
            if tensors is not None:
                heads[blob] = tensors
        return heads

    def _read_own_head(self) -> TensorMap | None:
        """Read the head in the file that is being filled; None when it is not all there."""
        try:
            return find_tensors(self._partial.fd, self._state.order.layout.size_bytes)
        except OSError:
            return None  # whoever needs the chunk says so

    async def _try_read_head(self) -> TensorMap | None:
        try:
            return (await self._layouts.read_head(self._state.order, self._source)).tensors
        except P2PCacheError as error:
            log.debug("no head of %s: %s", self._state.order.location.what, error)
            return None

    async def _take_likely(self) -> None:
        """Look at a few parts; when none is the same, the file only looks alike."""
        first, rest = self._likely[:FIRST_PROBES], self._likely[FIRST_PROBES:]
        slots = asyncio.Semaphore(PROBES_INFLIGHT_MAX)

        async def look(part: _Part) -> Place | None:
            async with slots:
                return await self._look(part)

        async def look_and_take(part: _Part) -> None:
            async with slots:
                place = await self._look(part)
                if place is not None:
                    await self._copy_part(part, place)

        found = zip(first, await asyncio.gather(*map(look, first)), strict=True)
        same = [(part, place) for part, place in found if place is not None]
        if same and self._is_worth_waiting(first, same):
            for part, place in same:
                await self._copy_part(part, place)
            await asyncio.gather(*map(look_and_take, rest))

    def _is_worth_waiting(
        self, looked_at: Sequence[_Part], same: Sequence[tuple[_Part, Place]]
    ) -> bool:
        """Return whether copies save so much that readers may be held up until the proof."""
        if not self._state.machine.readers:
            return True
        same_bytes = sum(part.likeness.length for part, _ in same)
        return same_bytes >= READER_SHARE_MIN * sum(part.likeness.length for part in looked_at)

    async def _look(self, part: _Part) -> Place | None:
        """Compare a few bytes with the hub's; where nothing is the same, give the chunks back."""
        expected = await self._probe(part.likeness)
        if expected is None:
            return None
        place = await self._context.in_bulk(self._find_same, part.likeness, expected)
        if place is None:
            for index in part.chunk_indexes:
                self._state.machine.note_answered(index, HERE)
            self._on_change()
        return place

    async def _copy_part(self, part: _Part, place: Place) -> None:
        layout = self._state.order.layout
        shift = place.start - part.likeness.start
        await self._copy(
            [
                _Twin(i, place.blob, layout.offset_of(i) + shift, None, LIKENESS_SOURCE)
                for i in part.chunk_indexes
            ]
        )

    async def _probe(self, likeness: Likeness) -> bytes | None:
        """Read a few bytes at the hub; None when it is of no use, or gives none."""
        clock, budget = self._context.clock, self._context.budget
        while True:
            if not self._may_take(LIKENESS_SOURCE) or self._probe_failures >= PROBE_FAILURES_MAX:
                return None
            if budget.may_ask(clock.monotonic_s()):
                break
            await asyncio.sleep(LOOK_INTERVAL_S)
        budget.begin(clock.monotonic_s())
        try:
            return await self._context.on_wire(
                self._source.read_range,
                likeness.probe_start,
                likeness.probe_bytes,
                self._state.order.layout.size_bytes,
                is_upstream=True,
            )
        except P2PCacheError as error:
            log.debug("no probe of %s: %s", self._state.order.location.what, error)
            if isinstance(error, UpstreamRateLimitedError):
                budget.pause(error.retry_after_s, now_s=clock.monotonic_s())
            self._probe_failures += 1
            return None
        finally:
            budget.end()

    def _find_same(self, likeness: Likeness, expected: bytes) -> Place | None:
        for place in likeness.places:
            file = self._try_open(place.blob)
            if file is None:
                continue
            offset = place.start + likeness.probe_start - likeness.start
            try:
                is_same = read_bytes(file.fd, len(expected), offset) == expected
            except OSError:
                is_same = False
            finally:
                os.close(file.fd)
            if is_same:
                return place
        return None

    # --- copying ---

    def _try_open(self, blob: BlobDigest) -> BlobFile | None:
        """Open a file to copy from; one that cannot be opened has nothing to give."""
        try:
            return self._context.store.find_blob(blob)
        except StoreError as error:
            log.debug("%s is not copied from: %s", blob, error)
            return None

    def _may_take(self, source_id: str) -> bool:
        """Return whether a chunk that is that source's word may be copied now."""
        if self._is_stopped or self._state.streaming_count == 0:
            return not self._is_stopped
        # A body has begun: all that it still needs is from trusted sources.
        return self._state.order.trusts_peers and source_id != LIKENESS_SOURCE

    async def _copy(self, twins: Sequence[_Twin]) -> None:
        by_blob: dict[tuple[BlobDigest, str], list[_Twin]] = defaultdict(list)
        for twin in twins:
            by_blob[twin.blob, twin.source_id].append(twin)
        loop = asyncio.get_running_loop()

        def tell(twin: _Twin, is_taken: bool) -> None:
            loop.call_soon_threadsafe(self._take_in, twin, is_taken)

        for (blob, source_id), group in by_blob.items():
            if not self._may_take(source_id):
                continue
            await self._context.in_bulk(self._copy_from, blob, group, tell)

    def _copy_from(
        self, blob: BlobDigest, twins: Sequence[_Twin], tell: Callable[[_Twin, bool], None]
    ) -> None:
        file = self._try_open(blob)
        if file is None:
            return
        try:
            for twin in twins:
                if self._is_stopped:
                    return
                place = CopyPlace(file.fd, twin.offset)
                is_taken = self._partial.copy_chunk(
                    twin.chunk_index, place, twin.expected, twin.source_id
                )
                tell(twin, is_taken)
        finally:
            os.close(file.fd)

    def _take_in(self, twin: _Twin, is_taken: bool) -> None:
        """Count a chunk that a bulk thread has copied."""
        state, index = self._state, twin.chunk_index
        if is_taken and index not in state.have:
            now_s = self._context.clock.monotonic_s()
            state.machine.handle(ChunkStored(index), now_s=now_s)
            state.copied.add(index)
            state.sources[index] = twin.source_id
            state.bytes_from["disk"] += state.order.layout.length_of(index)
            self._context.bytes_counted["disk", "in"] += state.order.layout.length_of(index)
        state.machine.note_answered(index, HERE)
        self._swarm.note_change()
        self._on_change()
