"""
Owns the daemon's life: two listeners over one engine, discovery, a clean end.

Knows nothing of what is served.
Invariants: ready is announced once both listeners accept; SIGTERM and SIGINT drain and return;
a port that is taken or a store that is locked is one sentence, not a traceback.
Source: design.md §8 (command line).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web

from p2pcache.config import DaemonConfig
from p2pcache.core.messages import EXCHANGE_BYTES_MAX
from p2pcache.daemon.answers import answer_errors
from p2pcache.daemon.assembly import open_cache
from p2pcache.daemon.bundle_api import BundleApi
from p2pcache.daemon.check_api import CheckApi
from p2pcache.daemon.downloads_api import DownloadsApi
from p2pcache.daemon.events_api import EventsApi
from p2pcache.daemon.guard import Guard
from p2pcache.daemon.hf_gateway import BODY_BYTES_MAX, HuggingFaceGateway
from p2pcache.daemon.imports_api import ImportsApi
from p2pcache.daemon.management import Management
from p2pcache.daemon.metrics import Metrics
from p2pcache.daemon.ms_gateway import ModelScopeGateway
from p2pcache.daemon.orders_api import OrdersApi
from p2pcache.daemon.peer_api import PeerApi, check_private
from p2pcache.daemon.residency_api import ResidencyApi
from p2pcache.daemon.space_api import SpaceApi
from p2pcache.daemon.versions_api import VersionsApi
from p2pcache.discovery.base import Announcement, Candidate, Discovery
from p2pcache.discovery.mdns import MdnsDiscovery
from p2pcache.discovery.static import StaticDiscovery
from p2pcache.engine.cache import Cache
from p2pcache.engine.crew import Crew
from p2pcache.engine.downloads import Downloads
from p2pcache.engine.replicas import Replicas
from p2pcache.errors import ConfigError

log = logging.getLogger(__name__)

# A connection without a request for so long is closed; clients keep theirs for a minute.
KEEPALIVE_S = 75.0
# Bodies under way get this long to end after SIGTERM.
DRAIN_S = 5.0
BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Ready:
    """What `up` announces: the local endpoint's URL, the peer endpoint's address."""

    local: str
    peer: str
    name: str
    store: str


async def run_daemon(config: DaemonConfig, announce: Callable[[Ready], None]) -> None:
    """
    Run until SIGTERM or SIGINT.

    Args:
        config: What the operator wants.
        announce: Called once, when both listeners accept.

    Raises:
        ConfigError: A port is taken, or a setting cannot work.
        StoreError: The store is locked, full or of a later release.
    """
    raise_open_files_limit()
    logging.getLogger("aiohttp.server").addFilter(drop_traceback)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        local_socket = bind(config.local, "--local")
        stack.callback(local_socket.close)
        peer_socket = bind(config.listen, "--listen")
        stack.callback(peer_socket.close)
        cache = await open_cache(config, stack)
        downloads = Downloads(cache)
        stack.push_async_callback(downloads.close)
        peer_port = peer_socket.getsockname()[1]
        cache.swarm.open(peer_port)
        await serve(make_peer_app(cache, downloads), peer_socket, stack)
        local_app, management = make_local_app(cache, downloads, local_socket)
        await serve(local_app, local_socket, stack)
        await discover(config, cache, downloads.crew, peer_port, stack)
        await downloads.open()
        cache.checkup.open()
        cache.residencies.open()
        cache.access.visibility.open()
        ready = Ready(
            f"http://{show_address(local_socket)}",
            show_address(peer_socket),
            config.name,
            str(config.store),
        )
        management.endpoints = {"local": ready.local, "peer": ready.peer}
        cache.context.home.write_endpoint(ready.local, ready.peer, ready.name)
        announce(ready)
        await stop.wait()
        log.info("stopping")


def raise_open_files_limit() -> None:
    """Allow ourselves as many open files as the system does: each reader takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def drop_traceback(record: logging.LogRecord) -> bool:
    """Log a request that is no HTTP in one line: anybody who can connect can send some."""
    record.exc_info = None
    return True


class PlainHandler(web.RequestHandler):
    """A connection that does not repeat what it could not read: a token may be in that line."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is no HTTP."""
        said = message if status != 400 else "This request is no HTTP; look at its headers.\n"
        return super().handle_error(request, status, exc, said)


def bind(address: tuple[str, int], flag: str) -> socket.socket:
    """
    Open a listening socket.

    Raises:
        ConfigError: The port is taken, or the address is not this machine's.
    """
    host, port = address
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{host}:{port} is in use; stop what listens there, or choose another port "
                f"with {flag} (port 0 picks a free one)."
            ) from error
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({error.strerror}); change {flag}."
        ) from error
    listener.setblocking(False)
    return listener


def show_address(listener: socket.socket) -> str:
    """Return `host:port` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(app: web.Application, listener: socket.socket, stack: AsyncExitStack) -> None:
    """Accept connections until the stack unwinds."""
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=DRAIN_S,
        handler_cancellation=True,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None, "setup() makes it"

    def make_handler() -> PlainHandler:
        return PlainHandler(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=KEEPALIVE_S,
        )

    listening = await loop.create_server(make_handler, sock=listener, backlog=BACKLOG)
    stack.callback(listening.close)


def make_peer_app(cache: Cache, downloads: Downloads | None = None) -> web.Application:
    """Return the peer endpoint; without downloads, one that takes no orders."""
    app = web.Application(
        middlewares=[answer_errors, check_private], client_max_size=EXCHANGE_BYTES_MAX
    )
    PeerApi(cache).add_routes(app)
    if downloads is not None:
        OrdersApi(cache, downloads).add_routes(app)
    return app


def make_local_app(
    cache: Cache, downloads: Downloads, listener: socket.socket
) -> tuple[web.Application, Management]:
    """Return the local endpoint, and the part of it that wants to know the addresses."""
    guard = Guard(cache.context.home.admin_token)
    host, port = listener.getsockname()[:2]
    guard.allow_hosts(f"[{host}]" if ":" in host else host, port)
    metrics = Metrics(cache, downloads)
    app = web.Application(
        middlewares=[answer_errors, guard.check, metrics.count, metrics.time_residency],
        client_max_size=BODY_BYTES_MAX,
    )
    management = Management(cache, downloads, guard)
    management.add_routes(app)
    downloads_api = DownloadsApi(cache, downloads, guard)
    downloads_api.add_routes(app)
    EventsApi(cache, downloads, guard, downloads_api).add_routes(app)
    ResidencyApi(cache, guard).add_routes(app)
    replicas = Replicas(cache, downloads)
    app.on_startup.append(lambda _: replicas.open())
    app.on_shutdown.append(lambda _: replicas.close())
    SpaceApi(cache, guard, replicas).add_routes(app)
    VersionsApi(cache, guard).add_routes(app)
    BundleApi(cache, guard).add_routes(app)
    ImportsApi(cache, guard).add_routes(app)
    CheckApi(cache, guard).add_routes(app)
    app.router.add_get("/metrics", metrics.show)
    app.router.add_get("/healthz", answer_alive)
    app.router.add_get("/readyz", answer_alive)
    ModelScopeGateway(cache).add_routes(app)
    gateway = HuggingFaceGateway(cache)
    app.on_cleanup.append(gateway.close)
    app.router.add_route("*", "/{tail:.*}", gateway.handle)
    return app, management


async def answer_alive(request: web.Request) -> web.Response:
    """Say that the daemon answers; it listens only once it is ready."""
    return web.Response(text="ok\n")


async def discover(
    config: DaemonConfig, cache: Cache, crew: Crew, peer_port: int, stack: AsyncExitStack
) -> None:
    """Begin to announce ourselves and to look for peers, in every configured way."""
    ways: list[Discovery] = [StaticDiscovery(list(config.peers))] if config.peers else []
    if "mdns" in config.discover:
        ways.append(MdnsDiscovery())
    announcement = Announcement(
        cache.context.settings.peer_id, cache.context.settings.name, peer_port
    )

    def add(candidate: Candidate) -> None:
        crew.note_found(candidate)
        cache.swarm.add_candidate(candidate)

    for way in ways:
        try:
            await way.start(announcement, add, cache.swarm.drop_candidate)
        except ConfigError as error:
            # A machine without multicast still works alone and with --peer.
            log.warning("%s", error)
            continue
        stack.push_async_callback(way.stop)
