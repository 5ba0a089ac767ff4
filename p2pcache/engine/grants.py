"""
Owns the hubs' yeses to callers' tokens: which token, where, for which snapshot, how long ago.

Knows nothing of the hub.
Invariants: what one hub says of a token holds at no other: some let anybody pass, whatever he
shows; a token is kept as an HMAC under a key that lives in this process's memory alone; an age is
the longer one of two clocks, since one stands still while a machine sleeps and the other can be
set; a clock that went back has no yeses.
Source: design.md §7; Kubernetes KEP-2535, for keying by a hash of the credential.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from p2pcache.clock import Clock
from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import RepoId, SnapshotId

# Distinct (token, snapshot) pairs within the longest grace on one machine; the oldest goes.
GRANTS_MAX = 4096


# A snapshot, or the name of a hub for "it knows this token".
Scope: TypeAlias = SnapshotId | str


class Grants:
    """What the hub said yes to. Event loop only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        # By (mark of the token, snapshot), or (mark of the token, hub) for "somebody's, there".
        self._times: OrderedDict[tuple[bytes, Scope], tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def mark(self, credentials: Credentials) -> bytes:
        """Return what stands for a token: nobody without the key can tell which."""
        return hmac.new(self._key, credentials.secret_bytes(), hashlib.sha256).digest()

    def note(self, credentials: Credentials, scope: Scope) -> None:
        """Record that the hub said yes to a token just now: for a snapshot, or to knowing it."""
        key = (self.mark(credentials), scope)
        self._times.pop(key, None)
        self._times[key] = (self._clock.monotonic_s(), self._clock.wall_s())
        while len(self._times) > GRANTS_MAX:
            self._times.popitem(last=False)

    def drop(self, credentials: Credentials, snapshot_id: SnapshotId) -> None:
        """Forget a yes."""
        self._times.pop((self.mark(credentials), snapshot_id), None)

    def drop_hub(self, credentials: Credentials, hub: str) -> None:
        """Forget whatever a token was granted at a hub."""
        self._drop_where(credentials, lambda scope: _hub_of(scope) == hub)

    def drop_repo(self, credentials: Credentials, repo: RepoId) -> None:
        """Forget what a token was granted of a repository, at any commit."""
        self._drop_where(
            credentials, lambda scope: isinstance(scope, SnapshotId) and scope.repo == repo
        )

    def find_age_s(self, credentials: Credentials, scope: Scope) -> float | None:
        """Return how long ago the hub said yes, None if it did not, or nobody can tell."""
        times = self._times.get((self.mark(credentials), scope))
        if times is None:
            return None
        ages = (self._clock.monotonic_s() - times[0], self._clock.wall_s() - times[1])
        return max(ages) if min(ages) >= 0 else None

    def _drop_where(self, credentials: Credentials, is_meant: Callable[[Scope], bool]) -> None:
        mark = self.mark(credentials)
        for key in [key for key in self._times if key[0] == mark and is_meant(key[1])]:
            del self._times[key]


def _hub_of(scope: Scope) -> str:
    return scope.repo.hub if isinstance(scope, SnapshotId) else scope
