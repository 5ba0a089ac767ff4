"""
Owns who may talk to the local endpoint: this machine's programs, not the web pages they show.

Knows nothing of what is asked, beyond reading or changing.
Invariants: exact Host, no absolute-form targets, no foreign Origin, on every request; changes
need the admin token and a header that no form can send.
Source: design.md §7 (local side); DNS-rebinding and cross-site request forgery defences.
"""

from __future__ import annotations

import hmac

from aiohttp import web

from p2pcache.daemon.answers import Handler, answer_error
from p2pcache.errors import ForbiddenError, InputError, MissingTokenError

MANAGEMENT_PREFIX = "/_p2pcache/"
DOWNLOAD_ALIAS = "/api/v1/models/download"
_READING = ("GET", "HEAD")


class Guard:
    """The local endpoint's middleware."""

    def __init__(self, admin_token: str) -> None:
        self.hosts: frozenset[str] = frozenset()
        self._admin_token = admin_token

    def allow_hosts(self, host: str, port: int) -> None:
        """Accept the names that this endpoint has."""
        names = {host, "127.0.0.1", "localhost", "[::1]"}
        self.hosts = frozenset(f"{name}:{port}" for name in names)

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what a browser was tricked into, or what lacks the token."""
        try:
            self._check_origin(request)
            self._check_token(request)
        except InputError as error:
            return answer_error(error)
        return await handler(request)

    def is_admin(self, request: web.Request) -> bool:
        """Return whether a request shows the admin token."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme == "Bearer" and hmac.compare_digest(
            token.encode("utf-8", "surrogateescape"), self._admin_token.encode()
        )

    def _check_origin(self, request: web.Request) -> None:
        hosts = request.headers.getall("Host", [])
        if not request.raw_path.startswith("/") or len(hosts) != 1:
            raise ForbiddenError("Ask with a plain path and one Host header.")
        if hosts[0].lower() not in self.hosts:
            raise ForbiddenError(
                f"The Host {hosts[0][:80]!r} is not this endpoint; use {min(self.hosts)}."
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            raise ForbiddenError("Pages of other sites may not use this endpoint.")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise ForbiddenError("Pages of other sites may not use this endpoint.")

    def _check_token(self, request: web.Request) -> None:
        is_management = request.path.startswith(MANAGEMENT_PREFIX) or request.path == DOWNLOAD_ALIAS
        if not is_management or request.method in _READING:
            return
        if not self.is_admin(request):
            raise MissingTokenError(
                "Changes need 'Authorization: Bearer' with the token in STORE/admin-token."
            )
        if request.headers.get("X-P2PCache") != "1":
            raise ForbiddenError("Changes need the header 'X-P2PCache: 1'.")
