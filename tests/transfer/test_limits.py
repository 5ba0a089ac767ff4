"""
Owns the tests of what the sources owe to limits: the hub's words are passed on, waits for a cap of
ours are not held against a peer.

Knows nothing of budgets and caps.
Invariants: storage that the hub redirects to does not speak for the hub.
Source: transfer/upstream.py; transfer/peer.py; docs/decisions/0015-rate-limits.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from p2pcache.clock import ManualClock
from p2pcache.core.upstream import UpstreamLocation
from p2pcache.core.views import UPSTREAM, RunRequest
from p2pcache.errors import PeerUnreachableError, UpstreamRateLimitedError
from p2pcache.transfer.connection import ConnectionPool
from p2pcache.transfer.peer import PeerSource
from p2pcache.transfer.upstream import UpstreamSource
from tests.samples import Sample
from tests.transfer.conftest import ServerStarter
from tests.transfer.server import RawServer, Reply, answer_as_hub, answer_as_peer
from tests.transfer.sink import RecordingSink

LIMIT = '"resolvers";r=7;t=60'
WAIT_S = 0.15
RUN = RunRequest(UPSTREAM, 0, 5)


@dataclass
class Heard:
    """What the hub's answers were, by status."""

    answers: list[tuple[int, str | None]]

    def listen(self, status: int, headers: Mapping[str, str]) -> None:
        """Remember one answer."""
        self.answers.append((status, headers.get("RateLimit")))


def make_source(hub: RawServer, pool: ConnectionPool, heard: Heard) -> UpstreamSource:
    """The hub as a source that tells what it heard."""
    location = UpstreamLocation(hub.url, f"{hub.url}/org/name/resolve/x", "a file", {})
    return UpstreamSource(location, pool, on_answer=heard.listen)


def test_upstream_answers_of_the_hub_are_passed_on_and_those_of_its_storage_are_not(
    start_server: ServerStarter, pool: ConnectionPool, sample: Sample
) -> None:
    """Storage counts by its own rules; the hub's answer is the one that redirects there."""
    storage = start_server(answer_as_hub(sample))
    url = f"{storage.url}/bytes?sig=1"
    hub = start_server(lambda _: Reply(302, {"Location": url, "RateLimit": LIMIT}, b"Found."))
    heard = Heard([])
    source = make_source(hub, pool, heard)
    source.fork().fetch_run(sample.blob, sample.layout, RUN, RecordingSink())
    assert heard.answers == [(302, LIMIT)]
    # The address still works: the hub is not asked again, and says nothing.
    source.fork().fetch_run(sample.blob, sample.layout, RUN, RecordingSink())
    assert (heard.answers, len(hub.requests)) == ([(302, LIMIT)], 1)


def test_upstream_answer_that_refuses_is_passed_on_with_its_words(
    start_server: ServerStarter, pool: ConnectionPool, sample: Sample
) -> None:
    """Before the error is raised: nobody else shall ask meanwhile."""
    hub = start_server(lambda _: Reply(429, {"RateLimit": '"resolvers";r=0;t=60'}))
    heard = Heard([])
    with pytest.raises(UpstreamRateLimitedError) as caught:
        make_source(hub, pool, heard).fetch_run(sample.blob, sample.layout, RUN, RecordingSink())
    assert heard.answers == [(429, '"resolvers";r=0;t=60')]
    assert caught.value.retry_after_s == 60


class WaitingSink(RecordingSink):
    """Waits for a cap whenever something comes; a look at the clock takes so long as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, look_s: float = 0.0) -> None:
        super().__init__()
        self._clock, self._look_s = ManualClock(), look_s
        time = SimpleNamespace(monotonic=self._look)
        monkeypatch.setattr("p2pcache.transfer.peer.time", time)

    def _look(self) -> float:
        self._clock.advance(self._look_s)
        return self._clock.monotonic_s()

    def note_progress(self, received_bytes: int) -> None:
        """Count, and wait."""
        super().note_progress(received_bytes)
        self._clock.advance(WAIT_S)


def test_peer_is_not_too_slow_because_we_wait_for_a_cap(
    start_server: ServerStarter,
    pool: ConnectionPool,
    sample: Sample,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six waits are longer than the grace, after which no peer would be fast enough."""
    monkeypatch.setattr("p2pcache.transfer.peer.RATE_GRACE_S", 5 * WAIT_S)
    monkeypatch.setattr("p2pcache.transfer.peer.RATE_FLOOR_BPS", 1 << 60)
    peer = start_server(answer_as_peer(sample))
    source = PeerSource("peer", peer.url, pool)
    sink = WaitingSink(monkeypatch)
    source.fetch_run(sample.blob, sample.layout, RunRequest("peer", 0, 5), sink)
    assert sink.order == list(range(6))


def test_peer_that_is_slow_by_itself_is_left_all_the_same(
    start_server: ServerStarter,
    pool: ConnectionPool,
    sample: Sample,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Waiting does not hide a crawler."""
    monkeypatch.setattr("p2pcache.transfer.peer.RATE_GRACE_S", 0.002)
    monkeypatch.setattr("p2pcache.transfer.peer.RATE_FLOOR_BPS", 1 << 60)
    source = PeerSource("peer", start_server(answer_as_peer(sample)).url, pool)
    sink = WaitingSink(monkeypatch, look_s=0.001)
    with pytest.raises(PeerUnreachableError, match="too slow"):
        source.fetch_run(sample.blob, sample.layout, RunRequest("peer", 0, 5), sink)
