"""
Owns where the folder of a repository is: one tree for the clients of each hub.

Knows nothing of what is inside such a folder.
Invariants: two repositories never share a folder; a folder that a client made itself, and that no
repository could have, is nobody's.
Source: cache layouts of huggingface_hub and of modelscope; docs/decisions/0018-modelscope.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from p2pcache.core.refs import REPO_KINDS, RepoId
from p2pcache.errors import InputError

MODELSCOPE_NAME = "modelscope"


class TreeFolders:
    """The folders of all repositories."""

    def __init__(self, root: Path) -> None:
        """
        Args:
            root: Of the Hugging Face tree; that of ModelScope is beside it.
        """
        self.root = root
        self.modelscope_root = root.with_name(MODELSCOPE_NAME)

    @property
    def roots(self) -> tuple[Path, Path]:
        """Return the root of every tree."""
        return self.root, self.modelscope_root

    def path_of(self, repo: RepoId) -> Path:
        """Return the folder of a repository: `hub/models--org--name`, `modelscope/models/…`."""
        name = repo.name.replace("/", "--")
        if repo.hub == "ms":
            return self.modelscope_root / repo.kind / name
        return self.root / f"{repo.kind}--{name}"

    def find_repo(self, path: Path) -> RepoId | None:
        """Return the repository in whose folder a path is, None when it is in none."""
        if path.is_relative_to(self.root):
            first, *_ = path.relative_to(self.root).parts or ("",)
            kind, _, name = first.partition("--")
            return self._parse("hf", kind, name)
        if path.is_relative_to(self.modelscope_root):
            parts = path.relative_to(self.modelscope_root).parts
            return self._parse("ms", *parts[:2]) if len(parts) >= 2 else None
        return None

    def iter_repos(self) -> Iterator[RepoId]:
        """
        Iterate over the repositories that have a folder, in a fixed order.

        Raises:
            OSError: A folder cannot be read now.
        """
        candidates = sorted(self.root.glob("*--*"))
        for kind in REPO_KINDS:
            candidates += sorted((self.modelscope_root / kind).glob("*"))
        for path in candidates:
            repo = self.find_repo(path)
            if repo is not None and self.path_of(repo) == path:
                yield repo

    @staticmethod
    def _parse(hub: str, kind: str, name: str) -> RepoId | None:
        try:
            return RepoId.of(hub, kind, name.replace("--", "/"))
        except InputError:
            return None
