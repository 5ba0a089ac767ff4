"""
Owns the forms of the hub's answers: JSON, redirects and coded errors.

Knows nothing of when each is due.
Invariants: every error has a JSON body and its message in X-Error-Message.
Source: the hub's public error headers (X-Error-Code, X-Error-Message).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

INVALID_TOKEN = "Invalid credentials in Authorization header"
DISABLED = "Access to this resource is disabled."
NOT_LOGGED_IN = "Invalid username or password."


class RefusalError(Exception):
    """The request ends here with this answer."""

    def __init__(self, answer: web.Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


def json_answer(
    payload: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON answer."""
    return web.Response(
        status=status,
        body=json.dumps(payload).encode(),
        content_type="application/json",
        charset="utf-8",
        headers=dict(headers or {}),
    )


def error_answer(
    status: int, message: str, *, code: str | None = None, commit: str | None = None
) -> web.Response:
    """Return an error as the hub words it; a code tells clients which exception to raise."""
    headers = {"X-Error-Message": message}
    if code is not None:
        headers["X-Error-Code"] = code
    if commit is not None:
        headers["X-Repo-Commit"] = commit
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
    return json_answer({"error": message}, status=status, headers=headers)


def redirect_answer(status: int, location: str, headers: Mapping[str, str]) -> web.Response:
    """Return a redirect; its Content-Length is that of its own text, as the hub's is."""
    words = {302: "Found", 307: "Temporary Redirect"}[status]
    return web.Response(
        status=status,
        text=f"{words}. Redirecting to {location}",
        headers={**headers, "Location": location, "Vary": "Origin, Accept"},
    )


def entry_missing(commit: str) -> RefusalError:
    """Return the refusal for a file that the commit does not have."""
    answer = error_answer(404, "Entry not found", code="EntryNotFound", commit=commit)
    return RefusalError(answer)


def storage_error(status: int, code: str, message: str) -> web.Response:
    """Return an error as object storage words it, in XML."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    )
    return web.Response(status=status, text=body, content_type="application/xml")
