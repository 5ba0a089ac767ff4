"""
Owns finding the layout of a file that is here, and its chunk table, from its bytes.

Knows nothing of names: the format shows in the first bytes.
Invariants: reads at most HEAD_BYTES_MAX to find the layout; never raises for what a file holds.
Source: core/tensors.py.
"""

from __future__ import annotations

import os

from p2pcache.core.chunktable import ChunkTable
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import CHUNK_SIZE_BYTES, Layout
from p2pcache.core.tensors import FIRST_HEAD_BYTES, MoreHead, TensorMap, read_tensors
from p2pcache.core.verify import BlobProof, digest_of


def find_tensors(fd: int, size_bytes: int) -> TensorMap | None:
    """
    Return the tensors of an open file, None when it has none.

    Raises:
        OSError: The disk failed.
    """
    wanted = min(FIRST_HEAD_BYTES, size_bytes)
    while True:
        head = read_bytes(fd, wanted, 0)
        found = read_tensors(head, size_bytes)
        if not isinstance(found, MoreHead):
            return found
        if len(head) < wanted:
            return None  # shorter than it says
        wanted = found.head_bytes


def find_file_layout(fd: int, size_bytes: int) -> Layout:
    """
    Return the chunk boundaries of an open file.

    Raises:
        OSError: The disk failed.
    """
    tensors = find_tensors(fd, size_bytes)
    return Layout(size_bytes) if tensors is None else tensors.layout()


def hash_file(fd: int, blob: BlobDigest, layout: Layout) -> tuple[ChunkTable, BlobProof]:
    """
    Return the chunk table of an open file as it is, and the proof of the whole.

    Both end at the first byte that cannot be read: the table is incomplete then, the proof wrong.
    """
    table, proof = ChunkTable(blob, layout), BlobProof(blob, layout.size_bytes)
    buffer = memoryview(bytearray(min(CHUNK_SIZE_BYTES, layout.size_bytes)))
    for index in range(layout.chunk_count):
        view = buffer[: layout.length_of(index)]
        try:
            count = read_into(fd, view, layout.offset_of(index))
        except OSError:
            break  # a disk that cannot read it has damaged it
        if count != len(view):
            break
        table.set(index, digest_of(view))
        proof.update(view)
    return table, proof


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """
    Fill view from the bytes at offset; return how many there were.

    Raises:
        OSError: The disk failed.
    """
    filled = 0
    while filled < len(view):
        count = os.preadv(fd, [view[filled:]], offset + filled)
        if count == 0:
            break
        filled += count
    return filled


def read_bytes(fd: int, length: int, offset: int) -> bytes:
    """
    Return the bytes at offset, fewer at the end of the file.

    Raises:
        OSError: The disk failed.
    """
    content = bytearray(length)
    return bytes(content[: read_into(fd, memoryview(content), offset)])
