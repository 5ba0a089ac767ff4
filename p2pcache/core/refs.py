"""
Owns the names of things on hubs: model references, repositories, revisions, paths.

Knows nothing of hubs' URLs or of directories; what passes here is safe to use in both.
Invariants: no parsed name has a traversal, a control character, or an empty component.
Source: git-check-ref-format(1); repository rules of the Hugging Face hub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from p2pcache.errors import InvalidNameError

RepoKind = Literal["models", "datasets", "spaces"]
REPO_KINDS: tuple[RepoKind, ...] = ("models", "datasets", "spaces")
HUBS = ("hf", "ms")
# The branch that a hub's repositories start with, and its clients mean when they name none.
DEFAULT_REVISIONS = {"hf": "main", "ms": "master"}

# The longest a file system takes for one component; paths as long as PATH_MAX on Linux.
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 4096
REVISION_BYTES_MAX = 255

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_REVISION_BAD = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]")
# A component that is empty, or leads to where it is or up.
_STEP = re.compile(r"(?:^|/)\.{0,2}(?=/|\Z)")
# So few letters are no longer than NAME_BYTES_MAX in UTF-8, whatever they are.
_SHORT_CHARS_MAX = NAME_BYTES_MAX // 4
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


def is_commit(revision: str) -> bool:
    """Return True for 40 lower-case hex digits: an immutable id, not a name that may move."""
    return _COMMIT.fullmatch(revision) is not None


def parse_commit(text: str) -> str:
    """
    Return the text if it is a commit.

    Raises:
        InvalidNameError: It is anything but 40 lower-case hex digits.
    """
    if not is_commit(text):
        raise InvalidNameError(f"{text[:80]!r} is not a commit; it has 40 lower-case hex digits.")
    return text


def parse_revision(text: str) -> str:
    """
    Return the text if git could have a branch, tag or commit of that name.

    Raises:
        InvalidNameError: It could not.
    """
    bad = (
        not text
        or len(text.encode("utf-8", "surrogatepass")) > REVISION_BYTES_MAX
        or _REVISION_BAD.search(text)
        or _CONTROL.search(text)
        or ".." in text
        or "//" in text
        or "@{" in text
        or text.startswith(("-", "/", "."))
        or text.endswith(("/", ".", ".lock"))
        or any(part.startswith(".") for part in text.split("/"))
    )
    if bad:
        raise InvalidNameError(
            f"{text[:80]!r} is not a revision; name a branch, a tag or a 40-digit commit."
        )
    return text


def _measure(name: str) -> int:
    return len(name) if name.isascii() else len(name.encode())


def parse_path(text: str) -> str:
    """
    Return the text if it is a relative path inside a repository.

    Raises:
        InvalidNameError: Traversal, absolute, empty or over-long components, control characters.
    """
    # A listing may have 100,000 of them, and a hostile one hundreds of folders in each.
    bad = (
        not text
        or "\\" in text
        or _CONTROL.search(text) is not None
        or len(text.encode("utf-8", "surrogatepass")) > PATH_BYTES_MAX
        or _STEP.search(text) is not None
        or (len(text) > _SHORT_CHARS_MAX and max(map(_measure, text.split("/"))) > NAME_BYTES_MAX)
    )
    if bad:
        raise InvalidNameError(
            f"{text[:80]!r} is not a path inside a repository; write it relative, without '..'."
        )
    return text


@dataclass(frozen=True, slots=True, order=True)
class RepoId:
    """One repository on one hub; `name` is `org/name`, or `name` alone for legacy ones."""

    hub: str
    kind: RepoKind
    name: str

    def __post_init__(self) -> None:
        if self.hub not in HUBS:
            raise InvalidNameError(
                f"{self.hub[:40]!r} is not a hub that this release speaks; use hf:org/name or "
                "ms:org/name."
            )
        parts = self.name.split("/")
        good = (
            self.kind in REPO_KINDS
            and len(parts) in (1, 2)
            # ModelScope has no spaces, and every repository of it has an owner.
            and (self.hub != "ms" or (self.kind != "spaces" and len(parts) == 2))
            and all(_NAME.fullmatch(p) and ".." not in p and "--" not in p for p in parts)
        )
        if not good:
            raise InvalidNameError(
                f"{self.name[:120]!r} is not a repository name; write org/name, "
                "for example sentence-transformers/all-MiniLM-L6-v2."
            )

    @classmethod
    def of(cls, hub: str, kind: str, name: str) -> RepoId:
        """
        Build one from untyped parts, as they come from a URL or a message.

        Raises:
            InvalidNameError: Unknown hub or kind, or a name that no repository has.
        """
        if kind not in REPO_KINDS:
            raise InvalidNameError(f"{kind[:40]!r} is not a kind of repository; use models.")
        return cls(hub, kind, name)

    def __str__(self) -> str:
        prefix = "" if self.kind == "models" else f"{self.kind}/"
        hub = "" if self.hub == "hf" else f"{self.hub}:"
        return f"{hub}{prefix}{self.name}"


@dataclass(frozen=True, slots=True)
class SnapshotId:
    """A repository at one commit."""

    repo: RepoId
    commit: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """What a caller typed: a repository and a revision; without one, the hub's first branch."""

    repo: RepoId
    revision: str = ""

    def __post_init__(self) -> None:
        if not self.revision:
            object.__setattr__(self, "revision", DEFAULT_REVISIONS[self.repo.hub])

    @classmethod
    def parse(cls, text: str, *, revision: str | None = None) -> ModelReference:
        """
        Read `[hub:][datasets/|spaces/]org/name[@revision]`.

        Args:
            text: What the caller typed.
            revision: Given beside the text; must agree with one inside it.

        Raises:
            InvalidNameError: Not such a reference.
        """
        base, at, inside = text.partition("@")
        if at and revision is not None and inside != revision:
            raise InvalidNameError(
                f"{text[:120]!r} names one revision and {revision[:80]!r} was given beside it; "
                "give one."
            )
        hub, colon, rest = base.partition(":")
        if not colon:
            hub, rest = "hf", base
        elif hub not in HUBS:
            raise InvalidNameError(
                f"{hub[:40]!r} is not a hub that this release speaks; use hf:org/name or "
                "ms:org/name."
            )
        kind: RepoKind = "models"
        first, slash, after = rest.partition("/")
        if slash and first in REPO_KINDS:
            kind, rest = first, after
        wanted = inside if at else revision
        repo = RepoId(hub, kind, rest)
        return cls(repo) if wanted is None else cls(repo, parse_revision(wanted))

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"
