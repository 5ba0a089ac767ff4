"""
Owns one request to the local daemon and its answer.

Knows nothing of what is asked. Uses no proxy, and imports fast.
Invariants: the admin token goes to a loopback address only; answers have a size limit.
Source: design.md §7 (local side).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from p2pcache.client.answers import Json, error_of_answer
from p2pcache.client.finding import (
    TOKEN_NAME,
    default_store,
    find_endpoint,
    find_named_store,
    try_read,
)
from p2pcache.core.credentials import Credentials
from p2pcache.errors import DaemonError, DaemonUnreachableError, ForbiddenError

API_PREFIX = "/_p2pcache/v1"
# The daemon asks the hub at most twice for one answer, 8 s each, and may wait for its disk.
REQUEST_TIMEOUT_S = 60.0
# A listing of a hundred thousand snapshots; more is not what a daemon of ours says.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
AnyWire = TypeVar("AnyWire", bound="Wire")
_ADMIN_TOKEN = re.compile(r"[0-9a-f]{64}", re.ASCII)


def add_choice(
    body: Json, include: Sequence[str], exclude: Sequence[str], token: str | None
) -> None:
    """
    Put which files are meant, and who asks, into a body; what was not given is left out.

    Raises:
        InputError: A token that cannot be sent on: refused before it is sent to anybody.
    """
    if include:
        body["include"] = list(include)
    if exclude:
        body["exclude"] = list(exclude)
    if token is not None:
        Credentials(token)
        body["token"] = token


class Wire:
    """The way to one daemon. Every call opens its own connection and blocks."""

    def __init__(
        self,
        local: str | None = None,
        store: Path | None = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        """
        Find the endpoint; nothing is connected to yet.

        Args:
            local: HOST:PORT or http://HOST:PORT. Else P2PCACHE_LOCAL, else what the daemon left
                in its store, else 127.0.0.1:7277.
            store: The daemon's store. Else P2PCACHE_STORE, else the one that the daemon names.
            timeout_s: How long one answer may take.

        Raises:
            ConfigError: An endpoint that is no loopback address.
            DaemonUnreachableError: No daemon runs on the store that was named.
        """
        self._named = (local, store)  # as given: after a restart the daemon may be elsewhere
        self._store = find_named_store(store)
        self._host, self._port = find_endpoint(local, store)
        # Whose token may be shown when reading: only that of a store whose daemon is asked for
        # certain, since it was named or its word led here.
        was_led = local is None and not os.environ.get("P2PCACHE_LOCAL", "").strip()
        self._token_store = self._store or (default_store() if was_led else None)
        self._timeout_s = timeout_s
        shown_host = f"[{self._host}]" if ":" in self._host else self._host
        # As HF_ENDPOINT takes it.
        self.url = f"http://{shown_host}:{self._port}"

    def _find_again(self, kind: type[AnyWire], *, timeout_s: float | None = None) -> AnyWire:
        """
        Return a way of a kind to the same daemon, where it is now: a restart may move it.

        Raises:
            DaemonUnreachableError: No daemon runs on the store that was named.
        """
        return kind(*self._named, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def _get(self, path: str, *, timeout_s: float | None = None) -> Json:
        return self._request("GET", path, None, self._reader_headers(), timeout_s=timeout_s)

    def _reader_headers(self) -> dict[str, str]:
        token = self._find_admin_token()
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _find_admin_token(self) -> str | None:
        """Return the daemon's token if it can be read: its holder is shown what is private."""
        if self._token_store is None:
            return None
        text = try_read(self._token_store / TOKEN_NAME).strip()
        return text if _ADMIN_TOKEN.fullmatch(text) else None

    def _change(self, method: str, path: str, body: Json | None = None) -> Json:
        headers = {"Authorization": f"Bearer {self._load_admin_token()}", "X-P2PCache": "1"}
        return self._request(method, path, body, headers)

    def _load_admin_token(self) -> str:
        """
        Read the token of the store that was named, else of the one that the daemon names.

        Raises:
            ForbiddenError: This user may not read it, or there is none.
        """
        store = self._store
        if store is None:
            named = self._get("/status").get("store")
            store = Path(named) if isinstance(named, str) and named else default_store()
        path = store / TOKEN_NAME
        text = try_read(path).strip()
        if not _ADMIN_TOKEN.fullmatch(text):
            self._check_answers()  # without a daemon that is the news, not the token
        if not _ADMIN_TOKEN.fullmatch(text):
            raise ForbiddenError(
                f"No admin token can be read in {path}; run this as the daemon's user, "
                "or name the daemon's store with --store DIR."
            )
        return text

    def _check_answers(self) -> None:
        import socket

        try:
            socket.create_connection((self._host, self._port), self._timeout_s).close()
        except OSError as error:
            raise self._unreachable() from error

    def _request(
        self,
        method: str,
        path: str,
        body: Json | None,
        headers: dict[str, str],
        *,
        timeout_s: float | None = None,
    ) -> Json:
        import http.client

        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers = {**headers, "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, API_PREFIX + path, content, headers)
            response = connection.getresponse()
            answer = response.read(ANSWER_BYTES_MAX + 1)
        except TimeoutError as error:
            raise DaemonUnreachableError(
                f"The daemon at {self.url} did not answer within {timeout_s:g} s; "
                "look at its log, or start it again with: p2pcache up"
            ) from error
        except http.client.HTTPException as error:
            # A daemon that ended in between, before its answer or inside it.
            if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
                raise self._unreachable() from error
            raise self._not_ours() from error
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
                raise self._unreachable(f" ({error.strerror or error})") from error
            raise self._unreachable() from error
        finally:
            connection.close()
        # What a sized read leaves open: the connection ended before the length that was promised.
        if response.length and len(answer) <= ANSWER_BYTES_MAX:
            raise self._unreachable()
        return self._read(response.status, answer)

    def _read(self, status: int, answer: bytes) -> Json:
        """Return the decoded answer, or raise the error that it holds."""
        if len(answer) > ANSWER_BYTES_MAX:
            raise self._not_ours()
        try:
            decoded = json.loads(answer) if answer.strip() else {}
        except (ValueError, RecursionError) as error:
            raise self._not_ours(status) from error
        if not isinstance(decoded, dict):
            raise self._not_ours(status)
        if status >= 400:
            if not isinstance(decoded.get("error"), str):
                raise self._not_ours(status)
            if decoded["error"] == "MissingToken":
                raise ForbiddenError(
                    f"The daemon at {self.url} has another store than the one whose admin token "
                    "was shown; name the daemon's store with --store DIR."
                )
            raise error_of_answer(status, decoded)
        if status >= 300:
            raise self._not_ours(status)
        return decoded

    def _unreachable(self, reason: str = "") -> DaemonUnreachableError:
        return DaemonUnreachableError(
            f"No daemon answers at {self.url}{reason}; start one with: p2pcache up"
        )

    def _not_ours(self, status: int | None = None) -> DaemonError:
        shown = "" if status is None else f" (status {status})"
        return DaemonError(
            f"What answers at {self.url} is no p2pcache daemon of this release{shown}; "
            "name the daemon's endpoint with --local HOST:PORT."
        )
