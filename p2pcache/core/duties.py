"""
Owns who of a swarm owes which first copy of one blob, and who keeps it, as one member sees it.

Knows nothing of runs or of what is asked of whom.
Invariants: who is not stalled keeps what it announced, until that lapses; who owns nothing cannot
let anything lapse.
Source: design.md §6.2; tenure.py, which has the leases; docs/explanation/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from p2pcache.core.bitfield import Bitfield
from p2pcache.core.layout import Layout
from p2pcache.core.ownership import Ownership
from p2pcache.core.pace import Pace
from p2pcache.core.streamers import find_left_to
from p2pcache.core.tenure import Tenure
from p2pcache.core.views import PeerView

# Leases are seconds; they are not judged at every look.
WATCH_INTERVAL_S = 0.25
# Looked at for who owes what; more would only find the same members again.
OWING_SAMPLE_CHUNKS = 256


class Duties:
    """What the members owe, ourselves among them. watch() changes it; one owner."""

    def __init__(self, self_id: str, layout: Layout, ownership: Ownership, pace: Pace) -> None:
        """
        Args:
            self_id: Our own peer id.
            layout: The blob's chunks.
            ownership: Who owns which of them; read only.
            pace: What all fetches of the daemon share; read only.
        """
        # Members that own nothing: they stand, or are far slower than the others.
        self.stalled: set[str] = set()
        # Those of them that move: what they have announced may still come.
        self.slow: set[str] = set()
        # Chunks that did not come in time, and who had announced or owned them.
        self.lapsed: dict[int, set[str]] = {}
        # Whether somebody else brings what the hub has.
        self.is_relieved = False
        self._self_id, self._layout = self_id, layout
        self._ownership, self._pace = ownership, pace
        self._tenure = Tenure()
        self._watched_s: float | None = None

    def watch(
        self,
        peers: Sequence[PeerView],
        have: Bitfield,
        intent: Bitfield,
        *,
        first_copy_bytes: int,
        now_s: float,
        jitter: float,
        is_distrusted: bool,
        is_cut_off: bool,
    ) -> None:
        """
        Judge who keeps what it owes, every quarter of a second.

        While we cannot ask the hub, the others may not be able to either: when it is back, all
        would take over from all.

        Args:
            peers: All that are known for the blob.
            have: Our own chunks.
            intent: What we have announced.
            first_copy_bytes: What we have received of first copies of this blob.
            now_s: Monotonic seconds.
            jitter: 0 to 1, by chance.
            is_distrusted: Whether nobody takes what we bring.
            is_cut_off: Whether we cannot ask for first copies now.
        """
        if self._watched_s is not None and 0 <= now_s - self._watched_s < WATCH_INTERVAL_S:
            return
        self._watched_s = now_s
        peers = self.leave(peers, have)
        self._note_progress(peers, first_copy_bytes, now_s)
        if is_cut_off:
            self._tenure.excuse(now_s=now_s)
        owed = self._find_owed(peers, have, intent)
        nobody_has = self._find_nobodys(peers, have)
        claims = [
            (p.peer_id, i)
            for p in peers
            if p.is_fetching
            for i in islice(p.intent & nobody_has, OWING_SAMPLE_CHUNKS)
        ]
        # Not our own: whether we will bring what we owe, we know, and whoever gave us up says so.
        claims += [(owner, i) for owner, i in owed if owner != self._self_id]
        self._tenure.note_claims(
            claims,
            self._layout.length_of,
            now_s=now_s,
            chunk_s=self._pace.hub_chunk.quantile_s(0.95),
        )
        owing = self._find_owing(peers, have, intent) | {owner for owner, _ in owed}
        self._tenure.note_owing(owing, now_s=now_s, jitter=jitter)
        self.lapsed = self._tenure.find_lapsed()
        self.stalled = self._tenure.find_stalled(now_s=now_s)
        self.slow = self._tenure.find_slow(now_s=now_s)
        self.is_relieved = any(
            p.is_fetching and p.can_fetch_upstream and p.peer_id not in self.stalled for p in peers
        )
        if is_distrusted:
            # What we bring into the swarm nobody takes; the others bring it again.
            self.stalled.add(self._self_id)

    def leave(self, peers: Sequence[PeerView], have: Bitfield) -> list[PeerView]:
        """Count what is left to members as announced by them; see streamers.py."""
        return [
            replace(peer, intent=peer.intent | self._find_left_to(peer, have))
            if peer.is_hub_only and peer.peer_id not in self.stalled
            else peer
            for peer in peers
        ]

    def _find_left_to(self, peer: PeerView, have: Bitfield) -> Bitfield:
        return find_left_to(
            peer,
            have,
            self._layout,
            pace_bps=self._tenure.find_pace_bps(peer.peer_id),
            share=self._tenure.find_share(peer.peer_id),
        )

    def _note_progress(
        self, peers: Sequence[PeerView], first_copy_bytes: int, now_s: float
    ) -> None:
        self._tenure.forget({self._self_id, *(p.peer_id for p in peers)})
        self._tenure.note_progress(
            self._self_id,
            moved_bytes=self._pace.moved_bytes,
            received_bytes=first_copy_bytes,
            now_s=now_s,
        )
        for peer in peers:
            self._tenure.note_progress(
                peer.peer_id,
                moved_bytes=peer.moved_bytes,
                received_bytes=peer.received_bytes,
                now_s=now_s,
            )

    @staticmethod
    def _find_nobodys(peers: Sequence[PeerView], have: Bitfield) -> Bitfield:
        parts = [peer.have for peer in peers if not peer.have.is_full()]
        return Bitfield.full(have.length) - Bitfield.union(have.length, [have, *parts])

    def _find_owing(self, peers: Sequence[PeerView], have: Bitfield, intent: Bitfield) -> set[str]:
        """Return the members that announced a chunk that nobody has."""
        nobody_has = self._find_nobodys(peers, have)
        owing = {p.peer_id for p in peers if p.is_fetching and p.intent & nobody_has}
        if intent:
            owing.add(self._self_id)
        return owing

    def _find_owed(
        self, peers: Sequence[PeerView], have: Bitfield, intent: Bitfield
    ) -> list[tuple[str, int]]:
        """Return who owns which chunk that nobody has, nor announces: owners are waited for."""
        open_chunks = self._find_nobodys(peers, have) - intent
        for peer in peers:
            counts = peer.peer_id not in self.stalled or peer.peer_id in self.slow
            if peer.intent and peer.is_fetching and counts:
                lapsed_here = [i for i, who in self.lapsed.items() if peer.peer_id in who]
                kept = peer.intent - Bitfield.of(have.length, lapsed_here)
                open_chunks = open_chunks - kept
        owed = []
        for index in islice(open_chunks, OWING_SAMPLE_CHUNKS):
            # Who let it lapse is followed by the next in rank, who may be no better.
            lapsed, failed = self.lapsed.get(index, set[str]()), set[str]()
            while (owner := self._ownership.next_owner_of(index, failed)) is not None:
                owed.append((owner, index))
                if owner not in lapsed:
                    break
                failed.add(owner)
        return owed
