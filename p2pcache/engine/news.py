"""
Owns telling listeners what happens: events with numbers, kept for a while, queued within bounds.

Knows nothing of HTTP, or of what the events mean.
Invariants: publishing never waits; a listener has the events in order; one that is too slow loses
progress first, then its place, never the daemon's memory.
Source: the WHATWG's "Server-sent events"; docs/reference/http-api.md ("Events").
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass

from p2pcache.errors import DaemonBusyError

# What somebody who was cut off for a moment is told again.
EVENTS_KEPT_MAX = 1000
# An event is a few kilobytes: 64 listeners that read nothing hold some tens of megabytes.
QUEUE_MAX = 256
LISTENERS_MAX = 64
PROGRESS = "progress"


@dataclass(frozen=True, slots=True)
class NewsEvent:
    """Something that happened. `about`: the job that it is of, empty for everything else."""

    id: str
    kind: str
    about: str
    body: dict[str, object]
    is_public: bool


class Listener:
    """One reader of events. Event loop only."""

    def __init__(self, about: str) -> None:
        self.about = about
        # Whether nothing more comes: it was too slow, or the daemon ends.
        self.is_closed = False
        self._queue: deque[NewsEvent] = deque()
        self._wake = asyncio.Event()

    def put(self, event: NewsEvent) -> None:
        """Queue an event; of one job only the latest progress waits."""
        if self.is_closed or (self.about and event.about != self.about):
            return
        if event.kind == PROGRESS:
            for index, waiting in enumerate(self._queue):
                if waiting.kind == PROGRESS and waiting.about == event.about:
                    del self._queue[index]
                    break
        self._queue.append(event)
        if len(self._queue) > QUEUE_MAX:
            self._queue.clear()
            self.close()
        self._wake.set()

    def close(self) -> None:
        """Let the reader end, after what is queued."""
        self.is_closed = True
        self._wake.set()

    async def next(self, timeout_s: float) -> NewsEvent | None:
        """Return the next event; None if none came in time, or none will."""
        if not self._queue and not self.is_closed:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return None
        return self._queue.popleft() if self._queue else None

    @property
    def has_ended(self) -> bool:
        """Return whether nothing is queued and nothing will be."""
        return self.is_closed and not self._queue


class News:
    """The events of one run of the daemon. Event loop only."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(4)
        self._number = 0
        self._kept: deque[NewsEvent] = deque(maxlen=EVENTS_KEPT_MAX)
        self._listeners: set[Listener] = set()

    @property
    def has_listeners(self) -> bool:
        """Return whether anybody would hear of something."""
        return bool(self._listeners)

    def publish(
        self, kind: str, body: dict[str, object], *, about: str = "", is_public: bool = True
    ) -> None:
        """Tell everybody."""
        self._number += 1
        event = NewsEvent(f"{self._boot}-{self._number}", kind, about, body, is_public)
        if kind != PROGRESS:
            self._kept.append(event)
        for listener in list(self._listeners):
            listener.put(event)

    def listen(self, *, about: str = "", after: str | None = None) -> Listener:
        """
        Begin to listen; end it with leave().

        Args:
            about: Hear of one job alone.
            after: The last event that was heard; what came since is queued if it is still known.

        Raises:
            DaemonBusyError: Too many listen already.
        """
        if len(self._listeners) >= LISTENERS_MAX:
            raise DaemonBusyError(
                f"{LISTENERS_MAX} programs listen to events, the most there may be; ask again soon."
            )
        listener = Listener(about)
        boot, _, number = (after or "").partition("-")
        if boot == self._boot and number.isdecimal() and number.isascii():
            missed = [e for e in self._kept if int(e.id.partition("-")[2]) > int(number[:18])]
            for event in missed[-QUEUE_MAX:]:
                listener.put(event)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """Stop telling a listener. Safe to call twice."""
        self._listeners.discard(listener)

    def close(self) -> None:
        """Let every listener end."""
        for listener in self._listeners:
            listener.close()
