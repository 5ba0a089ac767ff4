"""
Owns reading residency in a program's own process, from the store, with or without a daemon.

Knows nothing of peers, rates and quotas: what only a daemon knows is None.
Invariants: nothing is ever written; a daemon that runs is neither waited for nor held up; safe
from several threads.
Source: store/lookup.py; docs/how-to/ask-before-a-gpu.md.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import cast

from p2pcache.client.finding import default_store, find_named_store
from p2pcache.client.residency import ResidencyAnswer
from p2pcache.core.refs import ModelReference, SnapshotId
from p2pcache.core.weights import RANKS_MAX
from p2pcache.errors import InputError
from p2pcache.store.lookjson import describe_look, describe_unknown
from p2pcache.store.lookup import Question, ResidencyReader


class IndexView:
    """
    A store's index, for reading. Use as a context manager, or close(); a view may be kept open for
    as long as a program runs, across restarts of the daemon. Any number of threads may share it:
    they take turns.
    """

    def __init__(self, store: Path) -> None:
        """
        Args:
            store: The daemon's folder.

        Raises:
            NotFoundError: No daemon has used that folder yet.
            StoreError: Its index cannot be read: another release's, damaged, or not ours to read.
        """
        self.store = store
        self._reader = ResidencyReader(store)
        self._lock = threading.Lock()

    def __enter__(self) -> IndexView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the index. Safe to call twice."""
        with self._lock:
            self._reader.close()

    def residency(
        self,
        ref: str,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        tp: Sequence[int] = (),
    ) -> ResidencyAnswer:
        """
        Return how much of a model is in the store: in less than half a millisecond when a usual one
        is asked for the first time (30 files; three for 300), in some hundredths of one afterwards,
        while nothing changes.

        As Client.residency(), but for what only a daemon knows: `missing_from_peers`,
        `missing_from_upstream` and `eta_s` are None while something is missing; `fits_disk`
        compares with the free disk alone, without quota, floor and eviction; `corrupt` shows as
        what is left; `path` is there once every link is.

        Args:
            ref: A model reference.
            include: Globs of the files that count; () for those that a pull brings by itself.
            exclude: Globs of files that do not.
            tp: Numbers of ranks; `weights` then has the bytes of the fullest one.

        Raises:
            InvalidNameError: No such reference can be.
            InputError: A number of ranks out of bounds.
            StoreError: The index cannot be read any more.
        """
        if not all(1 <= ranks <= RANKS_MAX for ranks in tp):
            raise InputError(f"'tp' is a number of ranks from 1 to {RANKS_MAX}, for example 8.")
        reference = ModelReference.parse(ref)
        question = Question(reference, tuple(include), tuple(exclude), with_shapes=bool(tp))
        with self._lock:
            look = self._reader.look(question, now_s=time.monotonic())
        disk = os.statvfs(self.store)
        disk_free = disk.f_bavail * disk.f_frsize
        if look is None:
            return cast("ResidencyAnswer", describe_unknown(reference, disk_free))
        return cast("ResidencyAnswer", describe_look(reference, look, disk_free, tuple(tp)))

    def list_snapshots(self) -> list[SnapshotId]:
        """Return every snapshot whose file list is known, the newest last."""
        with self._lock:
            self._reader.index.refresh()
            return self._reader.index.list_snapshots()


def read_index(store: Path | str | None = None) -> IndexView:
    """
    Open a store's index for reading, without a daemon.

    Args:
        store: The daemon's folder. Else P2PCACHE_STORE, else the default one.

    Raises:
        NotFoundError: No daemon has used that folder yet.
        StoreError: Its index cannot be read.
    """
    named = find_named_store(None if store is None else Path(store))
    return IndexView(named or default_store())
