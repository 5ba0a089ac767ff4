"""
Owns the tests of daemon.downloads_api, daemon.events_api and daemon.orders_api.

Knows nothing of the command line.
Invariants: field names are the contract's; who may not know of a job does not learn of it.
Source: docs/reference/http-api.md; docs/reference/peer-protocol.md ("Orders").
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from p2pcache.core.jobs import FINAL_STATES, JobState
from p2pcache.core.refs import ModelReference
from p2pcache.daemon import events_api
from p2pcache.engine import news as news_module
from tests.daemon.local import Served
from tests.engine.conftest import CHUNK_BYTES, GATED, MODEL_BYTES, REPO, TOKEN
from tests.engine.engine import eventually
from tests.hub import Hub, Repository

BASE = "/_p2pcache/v1"
KEY = f"{REPO}/pytorch_model.bin"
ORDER_HEADERS = {"X-P2PCache": "1"}
ORDER_ID = "0123456789abcdef"


@asynccontextmanager
async def streaming(
    served: Served, path: str, **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Open a stream of events."""
    url = f"http://{served.local}{path}"
    async with served.session.get(url, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield response


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str, Any]]:
    """Iterate over (kind, id, data) of a stream."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
            fields = {}


async def begin_and_hang(served: Served, hub: Hub) -> str:
    """Begin a download that comes to a halt; returns its id."""
    await served.engine.find(REPO, "config.json")
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)
    job_id = str((await served.change(f"{BASE}/downloads", body={"model": REPO})).json["id"])
    job = served.engine.downloads.get(job_id)
    await eventually(lambda: job.count_bytes().total() > 4 * CHUNK_BYTES, "some chunks")
    return job_id


async def test_download_is_paused_and_resumed(served: Served, hub: Hub) -> None:
    """Pause, resume, cancel: each answers the job; what has ended is 409, what is unknown 404."""
    job_id = await begin_and_hang(served, hub)
    path = f"{BASE}/downloads/{job_id}"
    assert (await served.ask(f"{path}/pause", "POST")).error == (401, "MissingToken")
    assert (await served.change(f"{path}/pause")).json["state"] == "paused"
    assert (await served.ask(path)).json["bytes_done"] > 0
    hub.set_faults()
    assert (await served.change(f"{path}/resume", body={})).json["state"] != "paused"
    job = served.engine.downloads.get(job_id)
    await eventually(lambda: job.is_over, "the end")
    assert (await served.ask(path)).json["bytes_done"] == MODEL_BYTES
    for verb in ("pause", "resume"):
        assert (await served.change(f"{path}/{verb}")).error == (409, "JobEnded")
        assert (await served.change(f"{BASE}/downloads/none/{verb}")).error == (
            404,
            "JobNotFound",
        )


async def test_events_of_a_download_go_from_now_to_its_end(served: Served, hub: Hub) -> None:
    """The first says how it is, numbers only grow, the last has the final state; then it closes."""
    hub.set_faults(rate_bytes_per_s=300_000)
    reply = await served.change(f"{BASE}/downloads", body={"model": REPO})
    heard = []
    async with streaming(served, f"{BASE}/downloads/{reply.json['id']}/events") as response:
        async for kind, _, body in read_events(response):
            heard.append((kind, body))
    assert heard[0][0] == "state"
    assert {kind for kind, _ in heard} == {"state", "progress"}
    assert {body["id"] for _, body in heard} == {reply.json["id"]}
    done = [body["bytes_done"] for _, body in heard]
    assert done == sorted(done)
    last = heard[-1][1]
    assert (last["state"], last["bytes_done"], last["bytes_total"]) == (
        "done",
        MODEL_BYTES,
        MODEL_BYTES,
    )
    async with streaming(served, f"{BASE}/downloads/{reply.json['id']}/events") as response:
        again = [event async for event in read_events(response)]
    assert [body["state"] for _, _, body in again] == ["done"]
    assert (await served.ask(f"{BASE}/downloads/none/events")).error == (404, "JobNotFound")


async def test_download_whose_repository_turned_private_is_for_the_admin_alone(
    served: Served, hub: Hub
) -> None:
    """What the hub denies to anybody since is not listed to anybody, nor after a restart."""
    repository = hub.add(Repository("org/opened", {"config.json": b"{}"}, tokens=[TOKEN]))
    engine = served.engine
    job = await engine.pull("org/opened", token=TOKEN)
    other = await engine.pull(REPO, include=("config.json",))
    path = f"{BASE}/downloads"

    async def list_ids(headers: dict[str, str] | None = None) -> list[str]:
        listed = (await served.ask(path, headers=headers)).json["downloads"]
        return [str(one["id"]) for one in listed]

    assert await list_ids() == [job.id, other.id]
    repository.private = True
    row = await engine.cache.librarian.find_cached(ModelReference.parse("org/opened"))
    assert row is not None
    assert not (await engine.cache.access.visibility.prove(row.snapshot)).is_public
    assert await list_ids() == [other.id]
    assert await list_ids(served.change_headers) == [job.id, other.id]
    assert (await served.ask(f"{path}/{job.id}")).error == (404, "JobNotFound")
    assert job.to_record()["public"] is False


async def test_events_of_everything_are_caught_up_with(served: Served) -> None:
    """Who comes back with the last id gets what it missed, and only that."""
    first = await served.engine.pull(REPO, include=("config.json",))
    await served.engine.pull(REPO, include=("empty.txt",))
    news = served.engine.downloads.news
    ids = [event.id for event in news._kept if event.about == first.id and event.is_public]
    async with streaming(served, f"{BASE}/events", **{"Last-Event-ID": ids[-1]}) as response:
        events = read_events(response)
        heard = [await anext(events) for _ in range(3)]
        assert all(body["id"] != first.id for _, _, body in heard)
        waiting = asyncio.ensure_future(anext(events))
        news.publish("peer", {"name": "x"}, is_public=False)
        news.publish("peer", {"name": "y"})
        while (event := await waiting)[0] != "peer":
            waiting = asyncio.ensure_future(anext(events))
        assert event[2] == {"name": "y"}
    await eventually(lambda: not news.has_listeners, "the listener is gone")


async def test_events_of_something_private_are_for_the_admin(served: Served, hub: Hub) -> None:
    """A job with a token is nobody else's business; its token is in no event."""
    body = {"model": GATED, "token": TOKEN}
    async with (
        streaming(served, f"{BASE}/events") as for_all,
        streaming(served, f"{BASE}/events", **served.change_headers) as for_admin,
    ):
        job_id = (await served.change(f"{BASE}/downloads", body=body)).json["id"]
        heard = []
        async for kind, _, told in read_events(for_admin):
            heard.append(told)
            if kind == "state" and told["state"] == "done":
                break
        assert heard[-1]["id"] == job_id
        assert TOKEN not in json.dumps(heard)
        served.engine.downloads.news.publish("peer", {"name": "z"})
        assert (await anext(read_events(for_all)))[2] == {"name": "z"}


async def test_events_show_that_the_daemon_lives_and_end_with_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments while nothing happens; a stream ends when the daemon does."""
    monkeypatch.setattr(events_api, "HEARTBEAT_S", 0.05)
    async with streaming(served, f"{BASE}/events") as response:
        lines = [await response.content.readline() for _ in range(4)]
        assert lines == [b"retry: 1000\n", b"\n", b": alive\n", b"\n"]
        served.engine.downloads.news.close()
        assert b"data" not in await response.read()


async def test_listeners_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told to come later; one that reads nothing is let go."""
    monkeypatch.setattr(news_module, "LISTENERS_MAX", 1)
    monkeypatch.setattr(news_module, "QUEUE_MAX", 5)
    news = served.engine.downloads.news
    async with streaming(served, f"{BASE}/events"):
        assert (await served.ask(f"{BASE}/events")).error == (503, "DaemonBusy")
    await eventually(lambda: not news.has_listeners, "it left")
    listener = news.listen()
    for number in range(20):
        news.publish("progress", {"n": number}, about="a")
    assert not listener.is_closed
    assert (await listener.next(0)).body == {"n": 19}  # type: ignore[union-attr]
    for number in range(6):
        news.publish("state", {"n": number}, about="a")
    assert listener.has_ended
    news.leave(listener)


# --- orders of other daemons ---


async def order(served: Served, body: Mapping[str, object], **headers: str) -> Any:
    """Send an order to the peer endpoint."""
    all_headers = {**ORDER_HEADERS, **headers}
    return await served.ask("/v1/orders", "POST", peer=True, body=body, headers=all_headers)


async def test_order_is_carried_out_and_told(served: Served) -> None:
    """The same order again is the same job; its end is told to whoever asks."""
    snapshot, _ = await served.engine.find(REPO, "config.json")
    body: dict[str, object] = {"id": ORDER_ID, "model": REPO, "commit": snapshot.id.commit}
    for _ in range(2):
        reply = await order(served, body)
        assert (reply.status, reply.json["id"]) == (202, ORDER_ID)
    job = served.engine.downloads.get(ORDER_ID)
    await eventually(lambda: job.is_over, "the end")
    path = f"/v1/orders/{ORDER_ID}"
    reply = await served.ask(path, peer=True, headers=ORDER_HEADERS)
    assert (reply.json["state"], reply.json["bytes_done"]) == ("done", MODEL_BYTES)
    assert (await served.ask(f"{BASE}/downloads/{ORDER_ID}")).json["ordered_by"] == "127.0.0.1"
    assert len(served.engine.downloads.list_all()) == 1


async def test_order_is_paused_resumed_and_cancelled(served: Served, hub: Hub) -> None:
    """Whoever ordered may stop it, and let it go on by ordering it again."""
    await served.engine.find(REPO, "config.json")
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=KEY)
    body: dict[str, object] = {"id": ORDER_ID, "model": REPO}
    await order(served, body)
    path = f"/v1/orders/{ORDER_ID}"
    reply = await served.ask(f"{path}/pause", "POST", peer=True, headers=ORDER_HEADERS)
    assert reply.json["state"] == "paused"
    assert (await order(served, body)).json["state"] != "paused"
    reply = await served.ask(path, "DELETE", peer=True, headers=ORDER_HEADERS)
    assert reply.json["state"] == "cancelled"


async def test_order_from_elsewhere_is_refused_with_a_next_step(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Web pages, and machines that the operator did not name, order nothing and see nothing."""
    body: dict[str, object] = {"id": ORDER_ID, "model": REPO}
    for headers in ({"Origin": "http://evil"}, {"X-P2PCache": "0"}, {"Referer": "http://x/"}):
        assert (await order(served, body, **headers)).error == (403, "Forbidden")
    monkeypatch.setattr(served.engine.downloads.crew, "may_order", lambda host: False)
    reply = await order(served, body)
    assert reply.error == (403, "Forbidden")
    assert "--peer" in reply.json["message"]
    reply = await served.ask("/v1/worker", peer=True)
    assert (reply.json["may_order"], reply.json["name"]) == (False, served.engine.root.name)
    assert served.engine.downloads.list_all() == []


@pytest.mark.parametrize(
    ("host", "may"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.9", True),
        ("10.0.0.8", False),
        ("8.8.8.8", False),
        ("nonsense", False),
        ("", False),
    ],
)
async def test_crew_takes_orders_from_the_named_alone(served: Served, host: str, may: bool) -> None:
    """This machine, and what --peer named; no other, without --trust-peers."""
    from p2pcache.discovery.base import Candidate

    crew = served.engine.downloads.crew
    crew.note_found(Candidate("10.0.0.9", 7278, "static"))
    crew.note_found(Candidate("10.0.0.8", 7278, "mdns"))
    assert crew.may_order(host) is may


async def test_order_never_reaches_what_is_not_public_or_not_allowed(served: Served) -> None:
    """No token comes with an order; no folder outside of the worker's own; no job of its own."""
    reply = await order(served, {"id": ORDER_ID, "model": GATED})
    job = served.engine.downloads.get(ORDER_ID)
    await eventually(lambda: job.state in FINAL_STATES, "the end")
    assert job.state is JobState.FAILED
    reply = await order(served, {"id": "1" * 16, "model": REPO, "path": "/etc/x"})
    assert reply.error == (403, "Forbidden")
    own = await served.engine.pull(REPO, include=("config.json",))
    assert (await order(served, {"id": own.id, "model": REPO})).error[0] == 400
    path = f"/v1/orders/{own.id}"
    assert (await served.ask(path, peer=True, headers=ORDER_HEADERS)).error[0] == 404
    for bad in ({"model": REPO}, {"id": "../../x", "model": REPO}, {"id": "2" * 16}):
        assert (await order(served, bad)).error[0] == 400
