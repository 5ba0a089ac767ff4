"""
Owns the hub's yeses to callers' tokens: which token, for which snapshot, how long ago.

Knows nothing of the hub.
Invariants: a token is kept as an HMAC under a key that lives in this process's memory alone; an age
is the longer one of two clocks, since one stands still while a machine sleeps and the other can be
set; a clock that went back has no yeses.
Source: design.md §7; Kubernetes KEP-2535, for keying by a hash of the credential.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Hashable

from p2pcache.clock import Clock
from p2pcache.core.credentials import Credentials
from p2pcache.core.refs import RepoId, SnapshotId

# Distinct (token, snapshot) pairs within the longest grace on one machine; the oldest goes.
GRANTS_MAX = 4096


class Grants:
    """What the hub said yes to. Event loop only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        # By (mark of the token, snapshot), or (mark of the token,) for "some token of somebody".
        self._times: OrderedDict[tuple[Hashable, ...], tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def mark(self, credentials: Credentials) -> bytes:
        """Return what stands for a token: nobody without the key can tell which."""
        return hmac.new(self._key, credentials.secret_bytes(), hashlib.sha256).digest()

    def note(self, credentials: Credentials, snapshot_id: SnapshotId | None = None) -> None:
        """Record that the hub said yes to a token just now; without a snapshot, to knowing it."""
        key = self._key_of(credentials, snapshot_id)
        self._times.pop(key, None)
        self._times[key] = (self._clock.monotonic_s(), self._clock.wall_s())
        while len(self._times) > GRANTS_MAX:
            self._times.popitem(last=False)

    def drop(self, credentials: Credentials, snapshot_id: SnapshotId | None = None) -> None:
        """Forget a yes; without a snapshot every one that this token has."""
        if snapshot_id is not None:
            self._times.pop(self._key_of(credentials, snapshot_id), None)
            return
        mark = self.mark(credentials)
        for key in [key for key in self._times if key[0] == mark]:
            del self._times[key]

    def drop_repo(self, credentials: Credentials, repo: RepoId) -> None:
        """Forget what a token was granted of a repository, at any commit."""
        mark = self.mark(credentials)
        for key in [key for key in self._times if key[0] == mark and len(key) > 1]:
            if isinstance(key[1], SnapshotId) and key[1].repo == repo:
                del self._times[key]

    def find_age_s(
        self, credentials: Credentials, snapshot_id: SnapshotId | None = None
    ) -> float | None:
        """Return how long ago the hub said yes, None if it did not, or nobody can tell."""
        times = self._times.get(self._key_of(credentials, snapshot_id))
        if times is None:
            return None
        ages = (self._clock.monotonic_s() - times[0], self._clock.wall_s() - times[1])
        return max(ages) if min(ages) >= 0 else None

    def _key_of(
        self, credentials: Credentials, snapshot_id: SnapshotId | None
    ) -> tuple[Hashable, ...]:
        mark = self.mark(credentials)
        return (mark,) if snapshot_id is None else (mark, snapshot_id)
