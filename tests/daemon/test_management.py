"""
Owns the tests of daemon.management: every route, its fields, its refusals.

Knows nothing of the command line that uses it.
Invariants: field names are the contract's; a bad body changes nothing.
Source: daemon/management.py; design.md §8.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote

import pytest

from p2pcache.core.peers import BAN_S
from p2pcache.daemon.peerlist import SILENT_S
from p2pcache.engine.downloads import FINAL_STATES
from tests.daemon.local import Served
from tests.engine.conftest import (
    CHUNK_BYTES,
    FILES,
    GATED,
    MODEL_BYTES,
    PRIVATE,
    REPO,
    TOKEN,
    WEIGHTS,
    MakePeer,
)
from tests.engine.engine import eventually
from tests.hub import Hub

BASE = "/_p2pcache/v1"
ALIAS = "/api/v1/models/download"
JOB_FIELDS = {
    "id",
    "model",
    "commit",
    "state",
    "bytes_total",
    "bytes_done",
    "bytes_from_peers",
    "bytes_from_upstream",
    "bytes_from_disk",
    "rate_bps",
    "eta_s",
}
PEER_FIELDS = {
    "name",
    "id",
    "address",
    "version",
    "via",
    "state",
    "reason",
    "banned_until",
    "rate_bps",
    "received_bytes",
    "requests_inflight",
    "last_seen_s",
    "faults",
}
RESIDENCY_FIELDS = {
    "model",
    "commit",
    "state",
    "pinned",
    "bytes_total",
    "bytes_local",
    "bytes_missing",
    "disk_free",
    "fits_disk",
}


async def wait_for_job(served: Served, job_id: str) -> Any:
    """Ask about a job until it is over; returns what it says then."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        job = (await served.ask(f"{BASE}/downloads/{job_id}")).json
        if job["state"] in [state.value for state in FINAL_STATES]:
            return job
        await asyncio.sleep(0.02)
    raise TimeoutError("the job did not end")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{BASE}/downloads", {"model": REPO}),
        (f"{BASE}/downloads", {"model": f"hf:{REPO}@main", "revision": "main"}),
        (ALIAS, {"model_id": REPO}),
        (ALIAS, {"model": REPO, "target_worker": None, "download_path": None}),
        (f"{BASE}/downloads", {"model": REPO, "something_new": {"a": 1}}),
    ],
)
async def test_download_is_202_and_ends_done(
    served: Served, path: str, body: dict[str, object]
) -> None:
    """Both routes begin the same job, and its numbers add up at the end."""
    reply = await served.change(path, body=body)
    assert (reply.status, sorted(reply.json)) == (202, ["id", "state"])
    job = await wait_for_job(served, reply.json["id"])
    assert set(job) >= JOB_FIELDS
    assert (job["state"], job["bytes_done"], job["bytes_total"]) == (
        "done",
        MODEL_BYTES,
        MODEL_BYTES,
    )
    assert job["bytes_from_upstream"] == MODEL_BYTES
    assert "error" not in job
    listed = (await served.ask(f"{BASE}/downloads")).json["downloads"]
    assert [other["id"] for other in listed] == [job["id"]]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_download_alias_with_another_method_says_where_to_look(
    served: Served, hub: Hub, method: str
) -> None:
    """The alias takes orders alone; nothing of its path is asked of ModelScope."""
    asked = hub.stats.requests_total
    reply = await served.change(ALIAS, method)
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert reply.headers["X-Error-Code"] == "MethodNotAllowed"
    if method != "HEAD":
        assert reply.error == (405, "MethodNotAllowed")
        assert f"GET {BASE}/downloads" in reply.json["message"]
    assert hub.stats.requests_total == asked


async def test_download_that_fails_says_why(served: Served) -> None:
    """The job has the error's code and sentence."""
    reply = await served.change(f"{BASE}/downloads", body={"model": "org/none"})
    job = await wait_for_job(served, reply.json["id"])
    assert job["state"] == "failed"
    assert job["error"]["error"] == "RepositoryNotFound"
    assert "org/none" in job["error"]["message"]


async def test_download_of_a_gated_model_uses_and_hides_its_token(served: Served) -> None:
    """A token is used, is in no answer, and hides the job from whoever has no admin token."""
    reply = await served.change(f"{BASE}/downloads", body={"model": GATED, "token": TOKEN})
    path = f"{BASE}/downloads/{reply.json['id']}"
    assert (await served.ask(path)).error == (404, "JobNotFound")
    assert (await served.ask(f"{path}/events")).error == (404, "JobNotFound")
    job = served.engine.downloads.get(reply.json["id"])
    await eventually(lambda: job.state in FINAL_STATES, "the download's end")
    assert job.state.value == "done"
    for path in ("downloads", "status", "models", f"downloads/{job.id}"):
        answer = await served.ask(f"{BASE}/{path}", headers=served.change_headers)
        assert answer.status == 200
        assert TOKEN.encode() not in answer.body


async def test_download_can_be_cancelled(served: Served, hub: Hub) -> None:
    """DELETE ends a job; again it changes nothing; an unknown one is 404."""
    await served.engine.find(REPO, "config.json")
    hub.set_faults(hang_after_bytes=CHUNK_BYTES, paths=f"{REPO}/pytorch_model.bin")
    job_id = (await served.change(f"{BASE}/downloads", body={"model": REPO})).json["id"]
    reply = await served.change(f"{BASE}/downloads/{job_id}", "DELETE")
    assert (reply.status, reply.json["state"]) == (200, "cancelled")
    reply = await served.change(f"{BASE}/downloads/{job_id}", "DELETE")
    assert reply.json["state"] == "cancelled"
    assert (await served.change(f"{BASE}/downloads/none", "DELETE")).error == (404, "JobNotFound")
    assert (await served.ask(f"{BASE}/downloads/none")).error == (404, "JobNotFound")


async def test_download_shows_progress_that_never_exceeds_its_total(
    served: Served, hub: Hub
) -> None:
    """While it runs, a job's numbers are possible at every moment."""
    hub.set_faults(rate_bytes_per_s=1_500_000)
    job_id = (await served.change(f"{BASE}/downloads", body={"model": REPO})).json["id"]
    seen = []
    while True:
        job = (await served.ask(f"{BASE}/downloads/{job_id}")).json
        seen.append(job["bytes_done"])
        assert job["bytes_done"] <= max(job["bytes_total"], 0)
        assert job["eta_s"] is None or job["eta_s"] >= 0
        assert job["rate_bps"] >= 0
        if job["state"] == "done":
            break
        assert job["state"] in ("queued", "resolving", "downloading", "verifying")
        await asyncio.sleep(0.01)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"org/model"',
        b"[" * 100_000,
        b"{}",
        b'{"model": ""}',
        b'{"model": 5}',
        b'{"model": null}',
        b'{"model": "../../etc"}',
        b'{"model": "org/model", "revision": 5}',
        b'{"model": "org/model@main", "revision": "other"}',
        b'{"model": "org/model", "revision": "a..b"}',
        b'{"model": "org/model", "include": 5}',
        b'{"model": "org/model", "include": [5]}',
        b'{"model": "org/model", "include": [""]}',
        b'{"model": "org/model", "include": {"a": 1}}',
        b'{"model": "org/model", "token": 5}',
        b'{"model": "org/model", "token": "a\\nb"}',
        b'{"model": "org/model", "workers": [5]}',
        b'{"model": "org/model", "workers": "gpu=h100=x"}',
        b'{"model": "org/model", "path": "relative"}',
        b'{"model": "org/model", "priority": 101}',
        b'{"model": "org/model", "priority": true}',
        b'{"model_id": "org/model", "target_worker": 5}',
        b'{"model_id": "org/model", "download_path": "/x/../y"}',
        b'{"model": "org/model", "pin": "yes"}',
        b"\xff\xfe",
    ],
    ids=range(28),
)
async def test_download_with_a_bad_body_is_400_and_begins_nothing(
    served: Served, body: bytes
) -> None:
    """Malformed, impossible and not yet built are refused with a sentence."""
    for path in (f"{BASE}/downloads", ALIAS):
        reply = await served.ask(path, "POST", body=body, headers=served.change_headers)
        assert reply.error[0] == 400
    assert served.engine.downloads.list_all() == []


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_change_of_another_content_type_is_400(served: Served, content_type: str) -> None:
    """What a form can send without asking is not JSON."""
    headers = {**served.change_headers, "Content-Type": content_type}
    body = b'{"model": "org/model"}'
    for path in (f"{BASE}/downloads", f"{BASE}/pins", ALIAS):
        assert (await served.ask(path, "POST", body=body, headers=headers)).error[0] == 400


async def test_patterns_are_bounded(served: Served) -> None:
    """Too many or too long patterns are refused; one may be given as text."""
    for include in (["*"] * 1001, ["x" * 4097]):
        reply = await served.change(f"{BASE}/downloads", body={"model": REPO, "include": include})
        assert reply.error[0] == 400
    body = {"model": REPO, "include": "*.json", "exclude": ["none"]}
    reply = await served.change(f"{BASE}/downloads", body=body)
    job = await wait_for_job(served, reply.json["id"])
    assert job["bytes_total"] == len(FILES["config.json"])


async def test_oversized_body_is_413(served: Served) -> None:
    """A body beyond the limit is refused before it is read."""
    reply = await served.change(f"{BASE}/downloads", body={"model": "x" * 2_000_000})
    assert reply.error == (413, "RequestEntityTooLarge")


async def test_residency_of_something_unknown_is_absent(served: Served, hub: Hub) -> None:
    """A question about anything is answered from the index, without a request to the hub."""
    reply = await served.ask(f"{BASE}/residency/org/unknown")
    assert set(reply.json) >= RESIDENCY_FIELDS
    assert (reply.status, reply.json["state"], reply.json["commit"]) == (200, "absent", None)
    assert hub.stats.requests_total == 0
    for bad in ("..%2F..", "org/name@a..b", "xx:org/name"):
        assert (await served.ask(f"{BASE}/residency/{bad}")).error == (400, "InvalidName")


async def test_residency_follows_a_model_on_its_way(served: Served, hub: Hub) -> None:
    """Absent, partial, resident: bytes here and missing always make the total."""
    snapshot, _ = await served.engine.find(REPO, "config.json")
    assert await served.engine.cache.access.is_public(snapshot)
    path = f"{BASE}/residency/{REPO}"
    absent = (await served.ask(path)).json
    assert (absent["state"], absent["bytes_missing"]) == ("absent", MODEL_BYTES)
    hub.set_faults(hang_after_bytes=2 * CHUNK_BYTES, paths=f"{REPO}/pytorch_model.bin")
    job_id = (await served.change(f"{BASE}/downloads", body={"model": REPO})).json["id"]
    await eventually(lambda: hub.stats.body_bytes >= 4 * CHUNK_BYTES, "some bytes")
    partial = (await served.ask(path)).json
    assert partial["bytes_local"] + partial["bytes_missing"] == MODEL_BYTES
    assert "path" not in partial
    hub.set_faults()
    await wait_for_job(served, job_id)
    for reference in (REPO, quote(REPO, safe=""), f"{REPO}@{snapshot.id.commit}"):
        resident = (await served.ask(f"{BASE}/residency/{reference}")).json
        assert (resident["state"], resident["bytes_local"]) == ("resident", MODEL_BYTES)
        assert resident["commit"] == snapshot.id.commit
        assert resident["path"].endswith(snapshot.id.commit)
    assert resident["fits_disk"] is True
    assert abs(resident["verified_at"] - time.time()) < 60
    assert "verified_at" not in partial


async def test_models_lists_what_something_is_here_of(served: Served) -> None:
    """Snapshots with bytes are listed with what they take; known ones without are not."""
    await served.engine.find(REPO, "config.json")
    assert (await served.ask(f"{BASE}/models")).json == {"models": []}
    await served.engine.pull(REPO, include=("config.json",))
    listed = (await served.ask(f"{BASE}/models")).json["models"]
    assert [(m["model"], m["state"], m["revisions"]) for m in listed] == [
        (REPO, "partial", ["main"])
    ]
    assert {"commit", "bytes_total", "bytes_local", "pinned", "public", "path"} <= set(listed[0])


async def test_storage_counts_what_is_on_disk(served: Served) -> None:
    """Blobs, bytes and the disk's numbers."""
    await served.engine.pull(REPO)
    storage = (await served.ask(f"{BASE}/storage")).json
    assert (storage["blobs"], storage["blobs_bytes"]) == (len(FILES), MODEL_BYTES)
    assert storage["disk_free"] <= storage["disk_total"]
    assert storage["store"] == str(served.engine.root)


async def test_peers_lists_who_answers_and_who_does_not(
    served: Served, make_peer: MakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer with its numbers, a banned one with its reason, an address without an answer."""
    monkeypatch.setattr("p2pcache.core.cadence.PROBE_INTERVAL_S", 0.02)
    peer = await make_peer(WEIGHTS)
    await served.engine.meet(peer.address, via="mdns")
    listed = (await served.ask(f"{BASE}/peers")).json
    assert [(p["name"], p["address"], p["state"], p["via"]) for p in listed["peers"]] == [
        (peer.name, peer.address, "up", "mdns")
    ]
    assert set(listed["peers"][0]) == PEER_FIELDS
    served.engine.cache.swarm.peers[peer.peer_id].requests_inflight = 2
    assert (await served.ask(f"{BASE}/peers")).json["peers"][0]["requests_inflight"] == 2
    served.engine.cache.swarm.peers[peer.peer_id].requests_inflight = 0
    context = served.engine.context
    fault = context.make_fault(peer.peer_id, peer.name, "wrong bytes", "It lied; look at it.")
    context.blame.note_wrong_bytes(fault, now_s=context.clock.monotonic_s())
    banned = (await served.ask(f"{BASE}/peers")).json["peers"][0]
    assert (banned["state"], banned["reason"]) == ("banned", "It lied; look at it.")
    assert 0 < banned["banned_until"] - context.clock.wall_s() <= BAN_S + 1
    assert banned["faults"] == [
        {"reason": "wrong bytes", "detail": "It lied; look at it.", "at": fault.wall_s}
    ]
    status = (await served.ask(f"{BASE}/status")).json
    assert (status["peers"], status["faults"][0]["name"]) == (0, peer.name)
    await peer.stop()
    await eventually(
        lambda: served.engine.cache.swarm.list_unreachable(), "nobody answers any more"
    )
    unreachable = (await served.ask(f"{BASE}/peers")).json["unreachable"]
    assert unreachable == [{"address": peer.address, "via": "mdns"}]
    # A ban outlives the peer's presence: it may come back under the same id.
    served.engine.cache.swarm.peers.clear()
    gone = (await served.ask(f"{BASE}/peers")).json["peers"]
    assert [(p["id"], p["name"], p["address"], p["state"]) for p in gone] == [
        (peer.peer_id, peer.name, None, "banned")
    ]
    assert set(gone[0]) == PEER_FIELDS


async def test_peer_that_leaves_visits_unanswered_is_silent(
    served: Served, make_peer: MakePeer
) -> None:
    """Not gone yet, but nothing comes from there."""
    peer = await make_peer(WEIGHTS)
    await served.engine.meet(peer.address)
    known = served.engine.cache.swarm.peers[peer.peer_id]
    await peer.stop()
    known.last_seen_s -= SILENT_S + 1
    listed = (await served.ask(f"{BASE}/peers")).json["peers"]
    assert [(p["state"], p["reason"], p["faults"]) for p in listed] == [("silent", None, [])]


async def test_status_says_what_limits_there_are_and_what_the_hub_wants(
    served: Served, hub: Hub
) -> None:
    """For whoever wonders why it is slow."""
    status = (await served.ask(f"{BASE}/status")).json
    assert status["limits"] == dict.fromkeys(
        ["upstream_bps", "download_bps", "upload_bps", "peer_bps"]
    )
    assert status["upstream_paused_s"] == 0
    served.engine.context.budget.pause(100.0, now_s=served.engine.context.clock.monotonic_s())
    assert 90 < (await served.ask(f"{BASE}/status")).json["upstream_paused_s"] <= 105


async def test_status_says_who_this_is(served: Served) -> None:
    """Name, store, upstream and what runs."""
    status = (await served.ask(f"{BASE}/status")).json
    assert {"name", "id", "version", "store", "upstream", "uptime_s", "peers", "downloads"} <= set(
        status
    )
    assert served.engine.context.home.admin_token not in str(status)


async def test_pin_protects_what_is_here_and_unpin_ends_it(served: Served) -> None:
    """A pin shows everywhere, and cannot be taken twice."""
    body = {"model": REPO}
    assert (await served.change(f"{BASE}/pins", body=body)).error == (404, "NotFound")
    job = await served.engine.pull(REPO)
    reply = await served.change(f"{BASE}/pins", body=body)
    assert reply.json == {"model": REPO, "revision": "main", "commit": job.commit}
    assert (await served.ask(f"{BASE}/pins")).json == {"pins": [reply.json]}
    assert (await served.ask(f"{BASE}/residency/{REPO}")).json["pinned"] is True
    assert (await served.ask(f"{BASE}/models")).json["models"][0]["pinned"] is True
    assert (await served.change(f"{BASE}/pins", "DELETE", body)).status == 200
    assert (await served.change(f"{BASE}/pins", "DELETE", body)).error == (404, "NotFound")
    assert (await served.ask(f"{BASE}/pins")).json == {"pins": []}


async def test_unknown_route_is_404_in_our_form(served: Served) -> None:
    """What is not built is not there, and says so as JSON."""
    assert (await served.ask(f"{BASE}/nothing")).error[0] == 404
    assert (await served.change(f"{BASE}/events", body={})).error[0] == 404
    assert (await served.ask("/_p2pcache/v2/status")).error[0] == 404


async def test_health_is_answered_while_the_hub_is_away(served: Served, hub: Hub) -> None:
    """The daemon is alive whatever the hub is."""
    await hub.set_listening(hub=False, cdn=False)
    for path in ("/healthz", "/readyz"):
        assert (await served.ask(path)).body == b"ok\n"


@pytest.mark.parametrize("repo", [GATED, PRIVATE])
async def test_gateway_keeps_restricted_files_for_those_who_may(served: Served, repo: str) -> None:
    """What one token brought here is refused to others with the hub's own answer."""
    path = f"/{repo}/resolve/main/pytorch_model.bin"
    allowed = {"Authorization": f"Bearer {TOKEN}"}
    assert (await served.ask(path, headers=allowed)).body == WEIGHTS + b"secret"
    assert (await served.ask(path)).status == 401
    other = {"Authorization": "Bearer hf_other"}
    assert (await served.ask(path, headers=other)).status in (403, 404)
    assert (await served.ask(path, headers={"Authorization": "Bearer hf_wrong"})).status == 401
