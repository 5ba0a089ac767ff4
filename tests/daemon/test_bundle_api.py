"""
Owns the tests of daemon.bundle_api: who may have a bundle, and bodies that are sent in pieces.

Knows nothing of the format.
Invariants: nothing that is not public leaves without the admin token.
Source: docs/reference/http-api.md ("Bundles").
"""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.daemon.conftest import Serve
from tests.daemon.local import Served
from tests.engine.archives import export_archive, flip, manifest_of, place_of
from tests.engine.conftest import CHUNK_BYTES, PRIVATE, REPO, TOKEN, WEIGHTS, MakeCache
from tests.engine.engine import Engine, eventually, list_open_files
from tests.engine.fakepeer import sha256_name
from tests.engine.test_shelf import flip_byte

API = "/_p2pcache/v1/bundles"
NAME = "pytorch_model.bin"
TAR = "application/x-tar"


@pytest.fixture
async def archive(engine: Engine) -> bytes:
    """A bundle of the public model, which is served too."""
    await engine.pull(REPO)
    return await export_archive(engine, REPO)


@pytest.fixture
async def other(make_cache: MakeCache, serve: Serve) -> Served:
    """An endpoint beyond the gap."""
    return await serve(await make_cache("b", hub_url="http://127.0.0.1:9"))


def upload_headers(served: Served) -> dict[str, str]:
    """Return the headers of an import."""
    return {**served.change_headers, "Content-Type": TAR}


async def test_export_of_public_content_needs_no_token(served: Served, archive: bytes) -> None:
    """The whole archive, with its length and what it is in the head."""
    for path in (f"{API}/{REPO}", f"{API}/org%2Fmodel%40main"):
        reply = await served.ask(path)
        assert reply.status == 200
        assert reply.body == archive
    manifest = manifest_of(archive)
    assert {k: v for k, v in reply.headers.items() if k.startswith("X-P2PCache")} == {
        "X-P2PCache-Bundle": archive[512 + len("76 comment=") :][:64].decode(),
        "X-P2PCache-Model": REPO,
        "X-P2PCache-Commit": manifest.snapshot.id.commit,
        "X-P2PCache-Files": "4",
        "X-P2PCache-Visibility": "public",
    }
    assert reply.headers["Content-Length"] == str(len(archive))
    head = await served.ask(f"{API}/{REPO}", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(archive))


async def test_export_of_the_rest_needs_the_admin_token(served: Served) -> None:
    """Without it a private model is as unknown as one that is not here."""
    await served.engine.pull(PRIVATE, token=TOKEN)
    assert (await served.ask(f"{API}/{PRIVATE}")).error == (404, "NotFound")
    assert (await served.ask(f"{API}/org/unknown")).error == (404, "NotFound")
    reply = await served.ask(f"{API}/{PRIVATE}", headers=served.change_headers)
    assert reply.status == 200
    assert reply.headers["X-P2PCache-Visibility"] == "restricted"


async def test_export_of_a_damaged_file_is_broken_off(served: Served, archive: bytes) -> None:
    """A client never sees the end of a body that is wrong; no descriptor stays."""
    engine = served.engine
    path = engine.context.store.path_of(sha256_name(WEIGHTS))
    flip_byte(path, 9 * CHUNK_BYTES, keeps_time=True)
    with pytest.raises(aiohttp.ClientError):
        await served.ask(f"{API}/{REPO}")
    await eventually(lambda: list_open_files(engine.root / "blobs") == [], "all is closed")


async def test_import_answers_when_the_model_is_resident(archive: bytes, other: Served) -> None:
    """The answer has what the command line shows."""
    reply = await other.ask(API, "POST", body=archive, headers=upload_headers(other))
    assert reply.status == 200
    manifest = manifest_of(archive)
    size_bytes = sum(table.layout.size_bytes for table in manifest.tables)
    assert reply.json == {
        "id": archive[512 + len("76 comment=") :][:64].decode(),
        "model": REPO,
        "commit": manifest.snapshot.id.commit,
        "revisions": ["main"],
        "files": 4,
        "bytes": size_bytes,
        "bytes_written": size_bytes,
        "public": True,
        "path": other.engine.cache.path_of(manifest.snapshot.id),
    }
    resident = await other.ask(f"/_p2pcache/v1/residency/{REPO}")
    assert resident.json["state"] == "resident"
    assert (await other.ask(f"/{REPO}/resolve/main/{NAME}")).body == WEIGHTS


async def test_import_is_not_bounded_by_the_limit_of_other_bodies(
    archive: bytes, make_cache: MakeCache, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle is read in pieces: the limit for what is read whole does not apply."""
    monkeypatch.setattr("p2pcache.daemon.app.BODY_BYTES_MAX", 1000)
    other = await serve(await make_cache("b", hub_url="http://127.0.0.1:9"))
    reply = await other.ask(API, "POST", body=archive, headers=upload_headers(other))
    assert reply.status == 200


async def test_import_needs_the_token_and_the_header(archive: bytes, other: Served) -> None:
    """As every change: no page of a browser can do it."""
    assert (await other.ask(API, "POST", body=archive, headers={"Content-Type": TAR})).error == (
        401,
        "MissingToken",
    )
    headers = upload_headers(other)
    del headers["X-P2PCache"]
    assert (await other.ask(API, "POST", body=archive, headers=headers)).error[0] == 403
    assert (await other.ask(f"/_p2pcache/v1/residency/{REPO}")).json["state"] == "absent"


@pytest.mark.parametrize(
    ("query", "content_type"),
    [
        ("", "application/json"),
        ("?id=main", TAR),
        ("?visibility=everybody", TAR),
        ("?public=true", TAR),
    ],
)
async def test_import_asked_wrongly_is_refused(
    archive: bytes, other: Served, query: str, content_type: str
) -> None:
    """What is not understood is not guessed."""
    headers = {**upload_headers(other), "Content-Type": content_type}
    reply = await other.ask(API + query, "POST", body=archive, headers=headers)
    assert reply.error == (400, "Input")


async def test_import_of_a_changed_bundle_names_file_and_chunk(
    archive: bytes, other: Served
) -> None:
    """The sentence reaches the caller, with a status that says whose fault it is."""
    changed = flip(archive, place_of(archive, NAME) + 7 * CHUNK_BYTES)
    reply = await other.ask(API, "POST", body=changed, headers=upload_headers(other))
    assert reply.error == (400, "BundleCorrupt")
    assert f"{NAME}, chunk 7 of 20" in reply.json["message"]


async def test_import_under_an_id_and_a_visibility(archive: bytes, other: Served) -> None:
    """The parameters are those of the command line."""
    bundle_id = archive[512 + len("76 comment=") :][:64].decode()
    wrong = f"{API}?id={'0' * 64}"
    reply = await other.ask(wrong, "POST", body=archive, headers=upload_headers(other))
    assert reply.error == (400, "BundleCorrupt")
    right = f"{API}?id={bundle_id}&visibility=restricted"
    reply = await other.ask(right, "POST", body=archive, headers=upload_headers(other))
    assert reply.json["public"] is False
    assert (await other.ask(f"/_p2pcache/v1/residency/{REPO}")).json["state"] == "absent"
    asked = await other.ask(f"/_p2pcache/v1/residency/{REPO}", headers=other.change_headers)
    assert asked.json["state"] == "resident"


async def test_import_whose_client_goes_away_keeps_what_came(archive: bytes, other: Served) -> None:
    """Nothing is held for a client that is gone; the next one goes on."""
    engine, blob = other.engine, sha256_name(WEIGHTS)
    host, _, port = other.local.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    lines = [f"POST {API} HTTP/1.1", f"Host: {other.local}", f"Content-Length: {len(archive)}"]
    lines += [f"{key}: {value}" for key, value in upload_headers(other).items()]
    half = place_of(archive, NAME) + 10 * CHUNK_BYTES
    writer.write("\r\n".join([*lines, "", ""]).encode() + archive[:half])
    await writer.drain()
    await eventually(
        lambda: engine.context.store.count_held_bytes(blob) == 10 * CHUNK_BYTES, "ten chunks"
    )
    writer.transport.abort()
    await eventually(lambda: not engine.cache.claims.is_held(blob), "the blob is free")
    reply = await other.ask(API, "POST", body=archive, headers=upload_headers(other))
    assert reply.json["bytes_written"] == len(WEIGHTS) - 10 * CHUNK_BYTES
