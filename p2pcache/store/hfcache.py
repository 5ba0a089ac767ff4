"""
Owns reading a Hugging Face cache that somebody else made: what it holds, by the names it uses.

Knows nothing of what is done with it, and changes nothing in it.
Invariants: no name of the cache is used before it was parsed; links are followed to a regular file
or not at all, folders inside a snapshot never by a link; what cannot be read is named with the
reason, and the rest is read all the same.
Source: huggingface_hub 0.20 to 2.4 (file_download, _tree_cache, utils/_shared_blobs).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import BLOB_SIZE_BYTES_MAX
from p2pcache.core.lfs import ATTRIBUTES_BYTES_MAX, DEFAULT_PATTERNS, parse_attributes
from p2pcache.core.messages import get_text, get_whole
from p2pcache.core.refs import RepoId, SnapshotId, parse_commit, parse_path, parse_revision
from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InputError

# Ten times the largest cache that was seen; a folder that is no cache must end somewhere too.
NAMES_MAX = 1_000_000
# What a client writes for the most files that a repository may have.
LISTING_BYTES_MAX = 64 * 1024 * 1024
# A commit and a line feed; more is no ref.
_REF_BYTES_MAX = 64
_LISTING_FORMAT = 1
# What clients leave beside blobs while they work, or after they were killed.
_UNFINISHED_SUFFIXES = (".incomplete", ".lock", ".tmp", ".shared")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a file is still the one that was looked at."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """Read it from stat(2)."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """
    A regular file of a cache. `shown` is where it is in the cache, for people; `path` where it
    really is, without a link; `name` what the cache says its content is, None when it does not.
    """

    shown: str
    path: Path
    identity: FileIdentity
    name: BlobDigest | None


@dataclass(frozen=True, slots=True)
class FoundRef:
    """A branch or tag of a cache, and when the cache learned of its commit."""

    revision: str
    commit: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class FoundSnapshot:
    """One commit's folder: its files by path, the list that the client kept, LFS patterns."""

    id: SnapshotId
    files: dict[str, FoundFile]
    listing: Snapshot | None
    patterns: tuple[str, ...]


@dataclass(slots=True)
class FoundCache:
    """All that was read. `blobs` holds every finished file that a cache's name says to be one."""

    snapshots: list[FoundSnapshot] = field(default_factory=list)
    refs: dict[RepoId, list[FoundRef]] = field(default_factory=dict)
    blobs: dict[BlobDigest, list[FoundFile]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    names_seen: int = 0


class _TooManyError(Exception):
    """The folder has more names than any cache."""


def read_cache(folder: Path, own: Path) -> FoundCache:
    """
    Read a cache: its root, a folder that has it as `hub`, or one repository's folder.

    Args:
        folder: Where it is, an absolute path.
        own: Our store, of which nothing is taken for somebody else's.

    Raises:
        InputError: The folder cannot be read, or is our own.
    """
    found = FoundCache()
    root = check_folder(folder, own)
    try:
        for path in _list_repos(root, folder):
            try:
                _Repo(path, own, found).read()
            except OSError as error:
                found.skipped[show_path(path, path.parent)] = _explain(error)
            except InputError as error:
                found.skipped[show_path(path, path.parent)] = str(error)
    except _TooManyError:
        found.skipped[str(root)] = f"it has more than {NAMES_MAX:,} names; the rest was not read"
    return found


def check_folder(folder: Path, own: Path) -> Path:
    """
    Return the folder that has repositories in it, links resolved.

    Raises:
        InputError: It cannot be read, or is our own.
    """
    try:
        if not folder.is_absolute():
            raise InputError(
                f"{folder} is not an absolute path; the daemon has a folder of its own."
            )
        root = folder.resolve(strict=True)
        os.listdir(root)
        if _is_inside(root, own.resolve()):
            raise InputError(
                f"{folder} is in p2pcache's own store; name the cache of other programs."
            )
        has_hub = not _is_repo_name(folder.name) and not any(map(_is_repo_name, os.listdir(root)))
        if has_hub and (root / "hub").is_dir():
            return check_folder(root / "hub", own)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        reason = _explain(error) if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{folder} cannot be read by the daemon ({reason}); name the folder of a Hugging Face "
            "cache that the daemon's user may read."
        ) from error
    return root


def check_cache(folder: Path, own: Path) -> Path:
    """
    Return the folder that has repositories in it, as check_folder(); insist that there are some.

    Raises:
        InputError: There are none, or as check_folder().
    """
    root = check_folder(folder, own)
    if not _list_repos(root, folder):
        raise InputError(
            f"No models--* folders were found in {root}; name the folder of a Hugging Face cache, "
            "such as ~/.cache/huggingface, or wait for its first download there with --watch."
        )
    return root


def show_path(path: Path, root: Path) -> str:
    """Return where something is in a cache, as text that every terminal and JSON can take."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "replace")


def _list_repos(root: Path, folder: Path) -> list[Path]:
    # A link may have another name than what it leads to: either may be the repository's.
    if _is_repo_name(folder.name):
        return [folder] if folder.parent != folder else []
    if _is_repo_name(root.name):
        return [root]
    return [root / name for name in sorted(os.listdir(root)) if _is_repo_name(name)]


def _is_repo_name(name: str) -> bool:
    return name.startswith(("models--", "datasets--", "spaces--"))


def _is_inside(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _explain(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


class _Repo:
    """One repository's folder, while it is read."""

    def __init__(self, path: Path, own: Path, found: FoundCache) -> None:
        self._path = path
        self._root = path.parent
        self._own = own.resolve()
        self._found = found
        kind, *parts = path.name.split("--")
        self._repo = RepoId.of("hf", kind, "/".join(parts))

    def read(self) -> None:
        """
        Read refs, blobs and snapshots.

        Raises:
            OSError: The folder cannot be read.
            InputError: It is our own.
        """
        if _is_inside(self._path.resolve(strict=True), self._own):
            raise InputError("it is in p2pcache's own store")
        os.listdir(self._path)
        self._read_refs()
        self._read_blobs()
        for entry in self._scan(self._path / "snapshots"):
            self._read_snapshot(Path(entry.path))

    def _skip(self, path: Path, reason: str) -> None:
        self._found.skipped[show_path(path, self._root)] = reason

    def _scan(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        """Iterate over a folder by name; one that is not there is empty."""
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        except OSError as error:
            self._skip(folder, _explain(error))
            return
        self._found.names_seen += len(listed)
        if self._found.names_seen > NAMES_MAX:
            raise _TooManyError
        yield from listed

    def _walk(self, folder: Path, inside: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Iterate over (path inside, entry) of everything below that is no folder."""
        for entry in self._scan(folder):
            path = f"{inside}{entry.name}"
            try:
                parse_path(path)
            except InputError:
                self._skip(Path(entry.path), "no repository can have a file of that name")
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), f"{path}/")
            else:
                yield path, entry

    def _read_refs(self) -> None:
        refs = self._found.refs.setdefault(self._repo, [])
        for name, entry in self._walk(self._path / "refs"):
            try:
                revision = parse_revision(name)
                with open(entry.path, "rb", opener=_open_quickly) as file:
                    commit = parse_commit(
                        file.read(_REF_BYTES_MAX).decode("ascii", "replace").strip()
                    )
                    refs.append(FoundRef(revision, commit, os.fstat(file.fileno()).st_mtime))
            except OSError as error:
                self._skip(Path(entry.path), _explain(error))
            except InputError:
                self._skip(Path(entry.path), "it names no commit")

    def _read_blobs(self) -> None:
        for entry in self._scan(self._path / "blobs"):
            if entry.name.endswith(_UNFINISHED_SUFFIXES):
                continue
            try:
                name = BlobDigest.from_etag(entry.name)
            except InputError:
                continue  # whatever it is, no snapshot of the hub's names it so
            found = self._find_file(Path(entry.path), name)
            if found is not None:
                self._found.blobs.setdefault(name, []).append(found)

    def _read_snapshot(self, folder: Path) -> None:
        try:
            snapshot_id = SnapshotId(self._repo, parse_commit(folder.name))
        except InputError:
            self._skip(folder, "its name is no commit")
            return
        files = {}
        for path, entry in self._walk(folder):
            name = _read_name(Path(entry.path)) if entry.is_symlink() else None
            found = self._find_file(Path(entry.path), name)
            if found is not None:
                files[path] = found
        listing = self._read_listing(snapshot_id)
        patterns = _read_patterns(files.get(".gitattributes"))
        self._found.snapshots.append(FoundSnapshot(snapshot_id, files, listing, patterns))

    def _find_file(self, path: Path, name: BlobDigest | None) -> FoundFile | None:
        """Follow a name to the regular file that it means; None, with the reason noted, if none."""
        try:
            real = Path(os.path.realpath(path, strict=True))
            status = real.lstat()
        except FileNotFoundError:
            self._skip(path, "it is a link to something that is gone")
            return None
        except OSError as error:
            self._skip(path, _explain(error))
            return None
        if not stat.S_ISREG(status.st_mode):
            self._skip(path, "it is no regular file")
        elif _is_inside(real, self._own):
            self._skip(path, "it is in p2pcache's own store")
        elif name is None and not self._is_of_cache(real):
            # No digest stands against it: it may be any file that the daemon's user can read.
            self._skip(path, "it leads out of the cache, and its name does not say what it holds")
        elif status.st_size > BLOB_SIZE_BYTES_MAX:
            self._skip(path, "it is larger than any file that can be stored")
        else:
            return FoundFile(show_path(path, self._root), real, FileIdentity.of(status), name)
        return None

    def _is_of_cache(self, real: Path) -> bool:
        """Return whether a resolved path lies in the repository's folder, wherever that is."""
        return _is_inside(real, Path(os.path.realpath(self._path)))

    def _read_listing(self, snapshot_id: SnapshotId) -> Snapshot | None:
        path = self._path / "trees" / f"{snapshot_id.commit}.json"
        try:
            with open(path, "rb", opener=_open_quickly) as file:
                raw = file.read(LISTING_BYTES_MAX + 1)
            if len(raw) > LISTING_BYTES_MAX:
                raise InputError("too long")
            return parse_listing(snapshot_id, json.loads(raw))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._skip(path, _explain(error))
        except (ValueError, RecursionError, InputError):
            self._skip(path, "it is no file list of a known form; it was not used")
        return None


def parse_listing(snapshot_id: SnapshotId, message: object) -> Snapshot:
    """
    Read the file list that clients keep as trees/<commit>.json.

    Raises:
        InputError: It is none, or one of another form.
    """
    files = message.get("files") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(files, dict):
        raise InputError("A file list is an object with files.")
    if message.get("format_version") != _LISTING_FORMAT:
        raise InputError("A file list of another form.")
    return Snapshot.of(snapshot_id, [_parse_entry(path, entry) for path, entry in files.items()])


def _parse_entry(path: str, entry: object) -> FileEntry:
    tree_oid = parse_commit(get_text(entry, "blob_id"))
    if not isinstance(entry, dict) or entry.get("lfs_sha256") is None:
        size_bytes = get_whole(entry, "size", maximum=BLOB_SIZE_BYTES_MAX)
        return FileEntry(path, size_bytes, BlobDigest("gitsha1", tree_oid), tree_oid)
    digest = BlobDigest("sha256", get_text(entry, "lfs_sha256"))
    size_key = "size" if entry.get("lfs_size") is None else "lfs_size"
    return FileEntry(
        path, get_whole(entry, size_key, maximum=BLOB_SIZE_BYTES_MAX), digest, tree_oid
    )


def _read_name(link: Path) -> BlobDigest | None:
    """Return what a link of a snapshot says of its content: …/blobs/<etag>."""
    try:
        target = Path(os.readlink(link))
        return BlobDigest.from_etag(target.name) if target.parent.name == "blobs" else None
    except (OSError, InputError):
        return None


def _read_patterns(found: FoundFile | None) -> tuple[str, ...]:
    """Return which files the repository itself gives to git-lfs, else the hub's default."""
    if found is None or found.identity.size_bytes > ATTRIBUTES_BYTES_MAX:
        return DEFAULT_PATTERNS
    try:
        with open(found.path, "rb", opener=_open_quickly) as file:
            text = file.read(ATTRIBUTES_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return DEFAULT_PATTERNS
    return tuple(parse_attributes(text))


def _open_quickly(path: str, flags: int) -> int:
    """Open for reading; a FIFO or a device of that name does not hold us up."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is no regular file")
    return fd
