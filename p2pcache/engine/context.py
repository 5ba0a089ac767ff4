"""
Owns what every part of the engine shares: store, index, clock, threads, blame, counters.

Knows nothing of what the parts do with it.
Invariants: made once at start; parts get it, never each other's internals.
Source: docs/explanation/architecture.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TypeVar

from p2pcache.clock import Clock
from p2pcache.core.pace import Pace
from p2pcache.core.peers import BlameBook, Fault
from p2pcache.core.views import PlannerLimits
from p2pcache.engine.budget import (
    UPSTREAM_REQUESTS_INFLIGHT_MAX as UPSTREAM_REQUESTS_INFLIGHT_MAX,
)
from p2pcache.engine.budget import UpstreamBudget
from p2pcache.engine.caps import Caps
from p2pcache.engine.heads import Heads
from p2pcache.engine.indexthread import IndexThread
from p2pcache.engine.settings import EngineSettings
from p2pcache.engine.taints import Taints
from p2pcache.hubs.base import Hub
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.home import StoreHome
from p2pcache.store.hubtree import HubTree
from p2pcache.transfer.connection import ConnectionPool

T = TypeVar("T")

# Threads with 4 MiB buffers, 128 MB in all. Disk, peers and hub have their own: peers that accept
# and then say nothing would otherwise hold up every file that is opened or hashed.
BULK_THREADS_MAX = 8
PEER_THREADS_MAX = 16


@dataclass(slots=True)
class Context:
    """The shared parts. Event loop only, but for what says otherwise."""

    settings: EngineSettings
    clock: Clock
    home: StoreHome
    store: FileBlobStore
    tree: HubTree
    index: IndexThread
    hub: Hub
    peer_pool: ConnectionPool
    upstream_pool: ConnectionPool
    upstream_is_trusted: bool
    random: Random
    limits: PlannerLimits = field(default_factory=PlannerLimits)
    pace: Pace = field(default_factory=Pace)
    blame: BlameBook = field(default_factory=BlameBook)
    budget: UpstreamBudget = field(default_factory=UpstreamBudget)
    caps: Caps = field(init=False)
    taints: Taints = field(init=False)
    heads: Heads = field(init=False)
    bytes_counted: Counter[tuple[str, str]] = field(default_factory=Counter)
    chunks_rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    exchanges_begun: int = 0
    bulk: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(BULK_THREADS_MAX, thread_name_prefix="bulk")
    )
    peer_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(PEER_THREADS_MAX, thread_name_prefix="peer")
    )
    upstream_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(
            UPSTREAM_REQUESTS_INFLIGHT_MAX, thread_name_prefix="upstream"
        )
    )

    def __post_init__(self) -> None:
        self.caps = Caps(self.settings, self.clock)
        self.taints = Taints(self.index, self.clock)
        self.heads = Heads(self)

    async def in_bulk(self, work: Callable[..., T], *arguments: object) -> T:
        """Run work that waits for a disk or hashes, in a bulk thread."""
        return await asyncio.get_running_loop().run_in_executor(self.bulk, work, *arguments)

    async def on_wire(self, work: Callable[..., T], *arguments: object, is_upstream: bool) -> T:
        """Run work that waits for a source, in a thread for that kind of source."""
        loop = asyncio.get_running_loop()
        if not is_upstream:
            return await loop.run_in_executor(self.peer_threads, work, *arguments)
        return await loop.run_in_executor(
            self.upstream_threads, partial(self.budget.guard, work, *arguments)
        )

    def close_threads(self) -> None:
        """Wait for the threads' work and end them; the event loop is done with them."""
        for threads in (self.peer_threads, self.upstream_threads, self.bulk):
            threads.shutdown()

    def make_fault(self, source_id: str, source_name: str, reason: str, detail: str) -> Fault:
        """Return a fault that happened now."""
        return Fault(source_id, source_name, reason, detail, self.clock.wall_s())
