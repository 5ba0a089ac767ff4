"""
Owns the tests of daemon.peer_api: what a neighbour may ask, and what it is told.

Knows nothing of fetching.
Invariants: restricted content is not there for anybody; a bad question is an error of the asker.
Source: daemon/peer_api.py; docs/reference/peer-protocol.md; design.md §8.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from urllib.parse import quote

import pytest

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.layout import Layout
from p2pcache.core.messages import Exchange, Hello, SwarmEntry, snapshot_from_json, table_from_json
from p2pcache.core.neighbours import Neighbourhood
from p2pcache.core.turns import RUNS_AT_FIRST
from p2pcache.core.verify import digest_of
from p2pcache.core.views import PlannerLimits
from p2pcache.daemon import app, peer_api
from tests.daemon.conftest import Serve
from tests.daemon.local import Served
from tests.engine.conftest import (
    CHUNK_BYTES,
    FILES,
    GATED,
    PRIVATE,
    REPO,
    TOKEN,
    WEIGHTS,
    MakeCache,
)
from tests.engine.engine import Engine, eventually
from tests.engine.fakepeer import sha256_name
from tests.hub import Hub, Repository

BLOB = sha256_name(WEIGHTS)
OTHER = WEIGHTS[::-1]
SECRET = FILES["pytorch_model.bin"] + b"secret"
SECRET_BLOB = sha256_name(SECRET)
RUNS = f"/v1/blobs/{BLOB}/chunks"


@pytest.fixture
async def stocked(served: Served) -> Served:
    """A daemon that holds a public and a gated model."""
    assert (await served.engine.pull(REPO)).error is None
    assert (await served.engine.pull(GATED, token=TOKEN)).error is None
    return served


def make_exchange(blob: object = BLOB, port: int = 9) -> Exchange:
    """Make what a peer that wants the weights says."""
    layout = Layout(len(WEIGHTS))
    empty = Bitfield(layout.chunk_count)
    entry = SwarmEntry(blob, layout, empty, empty.copy(), True, True)  # type: ignore[arg-type]
    return Exchange(Hello("1" * 32, "asker", "0.1.0"), port, (entry,))


async def test_hello_says_who_this_is(served: Served) -> None:
    """Name, id, version and capabilities, in the protocol's form."""
    reply = await served.ask("/v1/hello", peer=True)
    hello = Hello.from_json(reply.json)
    assert (hello.name, hello.peer_id) == ("a", served.engine.context.settings.peer_id)


async def test_exchange_answers_about_the_blobs_that_were_named(stocked: Served) -> None:
    """What is here is described, what is not is left out, and the asker is met."""
    message = make_exchange().to_json()
    reply = await stocked.ask("/v1/swarm", "POST", peer=True, body=message)
    ours = Exchange.from_json(reply.json)
    assert [(entry.blob, entry.have.is_full()) for entry in ours.entries] == [(BLOB, True)]
    assert f"127.0.0.1:{ours.port}" == stocked.peer
    assert [p.name for p in stocked.engine.cache.swarm.peers.values()] == ["asker"]
    unknown = make_exchange(sha256_name(b"unknown")).to_json()
    reply = await stocked.ask("/v1/swarm", "POST", peer=True, body=unknown)
    assert Exchange.from_json(reply.json).entries == ()


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"[]", b"{}", b"[" * 100_000, b"null", b"\xff", b'{"blobs": 1}'],
    ids=range(8),
)
async def test_exchange_that_is_none_is_400(served: Served, body: bytes) -> None:
    """Anything but an exchange is the asker's fault."""
    reply = await served.ask("/v1/swarm", "POST", peer=True, body=body)
    assert reply.error[0] == 400


async def test_exchange_that_is_too_large_is_refused(
    engine: Engine, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many entries are 400, too many bytes 413; nobody is met by either."""
    monkeypatch.setattr(app, "EXCHANGE_BYTES_MAX", 10_000_000)
    served = await serve(engine)
    message = make_exchange().to_json()
    message["blobs"] = [7] * 10_001
    reply = await served.ask("/v1/swarm", "POST", peer=True, body=message)
    assert reply.error[0] == 400
    reply = await served.ask("/v1/swarm", "POST", peer=True, body=b" " * 11_000_000)
    assert reply.error[0] == 413
    assert engine.cache.swarm.peers == {}


@pytest.mark.parametrize("run", ["0-0", "0-3", "19-19", "5-19", "0-19"])
async def test_run_has_its_bytes_and_a_digest_for_each_chunk(stocked: Served, run: str) -> None:
    """A run is exactly its chunks; the head names the digest of each."""
    reply = await stocked.ask(f"{RUNS}/{run}", peer=True)
    first, last = map(int, run.split("-"))
    expected = WEIGHTS[first * CHUNK_BYTES : (last + 1) * CHUNK_BYTES]
    assert (reply.status, reply.body) == (200, expected)
    digests = reply.headers["X-P2PCache-Chunks"].split(",")
    pieces = [expected[n : n + CHUNK_BYTES] for n in range(0, len(expected), CHUNK_BYTES)]
    assert digests == [str(digest_of(piece)) for piece in pieces]


async def test_run_asked_for_by_head_has_no_body_and_no_open_file(stocked: Served) -> None:
    """HEAD tells the length and leaves nothing behind."""
    reply = await stocked.ask(f"{RUNS}/0-3", "HEAD", peer=True)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Length"] == str(4 * CHUNK_BYTES)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"{RUNS}/20-20", 416, "InvalidRange"),
        (f"{RUNS}/3-2", 416, "InvalidRange"),
        (f"{RUNS}/0-9999999", 416, "InvalidRange"),
        (f"{RUNS}/0-99999999", 400, "Input"),
        (f"{RUNS}/-1-2", 400, "Input"),
        (f"{RUNS}/a-b", 400, "Input"),
        (f"{RUNS}/1", 400, "Input"),
        (f"{RUNS}/%EF%BC%90-0", 400, "Input"),
        ("/v1/blobs/sha256:xyz/chunks/0-0", 400, "InvalidDigest"),
        ("/v1/blobs/..%2F..%2Fetc/chunks/0-0", 400, "InvalidDigest"),
        (f"/v1/blobs/{sha256_name(b'none')}/chunks/0-0", 404, "BlobNotFound"),
        (f"/v1/blobs/{sha256_name(b'none')}/table", 404, "BlobNotFound"),
        (f"/v1/chunks/{'0' * 64}", 404, "BlobNotFound"),
        ("/v1/chunks/xyz", 400, "InvalidDigest"),
        ("/v1/snapshots/hf/org%2Fnone/main", 404, "NotFound"),
        ("/v1/snapshots/xx/org%2Fmodel/main", 400, "InvalidName"),
        ("/v1/snapshots/hf/..%2F..%2Fx/main", 400, "InvalidName"),
        ("/v1/snapshots/hf/org%2Fmodel/..", 404, None),
        ("/v1/nothing", 404, "NotFound"),
        ("/", 404, "NotFound"),
    ],
)
async def test_question_that_cannot_be_answered_is_json(
    stocked: Served, path: str, status: int, code: str | None
) -> None:
    """Missing and malformed are told apart, each with a code."""
    reply = await stocked.ask(path, peer=True)
    if code is None:
        assert reply.status in (400, 404)
    else:
        assert reply.error == (status, code)


async def test_run_longer_than_a_request_may_be_is_416(
    stocked: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer cannot have more in one request than runs have."""
    limits = replace(stocked.engine.context.limits, run_bytes_max=3 * CHUNK_BYTES)
    monkeypatch.setattr(stocked.engine.context, "limits", limits)
    assert (await stocked.ask(f"{RUNS}/0-2", peer=True)).status == 200
    assert (await stocked.ask(f"{RUNS}/0-3", peer=True)).error == (416, "InvalidRange")


async def test_run_in_another_layout_is_409(stocked: Served) -> None:
    """A peer that cuts differently is told so; one that cuts alike is served."""
    other = {"X-P2PCache-Layout": "cdc-1"}
    reply = await stocked.ask(f"{RUNS}/0-0", peer=True, headers=other)
    assert reply.error == (409, "OtherLayout")
    same = {"X-P2PCache-Layout": Layout(1).name}
    assert (await stocked.ask(f"{RUNS}/0-0", peer=True, headers=same)).status == 200


async def test_run_that_is_on_its_way_is_425_with_a_time(served: Served, hub: Hub) -> None:
    """Chunks in flight are announced, not missing."""
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=f"{REPO}/pytorch_model.bin")
    served.engine.context.limits = PlannerLimits(run_bytes_min=1, upstream_requests_inflight_max=4)
    active = await served.engine.start_fetch(REPO, "pytorch_model.bin")
    state = active.fetch.state
    await eventually(lambda: len(state.have) >= 8, "two chunks of each run")
    held, coming = min(state.have), next(iter(state.machine.intent))
    assert (await served.ask(f"{RUNS}/{held}-{held}", peer=True)).status == 200
    reply = await served.ask(f"{RUNS}/{coming}-{coming}", peer=True)
    assert reply.error == (425, "ChunkNotYet")
    assert reply.headers["Retry-After"] == "1"
    table = table_from_json((await served.ask(f"/v1/blobs/{BLOB}/table", peer=True)).json)
    assert {n for n, digest in enumerate(table) if digest is not None} == set(state.have)
    hub.set_faults()
    await active.result()


async def test_run_of_a_damaged_file_is_500_and_names_it(stocked: Served) -> None:
    """A peer is told of damage, so that it asks another instead of blaming us."""
    path = stocked.engine.context.store.path_of(BLOB)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"damage")
    os.utime(path, ns=(1, 1))
    assert (await stocked.ask(f"{RUNS}/0-0", peer=True)).error == (500, "BlobCorrupt")
    await stocked.engine.cache.shelf._checks.settle(BLOB)


async def test_table_is_proven_and_names_every_chunk(stocked: Served) -> None:
    """The table of a whole blob says how far it can be believed."""
    reply = await stocked.ask(f"/v1/blobs/{BLOB}/table", peer=True)
    assert reply.json["standing"] == "proven"
    table = table_from_json(reply.json)
    assert [digest for digest in table if digest is None] == []


async def test_chunk_by_its_hash_is_its_bytes(stocked: Served) -> None:
    """A chunk is found wherever it is."""
    digest = digest_of(WEIGHTS[-1000:][: len(WEIGHTS) - 19 * CHUNK_BYTES])
    last = WEIGHTS[19 * CHUNK_BYTES :]
    reply = await stocked.ask(f"/v1/chunks/{digest_of(last)}", peer=True)
    assert (reply.status, reply.body) == (200, last)
    assert reply.headers["X-P2PCache-Chunks"] == str(digest_of(last))
    assert (await stocked.ask(f"/v1/chunks/{digest}", peer=True)).status == 404


@pytest.mark.parametrize("revision", ["main", "commit"])
async def test_snapshot_is_the_list_of_files(stocked: Served, revision: str) -> None:
    """A branch or a commit gives the same list."""
    snapshot, _ = await stocked.engine.find(REPO, "config.json")
    name = snapshot.id.commit if revision == "commit" else revision
    reply = await stocked.ask(f"/v1/snapshots/hf/{quote(REPO, safe='')}/{name}", peer=True)
    assert snapshot_from_json(reply.json) == snapshot
    assert (await stocked.ask(f"/v1/snapshots/hf/{REPO}/{name}", peer=True)).status == 200


@pytest.mark.parametrize("trust_peers", [False, True])
async def test_hub_is_asked_for_a_peer_only_among_those_that_trust_each_other(
    make_cache: MakeCache, serve: Serve, hub: Hub, *, trust_peers: bool
) -> None:
    """A neighbour may have us ask about what is public, and hears since when; nobody else may."""
    served = await serve(await make_cache("asked", trust_peers=trust_peers))
    path = f"/v1/snapshots/hf/{quote(REPO, safe='')}/main"
    assert (await served.ask(path, peer=True)).status == 404
    for _ in range(2):
        reply = await served.ask(f"{path}?ask=1", peer=True)
        assert reply.status == (200 if trust_peers else 404)
    assert hub.stats.count_requests(route="revision") == trust_peers
    if trust_peers:
        assert 0 <= reply.json["age_ms"] < 60_000
        assert {entry.path for entry in snapshot_from_json(reply.json).files} == set(FILES)
    for hidden in (PRIVATE, GATED):
        hidden_path = f"/v1/snapshots/hf/{quote(hidden, safe='')}/main?ask=1"
        assert (await served.ask(hidden_path, peer=True)).status == 404


async def test_restricted_content_is_not_there(stocked: Served) -> None:
    """Bytes, chunks, tables, lists and exchanges know nothing of gated or private content."""
    chunk = digest_of(SECRET[-10:])
    paths = [
        f"/v1/blobs/{SECRET_BLOB}/chunks/0-0",
        f"/v1/blobs/{SECRET_BLOB}/table",
        f"/v1/chunks/{chunk}",
        f"/v1/snapshots/hf/{quote(GATED, safe='')}/main",
        f"/v1/snapshots/hf/{quote(PRIVATE, safe='')}/main",
    ]
    for path in paths:
        assert (await stocked.ask(path, peer=True)).status == 404, path
    message = make_exchange(SECRET_BLOB).to_json()
    reply = await stocked.ask("/v1/swarm", "POST", peer=True, body=message)
    assert reply.json["blobs"] == []


async def test_address_outside_the_local_network_is_refused(
    stocked: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody beyond the local network gets an answer, not even hello."""
    monkeypatch.setattr(peer_api, "is_private_address", lambda host: False)
    for path in ("/v1/hello", f"{RUNS}/0-0", "/v1/nothing"):
        assert (await stocked.ask(path, peer=True)).error == (403, "Forbidden")


async def test_too_many_uploads_are_sent_away_and_leave_no_open_file(
    stocked: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit a peer is told to come back, at once."""
    monkeypatch.setattr(asyncio.Semaphore, "locked", lambda self: True)
    reply = await stocked.ask(f"{RUNS}/0-0", peer=True)
    assert reply.error[0] == 503
    monkeypatch.undo()


async def test_daemon_of_a_crowd_that_fetches_gives_few_runs_at_once(
    stocked: Served, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes too many is told so at once; the first ones get all that they asked for."""
    fetches = stocked.engine.cache.fetches
    hub.add(Repository("org/other", {"model.bin": OTHER}))
    hub.set_faults(hang_after_bytes=0, paths="org/other/*")
    await stocked.engine.start_fetch("org/other", "model.bin")
    assert fetches.count_held_chunks() == 0
    monkeypatch.setattr(Neighbourhood, "is_crowded", True)
    send, may_go, begun = peer_api.PeerApi._send_body, asyncio.Event(), []

    async def send_later(*args: object) -> None:
        begun.append(args)
        await may_go.wait()
        await send(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(peer_api.PeerApi, "_send_body", send_later)
    asks = [asyncio.ensure_future(stocked.ask(f"{RUNS}/0-0", peer=True)) for _ in range(3)]
    await eventually(lambda: len(begun) == RUNS_AT_FIRST == len(asks), "the first uploads")
    assert (await stocked.ask(f"{RUNS}/1-1", peer=True)).error[0] == 503
    may_go.set()
    assert [(await ask).body for ask in asks] == [WEIGHTS[:CHUNK_BYTES]] * 3
    assert (await stocked.ask(f"{RUNS}/1-1", peer=True)).status == 200
    hub.set_faults()


async def test_management_and_gateway_are_not_on_the_peer_endpoint(stocked: Served) -> None:
    """Neighbours reach the peer protocol and nothing else."""
    for path in (
        "/_p2pcache/v1/status",
        "/metrics",
        f"/{REPO}/resolve/main/config.json",
        f"/api/models/{REPO}",
    ):
        assert (await stocked.ask(path, peer=True)).status == 404
    body = json.dumps({"model": REPO}).encode()
    reply = await stocked.ask("/_p2pcache/v1/downloads", "POST", peer=True, body=body)
    assert reply.status == 404
