"""
Owns a caller's hub token while it is in memory.

Knows nothing of who may read what.
Invariants: the token shows in no repr, log or message; only headers() hands it out.
Source: design.md §7 (tokens).
"""

from __future__ import annotations

from p2pcache.errors import InputError

# Real tokens have some 40 characters; signed ones of enterprise gateways a few hundred.
TOKEN_CHARS_MAX = 4096


class Credentials:
    """What a caller shows to the hub: a token, or nothing."""

    __slots__ = ("_token",)

    def __init__(self, token: str | None = None) -> None:
        """
        Raises:
            InputError: A token that cannot be sent in a header.
        """
        if token is not None and (
            not token
            or len(token) > TOKEN_CHARS_MAX
            or not token.isascii()
            or not token.isprintable()
        ):
            raise InputError("That token has characters that no hub token has; paste it again.")
        self._token = token

    @classmethod
    def from_authorization(cls, header: str | None) -> Credentials:
        """Read an Authorization header; other schemes than Bearer count as no token."""
        scheme, _, token = (header or "").partition(" ")
        return cls(token.strip() or None) if scheme.lower() == "bearer" else cls()

    @property
    def is_anonymous(self) -> bool:
        """Return True when there is no token."""
        return self._token is None

    def headers(self, *, cookie: str = "") -> dict[str, str]:
        """
        Return the headers that show the token: for the hub's own origin alone.

        Args:
            cookie: Name of a cookie that shows it too, for hubs that look there.
        """
        if self._token is None:
            return {}
        shown = {"Authorization": f"Bearer {self._token}"}
        if cookie:
            # Characters that end a cookie's value have no place in one; the other header has them.
            is_plain = not any(c in ' ",;\\' for c in self._token)
            shown |= {"Cookie": f"{cookie}={self._token}"} if is_plain else {}
        return shown

    def secret_bytes(self) -> bytes:
        """Return what a keyed hash of the token is made from."""
        return (self._token or "").encode()

    def __repr__(self) -> str:
        return "<Credentials anonymous>" if self.is_anonymous else "<Credentials ***>"


ANONYMOUS = Credentials()
