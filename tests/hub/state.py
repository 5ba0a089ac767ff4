"""
Owns what all handlers share: the catalog, the switches, the counts, and one request's view of them.

Knows nothing of routes.
Invariants: everything here is used by one event loop; a Call lives as long as its request.
Source: none.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import web

from tests.hub.catalog import Catalog
from tests.hub.faults import Faults, FaultState
from tests.hub.signing import Signer
from tests.hub.stats import RecordedRequest, Stats
from tests.hub.target import Target

PAGE_SIZE = 1000
PAGE_SIZE_EXPANDED = 50


class RateBucket:
    """Spaces out the bytes of many bodies so that together they keep a rate."""

    def __init__(self) -> None:
        self._free_s = 0.0

    async def wait(self, size_bytes: int, rate_bytes_per_s: int | None) -> None:
        """Wait for the turn of these bytes; callers are served in the order they came."""
        if rate_bytes_per_s is None:
            return
        now_s = time.monotonic()
        start_s = max(now_s, self._free_s)
        self._free_s = start_s + size_bytes / rate_bytes_per_s
        if start_s > now_s:
            await asyncio.sleep(start_s - now_s)


@dataclass
class HubState:
    """One running hub."""

    catalog: Catalog
    faults: FaultState
    page_size: int = PAGE_SIZE
    page_size_expanded: int = PAGE_SIZE_EXPANDED
    stats: Stats = field(default_factory=Stats)
    signer: Signer = field(default_factory=Signer)
    bucket: RateBucket = field(default_factory=RateBucket)
    hub_url: str = ""
    cdn_url: str = ""
    control_url: str = ""

    @property
    def switches(self) -> Faults:
        """Return the switches now on."""
        return self.faults.now


@dataclass(frozen=True)
class Call:
    """One request with what is known of it before it is answered."""

    state: HubState
    request: web.Request
    target: Target
    record: RecordedRequest

    @property
    def token(self) -> str | None:
        """Return the bearer token that was sent."""
        header = self.request.headers.get("Authorization")
        return None if header is None else header.removeprefix("Bearer ").strip()

    @property
    def raw_query(self) -> str:
        """Return the query as sent, without the question mark."""
        return self.request.raw_path.partition("?")[2]

    def is_true(self, name: str) -> bool:
        """Return whether a query parameter says yes, in any client's spelling."""
        return self.request.query.get(name, "").lower() in ("true", "1")
