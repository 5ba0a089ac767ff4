"""
Owns what a repository holds at one commit: paths, sizes, upstream digests.

Knows nothing of what is here and what is missing.
Invariants: paths are valid and distinct; no path is both a file and a folder.
Source: reference of the hub's tree listing, docs/reference/store-layout.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.refs import SnapshotId, parse_path
from p2pcache.errors import EntryNotFoundError, InputError

# Hubs advise at most 100,000 files in one repository; bounds memory for one listing.
FILES_PER_SNAPSHOT_MAX = 100_000


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file. `tree_oid` is git's id of the tree entry: for LFS files that of the pointer."""

    path: str
    size_bytes: int
    digest: BlobDigest
    tree_oid: str

    @property
    def layout(self) -> Layout:
        """Return the chunk boundaries."""
        return Layout(self.size_bytes)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one repository at one commit, in path order."""

    id: SnapshotId
    files: tuple[FileEntry, ...]

    @classmethod
    def of(cls, snapshot_id: SnapshotId, files: Iterable[FileEntry]) -> Snapshot:
        """
        Check a listing and put it in order.

        Raises:
            InputError: Duplicate paths, a path that is also a folder, too many files, or one
                digest with two sizes.
            InvalidNameError: A path that leaves the repository.
        """
        entries = sorted(files, key=lambda entry: entry.path)
        if len(entries) > FILES_PER_SNAPSHOT_MAX:
            raise InputError(f"{snapshot_id} lists more than {FILES_PER_SNAPSHOT_MAX} files.")
        sizes: dict[BlobDigest, int] = {}
        paths = {parse_path(entry.path) for entry in entries}
        if len(paths) != len(entries):
            raise InputError(f"{snapshot_id} lists a path twice; the hub's answer was refused.")
        # With the lowest letter for the slash, what lies below a path comes right after it: one
        # look at each, however deep a hostile listing goes.
        by_folder = sorted(path.replace("/", "\0") for path in paths)
        for above, below in pairwise(by_folder):
            if below.startswith(f"{above}\0"):
                path = below.replace("\0", "/")
                raise InputError(f"{snapshot_id} lists {path!r} below a file; refused.")
        for entry in entries:
            if sizes.setdefault(entry.digest, entry.size_bytes) != entry.size_bytes:
                raise InputError(f"{snapshot_id} gives {entry.digest} two sizes; refused.")
            Layout(entry.size_bytes)
        return cls(snapshot_id, tuple(entries))

    def get_file(self, path: str) -> FileEntry:
        """
        Return the entry of a path.

        Raises:
            EntryNotFoundError: The commit has no such file.
        """
        for entry in self.files:
            if entry.path == path:
                return entry
        raise EntryNotFoundError(
            f"{self.id.repo} has no file {path!r} at {self.id.commit}; "
            "look at the file list of the repository.",
            commit=self.id.commit,
        )

    def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[FileEntry]:
        """
        Return the files that match any include pattern (all when none) and no exclude pattern.

        Patterns are shell globs over the whole path, `*` crossing `/`, as the usual client's.
        """
        chosen = [
            entry
            for entry in self.files
            if (not include or any(_matches(entry.path, p) for p in include))
            and not any(_matches(entry.path, p) for p in exclude)
        ]
        return chosen


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)


# Endings of files that hold weights or rows; what a loader has to know of them is at their head.
_BULK_ENDINGS = (
    ".safetensors", ".gguf", ".ggml", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".onnx_data", ".h5",
    ".msgpack", ".npz", ".npy", ".tflite", ".mlmodel", ".pb", ".nemo", ".tar", ".gz", ".zip",
    ".zst", ".parquet", ".arrow",
)  # fmt: skip
# Whatever ends otherwise and is no longer than this is read before weights: configurations,
# tokenizers, indexes of weights, templates, licences. The largest tokenizers have some 30 MB.
_METADATA_BYTES_MAX = 64 * 1024 * 1024


def rank_for_fetching(entry: FileEntry) -> int:
    """Return 0 for what a loader reads first, 1 for other files, 2 for weights."""
    name = entry.path.lower()
    if name.endswith(_BULK_ENDINGS):
        return 2
    if entry.size_bytes > _METADATA_BYTES_MAX:
        return 1
    return 0


def order_for_fetching(files: Iterable[FileEntry]) -> list[FileEntry]:
    """Return each blob once, configuration, tokenizer and indexes before weights, small first."""
    ordered = sorted(
        files, key=lambda entry: (rank_for_fetching(entry), entry.size_bytes, entry.path)
    )
    distinct: dict[BlobDigest, FileEntry] = {}
    for entry in ordered:
        distinct.setdefault(entry.digest, entry)
    return list(distinct.values())
