"""
Owns hashing a published file again, chunk by chunk, a step at a time.

Knows nothing of the index, nor of what becomes of a damaged file (quarantine.py).
Invariants: bytes are held against the proven chunk table, or against the blob's own name where
there is none; a chunk that cannot be read is a wrong one; what a gentle check brought into the
page cache leaves it again, and nothing else does.
Source: design.md §3 (check); borg check --max-duration, for going on where a check ended.
"""

from __future__ import annotations

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import BlobProof, digest_of
from p2pcache.store.base import BlobFile
from p2pcache.store.filelayout import find_file_layout, read_into
from p2pcache.store.pagecache import read_gently, stop_readahead


class FileCheck:
    """
    A walk over one open file. One thread at a time; whoever opened the file closes it.

    `bad` are the chunks that turned out wrong, `next_chunk` is where the walk goes on.
    """

    def __init__(
        self,
        found: BlobFile,
        blob: BlobDigest,
        known: ChunkTable | None,
        *,
        first_chunk: int = 0,
        is_gentle: bool = False,
    ) -> None:
        """
        Begin.

        Args:
            found: The file.
            blob: What it should be.
            known: The table that was proven for the blob. Without one the whole is hashed, from
                the first byte, and a table is made.
            first_chunk: Where an earlier walk ended.
            is_gentle: Leave the page cache as it was.
        """
        self.blob = blob
        self.known = known
        self.bad: list[int] = []
        self.next_chunk = 0 if known is None else first_chunk
        self._found = found
        self._is_gentle = is_gentle
        self.layout = _find_layout(found) if known is None else known.layout
        self._table = ChunkTable(blob, self.layout)
        self._proof = BlobProof(blob, self.layout.size_bytes)
        if is_gentle:
            stop_readahead(found.fd)

    @property
    def is_over(self) -> bool:
        """Return whether every chunk was looked at."""
        return self.next_chunk >= self.layout.chunk_count

    @property
    def is_right(self) -> bool:
        """Return whether the file is certainly the blob; only once the walk is over."""
        assert self.is_over, "a file is right when all of it was looked at"
        if self.known is None:
            return self._proof.is_right()
        return not self.bad and self._found.stamp.size_bytes == self.layout.size_bytes

    @property
    def table(self) -> ChunkTable:
        """Return the table of a file that is right."""
        assert self.is_right, "a table of wrong bytes is of no use"
        return self._table if self.known is None else self.known

    def find_lost(self) -> list[int]:
        """Return the chunks that have to be fetched, as far as the walk came."""
        # Nobody knows which chunks a wrong whole owes it to.
        return self.bad if self.known is not None else list(range(self.layout.chunk_count))

    def step(self, buffer: memoryview, bytes_max: int) -> int:
        """
        Hash the next chunks.

        Args:
            buffer: Room for one chunk.
            bytes_max: Stop before there would be more; at least one chunk is hashed.

        Returns:
            How many bytes were looked at.
        """
        looked_at = 0
        while not self.is_over:
            index = self.next_chunk
            length = self.layout.length_of(index)
            if looked_at and looked_at + length > bytes_max:
                break
            self._look_at(index, buffer[:length])
            is_hopeless = self.known is None and bool(self.bad)
            self.next_chunk = self.layout.chunk_count if is_hopeless else index + 1
            looked_at += length
        return looked_at

    def _look_at(self, index: int, view: memoryview) -> None:
        try:
            count = self._read(view, self.layout.offset_of(index))
        except OSError:
            count = -1  # a disk that cannot read it has damaged it
        if count != len(view):
            self.bad.append(index)
        elif self.known is None:
            self._table.set(index, digest_of(view))
            self._proof.update(view)
        elif digest_of(view) != self.known.find(index):
            self.bad.append(index)

    def _read(self, view: memoryview, offset: int) -> int:
        """
        Read a chunk.

        Through the page cache, not past it with O_DIRECT: what is cached is what readers are
        given, alignment and file systems without it would each be a way of their own, and a disk
        that rots below a cached page is found as soon as the page has left.
        """
        read = read_gently if self._is_gentle else read_into
        return read(self._found.fd, view, offset)


def _find_layout(found: BlobFile) -> Layout:
    """Return how a file is cut that nothing is known of."""
    try:
        return find_file_layout(found.fd, found.stamp.size_bytes)
    except OSError:
        return Layout(found.stamp.size_bytes)  # the walk ends where it cannot be read
