"""
Owns putting the engine together from a configuration.

Knows nothing of listeners.
Invariants: what was opened is closed when a later part fails to open.
Source: docs/explanation/architecture.md.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from contextlib import AsyncExitStack
from random import SystemRandom
from urllib.parse import urlsplit

from p2pcache.clock import SystemClock
from p2pcache.config import DaemonConfig
from p2pcache.engine.budget import UpstreamBudget
from p2pcache.engine.cache import Cache
from p2pcache.engine.context import Context
from p2pcache.engine.indexthread import IndexThread
from p2pcache.engine.settings import EngineSettings
from p2pcache.hubs.huggingface import HuggingFaceHub
from p2pcache.hubs.modelscope import ModelScopeHub
from p2pcache.hubs.router import HubRouter
from p2pcache.store.blobs import FileBlobStore
from p2pcache.store.home import StoreHome
from p2pcache.store.hubtree import HubTree
from p2pcache.store.rebuild import recover
from p2pcache.transfer.connection import ConnectionPool

log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Return whether a host name is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def may_trust_upstream(url: str) -> bool:
    """
    Return whether bytes of this hub may be read before the whole file is proven.

    Verified TLS says who sends them; on loopback nobody stands in between.
    """
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_private_upstream(url: str) -> bool:
    """Return whether the hub itself is inside a private network, and so may its redirects be."""
    host = urlsplit(url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".internal", ".local"))


def _settings_of(config: DaemonConfig, home: StoreHome) -> EngineSettings:
    return EngineSettings(
        store=home.root,
        name=config.name,
        peer_id=home.peer_id,
        hf_upstream=config.hf_upstream.rstrip("/"),
        trust_peers=config.trust_peers,
        quota_bytes=config.quota_bytes,
        free_floor_bytes=config.free_floor_bytes,
        upstream_limit_bps=config.upstream_limit_bps,
        download_limit_bps=config.download_limit_bps,
        upload_limit_bps=config.upload_limit_bps,
        peer_limit_bps=config.peer_limit_bps,
        public_ttl_s=config.public_ttl_s,
        offline_grace_s=config.offline_grace_s,
        downloads_max=config.downloads_max,
        allow_paths=config.allow_paths,
        labels=config.labels,
    )


async def open_cache(config: DaemonConfig, stack: AsyncExitStack) -> Cache:
    """
    Lock the store, open the index, recover, connect the parts.

    Args:
        config: What the operator wants.
        stack: Closes everything in reverse order.

    Raises:
        ConfigError, StoreError: The store cannot be used.
    """
    home = StoreHome(config.store)
    await asyncio.to_thread(home.open)
    stack.callback(home.close)
    index = IndexThread()
    stack.push_async_callback(index.close)
    await index.open(home.index_path)
    store, tree, clock = FileBlobStore(home.root), HubTree(home.hub_path), SystemClock()
    report = await index.call(lambda i: recover(store, tree, i, wall_s=clock.wall_s()))
    if report.was_rebuilt and (report.blobs_found or report.partials):
        log.warning("the index was rebuilt from the store: %d blobs", report.blobs_found)
    budget = UpstreamBudget(clock, SystemRandom(), limit_bps=config.upstream_limit_bps)
    huggingface = HuggingFaceHub(config.hf_upstream, budget)
    # Each hub counts its own requests, and asks for its own pauses.
    modelscope = ModelScopeHub(config.ms_upstream, UpstreamBudget(clock, SystemRandom()))
    for hub in (huggingface, modelscope):
        hub.open()
        stack.push_async_callback(hub.close)
    upstreams = (config.hf_upstream, config.ms_upstream)
    peer_pool = ConnectionPool(allows_private=True, uses_proxy=False)
    stack.callback(peer_pool.close)
    upstream_pool = ConnectionPool(
        allows_private=any(map(is_private_upstream, upstreams)), uses_proxy=True
    )
    stack.callback(upstream_pool.close)
    context = Context(
        settings=_settings_of(config, home),
        clock=clock,
        home=home,
        store=store,
        tree=tree,
        index=index,
        hub=HubRouter(huggingface, modelscope),
        peer_pool=peer_pool,
        upstream_pool=upstream_pool,
        upstream_is_trusted=all(map(may_trust_upstream, upstreams)),
        random=SystemRandom(),
        budget=budget,
    )
    stack.callback(context.close_threads)
    await context.taints.load()
    cache = Cache(context)
    stack.push_async_callback(cache.close)
    await cache.space.open()
    return cache
