"""
Owns the quick look at how much of blobs is on the disk, file by file, for whoever asks often.

Knows nothing of the index, and writes nothing; a daemon may be filling the same files.
Invariants: what is told is what the have-record says at that moment; a record is read once, then
only its new end; of a file that just got its name nothing is told to be missing.
Source: docs/reference/store-layout.md (partial files); havelog.py.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.store.havelog import (
    RECORD_SIZE_BYTES,
    Kind,
    find_layout,
    header_to_bytes,
    iter_tail,
)

# Records that are kept parsed; more files than are filled at once, by far. The oldest go.
RECORDS_KEPT_MAX = 4096
_STAT_BLOCK_SIZE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Presence:
    """
    What is here of a blob: the bytes of its chunks, whether the whole file has its name, and what
    the disk gave for it so far.
    """

    held_bytes: int = 0
    is_whole: bool = False
    taken_bytes: int = 0


@dataclass(slots=True)
class _Record:
    """A have-record, as far as it was read."""

    inode: int
    layout: Layout
    read_bytes: int
    held: set[int] = field(default_factory=set)
    held_bytes: int = 0
    # The last record that was read: one that changed means that the log began anew.
    last: bytes = b""


class PresenceReader:
    """Looks at one store. One thread at a time."""

    def __init__(self, root: Path) -> None:
        self._blobs = f"{root}/blobs/"
        self._partial = f"{root}/partial/"
        self._records: OrderedDict[BlobDigest, _Record] = OrderedDict()

    def is_whole(self, blob: BlobDigest) -> bool:
        """Return whether the whole file has its name."""
        return self.is_whole_text(str(blob))

    def is_whole_text(self, blob: str) -> bool:
        """Return the same for the text of a digest, well formed: hundreds of times in a look."""
        algorithm, _, digits = blob.partition(":")
        # Whether there is one, and nothing else of it: half the time of stat().
        return os.access(f"{self._blobs}{algorithm}/{digits[:2]}/{digits}", os.F_OK)

    def look(self, blob: BlobDigest, size_bytes: int) -> Presence:
        """Return what is here of a blob; a file that cannot be read counts as not here."""
        if self.is_whole(blob):
            return Presence(size_bytes, True)
        path = f"{self._partial}{blob.algorithm}-{blob.hex}"
        held_bytes = self._count_held(blob, path + ".have")
        if not held_bytes and self.is_whole(blob):
            # Published between the two looks: its record went after it had its name.
            return Presence(size_bytes, True)
        taken_bytes = 0
        with contextlib.suppress(OSError):
            taken_bytes = os.lstat(path).st_blocks * _STAT_BLOCK_SIZE_BYTES
        return Presence(min(held_bytes, size_bytes), False, taken_bytes)

    def _count_held(self, blob: BlobDigest, path: str) -> int:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            self._records.pop(blob, None)
            return 0
        try:
            record = self._read_on(blob, fd)
        except OSError:
            record = None
        finally:
            os.close(fd)
        if record is None:
            self._records.pop(blob, None)
            return 0
        self._records[blob] = record
        self._records.move_to_end(blob)
        while len(self._records) > RECORDS_KEPT_MAX:
            self._records.popitem(last=False)
        return record.held_bytes

    def _read_on(self, blob: BlobDigest, fd: int) -> _Record | None:
        status = os.fstat(fd)
        record = self._records.get(blob)
        if record is None or not _continues(record, fd, status):
            raw = os.pread(fd, status.st_size, 0)
            layout = find_layout(raw)
            if layout is None:
                return None
            header_bytes = len(header_to_bytes(layout))
            record = _Record(status.st_ino, layout, header_bytes)
            _take_in(record, raw[header_bytes:])
        elif status.st_size > record.read_bytes:
            _take_in(record, os.pread(fd, status.st_size - record.read_bytes, record.read_bytes))
        return record


def _continues(record: _Record, fd: int, status: os.stat_result) -> bool:
    """Return whether a log is the one that was read, with more at its end or not."""
    if status.st_ino != record.inode or status.st_size < record.read_bytes:
        return False
    if not record.last:
        # Nothing but a header was read: another one may stand in its place by now.
        return False
    return os.pread(fd, RECORD_SIZE_BYTES, record.read_bytes - RECORD_SIZE_BYTES) == record.last


def _take_in(record: _Record, raw: bytes) -> None:
    """Count the records at the start of what follows; a torn one is left for the next look."""
    layout, count = record.layout, 0
    for entry in iter_tail(raw, layout):
        count += 1
        index = entry.chunk_index
        if entry.kind is Kind.CHUNK and index not in record.held:
            record.held.add(index)
            record.held_bytes += layout.length_of(index)
        elif entry.kind is Kind.FORGET and index in record.held:
            record.held.discard(index)
            record.held_bytes -= layout.length_of(index)
    if count:
        end = count * RECORD_SIZE_BYTES
        record.read_bytes += end
        record.last = raw[end - RECORD_SIZE_BYTES : end]
