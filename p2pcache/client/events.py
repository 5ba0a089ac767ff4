"""
Owns reading the daemon's event streams: server-sent events, one object at a time.

Knows nothing of what an event means.
Invariants: memory is bounded whatever a stream sends; a stream that falls silent or breaks is
opened again where it was, for a while; the stream of one download ends with the download.
Source: the HTML standard, "Server-sent events"; docs/reference/http-api.md (events).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from p2pcache.client.answers import Json
from p2pcache.client.waiting import FINAL_STATES, RESTART_PATIENCE_S, RESTART_POLL_S
from p2pcache.client.wire import ANSWER_BYTES_MAX, API_PREFIX, Wire
from p2pcache.errors import DaemonError, DaemonUnreachableError

if TYPE_CHECKING:
    from http.client import HTTPResponse

# A job with a sentence of an error; more is no event of ours.
EVENT_BYTES_MAX = 1024 * 1024
# The daemon says at least a comment every fifteen seconds.
SILENCE_S_MAX = 45.0


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that happened in the daemon.

    Attributes:
        kind: What: the stream's `event` field, `message` where it has none.
        id: Names the event within its stream; empty where it has none.
        body: The object that came with it.
    """

    kind: str
    id: str
    body: Json


class EventClient(Wire):
    """The events of one daemon. Every stream has a connection of its own and blocks."""

    def events(self, download_id: str | None = None) -> Iterator[Event]:
        """
        Iterate over what happens, as it happens. One thread for each iterator.

        A daemon that is restarted is waited for (10 s); what it would have said meanwhile may be
        lost, and the next event of a download tells its whole state again.

        Args:
            download_id: Only of this download, until it has ended; None for all, without end.

        Raises:
            JobNotFoundError: No such download.
            DaemonUnreachableError: The daemon went away and did not return.
            DaemonError: What came is no event of ours.
        """
        path = "/events"
        if download_id is not None:
            path = f"/downloads/{quote(download_id, safe='')}/events"
        wire: Wire = self
        last_id, gone_s, has_answered = "", time.monotonic(), False
        while True:
            try:
                with _open_stream(wire, path, last_id) as response:
                    has_answered = True
                    for event in read_events(response):
                        gone_s, last_id = time.monotonic(), event.id or last_id
                        yield event
                        if download_id is not None and event.body.get("state") in FINAL_STATES:
                            return
                gone_s = max(gone_s, time.monotonic() - RESTART_POLL_S)
            except DaemonUnreachableError:
                if not has_answered or time.monotonic() - gone_s >= RESTART_PATIENCE_S:
                    raise
            time.sleep(RESTART_POLL_S)
            with contextlib.suppress(DaemonUnreachableError):
                wire = self._find_again(Wire)


def read_events(lines: Iterable[bytes]) -> Iterator[Event]:
    """
    Iterate over the events of a stream, given as lines.

    Raises:
        DaemonError: An event that is too long, or holds no JSON object.
    """
    kind, event_id, texts, size_bytes = "", "", list[str](), 0
    for line in lines:
        size_bytes += len(line)
        if size_bytes > EVENT_BYTES_MAX:
            raise DaemonError(f"An event has more than {EVENT_BYTES_MAX} bytes; is it a p2pcache?")
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if text:
            name, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "id":
                event_id = value
            elif name == "data":
                texts.append(value)
            continue
        if texts:
            yield Event(kind or "message", event_id, _read_body("\n".join(texts)))
        kind, texts, size_bytes = "", [], 0


def _read_body(text: str) -> Json:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DaemonError("An event is no JSON; is it a daemon of this release?") from error
    if not isinstance(body, dict):
        raise DaemonError("An event is no JSON object; is it a daemon of this release?")
    return body


@contextlib.contextmanager
def _open_stream(wire: Wire, path: str, last_id: str) -> Iterator[Iterable[bytes]]:
    """Ask for a stream; the lines end when the daemon closes it or the connection breaks."""
    import http.client

    headers = {**wire._reader_headers(), "Accept": "text/event-stream"}
    if last_id:
        headers["Last-Event-ID"] = last_id
    connection = http.client.HTTPConnection(wire._host, wire._port, timeout=SILENCE_S_MAX)
    try:
        try:
            connection.request("GET", API_PREFIX + path, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                wire._read(response.status, response.read(ANSWER_BYTES_MAX + 1))
                raise DaemonError(f"{path} is no stream of events; see the daemon's log.")
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnreachableError(
                f"No daemon answers at {wire.url} ({error}); start one with: p2pcache up"
            ) from error
        yield _iter_lines(response)
    finally:
        connection.close()


def _iter_lines(response: HTTPResponse) -> Iterator[bytes]:
    """Iterate over lines until the stream ends, breaks or falls silent."""
    import http.client

    while True:
        try:
            line = response.readline(EVENT_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException, ValueError):
            return
        if not line:
            return
        yield line
