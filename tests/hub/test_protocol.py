"""
Owns the check of raw answers: headers, ranges, signatures, listings, access.

Knows nothing of the real client; test_hub runs that.
Invariants: every request is a plain one with exact paths.
Source: header dumps of the real hub; RFC 9110 for ranges.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientSession
from multidict import CIMultiDictProxy
from yarl import URL

from tests.hub.content import git_sha1, pointer_text
from tests.hub.samples import CONFIG, FILES, LARGE, OTHER_TOKEN, TOKEN
from tests.hub.server import Hub
from tests.hub.target import Target, parse_target

SMALL = "/org/model/resolve/main/config.json"
LFS = "/org/model/resolve/main/model.safetensors"
SHA256 = hashlib.sha256(LARGE).hexdigest()
RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=5-9", 5, 10),
    ("bytes=-10", len(LARGE) - 10, len(LARGE)),
    (f"bytes=-{2 * len(LARGE)}", 0, len(LARGE)),
    ("bytes=2999990-", 2_999_990, len(LARGE)),
    ("bytes=2999990-9999999", 2_999_990, len(LARGE)),
]


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body parsed."""
        return json.loads(self.body)


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


async def ask(session: ClientSession, path: str, method: str = "GET", **headers: str) -> Answer:
    """Send one request without following redirects and read the body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = URL(path, encoded=True)
    async with session.request(method, url, headers=named, allow_redirects=False) as response:
        return Answer(response.status, response.headers, await response.read())


@pytest.mark.parametrize(
    ("raw_path", "target"),
    [
        ("/gpt2/resolve/main/a/b", Target("resolve", "models", "gpt2", "main", "a/b")),
        (
            "/datasets/o/n/resolve/refs%2Fpr%2F1/a%2Bb%2520",
            Target("resolve", "datasets", "o/n", "refs/pr/1", "a+b%20"),
        ),
        ("/api/models/gpt2", Target("info", "models", "gpt2")),
        ("/api/models/o/n/tree/v%2B1/a%2Fb", Target("tree", "models", "o/n", "v+1", "a/b")),
        ("/api/spaces/o/n/refs", Target("refs", "spaces", "o/n")),
        ("/api/telemetry/a/b", Target("telemetry", path="a/b")),
        ("/", Target("other")),
        ("/api", Target("other")),
        ("/api/models", Target("other")),
    ],
)
def test_target_addresses_parse(raw_path: str, target: Target) -> None:
    """Each form of address names its route, repository, revision and path."""
    assert parse_target(raw_path) == target


async def test_resolve_small_file_has_its_metadata(hub: Hub, web_client: ClientSession) -> None:
    """A git file is answered at once, with its sha1 as ETag."""
    model = hub.state.catalog.find("models", "org/model")
    assert model is not None
    response = await ask(web_client, SMALL)
    assert response.status == 200
    assert response.body == CONFIG
    assert response.headers["ETag"] == f'"{git_sha1(CONFIG)}"'
    assert response.headers["X-Repo-Commit"] == model.get_commit("main").sha
    assert response.headers["Content-Length"] == str(len(CONFIG))
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["X-Request-Id"].startswith("Root=1-")
    assert response.headers["RateLimit"].startswith('"resolvers";r=')
    head = await ask(web_client, SMALL, "HEAD")
    assert head.headers["Content-Length"] == str(len(CONFIG))
    unchanged = await ask(web_client, SMALL, If_None_Match=response.headers["ETag"])
    assert unchanged.status == 304


async def test_resolve_lfs_file_redirects_to_storage(hub: Hub, web_client: ClientSession) -> None:
    """The 302 holds all metadata; the storage hop has none of it and another ETag."""
    response = await ask(web_client, LFS, "HEAD")
    assert response.status == 302
    headers = response.headers
    assert headers["X-Linked-Etag"] == headers["ETag"] == f'"{SHA256}"'
    assert headers["X-Linked-Size"] == str(len(LARGE))
    assert int(headers["Content-Length"]) < 2000
    assert len(headers["X-Xet-Hash"]) == 64
    assert 'rel="xet-auth"' in headers["Link"]
    assert 'rel="xet-reconstruction-info"' in headers["Link"]
    assert headers["Location"].startswith(hub.cdn_url)
    stored = await ask(web_client, headers["Location"])
    assert stored.body == LARGE
    assert "X-Repo-Commit" not in stored.headers
    assert stored.headers["ETag"] != headers["ETag"]
    assert hub.stats.body_bytes_cdn == len(LARGE)
    assert hub.stats.path_bytes == {"org/model/model.safetensors": len(LARGE)}


@pytest.mark.parametrize(("header", "start", "stop"), RANGES)
async def test_storage_range_is_exact(
    web_client: ClientSession, header: str, start: int, stop: int
) -> None:
    """Each form of range gives 206 with its bytes and its Content-Range."""
    location = (await ask(web_client, LFS)).headers["Location"]
    response = await ask(web_client, location, Range=header)
    assert response.status == 206
    assert response.body == LARGE[start:stop]
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(LARGE)}"
    assert response.headers["Content-Length"] == str(stop - start)


async def test_range_outside_the_file_is_416(web_client: ClientSession) -> None:
    """A range without bytes is refused with the size; a senseless or stale one is ignored."""
    outside = await ask(web_client, SMALL, Range=f"bytes={len(CONFIG)}-")
    assert (outside.status, outside.headers["Content-Range"]) == (416, f"bytes */{len(CONFIG)}")
    empty = await ask(web_client, "/org/model/resolve/main/empty.txt", Range="bytes=0-0")
    assert (empty.status, empty.headers["Content-Range"]) == (416, "bytes */0")
    for headers in ({"Range": "bytes=3-1"}, {"Range": "bytes=0-1", "If_Range": '"other"'}):
        assert (await ask(web_client, SMALL, **headers)).status == 200


async def test_storage_wrong_signature_is_403(web_client: ClientSession) -> None:
    """An address with a changed path or signature, or without one, does not open."""
    location = (await ask(web_client, LFS)).headers["Location"]
    path, query = location.split("?")
    for address in (path, f"{path}0?{query}", location.replace("Signature=", "Signature=0")):
        response = await ask(web_client, address)
        assert response.status == 403
        assert b"<Code>SignatureDoesNotMatch</Code>" in response.body


async def test_storage_token_is_refused_and_recorded(hub: Hub, web_client: ClientSession) -> None:
    """A token that reaches the CDN is a leak."""
    location = (await ask(web_client, LFS)).headers["Location"]
    response = await ask(web_client, location, **bearer(TOKEN))
    assert response.status == 400
    assert len(hub.stats.token_leaks) == 1
    assert TOKEN not in str(hub.stats.as_json())


async def test_tree_lists_folders_and_pointers(hub: Hub, web_client: ClientSession) -> None:
    """One level shows folders; LFS entries carry the pointer's sha1, the sha256 and a Xet hash."""
    response = await ask(web_client, "/api/models/org/model/tree/main")
    entries = {entry["path"]: entry for entry in response.json}
    assert sorted(entries) == ["config.json", "deep", "empty.txt", "model.safetensors"]
    assert entries["deep"]["type"] == "directory"
    large = entries["model.safetensors"]
    pointer = pointer_text(SHA256, len(LARGE))
    assert large["oid"] == git_sha1(pointer)
    assert large["lfs"] == {"oid": SHA256, "size": len(LARGE), "pointerSize": len(pointer)}
    assert len(large["xetHash"]) == 64
    nested = await ask(web_client, "/api/models/org/model/tree/main/deep%2Fer?expand=True")
    assert [entry["path"] for entry in nested.json] == ["deep/er/a+b c%20#?.txt"]
    absent = await ask(web_client, "/api/models/org/model/tree/main/no")
    assert (absent.status, absent.headers["X-Error-Code"]) == (404, "EntryNotFound")


async def test_tree_pages_link_to_the_next_absolutely(hub: Hub, web_client: ClientSession) -> None:
    """The cursor's address is the hub's own and ends."""
    url, seen = "/api/models/org/model/tree/main?recursive=true&expand=false&limit=2", []
    while url:
        response = await ask(web_client, url)
        page = response.json
        assert len(page) <= 2
        seen += [entry["path"] for entry in page if entry["type"] == "file"]
        link = response.headers.get("Link", "")
        assert not link or link.startswith(f"<{hub.url}/api/models/org/model/tree/main?recursive")
        url = link[1 : link.index(">")] if link else ""
    assert sorted(seen) == sorted(FILES)


async def test_access_codes_are_the_ones_of_the_real_hub(web_client: ClientSession) -> None:
    """Each case has its status, code and message."""
    file, info = "/{}/resolve/main/config.json", "/api/models/{}"
    cases = [
        (file.format("org/absent"), {}, 401, None),
        (info.format("org/absent"), {}, 401, None),
        (info.format("org/secret"), {}, 401, None),
        (info.format("org/secret"), bearer(OTHER_TOKEN), 404, "RepoNotFound"),
        (info.format("org/secret"), bearer(TOKEN), 200, None),
        (info.format("org/gated"), {}, 200, None),
        (file.format("org/gated"), {}, 401, "GatedRepo"),
        (file.format("org/gated"), bearer(OTHER_TOKEN), 403, "GatedRepo"),
        (file.format("org/gated"), bearer(TOKEN), 200, None),
        (info.format("org/model/revision/x"), {}, 404, "RevisionNotFound"),
        ("/org/model/resolve/main/..%2F..%2Fetc/passwd", {}, 404, "EntryNotFound"),
        (file.format("org/model"), bearer("hf_invalid"), 401, None),
        ("/api/whoami-v2", {}, 401, None),
        ("/api/unknown", {}, 404, None),
    ]
    for path, headers, status, code in cases:
        response = await ask(web_client, path, **headers)
        assert (path, response.status) == (path, status)
        assert (path, response.headers.get("X-Error-Code")) == (path, code)
    assert (await ask(web_client, "/api/telemetry/x", "HEAD")).status == 200


async def test_gated_listing_hides_the_xet_hash(web_client: ClientSession) -> None:
    """Without access the Xet hash is stars; with it, a hash."""
    path = "/api/models/org/gated/tree/main"
    for headers, is_hidden in (({}, True), (bearer(TOKEN), False)):
        entries = (await ask(web_client, path, **headers)).json
        hashes = [entry["xetHash"] for entry in entries if "xetHash" in entry]
        assert [text == "*" * 64 for text in hashes] == [is_hidden]


async def test_former_id_redirects_relatively(web_client: ClientSession) -> None:
    """A file and an API address of a former id lead to the present one, query and all."""
    file = await ask(web_client, "/old/resolve/refs%2Fpr%2F1/config.json?download=true")
    assert file.status == 307
    wanted = "/org/model/resolve/refs%2Fpr%2F1/config.json?download=true"
    assert file.headers["Location"] == wanted
    listing = await ask(web_client, "/api/models/old/tree/main?recursive=true")
    assert listing.headers["Location"] == "/api/models/org/model/tree/main?recursive=true"
