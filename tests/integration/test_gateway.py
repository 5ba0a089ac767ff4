"""
Owns what an unmodified client sees at the gateway: files, ranges, headers, errors, no Xet.

Knows nothing of peers.
Invariants: the real client (newest, hf_xet installed) in a process of its own; raw requests for
what it does not show.
Source: acceptance cases of the hub dialect, docs/reference/hub-dialect.md.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess, wait_until
from tests.hub import HubProcess
from tests.hub.client import RealClient
from tests.integration.conftest import MakeDaemon

REPO = "org/small"
GATED = "org/gated"
PRIVATE = "org/private"
TOKEN = "hf_allowed"
WEIGHTS = random.Random(5).randbytes(9_000_001)
# Above what the repository's other files are together.
OTHERS_BYTES_MAX = 100_000
FILES = {
    "config.json": b'{"model_type": "bert"}\n',
    "model.safetensors": WEIGHTS,
    "empty.txt": b"",
    "deep/er/still/more/a+b c%20#.txt": b"odd\n",
    "deep/né.txt": b"not ascii\n",
}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a public, a gated and a private repository."""
    root = tmp_path_factory.mktemp("repositories")
    for repo in (REPO, GATED, PRIVATE):
        for name, content in FILES.items():
            path = root / repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


@pytest.fixture
def hub(repositories: Path) -> Iterator[HubProcess]:
    """Run a hub with them."""
    with HubProcess(repositories, gated=[GATED], private=[PRIVATE], tokens=[TOKEN]) as running:
        yield running


@pytest.fixture
def daemon(hub: HubProcess, make_daemon: MakeDaemon) -> DaemonProcess:
    """Run a daemon in front of it."""
    return make_daemon("a", upstream=hub.url).start()


@pytest.fixture(scope="module")
def lasting_daemon(
    repositories: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """Run a daemon that has the large file, for tests that change nothing."""
    store = tmp_path_factory.mktemp("lasting") / "a"
    with HubProcess(repositories) as hub, DaemonProcess(store, upstream=hub.url) as running:
        assert ask(running, f"/{REPO}/resolve/main/model.safetensors")[2] == WEIGHTS
        yield running


def ask(
    daemon: DaemonProcess, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send one plain request."""
    connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=sent)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def truth() -> dict[str, str]:
    """Return the sha256 of every file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


async def test_snapshot_download_through_the_gateway_is_exact_and_sees_no_xet(
    hub: HubProcess, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """The newest client with hf_xet gets every file, and never looks for Xet."""
    client = RealClient(daemon.local, tmp_path / "home", xet=True)
    assert await client.run(f"result = digests(snapshot_download({REPO!r}))") == truth()
    requests = hub.stats()["requests"]
    assert not any("xet" in kind for kind in requests), requests
    trees = list((tmp_path / "home").rglob("trees/*.json"))
    assert trees
    assert not any('"xet_hash": "' in p.read_text() for p in trees)


async def test_warm_snapshot_download_asks_the_hub_nothing(
    hub: HubProcess, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """Once the files are here, another client's download leaves no trace at the hub."""
    script = f"result = digests(snapshot_download({REPO!r}))"
    assert await RealClient(daemon.local, tmp_path / "one", xet=True).run(script) == truth()
    hub.reset()
    assert await RealClient(daemon.local, tmp_path / "two", xet=True).run(script) == truth()
    assert hub.stats()["requests_total"] == 0


async def test_single_files_and_hf_command_line_work(daemon: DaemonProcess, tmp_path: Path) -> None:
    """hf_hub_download of a small and a large file, and `hf download`, then `hf cache verify`."""
    client = RealClient(daemon.local, tmp_path / "home", xet=True)
    script = f"""
        paths = [hf_hub_download({REPO!r}, name) for name in {list(FILES)!r}]
        result = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    """
    assert await client.run(script) == list(truth().values())
    downloaded = await client.run_command("hf", "download", REPO)
    assert downloaded.exit_code == 0, downloaded.stderr
    verified = await client.run_command("hf", "cache", "verify", REPO)
    assert verified.exit_code == 0, verified.stderr


async def test_metadata_calls_work_with_the_hub_and_without_it(
    hub: HubProcess, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """Info, tree, paths-info, refs and the file system agree, and survive the hub's absence."""
    client = RealClient(daemon.local, tmp_path / "home", xet=True)
    script = f"""
        api = HfApi()
        info = api.model_info({REPO!r}, files_metadata=True)
        tree = [item.path for item in api.list_repo_tree({REPO!r}, recursive=True)]
        some = [item.path for item in api.get_paths_info({REPO!r}, ["config.json", "none", "deep"])]
        refs = [(b.name, b.target_commit) for b in api.list_repo_refs({REPO!r}).branches]
        sizes = {{s.rfilename: s.size for s in info.siblings}}
        listed = sorted(HfFileSystem().ls({REPO!r}, detail=False))
        result = [info.sha, tree, some, refs, sizes, listed]
    """
    online = await client.run(script)
    assert online[4] == {name: len(content) for name, content in FILES.items()}
    assert online[2] == ["config.json", "deep"]
    assert f"{REPO}/deep" in online[5]
    hub.set_listening(hub=False, cdn=False)
    offline = await RealClient(daemon.local, tmp_path / "other", xet=True).run(script)
    assert offline == online


async def test_errors_reach_the_client_as_its_own_exceptions(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    """Missing, hidden and gated things raise what they raise at the hub."""
    script = f"""
        result = [
            name_error(lambda: hf_hub_download("org/none", "config.json")),
            name_error(lambda: snapshot_download("org/none")),
            name_error(lambda: hf_hub_download({PRIVATE!r}, "config.json")),
            name_error(lambda: hf_hub_download({REPO!r}, "config.json", revision="none")),
            name_error(lambda: hf_hub_download({REPO!r}, "none.json")),
            name_error(lambda: hf_hub_download({GATED!r}, "config.json")),
            name_error(lambda: snapshot_download({REPO!r}, revision="none")),
        ]
    """
    names = await RealClient(daemon.local, tmp_path / "home", xet=True).run(script)
    assert names == [
        "RepositoryNotFoundError",
        "RepositoryNotFoundError",
        "RepositoryNotFoundError",
        "RevisionNotFoundError",
        "RemoteEntryNotFoundError",
        "GatedRepoError",
        "RevisionNotFoundError",
    ]


async def test_gated_files_are_for_the_allowed_token_only(
    hub: HubProcess, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """What one caller may read is cached, and still refused to a caller without the right."""
    script = f"result = name_error(lambda: hf_hub_download({GATED!r}, 'model.safetensors'))"
    allowed = RealClient(daemon.local, tmp_path / "one", token=TOKEN, xet=True)
    assert await allowed.run(script) == "no error"
    anonymous = RealClient(daemon.local, tmp_path / "two", xet=True)
    assert await anonymous.run(script) == "GatedRepoError"
    wrong = RealClient(daemon.local, tmp_path / "three", token="hf_wrong", xet=True)
    assert await wrong.run(script) != "no error"
    hub.set_listening(hub=False, cdn=False)
    status, _, body = ask(daemon, f"/{GATED}/resolve/main/config.json")
    assert status == 504, body
    assert hub.stats()["token_leaks"] == []
    secret = TOKEN.encode()
    kept = [p for p in daemon.store.rglob("*") if p.is_file() and secret in p.read_bytes()]
    assert kept == []
    assert secret not in daemon.log_path.read_bytes()


def test_restricted_content_is_not_shared_with_peers(
    hub: HubProcess, daemon: DaemonProcess, make_daemon: MakeDaemon
) -> None:
    """A gated blob is readable by the daemon's user alone, and peers are told nothing of it."""
    assert daemon.pull(GATED, "--token", TOKEN).returncode == 0
    assert [model["model"] for model in daemon.client.models()["models"]] == [GATED]
    for open_path in ("models", "downloads", f"residency/{GATED}"):
        _, _, shown = ask(daemon, f"/_p2pcache/v1/{open_path}")
        assert b"resident" not in shown, open_path
        assert open_path.startswith("residency") or GATED.encode() not in shown
    assert (daemon.store / "hub" / "models--org--gated").stat().st_mode & 0o777 == 0o700
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    blob = daemon.store / "blobs" / "sha256" / digest[:2] / digest
    assert blob.stat().st_mode & 0o777 == 0o400
    host = daemon.peer
    for path in (
        f"/v1/blobs/sha256:{digest}/chunks/0-0",
        f"/v1/blobs/sha256:{digest}/table",
        "/v1/snapshots/hf/org%2Fgated/main",
    ):
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("GET", path)
        assert connection.getresponse().status == 404, path
        connection.close()


@pytest.mark.parametrize("when", ["cold", "warm"])
@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("bytes=-10", len(WEIGHTS) - 10, len(WEIGHTS) - 1),
        ("bytes=4194300-4194310", 4_194_300, 4_194_310),
        ("bytes=9000000-", len(WEIGHTS) - 1, len(WEIGHTS) - 1),
        ("bytes=8999999-99999999999", len(WEIGHTS) - 2, len(WEIGHTS) - 1),
    ],
)
def test_ranges_are_exact(
    request: pytest.FixtureRequest, when: str, header: str, start: int, end: int
) -> None:
    """Every satisfiable range is a 206 with the exact bytes and Content-Range."""
    path = f"/{REPO}/resolve/main/model.safetensors"
    daemon: DaemonProcess = request.getfixturevalue(
        "daemon" if when == "cold" else "lasting_daemon"
    )
    status, headers, body = ask(daemon, path, Range=header)
    assert status == 206
    assert headers["Content-Range"] == f"bytes {start}-{end}/{len(WEIGHTS)}"
    assert body == WEIGHTS[start : end + 1]


def test_range_beyond_the_end_is_416_with_the_size(lasting_daemon: DaemonProcess) -> None:
    """A range without any byte of the file is refused, and says how long the file is."""
    daemon = lasting_daemon
    path = f"/{REPO}/resolve/main/model.safetensors"
    status, headers, _ = ask(daemon, path, Range=f"bytes={len(WEIGHTS)}-")
    assert status == 416
    assert headers["Content-Range"] == f"bytes */{len(WEIGHTS)}"
    status, headers, _ = ask(daemon, f"/{REPO}/resolve/main/empty.txt", Range="bytes=0-")
    assert (status, headers["Content-Range"]) == (416, "bytes */0")


def test_head_and_get_agree_and_conditions_are_honoured(daemon: DaemonProcess) -> None:
    """The headers that name a file are equal for HEAD and GET; validators are compared."""
    path = f"/{REPO}/resolve/main/model.safetensors"
    etag = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    _, head, nothing = ask(daemon, path, "HEAD")
    _, got, body = ask(daemon, path)
    assert (nothing, body) == (b"", WEIGHTS)
    for name in ("ETag", "X-Linked-Etag", "X-Linked-Size", "X-Repo-Commit", "Content-Length"):
        assert head[name] == got[name], name
    assert head["ETag"] == head["X-Linked-Etag"] == etag
    assert head["Accept-Ranges"] == "bytes"
    assert len(head["X-Repo-Commit"]) == 40
    assert not any("xet" in name.lower() for name in [*head, *got])
    assert ask(daemon, path, If_None_Match=etag)[0] == 304
    assert ask(daemon, path, Range="bytes=0-3", If_Range=etag)[0] == 206
    assert ask(daemon, path, Range="bytes=0-3", If_Range='"other"')[0] == 200
    _, headers, _ = ask(daemon, path, Accept_Encoding="gzip")
    assert headers["Content-Encoding"] is None
    config = FILES["config.json"]
    sha1 = hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()
    assert ask(daemon, f"/{REPO}/resolve/main/config.json", "HEAD")[1]["ETag"] == f'"{sha1}"'


def test_bytes_flow_while_later_chunks_are_still_fetched(
    repositories: Path, make_daemon: MakeDaemon
) -> None:
    """A reader of a cold file gets its first bytes long before the hub has sent the last."""
    with HubProcess(repositories, rate_bytes_per_s=3_000_000) as hub:
        daemon = make_daemon("a", upstream=hub.url).start()
        connection = http.client.HTTPConnection(daemon.local.removeprefix("http://"), timeout=30)
        connection.request("GET", f"/{REPO}/resolve/main/model.safetensors")
        response = connection.getresponse()
        first = response.read(65536)
        sent_by_hub = hub.stats()["body_bytes"]
        rest = response.read()
        connection.close()
    assert sent_by_hub < len(WEIGHTS)
    assert first + rest == WEIGHTS


def test_client_is_held_by_interim_answers_while_peers_are_not_trusted(
    repositories: Path, make_daemon: MakeDaemon
) -> None:
    """With untrusted peers at work, no byte comes before the proof; 100 Continue keeps waiting."""
    with HubProcess(repositories, rate_bytes_per_s=1_800_000) as hub:
        first = make_daemon("a", upstream=hub.url).start()
        second = make_daemon("b", upstream=hub.url, peers=[first.peer]).start()
        job_id = first.client.pull(REPO)["id"]
        # Else the second one may bring the first chunk itself, and sends that at once.
        wait_until(
            lambda: first.client.download(job_id)["bytes_from_upstream"] > OTHERS_BYTES_MAX,
            "the first daemon has begun with the weights",
            timeout_s=20,
        )
        raw = socket.create_connection(tuple(second.local[7:].split(":")), timeout=60)  # type: ignore[arg-type]
        raw.sendall(
            f"GET /{REPO}/resolve/main/model.safetensors HTTP/1.1\r\n"
            f"Host: {second.local[7:]}\r\nConnection: close\r\n\r\n".encode()
        )
        received = b""
        last_s, gap_s = time.monotonic(), 0.0
        while piece := raw.recv(1 << 20):
            gap_s = max(gap_s, time.monotonic() - last_s)
            last_s = time.monotonic()
            received += piece
        raw.close()
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert received.endswith(WEIGHTS)
    assert gap_s < 10.0


def test_body_goes_on_when_the_hub_breaks_off(hub: HubProcess, daemon: DaemonProcess) -> None:
    """A source that dies mid-body is replaced within the same response."""
    hub.faults(break_after_bytes=1_500_000, break_times=4)
    status, _, body = ask(daemon, f"/{REPO}/resolve/main/model.safetensors")
    assert (status, body) == (200, WEIGHTS)


def test_expired_signed_address_is_renewed(hub: HubProcess, daemon: DaemonProcess) -> None:
    """Signed addresses that live for a second are asked for anew, and the file is whole."""
    hub.faults(signed_url_ttl_s=1, connection_rate_bytes_per_s=2_000_000)
    assert ask(daemon, f"/{REPO}/resolve/main/model.safetensors")[2] == WEIGHTS


def test_unreachable_hub_with_nothing_cached_is_504(hub: HubProcess, daemon: DaemonProcess) -> None:
    """A hub that cannot be asked is never reported as a missing repository."""
    hub.set_listening(hub=False, cdn=False)
    for path in (f"/{REPO}/resolve/main/config.json", f"/api/models/{REPO}/revision/main"):
        status, headers, body = ask(daemon, path)
        assert status == 504, body
        assert headers["X-Error-Code"] not in ("RepoNotFound", "EntryNotFound")
        assert "does not answer" in json.loads(body)["message"]


@pytest.mark.parametrize(
    "path",
    [
        f"/{REPO}/resolve/main/..%2F..%2Fetc/passwd",
        f"/{REPO}/resolve/main/a/../../b",
        f"/{REPO}/resolve/main/%00",
        f"/{REPO}/resolve/..%2Fmain/config.json",
        "/..%2Forg/small/resolve/main/config.json",
        "/a/b/c/d",
        "/api/models/%2E%2E/x",
    ],
)
def test_hostile_path_is_refused(lasting_daemon: DaemonProcess, path: str) -> None:
    """Traversal in any part of an address is an error of the caller, and reads nothing."""
    status, _, body = ask(lasting_daemon, path)
    assert status in (400, 404), body
    assert b"root:" not in body


def test_local_endpoint_refuses_what_a_browser_was_tricked_into(
    lasting_daemon: DaemonProcess,
) -> None:
    """Foreign Host, foreign Origin and changes without token are refused."""
    daemon = lasting_daemon
    local = daemon.local.removeprefix("http://")
    path = "/_p2pcache/v1/status"
    assert ask(daemon, path)[0] == 200
    assert ask(daemon, path, Host="evil.example")[0] == 403
    assert ask(daemon, path, Origin="http://evil.example")[0] == 403
    assert ask(daemon, path, Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(daemon, f"http://{local}{path}")[0] == 403
    assert ask(daemon, "/_p2pcache/v1/downloads", "POST", X_P2PCache="1")[0] == 401
    assert ask(daemon, "/api/v1/models/download", "POST")[0] == 401
