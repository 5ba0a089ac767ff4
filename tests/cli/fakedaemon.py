"""
Owns a daemon that says what a test told it to: canned answers, recorded requests.

Knows nothing of models; it is the standard library's HTTP server in a thread.
Invariants: listens on loopback alone; everything that it opened is closed by stop().
Source: design.md §8 (local endpoint).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.ports import pick_port

API = "/_p2pcache/v1"
ADMIN_TOKEN = "a1" * 32
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """One request, as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(slots=True)
class FakeDaemon:
    """Answers by (method, path); several answers are given in turn, the last one for ever."""

    store: Path
    answers: dict[tuple[str, str], list[tuple[int, object]]] = field(default_factory=dict)
    requests: list[SeenRequest] = field(default_factory=list)
    heard: threading.Event = field(default_factory=threading.Event)
    # Called with each request when it is known, and before it is answered.
    on_request: Callable[[SeenRequest], None] = lambda seen: None
    port: int = 0
    _server: ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    def say(self, method: str, path: str, *answers: object, status: int = 200) -> None:
        """Answer a request below the API's prefix with JSON, or with bytes as they are."""
        self.answers[method, API + path] = [(status, answer) for answer in answers]

    @property
    def url(self) -> str:
        """Return the endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def paths(self, method: str) -> list[str]:
        """Return the paths that were asked for, without the API's prefix."""
        return [seen.path.removeprefix(API) for seen in self.requests if seen.method == method]

    def start(self) -> None:
        """Listen, and leave word in the store as a daemon does."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                headers = dict(self.headers.items())
                seen = SeenRequest(self.command, self.path, headers, body)
                fake.requests.append(seen)
                fake.on_request(seen)
                said = fake.answers.get((self.command, self.path))
                unknown = {"error": "NotFound", "message": f"No route {self.path}; see the docs."}
                status, answer = (404, unknown) if said is None else said[0]
                if said is not None and len(said) > 1:
                    said.pop(0)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                fake.heard.set()

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - names of http.server

            def log_message(self, *args: object) -> None:
                """Stay quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", pick_port()), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.store.mkdir(parents=True, exist_ok=True)
        (self.store / "daemon.json").write_text(json.dumps({"local": self.url, "pid": 1}))
        (self.store / "admin-token").write_text(ADMIN_TOKEN + "\n")

    def stop(self) -> None:
        """Listen no longer. Safe to call twice."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None


@contextmanager
def run_fake_daemon(store: Path) -> Iterator[FakeDaemon]:
    """Run one until the block ends."""
    daemon = FakeDaemon(store)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


def make_job(state: str, **fields: object) -> dict[str, object]:
    """Return a download of 2 kB, all of it from peers so far as it goes."""
    done = 2_000 if state == "done" else 500
    return {
        "id": "d1",
        "model": "org/name",
        "commit": COMMIT,
        "state": state,
        "bytes_total": 2_000,
        "bytes_done": done,
        "bytes_from_peers": done,
        "bytes_from_upstream": 0,
        "bytes_from_disk": 0,
        "rate_bps": 1_000,
        "eta_s": 65,
        **fields,
    }


def make_error(code: str, message: str = "It went wrong; try again.") -> dict[str, str]:
    """Return the body of an error."""
    return {"error": code, "message": message}
