"""
Owns the crowd of the engine's tests: many peers, and who of them is near.

Knows nothing of connections.
Invariants: the same every time.
Source: core/neighbours.py.
"""

from __future__ import annotations

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.digest import BlobDigest
from p2pcache.core.layout import Layout
from p2pcache.core.messages import SwarmEntry
from p2pcache.core.neighbours import SPARES, Neighbourhood
from p2pcache.core.ownership import OWNERS_MAX
from p2pcache.core.rendezvous import find_highest
from p2pcache.engine.gossip import find_fetching
from p2pcache.engine.peer import Peer

BLOB = BlobDigest("sha256", "ab" * 32)
LAYOUT = Layout(4)
IDS = [f"{number + 1:032x}" for number in range(64)]
# The owners, and who is next.
CREW = find_highest(BLOB, IDS, OWNERS_MAX + SPARES)
# One that is neither.
SELF_ID = next(one for one in IDS if one not in CREW)


def make_entry(received_bytes: int = 0, *, have: bool = False) -> SwarmEntry:
    """Make what a member says of the blob."""
    bits = Bitfield.full(1) if have else Bitfield(1)
    fetching = not have
    return SwarmEntry(BLOB, LAYOUT.id, bits, Bitfield(1), fetching, False, received_bytes)


def make_peers(now_s: float = 100.0) -> tuple[Neighbourhood, dict[str, Peer]]:
    """Make a crowd whose members all have said once that they fetch the blob."""
    peers = {one: Peer(one, one[-4:], "10.0.0.1", 1) for one in IDS if one != SELF_ID}
    for peer in peers.values():
        peer.hear(make_entry(), now_s=now_s)
    hood = Neighbourhood(SELF_ID)
    hood.update(peers, {BLOB: find_fetching(BLOB, peers.values())})
    return hood, peers
