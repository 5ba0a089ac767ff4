"""
Owns what is answered when the hub is gone and the daemon was started anew.

Knows nothing of real clients; requests are those that they send.
Invariants: everything that was answered with the hub is answered without it, to the last header;
what is not here is 504 with a reason.
Source: docs/reference/hub-dialect.md; acceptance cases 3, 11 and 13 of the dialect.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.daemons import DaemonProcess
from tests.hub import HubProcess
from tests.integration.conftest import MakeDaemon
from tests.integration.test_gateway import ask

REPO = "org/small"
FILES = {
    "config.json": b'{"model_type": "bert"}\n',
    "model.safetensors": random.Random(5).randbytes(5_000_001),
    "empty.txt": b"",
    "a/b/c/d/e/odd +%#?.txt": b"odd\n",
    "né/ü.txt": b"not ascii\n",
    "never-asked-for.bin": b"never" * 10_000,
}
CHANGING = ("x-request-id", "date", "x-hf-warning")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    """Run a hub with a model and a data set."""
    for repo in (REPO, f"datasets/{REPO}"):
        for name, content in FILES.items():
            path = tmp_path / "repositories" / repo / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    with HubProcess(tmp_path / "repositories") as running:
        yield running


def list_questions(commits: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (method, address) of everything that clients ask of both repositories."""
    for kind, commit in commits.items():
        stem = "" if kind == "models" else f"/{kind}"
        yield "GET", f"/api/{kind}/{REPO}"
        for revision in ("main", commit):
            yield "GET", f"/api/{kind}/{REPO}/revision/{revision}?blobs=true"
            yield "GET", f"/api/{kind}/{REPO}/tree/{revision}?recursive=true&expand=false"
            yield "GET", f"/api/{kind}/{REPO}/tree/{revision}/a%2Fb"
            yield "GET", f"/api/{kind}/{REPO}/tree/{revision}/none"
            for name in [*FILES, "adapter_config.json"]:
                yield "HEAD", f"{stem}/{REPO}/resolve/{revision}/{quote(name)}"
                if name != "never-asked-for.bin":
                    yield "GET", f"{stem}/{REPO}/resolve/{revision}/{quote(name)}"


Told = dict[tuple[str, str], tuple[int, dict[str, str], bytes]]


def ask_all(daemon: DaemonProcess, commits: dict[str, str]) -> Told:
    """Return every answer, without what differs each time."""
    told: Told = {}
    for method, address in list_questions(commits):
        status, headers, body = ask(daemon, address, method)
        kept = {k.lower(): v for k, v in headers.items() if k.lower() not in CHANGING}
        told[method, address] = status, kept, body
    return told


def test_everything_cached_is_answered_without_the_hub_after_a_restart(
    hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """Info, trees, HEAD, GET and missing files are the same, by branch and by commit."""
    daemon = make_daemon("a", upstream=hub.url).start()
    commits = {
        kind: json.loads(ask(daemon, f"/api/{kind}/{REPO}")[2])["sha"]
        for kind in ("models", "datasets")
    }
    online = ask_all(daemon, commits)
    assert {status for status, _, _ in online.values()} == {200, 404}
    assert sum(status == 404 for status, _, _ in online.values()) == 12
    hub.set_listening(hub=False, cdn=False)
    daemon.stop()
    again = make_daemon("a", upstream=hub.url).start()
    offline = ask_all(again, commits)
    for question, answer in online.items():
        assert offline[question] == answer, question


def test_what_is_not_cached_is_504_at_once_with_a_reason(
    hub: HubProcess, make_daemon: MakeDaemon
) -> None:
    """A repository, a commit and a file that nobody has: the hub's absence, said so."""
    daemon = make_daemon("a", upstream=hub.url).start()
    assert ask(daemon, f"/{REPO}/resolve/main/config.json")[0] == 200
    hub.set_listening(hub=False, cdn=False)
    for address in (
        "/org/other/resolve/main/config.json",
        f"/{REPO}/resolve/{'0' * 40}/config.json",
        f"/{REPO}/resolve/v1/config.json",
        f"/{REPO}/resolve/main/never-asked-for.bin",
        f"/api/models/{REPO}/tree/v1",
        f"/api/models/{REPO}/commits/main",
    ):
        began_s = time.monotonic()
        status, headers, body = ask(daemon, address)
        assert status == 504, address
        assert time.monotonic() - began_s < 15.0, address
        assert headers["X-Error-Message"], address
        assert json.loads(body)["message"], address
