"""
Owns one file that is being filled, and the record of what it holds.

Knows nothing of sources or of the index.
Invariants: bytes are written before the record that speaks for them; a record counts as durable
only once a later commit covers it; after a failed sync the partial is poisoned.
Source: design.md §4; havelog.py for the record; Rebello et al. (ATC 2020) on failed fsync.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest, ChunkDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.verify import VerifiedChunk, digest_of, verify_chunk
from p2pcache.errors import ChunkMismatchError, StoreError
from p2pcache.store.base import PartialState
from p2pcache.store.disk import (
    CopyPlace,
    copy_range,
    open_writable,
    reserve,
    store_error,
    sync_directory,
    try_set_mode,
    write_all,
)
from p2pcache.store.havelog import (
    RECORD_SIZE_BYTES,
    UPSTREAM_TAG,
    Kind,
    Record,
    header_to_bytes,
    iter_records,
)

log = logging.getLogger(__name__)

UPSTREAM_SOURCE = "upstream"
# Bytes of a file that was here, taken for the same ones on likeness alone.
LIKENESS_SOURCE = "likeness"
_LIKENESS_TAG = b"\xff" * 16
# Names the record that is being written anew, until it takes the old one's place.
NEW_SUFFIX = ".new"


_TAGS = {UPSTREAM_SOURCE: UPSTREAM_TAG, LIKENESS_SOURCE: _LIKENESS_TAG}
_SOURCES = {tag: source_id for source_id, tag in _TAGS.items()}


def _to_tag(source_id: str) -> bytes:
    return _TAGS.get(source_id) or bytes.fromhex(source_id)


def _from_tag(tag: bytes) -> str:
    return _SOURCES.get(tag) or tag.hex()


class FilePartial:
    """A partial blob in a file. Implements PartialBlob; see there for concurrency."""

    def __init__(
        self,
        path: Path,
        record_path: Path,
        blob: BlobDigest,
        layout: Layout,
        *,
        on_uncleared: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Open or create both files and recover what they hold.

        Args:
            path: The bytes.
            record_path: The have-record.
            blob: Which.
            layout: How it is cut.
            on_uncleared: Called when a sync failed and the record could not be emptied either: it
                must not be believed at the next open.

        Raises:
            StoreFullError: No room for the blob.
            StoreError: The disk failed.
        """
        self.blob = blob
        self.layout = layout
        self._header = header_to_bytes(layout)
        self.path = path
        self.record_path = record_path
        self._lock = threading.Lock()
        self._released = threading.Condition(self._lock)
        self._busy: set[int] = set()
        self._have = Bitfield(layout.chunk_count)
        self._table = ChunkTable(blob, layout)
        self._sources: dict[int, str] = {}
        self._prefixes: dict[int, int] = {}
        # Told of each chunk when it was written and recorded, with its bytes still in memory, in
        # the thread that wrote it. Whoever listens may keep the buffer, see buffers.py.
        self.on_put: Callable[[VerifiedChunk], None] | None = None
        # Returns when who listens can take more; for bulk threads, before the next chunk.
        self.wait_for_room: Callable[[], None] | None = None
        self._is_poisoned = False
        self._on_uncleared = on_uncleared
        # Whether the two names are durable; those of files that were there before are.
        self._is_named = path.exists() and record_path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.fd = open_writable(path, flags)
            self._record_fd = os.open(record_path, flags, 0o600)
            if os.fstat(self.fd).st_size != layout.size_bytes:
                # A record that outlived its file speaks for bytes that are not there.
                os.ftruncate(self._record_fd, 0)
            reserve(self.fd, layout.size_bytes)
            self._recover()
        except OSError as error:
            self.close()
            raise store_error(error, path) from error

    def _recover(self) -> None:
        """Believe what was committed, check what came after, cut a torn tail."""
        raw = self._read_record()
        records = list(iter_records(raw, self.layout))
        commits = [record.length_bytes for record in records if record.kind is Kind.COMMIT]
        durable_count = max(commits, default=0)
        held: dict[int, tuple[Record, bool]] = {}
        prefixes: dict[int, Record] = {}
        for n, record in enumerate(records):
            if record.kind is Kind.CHUNK:
                held[record.chunk_index] = (record, n < durable_count)
            elif record.kind is Kind.PREFIX:
                prefixes[record.chunk_index] = record
            elif record.kind is Kind.FORGET:
                held.pop(record.chunk_index, None)
                prefixes.pop(record.chunk_index, None)
        for index, (record, is_durable) in held.items():
            if is_durable or self._matches(index, self.layout.length_of(index), record.digest):
                self._note(index, ChunkDigest(record.digest), _from_tag(record.source_tag))
        for index, record in prefixes.items():
            if (
                index not in self._have
                and 0 < record.length_bytes < self.layout.length_of(index)
                and self._matches(index, record.length_bytes, record.digest)
            ):
                self._prefixes[index] = record.length_bytes
        self._rewrite_record()

    def _read_record(self) -> bytes:
        size_bytes = os.fstat(self._record_fd).st_size
        return os.pread(self._record_fd, size_bytes, 0)

    def _rewrite_record(self) -> None:
        """Start the log anew with what was recovered, so that it stays short and clean."""
        if not self._have and not self._prefixes:
            os.ftruncate(self._record_fd, 0)
            os.lseek(self._record_fd, 0, os.SEEK_SET)
            write_all(self._record_fd, self._header)
            return
        lines = [self._header]
        for index in self._have:
            digest = self._table.find(index)
            assert digest is not None, "a held chunk has a digest"
            lines.append(self._chunk_record(index, digest, self._sources[index]))
        lines.append(Record(Kind.COMMIT, length_bytes=len(self._have)).to_bytes())
        for index, length in self._prefixes.items():
            prefix = self._read_chunk_start(index, length)
            lines.append(Record(Kind.PREFIX, index, length, digest_of(prefix).raw).to_bytes())
        os.fdatasync(self.fd)
        temporary = self.record_path.with_name(self.record_path.name + NEW_SUFFIX)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600)
        try:
            write_all(fd, b"".join(lines))
            os.fdatasync(fd)
            os.rename(temporary, self.record_path)
        except OSError:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        os.close(self._record_fd)
        self._record_fd = fd
        sync_directory(self.record_path.parent)

    def _read_chunk_start(self, chunk_index: int, length: int) -> bytes:
        return os.pread(self.fd, length, self.layout.offset_of(chunk_index))

    def _matches(self, chunk_index: int, length: int, digest: bytes) -> bool:
        content = self._read_chunk_start(chunk_index, length)
        return len(content) == length and digest_of(content).raw == digest

    def _note(self, chunk_index: int, digest: ChunkDigest, source_id: str) -> None:
        self._have.add(chunk_index)
        self._table.set(chunk_index, digest)
        self._sources[chunk_index] = source_id
        self._prefixes.pop(chunk_index, None)

    def _chunk_record(self, chunk_index: int, digest: ChunkDigest, source_id: str) -> bytes:
        length = self.layout.length_of(chunk_index)
        tag = _to_tag(source_id)
        return Record(Kind.CHUNK, chunk_index, length, digest.raw, tag).to_bytes()

    def put(self, chunk: VerifiedChunk, source_id: str) -> None:
        """Write one chunk, then its record. See PartialBlob.put."""
        assert chunk.blob == self.blob, "a chunk of another blob"
        record = self._chunk_record(chunk.chunk_index, chunk.digest, source_id)
        with self._claim(chunk.chunk_index) as is_absent:
            if not is_absent:
                return
            self._write(chunk.view, chunk.offset)
            with self._lock:
                self._append(record)
                self._note(chunk.chunk_index, chunk.digest, source_id)
        on_put = self.on_put
        if on_put is not None:
            on_put(chunk)

    def put_prefix(self, chunk_index: int, prefix: memoryview, written_bytes: int) -> None:
        """
        Keep the start of a chunk that is still arriving from upstream.

        Args:
            chunk_index: Which chunk; not held yet.
            prefix: All bytes from the chunk's start that have arrived.
            written_bytes: How many of them earlier calls wrote.

        Raises:
            StoreError: As put().
        """
        offset = self.layout.offset_of(chunk_index)
        with self._claim(chunk_index) as is_absent:
            if not is_absent:
                return
            # A copy that was not the right one may have overwritten what earlier calls wrote.
            written_bytes = min(written_bytes, self.find_prefix_bytes(chunk_index))
            self._write(prefix[written_bytes:], offset + written_bytes)
            record = Record(Kind.PREFIX, chunk_index, len(prefix), digest_of(prefix).raw)
            with self._lock:
                self._append(record.to_bytes())
                self._prefixes[chunk_index] = len(prefix)

    def copy_chunk(
        self, chunk_index: int, place: CopyPlace, expected: ChunkDigest | None, source_id: str
    ) -> bool:
        """
        Copy a chunk from a file that is here; shares the disk's blocks where it can.

        Args:
            chunk_index: Which chunk.
            place: Where its bytes may be.
            expected: The digest that was promised; None takes what is there, for the proof of
                the whole to judge.
            source_id: Whose word it is that these are the bytes.

        Returns:
            Whether the chunk is held now; False when other bytes were there, or none to be had.

        Raises:
            StoreError: As put().
        """
        offset, length = self.layout.span_of(chunk_index, chunk_index)
        with self._claim(chunk_index) as is_absent:
            if not is_absent:
                return True
            with self._lock:
                self._check_not_poisoned()
                self._prefixes.pop(chunk_index, None)
            try:
                if not copy_range(place.fd, place.offset, self.fd, offset, length):
                    return False
            except OSError as error:
                # Perhaps the other file's disk; if it is ours, whoever fetches the chunk is told.
                log.debug("chunk %d of %s was not copied: %s", chunk_index, self.blob, error)
                return False
            # What was written is looked at, not what was read: the other file may change.
            content = memoryview(bytearray(length))
            self.read_into(offset, content)
            try:
                chunk = verify_chunk(
                    self.blob,
                    self.layout,
                    chunk_index,
                    content,
                    expected=expected,
                    source_id=source_id,
                )
            except ChunkMismatchError:
                return False
            with self._lock:
                self._append(self._chunk_record(chunk_index, chunk.digest, source_id))
                self._note(chunk_index, chunk.digest, source_id)
            return True

    @contextlib.contextmanager
    def _claim(self, chunk_index: int) -> Iterator[bool]:
        """
        Keep other threads off a chunk's bytes; yields whether the chunk is still absent.

        Bytes of a chunk that is held are never written again, whoever sends it a second time:
        its record already speaks for them.
        """
        with self._released:
            while chunk_index in self._busy:
                self._released.wait()
            self._busy.add(chunk_index)
            is_absent = chunk_index not in self._have
        try:
            yield is_absent
        finally:
            with self._released:
                self._busy.discard(chunk_index)
                self._released.notify_all()

    def find_prefix_bytes(self, chunk_index: int) -> int:
        """Return how many bytes of a chunk's start are there, 0 when it is held or absent."""
        with self._lock:
            return self._prefixes.get(chunk_index, 0)

    def count_prefix_bytes(self) -> int:
        """Return the bytes of all chunk starts that are there."""
        with self._lock:
            return sum(self._prefixes.values())

    def _write(self, view: memoryview, offset: int) -> None:
        try:
            while view:
                count = os.pwrite(self.fd, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise store_error(error, self.path) from error

    def _check_not_poisoned(self) -> None:
        if self._is_poisoned:
            raise StoreError(f"{self.path} could not be synced; ask again: it starts anew.")

    def _append(self, record: bytes) -> None:
        self._check_not_poisoned()
        try:
            end = os.lseek(self._record_fd, 0, os.SEEK_END)
            if os.pwrite(self._record_fd, record, end) != len(record):
                # A torn record would hide every later one from the next start.
                os.ftruncate(self._record_fd, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise store_error(error, self.record_path) from error

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view from the file. See PartialBlob.read_into."""
        try:
            while view:
                count = os.preadv(self.fd, [view[:CHUNK_SIZE_BYTES]], offset)
                if count == 0:
                    raise StoreError(f"{self.path} is shorter than it was; ask again.")
                view, offset = view[count:], offset + count
        except OSError as error:
            raise store_error(error, self.path) from error

    def snapshot(self) -> PartialState:
        """Return a copy of what is held."""
        with self._lock:
            table = ChunkTable(self.blob, self.layout)
            for index in self._have:
                digest = self._table.find(index)
                assert digest is not None, "a held chunk has a digest"
                table.set(index, digest)
            return PartialState(self._have.copy(), table, dict(self._sources))

    def forget(self, chunk_indexes: list[int]) -> None:
        """Take chunks out. See PartialBlob.forget."""
        with self._lock:
            for index in chunk_indexes:
                self._append(Record(Kind.FORGET, index).to_bytes())
                self._have.discard(index)
                self._table.clear(index)
                self._sources.pop(index, None)
            # Before anybody writes other bytes there: the old record must not speak for them.
            try:
                os.fdatasync(self._record_fd)
            except OSError as error:
                self._poison()
                raise store_error(error, self.record_path) from error

    def flush(self) -> None:
        """Sync the data, then commit the records that speak for it."""
        try:
            with self._lock:
                self._check_not_poisoned()
                end = os.lseek(self._record_fd, 0, os.SEEK_END)
            covered = (end - len(self._header)) // RECORD_SIZE_BYTES
            os.fdatasync(self.fd)
            with self._lock:
                self._append(Record(Kind.COMMIT, length_bytes=covered).to_bytes())
            os.fdatasync(self._record_fd)
            if not self._is_named:
                sync_directory(self.path.parent)
                self._is_named = True
        except OSError as error:
            self._poison()
            raise store_error(error, self.path) from error

    def seal(self, mode: int) -> os.stat_result:
        """
        Make everything durable, give the file its final mode, return what it is then.

        Raises:
            StoreError: The disk failed; nothing of this partial may be believed any more.
        """
        self.flush()
        try:
            try_set_mode(self.fd, mode)
            os.fsync(self.fd)
            return os.fstat(self.fd)
        except OSError as error:
            self._poison()
            raise store_error(error, self.path) from error

    def _poison(self) -> None:
        """
        Believe nothing any more, now and after the next open.

        After a failed sync the kernel calls pages clean that never reached the disk: hashing
        what can be read proves nothing, and a second sync succeeds without having written.
        """
        self._is_poisoned = True
        try:
            os.ftruncate(self._record_fd, 0)
        except OSError:
            self._on_uncleared()

    def close(self) -> None:
        """Close both files; the partial stays on disk. Safe to call twice."""
        for name in ("fd", "_record_fd"):
            fd = getattr(self, name, -1)
            setattr(self, name, -1)
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
