"""
Owns one file as a hub keeps it: its bytes (in memory or on disk), size, and the names git gives it.

Knows nothing of repositories, HTTP or faults.
Invariants: digests are computed once; a file on disk is read in pieces, never whole.
Source: git object names (sha1 of "blob <size>\\0" + bytes); the Git LFS pointer format, version 1.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

READ_SIZE_BYTES = 1 << 20
LFS_GLOBS = ("*.safetensors", "*.onnx", "*.bin")
LFS_THRESHOLD_BYTES = 64 * 1024


class Reader(Protocol):
    """Random access to an open file's bytes."""

    def __call__(self, offset: int, size_bytes: int, /) -> bytes:
        """Return at most size_bytes from offset; fewer only at the end."""
        ...


@dataclass(frozen=True)
class LfsPolicy:
    """Which files of a repository live in large file storage instead of git."""

    threshold_bytes: int = LFS_THRESHOLD_BYTES
    globs: tuple[str, ...] = LFS_GLOBS

    def is_lfs(self, path: str, size_bytes: int) -> bool:
        """Return whether a file of this path and size is stored as a pointer."""
        name = path.rsplit("/", 1)[-1]
        named = any(fnmatch.fnmatch(name, glob) for glob in self.globs)
        return named or size_bytes > self.threshold_bytes


@dataclass(frozen=True)
class HubFile:
    """
    One stored file. Made by `from_source`; built directly only to tell lies on purpose.

    Attributes:
        blob_id: Git sha1 of the content, or of the pointer when the file is in LFS.
        sha256: Digest of the content when the file is in LFS, else None.
    """

    source: bytes | Path
    size_bytes: int
    blob_id: str
    sha256: str | None = None

    @classmethod
    def from_source(cls, path: str, source: bytes | Path, policy: LfsPolicy) -> HubFile:
        """Hash the bytes once, as git or as LFS, whichever the policy says."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if policy.is_lfs(path, size):
            digest = hashlib.sha256()
            for piece in _iter_pieces(source):
                digest.update(piece)
            sha256 = digest.hexdigest()
            return cls(source, size, git_sha1(pointer_text(sha256, size)), sha256)
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        for piece in _iter_pieces(source):
            blob.update(piece)
        return cls(source, size, blob.hexdigest())

    @property
    def etag(self) -> str:
        """Return the name that clients file the content under, without quotes."""
        return self.sha256 or self.blob_id

    @property
    def xet_hash(self) -> str:
        """Return a stand-in for the Xet hash: 64 hex digits that are not the sha256."""
        return hashlib.sha256(b"xet:" + self.etag.encode()).hexdigest()

    @property
    def pointer_size_bytes(self) -> int:
        """Return the length of the LFS pointer text."""
        return len(pointer_text(self.etag, self.size_bytes))

    @contextmanager
    def open_reader(self) -> Iterator[Reader]:
        """Open the content for reading at any offset; the descriptor lives as long as the block."""
        if isinstance(self.source, bytes):
            held = self.source
            yield lambda offset, size_bytes: held[offset : offset + size_bytes]
            return
        descriptor = os.open(self.source, os.O_RDONLY)
        try:
            yield lambda offset, size_bytes: os.pread(descriptor, size_bytes, offset)
        finally:
            os.close(descriptor)


def git_sha1(content: bytes) -> str:
    """Return the object name that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def pointer_text(sha256: str, size_bytes: int) -> bytes:
    """Return the text that git keeps in place of an LFS file."""
    head = "version https://git-lfs.github.com/spec/v1"
    return f"{head}\noid sha256:{sha256}\nsize {size_bytes}\n".encode()


def _iter_pieces(source: bytes | Path) -> Iterator[bytes]:
    """Yield the content in pieces that fit in memory."""
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while piece := stream.read(READ_SIZE_BYTES):
            yield piece
