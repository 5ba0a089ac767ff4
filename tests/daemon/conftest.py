"""
Owns what the daemon tests share: an engine with both of its endpoints.

Knows nothing of single tests.
Invariants: the engine, the hub and the peers are those of the engine tests.
Source: tests/engine/conftest.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.daemon.local import Served
from tests.engine.conftest import (  # noqa: F401
    engine,
    hub,
    make_cache,
    make_peer,
    one_tls_context,
    small_chunks,
)
from tests.engine.engine import Engine

Serve = Callable[[Engine], Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return a function that serves engines; stops them all."""
    async with AsyncExitStack() as stack:

        async def open_one(engine: Engine) -> Served:
            served = Served(engine)
            stack.push_async_callback(served.close)
            return await served.open()

        yield open_one


@pytest.fixture
async def served(engine: Engine, serve: Serve) -> Served:  # noqa: F811
    """Serve one engine."""
    return await serve(engine)
