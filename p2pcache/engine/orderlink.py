"""
Owns the requests by which one daemon orders downloads of another, and asks how far they are.

Knows nothing of jobs.
Invariants: a refusal keeps its reason; an answer is read within its limit; redirects are not
followed; no token of anybody is sent.
Source: docs/reference/peer-protocol.md ("Orders").
"""

from __future__ import annotations

import json
from http import HTTPStatus

import aiohttp

from p2pcache.errors import (
    DaemonBusyError,
    ForbiddenError,
    InputError,
    JobNotFoundError,
    P2PCacheError,
    PeerProtocolError,
    PeerRefusedError,
    PeerUnreachableError,
)

# What a program in a browser cannot send to another site without being asked first.
ORDER_HEADERS = {"X-P2PCache": "1", "Accept-Encoding": "identity"}
# A worker resolves and checks behind its answer; it has only to note the order.
REQUEST_S_MAX = 5.0
_ANSWER_BYTES_MAX = 1024 * 1024
_REASON_CHARS_MAX = 600


class OrderLink:
    """An HTTP client for workers. Event loop only; close() after use."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections. Safe to call twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ask(
        self, method: str, url: str, path: str, message: object = None
    ) -> dict[str, object]:
        """
        Send one request to a worker; return the object that it answers.

        Raises:
            PeerUnreachableError: No answer in time.
            ForbiddenError: It takes no orders from here, or not this one.
            JobNotFoundError: It does not know the order, or orders at all.
            DaemonBusyError, InputError, PeerRefusedError: It says why.
            PeerProtocolError: Endless, or not JSON.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=REQUEST_S_MAX), headers=ORDER_HEADERS
            )
        try:
            async with self._session.request(
                method, url + path, json=message, allow_redirects=False
            ) as response:
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > _ANSWER_BYTES_MAX:
                        raise PeerProtocolError(f"{url}{path} has no end.")
                answer = json.loads(body) if body.strip() else {}
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PeerUnreachableError(f"{url} does not answer ({error!r}).") from error
        except (ValueError, RecursionError) as error:
            raise PeerProtocolError(f"{url}{path} is not JSON.") from error
        if not isinstance(answer, dict):
            raise PeerProtocolError(f"{url}{path} answered something else than an object.")
        if response.status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
            raise _error_of(url, response.status, answer)
        return answer


def _error_of(url: str, status: int, answer: dict[str, object]) -> P2PCacheError:
    reason = str(answer.get("message", ""))[:_REASON_CHARS_MAX]
    shown = "".join(char if char.isprintable() else "?" for char in reason) or f"status {status}"
    classes: dict[int, type[P2PCacheError]] = {
        HTTPStatus.BAD_REQUEST: InputError,
        HTTPStatus.FORBIDDEN: ForbiddenError,
        HTTPStatus.NOT_FOUND: JobNotFoundError,
        HTTPStatus.SERVICE_UNAVAILABLE: DaemonBusyError,
    }
    return classes.get(status, PeerRefusedError)(f"The worker at {url} says: {shown}")
