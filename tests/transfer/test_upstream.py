"""
Owns the tests of transfer.upstream: redirects, ranges, resuming, expired addresses.

Knows nothing of model references.
Invariants: the token reaches the hub only; what is not exactly the range is refused.
Source: transfer/upstream.py; docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

import pytest

from p2pcache.clock import Clock, ManualClock
from p2pcache.core.upstream import REDIRECTS_MAX, UpstreamLocation
from p2pcache.core.views import UPSTREAM, RunRequest
from p2pcache.errors import (
    EntryNotFoundError,
    GatedRepositoryError,
    P2PCacheError,
    RepositoryNotFoundError,
    UpstreamAuthError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)
from p2pcache.transfer import connection
from p2pcache.transfer.base import RunCancelled
from p2pcache.transfer.connection import ConnectionPool
from p2pcache.transfer.upstream import PREFIX_INTERVAL_S, UpstreamSource
from tests.samples import Sample, make_chunks_sample
from tests.transfer.conftest import ServerStarter
from tests.transfer.server import RawServer, Reply, Request, answer_as_hub
from tests.transfer.sink import RecordingSink

TOKEN = "hf_secret"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Site:
    """A hub that redirects to a storage of another origin, as the real one does."""

    hub: RawServer
    storage: RawServer
    signatures: int = 0

    def redirect(self, request: Request) -> Reply:
        """Point to the storage, with a new signature each time."""
        self.signatures += 1
        location = f"{self.storage.url}/bytes?sig={self.signatures}"
        return Reply(302, {"Location": location}, b"Found. Redirecting.")


PIECE_BYTES = 512 * 1024


@pytest.fixture
def hub(sample: Sample, start_server: ServerStarter) -> RawServer:
    """A hub that sends the bytes itself; a test may replace its answer."""
    return start_server(answer_as_hub(sample))


@pytest.fixture
def site(sample: Sample, start_server: ServerStarter) -> Site:
    """A hub with a storage."""
    storage = start_server(answer_as_hub(sample))
    site = Site(start_server(lambda _: Reply(500)), storage)
    site.hub.answer = site.redirect
    return site


def make_source(hub: RawServer, pool: ConnectionPool, clock: Clock | None = None) -> UpstreamSource:
    """The hub as a source, with a token."""
    location = UpstreamLocation(hub.url, f"{hub.url}/org/name/resolve/x", "a file", HEADERS)
    return UpstreamSource(location, pool, clock)


def fetch(source: UpstreamSource, sample: Sample, first: int = 0, last: int = 5) -> RecordingSink:
    """Fetch a run into a new sink."""
    sink = RecordingSink()
    source.fetch_run(sample.blob, sample.layout, RunRequest(UPSTREAM, first, last), sink)
    return sink


def fetch_failing(
    source: UpstreamSource,
    sample: Sample,
    kind: type[P2PCacheError],
    first: int = 1,
    last: int = 4,
) -> P2PCacheError:
    """Fetch a run that must end with exactly this kind of error, and nothing delivered."""
    sink = RecordingSink()
    with pytest.raises(kind) as caught:
        source.fetch_run(sample.blob, sample.layout, RunRequest(UPSTREAM, first, last), sink)
    assert type(caught.value) is kind
    assert TOKEN not in str(caught.value)
    assert sink.order == []
    return caught.value


# --- ranges ---


def test_upstream_run_is_asked_as_its_exact_range(
    hub: RawServer, pool: ConnectionPool, sample: Sample, small_chunks: int
) -> None:
    """Only the bytes of the run are asked for, uncompressed."""
    fetch(make_source(hub, pool), sample, 1, 3)
    [request] = hub.requests
    assert request.headers["range"] == f"bytes={small_chunks}-{4 * small_chunks - 1}"
    assert request.headers["accept-encoding"] == "identity"


def test_upstream_whole_file_is_asked_without_a_range(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """A small file is one plain request, which every storage can answer."""
    assert fetch(make_source(hub, pool), sample).order == list(range(6))
    assert "range" not in hub.requests[0].headers


def test_upstream_whole_file_instead_of_its_start_is_used(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """A 200 from the first byte has what was asked for; the rest is not read."""
    hub.answer = lambda _: Reply(body=sample.content)
    source = make_source(hub, pool)
    sink = fetch(source, sample, 0, 2)
    assert sink.order == [0, 1, 2]
    assert sink.received_bytes < len(sample.content)
    fetch(source, sample, 0, 2)
    assert hub.connection_count == 2


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {}),
        (206, {"Content-Range": None}),
        (206, {"Content-Range": "bytes 0-99/{total}"}),
        (206, {"Content-Range": "bytes 4096-20479/20480"}),
        (206, {"Content-Range": "bytes 4096-4095/{total}"}),
        (206, {"Content-Range": "bytes 4096-20479/*"}),
        (206, {"Content-Range": "bytes 4097-20480/{total}"}),
        (206, {"Content-Encoding": "gzip"}),
        (206, {"Content-Encoding": "br"}),
    ],
)
def test_upstream_other_bytes_than_asked_are_refused(
    hub: RawServer,
    pool: ConnectionPool,
    sample: Sample,
    status: int,
    headers: dict[str, str | None],
) -> None:
    """The whole instead of a part, another part, another total, a compressed body."""
    honest = answer_as_hub(sample)
    total = str(len(sample.content))
    filled = {name: text and text.replace("{total}", total) for name, text in headers.items()}

    def answer(request: Request) -> Reply:
        reply = honest(request)
        return replace(reply, status=status, headers={**reply.headers, **filled})

    hub.answer = answer
    fetch_failing(make_source(hub, pool), sample, UpstreamProtocolError)
    assert len(hub.requests) == 1, "other bytes are not asked for again at once"


def test_upstream_hub_without_ranges_gives_a_later_part_of_a_small_file(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """What comes before the range is read and dropped; each chunk is checked as any other."""
    hub.answer = lambda _: Reply(body=sample.content)
    sink = fetch(make_source(hub, pool), sample, 2, 4)
    assert sink.order == [2, 3, 4]
    assert hub.connection_count == 1


def test_upstream_hub_without_ranges_breaks_off_before_the_range(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """A body that ends in what was to be skipped is a hub that does not answer."""
    hub.answer = lambda _: Reply(
        200, {"Content-Length": str(len(sample.content))}, sample.content[:100], closes=True
    )
    error = fetch_failing(make_source(hub, pool), sample, UpstreamUnreachableError, 2, 4)
    assert error.retryable
    hub.answer = answer_as_hub(sample)
    assert fetch(make_source(hub, pool), sample, 2, 4).order == [2, 3, 4]


def test_upstream_whole_file_of_another_size_is_refused(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """A 200 whose length is not the file's cannot be the file."""
    hub.answer = lambda _: Reply(body=sample.content + b"?")
    error = fetch_failing(make_source(hub, pool), sample, UpstreamProtocolError, 0, 5)
    assert str(len(sample.content)) in str(error)


def test_upstream_identity_encoding_is_fine(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """Saying that nothing was done is not an encoding."""
    hub.answer = lambda _: Reply(headers={"Content-Encoding": "identity"}, body=sample.content)
    assert fetch(make_source(hub, pool), sample).order == list(range(6))


def test_upstream_wrong_bytes_are_delivered_under_their_own_digest(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """The hub promises no chunk digests: the proof of the whole decides later."""
    wrong = bytes(len(sample.content))
    hub.answer = lambda _: Reply(body=wrong)
    sink = fetch(make_source(hub, pool), sample)
    assert sink.order == list(range(6))
    assert sink.chunks[0].digest != sample.digest_of(0)


def test_upstream_body_longer_than_its_range_is_not_read(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """More bytes than the Content-Range says are left, and the connection with them."""
    honest = answer_as_hub(sample)

    def answer(request: Request) -> Reply:
        reply = honest(request)
        return replace(reply, body=bytes(reply.body) + bytes(10_000))

    hub.answer = answer
    source = make_source(hub, pool)
    for _ in range(2):
        assert fetch(source, sample, 1, 2).order == [1, 2]
    assert hub.connection_count == 2


# --- resuming ---


def break_off_after(sample: Sample, size_bytes: int) -> Reply:
    """Send the start of the file, then close."""
    body = memoryview(sample.content)[:size_bytes]
    return Reply(headers={"Content-Length": str(len(sample.content))}, body=body, closes=True)


class SteppingClock(ManualClock):
    """A clock that moves by a step each time that it is read."""

    def __init__(self, step_s: float) -> None:
        super().__init__()
        self._step_s = step_s

    def monotonic_s(self) -> float:
        """Return the time, a step later."""
        self.advance(self._step_s)
        return super().monotonic_s()


@pytest.mark.parametrize(("step_s", "kept_counts"), [(0.0, {1}), (2 * PREFIX_INTERVAL_S, {4, 5})])
def test_upstream_broken_body_is_resumed_within_a_chunk(
    start_server: ServerStarter,
    pool: ConnectionPool,
    step_s: float,
    kept_counts: set[int],
) -> None:
    """All that arrived is kept, on a slow line bit by bit; the next run asks for the rest only."""
    sample = make_chunks_sample(1)
    arrived = 3 * PIECE_BYTES + 10_000
    hub = start_server(lambda _: break_off_after(sample, arrived))
    source = make_source(hub, pool, SteppingClock(step_s))
    sink = RecordingSink(piece_bytes_max=PIECE_BYTES)
    run = RunRequest(UPSTREAM, 0, 0)
    with pytest.raises(UpstreamUnreachableError):
        source.fetch_run(sample.blob, sample.layout, run, sink)
    assert sink.prefixes == {0: sample.content[:arrived]}
    # Each time only what came since the last time is written.
    kept = [length for _, length, _ in sink.prefix_calls]
    assert [written for _, _, written in sink.prefix_calls] == [0, *kept[:-1]]
    assert len(kept) in kept_counts
    hub.answer = answer_as_hub(sample)
    source.fetch_run(sample.blob, sample.layout, run, sink)
    assert hub.requests[-1].headers["range"] == f"bytes={arrived}-{len(sample.content) - 1}"
    assert sink.contents[0] == sample.content
    assert sink.received_bytes == len(sample.content)


def test_upstream_resumed_run_goes_on_into_the_next_chunks(
    start_server: ServerStarter, pool: ConnectionPool
) -> None:
    """Only the first chunk of a run is resumed; the following ones come whole."""
    sample = make_chunks_sample(2)
    hub = start_server(answer_as_hub(sample))
    sink = RecordingSink(prefixes={0: sample.content[:1234]}, piece_bytes_max=PIECE_BYTES)
    source = make_source(hub, pool, SteppingClock(2 * PREFIX_INTERVAL_S))
    source.fetch_run(sample.blob, sample.layout, RunRequest(UPSTREAM, 0, 1), sink)
    assert b"".join(sink.contents.values()) == sample.content
    assert sink.received_bytes == len(sample.content) - 1234
    chunk_index, length, written = sink.prefix_calls[0]
    assert (chunk_index, written) == (0, 1234)
    assert 1234 < length <= 1234 + PIECE_BYTES


def test_upstream_cancelled_run_keeps_the_start_that_arrived(
    start_server: ServerStarter, pool: ConnectionPool
) -> None:
    """What a cancelled run had received of a chunk is not lost."""
    sample = make_chunks_sample(1)
    hub = start_server(answer_as_hub(sample))
    sink = RecordingSink(cancels_after_bytes=2 * PIECE_BYTES, piece_bytes_max=PIECE_BYTES)
    source = make_source(hub, pool, SteppingClock(2 * PREFIX_INTERVAL_S))
    with pytest.raises(RunCancelled):
        source.fetch_run(sample.blob, sample.layout, RunRequest(UPSTREAM, 0, 0), sink)
    assert 2 * PIECE_BYTES <= len(sink.prefixes[0]) == sink.received_bytes < 3 * PIECE_BYTES


# --- redirects and tokens ---


def test_upstream_token_goes_to_the_hub_and_not_to_its_storage(
    site: Site, pool: ConnectionPool, sample: Sample
) -> None:
    """A redirect to another origin leaves the token behind."""
    assert fetch(make_source(site.hub, pool), sample).order == list(range(6))
    assert site.hub.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert "authorization" not in site.storage.requests[0].headers
    assert TOKEN not in str(site.storage.requests)


def test_upstream_token_follows_within_the_hub(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """A renamed repository redirects to itself: the token comes along, the address is not kept."""
    honest = answer_as_hub(sample)

    def answer(request: Request) -> Reply:
        return honest(request) if request.path == "/new" else Reply(307, {"Location": "/new"})

    hub.answer = answer
    source = make_source(hub, pool)
    for _ in range(2):
        fetch(source, sample)
    assert [request.path for request in hub.requests] == ["/org/name/resolve/x", "/new"] * 2
    assert all("authorization" in request.headers for request in hub.requests)
    assert hub.connection_count == 1


def test_upstream_address_outside_the_hub_gets_no_token(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """Whoever made the location, another origin than the hub's never sees the token."""
    location = UpstreamLocation("http://127.0.0.1:9", f"{hub.url}/x", "a file", HEADERS)
    fetch(UpstreamSource(location, pool), sample)
    assert "authorization" not in hub.requests[0].headers


def test_upstream_signed_address_is_used_again(
    site: Site, pool: ConnectionPool, sample: Sample
) -> None:
    """The hub is asked once for many runs; both connections are kept."""
    source = make_source(site.hub, pool)
    for index in range(6):
        fetch(source, sample, index, index)
    assert len(site.hub.requests) == 1
    assert len(site.storage.requests) == 6
    assert (site.hub.connection_count, site.storage.connection_count) == (1, 1)


@pytest.mark.parametrize("status", [400, 403, 404, 410, 500, 503])
def test_upstream_expired_address_is_renewed_once(
    site: Site, pool: ConnectionPool, sample: Sample, status: int
) -> None:
    """When a signed address stops working, the hub is asked for a new one."""
    source = make_source(site.hub, pool)
    fetch(source, sample, 0, 0)
    honest = answer_as_hub(sample)
    site.storage.answer = lambda request: (
        honest(request) if request.path.endswith("sig=2") else Reply(status)
    )
    assert fetch(source, sample, 1, 1).order == [1]
    assert site.signatures == 2


def test_upstream_address_that_never_works_is_an_error(
    site: Site, pool: ConnectionPool, sample: Sample
) -> None:
    """A new address that is refused too is not renewed for ever."""
    source = make_source(site.hub, pool)
    fetch(source, sample, 0, 0)
    site.storage.answer = lambda _: Reply(403)
    fetch_failing(source, sample, UpstreamAuthError)
    assert site.signatures == 2


def test_upstream_storage_that_is_gone_is_looked_up_again(
    site: Site, pool: ConnectionPool, sample: Sample, start_server: ServerStarter
) -> None:
    """A kept address whose host died does not hold up the fetch: the hub knows another."""
    source = make_source(site.hub, pool)
    fetch(source, sample, 0, 0)
    site.storage.close()
    site.storage = start_server(answer_as_hub(sample))
    assert fetch(source, sample, 1, 1).order == [1]
    assert (site.signatures, len(site.storage.requests)) == (2, 1)


def test_upstream_storage_that_sends_another_range_is_looked_up_again(
    site: Site, pool: ConnectionPool, sample: Sample
) -> None:
    """An address that answers nonsense is not kept either."""
    source = make_source(site.hub, pool)
    fetch(source, sample, 0, 0)
    honest = answer_as_hub(sample)
    site.storage.answer = lambda request: (
        honest(request) if request.path.endswith("sig=2") else Reply(body=b"maintenance")
    )
    assert fetch(source, sample, 1, 1).order == [1]
    assert site.signatures == 2


def test_upstream_redirect_circle_ends(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """A hub that redirects for ever is left after a few hops."""
    hub.answer = lambda request: Reply(302, {"Location": request.path + "x"})
    fetch_failing(make_source(hub, pool), sample, UpstreamProtocolError)
    assert len(hub.requests) == REDIRECTS_MAX + 1


@pytest.mark.parametrize(
    "location", [None, "", "ftp://x/y", "http://[", "http://127.0.0.1:99999/", "/a\tb", "/é"]
)
def test_upstream_redirect_to_nowhere_is_refused(
    hub: RawServer, pool: ConnectionPool, sample: Sample, location: str | None
) -> None:
    """A Location that is no address is the hub's mistake."""
    hub.answer = lambda _: Reply(302, {"Location": location})
    fetch_failing(make_source(hub, pool), sample, UpstreamProtocolError)
    assert len(hub.requests) == 1, "nothing was followed"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(302, {"Content-Length": None, "Connection": "close"}, closes=True),
        Reply(302, {"Content-Length": "50"}, b"cut", closes=True),
        Reply(302, {}, b"x" * 100_000),
    ],
)
def test_upstream_redirect_with_a_strange_body_is_followed(
    site: Site, pool: ConnectionPool, sample: Sample, reply: Reply
) -> None:
    """The text of a redirect does not matter: unknown length, cut short, or very long."""

    def answer(request: Request) -> Reply:
        headers = {**reply.headers, **site.redirect(request).headers}
        return replace(reply, headers=headers)

    site.hub.answer = answer
    assert fetch(make_source(site.hub, pool), sample).order == list(range(6))


def test_upstream_redirect_into_the_own_network_is_refused(
    site: Site, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public hub must not make us ask what only we can reach."""
    real = connection.refuse_private_addresses

    def allow_the_hub(host: str, port: int) -> None:
        if port != site.hub.port:
            real(host, port)

    monkeypatch.setattr(connection, "refuse_private_addresses", allow_the_hub)
    pool = ConnectionPool(allows_private=False, uses_proxy=False)
    error = fetch_failing(make_source(site.hub, pool), sample, UpstreamProtocolError)
    assert "private" in str(error)
    assert site.storage.connection_count == 0
    pool.close()


# --- errors ---


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(500), UpstreamUnreachableError),
        (Reply(503, {"Retry-After": "7"}), UpstreamUnreachableError),
        (Reply(429, {"Retry-After": "7"}), UpstreamRateLimitedError),
        (Reply(403, {"X-Error-Code": "GatedRepo"}), GatedRepositoryError),
        (Reply(401, {"x-error-code": "RepoNotFound"}), RepositoryNotFoundError),
        (Reply(404, {"X-Error-Code": "EntryNotFound"}), EntryNotFoundError),
        (Reply(416), UpstreamProtocolError),
        (Reply(204, {"Content-Length": None}), UpstreamProtocolError),
        (Reply(raw=b"", closes=True), UpstreamUnreachableError),
        (Reply(raw=b"what?\r\n\r\n", closes=True), UpstreamUnreachableError),
        (Reply(206, {"Content-Length": "5"}, b"", closes=True), UpstreamProtocolError),
    ],
)
def test_upstream_refusal_has_its_own_error(
    hub: RawServer,
    pool: ConnectionPool,
    sample: Sample,
    reply: Reply,
    kind: type[P2PCacheError],
) -> None:
    """Down, slow down, gated, missing and nonsense are told apart."""
    hub.answer = lambda _: reply
    error = fetch_failing(make_source(hub, pool), sample, kind)
    if isinstance(error, UpstreamRateLimitedError):
        assert error.retry_after_s == 7.0


def test_upstream_that_is_gone_is_unreachable(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """Nobody listens; nothing that could be asked again is held against the hub's word."""
    hub.close()
    error = fetch_failing(make_source(hub, pool), sample, UpstreamUnreachableError)
    assert error.retryable
    assert hub.requests == []


# --- a few bytes ---

PROMISE: dict[str, str | None] = {"Content-Range": "bytes 50-149/24476", "Content-Length": "100"}


@pytest.mark.parametrize(("start", "length"), [(0, 10), (4090, 20), (24_475, 1), (0, 24_476)])
def test_upstream_few_bytes_are_asked_as_their_exact_range(
    hub: RawServer, pool: ConnectionPool, sample: Sample, start: int, length: int
) -> None:
    """Anywhere in the file; the connection serves the next request."""
    source, total = make_source(hub, pool), len(sample.content)
    assert total == 24_476
    for _ in range(2):
        assert source.read_range(start, length, total) == sample.content[start : start + length]
    assert hub.connection_count == 1
    wanted = None if length == total else f"bytes={start}-{start + length - 1}"
    assert hub.requests[0].headers.get("range") == wanted


def test_upstream_few_bytes_follow_the_redirect_and_keep_the_address(
    site: Site, pool: ConnectionPool, sample: Sample
) -> None:
    """Probes cost the hub one request in all; the token stays with it."""
    source = make_source(site.hub, pool)
    for start in (7, 5000, 9000):
        assert (
            source.read_range(start, 512, len(sample.content))
            == (sample.content[start : start + 512])
        )
    assert fetch(source, sample, 2, 3).order == [2, 3]
    assert len(site.hub.requests) == 1
    assert len(site.storage.requests) == 4
    assert all("authorization" not in request.headers for request in site.storage.requests)


def test_upstream_few_bytes_of_an_expired_address_are_asked_anew(
    site: Site, pool: ConnectionPool, sample: Sample
) -> None:
    """Between head and probes, an address may end."""
    source, honest = make_source(site.hub, pool), answer_as_hub(sample)
    source.read_range(0, 10, len(sample.content))
    site.storage.answer = lambda request: (
        honest(request) if request.path.endswith("sig=2") else Reply(403)
    )
    assert source.read_range(5, 3, len(sample.content)) == sample.content[5:8]
    assert site.signatures == 2


def test_upstream_first_bytes_of_a_hub_without_ranges_are_read_and_the_rest_is_left(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """A 200 has the head, too; the connection goes with the bytes that nobody wants."""
    hub.answer = lambda _: Reply(body=sample.content)
    source = make_source(hub, pool)
    for _ in range(2):
        assert source.read_range(0, 100, len(sample.content)) == sample.content[:100]
    assert hub.connection_count == 2


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(500), UpstreamUnreachableError),
        (Reply(429, {"Retry-After": "7"}), UpstreamRateLimitedError),
        (Reply(404, {"X-Error-Code": "EntryNotFound"}), EntryNotFoundError),
        (Reply(403, {"X-Error-Code": "GatedRepo"}), GatedRepositoryError),
        (Reply(200, {}, b"x" * 24_476), UpstreamProtocolError),
        (Reply(206, {"Content-Range": "bytes 0-99/24476"}, b"x" * 100), UpstreamProtocolError),
        (Reply(206, {"Content-Range": "bytes 50-149/24477"}, b"x" * 100), UpstreamProtocolError),
        (Reply(206, {"Content-Range": "bytes 50-148/24476"}, b"x" * 99), UpstreamProtocolError),
        (Reply(206, PROMISE, b"x" * 9, closes=True), UpstreamUnreachableError),
        (Reply(raw=b"", closes=True), UpstreamUnreachableError),
    ],
)
def test_upstream_few_bytes_that_do_not_come_have_their_own_error(
    hub: RawServer, pool: ConnectionPool, reply: Reply, kind: type[P2PCacheError]
) -> None:
    """Down, slow down, gone, forbidden, other bytes, fewer bytes."""
    hub.answer = lambda _: reply
    with pytest.raises(kind) as caught:
        make_source(hub, pool).read_range(50, 100, 24_476)
    assert type(caught.value) is kind
    assert TOKEN not in str(caught.value)


def test_upstream_few_bytes_that_nobody_wants_any_more_end_at_once(
    hub: RawServer, pool: ConnectionPool, sample: Sample
) -> None:
    """close() cuts a probe that hangs, and refuses the next one."""
    hub.answer = lambda _: Reply(is_silent=True)
    source = make_source(hub, pool)
    errors: list[P2PCacheError] = []

    def read() -> None:
        try:
            source.read_range(0, 10, len(sample.content))
        except P2PCacheError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    deadline_s = time.monotonic() + 10
    while not hub.requests and time.monotonic() < deadline_s:
        time.sleep(0.005)
    source.close()
    thread.join(5)
    assert not thread.is_alive()
    read()
    assert [type(error) for error in errors] == [UpstreamUnreachableError] * 2
    assert len(hub.requests) == 1
