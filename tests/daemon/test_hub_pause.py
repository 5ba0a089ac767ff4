"""
Owns the tests of what programs on this machine see while the hub wants to be left alone.

Knows nothing of how long that is decided to be.
Invariants: what is here is given; what is not is answered as the hub would, without asking it.
Source: docs/how-to/limit-bandwidth.md; engine/budget.py.
"""

from __future__ import annotations

from tests.daemon.local import Served
from tests.engine.conftest import FILES, REPO
from tests.hub import Hub, Repository

OTHER = "org/other"


async def test_gateway_during_a_pause_gives_what_is_here_and_429_for_the_rest(
    served: Served, hub: Hub
) -> None:
    """One refusal, then no request more; every client hears how long to wait."""
    hub.state.catalog.add(Repository(OTHER, FILES))
    here = f"/{REPO}/resolve/main/config.json"
    assert (await served.ask(here)).status == 200
    hub.set_faults(refuse_status=429, retry_after_s=120)
    first = await served.ask(f"/{OTHER}/resolve/main/config.json", "HEAD")
    assert first.status == 429
    asked = hub.stats.requests_total
    hub.set_faults()
    for path in (f"/{OTHER}/resolve/main/config.json", f"/api/models/{OTHER}", "/api/models?x=1"):
        reply = await served.ask(path)
        assert reply.status == 429, path
        assert 110 <= int(reply.headers["Retry-After"]) <= 126
    assert (await served.ask(here)).body == FILES["config.json"]
    assert hub.stats.requests_total == asked
    served.engine.context.budget.paused_until_s = 0.0
    reply = await served.ask(f"/{OTHER}/resolve/main/config.json")
    assert (reply.status, reply.body) == (200, FILES["config.json"])
