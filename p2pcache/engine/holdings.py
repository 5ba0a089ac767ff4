"""
Owns asking the peers how much they have of a model that nobody fetches now, and answering them.

Knows nothing of what the answer is for.
Invariants: asked and told is of public content alone, by digest; whoever asks again within a few
seconds gets what was heard; a peer that does not answer holds nobody up for long, nor twice.
Source: docs/reference/peer-protocol.md (holdings); design.md §7 and §8.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

from p2pcache.core.digest import BlobDigest
from p2pcache.core.holdings import (
    BLOBS_PER_QUESTION_MAX,
    Eta,
    HoldingsAnswer,
    HoldingsQuestion,
)
from p2pcache.engine.context import Context
from p2pcache.engine.peer import Peer
from p2pcache.engine.single import SingleFlight
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import InputError, P2PCacheError

log = logging.getLogger(__name__)

# What a peer said counts for so long: a scheduler that asks every node asks within that.
ANSWER_AGE_S_MAX = 3.0
# Neighbours answer in milliseconds. Who asks how much is missing waits no longer than this for a
# slow one; who asks for the whole cluster waits as long as any request to a peer may take.
WAIT_S = 0.25
# A peer that did not answer is left alone for so long.
SILENCE_S = 15.0
# Requests at once.
PEERS_AT_ONCE_MAX = 64
# Models whose answers are kept.
MODELS_KEPT_MAX = 256


@dataclass(frozen=True, slots=True)
class PeerHolding:
    """What a peer said: bytes of each blob, and when it would have the rest. None: no answer."""

    peer_id: str
    name: str
    held: dict[BlobDigest, int] | None
    eta: Eta | None = None

    @property
    def held_bytes(self) -> int | None:
        """Return the bytes of all blobs together."""
        return None if self.held is None else sum(self.held.values())


@dataclass(frozen=True, slots=True)
class _Heard:
    blobs: tuple[tuple[BlobDigest, int], ...]
    heard_s: float
    answers: dict[str, PeerHolding]


class Holdings:
    """What peers say of models. Event loop only."""

    def __init__(self, context: Context, swarm: Swarm) -> None:
        self._context = context
        self._swarm = swarm
        self._flights = SingleFlight()
        self._slots = asyncio.Semaphore(PEERS_AT_ONCE_MAX)
        self._heard: OrderedDict[Hashable, _Heard] = OrderedDict()
        # Peers that did not answer, until when they are not asked.
        self._silent_until_s: dict[str, float] = {}

    async def ask(
        self, key: Hashable, blobs: Sequence[tuple[BlobDigest, int]], *, is_patient: bool = False
    ) -> list[PeerHolding]:
        """
        Return what each peer that is up has of some public blobs.

        Args:
            key: Which model it is about; answers are kept under it.
            blobs: Digests and sizes; of more than BLOBS_PER_QUESTION_MAX the largest are asked for.
            is_patient: Wait for slow peers, ask those too that were silent.
        """
        asked = tuple(sorted(blobs, key=lambda blob: (-blob[1], blob[0])))[:BLOBS_PER_QUESTION_MAX]
        now_s = self._context.clock.monotonic_s()
        heard = self._heard.get(key)
        is_fresh = heard is not None and 0 <= now_s - heard.heard_s < ANSWER_AGE_S_MAX
        if heard is None or not is_fresh or heard.blobs != asked:
            heard = _Heard(asked, now_s, {})
        self._keep(key, heard)
        peers = [peer for peer in self._swarm.iter_up() if not peer.is_gone]
        missing = [peer for peer in peers if heard.answers.get(peer.peer_id) is None]
        if not is_patient:
            missing = [p for p in missing if self._silent_until_s.get(p.peer_id, 0.0) <= now_s]
        if missing:
            timeout_s = None if is_patient else WAIT_S
            await self._ask_all(heard, missing, timeout_s)
        nothing = {peer.peer_id: PeerHolding(peer.peer_id, peer.name, None) for peer in peers}
        return [heard.answers.get(peer_id, silent) for peer_id, silent in nothing.items()]

    async def close(self) -> None:
        """Stop asking."""
        await self._flights.close()

    async def _ask_all(self, heard: _Heard, peers: list[Peer], timeout_s: float | None) -> None:
        def take_in(task: asyncio.Task[PeerHolding | None]) -> None:
            # Also one that comes too late for who asked: the next one asks within seconds.
            holding = None if task.cancelled() or task.exception() else task.result()
            if holding is not None:
                heard.answers[holding.peer_id] = holding

        tasks = set()
        for peer in peers:
            key = peer.peer_id, heard.blobs
            task = self._flights.start(key, partial(self._ask, heard.blobs, peer))
            task.add_done_callback(take_in)
            tasks.add(task)
        await asyncio.wait(tasks, timeout=timeout_s)
        now_s = self._context.clock.monotonic_s()
        for peer in peers:
            if peer.peer_id in heard.answers:
                self._silent_until_s.pop(peer.peer_id, None)
            else:
                self._silent_until_s[peer.peer_id] = now_s + SILENCE_S
        known = self._swarm.peers
        for peer_id in [p for p in self._silent_until_s if p not in known]:
            del self._silent_until_s[peer_id]

    async def _ask(
        self, blobs: tuple[tuple[BlobDigest, int], ...], peer: Peer
    ) -> PeerHolding | None:
        question = HoldingsQuestion(blobs)
        sizes = [size for _, size in blobs]
        try:
            async with self._slots:
                message = await self._swarm.link.post(peer.url, "/v1/holdings", question.to_json())
            answer = HoldingsAnswer.from_json(message, sizes)
        except (P2PCacheError, InputError) as error:
            log.debug("peer %s does not say what it has: %s", peer.name, error)
            return None
        counted = zip(blobs, answer.held_bytes, strict=True)
        held = {blob: count for (blob, _), count in counted if count}
        return PeerHolding(peer.peer_id, peer.name, held, answer.eta)

    def _keep(self, key: Hashable, heard: _Heard) -> None:
        self._heard[key] = heard
        self._heard.move_to_end(key)
        while len(self._heard) > MODELS_KEPT_MAX:
            self._heard.popitem(last=False)
