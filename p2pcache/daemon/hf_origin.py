"""
Owns by which address a client reaches this endpoint: its origin, the path prefix before the
dialect, and the links in a hub's answers that have to lead back here.

Knows nothing of what is asked.
Invariants: a link never leads a client past us; what a proxy says of itself is used only if it
has the form of an address.
Source: docs/reference/hub-dialect.md (addresses); huggingface_hub#2806, #2808, #3646.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from aiohttp import web

from p2pcache.core.refs import REPO_KINDS

# Segments that an operator's proxy may put before ours.
PREFIX_SEGMENTS_MAX = 4
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]{1,64}", re.ASCII)
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]{1,64}){1,4}", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\])(?::\d{1,5})?", re.ASCII)
_NEXT = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?', re.ASCII)
# Kinds of repositories that are not served: their names are not prefixes before a model's.
_OTHER_KINDS = ("kernels", "buckets")
_FOLDER_KINDS = REPO_KINDS[1:]


def split_prefix(raw_path: str) -> tuple[str, str]:
    """
    Return (prefix, address) of a request: `/p/api/models/…` is `/p` and `/api/models/…`.

    Slashes at the beginning count as one. A prefix before a model with a one-part name cannot be
    told from its owner; such a model is asked for without a prefix.
    """
    address = "/" + raw_path.lstrip("/")
    segments = address[1:].partition("?")[0].split("/")
    count = _count_prefix_segments(segments)
    head = segments[:count]
    if not 0 < count <= PREFIX_SEGMENTS_MAX or any(
        _SEGMENT.fullmatch(part) is None or part in (".", "..") for part in head
    ):
        return "", address
    prefix = "/" + "/".join(head)
    return prefix, address[len(prefix) :]


def _count_prefix_segments(segments: list[str]) -> int:
    """Return how many segments come before the dialect's own; 0 if none, or it is not ours."""
    if segments[0] in ("api", "_p2pcache"):
        return 0
    kind_count = int(segments[0] in _FOLDER_KINDS)
    for position in (1, 2):
        if segments[kind_count + position : kind_count + position + 1] == ["resolve"]:
            return 0
    for position, segment in enumerate(segments):
        if segment == "api" and position + 1 < len(segments):
            return position
        if segment == "resolve":
            return _count_before_file(segments, position)
    return 0


def _count_before_file(segments: list[str], marker: int) -> int:
    """Return where the name of the repository before `resolve` begins, with its kind."""
    if marker < 2 or segments[marker - 2] in _FOLDER_KINDS:
        return max(0, marker - 2)
    first = marker - 2
    if first > 0 and segments[first - 1] in _OTHER_KINDS:
        return 0
    return first - 1 if first > 0 and segments[first - 1] in _FOLDER_KINDS else first


def find_base(request: web.Request, prefix: str) -> str:
    """Return the address, prefix included, by which this client reaches the dialect."""
    headers = request.headers
    scheme = headers.get("X-Forwarded-Proto", "")
    host = headers.get("X-Forwarded-Host", "")
    outer = headers.get("X-Forwarded-Prefix", "").rstrip("/")
    scheme = scheme if scheme in ("http", "https") else "http"
    host = host if _HOST.fullmatch(host) else request.host
    # A proxy that says which prefix it knows may have left it in the path, or taken it out.
    if _PREFIX.fullmatch(outer) and not f"{prefix}/".startswith(f"{outer}/"):
        prefix = outer + prefix
    return f"{scheme}://{host}{prefix}"


def lead_back(link: str, *, hub_url: str, base: str) -> str | None:
    """
    Return a Link header whose next page is asked here, whatever host the hub names; None when
    there is no next page, so that no other relation (Xet's) passes either.
    """
    match = _NEXT.search(link)
    if match is None:
        return None
    parts = urlsplit(match[1])
    hub_prefix = urlsplit(hub_url).path.rstrip("/")
    path = parts.path if parts.path.startswith("/") else f"/{parts.path}"
    if hub_prefix and path.startswith(f"{hub_prefix}/"):
        path = path[len(hub_prefix) :]
    query = f"?{parts.query}" if parts.query else ""
    return f'<{base}{path}{query}>; rel="next"'
