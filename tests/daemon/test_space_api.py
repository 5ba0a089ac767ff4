"""
Owns the tests of daemon.space_api: every route about room, its fields, its refusals.

Knows nothing of the command line that uses it.
Invariants: field names are the contract's; a refused change changes nothing; private names are
shown to the admin alone.
Source: daemon/space_api.py; docs/reference/http-api.md.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import ModelReference
from tests.daemon.conftest import Serve
from tests.daemon.local import Served
from tests.engine.conftest import (
    FILES,
    GATED,
    MODEL_BYTES,
    PRIVATE,
    REPO,
    TOKEN,
    MakeCache,
)

BASE = "/_p2pcache/v1"
COMMIT = "0" * 40
STORAGE_FIELDS = {
    "store", "blobs", "blobs_bytes", "partial_bytes", "disk_total", "disk_free", "quota",
    "free_floor", "own_bytes", "logical_bytes", "physical_bytes", "saved_bytes", "adopted_bytes",
    "pinned_bytes", "evictable_bytes", "reserved_bytes", "warnings",
}  # fmt: skip
LEASE_FIELDS = {"id", "model", "commit", "path", "holder", "ttl_s", "expires_at"}


async def take_lease(served: Served, **more: object) -> Any:
    """Take a lease of the public model."""
    reply = await served.change(f"{BASE}/leases", body={"model": REPO, **more})
    assert reply.status == 201, reply.body
    return reply.json


async def test_storage_tells_taken_from_allowed(make_cache: MakeCache, serve: Serve) -> None:
    """Every field of the contract, with a quota and without."""
    engine = await make_cache("b", quota_bytes=10**9, free_floor_bytes=1000)
    served = await serve(engine)
    await engine.pull(REPO)
    storage = (await served.ask(f"{BASE}/storage")).json
    assert set(storage) == STORAGE_FIELDS
    assert (storage["reserved_bytes"], storage["warnings"]) == (0, [])
    assert (storage["quota"], storage["free_floor"]) == (10**9, 1000)
    assert (storage["blobs"], storage["blobs_bytes"]) == (len(FILES), MODEL_BYTES)
    assert storage["logical_bytes"] == storage["physical_bytes"] == MODEL_BYTES
    assert storage["saved_bytes"] == storage["adopted_bytes"] == storage["pinned_bytes"] == 0
    assert storage["own_bytes"] == storage["evictable_bytes"] >= MODEL_BYTES
    await served.change(f"{BASE}/pins", body={"model": REPO})
    pinned = (await served.ask(f"{BASE}/storage")).json
    assert (pinned["pinned_bytes"], pinned["evictable_bytes"]) == (storage["own_bytes"], 0)


async def test_storage_without_a_quota_says_null(served: Served) -> None:
    """Null, not a number that looks like one."""
    storage = (await served.ask(f"{BASE}/storage")).json
    assert (storage["quota"], storage["own_bytes"]) == (None, 0)


async def test_gc_tells_its_steps_and_a_dry_run_the_same(served: Served) -> None:
    """What leaves, why and what that gives back; first without doing it."""
    engine = served.engine
    await engine.pull(REPO)
    orphan = BlobDigest("sha256", "7" * 64)
    path = engine.context.store.path_of(orphan)
    path.parent.mkdir()
    path.write_bytes(bytes(10_000))
    dry = await served.change(f"{BASE}/gc", body={"dry_run": True})
    assert dry.json["steps"] == [
        {"what": "blob", "name": str(orphan), "bytes": 12_288, "reason": "no snapshot lists it"}
    ]
    assert dry.json["bytes_freed"] == 12_288
    assert path.exists()
    done = await served.change(f"{BASE}/gc", body={})
    assert set(done.json) == {
        "dry_run", "steps", "bytes_freed", "own_bytes", "quota", "disk_free",
    }  # fmt: skip
    assert done.json["steps"] == dry.json["steps"]
    assert (dry.json["dry_run"], done.json["dry_run"]) == (True, False)
    assert dry.json["own_bytes"] - done.json["own_bytes"] == 12_288
    assert not path.exists()
    empty = await served.ask(f"{BASE}/gc", "POST", headers=served.change_headers)
    assert empty.json["steps"] == []


@pytest.mark.parametrize("body", [{"dry_run": "yes"}, {"dry_run": 1}, [], b"{"])
async def test_gc_of_a_bad_body_does_nothing(served: Served, body: object) -> None:
    """A dry run that was spelt wrongly must not be a run."""
    reply = await served.change(f"{BASE}/gc", body=body)
    assert reply.error[0] == 400


async def test_changes_need_the_admin_token(served: Served) -> None:
    """Each route that changes something, without the token."""
    for path, method in [
        ("gc", "POST"), ("models", "DELETE"), ("leases", "POST"), ("leases/a", "POST"),
        ("leases/a", "DELETE"), ("pins", "POST"), ("pins", "DELETE"),
    ]:  # fmt: skip
        reply = await served.ask(f"{BASE}/{path}", method, body={"model": REPO})
        assert reply.error == (401, "MissingToken"), path


async def test_removed_model_is_gone(served: Served) -> None:
    """One snapshot, its bytes, and 404 the second time."""
    body = {"model": f"{REPO}@main"}
    assert (await served.change(f"{BASE}/models", "DELETE", body)).error == (404, "NotFound")
    job = await served.engine.pull(REPO)
    taken = (await served.ask(f"{BASE}/storage")).json["own_bytes"]
    reply = await served.change(f"{BASE}/models", "DELETE", body)
    assert reply.json == {
        "model": REPO,
        "revision": "main",
        "commit": job.commit,
        "blobs": len(FILES),
        "bytes_freed": taken,
    }
    assert (await served.ask(f"{BASE}/models")).json == {"models": []}
    assert (await served.ask(f"{BASE}/storage")).json["own_bytes"] == 0
    assert (await served.change(f"{BASE}/models", "DELETE", body)).error == (404, "NotFound")


async def test_removing_what_is_protected_is_409_with_a_next_step(served: Served) -> None:
    """Force takes pins, never leases."""
    await served.engine.pull(REPO)
    body: dict[str, object] = {"model": REPO}
    await served.change(f"{BASE}/pins", body=body)
    reply = await served.change(f"{BASE}/models", "DELETE", body)
    assert reply.error == (409, "Protected")
    assert "--force" in reply.json["message"]
    lease = await take_lease(served)
    forced = {**body, "force": True}
    reply = await served.change(f"{BASE}/models", "DELETE", forced)
    assert reply.error == (409, "Protected")
    assert "leased" in reply.json["message"]
    assert len((await served.ask(f"{BASE}/pins")).json["pins"]) == 1
    await served.change(f"{BASE}/leases/{lease['id']}", "DELETE")
    assert (await served.change(f"{BASE}/models", "DELETE", forced)).status == 200
    assert (await served.ask(f"{BASE}/pins")).json == {"pins": []}
    bad = {**body, "force": "yes"}
    assert (await served.change(f"{BASE}/models", "DELETE", bad)).error[0] in (400, 404)


# --- leases ---


async def test_lease_is_taken_renewed_listed_and_ended(served: Served) -> None:
    """The life of a loader's claim; the defaults are said."""
    job = await served.engine.pull(REPO)
    lease = await take_lease(served, holder="vllm on gpu 3")
    assert set(lease) == LEASE_FIELDS | {"state"}
    assert (lease["model"], lease["commit"], lease["path"]) == (REPO, job.commit, job.path)
    assert (lease["ttl_s"], lease["holder"], lease["state"]) == (60.0, "vllm on gpu 3", "resident")
    assert lease["expires_at"] == pytest.approx(time.time() + 60, abs=10)
    renewed = await served.change(f"{BASE}/leases/{lease['id']}", body={"ttl_s": 3600})
    assert set(renewed.json) == LEASE_FIELDS
    assert (renewed.json["id"], renewed.json["ttl_s"]) == (lease["id"], 3600)
    again = await served.ask(f"{BASE}/leases/{lease['id']}", "POST", headers=served.change_headers)
    assert again.json["ttl_s"] == 3600
    assert (await served.ask(f"{BASE}/leases")).json == {"leases": [again.json]}
    ended = await served.change(f"{BASE}/leases/{lease['id']}", "DELETE")
    assert ended.json["id"] == lease["id"]
    assert (await served.ask(f"{BASE}/leases")).json == {"leases": []}
    for method in ("POST", "DELETE"):
        gone = await served.change(f"{BASE}/leases/{lease['id']}", method, {})
        assert gone.error == (404, "NotFound")


async def test_lease_of_what_is_not_here_is_404(served: Served) -> None:
    """Neither an unknown model nor one of which only the list is known."""
    assert (await served.change(f"{BASE}/leases", body={"model": REPO})).error == (404, "NotFound")
    await served.engine.find(REPO, "config.json")
    reply = await served.change(f"{BASE}/leases", body={"model": REPO})
    assert reply.error == (404, "NotFound")
    assert "p2pcache pull" in reply.json["message"]
    await served.engine.pull(REPO, include=("config.json",))
    assert (await take_lease(served))["state"] == "partial"


@pytest.mark.parametrize(
    "more",
    [
        {"ttl_s": 0}, {"ttl_s": -5}, {"ttl_s": 86_401}, {"ttl_s": "60"}, {"ttl_s": True},
        {"ttl_s": 1e300}, {"holder": 7}, {"holder": "x" * 201}, {"holder": "a\nb"}, {"model": ""},
    ],
)  # fmt: skip
async def test_lease_of_a_bad_body_is_400(served: Served, more: dict[str, object]) -> None:
    """Times that no lease has, names that no list can show."""
    await served.engine.pull(REPO)
    reply = await served.change(f"{BASE}/leases", body={"model": REPO, **more})
    assert reply.error == (400, "Input")
    assert (await served.ask(f"{BASE}/leases")).json == {"leases": []}


async def test_lease_of_a_time_that_is_no_number_is_400(served: Served) -> None:
    """NaN is above and below nothing."""
    body = f'{{"model": "{REPO}", "ttl_s": NaN}}'.encode()
    assert (await served.change(f"{BASE}/leases", body=body)).error == (400, "Input")


# --- who may know ---


@pytest.mark.parametrize("repo", [GATED, PRIVATE])
async def test_private_names_are_shown_to_the_admin_alone(served: Served, repo: str) -> None:
    """Pins and leases name models; who may not read a model does not learn of it."""
    engine = served.engine
    await engine.pull(repo, token=TOKEN, is_pin=True)
    row = await engine.cache.librarian.find_cached(ModelReference.parse(repo))
    assert row is not None
    await engine.cache.space.lease(row.snapshot.id, 60.0, "")
    for kind in ("pins", "leases"):
        assert (await served.ask(f"{BASE}/{kind}")).json == {kind: []}
        shown = await served.ask(f"{BASE}/{kind}", headers=served.change_headers)
        assert [entry["model"] for entry in shown.json[kind]] == [repo]


async def test_evictions_are_in_the_metrics(make_cache: MakeCache, serve: Serve) -> None:
    """How many, of which kind, and what they gave back."""
    engine = await make_cache("b")
    served = await serve(engine)
    await engine.pull(REPO)
    await served.change(f"{BASE}/models", "DELETE", {"model": REPO})
    text = (await served.ask("/metrics")).body.decode()
    assert 'p2pcache_evictions_total{kind="snapshot"} 1\n' in text
    assert f"p2pcache_evicted_bytes_total {engine.cache.space.evictor.evicted_bytes}\n" in text
    assert 'p2pcache_store_bytes{kind="adopted"} 0\n' in text
