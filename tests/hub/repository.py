"""
Owns one repository: its commits, the refs that name them, and who may read it.

Knows nothing of HTTP or of other repositories.
Invariants: a commit never changes; its sha depends on nothing but the repository and its content.
Source: the hub's revision grammar (branch, tag, refs/pr/N, 40 hex digits).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from tests.hub.content import LFS_GLOBS, LFS_THRESHOLD_BYTES, HubFile, LfsPolicy

Kind = Literal["models", "datasets", "spaces"]
Source = bytes | Path | HubFile
KINDS: tuple[Kind, ...] = ("models", "datasets", "spaces")
FIRST_COMMIT = datetime(2024, 1, 1, tzinfo=UTC)
SHA_PATTERN = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Commit:
    """One immutable state of a repository's files."""

    sha: str
    title: str
    date: str
    files: Mapping[str, HubFile]
    parent: str | None


class Repository:
    """
    A model, dataset or space; `files` become the first commit of `main`.

    Attributes:
        gated: Metadata is open, files are only for `tokens`.
        former_ids: Ids that redirect here.
        oid: Inner identifier that storage paths use; stays when the repository is renamed.
    """

    def __init__(
        self,
        repo_id: str,
        files: Mapping[str, Source] | None = None,
        *,
        kind: Kind = "models",
        lfs_threshold_bytes: int = LFS_THRESHOLD_BYTES,
        lfs_globs: tuple[str, ...] = LFS_GLOBS,
        private: bool = False,
        gated: Literal[False, "auto", "manual"] = False,
        tokens: Iterable[str] = (),
        former_ids: Iterable[str] = (),
    ) -> None:
        self.repo_id = repo_id
        self.kind = kind
        self.private = private
        self.gated = gated
        self.tokens = frozenset(tokens)
        self.former_ids = tuple(former_ids)
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.oid = hashlib.sha256(self.prefix.encode()).hexdigest()[:24]
        self._policy = LfsPolicy(lfs_threshold_bytes, lfs_globs)
        if files is not None:
            self.add_commit(files)

    @property
    def prefix(self) -> str:
        """Return how the repository's pages and files are addressed: `org/name`, `datasets/…`."""
        return self.repo_id if self.kind == "models" else f"{self.kind}/{self.repo_id}"

    def is_readable(self, token: str | None) -> bool:
        """Return whether the token (None for anonymous) may read the files."""
        return not (self.private or self.gated) or token in self.tokens

    def add_commit(
        self,
        files: Mapping[str, Source],
        *,
        branch: str = "main",
        base: str | None = None,
        remove: Iterable[str] = (),
        title: str = "Upload files",
    ) -> Commit:
        """
        Put files on top of a branch's commit and move the branch.

        Args:
            branch: Branch name, or a full ref as `refs/pr/1`; made if absent.
            base: Revision that a new branch starts from; nothing if None.
        """
        parent = self.find_commit(branch) or (self.find_commit(base) if base else None)
        removed = frozenset(remove)
        kept = {} if parent is None else parent.files
        merged = {path: file for path, file in kept.items() if path not in removed}
        for path, source in files.items():
            if not isinstance(source, HubFile):
                source = HubFile.from_source(path, source, self._policy)
            merged[path] = source
        names = "\n".join(f"{path} {file.etag}" for path, file in sorted(merged.items()))
        parent_sha = parent.sha if parent else None
        text = f"{self.prefix}\n{parent_sha}\n{title}\n{names}"
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        date = FIRST_COMMIT + timedelta(minutes=len(self.commits))
        when = date.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        commit = Commit(sha, title, when, dict(sorted(merged.items())), parent_sha)
        self.commits.setdefault(sha, commit)
        self.set_ref(branch, sha)
        return self.commits[sha]

    def set_ref(self, name: str, sha: str) -> None:
        """Move a branch, or a full ref (`refs/tags/v1`, `refs/pr/1`), to a known commit."""
        if sha not in self.commits:
            raise ValueError(f"{self.prefix} has no commit {sha}; add it first")
        self.refs[full_ref(name)] = sha

    def add_tag(self, name: str, revision: str = "main") -> None:
        """Name a revision's commit by a tag."""
        self.set_ref(f"refs/tags/{name}", self.get_commit(revision).sha)

    def get_commit(self, revision: str) -> Commit:
        """Return the commit of a revision; KeyError if there is none."""
        commit = self.find_commit(revision)
        if commit is None:
            raise KeyError(revision)
        return commit

    def find_commit(self, revision: str) -> Commit | None:
        """Resolve a branch, tag, full ref or 40-hex sha."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        return self.commits.get(revision)


def full_ref(name: str) -> str:
    """Return `refs/heads/<name>` unless the name is already a full ref."""
    return name if name.startswith("refs/") else f"refs/heads/{name}"
