"""
Owns the check that a caller's token is nowhere but in memory and on its way to the hub.

Knows nothing of the daemon's code.
Invariants: real daemons at debug level, with a log that nothing was hidden in; the tokens look like
none that a filter knows; everything that they wrote, said or sent is searched.
Source: docs/explanation/trust-and-threats.md (tokens); design.md §7.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.daemons import DaemonProcess, run_p2pcache, wait_until
from tests.hub import HubProcess
from tests.ports import pick_port

PUBLIC, GATED, PRIVATE, DAEMONS_OWN = "org/public", "org/gated", "org/private", "org/daemons-own"
# Whose: the hub's allowed reader, nobody, somebody else, the daemon's user.
READER, NOBODY, OTHER, DAEMON = (
    f"{name}{Random(name).randbytes(12).hex()}" for name in ("zqRdr", "zqNbd", "zqOth", "zqDmn")
)
CANARIES = (READER, NOBODY, OTHER, DAEMON)
WEIGHTS = "model.bin"
WEIGHTS_BYTES = 300_000
# Run in every daemon before its own code: everything is logged, once more as it was meant.
LOUD = """
import logging, os
real = logging.basicConfig
def basicConfig(**options):
    raw = logging.FileHandler(os.environ["RAW_LOG"])
    raw.setFormatter(logging.Formatter("%(name)s %(message)s"))
    real(**{**options, "level": logging.DEBUG, "handlers": [*options["handlers"], raw]})
logging.basicConfig = basicConfig
"""


class Tap:
    """A TCP relay to one address that keeps every byte of both ways."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", pick_port()))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(self._target) as far:
            back = threading.Thread(target=self._carry, args=(far, near), daemon=True)
            back.start()
            self._carry(near, far)
            back.join()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                self.heard += piece
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    """Run a hub with something for everybody."""
    root = tmp_path / "repositories"
    for name in (PUBLIC, GATED, PRIVATE, DAEMONS_OWN):
        (root / name).mkdir(parents=True)
        (root / name / WEIGHTS).write_bytes(Random(name).randbytes(WEIGHTS_BYTES))
        (root / name / "config.json").write_text(json.dumps({"of": name}))
    with HubProcess(root) as running:
        running.set_tokens([READER, OTHER, DAEMON])
        running.set_rights(GATED, gated=True, tokens=[READER])
        running.set_rights(PRIVATE, private=True, tokens=[READER])
        running.set_rights(DAEMONS_OWN, private=True, tokens=[DAEMON])
        yield running


def make_daemon(
    folder: Path, name: str, hub: HubProcess, *peers: str, listen: str = ""
) -> DaemonProcess:
    """Return a loud daemon whose own environment has a token."""
    loud = folder / "loud"
    loud.mkdir(exist_ok=True)
    (loud / "sitecustomize.py").write_text(LOUD)
    environment = {
        "PYTHONPATH": str(loud),
        "RAW_LOG": str(folder / f"{name}.raw"),
        "HF_TOKEN": DAEMON,
        "HUGGING_FACE_HUB_TOKEN": DAEMON,
        "P2PCACHE_TOKEN": DAEMON,
    }
    return DaemonProcess(
        folder / name,
        upstream=hub.url,
        peers=peers,
        environment=environment,
        trust_peers=True,
        listen=listen,
    )


def fetch(url: str, **headers: str) -> tuple[int, bytes]:
    """Return status, head and body of a GET, whatever they are."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=named)) as answer:
            return answer.status, bytes(answer.headers) + answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, bytes(error.headers) + error.read()


def send_raw(address: str, text: bytes) -> bytes:
    """Return the answer to a request that no client would write."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def list_paths(name: str) -> list[str]:
    """Return what a client may ask of a repository."""
    api = f"/api/models/{name}"
    return [
        f"/{name}/resolve/main/{WEIGHTS}",
        f"/{name}/resolve/main/config.json",
        f"/{name}/resolve/main/absent",
        f"/{name}/resolve/v9/config.json",
        api,
        f"{api}/tree/main",
        f"{api}/refs",
        f"{api}/tree/main?expand=true",
        "/api/whoami-v2",
        "/api/nothing/of/the/kind",
        f"/_p2pcache/v1/residency/{name}",
    ]


def provoke(daemon: DaemonProcess) -> list[bytes]:
    """Show every token in every way; return what came back, bodies of files apart."""
    answers = []
    for name in (PUBLIC, GATED, PRIVATE, DAEMONS_OWN):
        for token in (READER, NOBODY, OTHER):
            for path in list_paths(name):
                status, said = fetch(daemon.local + path, Authorization=f"Bearer {token}")
                answers += [said] if status != 200 or WEIGHTS not in path else []
    host = daemon.local.removeprefix("http://").encode()
    head = b"GET /org/private/resolve/main/config.json HTTP/1.1\r\nHost: " + host + b"\r\n"
    raw = READER.encode()
    for bad in (
        b"Authorization: Bearer " + raw + b"\x01\r\n",
        b"Authorization: Bearer " + raw * 300 + b"\r\n",
        b"Authorization: Basic " + raw + b"\r\n",
        b"Authorization : Bearer " + raw + b"\r\n",
        b"Content-Length: " + raw + b"\r\n",
        b"Cookie: m_session_id=" + raw + b"\r\n",
    ):
        answers.append(send_raw(daemon.local, head + bad + b"Connection: close\r\n\r\n"))
    return answers


def list_management(daemon: DaemonProcess) -> list[bytes]:
    """Return what the daemon tells its operator."""
    admin = (daemon.store / "admin-token").read_text().strip()
    paths = ["/metrics", "/healthz"]
    paths += [
        f"/_p2pcache/v1/{name}"
        for name in ("status", "downloads", "models", "peers", "storage", "pins", "leases", "check")
    ]
    return [fetch(daemon.local + path, Authorization=f"Bearer {admin}")[1] for path in paths]


def read_processes(daemon: DaemonProcess) -> bytes:
    """Return the command lines of the daemon and of all that it started."""
    found = b""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            if daemon.pid in (int(folder.name), int(status[1])):
                found += (folder / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def find_secrets(content: bytes) -> list[str]:
    """Return which tokens, or what anybody could make of them, are in some bytes."""
    found = []
    for token in CANARIES:
        digest = hashlib.sha256(token.encode())
        shapes = (token.encode(), digest.hexdigest().encode(), digest.digest())
        found += [token[:5] for shape in shapes if shape in content]
    return found


@pytest.mark.timeout(120)
def test_token_is_nowhere_but_on_its_way_to_the_hub(tmp_path: Path, hub: HubProcess) -> None:
    """Nothing that daemons write, log, count, answer or tell each other has a caller's token."""
    first = make_daemon(tmp_path, "first", hub)
    with first:
        tap = Tap(first.peer)
        # Where the first one does not find it: they would meet there, past the tap.
        hidden = f"127.0.0.2:{pick_port()}"
        with make_daemon(tmp_path, "second", hub, tap.address, listen=hidden) as second:
            wait_until(lambda: second.client.peers()["peers"], "the peers meet")
            said = provoke(first)
            environment = {"P2PCACHE_TOKEN": READER}
            pulls = [
                run_p2pcache("pull", name, *second.where, environment=environment)
                for name in (GATED, PRIVATE, PUBLIC, DAEMONS_OWN)
            ]
            said += [f"{pull.stdout}{pull.stderr}".encode() for pull in pulls]
            assert [pull.returncode for pull in pulls[:3]] == [0, 0, 0], pulls
            assert pulls[3].returncode != 0, "the reader's token is not the daemon's"
            hub.set_listening(hub=False, cdn=False)
            said += provoke(second)
            said += list_management(first) + list_management(second)
            said.append(read_processes(first) + read_processes(second))
            hub.set_listening()
        tap.close()
        assert first.client.status()["name"] == "first"
    # The search is not in vain: these are where the tokens would be.
    traffic = bytes(tap.heard)
    public_digest = hashlib.sha256(Random(PUBLIC).randbytes(WEIGHTS_BYTES)).hexdigest()
    assert public_digest.encode() in traffic
    assert PRIVATE.encode() in (tmp_path / "second.raw").read_bytes(), "it logs what is asked"
    assert len(said) > 100
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"first.raw", "second.raw", "first.log", "index.sqlite"} <= {p.name for p in written}
    kept = [(find_secrets(path.read_bytes()), str(path)) for path in written]
    assert [(found, path) for found, path in kept if found] == []
    told = [(find_secrets(text), text[:300]) for text in said]
    assert [(found, text) for found, text in told if found] == []
    assert find_secrets(traffic) == []
    for name in (PRIVATE, GATED, DAEMONS_OWN):
        hidden = hashlib.sha256(Random(name).randbytes(WEIGHTS_BYTES)).hexdigest()
        assert hidden.encode() not in traffic, "peers hear nothing of what is restricted"
    stats = hub.stats()
    assert stats["token_leaks"] == []
    assert find_secrets(json.dumps(stats).encode()) == []


def test_daemons_own_token_lets_nobody_in(tmp_path: Path, hub: HubProcess) -> None:
    """A token in the daemon's environment, or in its user's files, is used for no caller."""
    home = tmp_path / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text(DAEMON)
    port_host = hub.url.removeprefix("http://").partition(":")[0]
    (home / ".netrc").write_text(f"machine {port_host} login x password {DAEMON}\n")
    (home / ".netrc").chmod(0o600)
    environment = {"HF_TOKEN": DAEMON, "P2PCACHE_TOKEN": DAEMON, "HOME": str(home)}
    with DaemonProcess(tmp_path / "a", upstream=hub.url, environment=environment) as daemon:
        for path in list_paths(DAEMONS_OWN)[:6]:
            assert fetch(daemon.local + path)[0] in (401, 404), path
        shown = [r["headers"].get("authorization") for r in hub.stats()["recorded"]]
        assert shown
        assert set(shown) == {None}
        mine = f"{daemon.local}/{DAEMONS_OWN}/resolve/main/config.json"
        assert fetch(mine, Authorization=f"Bearer {DAEMON}")[0] == 200


def list_readable(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names that other users see, with the bytes of the files that they may read."""
    for path in root.iterdir() if root.stat().st_mode & 0o004 else ():
        yield str(path), b""
    for path in root.iterdir():
        mode = path.lstat().st_mode
        if path.is_symlink():
            continue
        if path.is_dir() and mode & 0o001:
            yield from list_readable(path)
        elif path.is_file() and mode & 0o004:
            yield str(path), path.read_bytes()


def test_other_users_find_no_hidden_name_in_the_store(tmp_path: Path, hub: HubProcess) -> None:
    """What another user of this machine can list or read names no repository that is hidden."""
    store = tmp_path / "a"
    with DaemonProcess(store, upstream=hub.url) as daemon:
        environment = {"P2PCACHE_TOKEN": READER}
        for name in (PUBLIC, PRIVATE):
            pulled = run_p2pcache("pin", name, *daemon.where, environment=environment)
            assert pulled.returncode == 0, pulled
        assert daemon.run("check").returncode == 0
    seen = list(list_readable(store))
    names = [path for path, _ in seen if "private" in path.removeprefix(str(tmp_path))]
    assert names == []
    assert [path for path, content in seen if b"org/private" in content] == []
    # Others can still read what anybody may have.
    weights = Random(PUBLIC).randbytes(WEIGHTS_BYTES)
    assert [path for path, content in seen if content == weights and "/hub/" in path]
