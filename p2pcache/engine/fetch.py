"""
Owns the story of one blob's fetch: fill, prove, publish; and what happens when the proof fails.

Knows nothing of repositories or HTTP clients.
Invariants: nothing unproven is published; what a failed proof leaves in doubt is fetched from
somebody else, and whoever sent it is named once the truth is known.
Source: design.md §5 (④–⑧) and §6; libtorrent's smart ban for telling the liar afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from random import Random

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.fetchevents import ChunkStored
from p2pcache.core.layout import FIXED_LAYOUT, Layout
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.verify import BlobProof, digest_of, verify_chunk
from p2pcache.core.views import UPSTREAM
from p2pcache.engine.context import Context
from p2pcache.engine.dispatch import Dispatcher, RunListeners
from p2pcache.engine.fetchstate import FetchOrder, FetchState, Suspect
from p2pcache.engine.layouts import FoundLayout
from p2pcache.engine.prover import prove
from p2pcache.engine.single import see_through
from p2pcache.engine.swarm import Swarm
from p2pcache.engine.twins import Twins
from p2pcache.errors import IntegrityError, NoSourceError, StoreError
from p2pcache.store.base import FileStamp
from p2pcache.store.disk import store_error
from p2pcache.store.filelayout import find_file_layout, hash_file
from p2pcache.store.partial import LIKENESS_SOURCE, FilePartial
from p2pcache.transfer.peer import thread_buffer

log = logging.getLogger(__name__)

# Makes a file known that was published: its stamp and its chunk table.
Recorder = Callable[[FileStamp, ChunkTable], Awaitable[None]]

# The plan is looked at again this often even when nothing happens, and when the rest of a busy peer
# ends: leases and waits expire.
REPLAN_INTERVAL_S = 0.25
# Peers that fall silent together are back together: a switch, a host that stood still for a
# moment. A pull does not end over that.
HOPE_S = 5.0
# What a power cut may cost: records are made durable this often.
FLUSH_INTERVAL_S = 1.0
# A blob whose proof fails is fetched again, from others; the last time from the hub alone.
PROOF_ATTEMPTS_MAX = 3


class BlobFetch:
    """One blob on its way here: open(), then run() once. Event loop only."""

    def __init__(self, context: Context, swarm: Swarm, order: FetchOrder) -> None:
        self.state = _make_state(context, order)
        self._context = context
        self._swarm = swarm
        self._cut = FoundLayout(order.layout)
        self._partial: FilePartial | None = None
        self._dispatcher: Dispatcher | None = None
        # Until the peers were asked once, and the files here were looked through, nobody knows
        # whether they will be sources.
        self._has_looked_around = False
        # When somebody who could help was last seen.
        self._hoped_s: float | None = None
        self._wake = asyncio.Event()
        self._arrival = asyncio.Event()

    @property
    def blob(self) -> BlobDigest:
        """Return what is being fetched."""
        return self.state.order.blob

    @property
    def layout(self) -> Layout:
        """Return its chunk boundaries."""
        return self.state.order.layout

    @property
    def partial(self) -> FilePartial:
        """Return the file that is being filled; open() comes first."""
        assert self._partial is not None, "open() comes first"
        return self._partial

    def report(self) -> SwarmEntry | None:
        """Return what peers may hear of this blob now."""
        can_fetch = self._dispatcher is not None and self._dispatcher.hopes_for_upstream()
        return self.state.report(can_fetch_upstream=can_fetch)

    def may_stream(self) -> bool:
        """
        Return whether a body may begin now: every byte so far, and every byte that is still to
        come as long as streaming_count is held, is from a trusted source.
        """
        state = self.state
        may_wait_for_proof = state.is_guessing or bool(state.find_likely())
        if state.streaming_count == 0 and (may_wait_for_proof or not self._has_looked_around):
            return False
        if state.order.trusts_peers:
            return True
        if not state.order.trusts_upstream or len(state.find_shareable()) < len(state.have):
            return False
        if state.streaming_count > 0:
            return True
        # A peer that is paused gives no view, and may still be sending what it was asked for.
        machine = state.machine
        if machine.is_anyone_asked():
            return False
        now_s = self._context.clock.monotonic_s()
        return not state.view_peers(self._swarm.iter_up(), now_s=now_s)

    async def wait_for_change(self) -> None:
        """Return when a chunk arrived, a run ended, or the fetch is over."""
        await self._arrival.wait()

    def note_change(self) -> None:
        """Wake the planner, the proof and every reader."""
        self._wake.set()
        self.note_arrival()

    def note_arrival(self) -> None:
        """Wake the proof and every reader: bytes came, and nobody is free to be asked for more."""
        self._arrival.set()
        self._arrival = asyncio.Event()

    def note_reader_moved(self) -> None:
        """Wake the planner alone: what a reader waits for has changed."""
        self._wake.set()

    async def open(self, cut: FoundLayout) -> None:
        """
        Find what an earlier run left, and reserve room for the rest.

        Args:
            cut: Where the blob's chunks begin, and what is known of it by that.

        Raises:
            StoreError: No room, or the disk failed.
        """
        # Not the bytes: a head may have 100 MB, and the fetch hours.
        self._cut = replace(cut, head=b"")
        before = self.state.machine
        self.state = _make_state(self._context, replace(self.state.order, layout=cut.layout))
        self.state.machine.readers = before.readers
        self.state.machine.patience = cut.patience or before.patience
        opened = await see_through(self._open_partial())
        found = opened.snapshot()
        self._hold(found.have)
        self.state.sources = found.sources
        self._context.pace.extra.wanted += self.layout.size_bytes - self.state.held_bytes
        self.state.unchecked = found.have.copy()
        for index, source_id in found.sources.items():
            if source_id == LIKENESS_SOURCE:
                self.state.copied.add(index)
        self.state.bytes_from["disk"] = self.state.held_bytes
        await self._keep_head(cut.head)
        self._dispatcher = Dispatcher(
            self._context,
            self._swarm,
            self.state,
            opened,
            RunListeners(self.note_arrival, self.note_change),
        )

    async def _open_partial(self) -> FilePartial:
        """Open the file; whoever is cancelled meanwhile still has it to close."""
        order = self.state.order
        open_partial = self._context.store.open_partial
        self._partial = await self._context.in_bulk(open_partial, order.blob, order.layout)
        return self._partial

    def _hold(self, chunk_indexes: Iterable[int]) -> None:
        """Count chunks as here that no run brought."""
        now_s = self._context.clock.monotonic_s()
        for index in chunk_indexes:
            self.state.machine.handle(ChunkStored(index), now_s=now_s)

    async def _keep_head(self, head: bytes) -> None:
        """Keep the bytes that told the layout: they are the file's first ones."""
        count = 0
        while count < self.layout.chunk_count and self.layout.span_of(0, count)[1] <= len(head):
            count += 1
        put = partial(_put_head, self.partial, memoryview(head), count)
        await self._context.in_bulk(put)
        for index in range(count):
            if index not in self.state.have:
                length = self.layout.length_of(index)
                self._hold([index])
                self.state.sources[index] = UPSTREAM
                self.state.bytes_from["upstream"] += length
                self._context.bytes_counted["upstream", "in"] += length

    async def run(self, record: Recorder) -> None:
        """
        Fetch what is missing, prove the whole, publish it.

        Args:
            record: Makes known what was published; a file that has its name and is not known
                would be fetched again.

        Raises:
            NoSourceError, SourceError, NotFoundError: Nobody could give what is missing.
            IntegrityError: What they gave is not the blob.
            StoreError: The disk failed or is full.
        """
        assert self._dispatcher is not None, "open() comes first"
        twins = Twins(self._context, self._swarm, self.state, self.partial, self.note_change)
        taking: list[asyncio.Task[None]] = []
        helpers = [
            asyncio.create_task(self._flush_regularly()),
            asyncio.create_task(self._check_earlier_chunks()),
        ]
        report = self.report if self.state.order.is_public else None
        self._swarm.register(self.blob, report, self._wake.set)
        try:
            is_new = not self._swarm.has_whole(self.blob)
            if self.state.order.is_public and self.state.missing and is_new:
                await self._swarm.begin_round()
            await twins.find(self._cut)
            self._has_looked_around = True
            taking.append(asyncio.create_task(twins.take()))
            self.note_change()
            await self._fill_and_publish(self._dispatcher, record)
        finally:
            self._swarm.unregister(self.blob)
            self._context.pace.needs.forget(self.blob)
            twins.stop()
            await see_through(self._wind_up(self._dispatcher, helpers, taking))

    async def _wind_up(
        self,
        dispatcher: Dispatcher,
        helpers: list[asyncio.Task[None]],
        taking: list[asyncio.Task[None]],
    ) -> None:
        """Return once no thread writes any more, and what was written is durable."""
        await dispatcher.stop()
        await asyncio.gather(*taking, return_exceptions=True)
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        self._swarm.note_change()
        self.note_change()
        await self._context.in_bulk(self._flush_quietly)

    async def _fill_and_publish(self, dispatcher: Dispatcher, record: Recorder) -> None:
        attempt = 1
        while attempt <= PROOF_ATTEMPTS_MAX:
            proving = asyncio.create_task(
                prove(self._context, self.partial, self.state.is_checked, self.wait_for_change)
            )
            try:
                await self._fill(dispatcher)
                proof = await proving
            finally:
                proving.cancel()
                await asyncio.gather(proving, return_exceptions=True)
            table = self.partial.snapshot().table
            if proof.is_right():
                self._name_liars(dispatcher, table)
                await see_through(self._publish(proof, table, record))
                return
            likely = self.state.find_likely()
            if likely:
                log.info("%s only looked like a file that is here; fetching the rest", self.blob)
                await self._forget(likely)
                continue
            await self._drop_doubtful(dispatcher, table, attempt)
            # Each of those in doubt gets its chance to be right alone: their number bounds it.
            attempt += 0 if self.state.untried else 1
        raise AssertionError("the last attempt proves or raises")

    async def _publish(self, proof: BlobProof, table: ChunkTable, record: Recorder) -> None:
        publish = partial(self._context.store.publish, is_public=self.state.order.is_public)
        stamp = await self._context.in_bulk(publish, self.partial, proof)
        self.state.is_published = True
        await record(stamp, await self._cut_rightly(table))

    async def _check_earlier_chunks(self) -> None:
        """Hash what an earlier run left: a disk may have changed it, and readers wait for it."""
        state = self.state
        table = self.partial.snapshot().table
        for index in list(state.unchecked):
            expected = table.find(index)
            try:
                is_right = await self._context.in_bulk(_is_right, self.partial, index, expected)
            except StoreError as error:
                state.failure = error
                self.note_change()
                return
            if not is_right:
                log.warning("chunk %d of %s changed on this disk; fetched again", index, self.blob)
                self._context.blame.faults.append(
                    self._context.make_fault(
                        self._context.settings.peer_id,
                        self._context.settings.name,
                        "damaged here",
                        f"Chunk {index} of {_show(state.order)} changed on this disk while "
                        "it was being fetched; it is fetched again.",
                    )
                )
                await self._context.in_bulk(self.partial.forget, [index])
                state.forget(index)
            state.unchecked.discard(index)
            self.note_change()

    async def _fill(self, dispatcher: Dispatcher) -> None:
        """Plan and send until every chunk is here."""
        while self.state.unchecked or not self.state.have.is_full():
            self._wake.clear()
            dispatcher.send_planned()
            self._check_hope(dispatcher)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._find_pause_s()):
                    await self._wake.wait()
        # What is here needs no seeder, however long its proof takes.
        self._context.pace.needs.forget(self.blob)

    def _find_pause_s(self) -> float:
        """Return after how long to look again though nobody says anything."""
        now_s = self._context.clock.monotonic_s()
        return min(REPLAN_INTERVAL_S, self.state.machine.rests.find_next_end_s(now_s=now_s))

    def _check_hope(self, dispatcher: Dispatcher) -> None:
        """Give up when the disk failed, or when nobody who could help is left."""
        state, machine = self.state, self.state.machine
        if state.failure is not None:
            raise state.failure
        now_s = self._context.clock.monotonic_s()
        if machine.is_anyone_asked():
            self._hoped_s = now_s
        is_waiting = not dispatcher.is_idle or state.is_looking_here
        if is_waiting or not machine.patience.is_given_up():
            return
        peers = state.view_peers(self._swarm.iter_heard(self.blob), now_s=now_s)
        for view in machine.view(peers, now_s=now_s):
            is_stalled = view.peer_id in machine.duties.stalled
            can_bring = view.is_fetching and view.can_fetch_upstream and not is_stalled
            if can_bring or view.have & state.missing:
                self._hoped_s = now_s
        is_hopeful = self._hoped_s is not None and now_s - self._hoped_s < HOPE_S
        if is_hopeful or machine.is_anyone_resting(now_s=now_s):
            return
        if state.try_next_sender():
            log.info("%s: asking one of those in doubt for all of it", self.blob)
            return
        error = machine.patience.last_error
        assert error is not None, "giving up follows an error"
        if state.suspects:
            names = ", ".join(sorted({s.source_id for s in state.suspects.values()}))
            raise IntegrityError(
                f"{state.order.location.what}: what peer {names} gave is not the file, and nobody "
                "else has it; ask again when the hub or another peer is there."
            ) from error
        tried = machine.list_tried()
        if not tried:
            raise error
        raise NoSourceError(
            f"Nobody could give all of {state.order.location.what}: {error}",
            tried=(UPSTREAM, *tried),
        ) from error

    async def _drop_doubtful(self, dispatcher: Dispatcher, table: ChunkTable, attempt: int) -> None:
        """The whole did not match: keep what the hub sent, fetch the rest from somebody else."""
        state = self.state
        if state.was_read:
            await self._context.taints.note(self.blob)
        doubtful = [i for i in state.have if state.sources.get(i) != UPSTREAM]
        senders = {state.sources[i] for i in doubtful}
        log.warning("%s does not match its digest; from peers: %s", self.blob, senders or "none")
        if not doubtful and attempt > 1:
            raise IntegrityError(
                f"What the hub sends for {state.order.location.what} is not what it says it is; "
                "try again later, or tell the owner of the repository."
            )
        if not doubtful:
            doubtful = list(state.have)
        if len(senders) == 1 and len(doubtful) == state.have.length:
            what = _show(state.order)
            dispatcher.blame(
                min(senders), "wrong bytes", f"It alone gave {what}, and the whole is wrong."
            )
        for index in doubtful:
            digest = table.find(index)
            if digest is not None and state.sources.get(index) != UPSTREAM:
                state.suspects[index] = Suspect(digest, state.sources[index])
        state.exclude(senders)
        state.asks_peers = attempt < PROOF_ATTEMPTS_MAX - 1 or bool(state.untried)
        await self._forget(doubtful)

    async def _forget(self, chunk_indexes: list[int]) -> None:
        """Take out chunks that the proof put in doubt."""
        # The file first: a chunk that is asked for anew is not written where one is held.
        await self._context.in_bulk(self.partial.forget, chunk_indexes)
        for index in chunk_indexes:
            self.state.forget(index)
        self.state.proof_failures += 1
        self.note_change()

    async def _cut_rightly(self, table: ChunkTable) -> ChunkTable:
        """
        Return the table in the layout that the proven bytes themselves say.

        A peer that said another one cost a detour; what it said, now or to an earlier run, is not
        passed on.
        """
        if self._cut.is_certain:
            return table
        fd, size_bytes = self.partial.fd, self.layout.size_bytes
        try:
            layout = await self._context.in_bulk(find_file_layout, fd, size_bytes)
        except OSError as error:
            raise store_error(error, self.partial.path) from error
        if layout == table.layout:
            return table
        peer_id = self._cut.claimed_by
        if peer_id is not None and table.layout.name != FIXED_LAYOUT:
            # No ban: it may only have passed on what somebody told it.
            detail = f"It cut {_show(self.state.order)} wrongly."
            peer = self._swarm.peers.get(peer_id)
            name = peer_id if peer is None else peer.name
            fault = self._context.make_fault(peer_id, name, "other layout", detail)
            self._context.blame.faults.append(fault)
        right, _ = await self._context.in_bulk(hash_file, fd, self.blob, layout)
        return right if right.is_complete() else table

    def _name_liars(self, dispatcher: Dispatcher, table: ChunkTable) -> None:
        """Now that the truth is known, ban whoever sent a chunk that differs from it."""
        for index, suspect in self.state.suspects.items():
            if table.find(index) != suspect.digest:
                what = f"chunk {index} of {_show(self.state.order)}"
                dispatcher.blame(
                    suspect.source_id, "wrong bytes", f"It sent a wrong {what} with a right claim."
                )

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            await self._context.in_bulk(self._flush_quietly)

    def _flush_quietly(self) -> None:
        """Flush; a disk that fails shows at the next write, where somebody can be told."""
        try:
            self.partial.flush()
        except StoreError as error:
            log.warning("flush of %s failed: %s", self.blob, error)

    def close(self) -> None:
        """Close the partial file."""
        if self._partial is not None:
            self._partial.close()


def _show(order: FetchOrder) -> str:
    """Return what a fault calls a file: anybody on this machine reads the faults."""
    return order.location.what if order.is_public else "a restricted file"


def _is_right(partial: FilePartial, chunk_index: int, expected: ChunkDigest | None) -> bool:
    view = thread_buffer()[: partial.layout.length_of(chunk_index)]
    partial.read_into(partial.layout.offset_of(chunk_index), view)
    return digest_of(view) == expected


def _put_head(partial: FilePartial, head: memoryview, whole_count: int) -> None:
    """Write the chunks that a head covers, and the start of the next one."""
    layout = partial.layout
    for index in range(whole_count):
        offset, length = layout.span_of(index, index)
        view = head[offset : offset + length]
        chunk = verify_chunk(partial.blob, layout, index, view, expected=None, source_id=UPSTREAM)
        partial.put(chunk, UPSTREAM)
    if whole_count < layout.chunk_count:
        rest = head[layout.offset_of(whole_count) :]
        if rest:
            partial.put_prefix(whole_count, rest, 0)


def _make_state(context: Context, order: FetchOrder) -> FetchState:
    return FetchState.of(
        order,
        context.settings.peer_id,
        limits=context.limits,
        pace=context.pace,
        # Ties are broken in every plan: the system's own source would be a system call for each.
        random=Random(context.random.random()),
    )
