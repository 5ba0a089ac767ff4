"""
Owns whom this daemon may order to, and who may order it.

Knows nothing of the orders themselves.
Invariants: without a cluster key an order is taken from this machine, from addresses that the
operator named, and from private ones where the operator trusts peers; a worker that is not there,
or takes no orders, is told before anything begins.
Source: design.md §8 (workers); docs/decisions/0021-downloads.md.
"""

from __future__ import annotations

import asyncio
import ipaddress
from urllib.parse import urlencode

from p2pcache.core.workers import LABELS_MAX, Worker, asks_for_labels, choose_workers
from p2pcache.discovery.base import Candidate
from p2pcache.engine.cache import Cache
from p2pcache.engine.orderlink import OrderLink
from p2pcache.engine.swarm import is_private_address
from p2pcache.errors import (
    ForbiddenError,
    InputError,
    JobNotFoundError,
    P2PCacheError,
    PeerUnreachableError,
)
from p2pcache.store.handout import find_place

# Addresses that the operator's list may lead to; a name has a few, the list a thousand entries.
_NAMED_HOSTS_MAX = 4096


class Crew:
    """The daemons that work for each other. Event loop only."""

    def __init__(self, cache: Cache) -> None:
        self.link = OrderLink()
        self._cache = cache
        self._named: set[str] = set()

    def note_found(self, candidate: Candidate) -> None:
        """Remember an address that the operator named with --peer."""
        if candidate.via == "static" and len(self._named) < _NAMED_HOSTS_MAX:
            self._named.add(_plain(candidate.host))

    def may_order(self, host: str) -> bool:
        """Return whether an address may order downloads of this daemon."""
        plain = _plain(host)
        try:
            if ipaddress.ip_address(plain).is_loopback:
                return True
        except ValueError:
            return False
        if plain in self._named:
            return is_private_address(plain)
        return self._cache.context.settings.trust_peers and is_private_address(plain)

    def describe_self(self, host: str, path: str | None = None) -> dict[str, object]:
        """Return what GET /v1/worker tells a caller, who may ask about a folder too."""
        settings = self._cache.context.settings
        described: dict[str, object] = {
            "id": settings.peer_id,
            "name": settings.name,
            "labels": dict(settings.labels),
            "may_order": self.may_order(host),
        }
        if path is not None:
            try:
                find_place(settings.allow_paths, path)
                described["may_place"] = True
            except InputError:
                described["may_place"] = False
        return described

    def find_url(self, peer_id: str) -> str | None:
        """Return where a peer is now, None if it does not answer."""
        peer = self._cache.swarm.peers.get(peer_id)
        return None if peer is None else peer.url

    async def choose(self, selectors: tuple[str, ...], path: str | None = None) -> list[Worker]:
        """
        Return the daemons that an order is for; each of them answers and takes it.

        Args:
            selectors: Names, ids, labels or `*`.
            path: The folder that the order wants the files in as well.

        Raises:
            PeerNotFoundError: A selector fits nobody that answers.
            PeerUnreachableError: One does not answer any more.
            ForbiddenError: One takes no orders from here, or puts no files into that folder.
        """
        settings = self._cache.context.settings
        own = Worker(settings.peer_id, settings.name, "", True, dict(settings.labels))
        peers = [Worker(p.peer_id, p.name, p.url) for p in self._cache.swarm.iter_up()]
        if asks_for_labels(selectors):
            asked = await asyncio.gather(*(self._try_ask(peer) for peer in peers))
            peers = [answer[0] for answer in asked if answer is not None]
        chosen = choose_workers(selectors, [own, *peers])
        others = [worker for worker in chosen if not worker.is_self]
        if path is not None and len(others) < len(chosen):
            find_place(settings.allow_paths, path)
        await asyncio.gather(*(self._check(worker, path) for worker in others))
        return chosen

    async def list_willing(self) -> list[Worker]:
        """Return this daemon, and every peer that answers and takes its orders."""
        settings = self._cache.context.settings
        peers = [Worker(p.peer_id, p.name, p.url) for p in self._cache.swarm.iter_up()]
        asked = await asyncio.gather(*(self._try_ask(peer) for peer in peers))
        willing = [answer[0] for answer in asked if answer is not None and answer[1]]
        return [Worker(settings.peer_id, settings.name, "", True), *willing]

    async def close(self) -> None:
        """Close the connections to workers."""
        await self.link.close()

    async def _ask(self, worker: Worker, path: str | None = None) -> tuple[Worker, bool]:
        query = "" if path is None else f"?{urlencode({'path': path})}"
        answer = await self.link.ask("GET", worker.url, f"/v1/worker{query}")
        if answer.get("may_place") is False:
            raise ForbiddenError(
                f"{worker.name} puts no files into {path!r}; start it with --allow-path DIR, or "
                "leave the path out."
            )
        raw = answer.get("labels")
        pairs = list(raw.items())[:LABELS_MAX] if isinstance(raw, dict) else []
        labels = {k: v for k, v in pairs if isinstance(k, str) and isinstance(v, str)}
        known = Worker(worker.peer_id, worker.name, worker.url, labels=labels)
        return known, answer.get("may_order") is True

    async def _try_ask(self, worker: Worker) -> tuple[Worker, bool] | None:
        try:
            return await self._ask(worker)
        except P2PCacheError:
            return None  # it cannot be chosen by label then

    async def _check(self, worker: Worker, path: str | None) -> None:
        try:
            _, may_order = await self._ask(worker, path)
        except ForbiddenError:
            raise
        except JobNotFoundError as error:
            raise ForbiddenError(
                f"{worker.name} runs a release that takes no orders; update it, or pull there."
            ) from error
        except P2PCacheError as error:
            raise PeerUnreachableError(
                f"{worker.name} at {worker.url} does not answer; see whether it runs: p2pcache "
                "peers"
            ) from error
        if not may_order:
            raise ForbiddenError(
                f"{worker.name} takes no orders from this machine; start it with --peer and the "
                "address of this daemon, or with --trust-peers."
            )


def _plain(host: str) -> str:
    """Return an address without its zone, and one of IPv4 that came over IPv6 as itself."""
    text = host.partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
