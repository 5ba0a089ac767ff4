"""
Owns the fixtures of the hub's own tests: a running hub, a plain HTTP client, the real client.

Knows nothing of single tests.
Invariants: every test has a fresh hub and a fresh home.
Source: none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.hub.client import RealClient
from tests.hub.samples import OTHER_TOKEN, make_repositories
from tests.hub.server import Hub


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """Run a hub with the sample repositories."""
    async with Hub(make_repositories(), tokens=[OTHER_TOKEN]) as running:
        yield running


@pytest.fixture
async def web_client(hub: Hub) -> AsyncIterator[ClientSession]:
    """Open a client that sends paths to the hub."""
    async with ClientSession(hub.url) as session:
        yield session


@pytest.fixture
def real_client(hub: Hub, tmp_path: Path) -> RealClient:
    """Return the real client, anonymous and without Xet."""
    return RealClient(hub.url, tmp_path / "client")
