"""
Owns the tests of the Hugging Face dialect over HTTP: what the hub is asked, and what clients get.

Knows nothing of real clients; requests are those that were traced of them.
Invariants: the hub counts every request; both endpoints and the hub run in this process.
Source: docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlencode

import aiohttp
import pytest

from p2pcache.clock import ManualClock
from tests.daemon.conftest import Serve
from tests.daemon.local import Reply, Served, ask_raw
from tests.engine.conftest import FILES, GATED, OTHER_TOKEN, PRIVATE, REPO, TOKEN, MakeCache
from tests.hub import Hub, HubFile, Repository

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TTL_S = 60.0
SCHEMES = re.compile(r"https?://[^/>]+")


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()


@pytest.fixture
async def served(make_cache: MakeCache, serve: Serve, clock: ManualClock) -> Served:
    """Serve one engine with that clock."""
    return await serve(await make_cache(clock=clock))


def find_repository(hub: Hub, repo: str = REPO) -> Repository:
    """Return a model of the hub."""
    found = hub.state.catalog.find("models", repo)
    assert found is not None
    return found


def bearer(token: str) -> dict[str, str]:
    """Return the header of a signed-in caller."""
    return {"Authorization": f"Bearer {token}"}


# --- addresses ---


@pytest.mark.parametrize("prefix", ["", "/", "/hub", "/a/b.c/d-e", "//"])
async def test_prefix_before_the_dialect_is_accepted_for_files_and_metadata(
    served: Served, prefix: str
) -> None:
    """An endpoint with a path, or a slash too many, is the same endpoint."""
    file = await served.ask(f"{prefix}/{REPO}/resolve/main/config.json")
    assert (file.status, file.body) == (200, FILES["config.json"])
    tree = await served.ask(f"{prefix}/api/models/{REPO}/tree/main?recursive=true")
    assert {item["path"] for item in tree.json} == set(FILES)
    form = urlencode({"paths": "config.json"}).encode()
    some = await served.ask(
        f"{prefix}/api/models/{REPO}/paths-info/main", "POST", body=form, headers=FORM
    )
    assert [item["path"] for item in some.json] == ["config.json"]


async def test_next_page_is_asked_at_the_address_that_the_client_uses(
    served: Served, hub: Hub
) -> None:
    """Links lead back here, with the prefix that was used or that a proxy names, to the end."""
    hub.state.page_size_expanded = 2
    path = f"/api/models/{REPO}/tree/main?recursive=true&expand=true"
    own = f"http://{served.local}"
    forwarded = {"X-Forwarded-Prefix": "/outer", "X-Forwarded-Host": "models.lan:8080"}
    for prefix, headers, base in [
        ("", {}, own),
        ("/p", {}, f"{own}/p"),
        ("/outer", {"X-Forwarded-Prefix": "/outer"}, f"{own}/outer"),
        ("", {"X-Forwarded-Prefix": "/outer/"}, f"{own}/outer"),
        ("", forwarded | {"X-Forwarded-Proto": "https"}, "https://models.lan:8080/outer"),
        ("", {"X-Forwarded-Prefix": '/x>; rel="xet-auth"', "X-Forwarded-Host": "a b"}, own),
    ]:
        first = await served.ask(prefix + path, headers=headers)
        assert first.headers["Link"].startswith(f"<{base}/api/models/{REPO}/tree/"), headers
        assert hub.url not in first.headers["Link"]
        paths = [item["path"] for item in first.json]
        link: str | None = first.headers["Link"]
        while link:
            following = SCHEMES.sub("", link.partition(">")[0][1:], count=1)
            page = await served.ask(following.replace("/outer", "", 1))
            paths += [item["path"] for item in page.json]
            link = page.headers.get("Link")
        assert sorted(paths) == sorted(FILES)


async def test_whole_list_is_one_page_unless_a_limit_is_asked_for(served: Served, hub: Hub) -> None:
    """Clients that read no second page get everything; those that ask for pages get pages."""
    hub.state.page_size = 1
    path = f"/api/models/{REPO}/tree/main?recursive=true"
    whole = await served.ask(path)
    assert "Link" not in whole.headers
    assert len(whole.json) == len(FILES)
    paths, following = [], f"{path}&limit=3"
    while following:
        page = await served.ask(following)
        assert 0 < len(page.json) <= 3
        paths += [item["path"] for item in page.json]
        link = page.headers.get("Link", "")
        assert not link or link.startswith(f"<http://{served.local}/api/")
        following = SCHEMES.sub("", link.partition(">")[0][1:], count=1)
    assert sorted(paths) == sorted(FILES)
    assert (await served.ask(f"{path}&cursor=ZnJvbTo1")).status == 400


async def test_second_page_of_a_hub_that_went_away_is_an_error_not_the_first_again(
    served: Served, hub: Hub
) -> None:
    """A client that follows a link must not get the list from its beginning a second time."""
    hub.state.page_size_expanded = 2
    first = await served.ask(f"/api/models/{REPO}/tree/main?recursive=true&expand=true")
    following = SCHEMES.sub("", first.headers["Link"].partition(">")[0][1:], count=1)
    await hub.set_listening(hub=False, cdn=False)
    assert (await served.ask(following)).status == 504


# --- every request of a client ---


async def test_best_effort_requests_are_answered_here(served: Served, hub: Hub) -> None:
    """Telemetry and the like leave no trace at the hub."""
    for method, path in [
        ("HEAD", "/api/telemetry/examples/run"),
        ("GET", "/api/telemetry/x"),
        ("GET", "/api/agent-harnesses"),
    ]:
        assert (await served.ask(path, method)).status in (200, 204), path
    assert hub.stats.requests_total == 0


async def test_account_and_access_questions_are_the_hubs_each_time(
    served: Served, hub: Hub
) -> None:
    """whoami and auth-check are never remembered, and keep the hub's own words."""
    for _ in range(2):
        assert (await served.ask("/api/whoami-v2", headers=bearer(TOKEN))).json["name"] == "tester"
        allowed = await served.ask(f"/api/models/{GATED}/auth-check", headers=bearer(TOKEN))
        assert allowed.status == 200
    assert hub.stats.count_requests(route="whoami-v2") == 2
    assert hub.stats.count_requests(route="auth-check") == 2
    refused = await served.ask(f"/api/models/{GATED}/auth-check", headers=bearer(OTHER_TOKEN))
    assert (refused.status, refused.headers["X-Error-Code"]) == (403, "GatedRepo")
    nobody = await served.ask("/api/whoami-v2")
    assert (nobody.status, "X-Error-Code" in nobody.headers) == (401, False)
    wrong = await served.ask("/api/whoami-v2", headers=bearer("hf_wrong"))
    assert wrong.headers["X-Error-Message"] == "Invalid credentials in Authorization header"


async def test_unknown_address_below_api_is_the_hubs_to_answer(served: Served, hub: Hub) -> None:
    """What nobody here knows is passed on with its query, and its status comes back."""
    answer = await served.ask("/api/organizations/org/members?limit=2")
    assert answer.status == 404
    assert hub.stats.recorded[-1].path == "/api/organizations/org/members?limit=2"
    assert hub.stats.recorded[-1].route == "other"


async def test_paths_are_asked_for_by_form_or_json_of_any_length(served: Served) -> None:
    """One path or many, in either body; expanded ones come with what the hub adds."""
    path = f"/api/models/{REPO}/paths-info/main"
    form = urlencode([("paths", "config.json"), ("paths", "none"), ("expand", "True")]).encode()
    by_form = await served.ask(path, "POST", body=form, headers=FORM)
    assert [item["path"] for item in by_form.json] == ["config.json"]
    assert by_form.json[0]["lastCommit"]["id"]
    by_json = await served.ask(path, "POST", body={"paths": ["empty.txt"], "expand": False})
    assert [(item["path"], item["size"]) for item in by_json.json] == [("empty.txt", 0)]
    one = await served.ask(path, "POST", body={"paths": "empty.txt"})
    assert [item["path"] for item in one.json] == ["empty.txt"]
    assert (await served.ask(path, "POST", body=b"{")).status == 400
    assert (await served.ask(path, "POST", body={"paths": [1]})).status == 400


@pytest.mark.parametrize("kind", ["models", "datasets", "spaces"])
async def test_every_kind_of_repository_is_served(served: Served, hub: Hub, kind: str) -> None:
    """Models, datasets and spaces, by branch, pull request and commit, with and without files."""
    repository = Repository("org/thing", {"a b/ü#?.txt": b"x", "w.bin": b"y" * 999}, kind=kind)  # type: ignore[arg-type]
    repository.add_commit({"pr.txt": b"pr"}, branch="refs/pr/1", base="main")
    repository.add_tag("v1.0+x")
    hub.add(repository)
    stem = "" if kind == "models" else f"/{kind}"
    for revision, names in [
        ("main", {"a b/ü#?.txt", "w.bin"}),
        ("v1.0+x", {"a b/ü#?.txt", "w.bin"}),
        ("refs/pr/1", {"a b/ü#?.txt", "w.bin", "pr.txt"}),
        (repository.get_commit("main").sha, {"a b/ü#?.txt", "w.bin"}),
    ]:
        quoted = quote(revision, safe="")
        about = await served.ask(f"/api/{kind}/org/thing/revision/{quoted}?blobs=true")
        assert {item["rfilename"] for item in about.json["siblings"]} == names
        file = await served.ask(f"{stem}/org/thing/resolve/{quoted}/{quote('a b/ü#?.txt')}")
        assert (file.status, file.body) == (200, b"x")
        assert file.headers["X-Repo-Commit"] == about.json["sha"]
        folder = await served.ask(f"/api/{kind}/org/thing/tree/{quoted}/{quote('a b', safe='')}")
        assert [item["path"] for item in folder.json] == ["a b/ü#?.txt"]
        info = await served.ask(f"/api/{kind}/org/thing?expand=sha&expand=xetEnabled&expand=new")
        assert set(info.json) == {"_id", "id", "sha"}
        commits = await served.ask(f"/api/{kind}/org/thing/commits/{quoted}")
        assert commits.json[0]["id"] == about.json["sha"]


async def test_renamed_repository_is_followed_inside(served: Served, hub: Hub) -> None:
    """The client asks by the old name and never sees the hub's redirect."""
    hub.add(Repository("new/name", {"config.json": b"{}"}, former_ids=["bert"]))
    for path in ("/bert/resolve/main/config.json", "/api/models/bert", "/api/models/bert/refs"):
        assert (await served.ask(path)).status == 200, path


# --- errors ---


@pytest.mark.parametrize(
    ("path", "token", "status", "code"),
    [
        ("/org/none/resolve/main/a", None, 401, "RepoNotFound"),
        ("/org/none/resolve/main/a", TOKEN, 404, "RepoNotFound"),
        (f"/{PRIVATE}/resolve/main/config.json", None, 401, "RepoNotFound"),
        (f"/{PRIVATE}/resolve/main/config.json", OTHER_TOKEN, 404, "RepoNotFound"),
        (f"/api/models/{PRIVATE}/refs", None, 401, "RepoNotFound"),
        (f"/api/models/{PRIVATE}/commits/main", OTHER_TOKEN, 404, "RepoNotFound"),
        ("/api/models/org/none/auth-check", None, 401, "RepoNotFound"),
        (f"/{GATED}/resolve/main/config.json", None, 401, "GatedRepo"),
        (f"/{GATED}/resolve/main/config.json", OTHER_TOKEN, 403, "GatedRepo"),
        (f"/{REPO}/resolve/none/config.json", None, 404, "RevisionNotFound"),
        (f"/api/models/{REPO}/tree/none", None, 404, "RevisionNotFound"),
        (f"/{REPO}/resolve/main/none", None, 404, "EntryNotFound"),
        (f"/api/models/{REPO}/tree/main/none", None, 404, "EntryNotFound"),
        (f"/{REPO}/resolve/main/config.json", "hf_wrong", 401, None),
    ],
)
async def test_error_has_the_form_that_clients_turn_into_their_exceptions(
    served: Served, path: str, token: str | None, status: int, code: str | None
) -> None:
    """Status and code are the hub's; over http nothing is concluded from a bare 401."""
    for method in ("HEAD", "GET"):
        answer = await served.ask(path, method, headers=bearer(token) if token else {})
        assert (answer.status, answer.headers.get("X-Error-Code")) == (status, code)
        assert ("X-Repo-Commit" in answer.headers) == (code == "EntryNotFound")
        assert answer.headers["X-Error-Message"]
        if code is None:
            wrong = "Invalid credentials in Authorization header"
            assert answer.headers["X-Error-Message"] == wrong


async def test_hidden_repository_that_is_cached_looks_like_a_missing_one(
    served: Served, hub: Hub
) -> None:
    """The answers are the same to the last header, but for the random request id."""
    file = f"/{PRIVATE}/resolve/main/config.json"
    assert (await served.ask(file, headers=bearer(TOKEN))).status == 200
    commit = find_repository(hub, PRIVATE).get_commit("main").sha

    def strip(reply: Reply) -> tuple[object, ...]:
        kept = {k: v for k, v in reply.headers.items() if k.lower() not in ("x-request-id", "date")}
        return reply.status, kept, reply.body

    for form in ("/{}/resolve/main/config.json", "/api/models/{}", "/api/models/{}/refs"):
        for headers in ({}, bearer(OTHER_TOKEN)):
            hidden = await served.ask(form.format(PRIVATE), headers=headers)
            missing = await served.ask(form.format("org/none"), headers=headers)
            assert strip(hidden) == strip(missing), form
    by_commit = await served.ask(f"/{PRIVATE}/resolve/{commit}/config.json")
    assert strip(by_commit) == strip(await served.ask("/org/none/resolve/main/config.json"))


async def test_disabled_repository_keeps_the_words_that_clients_compare(
    served: Served, hub: Hub
) -> None:
    """403 with exactly this sentence is an exception of its own."""
    hub.set_faults(disabled=[REPO])
    for path in (f"/{REPO}/resolve/main/config.json", f"/api/models/{REPO}"):
        answer = await served.ask(path, headers=bearer(TOKEN))
        assert answer.status == 403
        assert answer.headers["X-Error-Message"] == "Access to this resource is disabled."


async def test_missing_file_of_a_known_commit_is_missing_for_ever_without_asking(
    served: Served, hub: Hub, clock: ManualClock
) -> None:
    """At a commit the answer never changes; at a branch it lasts as long as the branch's."""
    first = await served.ask(f"/{REPO}/resolve/main/adapter_config.json", "HEAD")
    commit = first.headers["X-Repo-Commit"]
    hub.stats.reset()
    clock.advance(30 * 86_400)
    await hub.set_listening(hub=False, cdn=False)
    pinned = await served.ask(f"/{REPO}/resolve/{commit}/adapter_config.json", "HEAD")
    assert (pinned.status, pinned.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert pinned.headers["X-Repo-Commit"] == commit
    await hub.set_listening()
    find_repository(hub).add_commit({"adapter_config.json": b"{}"})
    clock.advance(5)
    assert (await served.ask(f"/{REPO}/resolve/main/adapter_config.json", "HEAD")).status == 200


async def test_refusal_is_kept_for_seconds_and_for_its_caller_alone(
    served: Served, hub: Hub, clock: ManualClock
) -> None:
    """A hundred askers of a wrong name ask once; another token, or two seconds, ask anew."""
    path = f"/{PRIVATE}/resolve/main/config.json"
    for _ in range(5):
        assert (await served.ask(path)).status == 401
    assert hub.stats.count_requests(route="revision") == 1
    assert (await served.ask(path, headers=bearer(TOKEN))).status == 200
    assert (await served.ask(path, headers=bearer(OTHER_TOKEN))).status == 404
    find_repository(hub, PRIVATE).private = False
    clock.advance(2)
    assert (await served.ask(path)).status == 200


async def test_hub_that_is_away_is_504_with_a_reason_for_what_is_not_cached(
    served: Served, hub: Hub
) -> None:
    """Metadata, files and everything that is passed on say so; never that a model is gone."""
    assert (await served.ask(f"/{REPO}/resolve/main/config.json", "HEAD")).status == 200
    await hub.set_listening(hub=False, cdn=False)
    for path in (
        "/org/other/resolve/main/a",
        "/api/models/org/other",
        "/api/models?search=bert",
        "/api/whoami-v2",
        f"/api/models/{REPO}/commits/main",
    ):
        answer = await served.ask(path)
        assert answer.status == 504, path
        assert "check" in answer.headers["X-Error-Message"], path


# --- one file ---


async def test_condition_or_impossible_range_fetches_nothing(served: Served, hub: Hub) -> None:
    """304 and 416 are answered from the list: no byte of the file is asked for."""
    path = f"/{REPO}/resolve/main/pytorch_model.bin"
    head = await served.ask(path, "HEAD")
    for method in ("HEAD", "GET"):
        known = await served.ask(
            path, method, headers={"If-None-Match": f"W/{head.headers['Etag']}"}
        )
        assert (known.status, known.body) == (304, b"")
        size = len(FILES["pytorch_model.bin"])
        beyond = await served.ask(path, method, headers={"Range": f"bytes={size}-"})
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    empty = await served.ask(f"/{REPO}/resolve/main/empty.txt", headers={"Range": "bytes=0-0"})
    assert (empty.status, empty.headers["Content-Range"]) == (416, "bytes */0")
    assert hub.stats.body_bytes == 0


@pytest.mark.parametrize(
    ("agent", "form"),
    [
        ("unknown/None; hf_hub/2.4.0; python/3.11.7", "unsized"),
        ("unknown/None; hf_hub/1.31.0; python/3.11.7", "unsized"),
        ("unknown/None; hf_hub/1.30.2; python/3.11.7", "refused"),
        ("unknown/None; hf_hub/0.36.0; python/3.11.7", "refused"),
        ("unknown/None; hf_hub/0.31.0; python/3.11.7", "refused"),
        ("unknown/None; hf_hub/0.24.7; python/3.11.7", "sized"),
        ("curl/8.0", "sized"),
    ],
)
async def test_head_of_more_than_fifty_gigabytes_is_as_the_client_can_take_it(
    served: Served, hub: Hub, agent: str, form: str
) -> None:
    """Newest clients take the length from the GET; those that would refuse are told the way."""
    huge = HubFile(b"", 60_000_000_000, "1" * 40, "2" * 64)
    just = HubFile(b"", 50_000_000_000, "3" * 40, "4" * 64)
    hub.add(Repository("org/huge", {"model.gguf": huge, "just.gguf": just}))
    address = served.local
    request = (
        f"HEAD /org/huge/resolve/main/{{}} HTTP/1.1\r\nHost: {address}\r\n"
        f"User-Agent: {agent}\r\nConnection: close\r\n\r\n"
    )
    answer = (await ask_raw(address, request.format("model.gguf"))).decode("latin-1")
    head, _, body = answer.partition("\r\n\r\n")
    assert body == "", "a HEAD has no body, however it is framed"
    lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    if form == "refused":
        assert head.startswith("HTTP/1.1 413 ")
        assert f"hf_hub_cache={served.engine.root}/hub" in lines["x-error-message"]
        assert "p2pcache pull org/huge" in lines["x-error-message"]
    else:
        assert head.startswith("HTTP/1.1 200 ")
        assert lines["etag"] == f'"{"2" * 64}"'
        sized = {"content-length": "60000000000", "x-linked-size": "60000000000"}
        assert ({name: lines.get(name) for name in sized} == sized) == (form == "sized")
        assert ("content-length" in lines, "x-linked-size" in lines) == (form == "sized",) * 2
    small = (await ask_raw(address, request.format("just.gguf"))).decode("latin-1").lower()
    assert "content-length: 50000000000" in small


async def test_llama_cpp_and_rust_clients_find_what_they_insist_on(served: Served) -> None:
    """refs, one page of tree, HEAD with Accept-Ranges, strict 206; 206 of one byte with all."""
    refs = (await served.ask(f"/api/models/{REPO}/refs")).json
    commit = next(ref["targetCommit"] for ref in refs["branches"] if ref["name"] == "main")
    tree = await served.ask(f"/api/models/{REPO}/tree/{commit}?recursive=true")
    assert {item["path"] for item in tree.json} == set(FILES)
    assert "Link" not in tree.headers
    path, weights = f"/{REPO}/resolve/{commit}/pytorch_model.bin", FILES["pytorch_model.bin"]
    head = await served.ask(path, "HEAD")
    assert (head.status, head.headers["Accept-Ranges"]) == (200, "bytes")
    rest = await served.ask(path, headers={"Range": "bytes=1000-"})
    assert (rest.status, rest.body) == (206, weights[1000:])
    probe = await served.ask(path, headers={"Range": "bytes=0-0"})
    assert probe.headers["Content-Range"] == f"bytes 0-0/{len(weights)}"
    assert (probe.status, probe.body) == (206, weights[:1])
    assert probe.headers["X-Repo-Commit"] == commit
    assert probe.headers["Etag"] == probe.headers["X-Linked-Etag"] == head.headers["Etag"]
    # hf_transfer: its last range ends one byte past the end.
    past = await served.ask(path, headers={"Range": f"bytes=300000-{len(weights)}"})
    last = f"bytes 300000-{len(weights) - 1}/{len(weights)}"
    assert (past.status, past.headers["Content-Range"]) == (206, last)
    small = await served.ask(f"/{REPO}/resolve/main/config.json", headers={"Range": "bytes=0-0"})
    assert (small.status, small.body) == (206, FILES["config.json"][:1])


async def test_path_that_is_not_percent_encoded_is_found(served: Served, hub: Hub) -> None:
    """llama.cpp sends a name as it is."""
    name = "Model[v1]+a(b)~!'Q4;x=1,2@&$.gguf"
    hub.add(Repository("org/odd", {name: b"gguf"}))
    request = (
        f"GET /org/odd/resolve/main/{name} HTTP/1.1\r\nHost: {served.local}\r\n"
        "Connection: close\r\n\r\n"
    )
    answer = await ask_raw(served.local, request)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert answer.endswith(b"\r\n\r\ngguf")


# --- consistency ---


async def test_branch_that_moves_between_head_and_get_gives_the_bytes_of_the_head(
    served: Served, hub: Hub, clock: ManualClock
) -> None:
    """The GET is of the commit that its HEAD named, though the branch's answer ran out between."""
    path = f"/{REPO}/resolve/main/config.json"
    await served.ask(path, "HEAD")
    clock.advance(TTL_S - 1)
    head = await served.ask(path, "HEAD")
    find_repository(hub).add_commit({"config.json": b"new"})
    clock.advance(1)
    async with aiohttp.ClientSession() as other:
        moved = await other.head(f"http://{served.local}{path}")
        assert moved.headers["X-Repo-Commit"] != head.headers["X-Repo-Commit"]
        get = await served.ask(path)
        assert get.body == FILES["config.json"]
        for name in ("X-Repo-Commit", "Etag"):
            assert get.headers[name] == head.headers[name]
        theirs = await other.get(f"http://{served.local}{path}")
        assert await theirs.read() == b"new"
    clock.advance(30)
    assert (await served.ask(path)).body == b"new"


async def test_info_tree_refs_and_files_name_one_commit_while_the_branch_moves(
    served: Served, hub: Hub
) -> None:
    """Within the time that a branch stands, nothing that is asked of it names another commit."""
    first = (await served.ask(f"/{REPO}/resolve/main/config.json", "HEAD")).headers["X-Repo-Commit"]
    find_repository(hub).add_commit({"config.json": b"new"})
    info = (await served.ask(f"/api/models/{REPO}")).json
    more = (await served.ask(f"/api/models/{REPO}?expand=sha")).json
    refs = (await served.ask(f"/api/models/{REPO}/refs")).json
    tree = await served.ask(f"/api/models/{REPO}/tree/main?recursive=true&expand=true")
    said = {item["path"]: item["lastCommit"]["id"] for item in tree.json}
    named = {info["sha"], more["sha"], refs["branches"][0]["targetCommit"], *said.values()}
    assert named == {first}


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_thousand_workers_ask_the_hub_as_one_does(
    make_cache: MakeCache, serve: Serve, hub: Hub, token: str | None
) -> None:
    """Cold: 1,000 requests of everything that a start asks for cost what one of each does."""
    served = await serve(await make_cache("many"))
    paths = [
        f"/api/models/{REPO}/revision/main",
        f"/api/models/{REPO}/tree/main?recursive=true&expand=false",
        f"/api/models/{REPO}/tree/main?recursive=true&expand=true",
        f"/api/models/{REPO}/refs",
        *(f"/{REPO}/resolve/main/{name}" for name in FILES),
        f"/{REPO}/resolve/main/adapter_config.json",
    ]
    connector = aiohttp.TCPConnector(limit=200)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(number: int) -> int:
            path = paths[number % len(paths)]
            method = "HEAD" if "/resolve/" in path else "GET"
            url, headers = f"http://{served.local}{path}", bearer(token) if token else {}
            async with session.request(method, url, headers=headers) as response:
                await response.read()
                return response.status

        statuses = await asyncio.gather(*(ask(number) for number in range(1000)))
    assert {s for n, s in enumerate(statuses) if n % len(paths) != len(paths) - 1} == {200}
    assert {s for n, s in enumerate(statuses) if n % len(paths) == len(paths) - 1} == {404}
    asked = {route: hub.stats.count_requests(route=route) for route in ("revision", "tree", "refs")}
    if token is None:
        assert asked == {"revision": 1, "tree": 2, "refs": 1}
        assert hub.stats.count_requests(method="HEAD") == 1
    else:
        # More than anybody costs: whether the token lets him in, and branches in his name, before
        # anybody knows of the repository. Who looked just before the proof came asks once more.
        assert asked["revision"] == 1
        assert asked["tree"] <= 3
        assert hub.stats.count_requests(method="HEAD") <= 4
        assert hub.stats.requests_total <= 2 * len(paths), asked
    assert hub.stats.body_bytes == 0


async def start_sixteen(served: list[Served], others: Callable[[int], Awaitable[object]]) -> None:
    """Let sixteen workers on these daemons do the same at once."""
    await asyncio.gather(*(others(worker % len(served)) for worker in range(16)))


@pytest.mark.parametrize("trust_peers", [False, True])
async def test_sixteen_workers_on_four_daemons_cost_few_questions(
    make_cache: MakeCache, serve: Serve, hub: Hub, *, trust_peers: bool
) -> None:
    """Each daemon asks a handful of questions; with trusted peers all of them ask as one."""
    daemons = [
        await serve(await make_cache(f"d{number}", trust_peers=trust_peers)) for number in range(4)
    ]
    for one in daemons:
        for other in daemons:
            if other is not one:
                await one.engine.meet(other.peer)

    async def work(index: int) -> None:
        served = daemons[index]
        about = await served.ask(f"/api/models/{REPO}/revision/main")
        commit = about.json["sha"]
        tree = await served.ask(f"/api/models/{REPO}/tree/{commit}?recursive=true&expand=false")
        assert {item["path"] for item in tree.json} == set(FILES)
        for name, content in FILES.items():
            head = await served.ask(f"/{REPO}/resolve/{commit}/{name}", "HEAD")
            assert head.headers["Content-Length"] == str(len(content))

    await start_sixteen(daemons, work)
    asked = {route: hub.stats.count_requests(route=route) for route in ("revision", "tree")}
    heads = hub.stats.count_requests(method="HEAD")
    if trust_peers:
        assert asked == {"revision": 1, "tree": 1}
        assert heads <= len(FILES)
    else:
        assert asked == {"revision": 4, "tree": 4}
        assert heads <= len(FILES) * 4


# --- while the hub is away ---


async def test_branches_are_answered_while_the_hub_is_away(
    served: Served, hub: Hub, clock: ManualClock
) -> None:
    """The hub's own list for as long as this daemon runs, marked; else what was asked for."""
    repository = find_repository(hub)
    repository.add_tag("v1")
    repository.add_commit({"pr.txt": b"pr"}, branch="refs/pr/7", base="main")
    path = f"/api/models/{REPO}/refs?include_prs=1"
    online = await served.ask(path)
    for revision in ("main", quote("refs/pr/7", safe="")):
        assert (await served.ask(f"/{REPO}/resolve/{revision}/config.json", "HEAD")).status == 200
    await hub.set_listening(hub=False, cdn=False)
    clock.advance(10 * TTL_S)
    stale = await served.ask(path)
    assert (stale.json, "X-HF-Warning" in stale.headers) == (online.json, True)
    made = (await served.ask(f"/api/models/{REPO}/refs?include_prs=True")).json
    assert [ref["name"] for ref in made["branches"]] == ["main"]
    assert [ref["ref"] for ref in made["pullRequests"]] == ["refs/pr/7"]


@pytest.mark.parametrize("status", [429, 503])
async def test_hub_that_asks_to_slow_down_is_answered_for(
    served: Served, hub: Hub, clock: ManualClock, status: int
) -> None:
    """What was said before stands, marked; what never was said comes with when to ask again."""
    refs = f"/api/models/{REPO}/refs"
    about = await served.ask(f"/api/models/{REPO}")
    online = (await served.ask(refs)).json
    clock.advance(TTL_S)
    hub.set_faults(refuse_status=status, retry_after_s=7)
    stale = await served.ask(refs)
    assert (stale.status, stale.json) == (200, online)
    assert "X-HF-Warning" in stale.headers
    plain = await served.ask(f"/api/models/{REPO}?securityStatus=true")
    assert (plain.status, plain.json["sha"]) == (200, about.json["sha"])
    unknown = await served.ask("/api/models/org/unknown")
    assert (unknown.status, "Retry-After" in unknown.headers) == (429, True)


async def test_slow_hub_gives_way_to_what_is_cached(
    served: Served, hub: Hub, clock: ManualClock
) -> None:
    """A client has ten seconds: an answer that is cached does not wait for them."""
    path = f"/{REPO}/resolve/main/config.json"
    fresh = await served.ask(path, "HEAD")
    clock.advance(TTL_S)
    hub.set_faults(latency_s=30.0)
    async with asyncio.timeout(8.0):
        stale = await served.ask(path, "HEAD")
    assert stale.headers["Etag"] == fresh.headers["Etag"]
    assert "X-HF-Warning" in stale.headers


async def test_commit_that_the_hub_dropped_is_asked_anew(
    served: Served, hub: Hub, clock: ManualClock
) -> None:
    """After a forced push the old commit's files are gone: the next question sees the new one."""
    path = f"/{REPO}/resolve/main/pytorch_model.bin"
    old = (await served.ask(path, "HEAD")).headers["X-Repo-Commit"]
    repository = find_repository(hub)
    new = repository.add_commit({"pytorch_model.bin": b"forced"}).sha
    del repository.commits[old]
    assert (await served.ask(path)).status in (404, 502, 503, 504)
    clock.advance(31)
    again = await served.ask(path, "HEAD")
    assert again.headers["X-Repo-Commit"] == new
    assert (await served.ask(path)).body == b"forced"
