"""
Owns the tests of the Hub protocol with ModelScopeHub against the test hub and hostile servers.

Knows nothing of the engine.
Invariants: a token reaches the hub's own origin only; a listing is whole or refused; every answer
that cannot be right is an error of ours.
Source: hubs/base.py; docs/reference/modelscope-dialect.md.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.digest import BlobDigest
from p2pcache.core.msjson import name_listing, read_entries
from p2pcache.core.refs import RepoId, SnapshotId
from p2pcache.core.snapshot import FileEntry
from p2pcache.errors import (
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    UpstreamAuthError,
    UpstreamFailedError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)
from p2pcache.hubs.huggingface import HuggingFaceHub
from p2pcache.hubs.modelscope import ModelScopeHub
from p2pcache.hubs.router import HubRouter
from tests.hub import Hub, Repository
from tests.hub.samples import FILES, OTHER_TOKEN, TOKEN, digests, make_repositories

MODEL = RepoId("ms", "models", "org/model")
GATED = RepoId("ms", "models", "org/gated")
SECRET = RepoId("ms", "models", "org/secret")
DATASET = RepoId("ms", "datasets", "org/set")
ALLOWED = Credentials(TOKEN)
OTHER = Credentials(OTHER_TOKEN)
COMMIT = "a" * 40

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
StartServer = Callable[[Answer], Awaitable[str]]
OpenClient = Callable[[str], ModelScopeHub]


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """Run a hub."""
    async with Hub(make_repositories(), tokens=[OTHER_TOKEN]) as running:
        yield running


@pytest.fixture
async def open_client() -> AsyncIterator[OpenClient]:
    """Return a function that opens clients; closes them all."""
    opened: list[ModelScopeHub] = []

    def open_one(url: str) -> ModelScopeHub:
        client = ModelScopeHub(url)
        client.open()
        opened.append(client)
        return client

    yield open_one
    for client in opened:
        await client.close()


@pytest.fixture
async def client(hub: Hub, open_client: OpenClient) -> ModelScopeHub:
    """Return a client of the hub."""
    return open_client(hub.url)


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """Return a function that runs a server of one handler; stops them all."""
    runners: list[web.AppRunner] = []

    async def start(answer: Answer) -> str:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


def commit_of(hub: Hub, repo_id: str = "org/model", revision: str = "main") -> str:
    """Return what a revision is at the hub."""
    repository = hub.state.catalog.find("models", repo_id)
    assert repository is not None, "the samples have it"
    commit = repository.find_commit(revision)
    assert commit is not None, "the samples have it"
    return commit.sha


def envelope(content: object, *, code: int = 200) -> web.Response:
    """Return an answer as ModelScope wraps it."""
    return web.json_response({"Code": code, "Data": content, "Success": code == 200})


def entry(path: str, size_bytes: int = 1, sha256: str = "0" * 64) -> dict[str, object]:
    """Return one file of a listing."""
    return {"Path": path, "Type": "blob", "Size": size_bytes, "Sha256": sha256}


# --- revisions ---


@pytest.mark.parametrize(("revision", "truth"), [("master", "main"), ("v1", "v1")])
async def test_resolve_branch_or_tag_is_its_commit(
    hub: Hub, client: ModelScopeHub, revision: str, truth: str
) -> None:
    """The list of commits names it; branches, tags and the repository come along."""
    answer = await client.resolve(MODEL, revision, ANONYMOUS)
    assert answer.commit == commit_of(hub, revision=truth)
    assert sorted(answer.about) == ["repository", "revisions"]


async def test_resolve_commit_is_itself(client: ModelScopeHub) -> None:
    """A commit needs no question; whether it has files shows when they are listed."""
    assert (await client.resolve(MODEL, COMMIT, ANONYMOUS)).commit == COMMIT


async def test_resolve_unknown_revision_is_not_found(client: ModelScopeHub) -> None:
    """The hub answers 200 without a commit."""
    with pytest.raises(RevisionNotFoundError):
        await client.resolve(MODEL, "nope", ANONYMOUS)


async def test_resolve_missing_repository_says_what_the_hub_says(client: ModelScopeHub) -> None:
    """The envelope of the refusal has the reason."""
    with pytest.raises(RepositoryNotFoundError, match="record not found"):
        await client.resolve(RepoId("ms", "models", "org/none"), "master", ANONYMOUS)


async def test_resolve_without_list_of_commits_names_the_files(
    hub: Hub, client: ModelScopeHub
) -> None:
    """Same files, same name; other files, another; and the files are found by it."""
    hub.set_faults(names_commits=False)
    first = await client.resolve(MODEL, "master", ANONYMOUS)
    assert first.commit == (await client.resolve(MODEL, "master", ANONYMOUS)).commit
    snapshot = await client.list_files(SnapshotId(MODEL, first.commit), ANONYMOUS)
    assert sorted(e.path for e in snapshot.files) == sorted(FILES)
    repository = hub.state.catalog.find("models", "org/model")
    assert repository is not None, "the samples have it"
    repository.add_commit({"new.txt": b"new\n"})
    assert (await client.resolve(MODEL, "master", ANONYMOUS)).commit != first.commit


@pytest.mark.parametrize("latest", ["", "b" * 40])
@pytest.mark.parametrize("status", [200, 400, 404])
async def test_resolve_with_list_of_commits_refused_looks_at_the_files(
    start_server: StartServer, open_client: OpenClient, status: int, latest: str
) -> None:
    """A hub says in more than one way that it has no such route; its listing may name a commit."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/commits"):
            refusal = {"Code": 404, "Message": "no such API", "Success": False}
            return web.json_response(refusal, status=status)
        if request.path.endswith("/repo/tree"):
            return envelope({"Files": [entry("a")], "LatestCommitter": {"Id": latest}})
        return envelope({})

    client = open_client(await start_server(answer))
    resolution = await client.resolve(DATASET, "master", ANONYMOUS)
    assert resolution.commit == (latest or name_listing(read_entries([entry("a")])))
    snapshot = await client.list_files(SnapshotId(DATASET, resolution.commit), ANONYMOUS)
    assert [e.path for e in snapshot.files] == ["a"]


# --- file lists ---


async def test_list_files_have_the_true_digests(hub: Hub, client: ModelScopeHub) -> None:
    """Every file has its SHA-256, whether it lives in git or not."""
    snapshot = await client.list_files(SnapshotId(MODEL, commit_of(hub)), ANONYMOUS)
    assert {e.path: e.digest.hex for e in snapshot.files} == digests(FILES)
    assert {e.path: e.size_bytes for e in snapshot.files} == {p: len(c) for p, c in FILES.items()}


async def test_list_data_set_comes_page_by_page(client: ModelScopeHub, hub: Hub) -> None:
    """A page that is not full is the last."""
    files = {f"data/{n:03}.txt": b"%d\n" % n for n in range(450)}
    hub.add(Repository("org/rows", files, kind="datasets"))
    repo = RepoId("ms", "datasets", "org/rows")
    commit = (await client.resolve(repo, "master", ANONYMOUS)).commit
    snapshot = await client.list_files(SnapshotId(repo, commit), ANONYMOUS)
    assert len(snapshot.files) == 450
    assert hub.stats.requests["GET ms-tree"] == 3


async def test_list_model_cut_short_is_completed_folder_by_folder(
    monkeypatch: pytest.MonkeyPatch, client: ModelScopeHub, hub: Hub
) -> None:
    """What the hub leaves out without a word is not missing here."""
    monkeypatch.setattr("p2pcache.hubs.modelscope.LISTING_ENTRIES_MAX", 12)
    hub.set_faults(listing_entries_max=12)
    files = {f"part{part}/deep/{n}.txt": b"x" for part in range(4) for n in range(8)}
    hub.add(Repository("org/many", {**files, "config.json": b"{}"}))
    repo = RepoId("ms", "models", "org/many")
    commit = (await client.resolve(repo, "master", ANONYMOUS)).commit
    snapshot = await client.list_files(SnapshotId(repo, commit), ANONYMOUS)
    assert sorted(e.path for e in snapshot.files) == sorted([*files, "config.json"])


async def test_list_folder_that_cannot_be_listed_is_refused(
    monkeypatch: pytest.MonkeyPatch, client: ModelScopeHub, hub: Hub
) -> None:
    """Half a list would look like a whole model."""
    monkeypatch.setattr("p2pcache.hubs.modelscope.LISTING_ENTRIES_MAX", 12)
    hub.set_faults(listing_entries_max=12)
    hub.add(Repository("org/flat", {f"{n}.txt": b"x" for n in range(13)}))
    repo = RepoId("ms", "models", "org/flat")
    commit = (await client.resolve(repo, "master", ANONYMOUS)).commit
    with pytest.raises(UpstreamProtocolError, match="does not list"):
        await client.list_files(SnapshotId(repo, commit), ANONYMOUS)


@pytest.mark.parametrize("repo", [MODEL, DATASET])
async def test_list_unknown_commit_is_not_found(client: ModelScopeHub, repo: RepoId) -> None:
    """The hub answers 200 and an empty list."""
    with pytest.raises(RevisionNotFoundError):
        await client.list_files(SnapshotId(repo, COMMIT), ANONYMOUS)


@pytest.mark.parametrize(
    "files",
    [
        [entry("../x")],
        [entry("a"), entry("a/b")],
        [entry("a", sha256="")],
        [entry("a", sha256="Z" * 64)],
        [entry("a", size_bytes=-1)],
        [{"Path": "a", "Type": "blob", "Size": "1", "Sha256": "0" * 64}],
        ["a"],
        "none",
    ],
)
async def test_list_that_cannot_be_is_refused(
    start_server: StartServer, open_client: OpenClient, files: object
) -> None:
    """Traversal, a file that is a folder, no digest, no number, no list."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return envelope({"Files": files})

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError):
        await client.list_files(SnapshotId(MODEL, COMMIT), ANONYMOUS)


@pytest.mark.parametrize("repo", [MODEL, DATASET])
@pytest.mark.parametrize("other", [entry("a"), entry("a", sha256="1" * 64)], ids=["same", "other"])
async def test_list_that_names_a_path_twice_is_refused(
    start_server: StartServer, open_client: OpenClient, repo: RepoId, other: dict[str, object]
) -> None:
    """Nobody knows which of the two is meant; a hub that repeats itself is no better."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return envelope({"Files": [entry("a"), entry("b"), other]})

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError, match="a path twice"):
        await client.list_files(SnapshotId(repo, COMMIT), ANONYMOUS)


async def test_list_of_a_file_and_a_folder_at_one_path_loses_no_file(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """The folder's line comes last and does not take the file's place."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return envelope({"Files": [entry("a"), entry("b"), {"Path": "a", "Type": "tree"}]})

    client = open_client(await start_server(answer))
    snapshot = await client.list_files(SnapshotId(MODEL, COMMIT), ANONYMOUS)
    assert [e.path for e in snapshot.files] == ["a", "b"]


async def test_list_digest_in_capitals_is_the_same(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """Hex is hex."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return envelope({"Files": [entry("a", sha256="AB" * 32)]})

    client = open_client(await start_server(answer))
    snapshot = await client.list_files(SnapshotId(MODEL, COMMIT), ANONYMOUS)
    assert snapshot.files[0].digest.hex == "ab" * 32


async def test_list_data_set_without_end_is_refused(
    monkeypatch: pytest.MonkeyPatch, start_server: StartServer, open_client: OpenClient
) -> None:
    """A hub whose pages are always full is left after a bounded number of them."""
    monkeypatch.setattr("p2pcache.hubs.modelscope.LISTING_REQUESTS_MAX", 5)
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        page = int(request.query["PageNumber"])
        asked.append(page)
        return envelope({"Files": [entry(f"{page}/{n}") for n in range(200)]})

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError):
        await client.list_files(SnapshotId(DATASET, COMMIT), ANONYMOUS)
    assert asked == [1, 2, 3, 4, 5]


# --- refusals ---


async def test_failure_with_status_200_is_an_error_that_keeps_the_answer(
    hub: Hub, client: ModelScopeHub
) -> None:
    """Success false in the envelope counts, whatever the status says."""
    hub.set_faults(business_failure=True)
    with pytest.raises(UpstreamFailedError, match="system is busy") as caught:
        await client.list_files(SnapshotId(MODEL, COMMIT), ANONYMOUS)
    assert json.loads(caught.value.answer)["Success"] is False


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, 10010205001, RepositoryNotFoundError),
        (404, 10010200001, RepositoryNotFoundError),
        (404, 10990101004, RevisionNotFoundError),
        (403, 1, UpstreamAuthError),
        (400, 1, UpstreamProtocolError),
        (500, 1, UpstreamUnreachableError),
        (429, 1, UpstreamRateLimitedError),
    ],
)
async def test_refusal_is_the_error_that_it_means(
    monkeypatch: pytest.MonkeyPatch,
    start_server: StartServer,
    open_client: OpenClient,
    status: int,
    code: int,
    kind: type[P2PCacheError],
) -> None:
    """The envelope's code first, then the status."""
    monkeypatch.setattr("p2pcache.hubs.wire.RETRY_WAITS_S", ())

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"Code": code, "Message": "no", "Success": False}, status=status)

    client = open_client(await start_server(answer))
    with pytest.raises(kind) as caught:
        await client.list_files(SnapshotId(MODEL, COMMIT), ANONYMOUS)
    assert type(caught.value) is kind


async def test_portal_instead_of_the_hub_is_named(
    start_server: StartServer, open_client: OpenClient
) -> None:
    """A sign-in page is neither a commit nor a list, and lets nobody read anything."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>please sign in</html>", content_type="text/html")

    client = open_client(await start_server(answer))
    with pytest.raises(UpstreamProtocolError, match="portal"):
        await client.resolve(MODEL, "master", ANONYMOUS)
    with pytest.raises(UpstreamProtocolError, match="portal"):
        await client.check_access(SnapshotId(MODEL, COMMIT), "a", ANONYMOUS)


async def test_hub_that_is_down_is_unreachable(open_client: OpenClient) -> None:
    """Nobody listens."""
    client = open_client("http://127.0.0.1:9")
    with pytest.raises(UpstreamUnreachableError):
        await client.resolve(MODEL, "master", ANONYMOUS)


# --- access ---


@pytest.mark.parametrize(
    ("repo", "credentials", "is_let_in"),
    [
        (MODEL, ANONYMOUS, True),
        (MODEL, Credentials("ms_garbage"), True),
        (GATED, ANONYMOUS, False),
        (GATED, OTHER, False),
        (GATED, ALLOWED, True),
        (SECRET, ANONYMOUS, False),
        (SECRET, OTHER, False),
        (SECRET, ALLOWED, True),
    ],
)
async def test_access_is_what_the_hub_says_of_the_file(
    hub: Hub, client: ModelScopeHub, repo: RepoId, credentials: Credentials, is_let_in: bool
) -> None:
    """A HEAD of the file itself: that a repository can be seen is not enough."""
    snapshot_id = SnapshotId(repo, commit_of(hub, repo.name))
    if is_let_in:
        await client.check_access(snapshot_id, "config.json", credentials)
        return
    with pytest.raises((RepositoryNotFoundError, UpstreamAuthError)):
        await client.check_access(snapshot_id, "config.json", credentials)


async def test_token_is_shown_in_header_and_cookie_to_the_hub_alone(
    hub: Hub, start_server: StartServer, open_client: OpenClient
) -> None:
    """Older servers look at the cookie; a redirect away from the hub takes neither along."""
    snapshot_id = SnapshotId(SECRET, commit_of(hub, SECRET.name))
    shown: list[tuple[str, str]] = []
    seen: list[dict[str, str]] = []

    async def other(request: web.Request) -> web.StreamResponse:
        seen.append(dict(request.headers))
        return envelope({"Files": [entry("a")]})

    elsewhere = await start_server(other)

    async def redirect(request: web.Request) -> web.StreamResponse:
        shown.append((request.headers["Authorization"], request.cookies["m_session_id"]))
        return web.Response(status=302, headers={"Location": elsewhere + request.path_qs})

    await open_client(await start_server(redirect)).list_files(snapshot_id, ALLOWED)
    assert shown == [(f"Bearer {TOKEN}", TOKEN)]
    assert seen
    assert not any("Authorization" in headers or "Cookie" in headers for headers in seen)


async def test_location_names_the_commit_and_hides_the_token(
    hub: Hub, client: ModelScopeHub
) -> None:
    """The path is escaped as a value of a query; the token shows in no repr."""
    path = "deep/a+b c%20#?.txt"
    file = FileEntry(path, 1, BlobDigest("sha256", "0" * 64), COMMIT)
    location = client.locate(SnapshotId(MODEL, COMMIT), file, ALLOWED)
    query = parse_qs(urlsplit(location.resolve_url).query)
    assert query == {"Revision": [COMMIT], "FilePath": [path]}
    assert location.headers["Cookie"] == f"m_session_id={TOKEN}"
    assert TOKEN not in repr(location)


async def test_forwarded_request_brings_the_answer_as_it_is(
    hub: Hub, client: ModelScopeHub
) -> None:
    """Status and body, whatever they are."""
    answer = await client.forward("GET", "/api/v1/models/org/none", b"", ANONYMOUS)
    assert answer.status == 404
    assert json.loads(answer.body)["Code"] == 10010205001


# --- the router ---


async def test_router_asks_the_hub_that_a_repository_is_on(hub: Hub) -> None:
    """One name on two hubs is two repositories; a forwarded path tells whose it is."""
    huggingface, modelscope = HuggingFaceHub(hub.url), ModelScopeHub(hub.url)
    router = HubRouter(huggingface, modelscope)
    for one in (huggingface, modelscope):
        one.open()
    try:
        await router.resolve(RepoId("hf", "models", "org/model"), "main", ANONYMOUS)
        assert not any(r.route.startswith("ms-") for r in hub.stats.recorded)
        await router.resolve(MODEL, "master", ANONYMOUS)
        assert hub.stats.requests["GET ms-commits"] == 1
        # Only ModelScope's client shows a token in a cookie.
        await router.forward("GET", "/api/v1/models/org/model", b"", ALLOWED)
        assert hub.stats.recorded[-1].route == "ms-info"
        assert "cookie" in hub.stats.recorded[-1].headers
        await router.forward("GET", "/api/models/org/model", b"", ALLOWED)
        assert hub.stats.recorded[-1].route == "info"
        assert "cookie" not in hub.stats.recorded[-1].headers
    finally:
        for one in (huggingface, modelscope):
            await one.close()
