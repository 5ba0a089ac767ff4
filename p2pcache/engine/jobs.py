"""
Owns what is known of one download job while the daemon runs, and its record for the next run.

Knows nothing of how it is run.
Invariants: a token is never in a record; what is shown never goes back, and adds up.
Source: design.md §8 (downloads); docs/reference/store-layout.md (jobs).
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.digest import BlobDigest
from p2pcache.core.jobs import FINAL_STATES, RUNNING_STATES, JobOrder, JobState, read_order
from p2pcache.core.throughput import Throughput
from p2pcache.engine.fetches import ActiveFetch
from p2pcache.errors import InputError, P2PCacheError

FORMAT_VERSION = 1
_COUNT_NAMES = {
    "peer": "bytes_from_peers",
    "upstream": "bytes_from_upstream",
    "disk": "bytes_from_disk",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job does not go on: the error's name and its sentence."""

    code: str
    message: str

    @classmethod
    def of(cls, error: P2PCacheError) -> Failure:
        """Return what is told of an error."""
        return cls(error.code, str(error))

    def to_json(self) -> dict[str, object]:
        """Return the `error` of a job."""
        return {"error": self.code, "message": self.message}


@dataclass(slots=True)
class WorkerView:
    """How far one daemon is with an order that was passed on to it. `seen`: as it said last."""

    name: str
    peer_id: str
    url: str
    is_self: bool = False
    state: JobState = JobState.QUEUED
    seen: dict[str, int] = field(default_factory=dict)
    eta_s: float | None = None
    path: str | None = None
    failure: Failure | None = None
    is_reachable: bool = True


@dataclass(slots=True)
class Job:
    """One download. Event loop only."""

    id: str
    order: JobOrder
    number: int = 0
    added_wall_s: float = 0.0
    ended_wall_s: float | None = None
    state: JobState = JobState.QUEUED
    commit: str | None = None
    path: str | None = None
    bytes_total: int = 0
    is_public: bool = False
    error: P2PCacheError | None = None
    # What is told of the error; of an earlier run of the daemon there is nothing else.
    failure: Failure | None = None
    # Who passed the order on, a peer's address; empty for a caller of this machine.
    origin: str = ""
    # The job of this daemon that this one is a part of.
    parent: str = ""
    credentials: Credentials = ANONYMOUS
    # The caller gave a token.
    had_token: bool = False
    # Begun in an earlier run of the daemon: the hub may not be reachable yet.
    is_carried_over: bool = False
    retries: int = 0
    retry_s: float = 0.0
    left_out_files: int = 0
    left_out_bytes: int = 0
    left_out_example: str = ""
    placed: dict[str, int] = field(default_factory=dict)
    # Whether its pin is its own: there was none before.
    has_pinned: bool = False
    workers: list[WorkerView] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    # What a task that is cancelled becomes.
    wish: JobState = JobState.CANCELLED
    stop: threading.Event = field(default_factory=threading.Event)
    # What earlier runs of this job brought, and what this run has brought so far.
    earlier: Counter[str] = field(default_factory=Counter)
    finished_from: Counter[str] = field(default_factory=Counter)
    running: dict[BlobDigest, ActiveFetch] = field(default_factory=dict)
    # Fetches that it left: they wind up a moment longer, and keep what they have by then.
    left: list[ActiveFetch] = field(default_factory=list)
    throughput: Throughput = field(default_factory=Throughput)

    @property
    def is_over(self) -> bool:
        """Return whether it has ended."""
        return self.state in FINAL_STATES

    @property
    def has_lost_token(self) -> bool:
        """Return whether the caller's token is needed still, and a restart lost it."""
        return self.had_token and not self.is_over and self.credentials.is_anonymous

    @property
    def is_passed_on(self) -> bool:
        """Return whether other daemons were named, and not only this one."""
        return bool(self.order.workers)

    def count_bytes(self) -> Counter[str]:
        """Return the bytes that are here so far, by where they came from."""
        if self.is_passed_on:
            return Counter(
                {
                    kind: sum(view.seen.get(name, 0) for view in self.workers)
                    for kind, name in _COUNT_NAMES.items()
                }
            )
        total = self.finished_from.copy()
        # Not looked up by digest: one that has just ended counts until the job takes it over.
        for active in self.running.values():
            total += active.fetch.state.bytes_from
        for active in self.left:
            total += active.fetch.state.bytes_from
        # What an earlier run fetched is on the disk now; it is still from where it came.
        shift = min(total["disk"], self.earlier["peer"] + self.earlier["upstream"])
        if shift > 0:
            from_upstream = min(shift, self.earlier["upstream"])
            total["disk"] -= shift
            total["upstream"] += from_upstream
            total["peer"] += shift - from_upstream
        # Files are opened one after the other: until then what is there has not been counted.
        return self.earlier.copy() if self.earlier.total() > total.total() else total

    def count_under_way(self) -> int:
        """Return the bytes that are off the wire, of chunks that are not whole yet."""
        is_open = (active for active in self.running.values() if active.is_open.is_set())
        return sum(active.fetch.partial.count_prefix_bytes() for active in is_open)

    def begin_run(self) -> None:
        """Prepare for running, once more maybe."""
        self.wish = JobState.CANCELLED
        self.stop = threading.Event()
        self.error = self.failure = None
        self.throughput.reset()

    async def settle(self) -> None:
        """Wait until what an earlier run left has wound up, and count what it brought."""
        ending = [active.task for active in self.left if active.is_stopping]
        if ending:
            await asyncio.wait(ending)
        self.keep_counts()

    def keep_counts(self) -> None:
        """Count what a run that is over has brought as what was there before."""
        self.earlier = Counter({kind: n for kind, n in self.count_bytes().items() if n > 0})
        self.finished_from.clear()
        self.left.clear()

    def fail(self, error: P2PCacheError) -> None:
        """Remember why it does not go on."""
        self.error, self.failure = error, Failure.of(error)

    def to_record(self) -> dict[str, object]:
        """Return what the next run of the daemon needs to know."""
        return {
            "format_version": FORMAT_VERSION,
            "id": self.id,
            "order": self.order.to_json(),
            "number": self.number,
            "added_wall_s": self.added_wall_s,
            "ended_wall_s": self.ended_wall_s,
            "state": self.state.value,
            "commit": self.commit,
            "path": self.path,
            "bytes_total": self.bytes_total,
            "public": self.is_public,
            "error": None if self.failure is None else self.failure.to_json(),
            "origin": self.origin,
            "parent": self.parent,
            "had_token": self.had_token,
            "bytes": dict(self.count_bytes()),
            "left_out": [self.left_out_files, self.left_out_bytes, self.left_out_example],
            "placed": self.placed,
            "has_pinned": self.has_pinned,
            "workers": [_view_to_record(view) for view in self.workers],
        }


def _view_to_record(view: WorkerView) -> dict[str, object]:
    return {
        "name": view.name,
        "id": view.peer_id,
        "url": view.url,
        "self": view.is_self,
        "state": view.state.value,
        "seen": view.seen,
        "path": view.path,
        "error": None if view.failure is None else view.failure.to_json(),
    }


def read_record(record: Mapping[str, object]) -> Job:
    """
    Return a job of an earlier run of the daemon; one that had not ended waits.

    Raises:
        InputError, ValueError, KeyError, TypeError: It is no record of ours.
    """
    if record["format_version"] != FORMAT_VERSION:
        raise InputError("It was written by another release.")
    order, state = record["order"], JobState(str(record["state"]))
    if not isinstance(order, dict):
        raise TypeError("an order is an object")
    job = Job(str(record["id"]), read_order(order), int(str(record["number"])))
    job.added_wall_s = float(str(record["added_wall_s"]))
    ended = record.get("ended_wall_s")
    job.ended_wall_s = None if ended is None else float(str(ended))
    job.state = JobState.QUEUED if state in RUNNING_STATES else state
    job.commit, job.path = _text_or_none(record, "commit"), _text_or_none(record, "path")
    job.bytes_total = int(str(record["bytes_total"]))
    job.is_public = record.get("public") is True
    job.failure = _read_failure(record.get("error"))
    job.origin, job.parent = str(record.get("origin", "")), str(record.get("parent", ""))
    job.had_token = record.get("had_token") is True
    job.is_carried_over = not job.is_over
    job.earlier = Counter(_read_counts(record.get("bytes")))
    job.placed = _read_counts(record.get("placed"))
    job.has_pinned = record.get("has_pinned") is True
    left_out = record.get("left_out")
    if isinstance(left_out, list) and len(left_out) == 3:
        job.left_out_files, job.left_out_bytes = int(left_out[0]), int(left_out[1])
        job.left_out_example = str(left_out[2])
    views = record.get("workers")
    job.workers = [_read_view(raw) for raw in views] if isinstance(views, list) else []
    return job


def _read_view(raw: Mapping[str, object]) -> WorkerView:
    view = WorkerView(str(raw["name"]), str(raw["id"]), str(raw["url"]), raw.get("self") is True)
    view.state = JobState(str(raw["state"]))
    view.seen = _read_counts(raw.get("seen"))
    view.path, view.failure = _text_or_none(raw, "path"), _read_failure(raw.get("error"))
    return view


def _read_failure(raw: object) -> Failure | None:
    return Failure(str(raw["error"]), str(raw["message"])) if isinstance(raw, dict) else None


def _read_counts(raw: object) -> dict[str, int]:
    return {str(k): int(v) for k, v in raw.items()} if isinstance(raw, dict) else {}


def _text_or_none(record: Mapping[str, object], key: str) -> str | None:
    value = record.get(key)
    return None if value is None else str(value)
