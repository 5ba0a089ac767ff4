"""
Owns `STORE/hub`: a complete Hugging Face cache tree over the store's blobs; and `STORE/modelscope`,
the same for ModelScope's clients.

Knows nothing of how files got here; it links what is complete and proven.
Invariants: trees/<commit>.json lists every file of the commit, before any link of it appears, the
same weights in a second format apart;
a blob's link is hard where the filesystem allows, so deleting it harms nothing of ours; what a
program put here itself is never taken out.
Source: cache layouts of huggingface_hub (tree cache format 1) and of modelscope 1.40;
docs/reference/store-layout.md.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from p2pcache.core.refs import RepoId, SnapshotId, is_commit, parse_commit
from p2pcache.core.selection import find_duplicates
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InputError
from p2pcache.store.disk import store_error, sync_directory, try_read, try_set_mode
from p2pcache.store.home import write_file_atomically
from p2pcache.store.repofolder import PathOf, RepoFolder, revision_link
from p2pcache.store.treefolders import TreeFolders

log = logging.getLogger(__name__)

# Snapshots whose files arrive at one time.
NOTED_MAX = 16

# What symlink(2) says of file systems that have none.
_NO_SYMLINK_ERRNOS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class _Noted:
    """A listing as it was written, and the file that it was written to."""

    snapshot: Snapshot
    duplicates: frozenset[str]
    apart: frozenset[str] = frozenset()
    stamp: tuple[int, int, int] | None = None


# Of a tree with a restricted repository in it: others get to what they can name, and see no names.
HIDING_MODE = 0o711


class HubTree:
    """The trees that clients' caches point at. Safe from several threads: they write in turns."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = TreeFolders(root)
        self._changed: set[Path] = set()
        self._lock = threading.Lock()
        self._has_no_links = False
        # What was published since the start: a leftover may be needed again by what came after.
        self._change_counts: Counter[RepoId] = Counter()
        self._modes: dict[RepoId, int] = {}
        # The listings written last: each file of a snapshot comes with the whole of it.
        self._noted: dict[Path, _Noted] = {}

    def repo_path(self, repo: RepoId) -> Path:
        """Return the folder of one repository."""
        return self.folders.path_of(repo)

    def snapshot_path(self, snapshot_id: SnapshotId) -> Path:
        """Return the folder that a loader opens."""
        return self.repo_path(snapshot_id.repo) / "snapshots" / snapshot_id.commit

    def open_repo(self, repo: RepoId, *, is_public: bool) -> None:
        """
        Make the folder of a repository; one that is not public is for the daemon's user alone.

        Raises:
            StoreError: The disk failed or is full.
        """
        path = self.repo_path(repo)
        with self._lock, _translating_errors(path):
            self._modes[repo] = 0o755 if is_public else 0o700
            if not is_public:
                path.parent.mkdir(parents=True, exist_ok=True)
                try_set_mode(path.parent, HIDING_MODE)
            self._begin_change(repo)
            path.mkdir(mode=self._modes[repo], parents=True, exist_ok=True)
            try_set_mode(path, self._modes[repo])

    def hide_repo(self, repo: RepoId) -> None:
        """
        Let nobody else look into the folder of a repository that is not public any more.

        Raises:
            StoreError: The disk failed.
        """
        path = self.repo_path(repo)
        with self._lock, _translating_errors(path):
            self._modes[repo] = 0o700
            if path.exists():
                try_set_mode(path.parent, HIDING_MODE)
                try_set_mode(path, 0o700)

    def _begin_change(self, repo: RepoId) -> None:
        """Count a change; make the folder again if it was empty, and went, since it was opened."""
        self._change_counts[repo] += 1
        path, mode = self.repo_path(repo), self._modes.get(repo)
        if mode is not None and not path.exists():
            path.mkdir(parents=True, mode=mode)
            try_set_mode(path, mode)

    def publish_tree(self, snapshot: Snapshot, linking: Iterable[FileEntry] = ()) -> None:
        """
        Write the listing that tells an offline client which files make the commit whole.

        The same weights in a second format are listed apart, as long as nobody asked for them: a
        client would take a snapshot without them for broken.

        Args:
            snapshot: All files of the commit.
            linking: Those that are about to be linked.

        Raises:
            StoreError: The disk failed or is full.
        """
        path = self.repo_path(snapshot.id.repo) / "trees" / f"{snapshot.id.commit}.json"
        with self._lock, _translating_errors(path):
            self._begin_change(snapshot.id.repo)
            folder, asked_for = self.snapshot_path(snapshot.id), {e.path for e in linking}
            noted = self._noted.get(path)
            if noted is None or noted.snapshot != snapshot:
                noted = _Noted(snapshot, find_duplicates(snapshot.files))
            apart = frozenset(
                spared
                for spared in noted.duplicates
                if spared not in asked_for and not os.path.lexists(folder / spared)
            )
            if noted.stamp is not None and (noted.apart, noted.stamp) == (apart, _stamp_of(path)):
                return
            files: dict[str, object] = {}
            left_out: dict[str, object] = {}
            for entry in snapshot.files:
                (left_out if entry.path in apart else files)[entry.path] = _tree_entry(entry)
            tree: dict[str, object] = {"format_version": 1, "files": files}
            tree |= {"left_out": left_out} if left_out else {}
            content = json.dumps(tree, indent=1).encode()
            # One that says something else is a client's note, or from before the hub was asked.
            if not (path.exists() and path.read_bytes() == content):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file_atomically(path, content)
                self._note_changed(path.parent)
            self._noted.pop(path, None)
            self._noted[path] = replace(noted, apart=apart, stamp=_stamp_of(path))
            if len(self._noted) > NOTED_MAX:
                del self._noted[next(iter(self._noted))]

    def publish_file(self, snapshot_id: SnapshotId, entry: FileEntry, blob_path: Path) -> None:
        """
        Link one complete, proven file: blobs/<etag>, then snapshots/<commit>/<path>.

        Raises:
            StoreError: The disk failed or is full.
        """
        with self._lock, _translating_errors(blob_path):
            self._begin_change(snapshot_id.repo)
            try:
                self._link_file(snapshot_id, entry, blob_path)
            except _NoLinksError:
                self._note_no_links()

    def _note_no_links(self) -> None:
        """Say once that there is no tree here; the gateway serves the files all the same."""
        if not self._has_no_links:
            self._has_no_links = True
            log.warning(
                "the file system of %s has no links: no program can read models from there; let "
                "it ask the daemon, with HF_ENDPOINT",
                self.root,
            )

    def _link_file(self, snapshot_id: SnapshotId, entry: FileEntry, blob_path: Path) -> None:
        repo = self.repo_path(snapshot_id.repo)
        blob_link = repo / "blobs" / entry.digest.hex
        blob_link.parent.mkdir(parents=True, exist_ok=True)
        if _replace_link(blob_link, blob_path):
            self._note_changed(blob_link.parent)
        link = self.snapshot_path(snapshot_id) / entry.path
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(blob_link, link.parent)
        if not (link.is_symlink() and os.readlink(link) == target):
            temporary = link.with_name(f".{os.getpid()}.link")
            temporary.unlink(missing_ok=True)
            _make_symlink(temporary, target)
            temporary.rename(link)
            self._note_changed(link.parent)

    def withdraw_file(self, snapshot_id: SnapshotId, entry: FileEntry, blob_path: Path) -> bool:
        """
        Take out a file that turned out damaged, durably, so that no offline worker reads it.

        Args:
            snapshot_id, entry: Where it belongs.
            blob_path: The damaged file: what else bears its name here, a program put here itself.

        Returns:
            Whether the snapshot had it.

        Raises:
            StoreError: The disk failed.
        """
        link = self.snapshot_path(snapshot_id) / entry.path
        blob_link = self.repo_path(snapshot_id.repo) / "blobs" / entry.digest.hex
        with self._lock, _translating_errors(link):
            names = [name for name in (link, blob_link) if _leads_to(name, blob_path)]
            for name in names:
                name.unlink()
                sync_directory(name.parent)
        return link in names

    def withdraw_snapshot(self, snapshot_id: SnapshotId, path_of: PathOf) -> None:
        """
        Take out a snapshot that is evicted, before its files go: refs that point to it, its
        listing, its links, the blob links that no other snapshot of the repository needs, and
        the folders that are empty then. Idempotent.

        Args:
            snapshot_id: Which; whether it was ever here does not matter.
            path_of: Where the store has a blob.

        Raises:
            StoreError: The disk failed.
        """
        with self.hold_still(snapshot_id.repo):
            RepoFolder(self.repo_path(snapshot_id.repo), path_of).withdraw(snapshot_id.commit)

    @contextlib.contextmanager
    def hold_still(self, repo: RepoId) -> Iterator[int]:
        """
        Keep everybody from changing a repository's folder; yields how often it was changed.

        Raises:
            StoreError: The disk failed inside the block.
        """
        with self._lock, _translating_errors(self.repo_path(repo)):
            yield self._change_counts[repo]

    def publish_ref(self, repo: RepoId, revision: str, commit: str) -> None:
        """
        Record what a branch or tag points to, for offline clients.

        Raises:
            StoreError: The disk failed or is full.
        """
        path = self.repo_path(repo) / "refs" / revision
        with self._lock, _translating_errors(path):
            self._begin_change(repo)
            if repo.hub == "ms":
                self._link_revision(repo, revision, commit)
            if _reads(path, commit):
                self._sync_changed()
                return
            # Git has never `a` and `a/b` at once: what is in the way is gone at the hub.
            for parent in path.parents[: revision.count("/")]:
                if parent.is_file():
                    parent.unlink()
            if path.is_dir():
                shutil.rmtree(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file_atomically(path, commit.encode())
            self._note_changed(path.parent)
            self._sync_changed()

    def _link_revision(self, repo: RepoId, revision: str, commit: str) -> None:
        """Let a revision's name lead to its snapshot, where a client looks for it by that name."""
        snapshots = self.repo_path(repo) / "snapshots"
        if is_commit(revision.partition("/")[0]) or not (snapshots / commit).is_dir():
            return
        link, target = snapshots / revision, revision_link(revision, commit)
        if any(path.is_symlink() for path in link.parents[: revision.count("/")]):
            # `a` is there, and `a/b` would be written into what it leads to.
            return
        try:
            if link.is_symlink() and os.readlink(link) == target:
                return
            if link.is_dir() and not link.is_symlink():
                return  # a client downloaded into it: those files are its own
            link.parent.mkdir(parents=True, exist_ok=True)
            temporary = link.with_name(f".{os.getpid()}.link")
            temporary.unlink(missing_ok=True)
            _make_symlink(temporary, target)
            temporary.rename(link)
        except _NoLinksError:
            self._note_no_links()
        except (FileExistsError, NotADirectoryError) as error:
            # `a` and `a/b` cannot both be names here; the snapshot is there by its commit.
            log.info("%s has no folder for revision %s: %s", repo, revision, error)
            return
        self._note_changed(link.parent)

    def _note_changed(self, *folders: Path) -> None:
        """Remember folders whose names are not durable yet, with those that they lie in."""
        roots = self.folders.roots
        for folder in folders:
            above = (folder, *folder.parents)
            inside = [f for f in above if any(f.is_relative_to(root) for root in roots)]
            self._changed.update(inside)

    def _sync_changed(self) -> None:
        """Make names durable: whoever was told that a model is here finds it after a power cut."""
        for folder in sorted(self._changed):
            with contextlib.suppress(FileNotFoundError):  # evicted since
                sync_directory(folder)
            self._changed.discard(folder)

    def iter_commits(self) -> Iterator[SnapshotId]:
        """
        Iterate over the commits of which there is a listing in the tree, for a rebuild.

        Raises:
            StoreError: The disk failed.
        """
        with _translating_errors(self.root):
            for repo in self.folders.iter_repos():
                for path in sorted((self.repo_path(repo) / "trees").glob("*.json")):
                    with contextlib.suppress(InputError):
                        yield SnapshotId(repo, parse_commit(path.stem))

    def read_tree(self, snapshot_id: SnapshotId) -> dict[str, object] | None:
        """
        Return the files of a listing, None when it is none of ours.

        Raises:
            StoreError: It cannot be read now; it may say what nobody else remembers.
        """
        path = self.repo_path(snapshot_id.repo) / "trees" / f"{snapshot_id.commit}.json"
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            tree = json.loads(try_read(path) or b"")
            files, left_out = tree["files"], tree.get("left_out", {})
            return {**files, **left_out} if isinstance(files, dict) else None
        return None

    def iter_refs(self, repo: RepoId) -> list[tuple[str, str]]:
        """
        Return (revision, commit) of every ref of a repository, for a rebuild.

        Raises:
            StoreError: One cannot be read now.
        """
        root = self.repo_path(repo) / "refs"
        with _translating_errors(root):
            paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
        found = []
        for path in paths:
            content = None if path.name.startswith(".") else try_read(path)
            if content is not None:
                with contextlib.suppress(UnicodeDecodeError):
                    found.append((str(path.relative_to(root)), content.decode().strip()))
        return found


@contextlib.contextmanager
def _translating_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise store_error(error, path) from error


def _leads_to(link: Path, blob_path: Path) -> bool:
    """Return whether a name is a file of the store, or led to one whose link went just now."""
    try:
        return link.samefile(blob_path)
    except OSError:
        return link.is_symlink() and not link.exists()


def _tree_entry(entry: FileEntry) -> dict[str, object]:
    is_lfs = entry.digest.algorithm == "sha256"
    return {
        "size": entry.size_bytes,
        "blob_id": entry.tree_oid,
        "lfs_sha256": entry.digest.hex if is_lfs else None,
        "lfs_size": entry.size_bytes if is_lfs else None,
        "xet_hash": None,
    }


class _NoLinksError(OSError):
    """A file system has neither hard nor symbolic links."""


def _make_symlink(link: Path, target: str) -> None:
    try:
        link.symlink_to(target)
    except OSError as error:
        if error.errno in _NO_SYMLINK_ERRNOS:
            raise _NoLinksError(*error.args) from error
        raise


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from one that another program put in its place."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _reads(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except (OSError, ValueError):
        return False


def _replace_link(link: Path, blob_path: Path) -> bool:
    """
    Make link the same file as blob_path: hard, or symbolic where hard links fail, and where the
    blob is itself a reference to somebody's file, of which another name would outlive it. Returns
    whether it was not that already.
    """
    with contextlib.suppress(OSError):
        if link.samefile(blob_path):
            return False
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    if blob_path.is_symlink() or not _try_link(blob_path, temporary):
        _make_symlink(temporary, os.path.relpath(blob_path, link.parent))
    temporary.rename(link)
    return True


def _try_link(blob_path: Path, link: Path) -> bool:
    try:
        link.hardlink_to(blob_path)
    except OSError:
        return False
    return True
