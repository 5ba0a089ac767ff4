"""
Owns the inside of one repository's folder in the hub tree, as far as taking things out goes.

Knows nothing of the index; it is told which commits are known, and where the store has a blob.
Invariants: what a program put here itself stays; a folder goes only when it is empty; whoever
calls holds the tree's lock.
Source: cache layouts of huggingface_hub and modelscope; docs/reference/store-layout.md (hub tree).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.refs import is_commit
from p2pcache.errors import InvalidDigestError
from p2pcache.store.disk import is_not_there, sync_directory

PathOf = Callable[[BlobDigest], Path]

# What hubtree.py and home.py call a file until it gets its name.
_TEMPORARY = re.compile(
    r"\.\d+\.link|\.(?:[0-9a-f]{40}|[0-9a-f]{64})\.\d+|\.\d+\.\d+\.new", re.ASCII
)
_WRITE_BITS = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def revision_link(revision: str, commit: str) -> str:
    """Return what `snapshots/<revision>` holds as a link to `snapshots/<commit>`."""
    return "../" * revision.count("/") + commit


class RepoFolder:
    """One `models--org--name`, or ModelScope's `models/org--name`."""

    def __init__(self, path: Path, path_of: PathOf) -> None:
        """
        Args:
            path: The folder; it may be missing.
            path_of: Where the store has a blob, or would have it.
        """
        self.path = path
        self._path_of = path_of

    def withdraw(self, commit: str) -> None:
        """
        Take out a commit: refs, links, listing, and the blob links that no other commit needs.

        A commit of which a program made links to files of its own keeps its refs and listing.
        """
        ours, has_foreign = self._list_links(commit)
        if not has_foreign:
            for path in [*self._find_refs(commit), *self._find_names(commit)]:
                path.unlink(missing_ok=True)
        for link, _ in ours:
            link.unlink(missing_ok=True)
        if not has_foreign:
            # Last: while there are links, it tells an offline client that some are missing.
            self._listing_of(commit).unlink(missing_ok=True)
        needed = self._find_needed()
        for digits in {digits for _, digits in ours} - needed:
            if self._is_ours(digits):
                (self.path / "blobs" / digits).unlink(missing_ok=True)
        # Before the caller removes the files: a name here must not outlive what it stands for.
        with contextlib.suppress(FileNotFoundError):
            sync_directory(self.path / "blobs")
        self.prune()

    def iter_leftovers(self, known: Container[str]) -> Iterator[tuple[Path, str]]:
        """
        Iterate over (file, why it is not needed): what a crash left, and what is of commits that
        are not known.
        """
        needed: set[str] = set()
        strangers = []
        for commit in self._list_commits():
            ours, has_foreign = self._list_links(commit)
            for link, digits in ours:
                if commit in known and self._leads_somewhere(digits):
                    needed.add(digits)
                elif commit in known:
                    yield link, "its file is gone"
                else:
                    yield link, "its snapshot is not here"
            if has_foreign:
                strangers.append(commit)
                needed |= self._list_foreign(commit)
        listings = [path for path in self._iter_files("trees") if path.suffix == ".json"]
        named = [*((path, path.stem) for path in listings), *self._iter_refs(), *self._iter_names()]
        for path, commit in named:
            if is_commit(commit) and commit not in known and commit not in strangers:
                yield path, "its snapshot is not here"
        for path in self._iter_files("blobs"):
            if path.name not in needed and self._is_ours(path.name):
                yield path, "no snapshot links to it"
        for name in ("blobs", "snapshots", "trees", "refs"):
            for path in self._iter_files(name):
                if _TEMPORARY.fullmatch(path.name):
                    yield path, "left by a crash"

    def prune(self) -> None:
        """Remove the folders of ours that are empty, and this one if nothing is left."""
        for name in ("snapshots", "trees", "refs", "blobs"):
            for folder, _, _ in os.walk(self.path / name, topdown=False):
                _try_rmdir(Path(folder))
        _try_rmdir(self.path)

    # --- what is here ---

    def _list_commits(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(self.path / "snapshots") if is_commit(name))
        return []

    def _listing_of(self, commit: str) -> Path:
        return self.path / "trees" / f"{commit}.json"

    def _list_links(self, commit: str) -> tuple[list[tuple[Path, str]], bool]:
        """Return (link, hex of its blob) of those that are ours, and whether there are others."""
        ours, has_foreign = [], False
        for path in self._iter_files(f"snapshots/{commit}"):
            digits = self._find_target(path)
            if digits is not None and self._is_ours_or_absent(digits):
                ours.append((path, digits))
            elif not _TEMPORARY.fullmatch(path.name):
                has_foreign = True
        return ours, has_foreign

    def _list_foreign(self, commit: str) -> set[str]:
        """Return the blobs that links of others lead to."""
        found = (self._find_target(path) for path in self._iter_files(f"snapshots/{commit}"))
        return {digits for digits in found if digits is not None}

    def _find_needed(self) -> set[str]:
        """Return the blobs that any snapshot's link leads to."""
        found = (self._find_target(path) for path in self._iter_files("snapshots"))
        return {digits for digits in found if digits is not None}

    def _find_target(self, path: Path) -> str | None:
        """Return the hex of the blob in this folder that a link leads to; None for others."""
        try:
            target = os.readlink(path)
        except OSError as error:
            if error.errno == errno.EINVAL or is_not_there(error):
                return None
            raise  # a link that is overlooked may be the one that needs a blob
        digits = os.path.basename(target)
        expected = os.path.relpath(self.path / "blobs" / digits, path.parent)
        return digits if _parse_etag(digits) is not None and target == expected else None

    def _iter_refs(self) -> Iterator[tuple[Path, str]]:
        for path in self._iter_files("refs"):
            with contextlib.suppress(OSError, ValueError):
                commit = path.read_text().strip()
                if is_commit(commit):
                    yield path, commit

    def _iter_names(self) -> Iterator[tuple[Path, str]]:
        """Iterate over (link, commit) of the revisions that lead to a snapshot by their name."""
        snapshots = self.path / "snapshots"
        for path in self._iter_files("snapshots"):
            with contextlib.suppress(OSError):
                target = os.readlink(path)
                commit = os.path.basename(target)
                name = str(path.relative_to(snapshots))
                if is_commit(commit) and target == revision_link(name, commit):
                    yield path, commit

    def _find_names(self, commit: str) -> list[Path]:
        return [path for path, target in self._iter_names() if target == commit]

    def _find_refs(self, commit: str) -> list[Path]:
        return [path for path, target in self._iter_refs() if target == commit]

    def _iter_files(self, name: str) -> Iterator[Path]:
        """
        Iterate over everything below a folder that is no folder, in a fixed order.

        Raises:
            OSError: A folder cannot be read now: what is in it may be needed.
        """
        for folder, folders, files in os.walk(self.path / name, onerror=_raise_failure):
            folders.sort()
            # A link to a folder is listed as a folder, and is not followed.
            links = [entry for entry in folders if os.path.islink(os.path.join(folder, entry))]
            for entry in sorted([*files, *links]):
                yield Path(folder, entry)

    # --- whose it is ---

    def _leads_somewhere(self, digits: str) -> bool:
        """Return whether a link to `blobs/<hex>` leads to a file of the store, or of a program."""
        blob = _parse_etag(digits)
        assert blob is not None, "only names of blobs are asked for"
        # A name that leads nowhere refers to a disk that may come back.
        return os.path.lexists(self._path_of(blob)) or not self._is_ours_or_absent(digits)

    def _is_ours_or_absent(self, digits: str) -> bool:
        return self._is_ours(digits) or not os.path.lexists(self.path / "blobs" / digits)

    def _is_ours(self, digits: str) -> bool:
        """
        Return whether `blobs/<hex>` is a link to the store's file, or was until that went.

        What programs download themselves is theirs to write, and has one name; what the store
        published nobody may write, and what it adopted has its owner's mode and name beside ours.
        """
        blob = _parse_etag(digits)
        link = self.path / "blobs" / digits
        if blob is None:
            return False
        try:
            status = link.lstat()
        except OSError:
            return False
        target = self._path_of(blob)
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(link) == os.path.relpath(target, link.parent)
        if not stat.S_ISREG(status.st_mode):
            return False
        with contextlib.suppress(OSError):
            if os.path.samestat(status, target.lstat()):
                return True
        return not status.st_mode & _WRITE_BITS or status.st_nlink > 1


def _parse_etag(digits: str) -> BlobDigest | None:
    try:
        return BlobDigest.from_etag(digits)
    except InvalidDigestError:
        return None


def _raise_failure(error: OSError) -> None:
    """Let a walk over folders end where the disk failed; a folder that is gone is none."""
    if not is_not_there(error):
        raise error


def _try_rmdir(path: Path) -> None:
    """Remove a folder if it is empty; anything else in it is somebody's."""
    with contextlib.suppress(OSError):
        path.rmdir()
