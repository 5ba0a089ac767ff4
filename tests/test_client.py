"""
Owns the tests of the client: where it finds the daemon and the token, what it sends and raises.

Knows nothing of real daemons.
Invariants: the developer's own store and settings are never looked at.
Source: design.md §7 and §8 (local endpoint).
"""

from __future__ import annotations

import fcntl
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcache import client as client_module
from p2pcache import config
from p2pcache.client import Client, error_of_answer, error_of_download, find_endpoint
from p2pcache.errors import (
    BlobCorruptError,
    ConfigError,
    DaemonError,
    DaemonUnreachableError,
    ForbiddenError,
    InputError,
    InvalidNameError,
    NotFoundError,
    P2PCacheError,
    RepositoryNotFoundError,
    SourceError,
    StoreError,
)
from p2pcache.store import home
from tests.cli.fakedaemon import (
    ADMIN_TOKEN,
    API,
    COMMIT,
    FakeDaemon,
    make_error,
    make_job,
    run_fake_daemon,
)

STATUSES: dict[int, type[P2PCacheError]] = {
    400: InputError,
    403: ForbiddenError,
    404: NotFoundError,
    409: InputError,
    500: P2PCacheError,
    502: SourceError,
    503: DaemonError,
    507: StoreError,
}


def iter_error_classes(base: type[P2PCacheError]) -> Iterator[type[P2PCacheError]]:
    """Walk the tree of errors as errors.py has it: each class is known to every process."""
    for cls in (base, *base.__subclasses__()):
        if cls.__module__ == P2PCacheError.__module__:
            yield cls
        if cls is not base:
            yield from iter_error_classes(cls)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forget the developer's settings; the default store is an empty folder of the test."""
    for name in ("P2PCACHE_LOCAL", "P2PCACHE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Run a fake daemon on a store of its own."""
    with run_fake_daemon(tmp_path / "store") as running:
        yield running


@pytest.fixture
def client(daemon: FakeDaemon) -> Client:
    """Return a client that was told the store."""
    return Client(store=daemon.store)


def leave_word(store: Path, content: str) -> None:
    """Write what a daemon leaves in its store."""
    store.mkdir(parents=True, exist_ok=True)
    (store / "daemon.json").write_text(content)


def test_client_constants_are_those_of_config_and_store() -> None:
    """The client imports neither, and must not drift from them."""
    assert client_module.LOCAL_DEFAULT == config.LOCAL_DEFAULT
    assert client_module.default_store() == config.default_store()
    assert client_module.ENDPOINT_NAME == home.ENDPOINT_NAME
    assert client_module.TOKEN_NAME == home.TOKEN_NAME


def test_endpoint_of_nothing_named_is_the_default() -> None:
    """A daemon that runs with its defaults is found with nothing said."""
    assert find_endpoint() == ("127.0.0.1", 7277)


def test_endpoint_named_in_several_places_follows_the_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Explicit > P2PCACHE_LOCAL > the store's daemon.json."""
    leave_word(tmp_path / "store", '{"local": "http://127.0.0.1:1111"}')
    leave_word(tmp_path / "cache" / "p2pcache", '{"local": "[::1]:4444"}')
    assert find_endpoint() == ("::1", 4444)
    assert find_endpoint(store=tmp_path / "store") == ("127.0.0.1", 1111)
    monkeypatch.setenv("P2PCACHE_STORE", str(tmp_path / "store"))
    assert find_endpoint() == ("127.0.0.1", 1111)
    monkeypatch.setenv("P2PCACHE_LOCAL", "localhost:2222")
    assert find_endpoint() == ("127.0.0.1", 2222)
    assert find_endpoint("http://127.0.0.2:3333/") == ("127.0.0.2", 3333)


def test_endpoint_with_port_zero_is_looked_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P2PCACHE_LOCAL=127.0.0.1:0 tells the daemon to choose; the store says what it chose."""
    leave_word(tmp_path / "store", '{"local": "http://127.0.0.1:1111"}')
    monkeypatch.setenv("P2PCACHE_LOCAL", "127.0.0.1:0")
    assert find_endpoint(store=tmp_path / "store") == ("127.0.0.1", 1111)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"local": 3}', '{"local": "10.0.0.7:1"}', '{"local": ":"}']
)
def test_endpoint_of_torn_word_is_no_daemon(tmp_path: Path, content: str) -> None:
    """What a killed daemon left torn names nobody, and cannot send a command off this machine."""
    leave_word(tmp_path, content)
    with pytest.raises(DaemonUnreachableError, match="p2pcache up"):
        find_endpoint(store=tmp_path)


def test_endpoint_of_an_abandoned_store_is_no_daemon(tmp_path: Path) -> None:
    """A killed daemon's word is not believed: its port may be somebody else's by now."""
    leave_word(tmp_path, '{"local": "http://127.0.0.1:1111"}')
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert find_endpoint(store=tmp_path) == ("127.0.0.1", 1111)
    with pytest.raises(DaemonUnreachableError, match="p2pcache up"):
        find_endpoint(store=tmp_path)


@pytest.mark.parametrize("text", ["10.0.0.7:7277", "hub.example:80", "nonsense", "http://a:b@c:1"])
def test_endpoint_off_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The admin token never leaves the machine."""
    with pytest.raises(ConfigError, match="--local"):
        Client(text)
    monkeypatch.setenv("P2PCACHE_LOCAL", text)
    with pytest.raises(ConfigError, match="P2PCACHE_LOCAL"):
        Client()


def test_client_url_of_ipv6_has_brackets() -> None:
    """HF_ENDPOINT is a URL."""
    assert Client("[::1]:7277").url == "http://[::1]:7277"


def test_change_carries_token_of_named_store(client: Client, daemon: FakeDaemon) -> None:
    """The proof that we may, and what no page in a browser can send."""
    daemon.say("POST", "/pins", {"model": "org/name"})
    assert client.pin("org/name@v1") == {"model": "org/name"}
    (seen,) = daemon.requests
    assert seen.headers["Authorization"] == f"Bearer {ADMIN_TOKEN}"
    assert seen.headers["X-P2PCache"] == "1"
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.headers["Host"] == f"127.0.0.1:{daemon.port}"
    assert seen.body == {"model": "org/name", "revision": "v1"}


def test_change_without_named_store_asks_daemon_for_it(daemon: FakeDaemon) -> None:
    """A client that knows the endpoint alone learns the store from the daemon."""
    daemon.say("GET", "/status", {"store": str(daemon.store)})
    daemon.say("DELETE", "/pins", {})
    Client(daemon.url).unpin("org/name")
    assert daemon.paths("GET") == ["/status"]
    assert daemon.requests[-1].headers["Authorization"] == f"Bearer {ADMIN_TOKEN}"


def test_change_without_any_store_reads_default_one(daemon: FakeDaemon, tmp_path: Path) -> None:
    """A daemon that names no store has the default one."""
    daemon.say("GET", "/status", {})
    daemon.say("DELETE", "/pins", {})
    default = tmp_path / "cache" / "p2pcache"
    default.mkdir(parents=True)
    (default / "admin-token").write_text("b2" * 32)
    Client(daemon.url).unpin("org/name")
    assert daemon.requests[-1].headers["Authorization"] == "Bearer " + "b2" * 32


@pytest.mark.parametrize("content", [None, "", "a b", "A1" * 32, "a1" * 31 + "\nX: y"])
def test_change_without_usable_token_sends_nothing(
    client: Client, daemon: FakeDaemon, content: str | None
) -> None:
    """Whatever else the file holds is not sent to anybody."""
    path = daemon.store / "admin-token"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ForbiddenError, match="--store DIR"):
        client.pin("org/name")
    assert daemon.requests == []


def test_change_with_token_of_other_store_says_what_to_name(
    client: Client, daemon: FakeDaemon
) -> None:
    """Two daemons on one machine: the token of one is nothing to the other."""
    daemon.say("POST", "/pins", make_error("MissingToken"), status=401)
    with pytest.raises(ForbiddenError, match=r"has another store .* --store DIR"):
        client.pin("org/name")


def test_reading_carries_the_token_of_the_named_store(client: Client, daemon: FakeDaemon) -> None:
    """Its holder is shown what is not public, too."""
    daemon.say("GET", "/storage", {"blobs": 1})
    assert client.storage() == {"blobs": 1}
    assert daemon.requests[0].headers["Authorization"].startswith("Bearer ")


def test_pull_sends_what_was_given_alone(client: Client, daemon: FakeDaemon) -> None:
    """Fields that were not given are left out; the hub token is in the body."""
    daemon.say("POST", "/downloads", {"id": "d1", "state": "queued"}, status=202)
    assert client.pull("org/name") == {"id": "d1", "state": "queued"}
    client.pull("org/name", "v2", ["*.a"], ["*.b"], token="hf_x", pin=True)
    assert [seen.body for seen in daemon.requests] == [
        {"model": "org/name", "revision": "main"},
        {
            "model": "org/name",
            "revision": "v2",
            "include": ["*.a"],
            "exclude": ["*.b"],
            "token": "hf_x",
            "pin": True,
        },
    ]


def test_pull_of_malformed_reference_sends_nothing(client: Client, daemon: FakeDaemon) -> None:
    """Two revisions, a traversal, a token that is none: the caller's mistakes."""
    with pytest.raises(InvalidNameError):
        client.pull("org/name@a", "b")
    with pytest.raises(InvalidNameError):
        client.residency("../x")
    with pytest.raises(InputError):
        client.pull("org/name", token="a\r\nb")
    assert daemon.requests == []


def test_references_and_ids_are_quoted(client: Client, daemon: FakeDaemon) -> None:
    """A slash inside a name is no slash of the path."""
    daemon.say("GET", "/residency/datasets%2Forg%2Fname%40refs%2Fpr%2F1", {"state": "absent"})
    assert dict(client.residency("datasets/org/name@refs/pr/1")) == {"state": "absent"}
    daemon.say("DELETE", "/downloads/a%2F..%2Fb", {"state": "cancelled"})
    assert client.cancel("a/../b") == {"state": "cancelled"}


def test_lists_are_returned_as_said(client: Client, daemon: FakeDaemon) -> None:
    """The client adds and drops nothing."""
    for path in ("/models", "/peers", "/pins", "/status"):
        daemon.say("GET", path, {path: [1]})
    assert client.models() == {"/models": [1]}
    assert client.peers() == {"/peers": [1]}
    assert client.pins() == {"/pins": [1]}
    assert client.status() == {"/status": [1]}


def test_wait_until_done_shows_every_state(client: Client, daemon: FakeDaemon) -> None:
    """Each look is shown, the last one is returned."""
    jobs = [make_job("queued"), make_job("downloading"), make_job("done", path="/p")]
    daemon.say("GET", "/downloads/d1", *jobs)
    seen: list[dict[str, object]] = []
    assert client.wait("d1", seen.append, poll_s=0) == jobs[-1]
    assert seen == jobs


def test_wait_for_failed_download_raises_its_cause(client: Client, daemon: FakeDaemon) -> None:
    """After its state was shown."""
    failed = make_job("failed", error=make_error("RepositoryNotFound", "No; check."))
    daemon.say("GET", "/downloads/d1", failed)
    seen: list[dict[str, object]] = []
    with pytest.raises(RepositoryNotFoundError, match="No; check"):
        client.wait("d1", seen.append)
    assert seen == [failed]


@pytest.mark.parametrize("error", [None, "text", {}, {"error": 3}])
def test_failed_download_without_reason_is_still_an_error(error: object) -> None:
    """An odd daemon cannot turn a failure into a success."""
    found = error_of_download(make_job("failed", error=error))
    assert isinstance(found, P2PCacheError)
    assert str(found)


@pytest.mark.parametrize("cls", sorted(set(iter_error_classes(P2PCacheError)), key=repr))
def test_error_of_every_class_survives_the_hop(cls: type[P2PCacheError]) -> None:
    """The same class, hence the same exit code; the same sentence."""
    code = cls.__name__.removesuffix("Error")
    found = error_of_answer(cls.http_status, {"error": code, "message": "So; do that."})
    assert type(found) is cls
    assert str(found) == "So; do that."


def test_error_with_fields_has_them_empty() -> None:
    """What the body does not carry is there all the same."""
    found = error_of_answer(500, make_error("BlobCorrupt"))
    assert isinstance(found, BlobCorruptError)
    assert found.path == ""


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_error_of_unknown_code_goes_by_status(
    client: Client, daemon: FakeDaemon, status: int
) -> None:
    """A newer daemon may name classes that we do not know."""
    daemon.say("GET", "/models", make_error("Newer", ""), status=status)
    with pytest.raises(P2PCacheError, match="Newer without a reason") as caught:
        client.models()
    assert type(caught.value) is STATUSES[status]


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"\xff"),
        (200, b"[" * 100_000),
        (404, b""),
        (404, {"detail": "FastAPI says no"}),
        (302, {}),
        (500, b"oops"),
    ],
)
def test_answer_of_another_program_is_told_apart(
    client: Client, daemon: FakeDaemon, status: int, answer: object
) -> None:
    """Something else listens at the port; no redirect is followed."""
    daemon.say("GET", "/models", answer, status=status)
    with pytest.raises(DaemonError, match="no p2pcache daemon") as caught:
        client.models()
    assert caught.value.exit_code == 14
    assert len(daemon.requests) == 1


def test_answer_that_is_too_large_is_refused(
    client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ends at the limit."""
    monkeypatch.setattr("p2pcache.client.wire.ANSWER_BYTES_MAX", 10)
    daemon.say("GET", "/models", {"models": []})
    with pytest.raises(DaemonError, match="no p2pcache daemon"):
        client.models()


def test_answer_without_body_is_empty(client: Client, daemon: FakeDaemon) -> None:
    """204 and the like."""
    daemon.say("DELETE", "/pins", b"")
    assert client.unpin("org/name") == {}


def test_daemon_that_is_down_has_next_step(client: Client, daemon: FakeDaemon) -> None:
    """The sentence of the contract."""
    daemon.stop()
    with pytest.raises(DaemonUnreachableError) as caught:
        client.status()
    assert str(caught.value) == (f"No daemon answers at {daemon.url}; start one with: p2pcache up")


def test_daemon_that_leaves_during_wait_says_what_is_kept(
    client: Client, daemon: FakeDaemon
) -> None:
    """Whoever waits learns that nothing is lost."""
    daemon.say("GET", "/downloads/d1", make_job("downloading"))
    with pytest.raises(DaemonUnreachableError, match=r"what was fetched is kept: .* p2pcache up"):
        client.wait("d1", lambda job: daemon.stop(), poll_s=0, restart_patience_s=0.3)


def serve_once(listener: socket.socket, answer: bytes | None) -> None:
    """Accept one connection; say the bytes and hang up, or stay silent until it is closed."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(65_536)
        if answer is None:
            connection.recv(1)
        else:
            connection.sendall(answer)


@pytest.mark.parametrize(
    ("answer", "expected", "message"),
    [
        (b"", DaemonUnreachableError, "No daemon answers"),
        (b"SSH-2.0-x\r\n", DaemonError, "no p2pcache daemon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", DaemonUnreachableError, "No daemon"),
        (None, DaemonUnreachableError, "did not answer within 0.2 s"),
    ],
)
def test_connection_that_breaks_is_one_sentence(
    answer: bytes | None, expected: type[P2PCacheError], message: str
) -> None:
    """Hung up, another protocol, cut short, silent: never a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_once, args=(listener, answer))
        thread.start()
        timeout_s = 0.2 if answer is None else 10.0
        client = Client(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=timeout_s)
        with pytest.raises(expected, match=message):
            client.status()
        thread.join()


def test_proxy_of_the_environment_is_not_used(
    client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy could not reach our loopback, and would see the token."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    daemon.say("GET", "/status", {"name": "a"})
    assert client.status() == {"name": "a"}


def test_client_import_brings_nothing_heavy() -> None:
    """A scheduler imports it into its own process."""
    script = (
        "import sys, json, p2pcache.client\n"
        "names = {'aiohttp', 'asyncio', 'click', 'zeroconf', 'blake3', 'http.client'}\n"
        "print(json.dumps(sorted(names & set(sys.modules))))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []


def test_fake_daemon_speaks_under_the_prefix(client: Client, daemon: FakeDaemon) -> None:
    """The prefix is the contract's."""
    daemon.say("GET", "/models", {"models": [{"commit": COMMIT}]})
    client.models()
    assert daemon.requests[0].path == "/_p2pcache/v1/models" == API + "/models"


def test_client_is_found_in_the_package_and_costs_nothing_before() -> None:
    """`from p2pcache import Client`, as programs write it; importing p2pcache alone is cheap."""
    code = (
        "import sys, p2pcache; assert 'p2pcache.client' not in sys.modules; "
        "from p2pcache import Client; print(Client.__module__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "p2pcache.client.client", result.stderr
