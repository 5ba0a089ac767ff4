"""
Owns taking one file of somebody else's into the store: hash it, and give it a blob's name.

Knows nothing of caches, snapshots or the index.
Invariants: what is hashed is the very file that gets the name; a foreign file is linked or read,
never written to and never given another mode; placed under a temporary name → fsync → marker →
rename → fsync of the folder, so that a crash leaves a whole blob or none.
Source: link(2), ioctl_ficlone(2), copy_file_range(2); docs/decisions/0011-adoption.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from p2pcache.core.chunktable import ChunkTable, Standing
from p2pcache.core.digest import Algorithm, BlobDigest, ChunkDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import digest_of
from p2pcache.store.base import FileStamp
from p2pcache.store.blobs import (
    ADOPTED_SUFFIX,
    PUBLIC_MODE,
    RESTRICTED_MODE,
    FileBlobStore,
    stamp_of,
)
from p2pcache.store.disk import (
    copy_range,
    reserve,
    store_error,
    sync_directory,
    try_set_mode,
)
from p2pcache.store.filelayout import find_file_layout, read_into
from p2pcache.store.hfcache import FileIdentity

# Files that are being adopted; emptied at start. In blobs/, for a rename must not cross disks.
STAGING_NAME = ".adopting"
# _IOW(0x94, 9, int): share all extents of another file.
FICLONE = 0x40049409
# Copied in pieces, so that a cancelled job ends soon.
_COPY_PIECE_BYTES = 64 * 1024 * 1024
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_GONE_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Placing(StrEnum):
    """How a file came into the store, the best way first."""

    LINKED = "linked"
    REFLINKED = "reflinked"
    COPIED = "copied"
    REFERRED = "referred"

    @property
    def is_shared(self) -> bool:
        """Return whether the blob's bytes are in the foreign file itself."""
        return self in (Placing.LINKED, Placing.REFERRED)


@dataclass(frozen=True, slots=True)
class AdoptOrder:
    """
    One file to take in.

    `names` are the digests of which the content may be any; `algorithms` those by which it may
    have any name. `may_have_tensors`: its name in the repository says so, as for who fetches it.
    """

    path: Path
    identity: FileIdentity
    names: frozenset[BlobDigest]
    algorithms: frozenset[Algorithm]
    is_public: bool
    may_have_tensors: bool = False

    def accepts(self, blob: BlobDigest) -> bool:
        """Return whether a digest is one that the file may have."""
        return blob in self.names or blob.algorithm in self.algorithms


@dataclass(frozen=True, slots=True)
class AdoptedBlob:
    """A blob that is in the store now."""

    blob: BlobDigest
    stamp: FileStamp
    table: ChunkTable
    placing: Placing


@dataclass(frozen=True, slots=True)
class Adoption:
    """What a file turned out to be, and which of it was not here already."""

    names: frozenset[BlobDigest]
    blobs: tuple[AdoptedBlob, ...]


class RefusedFile(Exception):  # noqa: N818 - an outcome, which is reported and not an error
    """A file that was left alone; the text says why. `is_final`: looking again changes nothing."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


class StoppedAdoption(Exception):  # noqa: N818
    """The job was cancelled meanwhile."""


class AdoptWatch(Protocol):
    """What a running adoption asks and tells. Called from its thread."""

    def note_hashed(self, size_bytes: int) -> None:
        """So many more bytes are hashed."""
        ...

    def is_stopped(self) -> bool:
        """Return whether nobody wants this any more."""
        ...

    def may_copy(self, size_bytes: int) -> bool:
        """Return whether there is room for so many bytes of our own."""
        ...

    def may_place(self, blob: BlobDigest) -> bool:
        """Return whether a blob is neither here nor on its way; asked once it is known."""
        ...


def sweep_staging(store: FileBlobStore) -> None:
    """
    Remove what adoptions that a crash ended left behind. Not while one runs.

    Raises:
        StoreError: The disk failed.
    """
    blobs = store.root / "blobs"
    try:
        for path in (blobs / STAGING_NAME).glob("*"):
            path.unlink(missing_ok=True)
        for path in blobs.glob(f"*/*/*{ADOPTED_SUFFIX}"):
            if not os.path.lexists(path.with_suffix("")):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise store_error(error, blobs) from error


def adopt_file(
    store: FileBlobStore, order: AdoptOrder, buffer: memoryview, watch: AdoptWatch
) -> Adoption:
    """
    Hash a file once and place it under each of its names.

    Args:
        store: Where to.
        order: What, and by which names.
        buffer: As large as a chunk.
        watch: Told of progress.

    Raises:
        RefusedFile: It is gone, unreadable, changing, or not what its names say.
        StoppedAdoption: The watch said so.
        StoreError: Our own disk failed or is full.
    """
    with _stage(store, order, watch) as staged:
        content = _hash(staged, order, buffer, watch)
        blobs = sorted(filter(order.accepts, content.names))
        if not blobs:
            said = f"its content is {min(content.names)}, not what its name says"
            raise RefusedFile(said, is_final=True)
        wanted = [blob for blob in blobs if watch.may_place(blob)]
        adopted = [_publish(store, staged, order, blob, content) for blob in wanted[:1]]
    for blob in wanted[1:]:
        # One content by both kinds of name: the second one is its own link, or its own copy.
        with _stage(store, order, watch) as staged:
            if not staged.placing.is_shared:
                content = _hash(staged, order, buffer, watch)
            if blob in content.names:
                adopted.append(_publish(store, staged, order, blob, content))
    return Adoption(frozenset(blobs), tuple(adopted))


@dataclass(slots=True)
class _Staged:
    """A file on its way: open, under a temporary name of ours unless it is referred to."""

    fd: int
    path: Path
    placing: Placing
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class _Content:
    """What a file holds: how it is cut, its chunks' digests, its names."""

    layout: Layout
    digests: list[ChunkDigest]
    names: set[BlobDigest]


@contextlib.contextmanager
def _stage(store: FileBlobStore, order: AdoptOrder, watch: AdoptWatch) -> Iterator[_Staged]:
    folder = store.root / "blobs" / STAGING_NAME
    path = folder / secrets.token_hex(8)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise store_error(error, folder) from error
    fd, placing = -1, Placing.LINKED
    try:
        try:
            fd, placing = _place(store, order, path, watch)
            status = os.fstat(fd)
        except OSError as error:
            raise store_error(error, path) from error
        is_same = placing in (Placing.REFLINKED, Placing.COPIED) or (
            stat.S_ISREG(status.st_mode) and FileIdentity.of(status) == order.identity
        )
        if not is_same:
            raise RefusedFile("it changed while it was looked at; import it again")
        yield _Staged(fd, path, placing, status)
    finally:
        if fd >= 0:
            os.close(fd)
        with contextlib.suppress(OSError):
            path.unlink()


def _place(
    store: FileBlobStore, order: AdoptOrder, path: Path, watch: AdoptWatch
) -> tuple[int, Placing]:
    """Give the file a temporary name in the best way that works; return it open."""
    if not _would_expose(store, order) and _try_link(order.path, path):
        return _open_foreign(path), Placing.LINKED
    source = _open_foreign(order.path)
    try:
        if FileIdentity.of(os.fstat(source)) != order.identity:
            raise RefusedFile("it changed while it was looked at; import it again")
        fd = _create(path)
        try:
            if _try_reflink(source, fd):
                return fd, Placing.REFLINKED
            if watch.may_copy(order.identity.size_bytes) and _try_copy(source, fd, order, watch):
                return fd, Placing.COPIED
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        path.unlink()
        return os.dup(source), Placing.REFERRED
    finally:
        os.close(source)


def _open_foreign(path: Path) -> int:
    try:
        return os.open(path, _READ_FLAGS)
    except OSError as error:
        if error.errno in _GONE_ERRNOS:
            raise RefusedFile("it is gone, or a link by now") from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise store_error(error, path) from error
        raise RefusedFile(f"it cannot be read ({(error.strerror or '').lower()})") from error


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise store_error(error, path) from error


def _would_expose(store: FileBlobStore, order: AdoptOrder) -> bool:
    """
    Return whether a link of ours would show restricted content to users who could not reach it.

    The mode is the owner's choice; it may be wide because a folder above it is closed.
    """
    if order.is_public:
        return False
    try:
        mode = order.path.lstat().st_mode
        if not mode & (stat.S_IRGRP | stat.S_IROTH):
            return False
        if not _is_reachable(store.root / "blobs", stat.S_IXGRP | stat.S_IXOTH):
            return False
        return not (mode & stat.S_IROTH and _is_reachable(order.path.parent, stat.S_IXOTH))
    except OSError:
        return True


def _is_reachable(folder: Path, bits: int) -> bool:
    resolved = folder.resolve()
    return all(parent.stat().st_mode & bits for parent in (resolved, *resolved.parents))


def _try_link(source: Path, path: Path) -> bool:
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno in _GONE_ERRNOS:
            raise RefusedFile("it is gone, or a link by now") from error
        if error.errno in (*_FULL_ERRNOS, errno.EIO, errno.EROFS):
            raise store_error(error, path) from error
        return False  # another disk, another owner, too many links, or none at all here
    return True


def _try_reflink(source: int, fd: int) -> bool:
    try:
        fcntl.ioctl(fd, FICLONE, source)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EROFS):
            raise store_error(error, "a reflink") from error
        return False
    return True


def _try_copy(source: int, fd: int, order: AdoptOrder, watch: AdoptWatch) -> bool:
    """Copy all; False when there is no room after all."""
    size_bytes = order.identity.size_bytes
    try:
        reserve(fd, size_bytes)
        for offset in range(0, size_bytes, _COPY_PIECE_BYTES):
            if watch.is_stopped():
                raise StoppedAdoption
            length = min(_COPY_PIECE_BYTES, size_bytes - offset)
            if not copy_range(source, offset, fd, offset, length):
                raise RefusedFile("it became shorter while it was copied; import it again")
    except OSError as error:
        if error.errno in _FULL_ERRNOS:
            return False
        raise RefusedFile(f"it cannot be copied ({(error.strerror or '').lower()})") from error
    return True


def _hash(staged: _Staged, order: AdoptOrder, buffer: memoryview, watch: AdoptWatch) -> _Content:
    """Look at every byte, once."""
    size_bytes = order.identity.size_bytes
    algorithms = {name.algorithm for name in order.names} | order.algorithms
    hashes = {
        "sha256": hashlib.sha256(),
        "gitsha1": hashlib.sha1(b"blob %d\x00" % size_bytes, usedforsecurity=False),
    }
    used = [hashes[algorithm] for algorithm in sorted(algorithms)]
    digests = []
    try:
        has_head = order.may_have_tensors
        layout = find_file_layout(staged.fd, size_bytes) if has_head else Layout(size_bytes)
        for index in range(layout.chunk_count):
            if watch.is_stopped():
                raise StoppedAdoption
            view = buffer[: layout.length_of(index)]
            if read_into(staged.fd, view, layout.offset_of(index)) != len(view):
                raise RefusedFile("it became shorter while it was hashed; import it again")
            digests.append(digest_of(view))
            for one in used:
                one.update(view)
            watch.note_hashed(len(view))
        if FileIdentity.of(os.fstat(staged.fd)) != FileIdentity.of(staged.status):
            raise RefusedFile("it changed while it was hashed; import it again")
    except OSError as error:
        raise RefusedFile(f"it cannot be read ({(error.strerror or '').lower()})") from error
    names = {BlobDigest(algorithm, hashes[algorithm].hexdigest()) for algorithm in algorithms}
    return _Content(layout, digests, names)


def _publish(
    store: FileBlobStore, staged: _Staged, order: AdoptOrder, blob: BlobDigest, content: _Content
) -> AdoptedBlob:
    target = store.path_of(blob)
    try:
        if staged.placing.is_shared:
            _sync_foreign(staged.fd)
        else:
            try_set_mode(staged.fd, PUBLIC_MODE if order.is_public else RESTRICTED_MODE)
            os.fsync(staged.fd)
        target.parent.mkdir(mode=0o755, exist_ok=True)
        if staged.placing is Placing.LINKED:
            store.mark_foreign(blob)
        elif staged.placing is Placing.REFERRED:
            os.symlink(order.path, staged.path)
        os.rename(staged.path, target)
        if staged.placing is not Placing.LINKED:
            store.unmark_foreign(blob)
        sync_directory(target.parent)
        sync_directory(target.parent.parent)
    except OSError as error:
        raise store_error(error, target) from error
    table = ChunkTable(blob, content.layout, Standing.PROVEN)
    for index, digest in enumerate(content.digests):
        table.set(index, digest)
    # The stamp that was hashed: a change since then must show.
    return AdoptedBlob(blob, stamp_of(staged.status), table, staged.placing)


def _sync_foreign(fd: int) -> None:
    """Make a foreign file durable: a client that made it a moment ago did not wait for the disk."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP):
            reason = (error.strerror or "").lower()
            raise RefusedFile(f"its disk does not keep it ({reason})") from error
