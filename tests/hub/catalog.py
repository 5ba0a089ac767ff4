"""
Owns the set of repositories and of known tokens, and the reading of a directory as repositories.

Knows nothing of HTTP.
Invariants: one repository per (kind, id); a former id leads to exactly one repository.
Source: the directory layout described in `python -m tests.hub --help`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.hub.content import LFS_THRESHOLD_BYTES
from tests.hub.repository import Kind, Repository


class Catalog:
    """What the hub offers and whom it knows."""

    def __init__(self, repositories: Iterable[Repository], tokens: Iterable[str]) -> None:
        self._repositories: dict[tuple[Kind, str], Repository] = {}
        self._moved: dict[tuple[Kind, str], str] = {}
        self._tokens = set(tokens)
        for repository in repositories:
            self.add(repository)

    def __iter__(self) -> Iterator[Repository]:
        """Iterate over the repositories."""
        return iter(self._repositories.values())

    def add(self, repository: Repository) -> None:
        """Offer a repository; its tokens become known, its former ids lead to it."""
        self._repositories[repository.kind, repository.repo_id] = repository
        self._tokens |= repository.tokens
        for former in repository.former_ids:
            self._moved[repository.kind, former] = repository.repo_id

    def rename(self, kind: Kind, old_id: str, new_id: str) -> None:
        """Give a repository another id; the old one leads to it from now on."""
        repository = self._repositories.pop((kind, old_id))
        repository.repo_id = new_id
        self._repositories[kind, new_id] = repository
        self._moved[kind, old_id] = new_id

    def remove(self, kind: Kind, repo_id: str) -> None:
        """Forget a repository; KeyError if there is none."""
        del self._repositories[kind, repo_id]

    def set_tokens(self, tokens: Iterable[str]) -> None:
        """Know these tokens and no others."""
        self._tokens = set(tokens)

    def find(self, kind: Kind, repo_id: str) -> Repository | None:
        """Return the repository of that id."""
        return self._repositories.get((kind, repo_id))

    def find_moved(self, kind: Kind, repo_id: str) -> str | None:
        """Return the id that a former id leads to."""
        return self._moved.get((kind, repo_id))

    def is_known_token(self, token: str) -> bool:
        """Return whether the token belongs to somebody."""
        return token in self._tokens


def load_directory(
    root: Path,
    *,
    private: Iterable[str] = (),
    gated: Iterable[str] = (),
    tokens: Iterable[str] = (),
    lfs_threshold_bytes: int = LFS_THRESHOLD_BYTES,
) -> list[Repository]:
    """
    Read DIR/org/name/** as models and DIR/{datasets,spaces}/org/name/** as the other kinds.

    Args:
        private: Ids that only `tokens` may see.
        gated: Ids whose files only `tokens` may read.
    """
    private_ids, gated_ids, allowed = frozenset(private), frozenset(gated), tuple(tokens)
    repositories = []
    for kind, base in _iter_bases(root):
        for folder in sorted(path for path in base.glob("*/*") if path.is_dir()):
            if kind == "models" and folder.parent.name in ("datasets", "spaces"):
                continue
            repo_id = f"{folder.parent.name}/{folder.name}"
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            repositories.append(
                Repository(
                    repo_id,
                    {path.relative_to(folder).as_posix(): path for path in paths},
                    kind=kind,
                    lfs_threshold_bytes=lfs_threshold_bytes,
                    private=repo_id in private_ids,
                    gated="auto" if repo_id in gated_ids else False,
                    tokens=allowed,
                )
            )
    return repositories


def _iter_bases(root: Path) -> Iterator[tuple[Kind, Path]]:
    """Yield where each kind of repository lives under the root."""
    yield "models", root
    yield "datasets", root / "datasets"
    yield "spaces", root / "spaces"
