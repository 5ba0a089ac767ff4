"""
Owns who needs what right now: snapshots that are held, rooms that are reserved.

Knows nothing of disks or of eviction; it is asked without waiting.
Invariants: what is held or reserved is so from the call on, not from its answer; every hold ends.
Source: space.py, evictor.py.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import SnapshotId

# A fetch that was cancelled syncs its file, and lets threads finish that wait for a source.
WIND_UP_S_MAX = 10.0


class Room:
    """
    Bytes that somebody may write: a job's, or one file's for a reader. Until release(), nothing
    of it is evicted, nor is its snapshot. Use as a context manager.
    """

    def __init__(self, holds: Holds, snapshot_id: SnapshotId, sizes: dict[BlobDigest, int]) -> None:
        self.snapshot_id = snapshot_id
        self.sizes = sizes
        self.is_granted = False
        # The fetch that it is for, if that began by now.
        self.task: asyncio.Task[None] | None = None
        self._holds = holds

    def release(self) -> None:
        """Give back what is not taken by now. Safe to call twice."""
        self._holds.close_room(self)

    def release_after(self, task: asyncio.Task[None]) -> None:
        """Give it back when a fetch has ended, whatever its outcome."""
        self.task = task
        task.add_done_callback(lambda _: self.release())

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Holds:
    """All holds of this daemon. Event loop only."""

    def __init__(self) -> None:
        # Others who fill or hash blobs say here which.
        self.busy_checks: list[Callable[[BlobDigest], bool]] = []
        # Told when a room was closed: what it was for is here, or is not wanted.
        self.on_closed: Callable[[], None] = lambda: None
        # How many holds have ended: what could not go a moment ago may go by now.
        self.ended_count = 0
        self._snapshots: Counter[SnapshotId] = Counter()
        self._rooms: set[Room] = set()

    @contextmanager
    def holding(self, snapshot_id: SnapshotId) -> Iterator[None]:
        """Keep a snapshot from leaving, unless an eviction of it has begun."""
        self._hold(snapshot_id)
        try:
            yield
        finally:
            self._let_go(snapshot_id)

    def open_room(self, snapshot_id: SnapshotId, sizes: dict[BlobDigest, int]) -> Room:
        """Begin to protect what a room is for; it is not granted yet."""
        room = Room(self, snapshot_id, sizes)
        self._rooms.add(room)
        self._hold(snapshot_id)
        return room

    def close_room(self, room: Room) -> None:
        """See Room.release()."""
        if room in self._rooms:
            self._rooms.discard(room)
            self._let_go(room.snapshot_id)
            self.on_closed()

    def list_granted(self, *, but: Room | None = None) -> dict[BlobDigest, int]:
        """Return what granted rooms are for, each blob once with its size."""
        granted: dict[BlobDigest, int] = {}
        for room in self._rooms:
            if room.is_granted and room is not but:
                granted |= room.sizes
        return granted

    async def wait_winding_up(self) -> bool:
        """Wait for the fetches that were cancelled and still hold their files; was there any?"""
        tasks = [room.task for room in self._rooms if room.task is not None]
        ending = [task for task in tasks if task.cancelling()]
        if ending:
            await asyncio.wait(ending, timeout=WIND_UP_S_MAX)
        return bool(ending)

    def is_held(self, snapshot_id: SnapshotId) -> bool:
        """Return whether anybody needs a snapshot."""
        return snapshot_id in self._snapshots

    def is_busy(self, blob: BlobDigest) -> bool:
        """Return whether anybody fills a blob, hashes it, or is about to."""
        is_in_room = any(blob in room.sizes for room in self._rooms)
        return is_in_room or any(is_busy(blob) for is_busy in self.busy_checks)

    def _hold(self, snapshot_id: SnapshotId) -> None:
        self._snapshots[snapshot_id] += 1

    def _let_go(self, snapshot_id: SnapshotId) -> None:
        self.ended_count += 1
        self._snapshots[snapshot_id] -= 1
        if not self._snapshots[snapshot_id]:
            del self._snapshots[snapshot_id]
