"""
Owns the tests of the Hub protocol with HuggingFaceHub against the test hub and hostile servers.

Knows nothing of the engine.
Invariants: a token reaches the hub's own origin only; an anonymous question is anonymous; every
answer that cannot be right is an error of ours.
Source: hubs/base.py; docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.errors import (
    EntryNotFoundError,
    GatedRepositoryError,
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    UpstreamAuthError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)
from p2pcache.hubs import huggingface, wire
from p2pcache.hubs.huggingface import HuggingFaceHub
from tests.hub import Hub, Repository
from tests.hub.samples import FILES, OTHER_TOKEN, TOKEN, make_repositories

MODEL = RepoId("hf", "models", "org/model")
GATED = RepoId("hf", "models", "org/gated")
SECRET = RepoId("hf", "models", "org/secret")
DATASET = RepoId("hf", "datasets", "org/set")
ALLOWED = Credentials(TOKEN)
COMMIT = "a" * 40

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
StartServer = Callable[[Answer], Awaitable[str]]
OpenClient = Callable[..., HuggingFaceHub]


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """Run a hub with small pages."""
    async with Hub(make_repositories(), tokens=[OTHER_TOKEN], page_size=2) as running:
        yield running


@pytest.fixture
async def open_client() -> AsyncIterator[OpenClient]:
    """Return a function that opens clients; closes them all."""
    opened: list[HuggingFaceHub] = []

    def open_one(url: str) -> HuggingFaceHub:
        client = HuggingFaceHub(url)
        client.open()
        opened.append(client)
        return client

    yield open_one
    for client in opened:
        await client.close()
        await client.close()


@pytest.fixture
async def client(hub: Hub, open_client: OpenClient) -> HuggingFaceHub:
    """Open a client of the hub."""
    return open_client(hub.url)


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """Return a function that serves every request with one handler; returns the address."""
    runners: list[web.AppRunner] = []

    async def start(answer: Answer) -> str:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True
        )
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def repository(hub: Hub, repo: RepoId = MODEL) -> Repository:
    """Return what the hub has under a name."""
    found = hub.state.catalog.find(repo.kind, repo.name)
    assert found is not None
    return found


def snapshot_of(hub: Hub, repo: RepoId = MODEL) -> SnapshotId:
    """Return the snapshot of main."""
    return SnapshotId(repo, repository(hub, repo).get_commit("main").sha)


# --- the protocol ---


@pytest.mark.parametrize("revision", ["main", "v1", "refs/pr/1"])
async def test_resolve_names_the_commit(client: HuggingFaceHub, hub: Hub, revision: str) -> None:
    """A branch, a tag, a pull request and a commit itself resolve to a commit."""
    commit = repository(hub).get_commit(revision).sha
    for name in (revision, commit):
        answer = await client.resolve(MODEL, name, ANONYMOUS)
        assert (answer.commit, answer.about["id"]) == (commit, "org/model")


async def test_list_files_reads_every_page(client: HuggingFaceHub, hub: Hub) -> None:
    """A listing of several pages is one snapshot with the right sizes and digests."""
    snapshot = await client.list_files(snapshot_of(hub), ANONYMOUS)
    files = repository(hub).get_commit("main").files
    assert {entry.path: (entry.size_bytes, entry.digest.hex) for entry in snapshot.files} == {
        path: (file.size_bytes, file.etag) for path, file in files.items()
    }
    assert hub.stats.count_requests(route="tree") > 2


async def test_list_files_without_a_tree_uses_the_siblings(
    client: HuggingFaceHub, hub: Hub
) -> None:
    """Both shapes of a listing say the same."""
    by_tree = await client.list_files(snapshot_of(hub), ANONYMOUS)
    hub.set_faults(tree_missing=True)
    assert await client.list_files(snapshot_of(hub), ANONYMOUS) == by_tree


async def test_data_sets_have_their_own_addresses(client: HuggingFaceHub, hub: Hub) -> None:
    """Everything works for a data set as for a model."""
    snapshot_id = snapshot_of(hub, DATASET)
    assert (await client.resolve(DATASET, "main", ANONYMOUS)).commit == snapshot_id.commit
    snapshot = await client.list_files(snapshot_id, ANONYMOUS)
    await client.check_access(snapshot_id, "rows.bin", ANONYMOUS)
    location = client.locate(snapshot_id, snapshot.files[0], ANONYMOUS)
    assert location.resolve_url.startswith(f"{hub.url}/datasets/org/set/resolve/")


async def test_check_access_follows_what_the_hub_says(client: HuggingFaceHub, hub: Hub) -> None:
    """LFS and git files of a public repository are given; a gated one's to its token alone."""
    for path in FILES:
        await client.check_access(snapshot_of(hub), path, ANONYMOUS)
    await client.check_access(snapshot_of(hub, GATED), "model.safetensors", ALLOWED)
    for other in (ANONYMOUS, Credentials(OTHER_TOKEN)):
        with pytest.raises(GatedRepositoryError):
            await client.check_access(snapshot_of(hub, GATED), "model.safetensors", other)
    with pytest.raises(EntryNotFoundError):
        await client.check_access(snapshot_of(hub), "none.txt", ANONYMOUS)


async def test_check_access_follows_a_redirect_within_the_hub(
    client: HuggingFaceHub, hub: Hub
) -> None:
    """A small file behind the hub's own redirect is a yes; a gated one stays a no."""
    hub.set_faults(small_files_by_redirect=True)
    await client.check_access(snapshot_of(hub), "config.json", ANONYMOUS)
    with pytest.raises(GatedRepositoryError):
        await client.check_access(snapshot_of(hub, GATED), "config.json", ANONYMOUS)


async def test_locate_asks_nobody_and_hides_the_token(client: HuggingFaceHub, hub: Hub) -> None:
    """An address is made from names alone; its representation shows no token."""
    snapshot = await client.list_files(snapshot_of(hub), ANONYMOUS)
    hub.stats.reset()
    entry = next(e for e in snapshot.files if "+" in e.path)
    location = client.locate(snapshot.id, entry, ALLOWED)
    assert location.resolve_url.endswith("/deep/er/a%2Bb%20c%2520%23%3F.txt")
    assert location.headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in repr(location)
    assert hub.stats.requests_total == 0


async def test_forward_passes_chosen_headers_and_the_body(client: HuggingFaceHub, hub: Hub) -> None:
    """A forwarded answer keeps status, body and the headers that clients read."""
    answer = await client.forward("GET", "/api/models/org/model/refs", b"", ANONYMOUS)
    assert answer.status == 200
    assert json.loads(answer.body)["branches"]
    missing = await client.forward("GET", "/api/models/org/none/refs", b"", ALLOWED)
    assert (missing.status, missing.headers["X-Error-Code"]) == (404, "RepoNotFound")
    assert "Access-Control-Expose-Headers" not in missing.headers
    posted = await client.forward(
        "POST", "/api/models/org/model/paths-info/main", b"paths=config.json", ANONYMOUS
    )
    assert [item["path"] for item in json.loads(posted.body)] == ["config.json"]


# --- refusals ---


@pytest.mark.parametrize(
    ("repo", "revision", "token", "error", "words"),
    [
        ("org/none", "main", None, RepositoryNotFoundError, "pass a token"),
        ("org/none", "main", TOKEN, RepositoryNotFoundError, "check its name"),
        ("org/secret", "main", None, RepositoryNotFoundError, "pass a token"),
        ("org/secret", "main", OTHER_TOKEN, RepositoryNotFoundError, "check its name"),
        ("org/model", "none", None, RevisionNotFoundError, "no such revision"),
        ("org/model", "0" * 40, None, RevisionNotFoundError, "no such revision"),
        ("org/model", "main", "hf_invalid", UpstreamAuthError, "Invalid credentials"),
    ],
)
async def test_refusal_is_its_own_error_and_says_what_to_do(
    client: HuggingFaceHub,
    repo: str,
    revision: str,
    token: str | None,
    error: type[Exception],
    words: str,
) -> None:
    """Missing, hidden and forbidden things are told apart as far as the hub does."""
    with pytest.raises(error, match=words) as caught:
        await client.resolve(RepoId("hf", "models", repo), revision, Credentials(token))
    assert token is None or token not in str(caught.value)


async def test_private_repository_is_open_to_its_token(client: HuggingFaceHub, hub: Hub) -> None:
    """With the right token a private repository resolves, lists and gives."""
    snapshot_id = snapshot_of(hub, SECRET)
    assert (await client.resolve(SECRET, "main", ALLOWED)).commit == snapshot_id.commit
    snapshot = await client.list_files(snapshot_id, ALLOWED)
    await client.check_access(snapshot_id, snapshot.files[0].path, ALLOWED)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, UpstreamRateLimitedError),
        (500, UpstreamUnreachableError),
        (502, UpstreamUnreachableError),
        (503, UpstreamUnreachableError),
        (408, UpstreamUnreachableError),
        (418, UpstreamProtocolError),
    ],
)
async def test_status_of_a_hub_in_trouble_is_never_a_missing_repository(
    client: HuggingFaceHub, hub: Hub, status: int, error: type[P2PCacheError]
) -> None:
    """Trouble is trouble: for resolving, listing and access alike."""
    snapshot_id = snapshot_of(hub)
    hub.set_faults(refuse_status=status, retry_after_s=7)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: client.resolve(MODEL, "main", ANONYMOUS),
        lambda: client.list_files(snapshot_id, ANONYMOUS),
        lambda: client.check_access(snapshot_id, "config.json", ANONYMOUS),
    ]
    for call in calls:
        with pytest.raises(error) as caught:
            await call()
        if isinstance(caught.value, UpstreamRateLimitedError):
            assert caught.value.retry_after_s == 7


async def test_hub_that_does_not_listen_is_unreachable(client: HuggingFaceHub, hub: Hub) -> None:
    """A refused connection says so, with the address."""
    await hub.set_listening(hub=False, cdn=False)
    with pytest.raises(UpstreamUnreachableError, match="does not answer"):
        await client.resolve(MODEL, "main", ANONYMOUS)


async def test_hub_that_says_nothing_is_unreachable_after_the_timeout(
    hub: Hub, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client behind us has ten seconds; a silent hub must not use them up."""
    monkeypatch.setattr(wire, "REQUEST_S_MAX", 0.1)
    client = open_client(hub.url)
    hub.set_faults(latency_s=5.0)
    with pytest.raises(UpstreamUnreachableError):
        await client.resolve(MODEL, "main", ANONYMOUS)


async def test_renamed_repository_is_followed(client: HuggingFaceHub, hub: Hub) -> None:
    """The 307 of a former name leads to the same commit, listing and files."""
    snapshot_id = snapshot_of(hub)
    hub.rename(repository(hub), "org/renamed")
    assert (await client.resolve(MODEL, "main", ANONYMOUS)).commit == snapshot_id.commit
    snapshot = await client.list_files(snapshot_id, ANONYMOUS)
    assert snapshot.files
    await client.check_access(snapshot_id, "config.json", ANONYMOUS)


# --- answers that cannot be ---


async def test_page_in_place_of_json_is_refused(client: HuggingFaceHub, hub: Hub) -> None:
    """A portal's page with status 200 is neither a repository nor a yes."""
    snapshot_id = snapshot_of(hub)
    hub.set_faults(html_body=True)
    for call in (client.resolve(MODEL, "main", ANONYMOUS), client.list_files(snapshot_id, ALLOWED)):
        with pytest.raises(UpstreamProtocolError):
            await call
    with pytest.raises(UpstreamProtocolError):
        await client.check_access(snapshot_id, "config.json", ANONYMOUS)


async def test_redirect_to_a_sign_in_page_elsewhere_is_no_yes(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """A gateway that sends the anonymous to its sign-in page has not given the file."""

    async def answer(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://sign-in.example/login")

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError):
        await client.check_access(SnapshotId(MODEL, COMMIT), "config.json", ANONYMOUS)


@pytest.mark.parametrize(
    "about",
    [
        "[]",
        "null",
        "{}",
        '{"sha": null}',
        '{"sha": "main"}',
        '{"sha": "../../etc"}',
        '{"sha": 5}',
        "[" * 100_000,
        "\x00",
    ],
    ids=range(9),
)
async def test_description_without_a_commit_is_refused(
    start_server: StartServer, open_client: OpenClient, about: str
) -> None:
    """JSON of another shape is the hub's fault, told in a sentence."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=about, content_type="application/json")

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError):
        await client.resolve(MODEL, "main", ANONYMOUS)


@pytest.mark.parametrize(
    "page",
    [
        {"error": "x"},
        [7],
        [{"type": "file", "path": "../x", "oid": "0" * 40, "size": 1}],
        [{"type": "file", "path": "x", "oid": "0" * 40, "size": -1}],
        [{"type": "file", "path": "x", "oid": "0" * 40, "size": 10**30}],
        [{"type": "file", "path": "x", "oid": "zz", "size": 1}],
        [{"type": "file", "path": "x", "oid": "0" * 40, "size": 1, "lfs": {"oid": "1", "size": 1}}],
        [{"type": "file", "path": "x", "oid": "0" * 40, "size": 1}] * 2,
    ],
    ids=range(8),
)
async def test_listing_that_cannot_be_is_refused_whole(
    start_server: StartServer, open_client: OpenClient, page: object
) -> None:
    """One impossible entry refuses the listing."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(page)

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError):
        await client.list_files(SnapshotId(MODEL, COMMIT), ANONYMOUS)


@pytest.mark.parametrize("is_empty", [True, False])
async def test_listing_without_end_is_given_up(
    start_server: StartServer,
    open_client: OpenClient,
    monkeypatch: pytest.MonkeyPatch,
    is_empty: bool,
) -> None:
    """Pages that go on for ever, full or empty, end in an error instead of a loop."""
    monkeypatch.setattr(huggingface, "FILES_PER_SNAPSHOT_MAX", 50)
    monkeypatch.setattr(huggingface, "PAGES_MAX", 50)
    count = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        entry = {"type": "file", "path": f"f{count}", "oid": "0" * 40, "size": 1}
        link = f'<{request.url.with_query(cursor=count)}>; rel="next"'
        return web.json_response([] if is_empty else [entry], headers={"Link": link})

    client = open_client(await start_server(answer))
    async with asyncio.timeout(10):
        with pytest.raises(UpstreamProtocolError):
            await client.list_files(SnapshotId(MODEL, COMMIT), ANONYMOUS)


async def test_answer_without_end_is_cut_off(
    start_server: StartServer, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A huge body is refused as soon as it passes the limit."""
    monkeypatch.setattr(wire, "MESSAGE_BYTES_MAX", 200_000)
    sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(500):
            await response.write(bytes(100_000))
            sent += 100_000
        return response

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError, match="no end"):
        await client.resolve(MODEL, "main", ANONYMOUS)
    assert sent < 40_000_000


async def test_redirects_in_a_circle_are_given_up(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """A loop ends after a few hops."""
    count = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        raise web.HTTPTemporaryRedirect(str(request.rel_url))

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError, match="circle"):
        await client.resolve(MODEL, "main", ANONYMOUS)
    assert count == 6


@pytest.mark.parametrize("location", ["", "file:///etc/passwd", "http://[::1", "ht tp://x", "//"])
async def test_redirect_to_no_address_is_refused(
    start_server: StartServer, open_client: OpenClient, location: str
) -> None:
    """A Location that cannot be followed is the hub's fault."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": location})

    client = open_client(await start_server(answer))
    with pytest.raises(P2PCacheError):
        await client.resolve(MODEL, "main", ANONYMOUS)


# --- tokens ---


async def test_token_is_sent_to_the_hubs_own_origin_only(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """A redirect elsewhere loses the token, and one back to the hub gets it again."""
    seen: list[tuple[str, str | None]] = []
    urls: dict[str, str] = {}

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        seen.append(("elsewhere", request.headers.get("Authorization")))
        raise web.HTTPFound(urls["hub"] + "/back")

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(("hub", request.headers.get("Authorization")))
        if request.path != "/back":
            raise web.HTTPFound(urls["elsewhere"] + "/there")
        return web.json_response({"sha": COMMIT})

    urls["elsewhere"] = await start_server(elsewhere)
    urls["hub"] = await start_server(answer)
    client = open_client(urls["hub"])
    await client.resolve(MODEL, "main", ALLOWED)
    header = f"Bearer {TOKEN}"
    assert seen == [("hub", header), ("elsewhere", None), ("hub", header)]


async def test_next_page_elsewhere_is_asked_of_the_hub_itself(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """A mirror's listing names the original hub; neither question nor token goes there."""
    hosts: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        hosts.append(request.host)
        entry = {"type": "file", "path": f"f{len(hosts)}", "oid": "0" * 40, "size": 1}
        headers = {}
        if "cursor" not in request.query:
            path = request.path
            headers["Link"] = f'<https://elsewhere.example{path}?cursor=x>; rel="next"'
        return web.json_response([entry], headers=headers)

    url = await start_server(answer)
    snapshot = await open_client(url).list_files(SnapshotId(MODEL, COMMIT), ALLOWED)
    assert len(snapshot.files) == 2
    assert hosts == [url.removeprefix("http://")] * 2


async def test_cookie_of_one_caller_is_not_sent_for_another(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """A session that a gateway opens for a token must not make the next caller that user."""
    cookies: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        cookies.append(request.headers.get("Cookie"))
        return web.json_response({"sha": COMMIT}, headers={"Set-Cookie": "session=secret; Path=/"})

    url = (await start_server(answer)).replace("127.0.0.1", "localhost")
    client = open_client(url)
    await client.resolve(MODEL, "main", ALLOWED)
    await client.resolve(MODEL, "main", ANONYMOUS)
    assert cookies == [None, None]


async def test_netrc_of_the_daemons_user_is_never_sent(
    start_server: StartServer,
    open_client: OpenClient,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """An anonymous question is anonymous whatever ~/.netrc holds, and a token still works."""
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"sha": COMMIT})

    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client = open_client(await start_server(answer))
    await client.resolve(MODEL, "main", ANONYMOUS)
    await client.resolve(MODEL, "main", ALLOWED)
    assert seen == [None, f"Bearer {TOKEN}"]


async def test_proxy_of_the_environment_is_used_but_not_for_what_it_excludes(
    start_server: StartServer, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY counts, NO_PROXY too."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.json_response({"sha": COMMIT})

    proxy = await start_server(answer)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "direct.invalid")
    await open_client("http://hub.invalid").resolve(MODEL, "main", ANONYMOUS)
    assert seen == ["http://hub.invalid/api/models/org/model/revision/main"]
    with pytest.raises(UpstreamUnreachableError):
        await open_client("http://direct.invalid").resolve(MODEL, "main", ANONYMOUS)
    assert len(seen) == 1


async def test_path_prefix_of_a_mirror_is_kept(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """A hub below a path is asked below that path."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.json_response({"sha": COMMIT})

    client = open_client(await start_server(answer) + "/mirror/")
    await client.resolve(MODEL, "a b/c", ANONYMOUS)
    assert seen == ["/mirror/api/models/org/model/revision/a%20b%2Fc"]
