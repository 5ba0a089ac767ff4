"""
Owns the check that each fault switch does what it says, and stops when it is switched off.

Knows nothing of the real client.
Invariants: waits for conditions; time is only ever a lower bound.
Source: the switches in faults.py.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import ClientSession

from tests.hub.content import HubFile
from tests.hub.repository import Repository
from tests.hub.samples import CONFIG, LARGE
from tests.hub.server import Hub

SMALL = "/org/model/resolve/main/config.json"
LFS = "/org/model/resolve/main/model.safetensors"
KEY = "org/model/model.safetensors"
TREE = "/api/models/org/model/tree/main"
VANISHED_SIZE_BYTES = 400 << 20
BUFFERED_SIZE_BYTES_MAX = 16 << 20  # what two kernels may hold for one connection


async def read_all(session: ClientSession, path: str, **headers: str) -> bytes:
    """Fetch, following redirects."""
    async with session.get(path, headers=headers) as response:
        return await response.read()


async def read_until_broken(session: ClientSession, path: str) -> bytes:
    """Fetch a body that ends early and return what came."""
    got = bytearray()
    async with session.get(path) as response:
        assert response.content_length == len(LARGE)
        try:
            async for piece in response.content.iter_any():
                got += piece
        except aiohttp.ClientPayloadError:
            return bytes(got)
    raise AssertionError("the body was whole")


async def test_rate_limits_hold_over_all_connections(hub: Hub, web_client: ClientSession) -> None:
    """Two bodies of 3 MB at 10 MB/s take more than half a second; alone unlimited they do not."""
    hub.set_faults(rate_bytes_per_s=10_000_000)
    start_s = time.monotonic()
    bodies = await asyncio.gather(read_all(web_client, LFS), read_all(web_client, LFS))
    assert time.monotonic() - start_s > 0.5
    assert list(bodies) == [LARGE, LARGE]
    hub.set_faults(connection_rate_bytes_per_s=10_000_000)
    start_s = time.monotonic()
    assert await read_all(web_client, LFS) == LARGE
    assert time.monotonic() - start_s > 0.25


async def test_latency_delays_chosen_routes(hub: Hub, web_client: ClientSession) -> None:
    """A request of the chosen kind waits."""
    hub.set_faults(latency_s=0.2, routes=["resolve"])
    start_s = time.monotonic()
    await read_all(web_client, SMALL)
    assert time.monotonic() - start_s >= 0.2


async def test_break_ends_the_body_that_many_times(hub: Hub, web_client: ClientSession) -> None:
    """The first bodies end at the byte, the next is whole; the count is what came."""
    hub.set_faults(break_after_bytes=1_234_567, break_times=2, paths=KEY)
    for _ in range(2):
        assert await read_until_broken(web_client, LFS) == LARGE[:1_234_567]
    assert await read_all(web_client, SMALL) == CONFIG
    assert await read_all(web_client, LFS) == LARGE
    assert hub.stats.path_bytes[KEY] == 2 * 1_234_567 + len(LARGE)


async def test_dying_hub_counts_all_answers_together(hub: Hub, web_client: ClientSession) -> None:
    """The bytes of all bodies add up; whoever asks later gets headers and a closed connection."""
    hub.set_faults(dies_after_bytes=len(LARGE) + 1_000)
    assert await read_all(web_client, LFS) == LARGE
    assert await read_until_broken(web_client, LFS) == LARGE[:1_000]
    assert await read_until_broken(web_client, LFS) == b""


async def test_short_body_promises_the_full_length(hub: Hub, web_client: ClientSession) -> None:
    """The last bytes never come."""
    hub.set_faults(short_by_bytes=5)
    assert await read_until_broken(web_client, LFS) == LARGE[:-5]


async def test_flip_changes_one_byte(hub: Hub, web_client: ClientSession) -> None:
    """The byte at the offset is wrong in whole bodies and in ranges, all others are right."""
    hub.set_faults(flips={KEY: 2_000_000})
    body = await read_all(web_client, LFS)
    assert [i for i in (1_999_999, 2_000_000, 2_000_001) if body[i] != LARGE[i]] == [2_000_000]
    assert sum(map(int.__ne__, body, LARGE)) == 1
    part = await read_all(web_client, LFS, Range="bytes=2000000-2000001")
    assert part[0] != LARGE[2_000_000]
    assert part[1] == LARGE[2_000_001]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_refusals_stop_after_their_number(
    hub: Hub, web_client: ClientSession, status: int
) -> None:
    """N requests are refused, the next one is answered."""
    hub.set_faults(refuse_status=status, refuse_times=2, retry_after_s=3, routes=["resolve"])
    assert len(await read_all(web_client, TREE)) > 0
    for _ in range(2):
        async with web_client.get(SMALL) as response:
            assert (response.status, response.headers["Retry-After"]) == (status, "3")
            assert (";r=0;" in response.headers["RateLimit"]) == (status == 429)
    assert await read_all(web_client, SMALL) == CONFIG


async def test_hang_waits_until_switched_off(hub: Hub, web_client: ClientSession) -> None:
    """Headers and the first bytes come, the rest only when the switches are set again."""
    hub.set_faults(hang_after_bytes=1000)
    async with web_client.get(LFS) as response:
        first = await response.content.readexactly(1000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.1)
        hub.set_faults()
        assert first + await response.content.read() == LARGE


async def test_range_faults_lie(hub: Hub, web_client: ClientSession) -> None:
    """A range is ignored, or named wrongly."""
    headers = {"Range": "bytes=2-3"}
    hub.set_faults(ignore_range=True)
    async with web_client.get(SMALL, headers=headers) as response:
        assert (response.status, await response.read()) == (200, CONFIG)
    hub.set_faults(wrong_content_range=True)
    async with web_client.get(SMALL, headers=headers) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes 3-4/{len(CONFIG)}"


async def test_signed_addresses_expire(hub: Hub, web_client: ClientSession) -> None:
    """An address made expired gives 403 in XML; one with a lifetime opens until then."""
    hub.set_faults(signed_url_ttl_s=0)
    async with web_client.get(LFS) as response:
        assert (response.status, response.content_type) == (403, "application/xml")
        assert b"AccessDenied" in await response.read()
    hub.set_faults(signed_url_ttl_s=0.5)
    async with web_client.get(LFS, allow_redirects=False) as response:
        location = response.headers["Location"]
    assert await read_all(web_client, location) == LARGE
    async with asyncio.timeout(10):
        while True:
            async with web_client.get(location) as response:
                if response.status == 403:
                    break


async def test_etag_and_commit_change_midway(hub: Hub, web_client: ClientSession) -> None:
    """After so many true answers both are others."""
    hub.set_faults(etag_changes_after=1, commit_changes_after=2)
    seen = []
    for _ in range(3):
        async with web_client.head(LFS) as response:
            seen.append((response.headers["X-Linked-Etag"], response.headers["X-Repo-Commit"]))
    assert seen[0][0] != seen[1][0] == seen[2][0]
    assert seen[0][1] == seen[1][1] != seen[2][1]
    assert len(seen[2][0]) == 66
    assert len(seen[2][1]) == 40


async def test_listing_faults_show(hub: Hub, web_client: ClientSession) -> None:
    """No tree route, no sizes, names that no client should write to."""
    hub.set_faults(tree_missing=True)
    async with web_client.get(TREE) as response:
        assert response.status == 404
    hub.set_faults(omit_sizes=True, extra_names=["../../evil"])
    async with web_client.get(TREE) as response:
        entries = {entry["path"]: entry for entry in await response.json()}
    assert "size" not in entries["model.safetensors"]
    assert "../../evil" in entries
    async with web_client.get("/api/models/org/model") as response:
        siblings = (await response.json())["siblings"]
    assert {"rfilename": "../../evil"} in siblings
    async with web_client.get(SMALL) as response:
        assert "Content-Length" not in response.headers
        assert await response.read() == CONFIG
    async with web_client.head(LFS) as response:
        assert "X-Linked-Size" not in response.headers


async def test_html_replaces_any_answer(hub: Hub, web_client: ClientSession) -> None:
    """A sign-in page with 200 comes instead."""
    hub.set_faults(html_body=True)
    for path in (SMALL, TREE):
        async with web_client.get(path) as response:
            assert (response.status, response.content_type) == (200, "text/html")


async def test_hub_not_listening_refuses_and_comes_back(
    hub: Hub, web_client: ClientSession
) -> None:
    """Connections are refused until it listens again, on the same port."""
    await hub.set_listening(hub=False)
    with pytest.raises(aiohttp.ClientConnectorError):
        await read_all(web_client, SMALL)
    async with web_client.get(f"{hub.control_url}/_hub/stats") as response:
        assert response.status == 200
    await hub.set_listening()
    assert await read_all(web_client, SMALL) == CONFIG


def test_faults_unknown_name_is_refused() -> None:
    """A misspelt switch never passes silently."""
    with pytest.raises(ValueError, match="unknown faults"):
        Hub().set_faults(latency=1)


async def test_count_stops_when_the_client_vanishes(hub: Hub, tmp_path: Path) -> None:
    """Of a body that nobody reads any more, little is sent and counted."""
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(VANISHED_SIZE_BYTES)
    file = HubFile(path, VANISHED_SIZE_BYTES, "0" * 40, "0" * 64)
    hub.add(Repository("org/sparse", {"zeros.bin": file}))
    async with ClientSession(hub.url) as session:
        response = await session.get("/org/sparse/resolve/main/zeros.bin")
        await response.content.readexactly(1 << 20)
        response.close()
    await hub.wait_for(lambda stats: all(record.is_finished for record in stats.recorded))
    assert 1 << 20 <= hub.stats.body_bytes <= BUFFERED_SIZE_BYTES_MAX
