"""
Owns the tests of the hub's second face: what it answers is what ModelScope's clients meet.

Knows nothing of p2pcache; tests/clients runs the real client against this face as well.
Invariants: one test for each habit of the real hub that has broken a program.
Source: source of modelscope 1.40; public answers of the real hub.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.hub import Hub
from tests.hub.samples import CONFIG, FILES, LARGE, OTHER_TOKEN, TOKEN, digests, make_repositories

MODEL = "/api/v1/models/org/model"


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """Run a hub."""
    async with Hub(make_repositories(), tokens=[OTHER_TOKEN]) as running:
        yield running


@pytest.fixture
async def session(hub: Hub) -> AsyncIterator[aiohttp.ClientSession]:
    """Open connections that keep no cookies."""
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(hub.url, cookie_jar=jar) as session:
        yield session


async def get_envelope(session: aiohttp.ClientSession, path: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the envelope of an answer."""
    async with session.get(path) as answer:
        envelope: dict[str, Any] = await answer.json()
        return answer.status, envelope


async def test_files_of_an_unknown_revision_are_no_error(session: aiohttp.ClientSession) -> None:
    """200 and null; so are its commits."""
    status, envelope = await get_envelope(session, f"{MODEL}/repo/files?Revision=nope")
    assert (status, envelope["Success"], envelope["Data"]["Files"]) == (200, True, None)
    _, envelope = await get_envelope(session, f"{MODEL}/commits?Ref=nope")
    assert envelope["Data"]["Commit"] is None


async def test_listing_is_cut_without_a_word(hub: Hub, session: aiohttp.ClientSession) -> None:
    """What comes after the limit is not there; every file that is has its digest."""
    _, envelope = await get_envelope(session, f"{MODEL}/repo/files?Recursive=True")
    files = [entry for entry in envelope["Data"]["Files"] if entry["Type"] == "blob"]
    assert {entry["Path"]: entry["Sha256"] for entry in files} == digests(FILES)
    hub.set_faults(listing_entries_max=2)
    status, envelope = await get_envelope(session, f"{MODEL}/repo/files?Recursive=True")
    assert (status, len(envelope["Data"]["Files"])) == (200, 2)


async def test_file_in_git_is_sent_whole_whatever_was_asked(session: aiohttp.ClientSession) -> None:
    """200 for a range; a large file is redirected to storage, which takes ranges and no tokens."""
    asked = {"Range": "bytes=2-3"}
    path = f"{MODEL}/repo?FilePath=config.json"
    async with session.get(path, headers=asked) as answer:
        assert (answer.status, await answer.read()) == (200, CONFIG)
    path = f"{MODEL}/repo?Revision=master&FilePath=model.safetensors"
    async with session.get(path, headers=asked, allow_redirects=False) as answer:
        assert answer.status == 302
        where = answer.headers["Location"]
    async with session.head(path, allow_redirects=False) as answer:
        assert (answer.status, answer.content_length) == (200, len(LARGE))
    async with aiohttp.ClientSession() as storage:
        async with storage.get(where, headers=asked) as answer:
            assert (answer.status, await answer.read()) == (206, LARGE[2:4])
        async with storage.get(where, headers={"Cookie": "m_session_id=x"}) as answer:
            assert answer.status == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 404),
        ({"Cookie": f"m_session_id={OTHER_TOKEN}"}, 404),
        ({"Cookie": f"m_session_id={TOKEN}"}, 200),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
async def test_every_refusal_is_a_404(
    session: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    """By header or by cookie; a HEAD has no envelope to say why."""
    for repo in ("secret", "gated"):
        path = f"/api/v1/models/org/{repo}/repo?FilePath=config.json"
        async with session.get(path, headers=headers) as answer:
            assert answer.status == status
        async with session.head(path, headers=headers) as answer:
            assert answer.status == status


async def test_failure_may_have_status_200(hub: Hub, session: aiohttp.ClientSession) -> None:
    """Only the envelope tells."""
    hub.set_faults(business_failure=True)
    status, envelope = await get_envelope(session, MODEL)
    assert (status, envelope["Success"]) == (200, False)
