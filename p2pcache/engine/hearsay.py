"""
Owns asking trusted peers about repositories: what a revision is, which files a commit has.

Knows nothing of the hub, nor of what is kept of an answer.
Invariants: nobody is asked unless the operator trusts peers; an answer for anything but what was
asked is passed over.
Source: design.md §7; docs/reference/peer-protocol.md (GET /v1/snapshots).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from urllib.parse import quote

from p2pcache.core.digest import BlobDigest
from p2pcache.core.messages import snapshot_from_json
from p2pcache.core.refs import ModelReference, RepoId, is_commit
from p2pcache.core.rendezvous import find_owner
from p2pcache.core.saidrefs import SaidRef
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.context import Context
from p2pcache.engine.peer import Peer
from p2pcache.engine.peerlink import REQUEST_S_MAX
from p2pcache.engine.swarm import Swarm
from p2pcache.errors import InputError, SourceError

log = logging.getLogger(__name__)

# The owner puts three questions to the hub, and more for a long list; who does not answer at all is
# no peer any more after about as long.
ASK_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What a peer said; `age_s`: how long ago the hub told it so, None if it cannot say."""

    snapshot: Snapshot
    age_s: float | None


class Hearsay:
    """Questions to trusted peers. Event loop only."""

    def __init__(self, context: Context, swarm: Swarm) -> None:
        self._context = context
        self._swarm = swarm

    async def ask_owner(self, reference: ModelReference) -> Heard | None:
        """
        Ask the one peer whose turn it is to ask the hub about this repository, if it is not ours.

        So a site that starts at once puts one set of questions to the hub. None when nobody else
        is there, or the owner has nothing to say.
        """
        if not self._context.settings.trust_peers:
            return None
        if not self._swarm.peers:
            await self._swarm.begin_round()  # right after a start nobody was visited yet
        peers = {peer.peer_id: peer for peer in self._swarm.iter_up()}
        repo = reference.repo
        name = BlobDigest("sha256", hashlib.sha256(f"{repo.hub}:{repo}".encode()).hexdigest())
        owner = find_owner(name, 0, [self._context.settings.peer_id, *peers])
        if owner is None or owner not in peers:
            return None
        return await self._ask(peers[owner], reference, "?ask=1")

    async def ask_all(self, reference: ModelReference) -> Heard | None:
        """Ask everybody, one after the other, for what they know; the last resort."""
        if not self._context.settings.trust_peers:
            return None
        await self._swarm.begin_round()
        for peer in list(self._swarm.iter_up()):
            heard = await self._ask(peer, reference, "")
            if heard is not None:
                return heard
        return None

    async def _ask(self, peer: Peer, reference: ModelReference, query: str) -> Heard | None:
        path = _snapshot_path(reference.repo, reference.revision)
        timeout_s = ASK_S_MAX if query else REQUEST_S_MAX
        try:
            message = await self._swarm.link.get(peer.url, path + query, timeout_s=timeout_s)
            snapshot, said = snapshot_from_json(message), SaidRef.find_in(message)
            is_asked_for = snapshot.id.repo == reference.repo and (
                not is_commit(reference.revision) or snapshot.id.commit == reference.revision
            )
            if not is_asked_for:
                raise InputError("It answered for another repository.")
        except (SourceError, InputError) as error:
            log.debug("peer %s has no list of %s: %s", peer.name, reference, error)
            return None
        return Heard(snapshot, None if said is None else said.age_s)


def _snapshot_path(repo: RepoId, revision: str) -> str:
    kind = "" if repo.kind == "models" else f"{repo.kind}/"
    name = quote(kind + repo.name, safe="")
    return f"/v1/snapshots/{repo.hub}/{name}/{quote(revision, safe='')}"
