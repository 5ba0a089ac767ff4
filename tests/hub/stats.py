"""
Owns the counts: requests by kind, body bytes written, and a record of every request.

Knows nothing of what the requests mean; control requests never reach it.
Invariants: body bytes count what was handed to the connection, JSON and error texts apart.
Source: none; the counts that the project's tests and benches assert.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Literal

Listener = Literal["hub", "cdn"]
RECORDED_REQUESTS_MAX = 100_000  # about 100 MB; older ones are dropped, the counters stay right


@dataclass
class RecordedRequest:
    """
    One request and what came of it. `status` is 0 until an answer begins.

    Attributes:
        path: Path and query as sent.
        headers: Lower-cased names; the value of authorization is only `<present>`.
        key: `repo/path` of the file that was sent, or empty.
        is_finished: Whether the handler has ended.
        client_port: Whence it came: tells several clients on one machine apart.
    """

    listener: Listener
    method: str
    route: str
    path: str
    headers: dict[str, str]
    status: int = 0
    body_bytes: int = 0
    key: str = ""
    is_finished: bool = False
    client_port: int = 0


@dataclass
class Stats:
    """Everything counted since the start or the last reset."""

    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    body_bytes_hub: int = 0
    body_bytes_cdn: int = 0
    json_bytes: int = 0
    path_bytes: Counter[str] = field(default_factory=Counter)
    path_requests: Counter[str] = field(default_factory=Counter)
    token_leaks: list[str] = field(default_factory=list)
    recorded: deque[RecordedRequest] = field(
        default_factory=lambda: deque(maxlen=RECORDED_REQUESTS_MAX)
    )

    @property
    def body_bytes(self) -> int:
        """Return the file bytes written by both listeners."""
        return self.body_bytes_hub + self.body_bytes_cdn

    @property
    def requests_total(self) -> int:
        """Return how many requests came to both listeners."""
        return self.requests.total()

    def count_requests(self, *, method: str | None = None, route: str | None = None) -> int:
        """Return how many requests have that method and route kind; None matches any."""
        total = 0
        for name, count in self.requests.items():
            its_method, its_route = name.split(" ", 1)
            total += count * (method in (None, its_method) and route in (None, its_route))
        return total

    def open_request(
        self, listener: Listener, method: str, route: str, path: str, headers: dict[str, str]
    ) -> RecordedRequest:
        """Count a request and start its record."""
        shown = {name.lower(): value for name, value in headers.items()}
        if "authorization" in shown:
            shown["authorization"] = "<present>"
            if listener == "cdn":
                self.token_leaks.append(path)
        record = RecordedRequest(listener, method, route, path, shown)
        self.requests[f"{method} {route}"] += 1
        self.recorded.append(record)
        return record

    def count_body(self, record: RecordedRequest, size_bytes: int) -> None:
        """Count file bytes that were written for a request."""
        record.body_bytes += size_bytes
        self.path_bytes[record.key] += size_bytes
        if record.listener == "cdn":
            self.body_bytes_cdn += size_bytes
        else:
            self.body_bytes_hub += size_bytes

    def close_request(self, record: RecordedRequest) -> None:
        """Count the outcome."""
        record.is_finished = True
        self.statuses[f"{record.route} {record.status}"] += 1

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def as_json(self) -> dict[str, object]:
        """Return the counts as the control route shows them."""
        return {
            "requests": dict(self.requests),
            "requests_total": self.requests_total,
            "statuses": dict(self.statuses),
            "body_bytes": self.body_bytes,
            "body_bytes_hub": self.body_bytes_hub,
            "body_bytes_cdn": self.body_bytes_cdn,
            "json_bytes": self.json_bytes,
            "path_bytes": dict(self.path_bytes),
            "path_requests": dict(self.path_requests),
            "token_leaks": list(self.token_leaks),
            "recorded": [asdict(record) for record in self.recorded],
        }
