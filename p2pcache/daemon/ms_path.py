"""
Owns the URL grammar of the ModelScope dialect.

Knows nothing of handlers; text in, parsed names out.
Invariants: each part is decoded once and validated; what is not ours to understand is None.
Source: docs/reference/modelscope-dialect.md (URL grammar).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, unquote

from p2pcache.core.refs import ModelReference, RepoId, parse_path, parse_revision
from p2pcache.errors import InputError, InvalidNameError

PREFIX = "/api/v1/"
Action = Literal["repository", "revisions", "files", "tree", "file", "archive"]
# What clients ask for at once of a data set's files, and the most that the hub gives.
PAGE_ENTRIES_DEFAULT = 50
PAGE_ENTRIES_MAX = 500
PAGES_MAX = 1_000_000
# Longer than any number that somebody means, and short enough for arithmetic.
_DIGITS_MAX = 9
_KINDS = ("models", "datasets")
_ACTIONS: dict[tuple[str, ...], Action] = {
    (): "repository",
    ("revisions",): "revisions",
    ("repo", "files"): "files",
    ("repo", "tree"): "tree",
    ("repo",): "file",
}


@dataclass(frozen=True, slots=True)
class ModelScopeAddress:
    """
    One thing of a repository.

    Attributes:
        path: Of the file, or of the folder that a listing is of; "" for the root.
        page: From 1, of `page_entries` each; 0 where everything is asked for at once.
    """

    reference: ModelReference
    action: Action
    path: str = ""
    is_deep: bool = False
    page: int = 0
    page_entries: int = 0


def parse_address(raw_path: str) -> ModelScopeAddress | None:
    """
    Read an address; None when it names nothing of a model or data set.

    Raises:
        InputError: It has the form of one, with a name or number that cannot be.
    """
    path, _, raw_query = raw_path.partition("?")
    if not path.startswith(PREFIX):
        return None
    parts = [_decode(part) for part in path.removeprefix(PREFIX).rstrip("/").split("/")]
    if len(parts) < 3 or parts[0] not in _KINDS:
        return None
    kind, org, name, *rest = parts
    action = _ACTIONS.get(tuple(rest))
    if rest[:2] == ["archive", "zip"] and len(rest) == 3:
        action = "archive"
    if action is None:
        return None
    query = _parse_query(raw_query)
    repo = RepoId.of("ms", kind, f"{org}/{name}")
    revision = query.get("Revision", "")
    reference = ModelReference(repo, parse_revision(revision) if revision else "")
    if action == "file":
        return ModelScopeAddress(reference, action, parse_path(query.get("FilePath", "")))
    folder = query.get("Root", "").strip("/")
    page = page_entries = 0
    if action == "tree":
        page = _read_number(query, "PageNumber", 1, PAGES_MAX)
        page_entries = _read_number(query, "PageSize", PAGE_ENTRIES_DEFAULT, PAGE_ENTRIES_MAX)
    return ModelScopeAddress(
        reference,
        action,
        parse_path(folder) if folder else "",
        query.get("Recursive", "").lower() in ("true", "1"),
        page,
        page_entries,
    )


def _parse_query(text: str) -> dict[str, str]:
    try:
        query = parse_qs(text, keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError as error:
        raise InputError("That query cannot be read; use UTF-8 and fewer fields.") from error
    return {name: values[0] for name, values in query.items()}


def _read_number(query: dict[str, str], name: str, default: int, maximum: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX):
        raise InputError(f"{name}={text[:20]!r} is no number; write one from 1 to {maximum}.")
    return max(1, min(int(text), maximum))


def _decode(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidNameError(f"{part[:80]!r} is not UTF-8.") from error
