"""
Owns how errors look to a Hugging Face client, so that it raises its own exceptions.

Knows nothing of what was asked.
Invariants: what is hidden and what is missing look the same to the last letter; every error about
a repository has X-Error-Code, since clients take nothing from a bare 401 over http.
Source: docs/reference/hub-dialect.md (errors).
"""

from __future__ import annotations

import secrets

from aiohttp import web

from p2pcache.core.credentials import Credentials
from p2pcache.daemon.answers import answer_error
from p2pcache.errors import (
    EntryNotFoundError,
    GatedRepositoryError,
    InputError,
    InvalidRangeError,
    NoSourceError,
    P2PCacheError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SourceError,
    UpstreamAuthError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
    UpstreamUnreachableError,
)

# Clients compare these word for word.
INVALID_CREDENTIALS = "Invalid credentials in Authorization header"
DISABLED = "Access to this resource is disabled."
_CODES: dict[type[P2PCacheError], str] = {
    EntryNotFoundError: "EntryNotFound",
    RevisionNotFoundError: "RevisionNotFound",
    RepositoryNotFoundError: "RepoNotFound",
    GatedRepositoryError: "GatedRepo",
}
# What differs between a hidden repository that is cached here and one that never was is not said.
_NO_REPOSITORY = (
    "Repository not found, or it is private; check its name, and that your token may read it."
)
NO_ANSWER: dict[type[P2PCacheError], str] = {
    UpstreamUnreachableError: (
        "The hub does not answer, and this is not cached here for everybody; check the network, "
        "or ask for what is cached. While peers have it, --trust-peers believes what they say."
    ),
    UpstreamRateLimitedError: "The hub asks to slow down; ask again later.",
    UpstreamProtocolError: (
        "The hub answered with something that no hub says; check that a portal does not stand in "
        "between."
    ),
}


def answer_hub_error(error: P2PCacheError, credentials: Credentials) -> web.Response:
    """Return an error in the form that the hub's clients understand."""
    message = _choose_message(error)
    headers = {
        "X-Error-Message": message.encode("ascii", "replace").decode(),
        "X-Request-Id": secrets.token_hex(8),
    }
    code = _CODES.get(type(error))
    if code is not None:
        headers["X-Error-Code"] = code
    response = answer_error(error, headers, message=message)
    if code is None and isinstance(error, InputError | UpstreamAuthError):
        response.headers.pop("X-Error-Code", None)
    if isinstance(error, EntryNotFoundError) and error.commit:
        response.headers["X-Repo-Commit"] = error.commit
    if isinstance(error, RepositoryNotFoundError | GatedRepositoryError):
        # The hub tells an anonymous caller 401, whether a repository is missing or hidden.
        is_gated = isinstance(error, GatedRepositoryError)
        known = 403 if is_gated else 404
        response.set_status(401 if credentials.is_anonymous else known)
    elif isinstance(error, UpstreamAuthError) and message != INVALID_CREDENTIALS:
        response.set_status(403)  # the hub knows who asks, and says no
    if isinstance(error, NoSourceError):
        # Named here, and nobody who is up has it: what the hub's absence looks like to a client.
        response.set_status(504)
    if isinstance(error, InvalidRangeError) and error.size_bytes is not None:
        response.headers["Content-Range"] = f"bytes */{error.size_bytes}"
    return response


def _choose_message(error: P2PCacheError) -> str:
    message = str(error).replace("\n", " ").replace("\r", " ")
    if isinstance(error, RepositoryNotFoundError):
        return _NO_REPOSITORY
    if isinstance(error, UpstreamAuthError) and not isinstance(error, GatedRepositoryError):
        if "Invalid credentials" in message:
            return INVALID_CREDENTIALS
        if DISABLED in message:
            return DISABLED
    return NO_ANSWER.get(type(error), message) if isinstance(error, SourceError) else message
