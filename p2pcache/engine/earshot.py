"""
Owns whose word on a blob counts.

Knows nothing of exchanges: it is told when a peer speaks.
Invariants: a look at the world costs what the neighbours are, not what all known daemons are; who
speaks counts at once.
Source: design.md §9; core/neighbours.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from p2pcache.core.digest import BlobDigest
from p2pcache.core.neighbours import Neighbourhood
from p2pcache.engine.peer import Peer

# Who chose us as its neighbour, and fetches, speaks to us more often than this.
RECENT_S = 3.0
# Of complete peers that are not near, so many are more than enough to receive from.
FAR_COMPLETE_MAX = 4
# In a crowd, who fell silent is noticed this often: at every look of every fetch, hundreds would
# be looked at for the sake of a few.
EARSHOT_INTERVAL_S = 0.5


@dataclass(slots=True)
class _Found:
    since_s: float
    peers: dict[str, Peer]


class Earshot:
    """Whose word counts on the blobs that are fetched. One owner (the event loop)."""

    def __init__(self) -> None:
        self._found: dict[BlobDigest, _Found] = {}

    def find(
        self,
        blob: BlobDigest,
        peers: Mapping[str, Peer],
        banned: Set[str],
        neighbourhood: Neighbourhood,
        *,
        now_s: float,
    ) -> Iterable[Peer]:
        """
        Return the peers whose word on a blob counts.

        Args:
            blob: What is fetched.
            peers: All that are known.
            banned: Those of them whose word is worth nothing.
            neighbourhood: Whom we talk to.
            now_s: The time.
        """
        found = self._found.get(blob) if neighbourhood.is_crowded else None
        if found is None or now_s - found.since_s >= EARSHOT_INTERVAL_S:
            up = (peer for peer in peers.values() if peer.peer_id not in banned)
            heard = filter_heard(blob, up, neighbourhood, now_s=now_s)
            if not neighbourhood.is_crowded:
                return heard
            found = self._found[blob] = _Found(now_s, {peer.peer_id: peer for peer in heard})
        # Who is gone, or banned, since a moment is still among them.
        kept = found.peers.items()
        return (peer for i, peer in kept if i not in banned and peers.get(i) is peer)

    def note(self, blob: BlobDigest, peer: Peer) -> None:
        """Note that a peer spoke of a blob."""
        if (found := self._found.get(blob)) is not None:
            found.peers[peer.peer_id] = peer

    def forget(self, blob: BlobDigest) -> None:
        """Drop what is kept for a blob that is not fetched any more."""
        self._found.pop(blob, None)


def filter_heard(
    blob: BlobDigest, peers: Iterable[Peer], neighbourhood: Neighbourhood, *, now_s: float
) -> Iterator[Peer]:
    """
    Iterate over the peers whose word on a blob counts.

    It is recent; or it is that they hold all of it, which stays true.
    """
    far_complete = 0
    for peer in peers:
        word = peer.words.get(blob)
        if word is None:
            continue
        if now_s - word.heard_s < RECENT_S or neighbourhood.counts(blob, peer.peer_id):
            yield peer
        elif word.entry.have.is_full():
            far_complete += 1
            if far_complete <= FAR_COMPLETE_MAX:
                yield peer
