"""
Owns the control messages that we send to peers: hello, exchange, questions.

Knows nothing of what they mean, nor of bulk bytes.
Invariants: an answer is read within its limit; redirects are not followed; no peer can hold a
request for longer than REQUEST_S_MAX.
Source: docs/reference/peer-protocol.md.
"""

from __future__ import annotations

import json

import aiohttp

from p2pcache.core.messages import MESSAGE_BYTES_MAX, Exchange, Hello
from p2pcache.errors import PeerGoneError, PeerProtocolError, PeerRefusedError, PeerUnreachableError

# A neighbour answers in milliseconds; one that needs seconds is of no use to a fetch.
REQUEST_S_MAX = 2.0


class PeerLink:
    """An HTTP client for peers. Event loop only; open() before use, close() after."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    @property
    def is_open(self) -> bool:
        """Return whether requests can be sent."""
        return self._session is not None

    def open(self) -> None:
        """Open the connection pool; call on the event loop."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_S_MAX),
            headers={"Accept-Encoding": "identity"},
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def close(self) -> None:
        """Close the connection pool. Safe to call twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def greet(self, url: str) -> Hello:
        """Ask who listens at an address. Raises as get()."""
        return Hello.from_json(await self.get(url, "/v1/hello"))

    async def exchange(self, url: str, ours: Exchange) -> Exchange:
        """Say what we have and want; return what the peer says of the same. Raises as get()."""
        return Exchange.from_json(await self._request("POST", url, "/v1/swarm", ours.to_json()))

    async def get(self, url: str, path: str, *, timeout_s: float = REQUEST_S_MAX) -> object:
        """
        GET a JSON document of a peer.

        Args:
            url, path: Where.
            timeout_s: For a question that the peer has to ask somebody else about first.

        Raises:
            PeerUnreachableError: No answer in time.
            PeerRefusedError: An answer that is not 200.
            PeerProtocolError: Endless, or not JSON.
            InputError: JSON of another shape than the protocol's.
        """
        return await self._request("GET", url, path, None, timeout_s)

    async def post(self, url: str, path: str, message: object) -> object:
        """POST a JSON document to a peer; return its answer. Raises as get()."""
        return await self._request("POST", url, path, message)

    async def _request(
        self,
        method: str,
        url: str,
        path: str,
        message: object,
        timeout_s: float = REQUEST_S_MAX,
    ) -> object:
        assert self._session is not None, "open() comes first"
        try:
            async with self._session.request(
                method,
                url + path,
                json=message,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                if response.status != 200:
                    raise PeerRefusedError(f"{url}{path} answered {response.status}.")
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > MESSAGE_BYTES_MAX:
                        raise PeerProtocolError(f"{url}{path} has no end.")
                decoded: object = json.loads(body)
                return decoded
        except aiohttp.ClientConnectorError as error:
            is_refused = isinstance(error.os_error, ConnectionRefusedError)
            raise (PeerGoneError if is_refused else PeerUnreachableError)(
                f"{url} does not answer ({error!r})."
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PeerUnreachableError(f"{url} does not answer ({error!r}).") from error
        except (ValueError, RecursionError) as error:
            raise PeerProtocolError(f"{url}{path} is not JSON.") from error
