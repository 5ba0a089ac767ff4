"""
Owns the URL grammar of the Hugging Face dialect.

Knows nothing of handlers; text in, parsed names out.
Invariants: each part is decoded once and validated; what is not ours to understand is None.
Source: docs/reference/hub-dialect.md (URL grammar).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from p2pcache.core.refs import REPO_KINDS, ModelReference, RepoId, parse_path, parse_revision
from p2pcache.errors import InvalidNameError

# Words that end the name of a repository in an API address.
_API_ACTIONS = ("revision", "tree", "paths-info", "refs", "commits", "auth-check", "xet-read-token")


@dataclass(frozen=True, slots=True)
class FileAddress:
    """`/{repo}/resolve/{revision}/{path}`: one file."""

    reference: ModelReference
    path: str


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """`/api/{kind}/{repo}[/{action}[/{revision}[/{path}]]]`: metadata. No action means info."""

    reference: ModelReference
    action: str
    path: str


def _decode(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidNameError(f"{part[:80]!r} is not UTF-8.") from error


def check_forwardable(address: str, prefixes: tuple[str, ...]) -> None:
    """
    Insist that an address that is passed on stays where it says that it is: on this hub's API.

    Raises:
        InvalidNameError: It begins otherwise, in its letters as sent, or leads up.
    """
    path = address.partition("?")[0]
    steps = [_decode(part) for part in path.split("/")]
    if not path.startswith(prefixes) or any(step in (".", "..") for step in steps):
        raise InvalidNameError(f"{address[:80]!r} is no address that is passed on to the hub.")


def parse_file_address(raw_path: str) -> FileAddress | None:
    """
    Read the address of a file; None when it is not one.

    Raises:
        InvalidNameError: It has the form of one, and a name that no hub has.
    """
    parts = raw_path.partition("?")[0].lstrip("/").split("/")
    kind = "models"
    if parts[0] in ("datasets", "spaces"):
        kind = parts.pop(0)
    for position in (2, 1):
        if len(parts) > position + 2 and parts[position] == "resolve":
            name = "/".join(_decode(part) for part in parts[:position])
            revision = parse_revision(_decode(parts[position + 1]))
            path = parse_path("/".join(_decode(part) for part in parts[position + 2 :]))
            return FileAddress(ModelReference(RepoId.of("hf", kind, name), revision), path)
    return None


def parse_api_address(raw_path: str) -> ApiAddress | None:
    """
    Read the address of a repository's metadata; None when it is not one.

    Raises:
        InvalidNameError: It has the form of one, and a name that no hub has.
    """
    parts = raw_path.partition("?")[0].strip("/").split("/")
    if len(parts) < 3 or parts[0] != "api" or parts[1] not in REPO_KINDS:
        return None
    kind, rest = parts[1], parts[2:]
    length = 1 if len(rest) == 1 or rest[1] in _API_ACTIONS else 2
    repo = RepoId.of("hf", kind, "/".join(_decode(part) for part in rest[:length]))
    tail = rest[length:]
    if not tail:
        return ApiAddress(ModelReference(repo), "info", "")
    action = tail[0]
    if action not in _API_ACTIONS:
        return None
    revision = parse_revision(_decode(tail[1])) if len(tail) > 1 else "main"
    path = parse_path("/".join(_decode(p) for p in tail[2:])) if len(tail) > 2 else ""
    return ApiAddress(ModelReference(repo, revision), action, path)
