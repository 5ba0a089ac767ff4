"""
Owns how the peers of this daemon are described: who, where, how they do, what they did wrong.

Knows nothing of HTTP, and of how any of it was learned.
Invariants: whoever is banned is listed, here or gone; field names are the contract's.
Source: docs/reference/http-api.md ("Who is there"); design.md §6.6.
"""

from __future__ import annotations

from p2pcache.core.cadence import PROBE_INTERVAL_S
from p2pcache.core.peers import Ban, Fault
from p2pcache.engine.cache import Cache
from p2pcache.engine.peer import Peer

# Every address is visited more often than that: one visit or two went unanswered.
SILENT_S = 2 * PROBE_INTERVAL_S


def describe_peers(cache: Cache) -> list[dict[str, object]]:
    """Return the peers that answered lately, then those that are banned and gone."""
    context, peers = cache.context, cache.swarm.peers
    now_s = context.clock.monotonic_s()
    bans = {ban.source_id: ban for ban in context.blame.list_bans(now_s=now_s)}
    listed = [_describe_peer(cache, peer, bans.get(peer.peer_id)) for peer in peers.values()]
    listed += [_describe_gone(cache, ban) for ban in bans.values() if ban.source_id not in peers]
    return listed


def _describe_peer(cache: Cache, peer: Peer, ban: Ban | None) -> dict[str, object]:
    silent_s = cache.context.clock.monotonic_s() - peer.last_seen_s
    state = "silent" if silent_s > SILENT_S else "up"
    return {
        "name": peer.name,
        "id": peer.peer_id,
        "address": peer.url.removeprefix("http://"),
        "version": peer.version,
        "via": peer.via,
        "state": state if ban is None else "banned",
        "rate_bps": round(peer.rate_bps),
        "received_bytes": peer.received_bytes,
        "requests_inflight": peer.requests_inflight,
        "last_seen_s": round(silent_s, 1),
        **_describe_blame(cache, peer.peer_id, ban),
    }


def _describe_gone(cache: Cache, ban: Ban) -> dict[str, object]:
    return {
        "name": ban.source_name,
        "id": ban.source_id,
        "address": None,
        "version": None,
        "via": None,
        "state": "banned",
        "rate_bps": 0,
        "received_bytes": 0,
        "requests_inflight": 0,
        "last_seen_s": None,
        **_describe_blame(cache, ban.source_id, ban),
    }


def _describe_blame(cache: Cache, source_id: str, ban: Ban | None) -> dict[str, object]:
    context = cache.context
    return {
        "reason": None if ban is None else ban.reason,
        "banned_until": None if ban is None else round(context.clock.wall_s() + ban.left_s, 1),
        "faults": [_describe_fault(fault) for fault in context.blame.list_faults(source_id)],
    }


def _describe_fault(fault: Fault) -> dict[str, object]:
    return {"reason": fault.reason, "detail": fault.detail, "at": fault.wall_s}
