"""
Owns the tests of transfer.connection: reuse, staleness, private addresses, proxies.

Knows nothing of chunks.
Invariants: a connection that failed is never used again; an inside address is never connected to.
Source: transfer/connection.py.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from p2pcache.core.layout import CHUNK_SIZE_BYTES
from p2pcache.errors import UpstreamProtocolError
from p2pcache.transfer import connection
from p2pcache.transfer.connection import (
    IDLE_CONNECTIONS_MAX,
    BodyError,
    ConnectionPool,
    Exchange,
    Line,
    refuse_private_addresses,
)
from tests.transfer.conftest import ServerStarter
from tests.transfer.server import RawServer, Reply, Request


@pytest.fixture
def server(start_server: ServerStarter) -> RawServer:
    """A server that says hello."""
    return start_server(lambda _: Reply(body=b"hello"))


def read_and_finish(exchange: Exchange) -> bytes:
    """Read five bytes and give the connection back."""
    view = memoryview(bytearray(5))
    exchange.read_into(view)
    exchange.finish()
    return view.tobytes()


def test_pool_connection_is_used_again_after_finish(
    server: RawServer, pool: ConnectionPool
) -> None:
    """One connection serves request after request; path and query arrive, a fragment does not."""
    for path in ("", "/a?b=c", "/d#e", "?f"):
        assert read_and_finish(pool.request(server.url + path, {"X-Y": "z"})) == b"hello"
    assert [request.path for request in server.requests] == ["/", "/a?b=c", "/d", "/?f"]
    assert {request.headers["x-y"] for request in server.requests} == {"z"}
    assert server.connection_count == 1


def test_pool_exchanges_at_once_have_connections_of_their_own(
    server: RawServer, pool: ConnectionPool
) -> None:
    """Idle ones are kept up to a limit, the rest is closed."""
    count = IDLE_CONNECTIONS_MAX + 2
    for _ in range(2):
        for exchange in [pool.request(server.url, {}) for _ in range(count)]:
            read_and_finish(exchange)
    assert server.connection_count == count + 2


def test_pool_unfinished_body_closes_the_connection(
    server: RawServer, pool: ConnectionPool
) -> None:
    """A body that was not read to its end cannot be followed by another answer."""
    pool.request(server.url, {}).finish()
    pool.request(server.url, {}).fail()
    assert read_and_finish(pool.request(server.url, {})) == b"hello"
    assert server.connection_count == 3


def test_pool_close_ends_idle_connections(server: RawServer, pool: ConnectionPool) -> None:
    """After close() the pool still works, with new connections."""
    read_and_finish(pool.request(server.url, {}))
    pool.close()
    read_and_finish(pool.request(server.url, {}))
    assert server.connection_count == 2


def test_pool_body_that_ends_early_is_a_body_error(server: RawServer, pool: ConnectionPool) -> None:
    """Reading more than there is never returns less, and never hangs."""
    exchange = pool.request(server.url, {})
    with pytest.raises(BodyError):
        exchange.read_into(memoryview(bytearray(6)))
    exchange.fail()


def test_exchange_returns_what_came_when_the_line_pauses(
    server: RawServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow line is counted bit by bit; one that says nothing more ends as silent."""
    monkeypatch.setattr(connection, "SILENCE_S_MAX", 0.2)
    body = bytes(range(250)) * 400
    server.answer = lambda _: Reply(body=body, headers={"Content-Length": "200000"})
    exchange = pool.request(server.url, {})
    view = memoryview(bytearray(200_000))
    arrived = 0
    while arrived < len(body):
        arrived += exchange.read_some(view[arrived:])
    assert view[:arrived] == body
    with pytest.raises(TimeoutError):
        exchange.read_some(view[arrived:])
    exchange.fail()


def test_exchange_of_a_long_body_needs_few_reads(server: RawServer, pool: ConnectionPool) -> None:
    """What arrives without a pause is one read, but for what came with the head."""
    body = bytes(CHUNK_SIZE_BYTES)
    server.answer = lambda _: Reply(body=body)
    exchange = pool.request(server.url, {})
    view = memoryview(bytearray(len(body)))
    counts = [exchange.read_some(view)]
    while sum(counts) < len(body):
        counts.append(exchange.read_some(view[sum(counts) :]))
    assert len(counts) < len(body) // (64 * 1024)
    exchange.finish()
    assert say_hello(server, pool) == b"hello"
    assert server.connection_count == 1


def say_hello(server: RawServer, pool: ConnectionPool) -> bytes:
    """Have the server say hello again."""
    server.answer = lambda _: Reply(body=b"hello")
    return read_and_finish(pool.request(server.url, {}))


def test_exchange_after_a_long_body_still_times_out_its_head(
    server: RawServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection whose body the kernel waited for is an ordinary one again."""
    monkeypatch.setattr(connection, "SILENCE_S_MAX", 0.2)
    server.answer = lambda _: Reply(body=bytes(100_000))
    exchange = pool.request(server.url, {})
    exchange.read_into(memoryview(bytearray(100_000)))
    exchange.finish()
    server.answer = lambda _: Reply(is_silent=True)
    with pytest.raises(TimeoutError):
        pool.request(server.url, {})
    assert server.connection_count == 1


def test_pool_stale_connections_are_all_replaced(server: RawServer, pool: ConnectionPool) -> None:
    """However many kept connections the other side closed, the request goes through."""
    server.answer = lambda _: Reply(body=b"hello", closes=True)
    for exchange in [pool.request(server.url, {}) for _ in range(3)]:
        read_and_finish(exchange)
    assert read_and_finish(pool.request(server.url, {})) == b"hello"
    assert server.connection_count == 4


def test_pool_silence_on_a_kept_connection_is_not_tried_again(
    server: RawServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that stopped answering costs one silence, not one for each kept connection."""
    monkeypatch.setattr(connection, "SILENCE_S_MAX", 0.1)
    for exchange in [pool.request(server.url, {}) for _ in range(3)]:
        read_and_finish(exchange)
    server.answer = lambda _: Reply(is_silent=True)
    with pytest.raises(TimeoutError):
        pool.request(server.url, {})
    assert len(server.requests) == 4


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "", "http://", "http://127.0.0.1:x/"])
def test_pool_address_that_is_none_is_refused(pool: ConnectionPool, url: str) -> None:
    """Only http and https addresses are asked."""
    with pytest.raises(UpstreamProtocolError):
        pool.request(url, {})


# --- lines ---


def test_line_cut_ends_a_body_that_stopped(server: RawServer, pool: ConnectionPool) -> None:
    """A thread that waits in the kernel for the rest of a chunk goes on at once."""
    server.answer = lambda _: Reply(body=bytes(50_000), headers={"Content-Length": "90000"})
    line = Line(pool)
    exchange = line.request(server.url, {})
    view = memoryview(bytearray(90_000))
    exchange.read_into(view[:50_000])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(exchange.read_some, view[50_000:])
        line.cut()
        assert isinstance(waiting.exception(connection.SILENCE_S_MAX / 2), BodyError)
    exchange.fail()


def test_line_cut_ends_what_waits_and_refuses_what_comes(
    server: RawServer, pool: ConnectionPool
) -> None:
    """A thread that waits for a silent server goes on at once, long before the silence ends."""
    has_asked = threading.Event()

    def fall_silent(_: Request) -> Reply:
        has_asked.set()
        return Reply(is_silent=True)

    server.answer = fall_silent
    line = Line(pool)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(line.request, server.url, {})
        assert has_asked.wait(10)
        line.cut()
        line.cut()
        assert isinstance(waiting.exception(connection.SILENCE_S_MAX / 2), BodyError)
    with pytest.raises(ConnectionAbortedError):
        line.request(server.url, {})
    assert len(server.requests) == 1


def test_line_cut_leaves_kept_connections_to_others(
    server: RawServer, pool: ConnectionPool
) -> None:
    """What a finished request gave back is not cut, nor used up by refused ones."""
    line = Line(pool)
    read_and_finish(line.request(server.url, {}))
    line.cut()
    with pytest.raises(ConnectionAbortedError):
        line.request(server.url, {})
    assert read_and_finish(pool.request(server.url, {})) == b"hello"
    assert server.connection_count == 1


def test_line_cut_between_check_and_use_refuses_too(
    server: RawServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is cut while its request connects sends nothing."""
    line = Line(pool)
    real = ConnectionPool._connect

    def connect_late(self: ConnectionPool, key: tuple[str, str, int]) -> Any:
        connected = real(self, key)
        line.cut()
        return connected

    monkeypatch.setattr(ConnectionPool, "_connect", connect_late)
    with pytest.raises(ConnectionAbortedError):
        line.request(server.url, {})
    assert server.requests == []


def test_line_cut_of_a_tls_connection_never_yields_ciphertext(pool: ConnectionPool) -> None:
    """What is left in the socket's buffer must not be read as if it were the body."""
    ours, theirs = socket.socketpair()
    tls = ssl.create_default_context().wrap_socket(
        ours, server_hostname="hub.test", do_handshake_on_connect=False
    )
    line = Line(pool)
    line.hold(tls)
    theirs.sendall(b"encrypted")
    line.cut()
    buffer = bytearray(9)
    with contextlib.suppress(*BodyError):
        tls.recv_into(buffer)
    tls.close()
    theirs.close()
    assert buffer == bytes(9)


def test_line_connection_without_a_socket_is_passed_over(pool: ConnectionPool) -> None:
    """A connection that closed itself has nothing to cut; the line counts as cut all the same."""
    line = Line(pool)
    line.hold(None)
    line.release(None)
    line.cut()
    with pytest.raises(ConnectionAbortedError, match="not wanted"):
        line.hold(None)


# --- private addresses ---


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "::",
        "fe80::1%1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::10.0.0.1",
        "2002:a00:1::",
        "localhost",
    ],
)
def test_private_address_is_refused(host: str) -> None:
    """Loopback, private, link-local, carrier and mapped addresses are the inside."""
    with pytest.raises(UpstreamProtocolError):
        refuse_private_addresses(host, 80)


@pytest.mark.parametrize("host", ["1.1.1.1", "2606:4700:4700::1111", "64:ff9b::1.1.1.1"])
def test_public_address_passes(host: str) -> None:
    """What everybody can reach may be asked; its neighbour inside is still refused."""
    refuse_private_addresses(host, 80)
    with pytest.raises(UpstreamProtocolError):
        refuse_private_addresses("10.0.0.1", 80)


def test_pool_public_one_does_not_connect_to_the_inside(server: RawServer) -> None:
    """Nothing is sent, not even a handshake."""
    pool = ConnectionPool(allows_private=False, uses_proxy=False)
    with pytest.raises(UpstreamProtocolError):
        pool.request(server.url, {})
    assert server.connection_count == 0


def test_pool_name_that_changes_its_address_is_refused(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when looked up and private when connected to sends no request."""
    real: Callable[..., Any] = socket.getaddrinfo
    asked: list[str] = []

    def rebind(host: str, port: int, *args: Any, **more: Any) -> Any:
        if host == "rebinding.test":
            asked.append(host)
            host = "1.1.1.1" if len(asked) == 1 else "127.0.0.1"
        return real(host, port, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    pool = ConnectionPool(allows_private=False, uses_proxy=False)
    with pytest.raises(UpstreamProtocolError):
        pool.request(f"http://rebinding.test:{server.port}/", {})
    assert server.requests == []


# --- proxies ---


@pytest.fixture
def clean_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxy settings."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("form", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_pool_proxy_of_the_environment_is_used(
    server: RawServer, clean_proxies: pytest.MonkeyPatch, form: str
) -> None:
    """The proxy is asked to connect; the name is resolved there, so ours is not looked up."""
    clean_proxies.setenv("http_proxy", form.format(port=server.port))
    pool = ConnectionPool(allows_private=False, uses_proxy=True)
    server.answer = lambda request: (
        Reply(headers={"Content-Length": None})
        if request.path == "hub.test:80"
        else Reply(body=b"hello")
    )
    assert read_and_finish(pool.request("http://hub.test/x", {})) == b"hello"
    assert [request.path for request in server.requests] == ["hub.test:80", "/x"]
    pool.close()


def test_pool_proxy_is_bypassed_for_what_the_environment_says(
    server: RawServer, clean_proxies: pytest.MonkeyPatch
) -> None:
    """no_proxy is honoured; a pool for peers knows no proxy at all."""
    clean_proxies.setenv("http_proxy", "http://127.0.0.1:9")
    direct = ConnectionPool(allows_private=True, uses_proxy=False)
    assert read_and_finish(direct.request(server.url, {})) == b"hello"
    clean_proxies.setenv("no_proxy", "127.0.0.1")
    bypassing = ConnectionPool(allows_private=True, uses_proxy=True)
    assert read_and_finish(bypassing.request(server.url, {})) == b"hello"
    for pool in (direct, bypassing):
        pool.close()


def test_pool_https_to_a_plain_server_is_a_body_error(
    server: RawServer, pool: ConnectionPool
) -> None:
    """TLS that cannot begin is a broken connection, and leaves no socket behind."""
    with pytest.raises(BodyError):
        pool.request(f"https://127.0.0.1:{server.port}/", {})
