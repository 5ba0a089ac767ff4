"""
Owns blocking HTTP connections for bulk bytes, kept open between runs.

Knows nothing of chunks. The standard library's client is used because it alone reads a body
into the caller's buffer without a copy and with the GIL released.
Invariants: a connection serves one request at a time; one that failed is never used again; a body
is never read beyond the length that was announced.
Source: docs/decisions/0002-bulk-bytes-in-threads.md and 0014-proof-from-memory.md; recv(2),
socket(7).
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import struct
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from p2pcache.core.upstream import origin_of
from p2pcache.errors import UpstreamProtocolError

# Longest time without any byte; slow is not dead, so this measures silence, not duration.
SILENCE_S_MAX = 15.0
CONNECT_S_MAX = 5.0
IDLE_CONNECTIONS_MAX = 8
# How long one read may wait in all before it returns with what came: on a slow line bytes are
# counted, and readers served, this often; on a fast one a whole chunk is one system call.
PAUSE_S = 0.05
# One read where the kernel cannot be told to wait for more: TLS, and bodies of unknown length.
PIECE_BYTES = 512 * 1024
# A redirect's text has some hundred bytes; a longer body is cheaper to cut than to read.
SKIPPED_BODY_BYTES_MAX = 16 * 1024

# Addresses that a translator turns into the IPv4 address in their last four bytes (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_PAUSE = struct.pack("@ll", 0, int(PAUSE_S * 1_000_000))  # struct timeval

BodyError = (OSError, http.client.HTTPException)


@dataclass(slots=True)
class Exchange:
    """One request under way: read the body, then finish() or fail()."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    pool: ConnectionPool
    key: tuple[str, str, int]
    line: Line | None = None
    # Bytes of the body that came with its head; None until somebody looked.
    _ahead_bytes: int | None = None

    def read_into(self, view: memoryview) -> None:
        """
        Fill view from the body.

        Raises:
            OSError, http.client.HTTPException: The body ended early or the connection broke.
        """
        done = 0
        while done < len(view):
            done += self.read_some(view[done:])

    def read_some(self, view: memoryview) -> int:
        """
        Fill view from the body, or as much of it as comes before the line pauses.

        Args:
            view: Where to; not empty.

        Returns:
            How many bytes came; at least one.

        Raises:
            OSError, http.client.HTTPException: The body ended early or the connection broke.
        """
        assert len(view) > 0, "a read of nothing would look like the end"
        length, connected = self.response.length, self.connection.sock
        is_encrypted = isinstance(connected, ssl.SSLSocket)
        if not length or connected is None or is_encrypted:
            count = self.response.readinto(view[:PIECE_BYTES])
        elif self._count_ahead() > 0:
            count = self.response.readinto(view[: self._count_ahead()])
            self._ahead_bytes = self._count_ahead() - count
        else:
            count = _receive(connected, view[:length])
            self.response.length = length - count
            if count == length:
                self.response.close()
        if count == 0:
            raise http.client.IncompleteRead(b"", len(view))
        return count

    def _count_ahead(self) -> int:
        """Return how many bytes of the body http.client has read with the head, and kept."""
        if self._ahead_bytes is None:
            self._ahead_bytes = len(self.response.fp.peek())
        return self._ahead_bytes

    def finish(self) -> None:
        """Return the connection for the next run if its body was read to the end."""
        if self.response.isclosed() and not self.response.will_close:
            if self.connection.sock is not None:
                self.connection.sock.settimeout(SILENCE_S_MAX)
            if self.line is not None:
                self.line.release(self.connection.sock)
            self.pool.put(self.key, self.connection)
        else:
            self.fail()

    def skip_body(self) -> None:
        """Read a redirect's short text, so that the connection can serve the next request."""
        if self.response.length is not None and self.response.length <= SKIPPED_BODY_BYTES_MAX:
            with contextlib.suppress(*BodyError):
                self.response.read()
        self.finish()

    def fail(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.response.close()
        self.connection.close()


def _receive(connected: socket.socket, view: memoryview) -> int:
    """
    Have the kernel fill view, in one system call, where http.client would need one for each few
    packets, and the interpreter's lock twice.

    Returns:
        How many bytes came, fewer than asked when the line paused; 0 at its end.

    Raises:
        OSError: The connection broke, or was silent for too long.
    """
    if connected.gettimeout() is not None:
        # MSG_WAITALL works on sockets that block; the kernel keeps the time in Python's place.
        connected.settimeout(None)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PAUSE)
    silent_s = 0.0
    while True:
        try:
            return connected.recv_into(view, 0, socket.MSG_WAITALL)
        except BlockingIOError as error:
            silent_s += PAUSE_S
            if silent_s >= SILENCE_S_MAX:
                raise TimeoutError("timed out") from error


class ConnectionPool:
    """Idle connections by origin. Safe from several threads."""

    def __init__(self, *, allows_private: bool, uses_proxy: bool) -> None:
        """
        Args:
            allows_private: Whether hosts with private addresses may be asked. A public hub's
                redirect must not make us ask the inside of our own network.
            uses_proxy: Whether the environment's proxy settings count.
        """
        self._allows_private = allows_private
        self._proxies = urllib.request.getproxies() if uses_proxy else {}
        self._idle: dict[tuple[str, str, int], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()
        self._tls = ssl.create_default_context()

    def put(self, key: tuple[str, str, int], connection: http.client.HTTPConnection) -> None:
        """Keep an idle connection, or close it when there are enough."""
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if len(idle) < IDLE_CONNECTIONS_MAX:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            idle = [c for connections in self._idle.values() for c in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def request(self, url: str, headers: Mapping[str, str], line: Line | None = None) -> Exchange:
        """
        Send a GET and read the answer's head.

        A kept connection that the other side has closed meanwhile is replaced.

        Raises:
            OSError, http.client.HTTPException: No connection, or it broke.
            UpstreamProtocolError: The address is not one to ask.
        """
        key = origin_of(url)
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            if line is not None:
                line.check_not_cut()
            kept = self._take(key)
            connection = kept or self._connect(key)
            try:
                if line is not None:
                    line.hold(connection.sock)
                connection.request("GET", target, headers=dict(headers))
                return Exchange(connection, connection.getresponse(), self, key, line)
            except BodyError as error:
                connection.close()
                # Silence is not a stale connection: another one would wait as long again.
                if kept is None or isinstance(error, TimeoutError):
                    raise

    def _take(self, key: tuple[str, str, int]) -> http.client.HTTPConnection | None:
        with self._lock:
            idle = self._idle.get(key)
            return idle.pop() if idle else None

    def _connect(self, key: tuple[str, str, int]) -> http.client.HTTPConnection:
        scheme, host, port = key
        proxy = None if self._is_direct(host) else self._proxies.get(scheme)
        if proxy is None and not self._allows_private:
            refuse_private_addresses(host, port)
        connect_to = _proxy_address(proxy) if proxy else (host, port)
        connection = (
            http.client.HTTPSConnection(*connect_to, timeout=CONNECT_S_MAX, context=self._tls)
            if scheme == "https"
            else http.client.HTTPConnection(*connect_to, timeout=CONNECT_S_MAX)
        )
        if proxy:
            connection.set_tunnel(host, port)
        try:
            connection.connect()
            assert connection.sock is not None, "connect() opens a socket"
            if proxy is None and not self._allows_private:
                # The name may have resolved to something else this time.
                refuse_private_addresses(*connection.sock.getpeername()[:2])
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(SILENCE_S_MAX)
        return connection

    def _is_direct(self, host: str) -> bool:
        return not self._proxies or bool(urllib.request.proxy_bypass(host))


def _is_public(text: str) -> bool:
    """Return whether everybody can reach an address; one that carries an IPv4 one is that one."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            carried = ipaddress.IPv4Address(address.packed[-4:])
        if carried is not None:
            return carried.is_global
    return address.is_global


def _proxy_address(proxy: str) -> tuple[str, int]:
    """Return host and port of a proxy setting, which may come without a scheme."""
    return origin_of(proxy if "://" in proxy else f"http://{proxy}")[1:]


class Line:
    """
    One source's use of a pool, which another thread can cut: a run that waits for bytes that
    nobody wants any more ends at once instead of after SILENCE_S_MAX.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._held: set[socket.socket] = set()
        self._is_cut = False

    def request(self, url: str, headers: Mapping[str, str]) -> Exchange:
        """Send a GET through the pool; raises as ConnectionPool.request."""
        return self._pool.request(url, headers, self)

    def check_not_cut(self) -> None:
        """
        Insist that the line was not cut, before a kept connection is taken for it.

        Raises:
            ConnectionAbortedError: The line was cut.
        """
        if self._is_cut:
            raise ConnectionAbortedError("the bytes are not wanted any more")

    def hold(self, connected: socket.socket | None) -> None:
        """
        Note a connection that is in use from now on.

        Raises:
            ConnectionAbortedError: The line was cut.
        """
        with self._lock:
            self.check_not_cut()
            self._held = {held for held in self._held if held.fileno() >= 0}
            if connected is not None:
                self._held.add(connected)

    def release(self, connected: socket.socket | None) -> None:
        """Note that a connection goes back to the pool, whole."""
        with self._lock:
            if connected is not None:
                self._held.discard(connected)

    def cut(self) -> None:
        """End every request under way, and refuse new ones. Safe to call twice."""
        with self._lock:
            self._is_cut = True
            for held in self._held:
                # Not held.shutdown(): that of a TLS socket also drops its keys, and the thread
                # that reads would be given what is left in the buffer as it is, encrypted.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(held, socket.SHUT_RDWR)


def refuse_private_addresses(host: str, port: int) -> None:
    """
    Insist that a host has public addresses only.

    Raises:
        UpstreamProtocolError: One of its addresses is private, loopback or link-local.
        OSError: The name does not resolve.
    """
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not _is_public(str(address[0]).partition("%")[0]):
            raise UpstreamProtocolError(
                f"The hub redirects to {host!r}, which is inside a private network; not followed."
            )
