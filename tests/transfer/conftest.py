"""
Owns what the transfer tests share: small chunks, a blob, servers and pools that end with the test.

Knows nothing of single tests.
Invariants: nothing leaves 127.0.0.1; no thread or connection outlives its test.
Source: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from p2pcache.core import layout
from p2pcache.transfer.connection import ConnectionPool
from tests.samples import Sample, make_sample
from tests.transfer.server import Answer, RawServer

SMALL_CHUNK_SIZE_BYTES = 4096

ServerStarter = Callable[[Answer], RawServer]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut blobs every page, so that runs of many chunks stay small; returns the size."""
    monkeypatch.setattr(layout, "CHUNK_SIZE_BYTES", SMALL_CHUNK_SIZE_BYTES)
    return SMALL_CHUNK_SIZE_BYTES


@pytest.fixture
def sample(small_chunks: int) -> Sample:
    """A blob of six small chunks, the last one short."""
    return make_sample(6 * small_chunks - 100)


@pytest.fixture
def start_server() -> Iterator[ServerStarter]:
    """Start servers; all end with the test."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(RawServer(answer))


@pytest.fixture
def pool() -> Iterator[ConnectionPool]:
    """A pool that may talk to loopback."""
    pool = ConnectionPool(allows_private=True, uses_proxy=False)
    yield pool
    pool.close()
