"""
Owns the hub's address grammar: which route, repository, revision and path a request names.

Knows nothing of what exists; every syntactically possible address parses.
Invariants: revisions and paths come out percent-decoded exactly once.
Source: the hub's public address forms, with one- and two-segment repository ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

from tests.hub.repository import KINDS, SHA_PATTERN, Kind

API_MARKERS = (
    "revision",
    "tree",
    "paths-info",
    "refs",
    "commits",
    "auth-check",
    "xet-read-token",
)
FIXED_ROUTES = ("whoami-v2", "telemetry", "agent-harnesses")


@dataclass(frozen=True)
class Target:
    """What a request's path names; parts that the route has not are empty."""

    route: str
    kind: Kind = "models"
    repo_id: str = ""
    revision: str = ""
    path: str = ""

    def raw_path(self, repo_id: str) -> str:
        """Return the same address for another repository id."""
        tail = "/".join(part for part in (quote(self.revision, safe=""), quote(self.path)) if part)
        if self.route == "resolve":
            prefix = "" if self.kind == "models" else f"/{self.kind}"
            return f"{prefix}/{repo_id}/resolve/{tail}"
        marker = "" if self.route == "info" else f"/{self.route}"
        return f"/api/{self.kind}/{repo_id}{marker}" + (f"/{tail}" if tail else "")


def parse_target(raw_path: str) -> Target:
    """Parse a path (no query) as the hub reads it; unknown forms have the route `other`."""
    segments = [unquote(segment) for segment in raw_path.removeprefix("/").split("/")]
    if segments[0] == "api" and len(segments) > 1:
        return _parse_api(segments[1:])
    kind: Kind = "models"
    if segments[0] in KINDS[1:]:
        kind, segments = KINDS[KINDS.index(segments[0])], segments[1:]
    index = _find_marker(segments, ("resolve",))
    if index is None or len(segments) < index + 3:
        return Target("other")
    return Target(
        "resolve",
        kind,
        "/".join(segments[:index]),
        segments[index + 1],
        "/".join(segments[index + 2 :]),
    )


def _parse_api(segments: list[str]) -> Target:
    """Parse what follows /api/."""
    if segments[0] in FIXED_ROUTES:
        return Target(segments[0], path="/".join(segments[1:]))
    if segments[0] == "resolve-cache" and len(segments) > 1:
        return _parse_resolve_cache(segments[1:])
    if segments[0] not in KINDS or len(segments) < 2:
        return Target("other")
    kind = KINDS[KINDS.index(segments[0])]
    rest = segments[1:]
    index = _find_marker(rest, API_MARKERS)
    if index is None:
        return Target("info", kind, "/".join(rest)) if len(rest) <= 2 else Target("other")
    revision = rest[index + 1] if len(rest) > index + 1 else ""
    return Target(rest[index], kind, "/".join(rest[:index]), revision, "/".join(rest[index + 2 :]))


def _parse_resolve_cache(segments: list[str]) -> Target:
    """Parse what follows /api/resolve-cache/."""
    if segments[0] not in KINDS:
        return Target("other")
    kind = KINDS[KINDS.index(segments[0])]
    rest = segments[1:]
    for index in (2, 1):
        if len(rest) > index + 1 and SHA_PATTERN.fullmatch(rest[index]):
            repo_id, path = "/".join(rest[:index]), "/".join(rest[index + 1 :])
            return Target("resolve-cache", kind, repo_id, rest[index], path)
    return Target("other")


def _find_marker(segments: list[str], markers: tuple[str, ...]) -> int | None:
    """Return where the marker after a two- or one-segment id is."""
    for index in (2, 1):
        if len(segments) > index and segments[index] in markers:
            return index
    return None
