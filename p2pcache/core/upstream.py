"""
Owns how a hub's HTTP answers are read: which redirect to follow, which error a status means.

Knows nothing of connections; used by the metadata client and by the bulk data plane alike.
Invariants: a token goes to the hub's own origin only; https never becomes http; five hops at most.
Source: docs/reference/hub-dialect.md; RFC 9110 §15.4; core.ratelimit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from p2pcache.core.ratelimit import find_pause_s
from p2pcache.errors import (
    EntryNotFoundError,
    GatedRepositoryError,
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    UpstreamAuthError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)

REDIRECT_STATUSES = (301, 302, 303, 307, 308)
REDIRECTS_MAX = 5
_MESSAGE_CHARS_MAX = 300
# What a request line can carry: printable ASCII without spaces.
_URL = re.compile(r"[\x21-\x7e]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Hop:
    """Where to go next, and whether the caller's token may come along."""

    url: str
    may_send_token: bool


@dataclass(frozen=True, slots=True)
class UpstreamLocation:
    """
    Where the hub has a blob, and who asks. `headers` may hold the caller's token: it is never
    shown by repr(), and sent to the hub's origin only.
    """

    hub_url: str
    resolve_url: str
    what: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


def origin_of(url: str) -> tuple[str, str, int]:
    """
    Return (scheme, host, port) of an http or https URL.

    Raises:
        UpstreamProtocolError: Another scheme, no host, or a port that is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UpstreamProtocolError(f"{url[:80]!r} is not a valid address.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UpstreamProtocolError(f"{url[:80]!r} is not an http or https address.")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


def follow_redirect(hub_url: str, current_url: str, location: str | None) -> Hop:
    """
    Decide the next hop of a redirect.

    Args:
        hub_url: The configured hub; the only origin that ever sees a token.
        current_url: Where the redirect came from.
        location: The Location header.

    Raises:
        UpstreamProtocolError: No or malformed Location, or a downgrade from https to http.
    """
    if not location:
        raise UpstreamProtocolError("The hub redirects without saying where; trying again later.")
    if _URL.fullmatch(location) is None:
        raise UpstreamProtocolError("The hub redirects to an address with strange characters.")
    try:
        url = urljoin(current_url, location)
    except ValueError as error:
        raise UpstreamProtocolError(f"{location[:80]!r} is not a valid address.") from error
    origin = origin_of(url)
    if origin_of(current_url)[0] == "https" and origin[0] != "https":
        raise UpstreamProtocolError("The hub redirects from https to http; that is not followed.")
    return Hop(url, origin == origin_of(hub_url))


def error_of_answer(
    status: int, headers: Mapping[str, str], what: str, *, has_token: bool
) -> P2PCacheError:
    """
    Return the error that a hub's answer means.

    Args:
        status: 4xx or 5xx.
        headers: Of the answer; keys in any spelling.
        what: What was asked for, for the message.
        has_token: Whether a token was sent.
    """
    headers = {name.lower(): text for name, text in headers.items()}
    code = headers.get("x-error-code", "")
    said = "".join(c for c in headers.get("x-error-message", "") if c.isprintable())
    said = f" The hub says: {said[:_MESSAGE_CHARS_MAX]}" if said else ""
    if code == "GatedRepo":
        return GatedRepositoryError(
            f"{what} is gated; accept its terms on the hub and pass that account's token.{said}"
        )
    if code == "RevisionNotFound":
        return RevisionNotFoundError(f"{what}: no such revision; look at its branches.{said}")
    if code == "EntryNotFound":
        return EntryNotFoundError(f"{what}: no such file.{said}")
    if status == 429:
        return UpstreamRateLimitedError(
            f"The hub asks to slow down ({what}); it is asked again later.{said}",
            retry_after_s=find_pause_s(headers),
        )
    if status in (408, 425) or status >= 500:
        return UpstreamUnreachableError(
            f"The hub cannot serve {what} now (status {status}); try again later.{said}"
        )
    if "Invalid credentials" in said:
        return UpstreamAuthError(f"Invalid credentials in Authorization header ({what}).")
    if code == "RepoNotFound" or status in (401, 404):
        hint = "check its name" if has_token else "check its name, or pass a token if it is private"
        return RepositoryNotFoundError(f"The hub knows no {what}; {hint}.{said}")
    if status == 403:
        return UpstreamAuthError(f"The hub refuses {what}; check the token's rights.{said}")
    return UpstreamProtocolError(f"The hub answered {what} with status {status}.{said}")
