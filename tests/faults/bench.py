"""
Owns the real engine on a small scale: opened as the daemon opens it, in a child of the harness.

Knows nothing of faults.
Invariants: the parts are those of daemon/assembly.py; whatever is logged as an error, and whatever
a task raised that nobody looked at, is told.
Source: daemon/assembly.py, daemon/app.py.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pcache.config import load_config
from p2pcache.core import layout, tensors
from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import ModelReference, SnapshotId
from p2pcache.daemon.assembly import open_cache
from p2pcache.engine.adoption import Adoptions
from p2pcache.engine.adoptionjob import AdoptionOrder
from p2pcache.engine.bundleimport import ImportOrder
from p2pcache.engine.bundles import Bundles
from p2pcache.engine.cache import Cache
from p2pcache.engine.checkup import CheckOrder, CheckupState
from p2pcache.engine.downloads import Downloads, JobOrder
from p2pcache.errors import NotFoundError, StoreError
from tests.faults.child import Channel
from tests.faults.world import CHUNK_BYTES, LARGE_TENSOR_BYTES, WORLD

SETTLE_S_MAX = 10.0
SETTLE_PAUSE_S = 0.002
_PIECE_BYTES = 8192
_TLS = ssl.create_default_context()

Act = Callable[["Bench"], Awaitable[None]]


def make_small() -> None:
    """Cut blobs small, read no certificates. For good."""
    layout.CHUNK_SIZE_BYTES = CHUNK_BYTES
    tensors.LARGE_TENSOR_BYTES_MIN = LARGE_TENSOR_BYTES
    ssl.create_default_context = lambda *_, **__: _TLS


@dataclass(slots=True)
class Bench:
    """An open engine, and where to tell what it acknowledged."""

    cache: Cache
    downloads: Downloads
    adoptions: Adoptions
    bundles: Bundles
    channel: Channel
    site: Path

    async def pull(self, repo: str, *, is_pin: bool = False, include: tuple[str, ...] = ()) -> None:
        """
        Bring a repository here, as `pull` or `pin` does.

        Raises:
            P2PCacheError: The job failed.
        """
        order = JobOrder(ModelReference.parse(repo), include, is_pin=is_pin)
        job = self.downloads.start(order, Credentials())
        assert job.task is not None, "a job that was started"
        await job.task
        if job.error is not None:
            raise job.error
        if not include:
            self.channel.tell("complete", name=repo)
        if is_pin:
            self.channel.tell("pinned", name=repo)

    async def clean(self) -> None:
        """Remove what nobody needs, as `gc` does. Raises as Space.gc()."""
        await self.cache.space.gc(is_dry_run=False)

    async def remove(self, repo: str) -> None:
        """Remove a repository, as `rm` does; one that is gone already is fine."""
        snapshot_id = SnapshotId(ModelReference.parse(repo).repo, WORLD.commit_of(repo))
        with suppress(NotFoundError):
            await self.cache.space.remove(snapshot_id)

    async def check(self, *, is_repair: bool) -> None:
        """
        Hash everything again, as `check` does.

        Raises:
            StoreError: The check was broken off.
        """
        order = CheckOrder(is_repair=is_repair, is_anew=True)
        run = await self.cache.checkup.start(order)
        task = self.cache.checkup._task
        assert task is not None, "a check that was started"
        await asyncio.wait({task})
        if run.state is not CheckupState.DONE:
            raise StoreError("The check was broken off; its log says why.")

    async def adopt(self, folder: Path, repo: str) -> None:
        """
        Import a Hugging Face cache, as `import` does.

        Raises:
            P2PCacheError: It failed, or files were skipped.
        """
        job = await self.adoptions.start(AdoptionOrder(folder, is_public=True))
        assert job.task is not None, "a job that was started"
        await asyncio.wait({job.task})
        if job.error is not None:
            raise job.error
        if job.list_skipped():
            raise StoreError(f"Not everything was imported: {job.list_skipped()}")
        self.channel.tell("complete", name=repo)

    async def take_in(self, bundle: Path, repo: str) -> None:
        """Import a bundle, as `import-bundle` does. Raises as BundleImport.run()."""
        with bundle.open("rb") as file:

            async def read_some() -> bytes:
                return file.read(_PIECE_BYTES)

            await self.bundles.take_in(ImportOrder(is_public=True), read_some)
        self.channel.tell("complete", name=repo)

    async def write_bundle(self, repo: str, bundle: Path) -> None:
        """Export a repository, as `export` does."""
        reference = ModelReference.parse(repo)
        async with self.bundles.exporting(reference, is_admin=True) as export:
            with bundle.open("wb") as file:
                async for piece in export.iter_bytes():
                    file.write(piece)

    async def settle(self) -> None:
        """Wait until no fetch is under way: those that a failed job left wind up by themselves."""
        deadline_s = asyncio.get_running_loop().time() + SETTLE_S_MAX
        while self.cache.fetches._active:
            assert asyncio.get_running_loop().time() < deadline_s, "a fetch does not wind up"
            await asyncio.sleep(SETTLE_PAUSE_S)

    async def measure(self) -> dict[str, str]:
        """Return repository → residency, of those that the index knows."""
        states = {}
        for repo in WORLD.files:
            row = await self.cache.librarian.find_cached(ModelReference.parse(repo))
            if row is not None:
                residency = await self.cache.measure(list(row.snapshot.files))
                states[repo] = str(residency.state.value)
        return states


@asynccontextmanager
async def open_bench(
    site: Path, hub_url: str, channel: Channel, settings: Mapping[str, str]
) -> AsyncIterator[Bench]:
    """Open the engine over SITE/store, as the daemon does at start."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: _tell_unseen(channel, context))
    flags: dict[str, Any] = {
        "store": str(site / "store"),
        "hf_upstream": hub_url,
        "discover": ("none",),
        "name": "bench",
        "free_floor": "0",
        **settings,
    }
    async with AsyncExitStack() as stack:
        cache = await open_cache(load_config(flags, {}), stack)
        cache.swarm.open(1)
        downloads, adoptions = Downloads(cache), Adoptions(cache)
        stack.push_async_callback(downloads.close)
        stack.push_async_callback(adoptions.close)
        await adoptions.open()
        yield Bench(cache, downloads, adoptions, Bundles(cache), channel, site)


class ErrorTeller(logging.Handler):
    """Tells every record that speaks of a failure of ours."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record."""
        if record.exc_info or record.levelno >= logging.ERROR:
            self._channel.tell("unexpected", text=self.format(record))


def _tell_unseen(channel: Channel, context: dict[str, Any]) -> None:
    error = context.get("exception")
    lines = traceback.format_exception(error) if isinstance(error, BaseException) else []
    channel.tell("unexpected", text=f"{context.get('message')}\n{''.join(lines)}")
