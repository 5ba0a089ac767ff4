"""
Owns the files of the store: `partial/` and `blobs/`.

Knows nothing of the index or of repositories.
Invariants: publish is fsync → chmod → rename → fsync of both folders; a path is built only from
the hex of a parsed digest; a published file of ours is read-only, and a foreign one (adopt.py) is
never written to and never given another mode.
Source: design.md §4; docs/reference/store-layout.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.verify import BlobProof
from p2pcache.errors import InvalidDigestError
from p2pcache.store.base import BlobFile, FileStamp, PartialBlob
from p2pcache.store.disk import (
    is_not_there,
    store_error,
    sync_directory,
    try_read,
    try_set_mode,
)
from p2pcache.store.havelog import Kind, find_layout, iter_records
from p2pcache.store.partial import NEW_SUFFIX, FilePartial

# Other users' workers map public weights; restricted ones are the daemon's alone.
PUBLIC_MODE = 0o444
RESTRICTED_MODE = 0o400
# Beside a blob that is a hard link to somebody else's file, whose mode says nothing of ours.
ADOPTED_SUFFIX = ".adopted"
# The unit of st_blocks, whatever the file system's own blocks are.
_STAT_BLOCK_SIZE_BYTES = 512
_INODE_MASK = (1 << 63) - 1
# A link leads on only where the store says so; a FIFO of that name must not hold us up.
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# What open(2) says when a name is free, or leads nowhere.
_ABSENT_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# The same for the file that a blob refers to, on a disk that may be gone or closed to us.
_UNREACHABLE_ERRNOS = (*_ABSENT_ERRNOS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENXIO)


def stamp_of(status: os.stat_result) -> FileStamp:
    """Return what identifies an unchanged file."""
    # Some file systems use all 64 bits of an inode number, SQLite's integers have a sign.
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ino & _INODE_MASK)


class FileBlobStore:
    """Blobs as whole files below one folder. Implements BlobStore."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._partial = root / "partial"
        # Bytes of published files whose row may not be there yet, until discard(): they are in
        # neither partial/ nor the index, and must be counted all the same.
        self._unrecorded: dict[BlobDigest, int] = {}
        # Partials whose record outlived a failed sync, on a disk that failed altogether.
        self._uncleared: set[BlobDigest] = set()
        for folder in (self._blobs / "sha256", self._blobs / "gitsha1", self._partial):
            try:
                folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            except OSError as error:
                raise store_error(error, folder) from error

    def path_of(self, blob: BlobDigest) -> Path:
        """Return where a published blob lies, whether it is there or not."""
        return self._blobs / blob.algorithm / blob.hex[:2] / blob.hex

    def _partial_path(self, blob: BlobDigest) -> Path:
        return self._partial / f"{blob.algorithm}-{blob.hex}"

    def _record_path(self, blob: BlobDigest) -> Path:
        return self._partial / f"{blob.algorithm}-{blob.hex}.have"

    def partial_paths_of(self, blob: BlobDigest) -> tuple[Path, Path]:
        """Return where a partial and its have-record lie, whether they are there or not."""
        return self._partial_path(blob), self._record_path(blob)

    def open_partial(self, blob: BlobDigest, layout: Layout) -> FilePartial:
        """Continue or begin to fill a blob. See BlobStore.open_partial."""
        path, record_path = self._partial_path(blob), self._record_path(blob)
        if blob in self._uncleared:
            self.discard(blob)
            self._uncleared.discard(blob)
        is_new = not path.exists()

        def note_uncleared() -> None:
            self._uncleared.add(blob)

        try:
            return FilePartial(path, record_path, blob, layout, on_uncleared=note_uncleared)
        except Exception:
            if is_new:
                self.discard(blob)
            raise

    def publish(self, partial: PartialBlob, proof: BlobProof, *, is_public: bool) -> FileStamp:
        """Give a complete, proven file its name. See BlobStore.publish."""
        assert isinstance(partial, FilePartial), "a partial of another store"
        assert proof.blob == partial.blob, "a proof of another blob"
        proof.check(str(partial.path))
        target = self.path_of(partial.blob)
        status = partial.seal(PUBLIC_MODE if is_public else RESTRICTED_MODE)
        stamp = stamp_of(status)
        # Before the name changes: at no time may the file be counted nowhere.
        self._unrecorded[partial.blob] = status.st_blocks * _STAT_BLOCK_SIZE_BYTES
        try:
            target.parent.mkdir(mode=0o755, exist_ok=True)
            os.rename(partial.path, target)
            self.unmark_foreign(partial.blob)
            sync_directory(target.parent)
            sync_directory(target.parent.parent)
            sync_directory(self._partial)
        except OSError as error:
            raise store_error(error, target) from error
        return stamp

    def set_public(self, blob: BlobDigest) -> None:
        """Let other users read a blob that was restricted, if it is here."""
        self._set_mode(blob, PUBLIC_MODE)

    def set_restricted(self, blob: BlobDigest) -> None:
        """Let nobody else read a blob that was public, if it is here."""
        self._set_mode(blob, RESTRICTED_MODE)

    def _set_mode(self, blob: BlobDigest, mode: int) -> None:
        if self.is_foreign(blob):
            return
        found = self.find_blob(blob)
        if found is not None:
            try:
                try_set_mode(found.fd, mode)
            except OSError as error:
                raise store_error(error, self.path_of(blob)) from error
            finally:
                os.close(found.fd)

    def is_foreign(self, blob: BlobDigest) -> bool:
        """
        Return whether a published blob's bytes are in a file that somebody else may own.

        Such a file is read and unlinked here, never written to and never given another mode.
        """
        try:
            mode = self.path_of(blob).lstat().st_mode
            is_ours = stat.S_ISREG(mode) and stat.S_IMODE(mode) in (PUBLIC_MODE, RESTRICTED_MODE)
            return not is_ours or self._marker_path(blob).exists()
        except FileNotFoundError:
            return False

    def mark_foreign(self, blob: BlobDigest) -> None:
        """
        Note that what is about to be published under this name is somebody else's file.

        Before the name, in the same folder: a disk keeps the order of both.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(self._marker_path(blob), flags, 0o600))

    def unmark_foreign(self, blob: BlobDigest) -> None:
        """Note, after the rename, that what has this name now is a file of ours."""
        self._marker_path(blob).unlink(missing_ok=True)

    def claim_foreign(self, blob: BlobDigest, *, is_public: bool) -> bool:
        """
        Make a linked file ours, whose other names are gone; returns whether it is.

        Our mode comes before the marker goes: it tells whether others may have the content.
        """
        path, mode = self.path_of(blob), PUBLIC_MODE if is_public else RESTRICTED_MODE
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return False
            try_set_mode(path, mode)
            if stat.S_IMODE(path.lstat().st_mode) != mode:
                return False  # another user's file, or a disk without modes
            self.unmark_foreign(blob)
        except OSError as error:
            raise store_error(error, path) from error
        return True

    def _marker_path(self, blob: BlobDigest) -> Path:
        path = self.path_of(blob)
        return path.with_name(path.name + ADOPTED_SUFFIX)

    def find_blob(self, blob: BlobDigest) -> BlobFile | None:
        """Open a published blob; None when there is none, or something else bears its name."""
        path = self.path_of(blob)
        try:
            fd = os.open(path, _READ_FLAGS)
        except OSError as error:
            if error.errno not in _ABSENT_ERRNOS:
                raise store_error(error, path) from error
            found = _open_target(path) if error.errno == errno.ELOOP else None
            if found is None:
                return None
            fd = found
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return None
        return BlobFile(fd, stamp_of(status))

    def discard(self, blob: BlobDigest, *, partial_only: bool = True) -> None:
        """Remove a partial, and the published file too unless partial_only."""
        record_path = self._record_path(blob)
        new_record_path = record_path.with_name(record_path.name + NEW_SUFFIX)
        paths = [self._partial_path(blob), record_path, new_record_path]
        paths += [] if partial_only else [self.path_of(blob), self._marker_path(blob)]
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise store_error(error, path) from error
        self._unrecorded.pop(blob, None)

    def iter_blobs(self) -> Iterator[tuple[BlobDigest, FileStamp]]:
        """Iterate over the published files; foreign names are passed over."""
        return ((blob, stamp) for blob, stamp, _ in self.iter_files())

    def iter_files(self) -> Iterator[tuple[BlobDigest, FileStamp, int]]:
        """Iterate over the published files, with what each takes on the disk, in bytes."""
        for algorithm, entry in self._iter_names():
            blob = self._parse_name(algorithm, entry.name)
            if blob is None:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            # A link takes nothing: the bytes are in somebody else's file.
            taken_bytes = status.st_blocks * _STAT_BLOCK_SIZE_BYTES
            if stat.S_ISLNK(status.st_mode):
                target = _find_target(Path(entry.path))
                if target is not None:
                    status = _try_lstat(target) or status
            if stat.S_ISREG(status.st_mode):
                yield blob, stamp_of(status), taken_bytes

    def _iter_names(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Iterate over what may be a blob; a store may have 100,000, so that no path is built."""
        for algorithm in ("sha256", "gitsha1"):
            with os.scandir(self._blobs / algorithm) as folders:
                names = [folder.name for folder in folders if folder.is_dir(follow_symlinks=False)]
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    with os.scandir(self._blobs / algorithm / name) as entries:
                        found = [entry for entry in entries if entry.name.startswith(name)]
                    yield from ((algorithm, entry) for entry in found if len(name) == 2)

    def is_world_readable(self, blob: BlobDigest) -> bool:
        """Return whether a published file is marked as public content; a foreign one never is."""
        try:
            mode = stat.S_IMODE(self.path_of(blob).lstat().st_mode)
            return mode == PUBLIC_MODE and not self.is_foreign(blob)
        except OSError:
            return False

    def iter_partials(self) -> Iterator[BlobDigest]:
        """Iterate over the blobs that have a file or a record in `partial/`."""
        names = {
            path.name.removesuffix(NEW_SUFFIX).removesuffix(".have")
            for path in self._partial.iterdir()
        }
        for name in sorted(names):
            algorithm, _, digits = name.partition("-")
            blob = self._parse_name(algorithm, digits)
            if blob is not None:
                yield blob

    def is_filling(self, blob: BlobDigest) -> bool:
        """Return whether bytes of an unpublished blob are in `partial/`."""
        return self._partial_path(blob).exists()

    def is_recorded(self, blob: BlobDigest) -> bool:
        """Return whether a have-record speaks of an unpublished blob; else it has nothing."""
        return self._record_path(blob).exists()

    def measure_partials(self) -> int:
        """
        Return the bytes on disk of files in `partial/`, and of those that were just published
        from there and are not recorded yet.

        Raises:
            StoreError: The disk failed.
        """
        size_bytes = 0
        try:
            for path in self._partial.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    size_bytes += path.stat().st_blocks * _STAT_BLOCK_SIZE_BYTES
        except OSError as error:
            raise store_error(error, self._partial) from error
        # After the folder: what leaves it meanwhile is counted twice, not never.
        return size_bytes + sum(list(self._unrecorded.values()))

    def find_layout(self, blob: BlobDigest) -> Layout | None:
        """
        Return how an idle partial is cut; None when there is none.

        Raises:
            StoreError: It cannot be told now; whoever cuts it otherwise gives up what it holds.
        """
        raw = try_read(self._record_path(blob))
        return None if raw is None else find_layout(raw)

    def count_held_bytes(self, blob: BlobDigest) -> int:
        """
        Return the bytes that the have-record of an idle partial speaks of.

        Raises:
            StoreError: It cannot be told now.
        """
        raw = try_read(self._record_path(blob))
        layout = None if raw is None else find_layout(raw)
        if raw is None or layout is None:
            return 0
        held: set[int] = set()
        for record in iter_records(raw, layout):
            if record.kind is Kind.CHUNK:
                held.add(record.chunk_index)
            elif record.kind is Kind.FORGET:
                held.discard(record.chunk_index)
        return layout.measure(held)

    @staticmethod
    def _parse_name(algorithm: str, digits: str) -> BlobDigest | None:
        try:
            return BlobDigest.parse(f"{algorithm}:{digits}")
        except InvalidDigestError:
            return None


def _find_target(path: Path) -> str | None:
    """
    Return what a blob refers to in place of holding it: an absolute path, else nothing.

    Raises:
        StoreError: The disk failed.
    """
    try:
        target = os.readlink(path)
    except OSError as error:
        if error.errno == errno.EINVAL or is_not_there(error):
            return None
        raise store_error(error, path) from error
    return target if os.path.isabs(target) else None


def _open_target(path: Path) -> int | None:
    """
    Open the file that a blob refers to; None when it is gone, or nobody may read it any more.

    Raises:
        StoreError: It cannot be told: no more descriptors, or the disk failed.
    """
    target = _find_target(path)
    if target is None:
        return None
    try:
        return os.open(target, _READ_FLAGS)
    except OSError as error:
        if error.errno in _UNREACHABLE_ERRNOS:
            return None
        raise store_error(error, target) from error


def _try_lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None
