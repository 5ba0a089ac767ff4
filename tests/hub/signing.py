"""
Owns the signed, expiring addresses of large files.

Knows nothing of HTTP answers or of repositories; it signs a storage path and a file's key.
Invariants: an address that this signer did not make, or that has expired, never opens.
Source: the parameters of public storage addresses (Expires, Policy, Signature, Key-Pair-Id).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import math
import secrets
import time
from collections.abc import Mapping
from urllib.parse import quote, urlencode


class SignatureError(Exception):
    """The address is not one of ours, or not any more; str() says which."""


class Signer:
    """Makes and checks addresses; its key lives as long as the hub."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._serial = itertools.count()

    def sign(self, path: str, key: str, *, ttl_s: float) -> str:
        """Return the query that opens a storage path for ttl_s; zero or less never opens it."""
        expires_s = time.time() + ttl_s
        policy = json.dumps(
            {"path": path, "key": key, "expires_s": expires_s, "serial": next(self._serial)}
        )
        encoded = base64.urlsafe_b64encode(policy.encode()).decode()
        name = key.rsplit("/", 1)[-1]
        disposition = f"inline; filename*=UTF-8''{quote(name)};"
        return urlencode(
            {
                "X-Xet-Cas-Uid": "public",
                "response-content-disposition": disposition,
                "Expires": str(math.ceil(expires_s)),
                "Policy": encoded,
                "Signature": self._digest(encoded),
                "Key-Pair-Id": "K2FAKE",
            }
        )

    def open(self, path: str, query: Mapping[str, str]) -> str:
        """
        Return the key of the file that a signed address names.

        Raises:
            SignatureError: The address was not signed here, is for another path, or has expired.
        """
        encoded = query.get("Policy", "")
        if not hmac.compare_digest(self._digest(encoded), query.get("Signature", "")):
            raise SignatureError("SignatureDoesNotMatch")
        policy = json.loads(base64.urlsafe_b64decode(encoded))
        if policy["path"] != path:
            raise SignatureError("SignatureDoesNotMatch")
        if time.time() >= policy["expires_s"]:
            raise SignatureError("AccessDenied")
        return str(policy["key"])

    def _digest(self, text: str) -> str:
        """Return the keyed digest of a policy."""
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
