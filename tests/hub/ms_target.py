"""
Owns ModelScope's address grammar: which route, repository, revision and path a request names.

Knows nothing of what exists; every syntactically possible address parses.
Invariants: revisions and paths come out percent-decoded exactly once; `master` is the first branch.
Source: the requests of modelscope 1.40 and of public programs that use the hub's API.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from tests.hub.repository import Kind
from tests.hub.target import Target

PREFIX = "/api/v1/"
FIRST_BRANCH = "master"
KINDS: Mapping[str, Kind] = {"models": "models", "datasets": "datasets"}
ROUTES: Mapping[tuple[str, ...], str] = {
    (): "ms-info",
    ("revisions",): "ms-revisions",
    ("commits",): "ms-commits",
    ("repo", "files"): "ms-files",
    ("repo", "tree"): "ms-tree",
    ("repo",): "ms-file",
}


def is_modelscope(path: str) -> bool:
    """Return whether an address is of ModelScope's API and not of Hugging Face's."""
    return path.startswith((PREFIX, "/openapi/v1/"))


def parse_modelscope_target(raw_path: str, query: Mapping[str, str]) -> Target:
    """Parse a path (no query) and its query as the hub reads them; else the route is `ms-other`."""
    segments = [unquote(part) for part in raw_path.removeprefix(PREFIX).split("/")]
    if raw_path == f"{PREFIX}login":
        return Target("ms-login")
    if segments[0] not in KINDS or len(segments) < 3:
        return Target("ms-other", path=raw_path)
    route = ROUTES.get(tuple(segments[3:]))
    if route is None:
        return Target("ms-other", path=raw_path)
    revision = query.get("Ref" if route == "ms-commits" else "Revision", "") or FIRST_BRANCH
    path = query.get("FilePath" if route == "ms-file" else "Root", "").strip("/")
    return Target(route, KINDS[segments[0]], "/".join(segments[1:3]), revision, path)
