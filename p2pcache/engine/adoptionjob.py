"""
Owns what is known of one adoption: what was asked, how far it is, what came of it.

Knows nothing of how it is done.
Invariants: counts only go up; what was skipped is shown until it is not skipped any more.
Source: design.md §8 (import); docs/reference/http-api.md.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import SnapshotId
from p2pcache.errors import P2PCacheError
from p2pcache.store.hfcache import FileIdentity, FoundCache, FoundSnapshot

# A hub that did not answer, or did not say "public", is asked again about a watched folder's
# snapshots after this long: twice a quarter of an hour bothers nobody.
ASK_AGAIN_S = 600.0


class AdoptionState(StrEnum):
    """Where an adoption stands."""

    SCANNING = "scanning"
    HASHING = "hashing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES = (AdoptionState.DONE, AdoptionState.FAILED, AdoptionState.CANCELLED)


@dataclass(frozen=True, slots=True)
class AdoptionOrder:
    """
    What a caller asked for. `is_public`: the operator's word, for what the hub says nothing about.
    """

    path: Path
    is_watch: bool = False
    is_public: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotReport:
    """What came of one commit."""

    id: SnapshotId
    revisions: tuple[str, ...]
    files: int
    files_here: int
    is_confirmed: bool
    is_public: bool
    notes: tuple[str, ...]
    skipped: dict[str, str]
    wanted: frozenset[BlobDigest]


@dataclass(slots=True, eq=False)
class FileWatch:
    """
    One file while it is adopted. Its thread counts, the event loop looks.

    Attributes:
        stop: Set when the job is cancelled.
        may_copy: Whether there is room for so many bytes; answers from any thread.
        may_place: Whether a blob is neither here nor on its way; answers from any thread.
        hashed_bytes: How far it is.
        reserved_bytes: What may_copy() said yes to.
    """

    stop: threading.Event
    may_copy: Callable[[int], bool]
    may_place: Callable[[BlobDigest], bool]
    hashed_bytes: int = 0
    reserved_bytes: int = 0

    def note_hashed(self, size_bytes: int) -> None:
        """Count bytes."""
        self.hashed_bytes += size_bytes

    def is_stopped(self) -> bool:
        """Return whether the job was cancelled."""
        return self.stop.is_set()


@dataclass(slots=True)
class AdoptionJob:
    """One adoption, or a watched folder with all that came of it so far. Event loop only."""

    id: str
    order: AdoptionOrder
    added_wall_s: float
    state: AdoptionState = AdoptionState.SCANNING
    counts: Counter[str] = field(default_factory=Counter)
    files_total: int = 0
    files_done: int = 0
    bytes_total: int = 0
    bytes_finished: int = 0
    snapshots: dict[SnapshotId, SnapshotReport] = field(default_factory=dict)
    folder_skipped: dict[str, str] = field(default_factory=dict)
    error: P2PCacheError | None = None
    task: asyncio.Task[None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    rescan: asyncio.Event = field(default_factory=asyncio.Event)
    running: list[FileWatch] = field(default_factory=list)

    @property
    def bytes_done(self) -> int:
        """Return the bytes that were looked at, those of files under way included."""
        under_way = sum(watch.hashed_bytes for watch in self.running)
        return min(self.bytes_finished + under_way, self.bytes_total)

    def list_skipped(self) -> list[tuple[str, str]]:
        """Return (path, reason) of what was left alone."""
        merged = dict(self.folder_skipped)
        for report in self.snapshots.values():
            merged |= report.skipped
        return sorted(merged.items())

    def expect(self, size_bytes: int) -> None:
        """Count a file that is about to be looked at."""
        self.files_total += 1
        self.bytes_total += size_bytes

    @contextmanager
    def follow(self, size_bytes: int) -> Iterator[None]:
        """Count a file as done when the block ends."""
        try:
            yield
        finally:
            self.files_done += 1
            self.bytes_finished += size_bytes


_Signature = tuple[frozenset[tuple[str, FileIdentity, BlobDigest | None]], bool, tuple[str, ...]]


class AdoptionMemory:
    """
    What earlier looks at a folder found out, so that they are not repeated.

    As large as the folder has files.
    """

    def __init__(self) -> None:
        self.wrong: dict[FileIdentity, tuple[frozenset[BlobDigest], str]] = {}
        self.named: dict[FileIdentity, frozenset[BlobDigest]] = {}
        self._seen: dict[SnapshotId, _Signature] = {}
        self._asked_s: dict[SnapshotId, float] = {}
        self._is_settled: dict[SnapshotId, bool] = {}

    def is_new(self, found: FoundCache, snapshot: FoundSnapshot, *, now_s: float) -> bool:
        """Return whether a snapshot is to be looked at: it changed, or the hub is to be asked."""
        is_changed = self._seen.get(snapshot.id) != _sign(found, snapshot)
        return is_changed or (
            not self._is_settled.get(snapshot.id, False) and self.may_ask(snapshot.id, now_s=now_s)
        )

    def may_ask(self, snapshot_id: SnapshotId, *, now_s: float) -> bool:
        """Return whether the hub was not asked about a snapshot lately."""
        return now_s - self._asked_s.get(snapshot_id, float("-inf")) >= ASK_AGAIN_S

    def note_asked(self, snapshot_id: SnapshotId, *, now_s: float) -> None:
        """Remember that the hub was asked just now."""
        self._asked_s[snapshot_id] = now_s

    def note_seen(self, found: FoundCache, snapshot: FoundSnapshot, *, is_settled: bool) -> None:
        """
        Remember a snapshot as it is now.

        Args:
            found: The cache.
            snapshot: One of its snapshots, of which nothing is left to do.
            is_settled: The hub has confirmed it and said that it is public.
        """
        self._seen[snapshot.id] = _sign(found, snapshot)
        self._is_settled[snapshot.id] = is_settled


def _sign(found: FoundCache, snapshot: FoundSnapshot) -> _Signature:
    files = frozenset((path, file.identity, file.name) for path, file in snapshot.files.items())
    refs = found.refs.get(snapshot.id.repo, [])
    revisions = sorted(ref.revision for ref in refs if ref.commit == snapshot.id.commit)
    return files, snapshot.listing is not None, tuple(revisions)
