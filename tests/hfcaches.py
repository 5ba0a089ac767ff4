"""
Owns Hugging Face caches as clients make them, in a folder, without a client or a hub.

Knows nothing of p2pcache.
Invariants: names, links and modes are those of huggingface_hub 2.4 on Linux, unless a test asks
for another habit.
Source: huggingface_hub (file_download, _tree_cache, utils/_shared_blobs).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tests.hub import Commit, Repository

Style = Literal["links", "copies", "shared"]


class ForeignCache:
    """One cache; `root` is what HF_HUB_CACHE names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        (root / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
        (root / ".locks").mkdir(exist_ok=True)

    def folder_of(self, repository: Repository) -> Path:
        """Return the folder of a repository."""
        return self.root / "--".join([repository.kind, *repository.repo_id.split("/")])

    def add(
        self,
        repository: Repository,
        revision: str = "main",
        *,
        paths: Iterable[str] | None = None,
        style: Style = "links",
        keeps_list: bool = False,
    ) -> Path:
        """
        Download a commit, or some files of it; returns the snapshot's folder.

        Args:
            repository: Where from.
            revision: A branch, tag or commit.
            paths: The files that were asked for; None for all.
            style: `links` into blobs/; `copies` as where links cannot be made; `shared` with the
                LFS files in the cache's common store, read-only.
            keeps_list: Write trees/<commit>.json, as snapshot_download of new clients does.
        """
        commit = repository.get_commit(revision)
        folder = self.folder_of(repository)
        for path in commit.files if paths is None else paths:
            self._add_file(folder, commit, path, style)
        if revision != commit.sha:
            self._write(folder / "refs" / revision, commit.sha.encode())
        if keeps_list:
            self._write(folder / "trees" / f"{commit.sha}.json", make_listing(commit))
        return folder / "snapshots" / commit.sha

    def _add_file(self, folder: Path, commit: Commit, path: str, style: Style) -> None:
        file = commit.files[path]
        content = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        pointer = folder / "snapshots" / commit.sha / path
        pointer.parent.mkdir(parents=True, exist_ok=True)
        if style == "copies":
            self._write(pointer, content)
            return
        blob = folder / "blobs" / file.etag
        if style == "shared" and file.sha256 is not None:
            shared = self.root / "blobs" / file.xet_hash[:2] / file.xet_hash
            if not shared.exists():
                self._write(shared, content)
                shared.chmod(0o444)
            (self.root / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
            blob.parent.mkdir(parents=True, exist_ok=True)
            if not blob.is_symlink():
                blob.symlink_to(os.path.relpath(shared, blob.parent))
        elif not blob.exists():
            self._write(blob, content)
        if not pointer.is_symlink():
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)


def make_listing(commit: Commit) -> bytes:
    """Return what clients keep of a commit's file list."""
    files = {}
    for path, file in commit.files.items():
        files[path] = {"size": file.size_bytes, "blob_id": file.blob_id}
        if file.sha256 is not None:
            lfs = {"lfs_sha256": file.sha256, "lfs_size": file.size_bytes}
            files[path] |= {**lfs, "xet_hash": file.xet_hash}
    return json.dumps({"format_version": 1, "files": files}, indent=1).encode()


def measure_disk(*roots: Path) -> int:
    """Return the bytes that some folders take on disk, every inode once, as du counts."""
    seen: dict[tuple[int, int], int] = {}
    for root in roots:
        for folder, folders, files in os.walk(root):
            for name in [".", *folders, *files]:
                status = os.lstat(os.path.join(folder, name))
                seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())
