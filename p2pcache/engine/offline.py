"""
Owns checking a store that no daemon has: the same look at every file, without network or event
loop.

Knows nothing of hubs and peers; nothing is healed here.
Invariants: the store is locked meanwhile; what is found damaged is set aside as a daemon does,
and the next daemon that starts knows of it.
Source: engine/checkup.py; docs/how-to/repair-store.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from p2pcache.clock import Clock, SystemClock
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.engine.checkup import (
    CHECK_INTERVAL_S,
    PROGRESS_INTERVAL_S,
    STEP_BYTES_MAX,
    STEPS_PER_S,
    CheckOrder,
    CheckRun,
    CheckupState,
    find_left,
)
from p2pcache.errors import ConfigError, StoreError
from p2pcache.store.base import BlobFile
from p2pcache.store.bloblist import BlobRow
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.check import FileCheck
from p2pcache.store.checklist import CheckRow
from p2pcache.store.damages import GONE_DETAIL, CheckMemory, Damage, DamagePlace, save_memory
from p2pcache.store.home import MARKER_NAME, StoreHome
from p2pcache.store.hubtree import HubTree
from p2pcache.store.index import Index, translate_error
from p2pcache.store.quarantine import Wreck, condemn, keep_good_chunks, withdraw
from p2pcache.store.rebuild import recover

log = logging.getLogger(__name__)

OFFLINE_DETAIL = "Set aside; start a daemon and pull it, or import its bundle, to have it back."


class OfflineCheck:
    """One check of a store. One thread; open() before use."""

    def __init__(self, root: Path, order: CheckOrder, *, clock: Clock | None = None) -> None:
        self._root = root
        self._clock = clock or SystemClock()
        self.run = CheckRun(order, self._clock.wall_s(), self._clock.monotonic_s())
        self._buffer = memoryview(bytearray(CHUNK_SIZE_BYTES))
        self._store: FileBlobStore
        self._tree: HubTree
        self._index: Index
        self._memory: CheckMemory

    @property
    def damages(self) -> list[Damage]:
        """Return what is damaged."""
        return list(self._memory.damages.values())

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """
        Lock the store and bring it in order, as a daemon does at start.

        Raises:
            ConfigError: There is no store in that folder.
            StoreLockedError: A daemon runs on it.
            StoreError: The disk failed.
        """
        if not (self._root / MARKER_NAME).exists():
            raise ConfigError(f"There is no store in {self._root}; name one with --store DIR.")
        home = StoreHome(self._root).open()
        with contextlib.ExitStack() as stack:
            stack.callback(home.close)
            self._index = Index(home.index_path)
            stack.callback(self._index.close)
            self._store, self._tree = FileBlobStore(home.root), HubTree(home.hub_path)
            self._memory = CheckMemory.load(home.root)
            with self._translating_errors():
                self._note_gone()
                recover(self._store, self._tree, self._index, wall_s=self.run.started_wall_s)
            yield

    def _note_gone(self) -> None:
        """Note files that the index knows and the disk lacks, before recover() drops their rows."""
        for row in self._index.checks.list_all():
            # A condemned one is where a crash left it: recover() knows.
            if not row.is_condemned and not os.path.lexists(self._store.path_of(row.blob)):
                places = self._index.catalogue.list_places(row.blob)
                shown = tuple(DamagePlace(snapshot_id, e.path, False) for snapshot_id, e in places)
                is_public = bool(self._index.blobs.find_shareable([row.blob]))
                self._note(row.blob, (), shown, is_public=is_public, is_gone=True)

    def look_at_all(self, on_progress: Callable[[CheckRun], None]) -> None:
        """
        Look at every file that is to be looked at.

        Args:
            on_progress: Called after each step; may raise KeyboardInterrupt to stop.

        Raises:
            StoreError: The disk failed.
        """
        run = self.run
        try:
            with self._translating_errors():
                is_through = self._look_at_all(on_progress)
        except BaseException:
            is_through = False
            raise
        finally:
            run.ended_s = self._clock.monotonic_s()
            run.state = CheckupState.DONE if is_through else CheckupState.STOPPED
            if is_through:
                self._memory.pass_started_wall_s = None
            save_memory(self._root, self._memory.to_bytes())
        on_progress(run)

    def _look_at_all(self, on_progress: Callable[[CheckRun], None]) -> bool:
        run, memory = self.run, self._memory
        rows = self._index.checks.list_all()
        if run.order.is_anew:
            self._index.checks.forget_progress()
        memory.continue_pass(
            run.started_wall_s, within_s=CHECK_INTERVAL_S, is_anew=run.order.is_anew
        )
        assert memory.pass_started_wall_s is not None, "a pass has begun"
        run.pass_started_wall_s = memory.pass_started_wall_s
        left = find_left(rows, memory.pass_started_wall_s, run.started_wall_s)
        run.count(rows, left)
        for row in left:
            if run.is_ending(self._clock.monotonic_s()):
                return False
            before = run.bytes_done
            try:
                if not self._look_at(row, on_progress):
                    return False
            except StoreError as error:
                log.warning("%s could not be checked: %s", row.blob, error)
            run.bytes_done = before + row.size_bytes
            run.blobs_done += 1
        return True

    def _look_at(self, listed: CheckRow, on_progress: Callable[[CheckRun], None]) -> bool:
        """Look at one file; returns False if the check ended in the middle of it."""
        row = self._index.blobs.find(listed.blob)
        found = self._store.find_blob(listed.blob)
        if row is None or found is None:
            return True  # recover() found all that is gone; this one went just now
        is_same = row.is_proven and row.table is not None and row.stamp == found.stamp
        first = row.checked_chunks if is_same else 0
        try:
            walk = FileCheck(found, row.blob, row.table, first_chunk=first, is_gentle=True)
            self.run.bytes_done += walk.layout.measure(range(first))
            try:
                self._walk(walk, row, on_progress, is_same=is_same)
            finally:
                self._conclude(row, found, walk, is_same=is_same)
            return walk.is_over
        finally:
            os.close(found.fd)

    def _walk(
        self,
        walk: FileCheck,
        row: BlobRow,
        on_progress: Callable[[CheckRun], None],
        *,
        is_same: bool,
    ) -> None:
        run, rate_bps = self.run, self.run.order.rate_bps
        step_bytes = STEP_BYTES_MAX
        if rate_bps is not None:
            step_bytes = min(step_bytes, int(rate_bps / STEPS_PER_S))
        noted_s = self._clock.monotonic_s()
        while not walk.is_over and not run.is_ending(self._clock.monotonic_s()):
            count = walk.step(self._buffer, step_bytes)
            run.bytes_done += count
            run.bytes_read += count
            now_s = self._clock.monotonic_s()
            if is_same and not walk.bad and now_s - noted_s >= PROGRESS_INTERVAL_S:
                noted_s = now_s
                self._note_progress(row, walk)
            on_progress(run)
            if rate_bps is not None:
                run.next_step_s = max(run.next_step_s, now_s) + count / rate_bps
                time.sleep(max(0.0, run.next_step_s - self._clock.monotonic_s()))

    def _note_progress(self, row: BlobRow, walk: FileCheck) -> None:
        self._index.blobs.set_checked(row.blob, walk.next_chunk, row.verified_wall_s)

    def _conclude(self, row: BlobRow, found: BlobFile, walk: FileCheck, *, is_same: bool) -> None:
        """Do what follows from a walk, as far as it came."""
        if walk.bad or (walk.is_over and not walk.is_right):
            self._set_aside(row, found, walk)
        elif walk.is_over:
            self._index.checks.note_right(row, found.stamp, walk.table, self._clock.wall_s())
        elif is_same:
            self._note_progress(row, walk)

    def _set_aside(self, row: BlobRow, found: BlobFile, walk: FileCheck) -> None:
        blob: BlobDigest = row.blob
        places = withdraw(self._store, self._tree, condemn(self._index, blob))
        wreck = Wreck(blob, found, row.table, frozenset(walk.bad), walk.next_chunk, row.is_adopted)
        keep_good_chunks(self._store, wreck)
        self._index.blobs.remove(blob)
        self._note(blob, tuple(walk.find_lost()), tuple(places), is_public=row.is_public)

    def _note(
        self,
        blob: BlobDigest,
        chunks: tuple[int, ...],
        places: tuple[DamagePlace, ...],
        *,
        is_public: bool,
        is_gone: bool = False,
    ) -> None:
        damage = Damage(
            blob,
            chunks,
            places,
            is_public,
            self._clock.wall_s(),
            detail=GONE_DETAIL if is_gone else OFFLINE_DETAIL,
            is_gone=is_gone,
        )
        self._memory.note(damage)

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise translate_error(error, self._index.path) from error
