"""
Owns deliberate breaks of the store's order, to see that the harness catches each.

Knows nothing of the harness's classes.
Invariants: applied in forked children only.
Source: design.md §4: each mutation undoes one of the invariants there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from p2pcache.store import havelog, home, hubtree
from p2pcache.store.disk import write_all
from p2pcache.store.partial import FilePartial
from tests.faults.seam import Seam


@dataclass(frozen=True, slots=True)
class Mutation:
    """
    A break of the order.

    Attributes:
        apply: Breaks it; given the seam of the child that meets the fault, None in the one after.
        class_name: The fault class that has to catch it.
        aim: Where to put faults so that few are enough: a part of their sites.
        rule: What has to be found.
    """

    apply: Callable[[Seam | None], None]
    class_name: str
    aim: str
    rule: str


def _skip_sync_before_rename(seam: Seam | None) -> None:
    """Publish without making the bytes durable."""
    if seam is not None:
        seam.is_left_out = lambda name, kind: (
            name in ("fsync", "fdatasync") and kind.startswith("/partial/") and "have" not in kind
        )


def _commit_before_bytes(seam: Seam | None) -> None:
    """Call records durable before their bytes are."""
    if seam is None:
        return
    real = FilePartial.flush

    def flush(self: FilePartial) -> None:
        count = (os.fstat(self._record_fd).st_size - len(self._header)) // 64
        end = os.lseek(self._record_fd, 0, os.SEEK_END)
        record = havelog.Record(havelog.Kind.COMMIT, length_bytes=count).to_bytes()
        os.pwrite(self._record_fd, record, end)
        os.fdatasync(self._record_fd)
        real(self)

    _replace(FilePartial, "flush", flush)


def _believe_hints(seam: Seam | None) -> None:
    """Write the record before the bytes, and believe it unread at the next start."""
    _replace(FilePartial, "_matches", lambda *_: True)
    if seam is None:
        return
    real = FilePartial._write

    def put(self: FilePartial, chunk: Any, source_id: str) -> None:
        with self._lock:
            record = self._chunk_record(chunk.chunk_index, chunk.digest, source_id)
            self._append(record)
            self._note(chunk.chunk_index, chunk.digest, source_id)
        real(self, chunk.view, chunk.offset)

    _replace(FilePartial, "put", put)


def _tear_small_files(_: Seam | None) -> None:
    """Write small files in their place."""

    def write(path: Any, content: bytes, *, mode: int = 0o644) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        write_all(fd, content)
        os.close(fd)

    _replace(home, "write_file_atomically", write)
    _replace(hubtree, "write_file_atomically", write)


def _believe_after_failed_sync(_: Seam | None) -> None:
    """Go on after a failed sync as if it had worked the second time."""
    _replace(FilePartial, "_poison", lambda self: None)


def _replace(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


_DATA_SYNC = "fdatasync /partial/sha256-# by partial.flush"

MUTATIONS: dict[str, Mutation] = {
    "skip-sync-before-rename": Mutation(
        _skip_sync_before_rename, "cuts-ext4", "fsync /blobs", "wrong bytes"
    ),
    "commit-before-bytes": Mutation(_commit_before_bytes, "cuts-xfs", _DATA_SYNC, "false have"),
    "believe-hints": Mutation(_believe_hints, "kills", "pwrite /partial/sha256-# by", "false have"),
    "tear-small-files": Mutation(
        _tear_small_files, "kills", "write /hub/models--org--model/", "wrong bytes"
    ),
    "believe-after-failed-sync": Mutation(
        _believe_after_failed_sync, "errors", _DATA_SYNC, "wrong bytes"
    ),
}
