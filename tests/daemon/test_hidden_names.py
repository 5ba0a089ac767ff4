"""
Owns the check that no open route names what is not public: repositories, files, digests.

Knows nothing of how the names would get there.
Invariants: everything that is readable without a token is searched, after all that names a file.
Source: design.md §7 (read-only management routes are open on loopback, for public content).
"""

from __future__ import annotations

import asyncio
import hashlib
from random import Random
from urllib.parse import quote

import pytest

from p2pcache.core.credentials import Credentials
from p2pcache.core.jobs import JobOrder, JobState
from p2pcache.core.refs import ModelReference
from p2pcache.engine.bundles import Bundles
from p2pcache.errors import BlobCorruptError, IntegrityError
from tests.daemon.conftest import Serve
from tests.daemon.local import Served
from tests.engine.conftest import CHUNK_BYTES, OTHER_TOKEN, TOKEN, MakeCache
from tests.engine.engine import Engine, eventually
from tests.engine.fakepeer import sha256_name
from tests.engine.test_shelf import flip_byte
from tests.hub import Hub, Repository

HUSHED, FILE = "org/hushed", "hushed-weights.bin"
CONTENT = Random(31).randbytes(8 * CHUNK_BYTES)
OTHERS, OTHERS_FILE = "org/others", "others-weights.bin"
BASE = "/_p2pcache/v1"
ROUTES = (
    "/metrics", "/healthz", "/readyz", f"{BASE}/status", f"{BASE}/peers", f"{BASE}/models",
    f"{BASE}/storage", f"{BASE}/pins", f"{BASE}/leases", f"{BASE}/check", f"{BASE}/downloads",
    f"{BASE}/imports", f"{BASE}/residency/{quote(OTHERS, safe='')}",
)  # fmt: skip


@pytest.fixture(autouse=True)
def hushed(hub: Hub) -> None:
    """Have a repository that only the token's holder may see."""
    hub.add(Repository(HUSHED, {FILE: CONTENT}, private=True, tokens=[TOKEN]))


def list_secrets() -> list[str]:
    """Return what nobody without the token may read of it, or of its files."""
    return [HUSHED.partition("/")[2], FILE, hashlib.sha256(CONTENT).hexdigest()]


async def listen(served: Served) -> tuple[asyncio.Task[None], bytearray]:
    """Begin to read the open events; returns the reader and what it hears."""
    heard = bytearray()
    response = await served.session.get(f"http://{served.local}{BASE}/events")

    async def read() -> None:
        try:
            async for piece in response.content.iter_any():
                heard.extend(piece)
        finally:
            response.close()

    return asyncio.create_task(read()), heard


async def search(served: Served, heard: bytes = b"") -> None:
    """Look through everything that anybody on this machine can read, and the peer endpoint."""
    said = bytes(heard)
    for route in ROUTES:
        reply = await served.ask(route)
        assert reply.status in (200, 401, 403, 503), (route, reply.status)
        said += reply.body
    said += (await served.ask("/v1/hello", peer=True)).body
    for secret in list_secrets():
        assert secret.encode() not in said, secret


async def test_chunk_damaged_in_a_restricted_partial_file_is_no_name_in_the_status(
    make_cache: MakeCache, serve: Serve
) -> None:
    """What an earlier run left and this disk changed is told of, without telling what it is."""
    engine = await make_cache("a")
    engine.keep_chunks(CONTENT, range(4))
    partial, _ = engine.context.store.partial_paths_of(sha256_name(CONTENT))
    with partial.open("r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(bytes([CONTENT[CHUNK_BYTES] ^ 1]))
    served = await serve(engine)
    assert await engine.read(HUSHED, FILE, token=TOKEN) == CONTENT
    faults = (await served.ask(f"{BASE}/status")).json["faults"]
    assert [fault["reason"] for fault in faults] == ["damaged here"]
    assert faults[0]["detail"].startswith("Chunk 1 of a restricted file changed on this disk")
    await search(served)


async def test_export_of_something_restricted_that_is_damaged_is_no_name_in_the_status(
    make_cache: MakeCache, serve: Serve
) -> None:
    """The operator who exports is told which file; whoever reads the faults is not."""
    engine = await make_cache("a")
    served = await serve(engine)
    await engine.pull(HUSHED, token=TOKEN)
    path = engine.context.store.path_of(sha256_name(CONTENT))
    flip_byte(path, 3 * CHUNK_BYTES, keeps_time=True)
    exporting = Bundles(engine.cache).exporting(ModelReference.parse(HUSHED), is_admin=True)
    async with exporting as export:
        with pytest.raises(BlobCorruptError):
            async for _ in export.iter_bytes():
                pass
    faults = (await served.ask(f"{BASE}/status")).json["faults"]
    assert [fault["reason"] for fault in faults] == ["damaged here"]
    await search(served)


async def test_fetch_that_two_share_does_not_tell_one_where_the_other_has_the_file_from(
    engine: Engine, hub: Hub
) -> None:
    """The bytes are the same; a failure names no repository that the second caller cannot see."""
    hub.add(Repository(OTHERS, {OTHERS_FILE: CONTENT}, private=True, tokens=[OTHER_TOKEN]))
    wrong = {f"{HUSHED}/{FILE}": 5}
    hub.set_faults(hang_after_bytes=CHUNK_BYTES, flips=wrong)
    snapshot, entry = await engine.find(HUSHED, FILE, TOKEN)
    active = await engine.cache.fetches.start(snapshot, entry, Credentials(TOKEN), is_public=False)
    await eventually(lambda: active.fetch.state.held_bytes >= CHUNK_BYTES, "some chunks")
    order = JobOrder(ModelReference.parse(OTHERS))
    job = engine.downloads.start(order, Credentials(OTHER_TOKEN))
    await eventually(lambda: active.job_count, "the second caller joins")
    hub.set_faults(flips=wrong)
    await eventually(lambda: job.state is JobState.FAILED, "the end of the pull")
    assert isinstance(job.error, IntegrityError)
    assert HUSHED not in str(job.error)
    assert FILE not in str(job.error)


async def test_everything_that_happens_to_something_restricted_is_nobody_elses_news(
    make_cache: MakeCache, serve: Serve, hub: Hub
) -> None:
    """Pulled, pinned, leased, refused, damaged, failed: no open route and no event names it."""
    engine = await make_cache("a")
    served = await serve(engine)
    reader, heard = await listen(served)
    try:
        order = {"model": HUSHED, "token": TOKEN, "pin": True}
        job = (await served.change(f"{BASE}/downloads", body=order)).json
        await eventually(lambda: engine.downloads.get(job["id"]).is_over, "the end of the pull")
        assert engine.downloads.get(job["id"]).state is JobState.DONE
        leased = await served.change(f"{BASE}/leases", body={"model": HUSHED, "holder": "me"})
        assert leased.status == 201
        assert (await served.ask(f"/{HUSHED}/resolve/main/{FILE}")).status == 401
        path = engine.context.store.path_of(sha256_name(CONTENT))
        flip_byte(path, 0)
        checked = await served.change(f"{BASE}/check", body={"anew": True})
        assert checked.status == 202
        await eventually(engine.cache.checkup.list_damages, "the damage is found")
        hub.set_faults(refuse_status=404, routes=["resolve", "cdn"])
        failed = (await served.change(f"{BASE}/downloads", body=order)).json
        await eventually(
            lambda: engine.downloads.get(failed["id"]).is_over, "the end of the second pull"
        )
        await served.change(f"{BASE}/gc", body={})
        await search(served, bytes(heard))
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
