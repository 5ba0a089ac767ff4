"""
Owns what the engine tests share: small chunks, a hub, engines and peers that end with the test.

Knows nothing of single tests.
Invariants: no task outlives its test; bytes are the same every time.
Source: none.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from p2pcache.core import layout
from tests.engine.engine import Engine, eventually
from tests.engine.fakepeer import FakePeer
from tests.hub import Hub, Repository

CHUNK_BYTES = 16 * 1024
REPO, GATED, PRIVATE = "org/model", "org/gated", "org/private"
TOKEN, OTHER_TOKEN = "hf_allowed", "hf_other"
WEIGHTS = Random(11).randbytes(20 * CHUNK_BYTES - 1000)
OTHER_WEIGHTS = Random(12).randbytes(3 * CHUNK_BYTES)
FILES = {
    "config.json": b'{"model_type": "bert"}\n',
    "empty.txt": b"",
    "pytorch_model.bin": WEIGHTS,
    "other.safetensors": OTHER_WEIGHTS,
}
MODEL_BYTES = sum(map(len, FILES.values()))

TLS = ssl.create_default_context()

MakeCache = Callable[..., Awaitable[Engine]]
MakePeer = Callable[..., Awaitable[FakePeer]]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut blobs every 16 KiB, so that fetches of many chunks stay small."""
    monkeypatch.setattr(layout, "CHUNK_SIZE_BYTES", CHUNK_BYTES)


@pytest.fixture(autouse=True)
def one_tls_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the system's certificates once, not for every engine: nothing here speaks TLS."""
    monkeypatch.setattr("ssl.create_default_context", lambda: TLS)


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """Run a hub with a public, a gated and a private repository."""
    secret = {name: content + b"secret" for name, content in FILES.items()}
    repositories = [
        Repository(REPO, FILES),
        Repository(GATED, secret, gated="auto", tokens=[TOKEN]),
        Repository(PRIVATE, secret, private=True, tokens=[TOKEN]),
    ]
    async with Hub(repositories, tokens=[OTHER_TOKEN]) as running:
        yield running


@pytest.fixture
async def make_cache(tmp_path: Path, hub: Hub) -> AsyncIterator[MakeCache]:
    """Return a function that opens engines, each with a store of its own; closes them all."""
    opened: list[Engine] = []
    before = asyncio.all_tasks()

    async def make(name: str = "a", **options: object) -> Engine:
        url = str(options.pop("hub_url", hub.url))
        engine = Engine(tmp_path / name, url, **options)  # type: ignore[arg-type]
        opened.append(engine)
        return await engine.open()

    yield make
    for engine in reversed(opened):
        await engine.close()
    # The hub's answers to connections that were just closed end in the next turns of the loop.
    await eventually(lambda: not find_own_tasks(before), "the end of every task", timeout_s=5.0)
    gc.collect()


def find_own_tasks(before: set[asyncio.Task[object]]) -> list[asyncio.Task[object]]:
    """Return the tasks that the package began and that still run."""
    return [
        task
        for task in asyncio.all_tasks() - before
        if "p2pcache/engine"
        in (getattr(task.get_coro(), "cr_code", None) or eventually.__code__).co_filename
    ]


@pytest.fixture
async def make_peer() -> AsyncIterator[MakePeer]:
    """Return a function that starts fake peers; ends them all."""
    started: list[FakePeer] = []

    async def make(*contents: bytes, **options: object) -> FakePeer:
        peer = FakePeer(*contents, **options)  # type: ignore[arg-type]
        started.append(peer)
        return await peer.start()

    yield make
    for peer in started:
        await peer.stop()


@pytest.fixture
async def engine(make_cache: MakeCache) -> Engine:
    """Open one engine that trusts the hub and no peer."""
    return await make_cache()
