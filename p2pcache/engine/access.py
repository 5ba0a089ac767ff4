"""
Owns who may read what: proven-public snapshots, and grants for everything else.

Knows nothing of bytes.
Invariants: a grant exists only after the hub said yes to this very token for this repository
and commit, for GRANT seconds; a hub that does not answer is never a yes; one refusal to an
anonymous caller revokes "public" at once.
Source: design.md §7; docs/explanation/trust-and-threats.md.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable

from p2pcache.core.credentials import ANONYMOUS, Credentials
from p2pcache.core.refs import SnapshotId
from p2pcache.core.snapshot import Snapshot
from p2pcache.engine.context import Context
from p2pcache.engine.single import SingleFlight
from p2pcache.errors import (
    NotFoundError,
    UpstreamAuthError,
    UpstreamProtocolError,
    UpstreamRateLimitedError,
)
from p2pcache.errors import UpstreamUnreachableError as Unreachable

# Distinct (token, snapshot) pairs within a minute on one machine; the oldest goes.
GRANTS_MAX = 4096


class Access:
    """The gatekeeper. Event loop only."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # Told of every snapshot that the hub refuses to an anonymous caller.
        self.on_revoked: Callable[[Snapshot], None] = lambda snapshot: None
        self._key = secrets.token_bytes(32)
        self._grants: OrderedDict[tuple[bytes, SnapshotId], float] = OrderedDict()
        self._proofs = SingleFlight()
        # When the hub last left a question for a proof unanswered.
        self.unanswered_s = float("-inf")

    async def is_public(self, snapshot: Snapshot) -> bool:
        """
        Return whether the hub gives this snapshot's files to anybody.

        Asks the hub with an anonymous HEAD of one of its files, at most once a day. Access is
        decided per repository at the hub, so one file speaks for its snapshot. When the hub
        does not answer, an older yes stands; without one the answer is no.
        """
        age_s = await self._find_proof_age_s(snapshot)
        if self._is_fresh(age_s):
            return True
        return await self._proofs.run(snapshot.id, lambda: self._prove(snapshot, age_s))

    async def _find_proof_age_s(self, snapshot: Snapshot) -> float | None:
        row = await self._context.index.call(
            lambda index: index.catalogue.find_snapshot(snapshot.id)
        )
        if row is None or row.public_wall_s is None:
            return None
        return self._context.clock.wall_s() - row.public_wall_s

    def _is_fresh(self, age_s: float | None) -> bool:
        return age_s is not None and 0 <= age_s < self._context.settings.public_ttl_s

    async def _prove(self, snapshot: Snapshot, age_s: float | None) -> bool:
        try:
            await self._ask(snapshot, ANONYMOUS)
        except (Unreachable, UpstreamRateLimitedError, UpstreamProtocolError):
            self.unanswered_s = self._context.clock.monotonic_s()
            return age_s is not None
        except (UpstreamAuthError, NotFoundError):
            await self.revoke(snapshot.id)
            self.on_revoked(snapshot)
            return False
        await self.note_public(snapshot.id)
        return True

    async def check_may_read(self, snapshot: Snapshot, credentials: Credentials) -> bool:
        """
        Insist that this caller may read this snapshot; return whether anybody may.

        Raises:
            RepositoryNotFoundError, UpstreamAuthError: The hub refuses this caller.
            UpstreamUnreachableError: The hub cannot be asked, and the content is not public.
        """
        if self._is_fresh(await self._find_proof_age_s(snapshot)):
            return True
        now_s = self._context.clock.monotonic_s()
        key = (self._mark(credentials), snapshot.id)
        if self._grants.get(key, 0.0) > now_s:
            return False
        self._grants.pop(key, None)
        if await self.is_public(snapshot):
            return True
        await self._ask(snapshot, credentials)
        self._grants[key] = self._context.clock.monotonic_s() + self._context.settings.grant_ttl_s
        while len(self._grants) > GRANTS_MAX:
            self._grants.popitem(last=False)
        return False

    async def note_public(self, snapshot_id: SnapshotId) -> None:
        """Record that the hub gave a file to an anonymous caller just now."""
        wall_s = self._context.clock.wall_s()
        await self._context.index.call(
            lambda index: index.catalogue.set_public(snapshot_id, wall_s)
        )

    async def revoke(self, snapshot_id: SnapshotId) -> None:
        """
        Record that the hub refused an anonymous caller; stop sharing what is public nowhere else.
        """
        hidden = await self._context.index.call(
            lambda index: index.catalogue.revoke_public(snapshot_id)
        )
        for blob in hidden:
            await self._context.in_bulk(self._context.store.set_restricted, blob)

    async def close(self) -> None:
        """Stop asking."""
        await self._proofs.close()

    async def _ask(self, snapshot: Snapshot, credentials: Credentials) -> None:
        if not snapshot.files:
            # No file to ask for: whoever may see the repository may see that it is empty.
            await self._context.hub.resolve(snapshot.id.repo, snapshot.id.commit, credentials)
            return
        path = max(snapshot.files, key=lambda entry: entry.size_bytes).path
        await self._context.hub.check_access(snapshot.id, path, credentials)

    def _mark(self, credentials: Credentials) -> bytes:
        return hmac.new(self._key, credentials.secret_bytes(), hashlib.sha256).digest()
