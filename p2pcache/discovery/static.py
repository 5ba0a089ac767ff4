"""
Owns discovery by a list that the operator wrote: --peer HOST:PORT.

Knows nothing of announcing: the list on the other machine names us, or mDNS does.
Invariants: each address is reported once; a name that does not resolve is tried until it does.
Source: design.md §9.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from p2pcache.discovery.address import parse_host_port
from p2pcache.discovery.base import Announcement, Candidate
from p2pcache.errors import ConfigError

PEERS_MAX = 1_024  # as many as mDNS may report; each unresolved one costs a look-up per retry
HOSTS_PER_NAME_MAX = 16  # a name for more machines than that is a job for --discover dns:NAME
RETRY_INTERVAL_S = 5.0  # a name that appears (a machine that boots) is found within seconds
LOOKUPS_INFLIGHT_MAX = 4  # each holds a thread of the loop's pool, which has others to serve

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_log = logging.getLogger(__name__)


async def resolve_host(host: str, port: int) -> list[str]:
    """
    Find the addresses of a name with the system's resolver, in a thread of the loop's pool.

    Raises:
        OSError: The name does not resolve now.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class StaticDiscovery:
    """Reports the peers of a list; never loses one, since nobody withdraws from a list."""

    def __init__(
        self,
        peers: Sequence[str],
        *,
        retry_interval_s: float = RETRY_INTERVAL_S,
        resolve: Resolve = resolve_host,
    ) -> None:
        """
        Check the list; nothing is looked up before start.

        Args:
            peers: HOST:PORT each, see parse_host_port. Repetitions count once.
            retry_interval_s: How long to wait before a failed name is tried again.
            resolve: Gives the addresses of a name, or raises OSError.

        Raises:
            InputError: An entry is not HOST:PORT.
            ConfigError: More than PEERS_MAX entries.
        """
        if len(peers) > PEERS_MAX:
            raise ConfigError(
                f"{len(peers)} peers are listed and {PEERS_MAX} are allowed; "
                "give them one DNS name and use --discover dns:NAME."
            )
        self._peers = list(dict.fromkeys(parse_host_port(peer) for peer in peers))
        self._retry_interval_s = retry_interval_s
        self._resolve = resolve
        self._lookups = asyncio.Semaphore(LOOKUPS_INFLIGHT_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._reported: set[Candidate] = set()
        self._started = False

    async def start(
        self,
        announcement: Announcement,
        on_found: Callable[[Candidate], None],
        on_lost: Callable[[Candidate], None],
    ) -> None:
        """Begin to resolve and report; does not wait for a resolver, and never reports a loss."""
        if self._started:
            return
        self._started = True
        self._reported.clear()
        self._tasks = [
            asyncio.create_task(self._watch(host, port, on_found), name=f"static {host}:{port}")
            for host, port in self._peers
        ]

    async def stop(self) -> None:
        """End every look-up that is still being retried. Safe to call twice."""
        self._started = False
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, host: str, port: int, on_found: Callable[[Candidate], None]) -> None:
        """Resolve one entry, again and again until it succeeds, and report what it gives."""
        warned = False
        while True:
            try:
                async with self._lookups:
                    addresses = await self._resolve(host, port)
            # UnicodeError: the idna codec refuses some names (an empty or overlong label).
            except (OSError, UnicodeError) as error:
                _log.log(
                    logging.DEBUG if warned else logging.WARNING,
                    "peer %s does not resolve (%s); trying again every %g s",
                    host,
                    error,
                    self._retry_interval_s,
                )
                warned = True
                await asyncio.sleep(self._retry_interval_s)
                continue
            for address in list(dict.fromkeys(addresses))[:HOSTS_PER_NAME_MAX]:
                self._report(Candidate(address, port, "static"), on_found)
            return

    def _report(self, candidate: Candidate, on_found: Callable[[Candidate], None]) -> None:
        """Report a candidate unless another entry of the list led to it already."""
        if candidate not in self._reported:
            self._reported.add(candidate)
            on_found(candidate)
