"""
Owns the tests of transfer.peer against honest, broken and hostile peers.

Knows nothing of swarms.
Invariants: nothing that a peer does makes a wrong byte arrive, or another kind of error appear.
Source: transfer/peer.py; docs/reference/peer-protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from p2pcache.core.views import RunRequest
from p2pcache.errors import (
    ChunkMismatchError,
    P2PCacheError,
    PeerBusyError,
    PeerDamagedError,
    PeerProtocolError,
    PeerRefusedError,
    PeerUnreachableError,
)
from p2pcache.transfer import connection
from p2pcache.transfer.connection import ConnectionPool
from p2pcache.transfer.peer import PeerSource
from tests.samples import PEER_ID, Sample
from tests.transfer.conftest import ServerStarter
from tests.transfer.server import RawServer, Reply, Request, answer_as_peer
from tests.transfer.sink import RecordingSink

Bend = Callable[[Reply], Reply]


@pytest.fixture
def peer(sample: Sample, start_server: ServerStarter) -> RawServer:
    """An honest peer; a test may replace its answer."""
    return start_server(answer_as_peer(sample))


@pytest.fixture
def source(peer: RawServer, pool: ConnectionPool) -> PeerSource:
    """The peer as a source."""
    return PeerSource(PEER_ID, peer.url, pool)


def bend(peer: RawServer, sample: Sample, how: Bend) -> None:
    """Make a peer answer something else than the honest thing."""
    honest = answer_as_peer(sample)
    peer.answer = lambda request: how(honest(request))


def fetch(source: PeerSource, sample: Sample, first: int = 0, last: int = 5) -> RecordingSink:
    """Fetch a run into a new sink."""
    sink = RecordingSink()
    source.fetch_run(sample.blob, sample.layout, RunRequest(PEER_ID, first, last), sink)
    return sink


def fetch_failing(
    source: PeerSource, sample: Sample, kind: type[P2PCacheError], first: int = 0, last: int = 5
) -> RecordingSink:
    """Fetch a run that must end with exactly this kind of error."""
    sink = RecordingSink()
    with pytest.raises(kind) as caught:
        source.fetch_run(sample.blob, sample.layout, RunRequest(PEER_ID, first, last), sink)
    assert type(caught.value) is kind
    return sink


def test_peer_request_names_run_layout_and_no_encoding(
    source: PeerSource, peer: RawServer, sample: Sample
) -> None:
    """The request is what the protocol page says, and carries nobody's token."""
    fetch(source, sample, 2, 4)
    [request] = peer.requests
    assert request.path == f"/v1/blobs/{sample.blob}/chunks/2-4"
    assert request.headers["x-p2pcache-layout"] == sample.layout.name
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


def test_peer_runs_share_one_connection(
    source: PeerSource, peer: RawServer, sample: Sample
) -> None:
    """A body read to its end leaves the connection for the next run."""
    for _ in range(3):
        fetch(source, sample)
    assert peer.connection_count == 1


def test_peer_wrong_bytes_are_blamed_and_not_delivered(
    source: PeerSource, peer: RawServer, sample: Sample, small_chunks: int
) -> None:
    """Bytes that differ from the peer's own promise are proof against it."""

    def tamper(reply: Reply) -> Reply:
        body = bytearray(reply.body)
        body[3 * small_chunks] ^= 1
        return replace(reply, body=bytes(body))

    bend(peer, sample, tamper)
    sink = RecordingSink()
    with pytest.raises(ChunkMismatchError) as caught:
        source.fetch_run(sample.blob, sample.layout, RunRequest(PEER_ID, 0, 5), sink)
    assert (caught.value.chunk_index, caught.value.peer_id) == (3, PEER_ID)
    assert sink.order == [0, 1, 2]
    peer.answer = answer_as_peer(sample)
    fetch(source, sample)
    assert peer.connection_count == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"X-P2PCache-Chunks": None},
        {"X-P2PCache-Chunks": ""},
        {"X-P2PCache-Chunks": "0" * 64},
        {"X-P2PCache-Chunks": ",".join(["0" * 64] * 7)},
        {"X-P2PCache-Chunks": ",".join(["0" * 64] * 5 + ["G" * 64])},
        {"X-P2PCache-Chunks": "," * 5},
        {"Content-Encoding": "gzip"},
        {"Content-Length": None, "Transfer-Encoding": "chunked"},
        {"Content-Length": "7"},
        {"Content-Length": "99999999999999"},
        {"Content-Length": "-5"},
        {"Content-Length": "many"},
        {"Content-Length": "9" * 5000},
    ],
)
def test_peer_head_against_the_protocol_is_refused_unread(
    source: PeerSource, peer: RawServer, sample: Sample, headers: dict[str, str | None]
) -> None:
    """Digests and length must fit the run before a byte of the body is taken."""
    bend(peer, sample, lambda reply: replace(reply, headers={**reply.headers, **headers}))
    sink = fetch_failing(source, sample, PeerProtocolError)
    assert (sink.order, sink.received_bytes) == ([], 0)


@pytest.mark.parametrize("status", [204, 206, 302, 404, 409, 500])
def test_peer_other_status_is_a_refusal(
    source: PeerSource, peer: RawServer, sample: Sample, status: int
) -> None:
    """No chunk is no fault; a redirect is not followed."""
    bend(peer, sample, lambda _: Reply(status, {"Location": f"{peer.url}/elsewhere"}))
    fetch_failing(source, sample, PeerRefusedError)
    assert len(peer.requests) == 1


@pytest.mark.parametrize("status", [425, 429, 503])
def test_peer_that_is_busy_is_told_apart(
    source: PeerSource, peer: RawServer, sample: Sample, status: int
) -> None:
    """Not now is not never."""
    bend(peer, sample, lambda _: Reply(status))
    fetch_failing(source, sample, PeerBusyError)


def test_peer_that_found_damage_says_so(
    source: PeerSource, peer: RawServer, sample: Sample
) -> None:
    """A peer that confesses is told apart from one that lies."""
    bend(peer, sample, lambda _: Reply(500, {"X-Error-Code": "BlobCorrupt"}))
    fetch_failing(source, sample, PeerDamagedError)


def test_peer_short_body_keeps_the_whole_chunks(
    source: PeerSource, peer: RawServer, sample: Sample, small_chunks: int
) -> None:
    """A peer that breaks off leaves what was verified before."""
    cut = 2 * small_chunks + 10
    length = str(len(sample.content))
    bend(
        peer,
        sample,
        lambda reply: replace(
            reply,
            body=reply.body[:cut],
            headers={**reply.headers, "Content-Length": length},
            closes=True,
        ),
    )
    assert fetch_failing(source, sample, PeerUnreachableError).order == [0, 1]


def test_peer_endless_body_is_not_read_beyond_the_run(
    source: PeerSource, peer: RawServer, sample: Sample
) -> None:
    """What comes after the announced length is nobody's; the next run is not confused by it."""
    bend(peer, sample, lambda reply: replace(reply, is_endless=True))
    sink = fetch(source, sample)
    assert sink.received_bytes == len(sample.content)
    peer.answer = answer_as_peer(sample)
    assert fetch(source, sample).order == list(range(6))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1",
        b"what?\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"\xff" * 1000 + b"\r\n\r\n",
    ],
)
def test_peer_answer_that_is_no_http_is_unreachable(
    source: PeerSource, peer: RawServer, sample: Sample, raw: bytes
) -> None:
    """Closing early, other protocols and over-long heads end in one kind of error."""
    bend(peer, sample, lambda _: Reply(raw=raw, closes=True))
    fetch_failing(source, sample, PeerUnreachableError)


def test_peer_that_is_gone_is_unreachable(
    source: PeerSource, peer: RawServer, sample: Sample
) -> None:
    """Nobody listens any more."""
    peer.close()
    fetch_failing(source, sample, PeerUnreachableError)


def test_peer_that_falls_silent_is_given_up(
    source: PeerSource, peer: RawServer, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No byte for the longest silence, and the run ends."""
    monkeypatch.setattr(connection, "SILENCE_S_MAX", 0.1)
    bend(peer, sample, lambda _: Reply(is_silent=True))
    fetch_failing(source, sample, PeerUnreachableError)
    assert len(peer.requests) == 1


def test_peer_that_is_too_slow_is_given_up(
    source: PeerSource, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the grace, an average below the floor ends the run."""
    monkeypatch.setattr("p2pcache.transfer.peer.RATE_GRACE_S", 0.0)
    monkeypatch.setattr("p2pcache.transfer.peer.RATE_FLOOR_BPS", 1 << 60)
    assert fetch_failing(source, sample, PeerUnreachableError).order == []


def test_peer_kept_connection_that_was_closed_is_replaced(
    source: PeerSource, peer: RawServer, sample: Sample
) -> None:
    """A peer that restarted meanwhile is asked again on a new connection, unnoticed."""
    bend(peer, sample, lambda reply: replace(reply, closes=True))
    for _ in range(2):
        assert fetch(source, sample).order == list(range(6))
    assert peer.connection_count == 2


def test_peer_hint_that_it_closes_is_honoured(
    source: PeerSource, peer: RawServer, sample: Sample
) -> None:
    """A connection that will be closed is not kept."""
    bend(
        peer,
        sample,
        lambda reply: replace(reply, headers={**reply.headers, "Connection": "close"}),
    )
    for _ in range(2):
        fetch(source, sample)
    assert [request.connection_number for request in peer.requests] == [1, 2]


def test_peer_answer_of_another_run_is_refused(
    source: PeerSource, peer: RawServer, sample: Sample
) -> None:
    """Right chunks in the wrong place are wrong: their own digests pass, the proof decides."""
    honest = answer_as_peer(sample)

    def swap(request: Request) -> Reply:
        return honest(replace(request, path=request.path.replace("5-5", "0-0")))

    peer.answer = swap
    fetch_failing(source, sample, PeerProtocolError, 5, 5)
