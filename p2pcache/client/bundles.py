"""
Owns moving bundles between the local daemon and a program: as streams, in pieces.

Knows nothing of the format or of files.
Invariants: memory holds one piece; a body that was broken off is never taken for a whole one.
Source: docs/reference/http-api.md ("Bundles").
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from p2pcache.client.answers import Json
from p2pcache.client.wire import ANSWER_BYTES_MAX, API_PREFIX, Wire
from p2pcache.core.refs import ModelReference
from p2pcache.errors import BlobCorruptError, DaemonError, DaemonUnreachableError, P2PCacheError

if TYPE_CHECKING:
    # At run time where they are used: other commands import this package and must start fast.
    from http.client import HTTPConnection, HTTPResponse

# Before the first byte the daemon may have to hash again what changed under it, and before the
# answer to an import it syncs and links: minutes, for hundreds of gigabytes.
BUNDLE_TIMEOUT_S = 1_800.0
PIECE_SIZE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ExportStream:
    """A bundle on its way here: what it is, and its bytes, once."""

    bundle_id: str
    model: str
    commit: str
    files: int
    size_bytes: int
    is_public: bool
    pieces: Iterator[bytes]


class BundleClient(Wire):
    """The bundles of one daemon. Every call opens its own connection and blocks."""

    def __init__(
        self,
        local: str | None = None,
        store: Path | None = None,
        *,
        timeout_s: float = BUNDLE_TIMEOUT_S,
    ) -> None:
        """Find the endpoint; see Wire."""
        super().__init__(local, store, timeout_s=timeout_s)

    @contextlib.contextmanager
    def open_export(self, ref: str) -> Iterator[ExportStream]:
        """
        Ask for a snapshot as a bundle.

        Raises:
            NotFoundError: It is not here, whole.
            BlobCorruptError: While reading: a file turned out damaged.
            DaemonError: While reading: the daemon went away, or broke off.
        """
        path = f"/bundles/{quote(str(ModelReference.parse(ref)), safe='')}"
        token = self._find_admin_token()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection = self._connect()
        # Before anything can go wrong: the daemon reads ahead of who receives.
        started_wall_s = time.time()
        try:
            with self._translating_errors():
                connection.request("GET", API_PREFIX + path, headers=headers)
                response = connection.getresponse()
            if response.status != 200:
                self._read(response.status, self._read_answer(response))
            yield self._open_stream(response, started_wall_s)
        finally:
            connection.close()

    def take_in(
        self,
        pieces: Iterable[bytes],
        *,
        bundle_id: str | None = None,
        is_public: bool | None = None,
    ) -> Json:
        """
        Import a bundle; returns when it is resident.

        Args:
            pieces: Its bytes.
            bundle_id: Refuse any other; None takes what comes.
            is_public: Whether anybody may have it; None believes the bundle.

        Returns:
            {id, model, commit, revisions, files, bytes, bytes_written, public, path}.

        Raises:
            BundleCorruptError: It is not what it says.
            StoreError: No room, or the disk failed; what was written is kept.
        """
        query = {} if bundle_id is None else {"id": bundle_id}
        if is_public is not None:
            query["visibility"] = "public" if is_public else "restricted"
        connection = self._connect()
        try:
            with self._translating_errors():
                connection.putrequest("POST", f"{API_PREFIX}/bundles?{urlencode(query)}")
                connection.putheader("Authorization", f"Bearer {self._load_admin_token()}")
                connection.putheader("X-P2PCache", "1")
                connection.putheader("Content-Type", "application/x-tar")
                connection.putheader("Transfer-Encoding", "chunked")
                connection.endheaders()
                _send(connection, pieces)
                response = connection.getresponse()
            return self._read(response.status, self._read_answer(response))
        finally:
            connection.close()

    def _connect(self) -> HTTPConnection:
        import http.client

        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)

    def _read_answer(self, response: HTTPResponse) -> bytes:
        with self._translating_errors():
            return response.read(ANSWER_BYTES_MAX + 1)

    def _open_stream(self, response: HTTPResponse, started_wall_s: float) -> ExportStream:
        try:
            size_bytes = int(response.headers["Content-Length"])
            return ExportStream(
                response.headers["X-P2PCache-Bundle"],
                response.headers["X-P2PCache-Model"],
                response.headers["X-P2PCache-Commit"],
                int(response.headers["X-P2PCache-Files"]),
                size_bytes,
                response.headers["X-P2PCache-Visibility"] == "public",
                self._iter_pieces(response, size_bytes, started_wall_s),
            )
        except (TypeError, ValueError) as error:
            raise self._not_ours(response.status) from error

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        import http.client

        try:
            yield
        except TimeoutError as error:
            raise DaemonUnreachableError(
                f"The daemon at {self.url} did not answer within {self._timeout_s:g} s; "
                "look at its log, or start it again with: p2pcache up"
            ) from error
        except (http.client.RemoteDisconnected, http.client.IncompleteRead) as error:
            raise self._unreachable() from error
        except http.client.HTTPException as error:
            raise self._not_ours() from error
        except OSError as error:
            raise self._unreachable(f" ({error.strerror or error})") from error

    def _iter_pieces(
        self, response: HTTPResponse, size_bytes: int, started_wall_s: float
    ) -> Iterator[bytes]:
        """Iterate over a body, to its very end."""
        import http.client

        received_bytes = 0
        while received_bytes < size_bytes:
            try:
                piece = response.read(min(PIECE_SIZE_BYTES, size_bytes - received_bytes))
            except (OSError, http.client.HTTPException):
                piece = b""
            if not piece:
                raise self._explain_break(started_wall_s)
            received_bytes += len(piece)
            yield piece

    def _explain_break(self, started_wall_s: float) -> P2PCacheError:
        """Return why a body was broken off: what the daemon says of it, or that it is gone."""
        try:
            faults = self._get("/status").get("faults", [])
        except P2PCacheError as error:
            return error
        for fault in reversed(faults):
            if fault.get("reason") == "damaged here" and fault.get("at", 0) >= started_wall_s:
                return BlobCorruptError(str(fault.get("detail")), path="")
        return DaemonError(f"The daemon at {self.url} broke the bundle off; its log says why.")


def _send(connection: HTTPConnection, pieces: Iterable[bytes]) -> None:
    """Send a body in pieces, or until the daemon answers: it has seen enough of it."""
    try:
        for piece in pieces:
            if _has_answer(connection):
                return
            connection.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
        connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        return  # the answer that came before says why


def _has_answer(connection: HTTPConnection) -> bool:
    if connection.sock is None:
        return True
    readable, _, _ = select.select([connection.sock], [], [], 0)
    return bool(readable)
