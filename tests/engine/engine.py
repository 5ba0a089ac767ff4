"""
Owns an engine in this process, over a hub and peers in the same event loop.

Knows nothing of single tests.
Invariants: nothing leaves 127.0.0.1; after close() no task and no descriptor of its store is left.
Source: daemon/assembly.py, which builds the same parts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import web

from p2pcache.clock import Clock, SystemClock
from p2pcache.core.credentials import Credentials
from p2pcache.core.layout import Layout
from p2pcache.core.refs import ModelReference
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.core.verify import verify_chunk
from p2pcache.core.views import UPSTREAM, PlannerLimits
from p2pcache.daemon.app import make_peer_app
from p2pcache.discovery.base import Candidate
from p2pcache.engine.budget import UpstreamBudget
from p2pcache.engine.cache import Cache
from p2pcache.engine.context import Context
from p2pcache.engine.downloads import FINAL_STATES, Downloads, Job, JobOrder
from p2pcache.engine.fetches import ActiveFetch
from p2pcache.engine.indexthread import IndexThread
from p2pcache.engine.reader import BlobReader
from p2pcache.engine.settings import EngineSettings
from p2pcache.hubs.huggingface import HuggingFaceHub
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.home import StoreHome
from p2pcache.store.hubtree import HubTree
from p2pcache.transfer.connection import ConnectionPool
from tests.engine.fakepeer import sha256_name
from tests.ports import pick_port
from tests.serving import cut

POLL_S = 0.005


async def eventually(
    condition: Callable[[], object], what: str, *, timeout_s: float = 10.0
) -> None:
    """
    Wait until a condition holds.

    Raises:
        TimeoutError: It did not, in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        await asyncio.sleep(POLL_S)


async def let_run(turns: int = 100) -> None:
    """Let the loop run all that waits for nothing but its turn."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def meet_all(engines: Sequence[Engine]) -> None:
    """Let every one of some engines listen, and know all the others."""
    for engine in engines:
        await engine.listen()
    for engine in engines:
        for other in engines:
            if other is not engine:
                await engine.meet(other.address)


def list_open_files(root: Path) -> list[str]:
    """List what this process has open below a folder."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(f"{root}/"):
            found.append(target)
    return sorted(found)


class Engine:
    """A cache with its parts. open() before use, close() after."""

    cache: Cache
    context: Context
    downloads: Downloads

    def __init__(
        self,
        root: Path,
        hub_url: str,
        *,
        clock: Clock | None = None,
        trust_peers: bool = False,
        trusts_upstream: bool = True,
        seed: int = 0,
        quota_bytes: int | None = None,
        free_floor_bytes: int = 0,
        **settings: Any,
    ) -> None:
        self.root = root
        self.address = ""
        self._hub_url = hub_url
        self._clock = clock or SystemClock()
        self._trust_peers = trust_peers
        self._trusts_upstream = trusts_upstream
        self._seed = seed
        self._quota_bytes = quota_bytes
        self._free_floor_bytes = free_floor_bytes
        # Others of EngineSettings, by its names.
        self._settings = settings
        self._stack = AsyncExitStack()

    async def open(self) -> Engine:
        """Open every part, as the daemon does."""
        stack = self._stack
        home = StoreHome(self.root).open()
        stack.callback(home.close)
        index = IndexThread()
        stack.push_async_callback(index.close)
        await index.open(home.index_path)
        upstream_bps = self._settings.get("upstream_limit_bps")
        budget = UpstreamBudget(self._clock, Random(self._seed), limit_bps=upstream_bps)
        hub = HuggingFaceHub(self._hub_url, budget)
        hub.open()
        stack.push_async_callback(hub.close)
        pools = [ConnectionPool(allows_private=True, uses_proxy=False) for _ in range(2)]
        for pool in pools:
            stack.callback(pool.close)
        settings = EngineSettings(
            store=home.root,
            name=self.root.name,
            peer_id=home.peer_id,
            hf_upstream=self._hub_url,
            trust_peers=self._trust_peers,
            quota_bytes=self._quota_bytes,
            free_floor_bytes=self._free_floor_bytes,
            **self._settings,
        )
        self.context = Context(
            settings=settings,
            clock=self._clock,
            home=home,
            store=FileBlobStore(home.root),
            tree=HubTree(home.hub_path),
            index=index,
            hub=hub,
            peer_pool=pools[0],
            upstream_pool=pools[1],
            upstream_is_trusted=self._trusts_upstream,
            random=Random(self._seed),
            budget=budget,
        )
        stack.callback(self.context.close_threads)
        # As small as the chunks of these tests: each run is a request of its own.
        self.context.limits = PlannerLimits(run_bytes_min=1, upstream_requests_inflight_max=4)
        self.cache = Cache(self.context)
        stack.push_async_callback(self.cache.close)
        self.downloads = Downloads(self.cache)
        stack.push_async_callback(self.downloads.close)
        self.cache.swarm.open(1)
        return self

    async def close(self) -> None:
        """Close every part, the last one first. Safe to call twice."""
        await self._stack.aclose()
        assert list_open_files(self.root) == []

    async def listen(self) -> str:
        """Serve the peer endpoint on a free port; returns its address."""
        runner = web.AppRunner(make_peer_app(self.cache), access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        self._stack.push_async_callback(cut, runner)
        await web.TCPSite(runner, "127.0.0.1", pick_port()).start()
        port = runner.addresses[0][1]
        self.cache.swarm.port = port
        self.address = f"127.0.0.1:{port}"
        return self.address

    async def meet(self, address: str, *, via: str = "static") -> None:
        """Probe an address, and wait until a peer answers there."""
        host, _, port = address.rpartition(":")
        self.cache.swarm.add_candidate(Candidate(host, int(port), via))
        await eventually(
            lambda: (
                (host, int(port)) in {(p.host, p.port) for p in self.cache.swarm.peers.values()}
            ),
            f"a peer answers at {address}",
        )

    async def find(
        self, repo: str, path: str, token: str | None = None
    ) -> tuple[Snapshot, FileEntry]:
        """Resolve a file."""
        credentials = Credentials(token)
        resolved = await self.cache.librarian.resolve(ModelReference.parse(repo), credentials)
        return resolved.snapshot, resolved.snapshot.get_file(path)

    async def start_fetch(self, repo: str, path: str, *, is_public: bool = True) -> ActiveFetch:
        """Begin to fetch a file, or join."""
        snapshot, entry = await self.find(repo, path)
        return await self.cache.fetches.start(snapshot, entry, Credentials(), is_public=is_public)

    def keep_chunks(self, content: bytes, indexes: Iterable[int]) -> None:
        """Put some chunks of a blob into its partial file, as if the hub had sent them before."""
        blob, layout = sha256_name(content), Layout(len(content))
        opened = self.context.store.open_partial(blob, layout)
        for index in indexes:
            offset, length = layout.span_of(index, index)
            view = memoryview(content[offset : offset + length])
            opened.put(
                verify_chunk(blob, layout, index, view, expected=None, source_id=UPSTREAM), UPSTREAM
            )
        opened.flush()
        opened.close()

    async def open_reader(self, repo: str, path: str, token: str | None = None) -> BlobReader:
        """Open a file as the gateway does."""
        credentials = Credentials(token)
        found = await self.cache.find_file(ModelReference.parse(repo), path, credentials)
        return await self.cache.open_found(found, credentials)

    async def read(
        self,
        repo: str,
        path: str,
        *,
        token: str | None = None,
        start: int = 0,
        length: int | None = None,
    ) -> bytes:
        """Read a file, or a part of it, as the gateway does."""
        reader = await self.open_reader(repo, path, token)
        try:
            wanted = reader.size_bytes - start if length is None else length
            await reader.ready(start)
            received = b""
            async for segment in reader.segments(start, wanted):
                assert segment.offset == start + len(received)
                received += os.pread(segment.fd, segment.length, segment.offset)
            return received
        finally:
            reader.close()

    async def pull(self, repo: str, *, token: str | None = None, **order: object) -> Job:
        """Run a download to its end."""
        job = self.downloads.start(
            JobOrder(ModelReference.parse(repo), **order),  # type: ignore[arg-type]
            Credentials(token),
        )
        await eventually(lambda: job.state in FINAL_STATES, "the download's end", timeout_s=30.0)
        return job
