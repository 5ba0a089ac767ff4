"""
Owns finding out how a blob that is to be fetched is cut, before its content is here.

Knows nothing of fetching chunks.
Invariants: a layout that the hub's own bytes say is right; one that a peer says is a claim, which
costs a detour at worst, for the whole is proven in any case; one member of a swarm asks the hub
for a head, the others ask that one.
Source: design.md §3 (layout); docs/explanation/storage-design.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.layout import FIXED_LAYOUT, Layout, LayoutId
from p2pcache.core.messages import table_from_json
from p2pcache.core.patience import Patience
from p2pcache.core.tensors import TensorMap, may_have_tensors
from p2pcache.engine.context import Context
from p2pcache.engine.fetchstate import FetchOrder
from p2pcache.engine.heads import Head
from p2pcache.engine.peer import Peer
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import InputError, P2PCacheError, SourceError, UpstreamRateLimitedError
from p2pcache.transfer.upstream import UpstreamSource

log = logging.getLogger(__name__)

# Whoever owns a blob's first chunk reads its head at the hub; the others wait so long for it.
HEAD_LEASE_S = 2.0
# How often the others look whether a peer knows more.
LOOK_INTERVAL_S = 0.05
# A peer's answer with a chunk table; a table of a million chunks takes about a second.
TABLE_TIMEOUT_S = 3.0
# Who has or fetches the blob is asked once, before anybody's word is waited for.
ASK_S_MAX = 1.0
# Peers asked for their table: of a crowd that gives none, each would cost its timeout.
TABLE_PEERS_MAX = 4


@dataclass(frozen=True, slots=True)
class FoundLayout:
    """
    A layout; the head's bytes and tensors if the hub gave them; the peer whose word it is; how
    the hub failed if it gave nothing; whether nothing but the hub's bytes, or the file's name,
    says so.
    """

    layout: Layout
    head: bytes = b""
    tensors: TensorMap | None = None
    claimed_by: str | None = None
    patience: Patience | None = None
    is_certain: bool = False


class Layouts:
    """Finds layouts. Event loop only."""

    def __init__(self, context: Context, swarm: Swarm) -> None:
        self._context = context
        self._swarm = swarm

    async def find(self, order: FetchOrder, path: str) -> FoundLayout:
        """
        Return how a blob is cut: as what is here of it says, as peers say, as the hub's bytes say.

        Args:
            order: What is to be fetched; its layout stands where the format has no tensors, and
                where neither peers nor hub can tell.
            path: The file's name, which tells whether it is worth to look.
        """
        if not may_have_tensors(path, order.layout.size_bytes):
            return FoundLayout(order.layout, is_certain=True)
        kept = await self._context.in_bulk(self._find_kept, order)
        if kept is not None:
            return FoundLayout(kept)
        head = self._context.heads.find(order.blob)
        if head is not None:
            # Read at the hub a moment ago, for what it says of the model; nobody asks twice.
            self._context.heads.forget(order.blob)
            return _cut_at(head, order)
        budget = self._context.budget
        source = UpstreamSource(
            order.location, self._context.upstream_pool, on_answer=budget.note_bulk_answer
        )
        try:
            return await self._ask_around(order, source)
        finally:
            source.close()

    def _find_kept(self, order: FetchOrder) -> Layout | None:
        """Return the layout of an idle partial that holds something."""
        store = self._context.store
        layout = store.find_layout(order.blob)
        if layout is None or layout.size_bytes != order.layout.size_bytes:
            return None
        return layout if store.count_held_bytes(order.blob) else None

    async def _ask_around(self, order: FetchOrder, source: UpstreamSource) -> FoundLayout:
        clock, budget = self._context.clock, self._context.budget
        patience, asked = Patience(), set[str]()
        if order.is_public and not self._list_knowing(order):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_S_MAX):
                    await self._swarm.ask_about([(order.blob, order.layout)])
        lease_ends_s = clock.monotonic_s() + HEAD_LEASE_S
        while True:
            if order.is_public:
                claimed = await self._ask_peers(order, asked)
                if claimed is not None:
                    return claimed
            now_s = clock.monotonic_s()
            is_mine = not order.is_public or self._swarm.is_mine(order.blob)
            may_ask = patience.may_ask(now_s) and budget.may_ask(now_s)
            if may_ask and (is_mine or now_s >= lease_ends_s):
                try:
                    found = await self.read_head(order, source)
                    self._context.heads.forget(order.blob)
                    return found
                except P2PCacheError as error:
                    now_s = clock.monotonic_s()
                    if isinstance(error, UpstreamRateLimitedError):
                        budget.pause(error.retry_after_s, now_s=now_s)
                    patience.note_failure(error, now_s=now_s)
            if patience.is_given_up():
                return FoundLayout(order.layout, patience=patience)
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _ask_peers(self, order: FetchOrder, asked: set[str]) -> FoundLayout | None:
        """Ask who has some of the blob or cuts it at tensors, the fullest first, each once."""
        for peer, layout in self._list_knowing(order):
            if peer.peer_id in asked or len(asked) >= TABLE_PEERS_MAX:
                continue
            if layout == order.layout.id:
                return FoundLayout(order.layout, claimed_by=peer.peer_id)
            asked.add(peer.peer_id)
            table = await self.try_get_table(peer, order)
            if table is not None and table.layout.name != FIXED_LAYOUT:
                return FoundLayout(table.layout, claimed_by=peer.peer_id)
        return None

    def _list_knowing(self, order: FetchOrder) -> list[tuple[Peer, LayoutId]]:
        knowing = []
        for peer in self._swarm.iter_up():
            entry = peer.find_entry(order.blob)
            if entry is None or entry.layout.size_bytes != order.layout.size_bytes:
                continue
            # Who is only about to fetch it names the plain layout for want of a better one.
            if entry.layout.name != FIXED_LAYOUT or entry.have:
                knowing.append((-len(entry.have), peer.peer_id, peer, entry.layout))
        return [(peer, layout) for _, _, peer, layout in sorted(knowing, key=lambda k: k[:2])]

    async def try_get_table(self, peer: Peer, order: FetchOrder) -> ChunkTable | None:
        """Ask a peer for what it knows of a blob's chunks; None when it gives no fitting table."""
        try:
            async with asyncio.timeout(TABLE_TIMEOUT_S):
                path = f"/v1/blobs/{order.blob}/table"
                message = await self._swarm.link.get(peer.url, path)
                table = await self._context.in_bulk(table_from_json, message)
        except (SourceError, InputError, TimeoutError) as error:
            log.debug("peer %s has no table of %s: %s", peer.name, order.blob, error)
            return None
        fits = table.blob == order.blob and table.layout.size_bytes == order.layout.size_bytes
        return table if fits else None

    async def read_head(self, order: FetchOrder, source: UpstreamSource) -> FoundLayout:
        """
        Read the head of a file at the hub.

        Raises:
            SourceError, NotFoundError: The hub does not give it.
        """
        context, size_bytes = self._context, order.layout.size_bytes

        async def read_range(start: int, length: int) -> bytes:
            return await context.on_wire(
                source.read_range, start, length, size_bytes, is_upstream=True
            )

        context.budget.begin(context.clock.monotonic_s())
        try:
            head = await context.heads.read(order.blob, size_bytes, read_range)
        finally:
            context.budget.end()
        return _cut_at(head, order)


def _cut_at(head: Head, order: FetchOrder) -> FoundLayout:
    layout = order.layout if head.tensors is None else head.tensors.layout()
    return FoundLayout(layout, head.content, head.tensors, is_certain=True)
