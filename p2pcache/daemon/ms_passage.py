"""
Owns passing requests on to ModelScope, and remembering what it says of repositories.

Knows nothing of what a request means, beyond whether its answer was good.
Invariants: an answer is kept for the caller that got it alone, and only one that says success; the
memory is bounded.
Source: docs/reference/modelscope-dialect.md (routes).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import OrderedDict

from p2pcache.core.credentials import Credentials
from p2pcache.core.msjson import read_envelope
from p2pcache.core.ratelimit import find_pause_s
from p2pcache.engine.context import Context
from p2pcache.engine.fresh import FreshFlight
from p2pcache.engine.single import SingleFlight
from p2pcache.errors import UpstreamRateLimitedError, UpstreamUnreachableError
from p2pcache.hubs.base import ForwardedAnswer

# Descriptions and lists of branches have a few KB; thousands of repositories on one machine.
KEPT_BYTES_MAX = 16 * 1024 * 1024
KEPT_ANSWER_BYTES_MAX = 1024 * 1024


class ModelScopePassage:
    """The way to the hub for what is not answered from the store. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._secret = secrets.token_bytes(32)
        self._flights = SingleFlight()
        self._questions = FreshFlight()
        self._kept: OrderedDict[bytes, tuple[float, ForwardedAnswer]] = OrderedDict()
        self._kept_bytes = 0

    async def forward(
        self, method: str, raw_path: str, body: bytes, credentials: Credentials
    ) -> ForwardedAnswer:
        """
        Ask the hub and return its answer, whatever it is.

        Raises:
            SourceError: The hub does not answer.
        """
        return await self._context.hub.forward(method, raw_path, body, credentials)

    async def recall(
        self, raw_path: str, credentials: Credentials, *, limit_s: float
    ) -> ForwardedAnswer:
        """
        Return what the hub answered this caller no longer ago than a branch is believed, or now.

        Args:
            raw_path: What is asked for: something that the hub shows to anybody.
            credentials: Who asks.
            limit_s: When the hub last may have changed its mind; nothing older counts.

        Raises:
            SourceError: The hub does not answer.
        """
        key = self._key_of(raw_path, credentials)
        now_s = self._context.clock.monotonic_s()
        kept = self._kept.get(key)
        if kept is not None and max(limit_s, now_s - self._context.settings.ref_ttl_s) < kept[0]:
            return kept[1]
        return await self._flights.run(key, lambda: self._ask(key, raw_path, credentials))

    async def share(self, raw_path: str, credentials: Credentials) -> ForwardedAnswer:
        """Ask together with whoever has not begun to ask the same. Raises as recall()."""
        key = self._key_of(raw_path, credentials)
        return await self._questions.run(key, lambda: self._ask(key, raw_path, credentials))

    async def close(self) -> None:
        """Stop asking."""
        await self._flights.close()
        await self._questions.close()

    def _key_of(self, raw_path: str, credentials: Credentials) -> bytes:
        text = raw_path.encode() + b"\0" + credentials.secret_bytes()
        return hmac.digest(self._secret, text, hashlib.sha256)

    async def _ask(self, key: bytes, raw_path: str, credentials: Credentials) -> ForwardedAnswer:
        answer = await self.forward("GET", raw_path, b"", credentials)
        if answer.status == 429:
            raise UpstreamRateLimitedError(
                "The hub asks to slow down; try again later.",
                retry_after_s=find_pause_s(answer.headers),
            )
        if answer.status >= 500 or answer.status in (408, 425):
            raise UpstreamUnreachableError(
                f"The hub cannot serve this now (status {answer.status}); try again later."
            )
        if answer.status == 200 and _is_success(answer.body):
            self._keep(key, answer)
        return answer

    def _keep(self, key: bytes, answer: ForwardedAnswer) -> None:
        if len(answer.body) > KEPT_ANSWER_BYTES_MAX:
            return
        before = self._kept.pop(key, None)
        self._kept_bytes += len(answer.body) - (0 if before is None else len(before[1].body))
        self._kept[key] = (self._context.clock.monotonic_s(), answer)
        while self._kept_bytes > KEPT_BYTES_MAX:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.body)


def _is_success(body: bytes) -> bool:
    try:
        envelope = read_envelope(json.loads(body))
    except (ValueError, RecursionError):
        return False
    return envelope is not None and envelope.is_success
