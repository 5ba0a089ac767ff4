"""
Owns tests of reading event streams: their form, their end, a daemon that goes and comes back.

Knows nothing of what events mean.
Invariants: real connections.
Source: the HTML standard, "Server-sent events"; docs/reference/http-api.md (events).
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from p2pcache.client import Client, Event, events
from p2pcache.client.events import EVENT_BYTES_MAX, read_events
from p2pcache.errors import DaemonError, DaemonUnreachableError, JobNotFoundError
from tests.ports import pick_port

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"

Serve = Callable[..., Client]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", []),
        (b'event: state\nid: a-1\ndata: {"a":1}\n\n', [Event("state", "a-1", {"a": 1})]),
        (b'data: {"a":1}\n\n', [Event("message", "", {"a": 1})]),
        (b'data:{"a":\ndata: 1}\n\n', [Event("message", "", {"a": 1})]),
        (b": alive\n\nretry: 1000\nid: 5\n\ndata: {}\n\n", [Event("message", "5", {})]),
        (b"event: x\n\ndata: {}\r\n\r\n", [Event("message", "", {})]),
        (b'data: {"half":1}\n', []),
        (b"unknown: 1\ndata: {}\n\n", [Event("message", "", {})]),
    ],
    ids=["empty", "all", "bare", "lines", "comment", "reset", "unfinished", "unknown"],
)
def test_events_are_read_as_the_standard_says(text: bytes, found: list[Event]) -> None:
    """An id stays until the next one; what was not finished is no event."""
    assert list(read_events(text.splitlines(keepends=True))) == found


@pytest.mark.parametrize("text", [b"data: no\n\n", b"data: [1]\n\n", b"data: 1\n\n"])
def test_event_without_object_is_an_error(text: bytes) -> None:
    """Another program answers there."""
    with pytest.raises(DaemonError, match="is it a daemon of this release"):
        list(read_events(text.splitlines(keepends=True)))


def test_event_without_end_is_refused_before_memory_is() -> None:
    """Whatever its lines are."""
    line = b"data: " + b"x" * 9_994
    with pytest.raises(DaemonError, match=str(EVENT_BYTES_MAX)):
        list(read_events(line for _ in range(EVENT_BYTES_MAX // 10_000 + 2)))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves answers, one connection each, and returns a client."""
    listeners: list[socket.socket] = []
    requests: list[bytes] = []

    def serve_answers(*answers: bytes) -> Client:
        listener = socket.create_server(("127.0.0.1", pick_port()))
        listeners.append(listener)

        def run() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    requests.append(connection.recv(65_536))
                    connection.sendall(answer)
            listener.close()

        threading.Thread(target=run, daemon=True).start()
        client = Client(local=f"127.0.0.1:{listener.getsockname()[1]}")
        client.requests = requests  # type: ignore[attr-defined]
        return client

    yield serve_answers
    for listener in listeners:
        listener.close()


def make_event(number: int, state: str) -> bytes:
    """Return the event of a download's state."""
    body = json.dumps({"id": "d1", "state": state})
    return f"event: state\nid: b-{number}\ndata: {body}\n\n".encode()


def test_stream_of_a_download_ends_with_it(serve: Serve) -> None:
    """Whatever comes after."""
    states = ("queued", "downloading", "done", "done")
    client = serve(HEAD + b"".join(make_event(i, state) for i, state in enumerate(states)))
    seen = [event.body["state"] for event in client.events("d1")]
    assert seen == ["queued", "downloading", "done"]


def test_broken_stream_is_taken_up_where_it_was(serve: Serve) -> None:
    """A daemon that was restarted; what was seen is named."""
    client = serve(
        HEAD + make_event(1, "downloading") + b"event: state\nda", HEAD + make_event(2, "failed")
    )
    assert [event.id for event in client.events("d1")] == ["b-1", "b-2"]
    first, second = client.requests  # type: ignore[attr-defined]
    assert b"Last-Event-ID" not in first
    assert b"Last-Event-ID: b-1\r\n" in second


def test_daemon_that_does_not_return_ends_the_stream(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the patience."""
    monkeypatch.setattr(events, "RESTART_PATIENCE_S", 0.2)
    client = serve(HEAD + make_event(1, "downloading"))
    with pytest.raises(DaemonUnreachableError, match="p2pcache up"):
        list(client.events("d1"))


def test_unknown_download_has_no_events(serve: Serve) -> None:
    """The daemon's reason is raised."""
    body = b'{"error": "JobNotFound", "message": "No download d1; list them."}'
    head = f"HTTP/1.1 404 Not Found\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(JobNotFoundError, match="list them"):
        next(serve(head + body).events("d1"))


def test_nobody_there_is_told_at_once() -> None:
    """Patience is for one that was there."""
    with pytest.raises(DaemonUnreachableError, match="p2pcache up"):
        next(Client(local=f"127.0.0.1:{pick_port()}").events())
